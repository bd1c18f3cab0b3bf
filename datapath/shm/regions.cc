// Memory: regions that this side allocated, regions of the peer that are mapped here, and the keys between the two.
#include <algorithm>
#include <string>
#include <utility>

#include "datapath/memory/populate.h"
#include "datapath/shm/transport_impl.h"

namespace genie::datapath::shm {

Status ShmTransport::check_quota(const Endpoint& endpoint, size_t size) const {
  if (size == 0) return Status(Errc::kInvalidArgument, "a shared region of 0 bytes");
  const size_t of_others = shared_regions_ - endpoint.shared_regions;
  const size_t share = (max_descriptors_ - std::min(of_others, max_descriptors_)) / 2;
  if (endpoint.shared_regions >= std::min(options_.max_regions_per_endpoint, share)) {
    return Status(Errc::kQuotaExceeded, "too many shared regions on one connection");
  }
  if (size > options_.max_bytes_per_endpoint - endpoint.shared_bytes) {
    return Status(Errc::kQuotaExceeded, "too many bytes of shared regions on one connection");
  }
  if (size > options_.max_bytes_in_total - std::min(shared_bytes_, options_.max_bytes_in_total)) {
    return Status(Errc::kQuotaExceeded, "too many bytes of shared regions on this node");
  }
  return {};
}

void ShmTransport::charge(Endpoint& endpoint, size_t size) {
  ++endpoint.shared_regions;
  ++shared_regions_;
  endpoint.shared_bytes += size;
  shared_bytes_ += size;
}

void ShmTransport::refund(Endpoint& endpoint, size_t size) {
  --endpoint.shared_regions;
  --shared_regions_;
  endpoint.shared_bytes -= size;
  shared_bytes_ -= size;
}

Result<SharedRegion*> ShmTransport::resolve(Endpoint& endpoint, const RemoteKey& key) {
  const KeyFields fields = unpack_key(key);
  SharedRegion* region = endpoint.shared.find(fields.index, fields.generation);
  if (region == nullptr) {
    const Errc why = endpoint.shared.why(fields.index, fields.generation);
    return why == Errc::kStale ? Errc::kStale : Errc::kPermission;
  }
  if (!same_nonce(region->nonce, fields.nonce) || region->size != fields.size) return Errc::kPermission;
  return region;
}

// The caller has charged the endpoint for it already.
RemoteKey ShmTransport::add_shared(Endpoint& endpoint, SharedRegion region) {
  fill_random(region.nonce);
  KeyFields fields;
  fields.size = region.size;
  fields.nonce = region.nonce;
  const SlotId slot = endpoint.shared.emplace(std::move(region));
  fields.index = slot.index;
  fields.generation = slot.generation;
  return pack_key(fields);
}

void ShmTransport::drop_shared(Endpoint& endpoint, const KeyFields& key) {
  if (endpoint.shared.erase(key.index, key.generation)) refund(endpoint, key.size);
}

void ShmTransport::revoke_imports(EndpointId endpoint, const KeyFields& key) {
  imports_.for_each([&](SlotId, Import& import) {
    if (import.endpoint == endpoint && import.key.index == key.index && import.key.generation == key.generation) {
      import.revoked = true;
    }
  });
}

// Makes the key of a region that this side allocated stale, on both sides.
void ShmTransport::withdraw(EndpointId id, const RemoteKey& key) {
  Endpoint* endpoint = find(id);
  if (endpoint == nullptr) return;
  if (endpoint->listener_side) drop_shared(*endpoint, unpack_key(key));
  const ControlType type = endpoint->listener_side ? ControlType::kRevoke : ControlType::kRelease;
  transmit(*endpoint, ControlMessage{.type = type, .key = key});
}

// A published region is sealed once this side has mapped it, and made present by whoever writes it.
Result<Region> ShmTransport::add_region(EndpointId endpoint, FileDescriptor fd, const RemoteKey& key, size_t size,
                                        bool published) {
  Result<SharedMapping> mapping = SharedMapping::map(fd.get(), size);
  if (!mapping.ok()) return mapping.status();
  std::byte* data = mapping->data();
  GENIE_TRY(published ? seal_for_others(fd.get()) : populate_shared({data, size}));
  LocalRegion region;
  region.mapping = std::move(*mapping);
  region.fd = std::move(fd);
  region.size = size;
  region.endpoint = endpoint;
  region.remote = key;
  const SlotId slot = regions_.emplace(std::move(region));
  return Region{data, size, MemoryKey{slot.index, slot.generation}, key};
}

Result<Region> ShmTransport::allocate(EndpointId id, size_t size, Deadline deadline) {
  Endpoint* endpoint = find(id);
  if (endpoint == nullptr || endpoint->state != EndpointState::kOpen) return Errc::kDisconnected;
  if (size == 0) return Status(Errc::kInvalidArgument, "a shared region of 0 bytes");
  return endpoint->listener_side ? allocate_here(*endpoint, size) : allocate_there(*endpoint, size, deadline);
}

Result<Region> ShmTransport::allocate_here(Endpoint& endpoint, size_t size, bool published) {
  if (!check_quota(endpoint, size).ok()) {
    // What the client has released since counts no more.
    const EndpointId id = endpoint.id;
    service(endpoint, true);
    if (find(id) == nullptr) return Errc::kDisconnected;
  }
  GENIE_TRY(check_quota(endpoint, size));
  Result<FileDescriptor> fd = make_sealed_memory(size);
  if (!fd.ok()) return fd.status();
  SharedRegion shared;
  shared.size = size;
  const RemoteKey key = add_shared(endpoint, std::move(shared));
  charge(endpoint, size);
  Result<Region> region = add_region(endpoint.id, std::move(*fd), key, size, published);
  const KeyFields fields = unpack_key(key);
  if (!region.ok()) {
    drop_shared(endpoint, fields);
    return region;
  }
  endpoint.shared.find(fields.index, fields.generation)->local = region->key;
  return region;
}

Result<Region> ShmTransport::publish(EndpointId id, size_t size) {
  Endpoint* endpoint = find(id);
  if (endpoint == nullptr || endpoint->state != EndpointState::kOpen) return Errc::kDisconnected;
  if (size == 0) return Status(Errc::kInvalidArgument, "a shared region of 0 bytes");
  if (!endpoint->listener_side) return Status(Errc::kUnsupported, "shared memory is published by the listening side");
  return allocate_here(*endpoint, size, true);
}

Result<Region> ShmTransport::allocate_there(Endpoint& endpoint, size_t size, Deadline deadline) {
  const EndpointId id = endpoint.id;
  Result<Reply> answer = call(endpoint, ControlMessage{.type = ControlType::kAllocate, .size = size}, deadline);
  if (!answer.ok()) return answer.status();
  const RemoteKey key = answer->message.key;
  if (unpack_key(key).size != size) return Status(Errc::kProtocol, "the listener allocated another size");
  Result<Region> region = add_region(id, std::move(answer->fd), key, size);
  if (!region.ok()) withdraw(id, key);
  return region;
}

Result<Region> ShmTransport::register_memory(std::span<std::byte>, MemoryKind) {
  return Status(Errc::kUnsupported, "shared memory cannot register memory that it did not allocate; use allocate()");
}

Status ShmTransport::release(MemoryKey key) {
  LocalRegion* region = regions_.find(key.index, key.generation);
  if (region == nullptr) return regions_.why(key.index, key.generation);
  if (region->users != 0) return Errc::kBusy;
  const EndpointId endpoint = region->endpoint;
  const RemoteKey remote = region->remote;
  const bool shared = !region->prepared;
  regions_.erase(key.index, key.generation);
  if (shared) withdraw(endpoint, remote);
  return {};
}

// The client asked for the region and told us its key.
Result<SharedMapping> ShmTransport::import_own(Endpoint& endpoint, const RemoteKey& key) {
  const EndpointId id = endpoint.id;
  service(endpoint, true);  // a release that was sent before is seen before
  Endpoint* alive = find(id);
  if (alive == nullptr) return Errc::kDisconnected;
  Result<SharedRegion*> region = resolve(*alive, key);
  if (!region.ok()) return region.status();
  if (!(*region)->of_client) return Status(Errc::kInvalidArgument, "the region is this side's own");
  return SharedMapping::map((*region)->fd.get(), (*region)->size);
}

Result<SharedMapping> ShmTransport::import_theirs(Endpoint& endpoint, const RemoteKey& key) {
  const ControlMessage request{.type = ControlType::kImport, .key = key};
  Result<Reply> answer = call(endpoint, request, Deadline::after_ms(options_.control_timeout_ms));
  if (!answer.ok()) return answer.status();
  return SharedMapping::map(answer->fd.get(), unpack_key(key).size);
}

Result<RemoteRegion> ShmTransport::import_region(EndpointId id, const RemoteKey& key) {
  Endpoint* endpoint = find(id);
  if (endpoint == nullptr || endpoint->state != EndpointState::kOpen) return Errc::kDisconnected;
  Result<SharedMapping> mapping = endpoint->listener_side ? import_own(*endpoint, key) : import_theirs(*endpoint, key);
  if (!mapping.ok()) return mapping.status();
  const KeyFields fields = unpack_key(key);
  std::byte* data = mapping->data();
  Import import;
  import.mapping = std::move(*mapping);
  import.size = fields.size;
  import.endpoint = id;
  import.key = fields;
  const SlotId slot = imports_.emplace(std::move(import));
  return RemoteRegion{slot.index, slot.generation, fields.size, data};
}

Status ShmTransport::drop_import(const RemoteRegion& region) {
  Import* import = imports_.find(region.index, region.generation);
  if (import == nullptr) return imports_.why(region.index, region.generation);
  if (import->users != 0) return Errc::kBusy;
  imports_.erase(region.index, region.generation);
  return {};
}

}  // namespace genie::datapath::shm
