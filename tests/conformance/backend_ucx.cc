#include "datapath/ucx/ucx_fabric.h"
#include "tests/conformance/world.h"

namespace genie::datapath::conformance {
namespace {

UcxOptions options_for(const std::string& tls) {
  UcxOptions options;
  options.tls = tls;
  return options;
}

UcxOptions low_quotas(const std::string& tls) {
  UcxOptions options = options_for(tls);
  options.net.max_endpoints = kQuotaEndpoints;
  options.net.max_regions_per_endpoint = kQuotaRegions;
  options.net.max_bytes_per_endpoint = kQuotaBytes;
  return options;
}

std::unique_ptr<Transport> make(const UcxOptions& options) {
  Result<std::unique_ptr<Transport>> made = make_ucx_transport(options);
  if (!made.ok()) throw std::runtime_error(made.status().to_string());
  return std::move(*made);
}

class UcxWorld final : public World {
 public:
  explicit UcxWorld(const std::string& tls)
      : World(make(low_quotas(tls)), make(options_for(tls))), tls_(tls), where_(free_tcp_address()) {}

  std::string where() const override { return where_; }
  std::unique_ptr<Transport> make_client() override { return make(options_for(tls_)); }

 private:
  const std::string tls_;
  const std::string where_;
};

}  // namespace

std::vector<Backend> ucx_backends() {
  if (!ucx_compiled_in()) return {};
  const auto over = [](const std::string& name, const std::string& tls) {
    return Backend{name, [tls] { return std::make_unique<UcxWorld>(tls); }, [tls] { return make(options_for(tls)); }};
  };
  return {over("ucx_tcp", "tcp"), over("ucx_shared_memory", "posix,sysv")};
}

}  // namespace genie::datapath::conformance
