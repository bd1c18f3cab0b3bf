#include "datapath/fake/fake_transport.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

namespace genie::datapath::fake {

namespace {

constexpr std::string_view kScheme = "fake:";

struct KeyFields {
  uint32_t index = 0;
  uint32_t generation = 0;
  uint64_t size = 0;
  uint64_t nonce[2] = {};
};
static_assert(sizeof(KeyFields) == sizeof(RemoteKey));

void free_bytes(void*, std::byte* data, size_t) noexcept { delete[] data; }

}  // namespace

FakeTransport::FakeTransport(std::shared_ptr<FakeNetwork::Core> core, const FakeLimits& limits)
    : core_(std::move(core)),
      limits_(limits),
      capabilities_{
          .name = "fake", .maps_remote_memory = false, .registers_any_memory = true, .max_send_bytes = kMaxSendBytes} {
  core_->transports.push_back(this);
}

FakeTransport::~FakeTransport() {
  ends_.for_each([&](SlotId, End& gone) { end(gone, Errc::kOk, Errc::kCancelled); });
  std::erase(core_->transports, this);
  if (!name_.empty()) core_->listeners.erase(name_);
}

// -- Connections

Status FakeTransport::listen(std::string_view where) {
  if (!where.starts_with(kScheme)) return Status(Errc::kInvalidArgument, "an address of the fake network is fake:NAME");
  if (!name_.empty() || core_->listeners.contains(where)) {
    return Status(Errc::kAlreadyExists, "somebody listens there already");
  }
  name_ = where;
  core_->listeners.emplace(name_, this);
  return {};
}

EndpointId FakeTransport::add_end(FakeTransport* peer, std::shared_ptr<Account> account,
                                  std::span<const std::byte> token) {
  const SlotId slot = ends_.emplace();
  End& made = *ends_.find(slot.index, slot.generation);
  made.id = EndpointId{slot.index, slot.generation};
  made.peer = peer;
  made.account = std::move(account);
  made.token.assign(token.begin(), token.end());
  return made.id;
}

Result<EndpointId> FakeTransport::connect(std::string_view address, std::span<const std::byte> token, Deadline) {
  if (!address.starts_with(kScheme)) {
    return Status(Errc::kInvalidArgument, "an address of the fake network is fake:NAME");
  }
  const auto found = core_->listeners.find(address);
  if (found == core_->listeners.end()) return Status(Errc::kUnreachable, "nobody listens there");
  FakeTransport& listener = *found->second;
  if (listener.accepted_ >= listener.limits_.max_endpoints) {
    return Status(Errc::kQuotaExceeded, "the listener serves as many connections as it may");
  }
  auto account = std::make_shared<Account>(Account{.limits = listener.limits_});
  const EndpointId here = add_end(&listener, account, token);
  const EndpointId there = listener.add_end(this, account, token);
  find(here)->peer_id = there;
  listener.find(there)->peer_id = here;
  listener.find(there)->accepted = true;
  ++listener.accepted_;
  listener.completions_.push(Completion{.opcode = Opcode::kConnected, .endpoint = there});
  return here;
}

std::span<const std::byte> FakeTransport::endpoint_token(EndpointId id) const {
  const End* found = ends_.find(id.index, id.generation);
  return found == nullptr ? std::span<const std::byte>() : std::span<const std::byte>(found->token);
}

Status FakeTransport::close(EndpointId id) {
  End* found = find(id);
  if (found == nullptr) return ends_.why(id.index, id.generation);
  end(*found, Errc::kOk, Errc::kCancelled);
  return {};
}

void FakeTransport::end(End& gone, Errc cause, Errc flushed) {
  const EndpointId id = gone.id;
  if (gone.peer != nullptr) {
    if (End* there = gone.peer->find(gone.peer_id); there != nullptr) there->peer = nullptr;
  }
  for (RingQueue<FakeOp>& queue : gone.pending) {
    while (!queue.empty()) {
      FakeOp op = queue.pop();
      count_users(op, static_cast<size_t>(-1));
      const bool late = cause == Errc::kTimedOut && op.deadline_ns <= core_->now_ns;
      op.completion.result = late ? Errc::kTimedOut : flushed;
      completions_.push(std::move(op.completion));
    }
  }
  completions_.push(Completion{.opcode = Opcode::kDisconnected, .result = cause, .endpoint = id});
  if (gone.accepted) --accepted_;
  ends_.erase(id.index, id.generation);
}

// -- Memory

Result<Region> FakeTransport::add_region(EndpointId endpoint, std::shared_ptr<Account> account,
                                         std::shared_ptr<Memory> memory) {
  const SlotId slot = regions_.emplace();
  FakeRegion& region = *regions_.find(slot.index, slot.generation);
  const KeyFields fields{slot.index, slot.generation, memory->size, {core_->random(), core_->random()}};
  region.endpoint = endpoint;
  region.account = std::move(account);
  region.remote = std::bit_cast<RemoteKey>(fields);
  region.memory = std::move(memory);
  return Region{region.memory->data, region.memory->size, MemoryKey{slot.index, slot.generation}, region.remote};
}

Result<Region> FakeTransport::allocate(EndpointId id, size_t size, Deadline) {
  End* found = find(id);
  if (found == nullptr || found->peer == nullptr) return Errc::kDisconnected;
  if (size == 0) return Status(Errc::kInvalidArgument, "a region of 0 bytes");
  Account& account = *found->account;
  if (account.regions >= account.limits.max_regions_per_endpoint ||
      size > account.limits.max_bytes_per_endpoint - account.bytes) {
    return Status(Errc::kQuotaExceeded, "too many regions or bytes on one connection");
  }
  auto memory = std::make_shared<Memory>();
  memory->owned.reset(new std::byte[size]());
  memory->data = memory->owned.get();
  memory->size = size;
  ++account.regions;
  account.bytes += size;
  return add_region(id, found->account, std::move(memory));
}

Result<Region> FakeTransport::register_memory(std::span<std::byte> bytes, MemoryKind kind) {
  if (bytes.empty() || kind != MemoryKind::kHost) return Errc::kInvalidArgument;
  auto memory = std::make_shared<Memory>();
  memory->data = bytes.data();
  memory->size = bytes.size();
  return add_region(EndpointId(), nullptr, std::move(memory));
}

void FakeTransport::forget(MemoryKey key, FakeRegion& region) {
  region.memory->released = true;
  if (region.account != nullptr) {
    --region.account->regions;
    region.account->bytes -= region.memory->size;
  }
  regions_.erase(key.index, key.generation);
}

Status FakeTransport::release(MemoryKey key) {
  FakeRegion* region = regions_.find(key.index, key.generation);
  if (region == nullptr) return regions_.why(key.index, key.generation);
  if (region->users != 0) return Errc::kBusy;
  forget(key, *region);
  return {};
}

Result<FakeRegion*> FakeTransport::resolve(EndpointId asked_by, const RemoteKey& key) {
  const auto fields = std::bit_cast<KeyFields>(key);
  FakeRegion* region = regions_.find(fields.index, fields.generation);
  if (region == nullptr) {
    const Errc why = regions_.why(fields.index, fields.generation);
    return why == Errc::kStale ? Errc::kStale : Errc::kPermission;
  }
  const bool reachable = !region->endpoint.valid() || region->endpoint == asked_by;
  if (!reachable || region->remote.bytes != key.bytes) return Errc::kPermission;
  return region;
}

Result<RemoteRegion> FakeTransport::import_region(EndpointId id, const RemoteKey& key) {
  End* found = find(id);
  if (found == nullptr || found->peer == nullptr) return Errc::kDisconnected;
  Result<FakeRegion*> region = found->peer->resolve(found->peer_id, key);
  if (!region.ok()) return region.status();
  std::shared_ptr<Memory> memory = (*region)->memory;
  const size_t size = memory->size;
  ++memory->imports;
  const SlotId slot = imports_.emplace(FakeImport{std::move(memory), id});
  return RemoteRegion{slot.index, slot.generation, size, nullptr};
}

Status FakeTransport::drop_import(const RemoteRegion& region) {
  FakeImport* import = imports_.find(region.index, region.generation);
  if (import == nullptr) return imports_.why(region.index, region.generation);
  if (import->users != 0) return Errc::kBusy;
  --import->memory->imports;
  imports_.erase(region.index, region.generation);
  return {};
}

// -- Handing memory over

Result<Region> FakeTransport::prepare(EndpointId id, size_t size) {
  End* found = find(id);
  if (found == nullptr || found->peer == nullptr) return Errc::kDisconnected;
  if (size == 0 || size > SIZE_MAX / 4) return Status(Errc::kInvalidArgument, "size of a region out of range");
  auto memory = std::make_shared<Memory>();
  memory->owned.reset(new std::byte[size]());
  memory->data = memory->owned.get();
  memory->size = size;
  Result<Region> region = add_region(id, nullptr, std::move(memory));
  regions_.find(region->key.index, region->key.generation)->prepared = true;
  region->remote = RemoteKey();
  return region;
}

Result<RemoteKey> FakeTransport::hand_over(MemoryKey key, size_t size, Deadline) {
  FakeRegion* region = regions_.find(key.index, key.generation);
  if (region == nullptr) return regions_.why(key.index, key.generation);
  if (!region->prepared || size == 0 || size > region->memory->size) {
    return Status(Errc::kInvalidArgument, "only prepared memory can be handed over, and no more than there is");
  }
  if (region->users != 0) return Errc::kBusy;
  End* found = find(region->endpoint);
  if (found == nullptr || found->peer == nullptr) return Errc::kDisconnected;
  const KeyFields fields{key.index, key.generation, size, {core_->random(), core_->random()}};
  End& there = *found->peer->find(found->peer_id);
  there.handed_over.emplace(fields.nonce[0],
                            HandedOver{region->memory, size, size > there.account->limits.max_bytes_per_endpoint});
  forget(key, *region);
  return std::bit_cast<RemoteKey>(fields);
}

Result<Taken> FakeTransport::take(EndpointId id, const RemoteKey& key) {
  End* found = find(id);
  if (found == nullptr) return Errc::kDisconnected;
  const auto handed = found->handed_over.find(std::bit_cast<KeyFields>(key).nonce[0]);
  if (handed == found->handed_over.end() || handed->second.size != std::bit_cast<KeyFields>(key).size) {
    return Status(Errc::kNotFound, "memory that was not handed over");
  }
  const HandedOver memory = std::move(handed->second);
  found->handed_over.erase(handed);
  if (memory.beyond_limits) return Status(Errc::kQuotaExceeded, "no room for the memory that was handed over");
  std::byte* const data = memory.memory->owned.release();
  return Taken{.memory = Buffer(data, memory.size, MemoryKey(), &free_bytes, nullptr),
               .final = true,
               .writable = true,
               .resident_bytes = memory.memory->size};
}

// -- Data

Status FakeTransport::write(EndpointId endpoint, Buffer& local, const RemoteRegion& remote, size_t offset,
                            const PostOptions& options) {
  return post_transfer(endpoint, local, remote, offset, Opcode::kWrite, 0, options);
}

Status FakeTransport::write_with_notify(EndpointId endpoint, Buffer& local, const RemoteRegion& remote, size_t offset,
                                        uint32_t immediate, const PostOptions& options) {
  return post_transfer(endpoint, local, remote, offset, Opcode::kWriteNotify, immediate, options);
}

Status FakeTransport::read(EndpointId endpoint, Buffer& local, const RemoteRegion& remote, size_t offset,
                           const PostOptions& options) {
  return post_transfer(endpoint, local, remote, offset, Opcode::kRead, 0, options);
}

Status FakeTransport::send(EndpointId id, Buffer& message, uint32_t immediate, const PostOptions& options) {
  End* found = find(id);
  if (found == nullptr || found->peer == nullptr) return Errc::kDisconnected;
  if (message.size() > kMaxSendBytes) return Status(Errc::kOutOfRange, "a message larger than max_send_bytes");
  FakeOp op;
  op.completion.opcode = Opcode::kSend;
  op.completion.immediate = immediate;
  return post(*found, std::move(op), message, options);
}

Status FakeTransport::post_transfer(EndpointId id, Buffer& local, const RemoteRegion& remote, size_t offset,
                                    Opcode opcode, uint32_t immediate, const PostOptions& options) {
  End* found = find(id);
  if (found == nullptr || found->peer == nullptr) return Errc::kDisconnected;
  const FakeImport* import = imports_.find(remote.index, remote.generation);
  if (import == nullptr) return imports_.why(remote.index, remote.generation);
  if (import->endpoint != id) return Status(Errc::kInvalidArgument, "the region belongs to another endpoint");
  if (import->memory->released) return Errc::kStale;
  if (offset > import->memory->size || local.size() > import->memory->size - offset) return Errc::kOutOfRange;
  FakeOp op;
  op.completion.opcode = opcode;
  op.completion.immediate = immediate;
  op.remote = remote;
  op.offset = offset;
  return post(*found, std::move(op), local, options);
}

Status FakeTransport::post(End& end, FakeOp op, Buffer& buffer, const PostOptions& options) {
  const auto index = static_cast<size_t>(options.transfer_class);
  RingQueue<FakeOp>& queue = end.pending[index];
  if (queue.size() >= limits_.max_pending_ops) return Errc::kAgain;
  op.completion.endpoint = end.id;
  op.completion.user_data = options.user_data;
  op.completion.buffer = std::move(buffer);
  op.deadline_ns = options.deadline.when_ns();
  op.fate = core_->draw(op.completion.buffer.size());
  // A class is a wire: what was posted later never arrives earlier.
  op.fate.arrives_ns = std::max(op.fate.arrives_ns, end.last_arrival_ns[index]);
  end.last_arrival_ns[index] = op.fate.arrives_ns;
  count_users(op, 1);
  queue.push(std::move(op));
  return {};
}

void FakeTransport::count_users(const FakeOp& op, size_t change) {
  if (FakeImport* import = imports_.find(op.remote.index, op.remote.generation)) import->users += change;
  const MemoryKey key = op.completion.buffer.key();
  if (!key.valid()) return;
  if (FakeRegion* region = regions_.find(key.index, key.generation)) region->users += change;
}

bool FakeTransport::deliver(End& end, FakeOp& op) {
  End& there = *end.peer->find(end.peer_id);
  Buffer& buffer = op.completion.buffer;
  const bool message = op.completion.opcode == Opcode::kSend;
  const bool notifies = message || op.completion.opcode == Opcode::kWriteNotify;
  if (notifies && there.unread.size() >= end.peer->limits_.max_unread_messages) return false;
  if (!message) {
    Memory& memory = *imports_.find(op.remote.index, op.remote.generation)->memory;
    if (memory.released) {
      op.completion.result = Errc::kStale;
      return true;
    }
    std::byte* remote = memory.data + op.offset;
    if (buffer.size() != 0 && op.completion.opcode == Opcode::kRead) std::memcpy(buffer.data(), remote, buffer.size());
    if (buffer.size() != 0 && op.completion.opcode != Opcode::kRead) std::memcpy(remote, buffer.data(), buffer.size());
    (op.completion.opcode == Opcode::kRead ? counters_.bytes_copied_rx : counters_.bytes_copied_tx) += buffer.size();
  }
  if (!notifies) return true;
  Completion arrival{.opcode = Opcode::kNotified, .immediate = op.completion.immediate, .endpoint = there.id};
  if (message) {
    arrival.opcode = Opcode::kReceive;
    auto* copy = new std::byte[buffer.size() + 1];
    if (buffer.size() != 0) std::memcpy(copy, buffer.data(), buffer.size());
    arrival.buffer = Buffer(copy, buffer.size(), MemoryKey(), &free_bytes, nullptr);
    ++counters_.messages_sent;
    ++end.peer->counters_.messages_received;
    counters_.bytes_copied_tx += buffer.size();
  }
  there.unread.push(std::move(arrival));
  return true;
}

// -- Progress

bool FakeTransport::progress_class(End& moving, size_t index) {
  RingQueue<FakeOp>& queue = moving.pending[index];
  while (!queue.empty()) {
    FakeOp& head = queue.front();
    if (head.deadline_ns <= core_->now_ns) {
      end(moving, Errc::kTimedOut, Errc::kDisconnected);
      return false;
    }
    if (head.fate.lost || head.fate.arrives_ns > core_->now_ns) return true;
    if (head.fate.breaks) {
      end(moving, Errc::kDisconnected, Errc::kDisconnected);
      return false;
    }
    if (!deliver(moving, head)) return true;
    FakeOp done = queue.pop();
    count_users(done, static_cast<size_t>(-1));
    completions_.push(std::move(done.completion));
  }
  return true;
}

void FakeTransport::progress() {
  ends_.for_each([&](SlotId, End& moving) {
    if (moving.peer == nullptr) {
      // What the peer had sent is read first.
      if (moving.unread.empty()) end(moving, Errc::kDisconnected, Errc::kDisconnected);
      return;
    }
    // Any class's operation may be the first to be late.
    for (RingQueue<FakeOp>& queue : moving.pending) {
      for (size_t at = 0; at < queue.size(); ++at) {
        if (queue.at(at).deadline_ns <= core_->now_ns) return end(moving, Errc::kTimedOut, Errc::kDisconnected);
      }
    }
    for (size_t index = 0; index < kClasses; ++index) {
      if (!progress_class(moving, index)) return;
    }
  });
}

uint64_t FakeTransport::next_ns() {
  uint64_t next = UINT64_MAX;
  const auto consider = [&](uint64_t when) {
    if (when > core_->now_ns) next = std::min(next, when);
  };
  ends_.for_each([&](SlotId, End& waiting) {
    for (RingQueue<FakeOp>& queue : waiting.pending) {
      if (!queue.empty() && !queue.front().fate.lost) consider(queue.front().fate.arrives_ns);
      for (size_t at = 0; at < queue.size(); ++at) consider(queue.at(at).deadline_ns);
    }
  });
  return next;
}

size_t FakeTransport::poll(std::span<Completion> out) {
  core_->run();
  size_t filled = 0;
  while (filled < out.size() && !completions_.empty()) out[filled++] = completions_.pop();
  ends_.for_each([&](SlotId, End& reading) {
    while (filled < out.size() && completions_.empty() && !reading.unread.empty()) {
      out[filled] = reading.unread.pop();
      counters_.bytes_copied_rx += out[filled].buffer.size();
      ++filled;
    }
  });
  return filled;
}

void FakeTransport::wait(uint64_t timeout_ns) {
  core_->run();
  bool ready = woken_.exchange(false, std::memory_order_acq_rel) || !completions_.empty();
  ends_.for_each([&](SlotId, End& reading) { ready = ready || !reading.unread.empty(); });
  if (ready) return;
  const uint64_t next = core_->next_ns();
  core_->now_ns = std::min(next, core_->now_ns + std::min(timeout_ns, UINT64_MAX - core_->now_ns));
  core_->run();
}

}  // namespace genie::datapath::fake
