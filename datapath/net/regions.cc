// Memory: regions of this side, regions that the peer told of, and the keys between the two.
#include <algorithm>
#include <string>
#include <utility>

#include "datapath/net/transport_impl.h"

namespace genie::datapath::net {

Status NetTransport::check_quota(const Endpoint& endpoint, size_t size) const {
  if (size == 0) return Status(Errc::kInvalidArgument, "a shared region of 0 bytes");
  if (endpoint.shared_regions >= options_.max_regions_per_endpoint) {
    return Status(Errc::kQuotaExceeded, "too many shared regions on one connection");
  }
  if (size > options_.max_bytes_per_endpoint - std::min(endpoint.shared_bytes, options_.max_bytes_per_endpoint)) {
    return Status(Errc::kQuotaExceeded, "too many bytes of shared regions on one connection");
  }
  if (size > options_.max_bytes_in_total - std::min(shared_bytes_, options_.max_bytes_in_total)) {
    return Status(Errc::kQuotaExceeded, "too many bytes of shared regions in this process");
  }
  return {};
}

void NetTransport::charge(Endpoint& endpoint, size_t size) {
  ++endpoint.shared_regions;
  ++shared_regions_;
  endpoint.shared_bytes += size;
  shared_bytes_ += size;
}

void NetTransport::refund(Endpoint& endpoint, size_t size) {
  if (!endpoint.visible()) return;  // its ending has refunded all
  --endpoint.shared_regions;
  --shared_regions_;
  endpoint.shared_bytes -= size;
  shared_bytes_ -= size;
}

// -- Regions of this side ------------------------------------------------------------------------------------------------

Result<Region> NetTransport::add_region(EndpointId endpoint, std::unique_ptr<FabricMemory> memory, size_t size) {
  std::byte* const data = memory->data;
  const SlotId slot = regions_.emplace();
  LocalRegion& region = *regions_.find(slot.index, slot.generation);
  region.memory = std::move(memory);
  region.size = size;
  region.endpoint = endpoint;
  region.key = KeyFields{.index = slot.index, .generation = slot.generation, .size = size};
  fill_random(region.key.nonce);
  return Region{data, size, MemoryKey{slot.index, slot.generation}, pack_key(region.key)};
}

// A failure ends the endpoint: the peer would take the region's key for a forged one.
void NetTransport::announce(Endpoint& endpoint, const LocalRegion& region) {
  if (region.memory->staged) return;
  const Result<std::vector<std::byte>> packed = fabric_->export_memory(*endpoint.link, *region.memory);
  if (!packed.ok()) {
    endpoint.broken = packed.code();
    return list(endpoint);
  }
  transmit(endpoint,
           Frame{.type = FrameType::kAnnounce,
                 .size = region.size,
                 .address = reinterpret_cast<uint64_t>(region.memory->data),
                 .key = pack_key(region.key)},
           *packed);
}

// The connecting side asks first, so that the listener's limits hold for both.
Result<Region> NetTransport::allocate(EndpointId id, size_t size, Deadline deadline) {
  Endpoint* endpoint = usable(id);
  if (endpoint == nullptr) return Errc::kDisconnected;
  if (size == 0) return Status(Errc::kInvalidArgument, "a shared region of 0 bytes");
  if (endpoint->listener_side) {
    if (!check_quota(*endpoint, size).ok()) {
      // What the client has released since counts no more.
      now_ = now_ns();
      service(*endpoint);
      if ((endpoint = usable(id)) == nullptr) return Errc::kDisconnected;
    }
    GENIE_TRY(check_quota(*endpoint, size));
  } else {
    GENIE_TRY(call(id, Frame{.type = FrameType::kReserve, .size = size}, {}, deadline));
  }
  Result<std::unique_ptr<FabricMemory>> memory = fabric_->allocate(size, true);
  endpoint = usable(id);
  if (endpoint == nullptr) return Errc::kDisconnected;
  if (!memory.ok()) {
    if (!endpoint->listener_side) transmit(*endpoint, Frame{.type = FrameType::kUnreserve, .size = size});
    return memory.status();
  }
  charge(*endpoint, size);
  Result<Region> region = add_region(id, std::move(*memory), size);
  announce(*endpoint, *regions_.find(region->key.index, region->key.generation));
  // The answer says that the announcement has been seen.
  if (!endpoint->listener_side) {
    const RemoteKey nobodys = pack_key(KeyFields{.index = UINT32_MAX});
    const Status seen = call(id, Frame{.type = FrameType::kImport, .key = nobodys}, {}, deadline);
    if (seen.code() != Errc::kPermission) {
      (void)release(region->key);
      return seen;
    }
  }
  return region;
}

Result<Region> NetTransport::register_memory(std::span<std::byte> memory, MemoryKind kind) {
  if (memory.empty()) return Status(Errc::kInvalidArgument, "a region of 0 bytes");
  Result<std::unique_ptr<FabricMemory>> registered = fabric_->register_memory(memory, kind, true);
  GENIE_TRY(registered.status());
  Result<Region> region = add_region(EndpointId(), std::move(*registered), memory.size());
  const LocalRegion& made = *regions_.find(region->key.index, region->key.generation);
  if (made.memory->staged) region->remote = RemoteKey();
  endpoints_.for_each([&](SlotId, Endpoint& endpoint) {
    if (endpoint.usable()) announce(endpoint, made);
  });
  return region;
}

Status NetTransport::release(MemoryKey key) {
  LocalRegion* const region = regions_.find(key.index, key.generation);
  if (region == nullptr) return regions_.why(key.index, key.generation);
  if (region->users != 0) return Errc::kBusy;
  const Frame told{.type = FrameType::kRevoke, .key = pack_key(region->key)};
  if (!region->endpoint.valid()) {
    // Its memory is somebody else's, who gets it back now: nobody may have operations on the way to it.
    endpoints_.for_each([&](SlotId, Endpoint& endpoint) {
      if (endpoint.usable()) transmit(endpoint, told);
    });
  } else if (Endpoint* const endpoint = find(region->endpoint); endpoint != nullptr) {
    if (!region->prepared) refund(*endpoint, region->size);
    if (!region->prepared && endpoint->state != EndpointState::kHandshake) {
      endpoint->revoked.push_back({region->key, std::move(region->memory)});
      if (endpoint->visible()) transmit(*endpoint, told);
    }
  }
  regions_.erase(key.index, key.generation);
  return {};
}

// -- Regions of the peer -------------------------------------------------------------------------------------------------

// False: the peer broke the protocol.
bool NetTransport::accept_announcement(Endpoint& endpoint, const Frame& frame, std::span<const std::byte> payload) {
  const KeyFields key = unpack_key(frame.key);
  if (payload.size() > kMaxPackedKeyBytes || key.size == 0) return false;
  const auto known = endpoint.announced.find(key.index);
  if (known == endpoint.announced.end()) {
    if (endpoint.announced.size() >= 2 * options_.max_regions_per_endpoint) return false;
  } else if (!known->second.revoked || key.generation <= known->second.key.generation) {
    return false;
  }
  // What a client shares was reserved; what the listener shares counts on its own side.
  Announced& entry = endpoint.announced[key.index];
  entry = Announced{.key = key, .address = frame.address, .packed_key = {payload.begin(), payload.end()}};
  return true;
}

Result<const Announced*> NetTransport::resolve(const Endpoint& endpoint, const RemoteKey& key) const {
  const KeyFields fields = unpack_key(key);
  const auto known = endpoint.announced.find(fields.index);
  if (known == endpoint.announced.end()) return Errc::kPermission;
  const Announced& region = known->second;
  if (fields.generation < region.key.generation) return Errc::kStale;
  if (fields.generation != region.key.generation || fields.size != region.key.size ||
      !same_nonce(fields.nonce, region.key.nonce)) {
    return Errc::kPermission;
  }
  if (region.revoked) return Errc::kStale;
  return &region;
}

Result<RemoteRegion> NetTransport::import_region(EndpointId id, const RemoteKey& key) {
  Endpoint* endpoint = usable(id);
  if (endpoint == nullptr) return Errc::kDisconnected;
  if (!endpoint->listener_side) {
    // What the listener has told or taken back by now is seen before its answer.
    GENIE_TRY(
        call(id, Frame{.type = FrameType::kImport, .key = key}, {}, Deadline::after_ms(options_.control_timeout_ms)));
    endpoint = usable(id);
    if (endpoint == nullptr) return Errc::kDisconnected;
  } else {
    now_ = now_ns();
    service(*endpoint);  // a release that was sent before is seen before
    if (!endpoint->usable()) return Errc::kDisconnected;
  }
  const Result<const Announced*> found = resolve(*endpoint, key);
  GENIE_TRY(found.status());
  const Announced& region = **found;
  Result<std::unique_ptr<FabricRemote>> remote =
      fabric_->import_memory(*endpoint->link, region.packed_key, region.address, region.key.size);
  GENIE_TRY(remote.status());
  const SlotId slot = imports_.emplace();
  Import& import = *imports_.find(slot.index, slot.generation);
  import.remote = std::move(*remote);
  import.address = region.address;
  import.endpoint = id;
  import.key = region.key;
  return RemoteRegion{slot.index, slot.generation, region.key.size, nullptr};
}

Status NetTransport::drop_import(const RemoteRegion& region) {
  Import* const import = imports_.find(region.index, region.generation);
  if (import == nullptr) return imports_.why(region.index, region.generation);
  if (import->users != 0) return Errc::kBusy;
  imports_.erase(region.index, region.generation);
  return {};
}

// The region's owner wants its memory back: it gets it when nothing of ours is on its way there.
void NetTransport::on_revoke(Endpoint& endpoint, const KeyFields& key) {
  const auto known = endpoint.announced.find(key.index);
  if (known == endpoint.announced.end() || known->second.key.generation != key.generation ||
      !same_nonce(known->second.key.nonce, key.nonce) || known->second.revoked) {
    return;
  }
  known->second.revoked = true;
  known->second.packed_key = {};
  // A registered region of the peer was not reserved.
  if (endpoint.listener_side && endpoint.shared_regions != 0 && known->second.key.size <= endpoint.shared_bytes) {
    refund(endpoint, known->second.key.size);
  }
  imports_.for_each([&](SlotId, Import& import) {
    if (import.endpoint == endpoint.id && import.key.index == key.index && import.key.generation == key.generation) {
      import.revoked = true;
    }
  });
  confirm_revoked(endpoint, known->second.key);
}

void NetTransport::confirm_revoked(Endpoint& endpoint, const KeyFields& key) {
  bool used = false;
  imports_.for_each([&](SlotId, Import& import) {
    used = used || (import.endpoint == endpoint.id && import.key.index == key.index &&
                    import.key.generation == key.generation && import.users != 0);
  });
  if (!used && endpoint.visible()) transmit(endpoint, Frame{.type = FrameType::kRevoked, .key = pack_key(key)});
}

// The last operation on an import has ended.
void NetTransport::on_unused_import(Import& import) {
  if (!import.revoked) return;
  if (Endpoint* const endpoint = find(import.endpoint); endpoint != nullptr) confirm_revoked(*endpoint, import.key);
}

}  // namespace genie::datapath::net
