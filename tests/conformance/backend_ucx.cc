#include <netinet/in.h>
#include <sys/socket.h>

#include "datapath/base/file_descriptor.h"
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

// A port that nobody uses now.
std::string free_address() {
  const FileDescriptor probe(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  EXPECT_EQ(::bind(probe.get(), reinterpret_cast<sockaddr*>(&address), size), 0);
  EXPECT_EQ(::getsockname(probe.get(), reinterpret_cast<sockaddr*>(&address), &size), 0);
  return "tcp://127.0.0.1:" + std::to_string(ntohs(address.sin_port));
}

class UcxWorld final : public World {
 public:
  explicit UcxWorld(const std::string& tls)
      : World(make(low_quotas(tls)), make(options_for(tls))), tls_(tls), where_(free_address()) {}

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
