#include "bench/transfer/end.h"

#include <sched.h>
#include <time.h>

#include <array>
#include <cstring>
#include <span>
#include <utility>
#include <vector>

#include "bench/harness/threads.h"
#include "datapath/backends.h"

namespace genie::bench {

using namespace genie::datapath;

namespace {

constexpr uint64_t kControlMs = 30'000;
constexpr uint64_t kMark = 1;  // user data of what marked() counts

PostOptions options_for(TransferClass how) { return {.transfer_class = how, .deadline = Deadline::after_ms(60'000)}; }

// Memory to post from: registered where the transport wants that.
void map_and_register(Transport& transport, size_t bytes, PageMapping& memory, MemoryKey& key) {
  if (key.valid()) check(transport.release(key), "release");
  key = {};
  memory = PageMapping();
  Result<PageMapping> made = map_pages(bytes, false);
  check(made.status(), "map");
  memory = std::move(*made);
  std::memset(memory.data(), 1, memory.size());
  if (!transport.capabilities().registers_any_memory) return;
  Result<Region> region = transport.register_memory({memory.data(), memory.size()}, MemoryKind::kHost);
  check(region.status(), "register");
  key = region->key;
}

}  // namespace

void check(const Status& status, const char* what) {
  if (!status.ok()) throw std::runtime_error(std::string(what) + ": " + status.to_string());
}

uint64_t process_cpu_ns() {
  timespec now{};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec);
}

void take_core(size_t i) {
  // As they were before this process took one: its children ask again.
  static const std::vector<int> cores = usable_cores();
  if (cores.size() < 2) return;
  pin_this_thread(cores[i % cores.size()]);
  // Round robin: a library's own thread (UCX has one for connections) gets its turn beside one that polls without sleep.
  sched_param parameters{};
  parameters.sched_priority = ::sched_get_priority_min(SCHED_RR);
  ::sched_setscheduler(0, SCHED_RR, &parameters);
}

End::End(const std::string& name) {
  BackendOptions options;
  // This process does not poll while a program of somebody else is measured.
  options.liveness_ms = 0;
  Result<std::unique_ptr<Transport>> made = make_backend(name, options);
  check(made.status(), name.c_str());
  transport_ = std::move(*made);
  map_and_register(*transport_, size_t{1} << 20, small_, small_key_);
}

void End::connect(const std::string& address) {
  Result<EndpointId> made = transport_->connect(address, {}, Deadline::after_ms(kControlMs));
  check(made.status(), "connect");
  endpoint_ = *made;
}

void End::need_local(size_t bytes) {
  if (local_.size() < bytes) map_and_register(*transport_, bytes, local_, local_key_);
}

RemoteKey End::share(size_t bytes) {
  Result<Region> made = transport_->allocate(endpoint_, bytes, Deadline::after_ms(kControlMs));
  check(made.status(), "allocate");
  mine_ = *made;
  return made->remote;
}

void End::unshare() {
  if (mine_) check(transport_->release(mine_->key), "release");
  mine_.reset();
}

void End::import(const RemoteKey& key) {
  Result<RemoteRegion> made = transport_->import_region(endpoint_, key);
  check(made.status(), "import");
  theirs_ = *made;
}

void End::drop_import() {
  if (theirs_) check(transport_->drop_import(*theirs_), "drop");
  theirs_.reset();
}

template <class Post>
void End::post(const Post& post) {
  for (;;) {
    const Status status = post();
    if (status.ok()) break;
    if (status.code() != Errc::kAgain) check(status, "post");
    if (gone_) throw std::runtime_error("the other process has gone");
    poll();
  }
  ++in_flight_;
}

void End::post_write(size_t bytes, TransferClass how) {
  Buffer buffer = piece(bytes);
  post([&] { return transport_->write(endpoint_, buffer, *theirs_, 0, options_for(how)); });
}

void End::post_marked(size_t bytes) {
  Buffer buffer = piece(bytes);
  PostOptions options = options_for(TransferClass::kLatency);
  options.user_data = kMark;
  post([&] { return transport_->write(endpoint_, buffer, *theirs_, 0, options); });
}

void End::post_read(size_t bytes, TransferClass how) {
  Buffer buffer = piece(bytes);
  post([&] { return transport_->read(endpoint_, buffer, *theirs_, 0, options_for(how)); });
}

bool End::try_write(size_t bytes, size_t offset, const PostOptions& options) {
  Buffer buffer = piece(bytes);
  const Status status = transport_->write(endpoint_, buffer, *theirs_, offset, options);
  if (status.code() == Errc::kAgain) return false;
  check(status, "write");
  ++in_flight_;
  return true;
}

void End::send(const void* data, size_t bytes, Kind kind) {
  // Orders and replies are few, so that their bytes may be overwritten once the message is on its way.
  if (data != nullptr) {
    until([this] { return in_flight_ == 0; });
    std::memcpy(small_.data(), data, bytes);
  }
  Buffer buffer = Buffer::borrow({small_.data(), bytes}, small_key_);
  post([&] {
    return transport_->send(endpoint_, buffer, static_cast<uint32_t>(kind), options_for(TransferClass::kLatency));
  });
  if (data != nullptr) until([this] { return in_flight_ == 0; });
}

uint64_t End::stamp(size_t bytes) const {
  return std::atomic_ref(*reinterpret_cast<uint64_t*>(mine_->data + bytes - sizeof(uint64_t)))
      .load(std::memory_order_acquire);
}

void End::set_stamp(size_t bytes, uint64_t value) {
  std::memcpy(local_.data() + bytes - sizeof(value), &value, sizeof(value));
}

size_t End::poll() {
  std::array<Completion, 16> out;
  const size_t count = transport_->poll(out);
  for (Completion& completion : std::span(out).first(count)) handle(completion);
  return count;
}

void End::handle(Completion& completion) {
  const std::span<const std::byte> bytes = completion.buffer.bytes();
  switch (completion.opcode) {
    case Opcode::kConnected: endpoint_ = completion.endpoint; return;
    case Opcode::kDisconnected: gone_ = true; return;
    case Opcode::kNotified: return;
    case Opcode::kReceive:
      if (completion.immediate == static_cast<uint32_t>(Kind::kData)) {
        ++received_;
      } else if (completion.immediate == static_cast<uint32_t>(Kind::kOrder) && bytes.size() == sizeof(Order)) {
        std::memcpy(&order_.emplace(), bytes.data(), sizeof(Order));
      } else if (completion.immediate == static_cast<uint32_t>(Kind::kReply) && bytes.size() == sizeof(Reply)) {
        std::memcpy(&reply_.emplace(), bytes.data(), sizeof(Reply));
      }
      return;
    default: break;
  }
  --in_flight_;
  if (completion.user_data == kMark) ++marked_;
  check(Status(completion.result), "an operation");
}

std::optional<Order> End::take_order() { return std::exchange(order_, std::nullopt); }
std::optional<Reply> End::take_reply() { return std::exchange(reply_, std::nullopt); }

Reply End::ask(const Order& order) {
  reply_.reset();
  tell(order);
  until([this] { return reply_.has_value(); });
  return *take_reply();
}

}  // namespace genie::bench
