#include "datapath/backends.h"

#include <algorithm>
#include <utility>

#include "datapath/shm/shm_transport.h"
#include "datapath/ucx/ucx_fabric.h"
#include "datapath/verbs/verbs_fabric.h"

namespace genie::datapath {

namespace {

bool is_compiled_in(std::string_view name) {
  return name == "shm" || (name == "ucx" && ucx_compiled_in()) || (name == "verbs" && verbs_compiled_in());
}

Status no_backend(std::string_view name) {
  const bool known = std::ranges::find(kBackendRanks, name) != kBackendRanks.end() || name == "dpdk";
  std::string text = known ? "transport '" : "'";
  text.append(name).append(known ? "' is not compiled in: use " : "' is no transport: use ").append(backend_names());
  return {Errc::kConfig, std::move(text)};
}

NetOptions net_options(const BackendOptions& options) {
  NetOptions net;
  net.control_timeout_ms = options.control_timeout_ms;
  net.liveness_ms = options.liveness_ms;
  net.max_bytes_per_endpoint = std::min(net.max_bytes_per_endpoint, options.max_bytes_per_endpoint);
  return net;
}

}  // namespace

const std::vector<std::string>& compiled_backends() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> found;
    for (const std::string_view name : kBackendRanks) {
      if (is_compiled_in(name)) found.emplace_back(name);
    }
    return found;
  }();
  return names;
}

std::string backend_names() {
  std::string names;
  for (const std::string& name : compiled_backends()) names += name + ", ";
  return names + "or auto";
}

Result<std::vector<std::string>> parse_backends(std::string_view list) {
  if (list == "auto") return compiled_backends();
  std::vector<std::string> names;
  for (size_t begin = 0; begin <= list.size();) {
    const size_t end = std::min(list.find(',', begin), list.size());
    const std::string_view name = list.substr(begin, end - begin);
    if (name == "auto") return Status(Errc::kConfig, "'auto' stands alone: name transports, or say auto");
    if (!is_compiled_in(name)) return no_backend(name);
    names.emplace_back(name);
    begin = end + 1;
  }
  std::ranges::sort(names, {}, [](const std::string& name) { return std::ranges::find(kBackendRanks, name); });
  names.erase(std::unique(names.begin(), names.end()), names.end());
  return names;
}

Result<std::unique_ptr<Transport>> make_backend(std::string_view name, const BackendOptions& options) {
  if (!is_compiled_in(name)) return no_backend(name);
  if (name == "ucx") {
    UcxOptions ucx;
    ucx.tls = options.ucx_tls;
    ucx.towards = options.towards;
    ucx.net = net_options(options);
    return make_ucx_transport(ucx);
  }
  if (name == "verbs") {
    VerbsOptions verbs;
    verbs.devices = options.verbs_devices;
    verbs.net = net_options(options);
    return make_verbs_transport(verbs);
  }
  ShmOptions shm;
  shm.control_timeout_ms = options.control_timeout_ms;
  shm.max_bytes_per_endpoint = std::min(shm.max_bytes_per_endpoint, options.max_bytes_per_endpoint);
  return make_shm_transport(shm);
}

}  // namespace genie::datapath
