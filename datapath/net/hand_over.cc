// Memory that changes sides: filled here, read by the other side into memory of its own, and released here then.
//
// Trust: the taker's engine reads into memory that it alone has, so that what it was given can no longer change; a peer that
//   withdraws what it handed over, or names memory that is not there, breaks its own connection.
#include <algorithm>
#include <cstring>
#include <new>
#include <utility>

#include "datapath/base/log.h"
#include "datapath/memory/pages.h"
#include "datapath/memory/populate.h"
#include "datapath/net/transport_impl.h"

namespace genie::datapath::net {
namespace {

// Handed over and not yet taken, per endpoint: a peer that goes beyond breaks the protocol.
constexpr size_t kMaxHandedOver = 1024;
constexpr std::align_val_t kAlignment{64};
// Spare memory keeps the pages that were written: not many, and so many that a step's upload finds one while another is on
// its way.
constexpr size_t kMostDirty = size_t{4} << 20;
constexpr size_t kMaxSpares = 4;
// Unsent bytes on a socket from which hand_over() waits.
constexpr size_t kMuchUnsent = size_t{1} << 20;

void free_block(void*, std::byte* data, size_t) noexcept { ::operator delete(data, kAlignment); }

// From kMappedBlockBytes on malloc's memory would be fresh: a page fault for every 4 KiB.
Result<Buffer> make_block(size_t size) {
  if (size >= kMappedBlockBytes) return map_block(size);
  auto* const data = static_cast<std::byte*>(::operator new(size, kAlignment, std::nothrow));
  if (data == nullptr) return Errc::kOutOfMemory;
  return Buffer(data, size, MemoryKey(), &free_block, nullptr);
}

}  // namespace

Result<Region> NetTransport::prepare(EndpointId id, size_t size) {
  if (usable(id) == nullptr) return Errc::kDisconnected;
  if (size == 0 || size > SIZE_MAX / 4) return Status(Errc::kInvalidArgument, "size of a region out of range");
  std::unique_ptr<FabricMemory> spare = take_spare(id, size);
  if (spare == nullptr) {
    Result<std::unique_ptr<FabricMemory>> fresh = fabric_->allocate(size, false);
    GENIE_TRY(fresh.status());
    spare = std::move(*fresh);
  }
  Result<Region> region = add_region(id, std::move(spare), size);
  regions_.find(region->key.index, region->key.generation)->prepared = true;
  region->remote = RemoteKey();
  return region;
}

// Memory that was handed over is used again: it is registered, and its pages are there. For the same peer only, which may
// still have its key.
void NetTransport::keep_spare(EndpointId id, std::unique_ptr<FabricMemory> memory, size_t dirty) {
  if (dirty > kMostDirty || spares_.size() >= kMaxSpares) return;
  spares_.push_back({id, std::move(memory), dirty});
}

std::unique_ptr<FabricMemory> NetTransport::take_spare(EndpointId id, size_t size) {
  const auto found = std::ranges::find_if(
      spares_, [&](const Spare& spare) { return spare.endpoint == id && spare.memory->size == size; });
  if (found == spares_.end()) return nullptr;
  std::unique_ptr<FabricMemory> memory = std::move(found->memory);
  std::memset(memory->data, 0, found->dirty);
  spares_.erase(found);
  return memory;
}

Result<RemoteKey> NetTransport::hand_over(MemoryKey key, size_t size, Deadline deadline) {
  LocalRegion* const region = regions_.find(key.index, key.generation);
  if (region == nullptr) return regions_.why(key.index, key.generation);
  if (!region->prepared || size == 0 || size > region->size) {
    return Status(Errc::kInvalidArgument, "only prepared memory can be handed over, and no more than there is");
  }
  if (region->users != 0) return Errc::kBusy;
  Endpoint* const endpoint = usable(region->endpoint);
  if (endpoint == nullptr) return Errc::kDisconnected;
  std::unique_ptr<FabricMemory> memory = std::move(region->memory);
  memory->size = size;  // a device that pins memory need not make an unused tail present
  KeyFields name{.index = endpoint->next_hand_over++, .size = size, .nonce = region->key.nonce};
  regions_.erase(key.index, key.generation);
  Frame frame{.type = FrameType::kHandOver,
              .size = size,
              .address = reinterpret_cast<uint64_t>(memory->data),
              .key = pack_key(name)};
  if (size <= kEagerBytes) {
    frame.address = 0;
    counters_.bytes_copied_tx += size;
    transmit(*endpoint, frame, {memory->data, size});
    keep_spare(endpoint->id, std::move(memory), size);
  } else {
    const Result<std::vector<std::byte>> packed = fabric_->export_memory(*endpoint->link, *memory);
    GENIE_TRY(packed.status());
    transmit(*endpoint, frame, *packed);
    endpoint->handed_away.push_back({name, std::move(memory)});
  }
  while (endpoint->socket.unsent_bytes() > kMuchUnsent) {
    GENIE_TRY(endpoint->socket.wait_writable(deadline));
    const Status flushed = endpoint->socket.flush();
    if (flushed.code() != Errc::kAgain) GENIE_TRY(flushed);
  }
  return pack_key(name);
}

// -- The taker's side ----------------------------------------------------------------------------------------------------

// False: the peer broke the protocol.
bool NetTransport::accept_hand_over(Endpoint& endpoint, const Frame& frame, std::span<const std::byte> payload) {
  if (endpoint.handed_over.size() + endpoint.pulls.size() >= kMaxHandedOver) return false;
  const KeyFields key = unpack_key(frame.key);
  const bool eager = frame.address == 0;
  if (key.size != frame.size || (eager && key.size != payload.size())) return false;
  const auto taken = [&] { transmit(endpoint, Frame{.type = FrameType::kTaken, .key = frame.key}); };
  Status status = check_quota(endpoint, key.size);
  if (status.ok() && !eager) {
    charge(endpoint, key.size);
    status = start_pull(endpoint, frame, payload);
    if (status.ok()) return true;
    refund(endpoint, key.size);
    if (status.code() == Errc::kProtocol) return false;
  }
  HandedOver handed{.key = key, .refused = status.code()};
  if (status.ok()) {
    Result<Buffer> block = make_block(key.size);
    handed.refused = block.code();
    if (block.ok()) {
      charge(endpoint, key.size);
      std::copy(payload.begin(), payload.end(), block->data());
      counters_.bytes_copied_rx += key.size;
      handed.memory = std::move(*block);
    }
  }
  endpoint.handed_over.push(std::move(handed));
  if (!eager) taken();
  return true;
}

Status NetTransport::start_pull(Endpoint& endpoint, const Frame& frame, std::span<const std::byte> packed_key) {
  Result<std::unique_ptr<FabricRemote>> remote =
      fabric_->import_memory(*endpoint.link, packed_key, frame.address, frame.size);
  GENIE_TRY(remote.status());
  Result<Buffer> block = make_block(frame.size);
  GENIE_TRY(block.status());
  Result<std::unique_ptr<FabricMemory>> local = fabric_->register_memory(block->bytes(), MemoryKind::kHost, false);
  GENIE_TRY(local.status());
  const SlotId slot = pulls_.emplace();
  Pull& pull = *pulls_.find(slot.index, slot.generation);
  pull.endpoint = endpoint.id;
  pull.frame = endpoint.frames_received;
  pull.key = unpack_key(frame.key);
  pull.address = frame.address;
  pull.local = std::move(*local);
  pull.remote = std::move(*remote);
  pull.memory = std::move(*block);
  pull.moved_ns = now_;
  endpoint.pulls.push(slot);
  advance_pulls(endpoint);
  return {};
}

// The first ones first; a later one begins while the end of an earlier one is in flight.
void NetTransport::advance_pulls(Endpoint& endpoint) {
  if (!endpoint.lanes_ready) return;
  uint32_t in_flight = 0;
  for (size_t at = 0; at < endpoint.pulls.size(); ++at) {
    const SlotId slot = endpoint.pulls.at(at);
    Pull& pull = *pulls_.find(slot.index, slot.generation);
    in_flight += pull.in_flight;
    while (!pull.failed && pull.posted < pull.memory.size() && in_flight < info_.max_in_flight) {
      Descriptor chunk{.op = Descriptor::Op::kRead,
                       .local = pull.memory.data() + pull.posted,
                       .size = std::min(info_.chunk_bytes, pull.memory.size() - pull.posted),
                       .memory = pull.local.get(),
                       .remote = pull.remote.get(),
                       .remote_address = pull.address + pull.posted,
                       .cookie = cookie_of(slot) | kPullBit};
      if (fabric_->post(*endpoint.link, TransferClass::kBulk, {&chunk, 1}) == 0) return;
      pull.posted += chunk.size;
      ++pull.in_flight;
      ++in_flight;
    }
    if (in_flight >= info_.max_in_flight) return;
  }
}

void NetTransport::on_pull_done(uint64_t cookie, Errc result) {
  const SlotId slot = slot_of(cookie & ~kPullBit);
  Pull* const pull = pulls_.find(slot.index, slot.generation);
  if (pull == nullptr) return;
  --pull->in_flight;
  pull->moved_ns = now_;
  if (result != Errc::kOk) pull->failed = true;
  Endpoint* const endpoint = find(pull->endpoint);
  if (endpoint == nullptr) return;
  list(*endpoint);
  if (pull->failed && endpoint->visible() && !endpoint->broken.has_value()) {
    GENIE_LOG_WARN("{}: memory that {} handed over cannot be read ({})", info_.name, endpoint->peer, errc_name(result));
    endpoint->broken = Errc::kProtocol;
  }
}

// They become visible in the order in which they were handed over.
void NetTransport::finish_pulls(Endpoint& endpoint) {
  while (!endpoint.pulls.empty()) {
    const SlotId slot = endpoint.pulls.front();
    Pull& pull = *pulls_.find(slot.index, slot.generation);
    if (pull.failed ? pull.in_flight != 0 : !pull.done()) return;
    if (!pull.failed && endpoint.visible()) {
      if (info_.copies) counters_.bytes_copied_rx += pull.memory.size();
      endpoint.handed_over.push(HandedOver{.key = pull.key, .memory = std::move(pull.memory)});
      transmit(endpoint, Frame{.type = FrameType::kTaken, .key = pack_key(pull.key)});
    }
    endpoint.pulls.pop();
    pulls_.erase(slot.index, slot.generation);
  }
}

void NetTransport::drop_pulls(Endpoint& endpoint) {
  for (size_t at = 0; at < endpoint.pulls.size(); ++at) {
    const SlotId slot = endpoint.pulls.at(at);
    pulls_.find(slot.index, slot.generation)->failed = true;
  }
  finish_pulls(endpoint);
}

uint32_t NetTransport::frames_done(Endpoint& endpoint) {
  if (endpoint.pulls.empty()) return endpoint.frames_received;
  const SlotId first = endpoint.pulls.front();
  return pulls_.find(first.index, first.generation)->frame - 1;
}

Result<Taken> NetTransport::take(EndpointId id, const RemoteKey& key) {
  Endpoint* const endpoint = find(id);
  if (endpoint == nullptr || !endpoint->visible()) return Errc::kDisconnected;
  // They are taken in the order in which they came, but for those that nobody asks for any more.
  for (size_t left = endpoint->handed_over.size(); left != 0; --left) {
    HandedOver handed = endpoint->handed_over.pop();
    if (pack_key(handed.key).bytes != key.bytes) {
      endpoint->handed_over.push(std::move(handed));
      continue;
    }
    if (handed.refused != Errc::kOk) {
      return Status(handed.refused, "no room for the memory that was handed over: too much of it waits to be used");
    }
    refund(*endpoint, handed.key.size);
    const size_t resident = round_up(handed.key.size, page_bytes());
    return Taken{.memory = std::move(handed.memory), .final = true, .writable = true, .resident_bytes = resident};
  }
  return Status(Errc::kNotFound, "memory that was not handed over");
}

}  // namespace genie::datapath::net
