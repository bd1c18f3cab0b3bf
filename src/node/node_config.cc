#include "src/node/node_config.h"

#include <sys/stat.h>
#include <yaml-cpp/yaml.h>

#include <array>
#include <charconv>
#include <cstring>
#include <limits>

#include "datapath/backends.h"
#include "datapath/base/tcp_address.h"

namespace genie::node {
namespace {

constexpr const char* kKeys =
    "name, listen, transport, data_listen, peer_timeout_ms, rdma_devices, device, threads, memory_quota, max_sessions, "
    "max_templates, polling, token_file, drain_timeout_s, load_library";

Status wrong(const std::string& where, std::string_view key, const std::string& value, std::string_view allowed) {
  return {Errc::kConfig, where + std::string(key) + ": '" + value + "' is wrong; allowed: " + std::string(allowed)};
}

template <typename Number>
bool parse_number(std::string_view text, Number least, Number most, Number& out) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), out);
  return error == std::errc() && end == text.data() + text.size() && out >= least && out <= most;
}

bool is_tcp(const std::string& value) {
  const Result<datapath::TcpAddress> address = datapath::parse_tcp_address(value);
  return address.ok() && !address->host.empty() && address->port_number().has_value();
}

Status set_listen(const std::string& value, const std::string& where, NodeConfig& config) {
  const bool unix_socket = value.starts_with("unix:/") && value.size() > 6;
  if (!unix_socket && !is_tcp(value)) return wrong(where, "listen", value, "unix:/path.sock, tcp://host:port");
  config.listen.push_back(value);
  return {};
}

std::string text_of(const YAML::Node& node) {
  return node.IsScalar() ? node.Scalar() : std::string("(not a plain value)");
}

}  // namespace

Result<uint64_t> parse_bytes(std::string_view text) {
  if (text == "unlimited") return UINT64_MAX;
  constexpr std::array<std::pair<std::string_view, uint64_t>, 8> kUnits{{{"KiB", 1ULL << 10},
                                                                         {"MiB", 1ULL << 20},
                                                                         {"GiB", 1ULL << 30},
                                                                         {"TiB", 1ULL << 40},
                                                                         {"KB", 1'000ULL},
                                                                         {"MB", 1'000'000ULL},
                                                                         {"GB", 1'000'000'000ULL},
                                                                         {"TB", 1'000'000'000'000ULL}}};
  uint64_t factor = 1;
  for (const auto& [unit, bytes] : kUnits) {
    if (!text.ends_with(unit)) continue;
    factor = bytes;
    text.remove_suffix(unit.size());
    break;
  }
  uint64_t number = 0;
  if (!parse_number<uint64_t>(text, 1, std::numeric_limits<uint64_t>::max() / factor, number)) return Errc::kConfig;
  return number * factor;
}

Status set_config(std::string_view key, const std::string& value, const std::string& where, NodeConfig& config) {
  if (key == "name") {
    if (value.empty() || value.size() > 128) return wrong(where, key, value, "1 to 128 characters");
    config.name = value;
  } else if (key == "listen") {
    return set_listen(value, where, config);
  } else if (key == "transport") {
    if (const auto names = datapath::parse_backends(value); !names) {
      return {Errc::kConfig, where + "transport: " + std::string(names.status().text())};
    }
    config.transport = value;
  } else if (key == "data_listen") {
    if (!is_tcp(value)) return wrong(where, key, value, "tcp://host:port, where clients reach the data endpoint");
    config.data_listen = value;
  } else if (key == "peer_timeout_ms") {
    if (!parse_number<uint64_t>(value, 0, 3'600'000, config.peer_timeout_ms))
      return wrong(where, key, value, "0 (never) to 3600000");
  } else if (key == "rdma_devices") {
    config.rdma_devices = value;
  } else if (key == "device") {
    if (value != "cpu") {
      return {Errc::kConfig, where + "device: '" + value + "' is not compiled into this node; allowed: cpu"};
    }
    config.device = value;
  } else if (key == "threads") {
    if (!parse_number(std::string_view(value), 0, 4096, config.threads))
      return wrong(where, key, value, "0 (default) to 4096");
  } else if (key == "memory_quota") {
    const Result<uint64_t> bytes = parse_bytes(value);
    if (!bytes) return wrong(where, key, value, "bytes per session, such as 512MiB, 8GiB or unlimited");
    config.memory_quota_bytes = *bytes;
  } else if (key == "max_sessions") {
    if (!parse_number<uint64_t>(value, 1, 65536, config.max_sessions)) return wrong(where, key, value, "1 to 65536");
  } else if (key == "max_templates") {
    if (!parse_number<uint64_t>(value, 1, 1U << 20, config.max_templates))
      return wrong(where, key, value, "1 to 1048576");
  } else if (key == "polling") {
    if (value != "adaptive" && value != "busy") return wrong(where, key, value, "adaptive, busy");
    config.polling = value;
  } else if (key == "load_library") {
    if (value.empty()) return wrong(where, key, value, "the path of a shared library");
    config.load_libraries.push_back(value);
  } else if (key == "token_file") {
    config.token_file = value;
  } else if (key == "drain_timeout_s") {
    if (!parse_number<uint64_t>(value, 0, 86400, config.drain_timeout_s)) return wrong(where, key, value, "0 to 86400");
  } else {
    return {Errc::kConfig, where + "unknown key '" + std::string(key) + "'; allowed: " + kKeys};
  }
  return {};
}

Status read_config_file(const std::string& path, NodeConfig& config) {
  YAML::Node root;
  const auto at = [&](const YAML::Mark& mark) { return path + ":" + std::to_string(mark.line + 1) + ": "; };
  try {
    root = YAML::LoadFile(path);
  } catch (const YAML::BadFile&) {
    return {Errc::kConfig, path + ": cannot be read: " + std::strerror(errno)};
  } catch (const YAML::Exception& error) {
    return {Errc::kConfig, at(error.mark) + "not YAML: " + error.msg};
  }
  if (root.IsNull()) return {};
  if (!root.IsMap()) return {Errc::kConfig, at(root.Mark()) + "expected 'key: value' lines; keys: " + kKeys};
  bool listen_seen = false;
  for (const auto& entry : root) {
    const std::string where = at(entry.first.Mark());
    if (!entry.first.IsScalar()) return {Errc::kConfig, where + "a key must be a word; keys: " + kKeys};
    const std::string key = entry.first.Scalar();
    if (key == "listen" && !listen_seen) {
      config.listen.clear();
      listen_seen = true;
    }
    const bool list = key == "listen" || key == "load_library";
    if (list && entry.second.IsSequence()) {
      for (const YAML::Node& item : entry.second) GENIE_TRY(set_config(key, text_of(item), at(item.Mark()), config));
      continue;
    }
    if (!entry.second.IsScalar()) return wrong(where, key, text_of(entry.second), "one plain value");
    GENIE_TRY(set_config(key, entry.second.Scalar(), where, config));
  }
  return {};
}

}  // namespace genie::node
