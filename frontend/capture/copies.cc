#include "frontend/capture/copies.h"

#include <ATen/ExpandUtils.h>
#include <ATen/ops/clone.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/InferenceMode.h>

#include <array>
#include <cstring>
#include <mutex>

#include "frontend/capture/recorder.h"
#include "frontend/capture/registry.h"
#include "frontend/device/pinned.h"
#include "src/protocol/content.h"

namespace genie::frontend {
namespace {

SessionCore& core_of_tensor(const at::Tensor& tensor) { return *usable_state(tensor).session; }

// Whether `tensor` covers its storage exactly, so that an upload may become the storage's first content.
bool covers_storage(const at::Tensor& tensor) {
  return tensor.storage_offset() == 0 && tensor.is_non_overlapping_and_dense() &&
         static_cast<uint64_t>(tensor.numel()) * tensor.element_size() == tensor.storage().nbytes() &&
         !tensor.is_conj() && !tensor.is_neg();
}

// The source's bytes are those that the target's storage is to have.
bool is_laid_as(const at::Tensor& target, const at::Tensor& source) {
  return source.scalar_type() == target.scalar_type() && source.sizes() == target.sizes() &&
         source.strides() == target.strides() && !source.is_conj() && !source.is_neg();
}

// Writes `source` into network-ready memory laid out as `target`: the one pass. None, where the node has the bytes.
std::unique_ptr<session::Upload> snapshot(SessionCore& core, const at::Tensor& target, const at::Tensor& source) {
  const size_t size_bytes = target.storage().nbytes();
  const auto write = [&](std::span<std::byte> bytes) {
    const c10::InferenceMode plain;
    at::Tensor written = at::from_blob(bytes.data(), target.sizes(), target.strides(),
                                       at::TensorOptions(target.scalar_type()).device(at::kCPU));
    written.copy_(source);
    core.counters().snapshot_bytes.fetch_add(size_bytes, std::memory_order_relaxed);
  };
  Result<std::unique_ptr<session::Upload>> memory = [&] {
    if (size_bytes >= wire::kMinContentBytes && is_laid_as(target, source)) {
      return core.link().snapshot({static_cast<const std::byte*>(source.const_data_ptr()), size_bytes}, write);
    }
    Result<std::unique_ptr<session::Upload>> begun = core.link().begin_upload(size_bytes);
    if (begun) write((*begun)->bytes());
    return begun;
  }();
  if (!memory.ok()) throw Error(memory.status());
  return std::move(*memory);
}

// Pinned memory that the program promised to leave alone until it has synchronized: the bytes themselves, where the node can
// read them. Null when they have to be written anew.
std::unique_ptr<session::Upload> lend(SessionCore& core, const at::Tensor& target, const at::Tensor& source) {
  constexpr uintptr_t kAlignment = 64;  // of memory that libtorch allocates
  const void* const data = source.const_data_ptr();
  if (!is_laid_as(target, source) || reinterpret_cast<uintptr_t>(data) % kAlignment != 0 || !is_pinned_address(data))
    return nullptr;
  return core.link().lend_upload({static_cast<std::byte*>(const_cast<void*>(data)), target.storage().nbytes()},
                                 std::make_shared<c10::Storage>(source.storage()));
}

// What is lent and still waits to be sent is written anew: the program synchronizes without sending it, and may reuse its
// memory afterwards.
void settle_lent(SessionCore& core, Stream& stream) {
  const std::lock_guard<SpinLock> guard(stream.lock);
  for (PendingUpload& upload : stream.uploads) {
    if (!upload.memory->lent()) continue;
    const std::span<const std::byte> bytes = upload.memory->bytes();
    auto memory = core.link().begin_upload(bytes.size());
    if (!memory.ok()) throw Error(memory.status());
    std::memcpy((*memory)->bytes().data(), bytes.data(), bytes.size());
    core.counters().snapshot_bytes.fetch_add(bytes.size(), std::memory_order_relaxed);
    upload.memory = std::move(*memory);
  }
}

// Makes `source` the first content of the target's storage.
void upload_into_fresh(SessionCore& core, const at::Tensor& target, const at::Tensor& source, bool non_blocking) {
  if (const Status forked = check_fork(); !forked.ok()) throw Error(forked);
  StorageState& state = usable_state(target);
  const size_t size_bytes = target.storage().nbytes();
  std::unique_ptr<session::Upload> memory = non_blocking ? lend(core, target, source) : nullptr;
  if (memory == nullptr) memory = snapshot(core, target, source);
  Stream& stream = core.current_stream();
  bool full = false;
  {
    const std::lock_guard<SpinLock> guard(stream.lock);
    state.on_node = true;
    state.defined.store(true, std::memory_order_relaxed);
    state.writer.store(stream.open.number, std::memory_order_release);
    stream.slot_of(&state);
    stream.uploads.push_back({StateRef(&state), std::move(memory)});
    stream.upload_bytes += size_bytes;
    full = stream.upload_bytes >= core.limits().max_upload_bytes;
  }
  if (full) core.flush(stream, FlushReason::kLimit);
}

at::Tensor& upload_into(at::Tensor& self, const at::Tensor& source, bool non_blocking) {
  SessionCore& core = core_of_tensor(self);
  StorageState& state = usable_state(self);
  const at::Tensor expanded = source.sizes() == self.sizes() ? source : source.expand(self.sizes());
  if (self.numel() == 0) return self;
  if (!state.defined && covers_storage(self)) {
    upload_into_fresh(core, self, expanded, non_blocking);
    return self;
  }
  const at::Tensor staged = upload_copy(core, self.device(), source);
  static OpInfo& op = op_info("aten::copy_", "");
  torch::jit::Stack stack{self, staged, false};
  record_call(op, stack);
  return self;
}

void drop_fetched(void* context) { delete static_cast<session::Fetched*>(context); }

}  // namespace

// Several threads of a parallel loop may come here at once with one storage; whoever comes late finds nothing left to do.
void claim_fetched(c10::StorageImpl* storage) {
  static std::array<std::mutex, 16> locks;
  const std::lock_guard<std::mutex> guard(locks[(reinterpret_cast<uintptr_t>(storage) >> 6) % locks.size()]);
  const c10::DataPtr& pointer = storage->_mutable_data_ptr_no_checks();
  auto* fetched = pointer.cast_context<session::Fetched>(&drop_fetched);
  if (fetched == nullptr || fetched->claim()) return;  // other memory since a resize_
  c10::DataPtr own = storage->allocator()->allocate(storage->nbytes());
  std::memcpy(own.mutable_get(), pointer.get(), storage->nbytes());
  storage->set_data_ptr_noswap(std::move(own));
}

bool is_fetched(const c10::StorageImpl& storage) { return storage.data_ptr().get_deleter() == &drop_fetched; }

namespace {

// Over the fetched memory; the tensor owns it.
at::Tensor tensor_over(std::unique_ptr<session::Fetched> fetched, const at::Tensor& like) {
  const std::span<std::byte> bytes = fetched->bytes();
  c10::DataPtr pointer(bytes.data(), fetched.release(), &drop_fetched, at::Device(at::kCPU));
  c10::Storage storage(c10::Storage::use_byte_size_t(), static_cast<int64_t>(bytes.size()), std::move(pointer),
                       c10::GetCPUAllocator(), /*resizable=*/true);
  storage.unsafeGetStorageImpl()->set_materializer(&claim_fetched);
  auto tensor = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), c10::DispatchKeySet(c10::DispatchKey::CPU),
                                                         c10::scalarTypeToTypeMeta(like.scalar_type()));
  tensor.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides());
  return tensor;
}

