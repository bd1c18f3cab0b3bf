// Cores for pollers, and the addresses to listen on.
#include <arpa/inet.h>
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <filesystem>

#include "datapath/base/tcp_address.h"
#include "tools/doctor/doctor.h"

namespace genie::doctor {
namespace {

// The bound of sun_path, its final zero left out.
constexpr size_t kSocketPathMax = 107;

// "50000 100000": half a core.
std::optional<double> core_quota(const Host& host) {
  const std::string text = host.text("/sys/fs/cgroup/cpu.max").value_or("max");
  const auto columns = words(text);
  if (columns.size() != 2 || columns[0] == "max") return std::nullopt;
  const auto quota = leading_number(columns[0]);
  const auto period = leading_number(columns[1]);
  if (!quota || !period || *period == 0) return std::nullopt;
  return static_cast<double>(*quota) / static_cast<double>(*period);
}

std::optional<datapath::TcpAddress> tcp_address(std::string_view uri) {
  const Result<datapath::TcpAddress> address = datapath::parse_tcp_address(uri);
  if (!address || address->host.empty() || !address->port_number()) return std::nullopt;
  return *address;
}

// The listening address in /proc/net/tcp ("0100007F:1F90") that stands in the way of `wanted`; empty when none does.
std::string listener_on(const Host& host, const datapath::TcpAddress& wanted) {
  in_addr numeric{};
  const bool ipv4 = ::inet_pton(AF_INET, wanted.host.c_str(), &numeric) == 1;
  const std::string mine = fmt::format("{:08X}", numeric.s_addr);
  for (const char* table : {"/proc/net/tcp", "/proc/net/tcp6"}) {
    for (const std::string& line : host.lines(table)) {
      const auto columns = words(line);
      if (columns.size() < 4 || columns[3] != "0A") continue;
      const size_t colon = columns[1].find(':');
      if (colon == std::string_view::npos) continue;
      const std::string_view address = columns[1].substr(0, colon);
      const std::string_view digits = columns[1].substr(colon + 1);
      uint32_t port = 0;
      std::from_chars(digits.data(), digits.data() + digits.size(), port, 16);
      if (port != wanted.port_number()) continue;
      // Two different addresses of IPv4 do not meet; all others are taken to.
      const bool any = address.find_first_not_of('0') == std::string_view::npos;
      if (ipv4 && numeric.s_addr != 0 && !any && address.size() == 8 && address != mine) continue;
      return std::string(columns[1]);
    }
  }
  return {};
}

// "8080,9000-9100" has `port`.
bool listed(std::string_view list, uint32_t port) {
  const std::vector<uint32_t> ports = cpu_list(list);
  return std::find(ports.begin(), ports.end(), port) != ports.end();
}

struct PortRange {
  uint64_t first = 32768;
  uint64_t last = 60999;
};

PortRange ephemeral_ports(const Host& host) {
  PortRange range;
  const std::string text = host.text("/proc/sys/net/ipv4/ip_local_port_range").value_or("");
  const auto columns = words(text);
  if (columns.size() != 2) return range;
  return {leading_number(columns[0]).value_or(range.first), leading_number(columns[1]).value_or(range.last)};
}

Line tcp_line(const Host& host, const datapath::TcpAddress& address) {
  const uint32_t port = address.port_number().value_or(0);
  Line line{"ports.listen", Level::kOk, fmt::format("{}:{} is free", address.host, port), ""};
  const PortRange ephemeral = ephemeral_ports(host);
  if (port == 0) {
    line.text = "port 0: the system chooses a free one";
    return line;
  }
  if (const std::string taken = listener_on(host, address); !taken.empty()) {
    line.level = Level::kFail;
    line.text = fmt::format("{}:{} is taken: something listens there already", address.host, port);
    line.cure =
        fmt::format("'ss -tlnp sport = :{}' names it (a running genie-node?); stop it or choose another port", port);
  } else if (port < host.number("/proc/sys/net/ipv4/ip_unprivileged_port_start").value_or(1024) &&
             !has_capability(host, kCapNetBindService)) {
    line.level = Level::kFail;
    line.text = fmt::format("port {} is for privileged programs only", port);
    line.cure = "choose a port from 1024 on";
  } else if (port >= ephemeral.first && port <= ephemeral.last &&
             !listed(host.text("/proc/sys/net/ipv4/ip_local_reserved_ports").value_or(""), port)) {
    line.level = Level::kWarn;
    line.text = fmt::format("{}:{} is free, but the system gives ports {} to {} to outgoing connections", address.host,
                            port, ephemeral.first, ephemeral.last);
    line.cure =
        fmt::format("choose a port below {}, or sysctl net.ipv4.ip_local_reserved_ports={}", ephemeral.first, port);
  }
  return line;
}

Line unix_line(const Host& host, const std::string& path) {
  const std::string folder = std::filesystem::path(path).parent_path().string();
  if (path.size() > kSocketPathMax) {
    return {"ports.listen", Level::kFail, fmt::format("{} is longer than a socket's path may be", path),
            fmt::format("choose a path of at most {} characters", kSocketPathMax)};
  }
  if (!host.has(folder)) {
    return {"ports.listen", Level::kFail, fmt::format("the folder {} does not exist", folder), "mkdir -p " + folder};
  }
  for (const std::string& line : host.lines("/proc/net/unix")) {
    const auto columns = words(line);
    // Flags 00010000: it accepts connections.
    if (columns.size() < 8 || columns[3] != "00010000" || columns[7] != path) continue;
    return {"ports.listen", Level::kFail, path + " is taken: something listens there already",
            fmt::format("'ss -xlp src {}' names it (a running genie-node?); stop it or choose another path", path)};
  }
  if (!host.usable(folder)) {
    return {"ports.listen", Level::kFail, fmt::format("this user may not make a socket in {}", folder),
            "choose a folder of this user's, such as $XDG_RUNTIME_DIR"};
  }
  return {"ports.listen", Level::kOk, path + " is free", ""};
}

Line ephemeral_line(const Host& host) {
  constexpr uint64_t kFew = 4096;
  const PortRange range = ephemeral_ports(host);
  const uint64_t count = range.last >= range.first ? range.last - range.first + 1 : 0;
  Line line{"ports.ephemeral", Level::kOk,
            fmt::format("{} ports for outgoing connections ({} to {})", count, range.first, range.last), ""};
  if (count < kFew) {
    line.level = Level::kWarn;
    line.cure = "sysctl net.ipv4.ip_local_port_range='32768 60999'";
  }
  return line;
}

}  // namespace

// A node has one poller and one worker for each device; polling without sleep takes the poller's core for good.
Lines check_cores(const Host& host, const Purpose& purpose) {
  Line line{"cores", Level::kOk, "", ""};
  const auto allowed = cpu_list(host.field("/proc/self/status", "Cpus_allowed_list").value_or(""));
  if (allowed.empty()) {
    line.text = "the cores of this process cannot be read";
    return {line};
  }
  const std::optional<double> quota = core_quota(host);
  const double cores = std::min(static_cast<double>(allowed.size()), quota.value_or(1e9));
  line.text = fmt::format("{} core{}", allowed.size(), allowed.size() == 1 ? "" : "s");
  if (quota) line.text += fmt::format(", of which the control group leaves {:g}", *quota);
  const uint32_t wanted = 1 + std::max(purpose.threads, 1U);
  if (cores < wanted) {
    line.level = Level::kWarn;
    line.text += purpose.busy_polling ? fmt::format("; a poller that never sleeps and its workers want {}", wanted)
                                      : fmt::format("; a poller and its workers want {} and take turns", wanted);
    line.cure = purpose.busy_polling ? "polling: adaptive, or more cores (taskset, cpu.max)"
                                     : "give the node more cores (taskset, cpu.max), or fewer threads";
  }
  return {line};
}

Lines check_ports(const Host& host, const Purpose& purpose) {
  Lines lines;
  for (const std::string& uri : purpose.listen) {
    if (const auto address = tcp_address(uri)) {
      lines.push_back(tcp_line(host, *address));
    } else if (uri.starts_with("unix:/")) {
      lines.push_back(unix_line(host, uri.substr(5)));
    } else {
      lines.push_back({"ports.listen", Level::kFail, "'" + uri + "' is no address to listen on",
                       "unix:/path.sock, or tcp://host:port"});
    }
  }
  if (purpose.listen.empty()) {
    lines.push_back({"ports.listen", Level::kOk, "no address given: --listen or --config checks the node's", ""});
  }
  lines.push_back(ephemeral_line(host));
  return lines;
}

}  // namespace genie::doctor
