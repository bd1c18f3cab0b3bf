#include "datapath/verbs/memory.h"

#include <sys/resource.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "datapath/base/log.h"
#include "datapath/memory/gpu_memory.h"

namespace genie::datapath::verbs {
namespace {

int access_flags(const Domain& domain, bool remote) noexcept {
  unsigned flags = IBV_ACCESS_LOCAL_WRITE;
  if (remote) flags |= IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ;
  // An optional flag: devices and kernels that don't know it ignore it.
  if (domain.relaxed_ordering) flags |= IBV_ACCESS_RELAXED_ORDERING;
  return static_cast<int>(flags);
}

std::string memlock_text() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_MEMLOCK, &limit) != 0) return "unknown";
  return limit.rlim_cur == RLIM_INFINITY ? "unlimited" : std::to_string(limit.rlim_cur / 1024) + " KiB";
}

// A GPU's memory: by a dma-buf where driver and device can, else by the driver's peer memory module, which makes the
// ordinary call work on the GPU's addresses.
Handle<ibv_mr> register_gpu(const Domain& domain, std::span<std::byte> memory, int flags) {
  Result<DmaBuf> exported = export_dma_buf(memory);
  if (exported.ok()) {
    Handle<ibv_mr> region(ibv_reg_dmabuf_mr(domain.pd.get(), exported->offset, memory.size(),
                                            reinterpret_cast<uint64_t>(memory.data()), exported->fd.get(), flags));
    if (region != nullptr) {
      GENIE_LOG_INFO("verbs: {} reaches GPU memory by dma-buf", domain.device->name);
      return region;
    }
    GENIE_LOG_INFO("verbs: {} takes no dma-buf ({}); trying nvidia-peermem", domain.device->name, std::strerror(errno));
  } else {
    GENIE_LOG_INFO("verbs: no dma-buf of GPU memory ({}); trying nvidia-peermem", exported.status().text());
  }
  Handle<ibv_mr> region(ibv_reg_mr(domain.pd.get(), memory.data(), memory.size(), flags));
  if (region != nullptr) GENIE_LOG_INFO("verbs: {} reaches GPU memory by nvidia-peermem", domain.device->name);
  return region;
}

}  // namespace

Result<std::shared_ptr<Domain>> Domain::make(Device& device, bool relaxed_ordering) {
  auto domain = std::make_shared<Domain>();
  domain->device = &device;
  domain->relaxed_ordering = relaxed_ordering;
  domain->pd.reset(ibv_alloc_pd(device.context.get()));
  if (domain->pd == nullptr) {
    return Status(Errc::kQuotaExceeded,
                  "no protection domain for another connection on " + device.name + ": " + std::strerror(errno));
  }
  return domain;
}

Status explain_registration(int error, size_t size, MemoryKind kind) {
  const std::string what = "cannot register " + std::to_string(size) + " bytes with the RDMA device (" +
                           std::string(std::strerror(error)) + "): ";
  if (kind == MemoryKind::kCuda) {
    return Status(Errc::kUnsupported,
                  what +
                      "neither a dma-buf nor nvidia-peermem gave access to GPU memory; load the module "
                      "with 'modprobe nvidia-peermem' or install the open kernel driver");
  }
  switch (error) {
    case ENOMEM:
    case EPERM:
      return Status(Errc::kOutOfMemory,
                    what + "the limit of locked memory is " + memlock_text() +
                        "; raise it with 'ulimit -l unlimited', LimitMEMLOCK=infinity in the service, "
                        "or a memlock line in /etc/security/limits.d");
    case EFAULT: return Status(Errc::kInvalidArgument, what + "not all of it is mapped, or it may not be written");
    case EINVAL:
      return Status(Errc::kInvalidArgument, what + "the range is empty or the device takes no range of this size");
    default: return Status(Errc::kIo, what + "'genie doctor' checks what RDMA needs");
  }
}

Result<Handle<ibv_mr>> register_pages(const Domain& domain, std::span<std::byte> memory, MemoryKind kind, bool remote) {
  const int flags = access_flags(domain, remote);
  if (kind == MemoryKind::kCuda) {
    Handle<ibv_mr> region = register_gpu(domain, memory, flags);
    if (region == nullptr) return explain_registration(errno, memory.size(), kind);
    return region;
  }
  Handle<ibv_mr> region(ibv_reg_mr(domain.pd.get(), memory.data(), memory.size(), flags));
  if (region == nullptr && errno == EFAULT && !remote) {
    // A read-only mapping can still be sent from.
    region.reset(ibv_reg_mr(domain.pd.get(), memory.data(), memory.size(), flags & ~IBV_ACCESS_LOCAL_WRITE));
    if (region == nullptr) errno = EFAULT;
  }
  if (region == nullptr) return explain_registration(errno, memory.size(), kind);
  return region;
}

Result<ibv_mr*> VerbsMemory::add(const std::shared_ptr<Domain>& domain, bool remote) const {
  std::erase_if(registrations_, [](const Registration& one) { return one.domain->ended; });
  Result<Handle<ibv_mr>> region = register_pages(*domain, {data, size}, kind_, remote);
  if (!region.ok()) return region.status();
  // Its pages are present and stay where they are.
  if (on_host) numa_node_ = numa_node_of_memory(data);
  registrations_.push_back({domain, remote, std::move(*region)});
  return registrations_.back().region.get();
}

}  // namespace genie::datapath::verbs
