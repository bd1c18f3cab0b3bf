#include "tests/conformance/world.h"

#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <thread>

#include "datapath/base/file_descriptor.h"
#include "tests/random_seed.h"

namespace genie::datapath::conformance {

namespace {

void free_bytes(void*, std::byte* data, size_t) noexcept { delete[] data; }

std::byte pattern(uint32_t seed, size_t offset) {
  return static_cast<std::byte>((seed * 2654435761U + static_cast<uint32_t>(offset) * 40503U) >> 11);
}

}  // namespace

uint64_t patience_ms() {
  static const uint64_t patience = [] {
    const char* factor = std::getenv("GENIE_TEST_PATIENCE");
    return 20'000 * std::max(1UL, factor != nullptr ? std::strtoul(factor, nullptr, 10) : 1UL);
  }();
  return patience;
}

uint32_t test_seed() { return static_cast<uint32_t>(genie::test::random_seed()); }

std::string free_tcp_address() {
  const FileDescriptor probe(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  EXPECT_EQ(::bind(probe.get(), reinterpret_cast<sockaddr*>(&address), size), 0);
  EXPECT_EQ(::getsockname(probe.get(), reinterpret_cast<sockaddr*>(&address), &size), 0);
  return "tcp://127.0.0.1:" + std::to_string(ntohs(address.sin_port));
}

Buffer make_buffer(size_t size, uint32_t seed) {
  auto* data = new std::byte[size + 1];
  for (size_t i = 0; i < size; ++i) data[i] = pattern(seed, i);
  return Buffer(data, size, MemoryKey(), &free_bytes, nullptr);
}

bool holds(std::span<const std::byte> bytes, uint32_t seed) {
  for (size_t i = 0; i < bytes.size(); ++i) {
    if (bytes[i] != pattern(seed, i)) return false;
  }
  return true;
}

std::span<const std::byte> as_bytes(std::string_view text) { return std::as_bytes(std::span(text)); }

bool Side::poll() {
  std::array<Completion, 16> completions;
  const size_t count = transport_->poll(completions);
  for (size_t i = 0; i < count; ++i) inbox_.push_back(std::move(completions[i]));
  return count != 0;
}

struct ConformanceTest::PumpGuard::Pump {
  explicit Pump(Side& side)
      : thread([this, &side] {
          while (!done.load(std::memory_order_acquire)) {
            if (!side.poll()) std::this_thread::yield();
          }
        }) {}
  ~Pump() {
    done.store(true, std::memory_order_release);
    thread.join();
  }
  std::atomic<bool> done{false};
  std::thread thread;
};

ConformanceTest::PumpGuard::PumpGuard(ConformanceTest& test, Side& pumped) {
  if (test.world_->blocking_calls_need_peer()) pump_ = std::make_unique<Pump>(pumped);
}
ConformanceTest::PumpGuard::~PumpGuard() = default;

void ConformanceTest::SetUp() {
  world_ = GetParam().make();
  const Status listening = listener()->listen(world_->where());
  ASSERT_TRUE(listening.ok()) << listening.to_string();
  const Status connected = connect(client(), client_end_, listener_end_, "token");
  ASSERT_TRUE(connected.ok()) << connected.to_string();
}

void ConformanceTest::TearDown() { world_.reset(); }

PostOptions ConformanceTest::options(TransferClass transfer_class, uint64_t user_data) const {
  return PostOptions{
      .transfer_class = transfer_class, .deadline = world_->after_ms(patience_ms() * 3 / 2), .user_data = user_data};
}

Status ConformanceTest::connect(Side& side, EndpointId& client_end, EndpointId& listener_end, std::string_view token) {
  const std::string address = listener()->address();
  Result<EndpointId> made = [&] {
    const PumpGuard pump(*this, listener());
    return side->connect(address, as_bytes(token), world_->after_ms(patience_ms()));
  }();
  if (!made.ok()) return made.status();
  client_end = *made;
  const Completion accepted = await(listener(), Opcode::kConnected);
  listener_end = accepted.endpoint;
  return {};
}

bool ConformanceTest::run_until(const std::function<bool()>& done) {
  const Deadline deadline = Deadline::after_ms(patience_ms());
  while (!done()) {
    const bool moved = listener().poll() | client().poll();
    if (moved) continue;
    world_->idle();
    if (deadline.expired()) return false;
  }
  return true;
}

Completion ConformanceTest::await(Side& side, const Wanted& wanted) {
  Completion found;
  const bool came = run_until([&] {
    const auto at = std::find_if(side.inbox().begin(), side.inbox().end(), wanted);
    if (at == side.inbox().end()) return false;
    found = std::move(*at);
    side.inbox().erase(at);
    return true;
  });
  EXPECT_TRUE(came) << "no such completion within " << patience_ms() << " ms";
  return found;
}

Completion ConformanceTest::await(Side& side, Opcode opcode) {
  return await(side, [opcode](const Completion& completion) { return completion.opcode == opcode; });
}

ConformanceTest::SharedPair ConformanceTest::share(Side& owner, size_t size) {
  SharedPair pair;
  Result<Region> region =
      blocking(owner, [&] { return owner->allocate(endpoint(owner), size, world_->after_ms(patience_ms())); });
  EXPECT_TRUE(region.ok()) << region.status().to_string();
  if (!region.ok()) return pair;
  pair.region = *region;
  Side& importer = other(owner);
  Result<RemoteRegion> remote =
      blocking(importer, [&] { return importer->import_region(endpoint(importer), pair.region.remote); });
  EXPECT_TRUE(remote.ok()) << remote.status().to_string();
  if (remote.ok()) pair.remote = *remote;
  return pair;
}

}  // namespace genie::datapath::conformance
