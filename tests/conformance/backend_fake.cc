#include "datapath/fake/fake_network.h"
#include "tests/conformance/world.h"

namespace genie::datapath::conformance {
namespace {

constexpr FakeLimits kLowQuotas = {
    .max_endpoints = kQuotaEndpoints, .max_regions_per_endpoint = kQuotaRegions, .max_bytes_per_endpoint = kQuotaBytes};

class FakeWorld final : public World {
 public:
  explicit FakeWorld(const FakeOptions& options) : FakeWorld(FakeNetwork(options)) {}

  std::string where() const override { return "fake:listener"; }
  std::unique_ptr<Transport> make_client() override { return network_.make_transport(); }
  void idle() override { network_.advance(); }
  Deadline after_ms(uint64_t ms) const override { return network_.after_ms(ms); }
  bool blocking_calls_need_peer() const override { return false; }

 private:
  explicit FakeWorld(FakeNetwork network)
      : World(network.make_transport(kLowQuotas), network.make_transport()), network_(std::move(network)) {}

  FakeNetwork network_;
};

}  // namespace

Backend fake_backend() {
  return {"fake", [] { return std::make_unique<FakeWorld>(FakeOptions()); }, nullptr};
}

// Late and overtaking, as far as the contract allows: everything must hold all the same. So slow that a large transfer takes
// longer (33 ms for 32 MiB) than the faults can hold up a small one (5 ms).
Backend fake_unruly_backend() {
  return {"fake_unruly",
          [] {
            return std::make_unique<FakeWorld>(
                FakeOptions{.faults = {.seed = test_seed(), .delay_ns_min = 0, .delay_ns_max = 50'000, .reorder = 0.3},
                            .bytes_per_ns = 1});
          },
          nullptr};
}

}  // namespace genie::datapath::conformance
