#include <cstdio>
#include <stdexcept>

#include "datapath/verbs/verbs_fabric.h"
#include "tests/conformance/world.h"

namespace genie::datapath::conformance {
namespace {

VerbsOptions options_for(size_t rails) {
  VerbsOptions options;
  options.rails_max = rails;
  options.net.liveness_ms = patience_ms() / 4;
  return options;
}

VerbsOptions low_quotas(size_t rails) {
  VerbsOptions options = options_for(rails);
  options.net.max_endpoints = kQuotaEndpoints;
  options.net.max_regions_per_endpoint = kQuotaRegions;
  options.net.max_bytes_per_endpoint = kQuotaBytes;
  return options;
}

std::unique_ptr<Transport> make(const VerbsOptions& options) {
  Result<std::unique_ptr<Transport>> made = make_verbs_transport(options);
  if (!made.ok()) throw std::runtime_error(made.status().to_string());
  return std::move(*made);
}

class VerbsWorld final : public World {
 public:
  explicit VerbsWorld(size_t rails)
      : World(make(low_quotas(rails)), make(options_for(rails))), rails_(rails), where_(free_tcp_address()) {}

  std::string where() const override { return where_; }
  std::unique_ptr<Transport> make_client() override { return make(options_for(rails_)); }

 private:
  const size_t rails_;
  const std::string where_;
};

}  // namespace

std::vector<Backend> verbs_backends() {
  if (!verbs_usable()) {
    std::printf("no RDMA device is up here: verbs is left out; scripts/test.sh guest has some\n");
    return {};
  }
  const auto over = [](const std::string& name, size_t rails) {
    return Backend{name, [rails] { return std::make_unique<VerbsWorld>(rails); },
                   [rails] { return make(options_for(rails)); }};
  };
  return {over("verbs", 1), over("verbs_all_rails", 4)};
}

}  // namespace genie::datapath::conformance
