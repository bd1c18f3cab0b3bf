// The ground of the transport conformance suite: a back end makes a World (two transports that can reach each other),
// tests talk to its two sides and never name a back end.
//
// A new back end adds one Backend in a source of its own; its capabilities decide what is skipped, with the reason.
// Threading: one thread, but for blocking calls: while one side blocks, the other is polled by a helper thread.
#pragma once

#include <gtest/gtest.h>

#include <deque>
#include <functional>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "datapath/transport.h"

namespace genie::datapath::conformance {

// One transport and the completions that it has reported so far.
class Side {
 public:
  explicit Side(std::unique_ptr<Transport> transport) : transport_(std::move(transport)) {}

  Transport& transport() { return *transport_; }
  Transport* operator->() { return transport_.get(); }
  // Polls once; true when something came.
  bool poll();
  std::deque<Completion>& inbox() { return inbox_; }
  void reset() { transport_.reset(); }

 private:
  std::unique_ptr<Transport> transport_;
  std::deque<Completion> inbox_;
};

// Quotas are set low enough to be reached by a test.
inline constexpr size_t kQuotaBytes = size_t{64} << 20;
inline constexpr size_t kQuotaRegions = 64;
inline constexpr size_t kQuotaEndpoints = 8;

class World {
 public:
  World(std::unique_ptr<Transport> listener, std::unique_ptr<Transport> client)
      : listener_(std::move(listener)), client_(std::move(client)) {}
  virtual ~World() = default;

  Side& listener() { return listener_; }
  Side& client() { return client_; }
  Side& other(Side& side) { return &side == &listener_ ? client_ : listener_; }

  // What listen() is given; the address to connect to is the listener's address().
  virtual std::string where() const = 0;
  // A further client of the same kind.
  virtual std::unique_ptr<Transport> make_client() = 0;
  // Whether the two have their addresses in common.
  virtual bool one_host() const { return true; }
  // Nothing moved: lets time pass where time is virtual.
  virtual void idle() {}
  // A deadline on the world's clock.
  virtual Deadline after_ms(uint64_t ms) const { return Deadline::after_ms(ms); }
  // Whether a blocking call of one side needs the other side to poll meanwhile.
  virtual bool blocking_calls_need_peer() const { return true; }

 private:
  Side listener_;
  Side client_;
};

struct Backend {
  std::string name;
  std::function<std::unique_ptr<World>()> make;
  // Transport of a peer in another process; null where the back end lives in one process.
  std::function<std::unique_ptr<Transport>()> make_remote_client;
};

inline void PrintTo(const Backend& backend, std::ostream* out) { *out << backend.name; }

Backend shm_backend();
std::vector<Backend> ucx_backends();  // none where UCX is not compiled in
std::vector<Backend> verbs_backends();
Backend fake_backend();
Backend fake_unruly_backend();
const std::vector<Backend>& backends();

// One listener, one client, connected.
class ConformanceTest : public testing::TestWithParam<Backend> {
 protected:
  void SetUp() override;
  void TearDown() override;

  Side& listener() { return world_->listener(); }
  Side& client() { return world_->client(); }
  Side& other(Side& side) { return world_->other(side); }
  // The endpoint as `side` knows it.
  EndpointId endpoint(Side& side) { return &side == &listener() ? listener_end_ : client_end_; }
  PostOptions options(TransferClass transfer_class = TransferClass::kLatency, uint64_t user_data = 0) const;

  // Runs `call` of one side while the other is polled.
  template <typename Call>
  auto blocking(Side& caller, Call&& call) {
    const PumpGuard pump(*this, world_->other(caller));
    return call();
  }

  // Polls both sides until `side` has reported a completion that `wanted` accepts; takes it out. Fails the test when
  // patience_ms() pass without one.
  using Wanted = std::function<bool(const Completion&)>;
  Completion await(Side& side, const Wanted& wanted);
  Completion await(Side& side, Opcode opcode);
  // Until done() holds.
  bool run_until(const std::function<bool()>& done);

  // A region that `owner` allocated, mapped by the other side.
  struct SharedPair {
    Region region;
    RemoteRegion remote;
  };
  SharedPair share(Side& owner, size_t size);

  Status connect(Side& side, EndpointId& client_end, EndpointId& listener_end, std::string_view token);

  std::unique_ptr<World> world_;
  EndpointId listener_end_;
  EndpointId client_end_;

 private:
  class PumpGuard {
   public:
    PumpGuard(ConformanceTest& test, Side& pumped);
    ~PumpGuard();

   private:
    struct Pump;
    std::unique_ptr<Pump> pump_;
  };
};

// For how long a test waits for what must come: 20 s, times $GENIE_TEST_PATIENCE (an emulated machine is slow).
uint64_t patience_ms();

// For random loads: $GENIE_TEST_SEED, or a new seed; printed, so that a failed run can be repeated.
uint32_t test_seed();

// Of this machine, with a port that nobody uses now.
std::string free_tcp_address();

Buffer make_buffer(size_t size, uint32_t seed);
// Whether bytes are what make_buffer(size, seed) holds.
bool holds(std::span<const std::byte> bytes, uint32_t seed);
std::span<const std::byte> as_bytes(std::string_view text);

}  // namespace genie::datapath::conformance
