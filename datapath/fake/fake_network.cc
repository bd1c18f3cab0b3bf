#include "datapath/fake/fake_network.h"

#include <algorithm>

#include "datapath/base/log.h"
#include "datapath/fake/fake_transport.h"

namespace genie::datapath {

FakeNetwork::FakeNetwork(const FakeOptions& options) : core_(std::make_shared<Core>(options)) {
  GENIE_LOG_DEBUG("fake network, seed {}", options.faults.seed);
}

std::unique_ptr<Transport> FakeNetwork::make_transport(const FakeLimits& limits) {
  return std::make_unique<fake::FakeTransport>(core_, limits);
}

uint64_t FakeNetwork::now_ns() const noexcept { return core_->now_ns; }
Deadline FakeNetwork::after_ms(uint64_t ms) const noexcept { return Deadline::at_ns(core_->now_ns + ms * 1'000'000); }

bool FakeNetwork::advance() {
  const uint64_t next = core_->next_ns();
  if (next == UINT64_MAX) return false;
  core_->now_ns = next;
  core_->run();
  return true;
}

void FakeNetwork::Core::run() {
  for (fake::FakeTransport* transport : transports) transport->progress();
}

uint64_t FakeNetwork::Core::next_ns() {
  uint64_t next = UINT64_MAX;
  for (fake::FakeTransport* transport : transports) next = std::min(next, transport->next_ns());
  return next;
}

fake::Fate FakeNetwork::Core::draw(size_t bytes) {
  const FaultPolicy& faults = options.faults;
  const auto chance = [this](double probability) {
    return std::uniform_real_distribution<double>(0, 1)(random) < probability;
  };
  fake::Fate fate;
  const uint64_t longest = std::max(faults.delay_ns_min, faults.delay_ns_max);
  uint64_t delay = std::uniform_int_distribution<uint64_t>(faults.delay_ns_min, longest)(random);
  if (chance(faults.reorder)) delay += std::uniform_int_distribution<uint64_t>(0, 100 * longest)(random);
  fate.arrives_ns = now_ns + delay + static_cast<uint64_t>(static_cast<double>(bytes) / options.bytes_per_ns);
  fate.lost = chance(faults.drop);
  fate.breaks = chance(faults.disconnect);
  return fate;
}

}  // namespace genie::datapath
