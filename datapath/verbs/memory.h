// Memory that devices may touch: pinned once for each link and device that uses it. Internal to this folder.
//
// Purpose: a link has a protection domain of its own on each of its devices, so a registration belongs to one of them. The
//   first descriptor or key of a link that names the memory registers it there; later ones find it.
// Thread-safety: none. Ownership: VerbsMemory owns what allocate() mapped and all its registrations; a registration keeps
//   its domain alive.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "datapath/memory/buffer.h"
#include "datapath/memory/gpu_memory.h"
#include "datapath/memory/numa.h"
#include "datapath/net/fabric.h"
#include "datapath/verbs/device.h"
#include "datapath/verbs/handles.h"
#include "genie/status.h"

namespace genie::datapath::verbs {

// What the queue pairs of one link on one device have in common.
struct Domain {
  Device* device = nullptr;
  bool relaxed_ordering = false;
  bool ended = false;  // its link has gone
  Handle<ibv_pd> pd;

  static Result<std::shared_ptr<Domain>> make(Device& device, bool relaxed_ordering);
};

class VerbsMemory final : public net::FabricMemory {
 public:
  // With a copier: memory that some device does not reach.
  VerbsMemory(std::span<std::byte> memory, MemoryKind kind, std::optional<GpuCopier> copier) noexcept
      : kind_(kind), copier_(std::move(copier)) {
    data = memory.data();
    size = memory.size();
    on_host = kind == MemoryKind::kHost;
    staged = copier_.has_value();
  }
  explicit VerbsMemory(Buffer owned) noexcept : owned_(std::move(owned)) {
    data = owned_.data();
    size = owned_.size();
  }

  // Where it lies, as its first page says, once it is registered with some device.
  int numa_node() const noexcept { return numa_node_; }
  // Of staged memory; to and from host memory.
  Status copy(std::byte* to, const std::byte* from, size_t bytes) const { return copier_->copy(to, from, bytes); }

  // The registration in `domain`, made when there is none yet; `remote`: one that the peer may use.
  Result<ibv_mr*> in(const std::shared_ptr<Domain>& domain, bool remote) const {
    for (const Registration& one : registrations_) {
      if (one.domain == domain && (one.remote || !remote)) return one.region.get();
    }
    return add(domain, remote);
  }

 private:
  struct Registration {
    std::shared_ptr<Domain> domain;
    bool remote;
    Handle<ibv_mr> region;
  };
  [[gnu::cold]] Result<ibv_mr*> add(const std::shared_ptr<Domain>& domain, bool remote) const;

  MemoryKind kind_ = MemoryKind::kHost;
  std::optional<GpuCopier> copier_;
  mutable int numa_node_ = kAnyNode;
  Buffer owned_;
  mutable std::vector<Registration> registrations_;
};

// Pins memory in a domain. The classic failures are told with their cures.
Result<Handle<ibv_mr>> register_pages(const Domain& domain, std::span<std::byte> memory, MemoryKind kind, bool remote);

// Why the kernel refused to pin `size` bytes, and what to do.
Status explain_registration(int error, size_t size, MemoryKind kind);

}  // namespace genie::datapath::verbs
