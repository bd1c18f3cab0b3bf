#include "datapath/backends.h"

#include <algorithm>
#include <utility>

#include "datapath/shm/shm_transport.h"
#include "datapath/ucx/ucx_fabric.h"
#include "datapath/verbs/verbs_fabric.h"

namespace genie::datapath {

std::string backend_names() {
  return std::string("shm, ") + (ucx_compiled_in() ? "ucx, " : "") + (verbs_compiled_in() ? "verbs, " : "") + "or auto";
}

namespace {

NetOptions net_options(const BackendOptions& options) {
  NetOptions net;
  net.control_timeout_ms = options.control_timeout_ms;
  net.liveness_ms = options.liveness_ms;
  net.max_bytes_per_endpoint = std::min(net.max_bytes_per_endpoint, options.max_bytes_per_endpoint);
  return net;
}

}  // namespace

Result<std::string> choose_backend(std::string_view name) {
  if (name == "auto" || name == "shm") return std::string("shm");
  if (name == "ucx" && ucx_compiled_in()) return std::string("ucx");
  if (name == "verbs" && verbs_compiled_in()) return std::string("verbs");
  const bool known = name == "ucx" || name == "verbs" || name == "dpdk";
  std::string text = known ? "transport '" : "'";
  text.append(name).append(known ? "' is not compiled in: use " : "' is no transport: use ").append(backend_names());
  return Status(Errc::kConfig, std::move(text));
}

Result<std::unique_ptr<Transport>> make_backend(std::string_view name, const BackendOptions& options) {
  const Result<std::string> chosen = choose_backend(name);
  GENIE_TRY(chosen.status());
  if (*chosen == "ucx") {
    UcxOptions ucx;
    ucx.tls = options.ucx_tls;
    ucx.net = net_options(options);
    return make_ucx_transport(ucx);
  }
  if (*chosen == "verbs") {
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
