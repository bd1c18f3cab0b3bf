// TcpAddress: "tcp://host:port" cut in two.
//
// Thread-safety: values.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "genie/status.h"

namespace genie::datapath {

struct TcpAddress {
  std::string host;  // IPv6 without its brackets; may be empty
  std::string port;  // a number, or the name of a service

  std::optional<uint16_t> port_number() const;
  // Whoever listens on it listens on all addresses of the machine.
  bool is_any() const;
  bool is_loopback() const;
  std::string to_string() const;
};

// kInvalidArgument when it is none.
Result<TcpAddress> parse_tcp_address(std::string_view address);

}  // namespace genie::datapath
