#include "datapath/base/tcp_address.h"

#include <charconv>

namespace genie::datapath {
namespace {

constexpr std::string_view kScheme = "tcp://";

}  // namespace

std::optional<uint16_t> TcpAddress::port_number() const {
  uint16_t number = 0;
  const auto [end, error] = std::from_chars(port.data(), port.data() + port.size(), number);
  if (error != std::errc() || end != port.data() + port.size()) return std::nullopt;
  return number;
}

bool TcpAddress::is_any() const { return host.empty() || host == "*" || host == "0.0.0.0" || host == "::"; }

bool TcpAddress::is_loopback() const { return host.starts_with("127.") || host == "::1" || host == "localhost"; }

std::string TcpAddress::to_string() const {
  const bool ipv6 = host.find(':') != std::string::npos;
  return std::string(kScheme) + (ipv6 ? "[" + host + "]" : host) + ":" + port;
}

Result<TcpAddress> parse_tcp_address(std::string_view address) {
  const std::string_view rest = address.starts_with(kScheme) ? address.substr(kScheme.size()) : std::string_view();
  const size_t colon = rest.rfind(':');
  if (colon == std::string_view::npos || colon + 1 == rest.size()) {
    return Status(Errc::kInvalidArgument, std::string(address) + ": not a network address; write tcp://host:port");
  }
  std::string_view host = rest.substr(0, colon);
  if (host.size() >= 2 && host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
  return TcpAddress{std::string(host), std::string(rest.substr(colon + 1))};
}

}  // namespace genie::datapath
