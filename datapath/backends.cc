#include "datapath/backends.h"

#include <algorithm>
#include <utility>

#include "datapath/shm/shm_transport.h"

namespace genie::datapath {

Result<std::string> choose_backend(std::string_view name) {
  if (name == "auto" || name == "shm") return std::string("shm");
  const bool known = name == "ucx" || name == "verbs" || name == "dpdk";
  std::string text = known ? "transport '" : "'";
  text.append(name).append(known ? "' is not compiled in: use shm or auto" : "' is no transport: use shm or auto");
  return Status(Errc::kConfig, std::move(text));
}

Result<std::unique_ptr<Transport>> make_backend(std::string_view name, const BackendOptions& options) {
  const Result<std::string> chosen = choose_backend(name);
  GENIE_TRY(chosen.status());
  ShmOptions shm;
  shm.control_timeout_ms = options.control_timeout_ms;
  shm.max_bytes_per_endpoint = std::min(shm.max_bytes_per_endpoint, options.max_bytes_per_endpoint);
  return make_shm_transport(shm);
}

}  // namespace genie::datapath