at::Tensor fetch_dense(const at::Tensor& remote, FlushReason reason) {
  StorageState& state = usable_state(remote);
  SessionCore& core = *state.session;
  const auto options = at::TensorOptions(remote.scalar_type()).device(at::kCPU);
  // Empty, or nobody ever wrote it: torch::empty promises nothing about its content.
  if (remote.numel() == 0 || !state.defined) return at::empty_strided(remote.sizes(), remote.strides(), options);
  Stream& stream = core.current_stream();
  core.order_touch(stream, state, false);
  const Wanted wanted{&state, static_cast<uint64_t>(remote.storage_offset()) * remote.element_size(),
                      static_cast<uint64_t>(remote.numel()) * remote.element_size()};
  std::shared_ptr<session::Ticket> ticket;
  try {
    ticket = core.flush(stream, reason, wanted);
    core.wait(*ticket);
  } catch (...) {
    settle_lent(core, stream);  // the program is told of an error now, and may reuse its memory too
    throw;
  }
  settle_lent(core, stream);
  session::Outcome& outcome = ticket->outcome();
  (void)usable_state(remote);  // throws when what was to write it failed
  if (outcome.fetch_status.empty() || outcome.fetched.empty()) throw Error(outcome.status);
  if (!outcome.fetch_status[0].ok()) throw Error(outcome.fetch_status[0]);
  return tensor_over(std::move(outcome.fetched[0]), remote);
}

}  // namespace

at::Tensor upload_copy(SessionCore& core, c10::Device device, const at::Tensor& source) {
  TORCH_CHECK(source.layout() == at::kStrided,
              "only strided tensors can go to remote_accelerator; convert with .to_dense() first");
  const auto strides = source.is_non_overlapping_and_dense()
                           ? source.strides().vec()
                           : at::infer_dense_strides(source.sizes(), source.strides());
  at::Tensor target = make_lazy(core, device, source.sizes(), strides, source.scalar_type());
  if (target.numel() > 0) upload_into_fresh(core, target, source, /*non_blocking=*/false);
  return target;
}

at::Tensor fetch(const at::Tensor& remote, FlushReason reason) {
  at::Tensor plain = remote;
  if (plain.is_conj()) plain = plain.resolve_conj();
  if (plain.is_neg()) plain = plain.resolve_neg();
  if (!plain.is_non_overlapping_and_dense()) plain = at::clone(plain, at::MemoryFormat::Preserve);
  return fetch_dense(plain, reason);
}

at::Tensor& copy_into(at::Tensor& self, const at::Tensor& source, bool non_blocking) {
  if (self.is_same(source)) return self;
  if (self.device().is_cpu()) {
    const at::Tensor value = fetch(source);
    if (SessionCore* core = find_core(source.device().index())) {
      core->counters().user_copied_bytes.fetch_add(value.nbytes(), std::memory_order_relaxed);
    }
    return self.copy_(value);
  }
  TORCH_CHECK(self.device().is_privateuseone(), "cannot copy from ", source.device(), " to ", self.device(),
              ": go through the CPU");
  if (source.device().is_privateuseone() && usable_state(source).session != usable_state(self).session) {
    return upload_into(self, fetch(source), /*non_blocking=*/false);  // another session's node: through this process
  }
  if (source.device().is_privateuseone()) {
    static OpInfo& op = op_info("aten::copy_", "");
    torch::jit::Stack stack{self, source, non_blocking};
    record_call(op, stack);
    return self;
  }
  TORCH_CHECK(source.device().is_cpu(), "cannot copy from ", source.device(), " to ", self.device(),
              ": go through the CPU");
  return upload_into(self, source, non_blocking);
}

}  // namespace genie::frontend
