// The transport conformance suite across two network namespaces: the listener is there, the client (and every further process)
// is here.
#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "datapath/ucx/ucx_fabric.h"
#include "tests/conformance/peer.h"
#include "tests/conformance/world.h"
#include "tests/network/wire.h"

namespace genie::datapath::conformance {
namespace {

// A transport whose sockets are there, whoever calls it.
class Elsewhere final : public Transport {
 public:
  explicit Elsewhere(std::unique_ptr<Transport> transport) : transport_(std::move(transport)) {}
  ~Elsewhere() override {
    const test::VisitThere there;
    transport_.reset();
  }

  const Capabilities& capabilities() const noexcept override { return transport_->capabilities(); }
  Status listen(std::string_view where) override { return visit()->listen(where); }
  std::string address() const override { return transport_->address(); }
  Result<EndpointId> connect(std::string_view address, std::span<const std::byte> token, Deadline deadline) override {
    return visit()->connect(address, token, deadline);
  }
  std::span<const std::byte> endpoint_token(EndpointId endpoint) const override {
    return transport_->endpoint_token(endpoint);
  }
  Status close(EndpointId endpoint) override { return visit()->close(endpoint); }
  Result<Region> allocate(EndpointId endpoint, size_t size, Deadline deadline) override {
    return visit()->allocate(endpoint, size, deadline);
  }
  Result<Region> publish(EndpointId endpoint, size_t size) override { return visit()->publish(endpoint, size); }
  Result<Region> register_memory(std::span<std::byte> memory, MemoryKind kind) override {
    return visit()->register_memory(memory, kind);
  }
  Status release(MemoryKey key) override { return visit()->release(key); }
  Result<RemoteRegion> import_region(EndpointId endpoint, const RemoteKey& key) override {
    return visit()->import_region(endpoint, key);
  }
  Status drop_import(const RemoteRegion& region) override { return visit()->drop_import(region); }
  Result<Region> prepare(EndpointId endpoint, size_t size) override { return visit()->prepare(endpoint, size); }
  Result<RemoteKey> hand_over(MemoryKey key, size_t size, Deadline deadline) override {
    return visit()->hand_over(key, size, deadline);
  }
  Result<Taken> take(EndpointId endpoint, const RemoteKey& key) override { return visit()->take(endpoint, key); }
  Status write(EndpointId endpoint, Buffer& local, const RemoteRegion& remote, size_t offset,
               const PostOptions& options) override {
    return visit()->write(endpoint, local, remote, offset, options);
  }
  Status write_with_notify(EndpointId endpoint, Buffer& local, const RemoteRegion& remote, size_t offset,
                           uint32_t immediate, const PostOptions& options) override {
    return visit()->write_with_notify(endpoint, local, remote, offset, immediate, options);
  }
  Status read(EndpointId endpoint, Buffer& local, const RemoteRegion& remote, size_t offset,
              const PostOptions& options) override {
    return visit()->read(endpoint, local, remote, offset, options);
  }
  Status send(EndpointId endpoint, Buffer& message, uint32_t immediate, const PostOptions& options) override {
    return visit()->send(endpoint, message, immediate, options);
  }
  size_t poll(std::span<Completion> out) override { return visit()->poll(out); }
  void wait(uint64_t timeout_ns) override { visit()->wait(timeout_ns); }
  void wake() override { transport_->wake(); }
  int arm() override { return visit()->arm(); }
  Counters counters() const override { return transport_->counters(); }

 private:
  // For the length of one call.
  struct Call {
    Transport* transport;
    test::VisitThere there;
    Transport* operator->() const { return transport; }
  };
  Call visit() { return Call{.transport = transport_.get(), .there = {}}; }

  std::unique_ptr<Transport> transport_;
};

std::unique_ptr<Transport> checked(Result<std::unique_ptr<Transport>> made) {
  if (!made.ok()) throw std::runtime_error(made.status().to_string());
  return std::move(*made);
}

// Longer than by default, for a busy machine, and less than a test's patience.
constexpr uint64_t kLivenessMs = 10'000;

UcxOptions over_tcp() {
  UcxOptions options;
  options.tls = "tcp";
  options.net.liveness_ms = kLivenessMs;
  return options;
}

std::unique_ptr<Transport> make_here() { return checked(make_ucx_transport(over_tcp())); }

std::unique_ptr<Transport> make_there() {
  UcxOptions options = over_tcp();
  options.net.max_endpoints = kQuotaEndpoints;
  options.net.max_regions_per_endpoint = kQuotaRegions;
  options.net.max_bytes_per_endpoint = kQuotaBytes;
  const test::VisitThere there;
  return std::make_unique<Elsewhere>(checked(make_ucx_transport(options)));
}

class AcrossWorld final : public World {
 public:
  AcrossWorld() : World(make_there(), make_here()) {}

  std::string where() const override { return std::string("tcp://") + test::kThere + ":7711"; }
  std::unique_ptr<Transport> make_client() override { return make_here(); }
  bool one_host() const override { return false; }
};

constexpr test::Faults kFaults{.loss = 0.003, .delay_us = 50, .jitter_us = 100, .reorder = 0.01, .duplicate = 0.01};

// Interfaces take a while to go: a wire stays for the next test, as long as that wants the same.
void lay_wire(const test::Faults* faults) {
  static std::optional<test::Wire> wire;
  static const test::Faults* laid = nullptr;
  if (wire.has_value() && laid == faults) return;
  wire.reset();
  if (faults != nullptr) {
    wire.emplace(*faults);
  } else {
    wire.emplace();
  }
  laid = faults;
}

Backend over(const std::string& name, const test::Faults* faults) {
  // The wire is there before the transports look for devices.
  const auto make = [faults] {
    lay_wire(faults);
    return std::make_unique<AcrossWorld>();
  };
  return Backend{name, make, make_here};
}

}  // namespace

const std::vector<Backend>& backends() {
  static const std::vector<Backend> all = {over("ucx_direct", nullptr), over("ucx_faulty", &kFaults)};
  return all;
}

}  // namespace genie::datapath::conformance

int main(int argc, char** argv) {
  using namespace genie;
  if (argc == 5 && std::string_view(argv[1]) == "peer") return datapath::conformance::peer_main(argc, argv);
  testing::InitGoogleTest(&argc, argv);
  const std::string reason = datapath::ucx_compiled_in() ? test::make_networks() : std::string("this build has no UCX");
  if (!reason.empty()) {
    std::printf("skipped: %s\n", reason.c_str());
    return 77;
  }
  return RUN_ALL_TESTS();
}
