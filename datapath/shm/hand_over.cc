// Memory that changes sides: filled here, sealed, and the other's from then on.
//
// Trust: the giver makes the memory and its seals, the taker looks at the seals before it relies on anything. Against
//   resizing: without that seal the memory is refused. Against writing: with it the bytes can no longer change, and the
//   kernel gave it only because nobody mapped them writable; without it the taker is told so. The giver pays for sealing
//   and for making pages present; the taker's thread only looks and maps.
#include <sys/mman.h>

#include <utility>

#include "datapath/base/log.h"
#include "datapath/memory/pages.h"
#include "datapath/shm/transport_impl.h"

namespace genie::datapath::shm {

namespace {

// Handed over and not yet taken, per endpoint: a peer that goes beyond breaks the protocol.
constexpr size_t kMaxHandedOver = 1024;

}  // namespace

Result<Region> ShmTransport::prepare(EndpointId id, size_t size) {
  const Endpoint* endpoint = find(id);
  if (endpoint == nullptr || endpoint->state != EndpointState::kOpen) return Errc::kDisconnected;
  Result<FileDescriptor> fd = make_sealed_memory(size);
  if (!fd.ok()) return fd.status();
  Result<SharedMapping> mapping = SharedMapping::map(fd->get(), size);
  if (!mapping.ok()) return mapping.status();
  std::byte* const data = mapping->data();
  // A child of this process would keep the memory writable for as long as it lives.
  (void)::madvise(data, round_up(size, page_bytes()), MADV_DONTFORK);
  LocalRegion region;
  region.mapping = std::move(*mapping);
  region.fd = std::move(*fd);
  region.size = size;
  region.endpoint = id;
  region.prepared = true;
  const SlotId slot = regions_.emplace(std::move(region));
  return Region{data, size, MemoryKey{slot.index, slot.generation}, RemoteKey()};
}

Result<RemoteKey> ShmTransport::hand_over(MemoryKey key, size_t size, Deadline deadline) {
  LocalRegion* region = regions_.find(key.index, key.generation);
  if (region == nullptr) return regions_.why(key.index, key.generation);
  if (!region->prepared || size == 0 || size > region->size) {
    return Status(Errc::kInvalidArgument, "only prepared memory can be handed over, and no more than there is");
  }
  if (region->users != 0) return Errc::kBusy;
  Endpoint* endpoint = find(region->endpoint);
  if (endpoint == nullptr || endpoint->state != EndpointState::kOpen) return Errc::kDisconnected;
  const FileDescriptor fd = std::move(region->fd);
  regions_.erase(key.index, key.generation);  // our mapping would keep the seal from holding
  if (const Status sealed = seal_against_writing(fd.get()); !sealed.ok()) {
    GENIE_LOG_INFO("memory is handed over unsealed and will be copied: {}", sealed.to_string());
  }
  const RemoteKey name = pack_key(KeyFields{.index = endpoint->next_hand_over++, .size = size});
  GENIE_TRY(
      endpoint->channel.send(ControlMessage{.type = ControlType::kHandOver, .size = size, .key = name}, fd.get()));
  GENIE_TRY(send_all(*endpoint, deadline));
  return name;
}

// False: the peer broke the protocol.
bool ShmTransport::accept_hand_over(Endpoint& endpoint, Incoming& incoming) {
  if (endpoint.handed_over.size() >= kMaxHandedOver) return false;
  HandedOver handed{.key = unpack_key(incoming.message.key), .fd = std::move(incoming.fd)};
  // No descriptor: this process has none left.
  const Status quota = handed.fd.valid() ? check_quota(endpoint, handed.key.size) : Status(Errc::kQuotaExceeded);
  if (quota.ok()) {
    charge(endpoint, handed.key.size);
  } else {
    handed.refused = quota.code();
    handed.fd = FileDescriptor();
  }
  endpoint.handed_over.push(std::move(handed));
  return true;
}

// They are taken in the order in which they came, but for those that nobody asks for any more.
std::optional<HandedOver> ShmTransport::find_handed_over(Endpoint& endpoint, const RemoteKey& key) {
  const KeyFields wanted = unpack_key(key);
  for (size_t left = endpoint.handed_over.size(); left > 0; --left) {
    HandedOver handed = endpoint.handed_over.pop();
    if (handed.key.index == wanted.index && handed.key.size == wanted.size) {
      if (handed.refused == Errc::kOk) refund(endpoint, handed.key.size);
      return handed;
    }
    endpoint.handed_over.push(std::move(handed));
  }
  return std::nullopt;
}

Result<Taken> ShmTransport::take(EndpointId id, const RemoteKey& key) {
  Endpoint* endpoint = find(id);
  if (endpoint == nullptr || endpoint->state == EndpointState::kHandshake) return Errc::kDisconnected;
  std::optional<HandedOver> handed = find_handed_over(*endpoint, key);
  // What was handed over before the message that names it is in the socket by now, behind little else.
  constexpr int kTurns = 8;
  for (int turn = 0; turn < kTurns && !handed && endpoint->state == EndpointState::kOpen; ++turn) {
    service(*endpoint, true);
    endpoint = find(id);
    if (endpoint == nullptr) return Errc::kDisconnected;
    handed = find_handed_over(*endpoint, key);
  }
  if (!handed) return Status(Errc::kNotFound, "memory that was not handed over");
  if (handed->refused != Errc::kOk) {
    return Status(handed->refused,
                  "no room for the memory that was handed over: too much of it waits to be used, or too "
                  "few file descriptors are left");
  }
  return take_memory(handed->fd.get(), handed->key.size);
}

}  // namespace genie::datapath::shm
