#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <filesystem>

#include "datapath/shm/shm_transport.h"
#include "tests/conformance/world.h"

namespace genie::datapath::conformance {
namespace {

ShmOptions low_quotas() {
  ShmOptions options;
  options.max_endpoints = kQuotaEndpoints;
  options.max_regions_per_endpoint = kQuotaRegions;
  options.max_bytes_per_endpoint = kQuotaBytes;
  return options;
}

class ShmWorld final : public World {
 public:
  ShmWorld() : World(make_shm_transport(low_quotas()), make_shm_transport()) {
    static std::atomic<int> count{0};
    path_ = (std::filesystem::temp_directory_path() /
             ("genie-conformance-" + std::to_string(::getpid()) + "-" + std::to_string(count++) + ".sock"))
                .string();
  }

  std::string where() const override { return "unix:" + path_; }
  std::unique_ptr<Transport> make_client() override { return make_shm_transport(); }

 private:
  std::string path_;
};

}  // namespace

Backend shm_backend() {
  return {"shm", [] { return std::make_unique<ShmWorld>(); }, [] { return make_shm_transport(); }};
}

}  // namespace genie::datapath::conformance
