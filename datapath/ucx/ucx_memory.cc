// Regions, and the keys with which peers address them.
#include <algorithm>
#include <cstring>
#include <utility>

#include "datapath/memory/pages.h"
#include "datapath/memory/populate.h"
#include "datapath/ucx/ucx_impl.h"

namespace genie::datapath::ucx {
namespace {

// Of a packed key that is nonsense UCX may read more than it has: at most a byte-sized length for each of 64 domains.
constexpr size_t kKeyPadding = size_t{64} * 256;

}  // namespace

Mapping::~Mapping() {
  if (handle != nullptr) (void)ucp_mem_unmap(context, handle);
}

UcxMemory::~UcxMemory() { fabric->forget(*this); }

// No peer reaches it any more.
void UcxFabric::forget(UcxMemory& memory) {
  if (memory.mapping != nullptr && memory.mapping->answers != 0) {
    memory.mapping->dropped = true;
    dropped_.push_back(std::move(memory.mapping));
  }
  for (const UcxMemory::Grant& grant : memory.grants) {
    UcxLink** const link = links_.find(grant.link.index, grant.link.generation);
    if (link != nullptr) (*link)->granted.erase(grant.slot.index, grant.slot.generation);
  }
}

UcxRemote::~UcxRemote() {
  for (const ucp_rkey_h key : keys) {
    if (key != nullptr) ucp_rkey_destroy(key);
  }
}

Result<std::unique_ptr<FabricMemory>> UcxFabric::map(ucp_mem_map_params_t& params) {
  auto memory = std::make_unique<UcxMemory>();
  memory->fabric = this;
  memory->mapping = std::make_unique<Mapping>();
  Mapping& mapping = *memory->mapping;
  mapping.context = context_;
  ucs_status_t status = ucp_mem_map(context_, &params, &mapping.handle);
  if (status != UCS_OK) {
    return Status(status == UCS_ERR_NO_MEMORY ? Errc::kOutOfMemory : errc_of(status),
                  "UCX cannot register " + std::to_string(params.length) + " bytes (" + ucs_status_string(status) +
                      "): with RDMA devices, raise 'ulimit -l'");
  }
  ucp_mem_attr_t attributes{};
  attributes.field_mask = UCP_MEM_ATTR_FIELD_ADDRESS;
  (void)ucp_mem_query(mapping.handle, &attributes);
  memory->data = static_cast<std::byte*>(attributes.address);
  memory->size = params.length;
  void* packed = nullptr;
  size_t size = 0;
  status = ucp_rkey_pack(context_, mapping.handle, &packed, &size);
  if (status != UCS_OK) return status_of(status, "a key cannot be packed");
  const auto* const bytes = static_cast<const std::byte*>(packed);
  memory->packed_key.assign(bytes, bytes + size);
  ucp_rkey_buffer_release(packed);
  if (size > kMaxPackedKeyBytes - sizeof(KeyPrefix))
    return Status(Errc::kInternal, "UCX packs larger keys than expected");
  return std::unique_ptr<FabricMemory>(std::move(memory));
}

// Through posix and sysv only UCX's own memory can be reached; for devices it is ours, in large pages.
Result<std::unique_ptr<FabricMemory>> UcxFabric::allocate(size_t size, bool present) {
  if (size == 0 || size > SIZE_MAX / 4) return Status(Errc::kInvalidArgument, "size of a region out of range");
  ucp_mem_map_params_t params{};
  params.field_mask = UCP_MEM_MAP_PARAM_FIELD_LENGTH | UCP_MEM_MAP_PARAM_FIELD_FLAGS;
  params.length = size;
  params.flags = UCP_MEM_MAP_NONBLOCK;
  Buffer block;
  if (shared_memory_) {
    params.flags |= UCP_MEM_MAP_ALLOCATE;
  } else {
    Result<Buffer> made = map_block(size);
    GENIE_TRY(made.status());
    block = std::move(*made);
    params.field_mask |= UCP_MEM_MAP_PARAM_FIELD_ADDRESS;
    params.address = block.data();
  }
  Result<std::unique_ptr<FabricMemory>> memory = map(params);
  GENIE_TRY(memory.status());
  if (present) GENIE_TRY(prefault((*memory)->data, size));
  auto& made = static_cast<UcxMemory&>(**memory);
  made.mapping->block = std::move(block);
  made.lasting = true;
  return memory;
}

Result<std::unique_ptr<FabricMemory>> UcxFabric::register_memory(std::span<std::byte> memory, MemoryKind kind,
                                                                 bool shared) {
  if (kind != MemoryKind::kHost && !reaches_devices_) {
    return Status(Errc::kUnsupported,
                  "this UCX was built without CUDA: install one with it, or keep the memory on the host");
  }
  if (!shared) {
    // UCX registers by itself what it needs registered, and remembers it.
    auto local = std::make_unique<UcxMemory>();
    local->fabric = this;
    local->data = memory.data();
    local->size = memory.size();
    local->on_host = kind == MemoryKind::kHost;
    return std::unique_ptr<FabricMemory>(std::move(local));
  }
  ucp_mem_map_params_t params{};
  params.field_mask =
      UCP_MEM_MAP_PARAM_FIELD_ADDRESS | UCP_MEM_MAP_PARAM_FIELD_LENGTH | UCP_MEM_MAP_PARAM_FIELD_MEMORY_TYPE;
  params.address = memory.data();
  params.length = memory.size();
  params.memory_type = kind == MemoryKind::kCuda ? UCS_MEMORY_TYPE_CUDA : UCS_MEMORY_TYPE_HOST;
  Result<std::unique_ptr<FabricMemory>> mapped = map(params);
  GENIE_TRY(mapped.status());
  static_cast<UcxMemory&>(**mapped).on_host = kind == MemoryKind::kHost;
  return mapped;
}

// A link has one grant of a region, however often it is exported.
Result<std::vector<std::byte>> UcxFabric::export_memory(FabricLink& base, FabricMemory& exported) {
  auto& link = static_cast<UcxLink&>(base);
  auto& memory = static_cast<UcxMemory&>(exported);
  std::erase_if(memory.grants, [&](const UcxMemory::Grant& grant) {
    return links_.find(grant.link.index, grant.link.generation) == nullptr;
  });
  const auto known = std::ranges::find_if(memory.grants, [&](const UcxMemory::Grant& grant) {
    return grant.link.index == link.slot.index && grant.link.generation == link.slot.generation;
  });
  SlotId slot;
  if (known != memory.grants.end()) {
    slot = known->slot;
  } else {
    slot = link.granted.emplace(&memory);
    memory.grants.push_back({link.slot, slot});
  }
  const KeyPrefix prefix{.grant = slot.index, .generation = slot.generation, .host = memory.on_host ? 1U : 0U};
  std::vector<std::byte> key(sizeof(prefix));
  std::memcpy(key.data(), &prefix, sizeof(prefix));
  key.insert(key.end(), memory.packed_key.begin(), memory.packed_key.end());
  return key;
}

Result<std::unique_ptr<FabricRemote>> UcxFabric::import_memory(FabricLink& base, std::span<const std::byte> key,
                                                               uint64_t address, size_t) {
  const auto& link = static_cast<UcxLink&>(base);
  KeyPrefix prefix;
  if (key.size() <= sizeof(prefix) || key.size() > kMaxPackedKeyBytes) {
    return Status(Errc::kProtocol, "a packed key of wrong size");
  }
  std::memcpy(&prefix, key.data(), sizeof(prefix));
  const std::span<const std::byte> packed = key.subspan(sizeof(prefix));
  auto remote = std::make_unique<UcxRemote>();
  remote->place = {.grant = prefix.grant, .generation = prefix.generation};
  remote->base = address;
  remote->carried = link.carries && prefix.host != 0;
  // A device's memory at this end would need the keys all the same.
  if (remote->carried && !reaches_devices_) return std::unique_ptr<FabricRemote>(std::move(remote));
  std::vector<std::byte> padded(packed.size() + kKeyPadding);
  std::memcpy(padded.data(), packed.data(), packed.size());
  for (size_t lane = 0; lane < kLaneCount; ++lane) {
    if (link.lanes[lane].endpoint == nullptr) return Errc::kDisconnected;
    const ucs_status_t status = ucp_ep_rkey_unpack(link.lanes[lane].endpoint, padded.data(), &remote->keys[lane]);
    if (status != UCS_OK) return Status(Errc::kProtocol, "UCX does not understand a key of the peer");
  }
  return std::unique_ptr<FabricRemote>(std::move(remote));
}

}  // namespace genie::datapath::ucx
