// End: one of the two processes between which `genie-bench transfer` moves bytes.
//
// Purpose: the measuring process (it listens) and its partner (it connects) do the same things: post, poll, count what
//   came. The measuring one gives orders, as messages over the transport itself; the partner obeys and replies.
// Thread-safety: one thread. Ownership: owns its transport, its region and its buffer.
// Failure: everything throws std::runtime_error; a wait without progress ends after a minute.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>

#include "datapath/base/clock.h"
#include "datapath/memory/pages.h"
#include "datapath/transport.h"

namespace genie::bench {

enum class Task : uint32_t {
  kIdle,         // sleep until the next order
  kServe,        // poll without sleep until the next order: what one-sided operations need of the other side
  kServeAsleep,  // the same, asleep whenever there is nothing to do
  kShare,        // allocate a region of `bytes` and reply its key
  kImport,       // import the region of `key`
  kEchoSends,    // answer each of `count` messages of `bytes` with one
  kEchoWrites,   // answer each of `count` stamped writes of `bytes` with one
  kCountSends,   // reply when `count` messages have come
  kSocketEcho,   // kEchoSends over the unix socket
  kSocketCount,  // kCountSends over the unix socket
  kCpu,          // reply the CPU time of the process, ns
  kQuit,
};

struct Order {
  Task task = Task::kIdle;
  uint64_t bytes = 0;
  uint64_t count = 0;
  uint64_t base = 0;  // stamps begin above it
  datapath::RemoteKey key;
};

struct Reply {
  uint64_t value = 0;
  datapath::RemoteKey key;
};

// What a message is, as its tag.
enum class Kind : uint32_t { kOrder = 1, kReply, kData };

// Largest transfer that is answered, and so the size of what the partner writes from.
inline constexpr size_t kEchoBytesMax = size_t{256} << 10;

void check(const Status& status, const char* what);
uint64_t process_cpu_ns();
// Onto the i-th usable core, at real-time priority where that is allowed; alone with others the scheduler is measured.
void take_core(size_t i);

class End {
 public:
  // `name` as make_backend() knows it.
  explicit End(const std::string& name);
  End(const End&) = delete;
  End& operator=(const End&) = delete;

  datapath::Transport& transport() { return *transport_; }
  datapath::EndpointId endpoint() const { return endpoint_; }
  void listen(const std::string& where) { check(transport_->listen(where), "listen"); }
  void connect(const std::string& address);
  bool connected() const { return endpoint_.valid(); }
  bool gone() const { return gone_; }

  // Memory of this side to write from and read into, and memory that the other side writes to. Grow; never shrink.
  void need_local(size_t bytes);
  datapath::RemoteKey share(size_t bytes);
  void unshare();
  void import(const datapath::RemoteKey& key);
  void drop_import();
  std::byte* local() { return local_.data(); }
  const datapath::RemoteRegion& theirs() const { return *theirs_; }

  // Post one operation of `bytes` at the beginning of the regions; poll until there is room for it.
  void post_write(size_t bytes, datapath::TransferClass how);
  void post_read(size_t bytes, datapath::TransferClass how);
  void send(const void* data, size_t bytes, Kind kind);
  // A write of the latency class whose end marked() counts.
  void post_marked(size_t bytes);
  uint64_t marked() const { return marked_; }
  // One call of write(), without polling. False when the transport wants to be polled first.
  bool try_write(size_t bytes, size_t offset, const datapath::PostOptions& options);

  size_t in_flight() const { return in_flight_; }
  uint64_t received() const { return received_; }
  void forget_received() { received_ = 0; }
  // The number in the last 8 of the first `bytes` of the memory that the other side writes to.
  uint64_t stamp(size_t bytes) const;
  void set_stamp(size_t bytes, uint64_t value);

  // Handles what has ended; how much that was.
  size_t poll();
  void set_sleeps(bool sleeps) { sleeps_ = sleeps; }
  template <class Done>
  void until(const Done& done) {
    constexpr size_t kSpins = 2'000;
    constexpr uint64_t kSleepNs = 10'000'000;
    constexpr uint64_t kPatienceMs = 60'000;
    Deadline deadline = Deadline::after_ms(kPatienceMs);
    for (size_t idle = 0; !done();) {
      if (poll() != 0) {
        idle = 0;
        continue;
      }
      if (gone_) throw std::runtime_error("the other process has gone");
      if (++idle % kSpins != 0) continue;
      if (deadline.expired()) throw std::runtime_error("no end after a minute");
      if (sleeps_) transport_->wait(kSleepNs);
    }
  }

  // Orders and replies; the last one that came.
  std::optional<Order> take_order();
  std::optional<Reply> take_reply();
  // Gives an order without waiting; gives one and waits for its reply.
  void tell(const Order& order) { send(&order, sizeof(order), Kind::kOrder); }
  Reply ask(const Order& order);
  void reply(const Reply& reply) { send(&reply, sizeof(reply), Kind::kReply); }

 private:
  void handle(datapath::Completion& completion);
  datapath::Buffer piece(size_t bytes) { return datapath::Buffer::borrow({local_.data(), bytes}, local_key_); }
  template <class Post>
  void post(const Post& post);

  std::unique_ptr<datapath::Transport> transport_;
  datapath::EndpointId endpoint_;
  datapath::PageMapping local_;
  datapath::MemoryKey local_key_;
  std::optional<datapath::Region> mine_;
  std::optional<datapath::RemoteRegion> theirs_;
  datapath::PageMapping small_;  // messages are sent from here
  datapath::MemoryKey small_key_;
  size_t in_flight_ = 0;
  uint64_t received_ = 0;
  uint64_t marked_ = 0;
  bool sleeps_ = false;
  bool gone_ = false;
  std::optional<Order> order_;
  std::optional<Reply> reply_;
};

// The partner's program: `genie-bench transfer-partner TRANSPORT ADDRESS SOCKET CORE`. Its exit code.
int run_transfer_partner(int argc, char** argv);

}  // namespace genie::bench
