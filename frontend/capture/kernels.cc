// Kernels: one boxed kernel for every operator that has no composite implementation, a few kernels of our own for what is
// geometry, bytes or identity and never leaves the client.
#include <ATen/EmptyTensor.h>
#include <ATen/ExpandUtils.h>
#include <ATen/native/DispatchStub.h>
#include <ATen/native/Resize.h>
#include <ATen/native/transformers/attention.h>
#include <ATen/ops/_fused_sdp_choice_native.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/eq.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_as_complex_native.h>
#include <ATen/ops/view_as_real_native.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Logging.h>
#include <c10/util/strides.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <memory>
#include <string_view>

#include "frontend/capture/copies.h"
#include "frontend/capture/recorder.h"
#include "frontend/capture/registration.h"
#include "frontend/capture/registry.h"
#include "frontend/device/backend.h"
#include "src/executor/guards.h"

namespace genie::frontend {
namespace {

c10::Device indexed(std::optional<c10::Device> device) {
  if (device.has_value() && device->has_index()) return *device;
  return {c10::DeviceType::PrivateUse1, static_cast<c10::DeviceIndex>(current_device())};
}

at::Tensor lazy_empty(at::IntArrayRef sizes, at::IntArrayRef strides, std::optional<at::ScalarType> dtype,
                      std::optional<at::Layout> layout, std::optional<at::Device> device) {
  TORCH_CHECK(!layout.has_value() || *layout == at::kStrided,
              "only strided tensors live on remote_accelerator; make a ", *layout, " tensor on the CPU");
  const c10::Device where = indexed(device);
  return make_lazy(core_of(where.index()), where, sizes, strides,
                   dtype.value_or(c10::get_default_dtype_as_scalartype()));
}

at::Tensor empty(at::IntArrayRef sizes, std::optional<at::ScalarType> dtype, std::optional<at::Layout> layout,
                 std::optional<at::Device> device, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  for (const int64_t size : sizes)
    TORCH_CHECK(size >= 0, "Trying to create tensor with negative dimension ", size, ": ", sizes);
  const auto wanted = format.value_or(at::MemoryFormat::Contiguous);
  if (wanted == at::MemoryFormat::ChannelsLast) {
    return lazy_empty(sizes, c10::get_channels_last_strides_2d(sizes), dtype, layout, device);
  }
  if (wanted == at::MemoryFormat::ChannelsLast3d) {
    return lazy_empty(sizes, c10::get_channels_last_strides_3d(sizes), dtype, layout, device);
  }
  return lazy_empty(sizes, c10::contiguous_strides(sizes), dtype, layout, device);
}

at::Tensor empty_strided(at::IntArrayRef sizes, at::IntArrayRef strides, std::optional<at::ScalarType> dtype,
                         std::optional<at::Layout> layout, std::optional<at::Device> device, std::optional<bool>) {
  at::detail::check_size_nonnegative(sizes);
  return lazy_empty(sizes, strides, dtype, layout, device);
}

at::Tensor& copy_(at::Tensor& self, const at::Tensor& source, bool non_blocking) {
  return copy_into(self, source, non_blocking);
}

at::Tensor copy_from(const at::Tensor& self, const at::Tensor& destination, bool non_blocking) {
  at::Tensor target = destination;
  return copy_into(target, self, non_blocking);
}

// The strides of a copy: in `format`, or those of the source where they leave no gaps and no overlaps.
c10::DimVector copied_strides(const at::Tensor& source, at::MemoryFormat format) {
  switch (format) {
    case at::MemoryFormat::ChannelsLast: return c10::DimVector(c10::get_channels_last_strides_2d(source.sizes()));
    case at::MemoryFormat::ChannelsLast3d: return c10::DimVector(c10::get_channels_last_strides_3d(source.sizes()));
    case at::MemoryFormat::Preserve:
      if (source.is_non_overlapping_and_dense()) return c10::DimVector(source.strides());
      return c10::DimVector(at::infer_dense_strides(source.sizes(), source.strides()));
    default: return c10::contiguous_strides(source.sizes());
  }
}

// .to(): to the CPU a fetch; on the device one record; a dtype change comes first, on the node.
at::Tensor to_copy(const at::Tensor& self, std::optional<at::ScalarType> dtype, std::optional<at::Layout> layout,
                   std::optional<at::Device> device, std::optional<bool> pin_memory, bool non_blocking,
                   std::optional<at::MemoryFormat> format) {
  TORCH_CHECK(!layout.has_value() || *layout == at::kStrided, "only strided tensors live on remote_accelerator");
  const c10::Device target = device.value_or(self.device());
  const bool same_dtype = !dtype.has_value() || *dtype == self.scalar_type();
  const bool keep = format.value_or(at::MemoryFormat::Preserve) == at::MemoryFormat::Preserve;
  if (target.is_cpu() && same_dtype && keep) return fetch(self);
  if (target.is_privateuseone() && (!target.has_index() || target.index() == self.device().index())) {
    static OpInfo& op = op_info("aten::_to_copy", "");
    torch::jit::Stack stack{self, dtype, c10::IValue(), c10::IValue(), c10::IValue(), non_blocking, format};
    record_call(op, stack);
    return stack.back().toTensor();
  }
  if (target.is_cpu()) return fetch(to_copy(self, dtype, layout, self.device(), pin_memory, false, format));
  TORCH_CHECK(target.is_privateuseone(), "cannot copy from ", self.device(), " to ", target, ": go through the CPU");
  at::Tensor made = empty_strided(self.sizes(), copied_strides(self, format.value_or(at::MemoryFormat::Preserve)),
                                  dtype.value_or(self.scalar_type()), layout, target, pin_memory);
  return copy_into(made, self, non_blocking);
}

at::Scalar local_scalar_dense(const at::Tensor& self) { return fetch(self).item(); }

bool is_set_to(const at::Tensor& self, const at::Tensor& other) {
  return self.storage().unsafeGetStorageImpl() == other.storage().unsafeGetStorageImpl() &&
         self.storage_offset() == other.storage_offset() && self.sizes() == other.sizes() &&
         self.strides() == other.strides();
}

bool equal(const at::Tensor& self, const at::Tensor& other) {
  if (self.sizes() != other.sizes()) return false;
  // As the CPU kernel does: one tensor compared with itself needs no value.
  if (is_set_to(self, other) && self.scalar_type() == other.scalar_type()) return true;
  return self.eq(other).all().item<bool>();
}

const at::Tensor& resize_(const at::Tensor& self, at::IntArrayRef sizes, std::optional<at::MemoryFormat> format) {
  auto* impl = self.unsafeGetTensorImpl();
  const uint64_t needed = at::detail::computeStorageNbytesContiguous(sizes, self.element_size(),
                                                                     static_cast<size_t>(self.storage_offset()));
  if (needed > self.storage().nbytes()) resize_storage(self.storage(), needed);
  if (impl->sizes() != sizes) impl->set_sizes_contiguous(sizes);
  if (format.has_value() && *format != at::MemoryFormat::Preserve) impl->empty_tensor_restride(*format);
  return self;
}

at::Tensor& set_source_storage(at::Tensor& self, at::Storage source, int64_t offset, at::IntArrayRef sizes,
                               at::IntArrayRef strides) {
  auto* impl = self.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(std::move(source));
  const auto wanted = strides.empty() && !sizes.empty() ? c10::contiguous_strides(sizes) : c10::DimVector(strides);
  const uint64_t needed =
      at::detail::computeStorageNbytes(sizes, wanted, self.element_size(), static_cast<size_t>(offset));
  if (needed > self.storage().nbytes()) resize_storage(self.storage(), needed);
  impl->set_sizes_and_strides(sizes, wanted, offset);
  return self;
}

at::Tensor& set_whole_storage(at::Tensor& self, at::Storage source) {
  const auto count = static_cast<int64_t>(source.nbytes() / self.element_size());
  return set_source_storage(self, std::move(source), 0, {count}, {});
}

at::Tensor& set_source_tensor(at::Tensor& self, const at::Tensor& source) {
  return set_source_storage(self, source.storage(), source.storage_offset(), source.sizes(), source.strides());
}

at::Tensor& set_empty(at::Tensor& self) {
  const at::Tensor fresh = empty({0}, self.scalar_type(), at::kStrided, self.device(), false, std::nullopt);
  return set_source_tensor(self, fresh);
}

bool shallow_copy_compatible(const at::Tensor&, const at::Tensor&) { return true; }

// Answers as the node's device would, so that attention stays one operator.
int64_t choose_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                         const std::optional<at::Tensor>& mask, double dropout, bool causal,
                         std::optional<double> scale, bool gqa) {
  return at::native::_fused_sdp_choice_cpp(query, key, value, mask, dropout, causal, scale, gqa);
}

// As CPU eager does it, from operators whose random numbers come from the device's generator.
at::Tensor dropout(const at::Tensor& input, double p, bool train) {
  TORCH_CHECK(p >= 0 && p <= 1, "dropout probability has to be between 0 and 1, but got ", p);
  if (p == 0 || !train || input.numel() == 0) return input;
  if (p == 1) return input.mul(at::zeros({}, input.options()));
  at::Tensor noise = at::empty_like(input);
  noise.bernoulli_(1 - p);
  noise.div_(1 - p);
  return input.mul(noise);
}

std::tuple<at::Tensor, at::Tensor> native_dropout(const at::Tensor& input, double p, std::optional<bool> train) {
  if (input.numel() == 0) return {input, at::empty_like(input)};
  if (train.has_value() && !*train) return {input.clone(), at::ones_like(input, input.options().dtype(at::kBool))};
  at::Tensor mask = at::empty_like(input, input.options().dtype(at::kBool));
  mask.bernoulli_(1 - p);
  return {input.mul(mask).mul_(p == 1 ? 0.0 : 1.0 / (1.0 - p)), mask};
}

// What the operator is to capture is worked out at its first call: most are never called.
class CaptureKernel final : public c10::OperatorKernel {
 public:
  void operator()(const c10::OperatorHandle& handle, c10::DispatchKeySet, torch::jit::Stack* stack) {
    OpInfo* op = op_.load(std::memory_order_acquire);
    if (op == nullptr) [[unlikely]]
      op = admit(handle);
    record_call(*op, *stack);
  }

 private:
  // What nodes do not run is refused where the program calls it, not at a flush later on.
  OpInfo* admit(const c10::OperatorHandle& handle) {
    const std::string_view refused = executor::refusal(handle.operator_name());
    TORCH_CHECK_NOT_IMPLEMENTED(refused.empty(), handle.operator_name(),
                                " does not run on remote_accelerator: ", refused,
                                ". Move its operands to the CPU for it");
    OpInfo* const op = &op_info(handle);
    op_.store(op, std::memory_order_release);
    return op;
  }

  std::atomic<OpInfo*> op_{nullptr};
};

// Operators whose default kernel is geometry, or a composition that we capture better piece by piece.
constexpr auto kLeftAlone = std::to_array<std::string_view>(
    {"aten::_conj", "aten::_copy_from_and_resize", "aten::_fused_sdp_choice", "aten::_fw_primal", "aten::_lazy_clone",
     "aten::_make_dual", "aten::_neg_view", "aten::_pin_memory", "aten::_unsafe_view", "aten::detach_",
     "aten::is_pinned", "aten::lift", "aten::lift_fresh", "aten::record_stream", "aten::result_type", "aten::set_data",
     "aten::unsafe_split", "aten::unsafe_split_with_sizes"});
static_assert(std::ranges::is_sorted(kLeftAlone));

bool is_view(const c10::OperatorHandle& op) {
  for (const auto& result : op.schema().returns()) {
    if (result.alias_info() != nullptr && !result.alias_info()->isWrite()) return true;
  }
  return op.hasTag(at::Tag::inplace_view);
}

// randn, rand_like, ...: random without saying by which generator. Whole, they would use the node's process-wide one; their
// pieces name ours.
bool is_random_composition(const c10::OperatorHandle& op) {
  if (!op.hasTag(at::Tag::nondeterministic_seeded)) return false;
  for (const auto& argument : op.schema().arguments()) {
    const c10::Type* type = argument.type().get();
    if (type->kind() == c10::TypeKind::OptionalType) type = type->expectRef<c10::OptionalType>().getElementType().get();
    if (type->kind() == c10::TypeKind::GeneratorType) return false;
  }
  return op.hasKernelForDispatchKey(c10::DispatchKey::CompositeExplicitAutograd);
}

// A composition is captured by its pieces, unless the CPU has a kernel for the whole (silu_backward): its numbers count.
bool is_composition(const c10::OperatorHandle& op) {
  return op.hasKernelForDispatchKey(c10::DispatchKey::CompositeImplicitAutograd) &&
         !op.hasKernelForDispatchKey(c10::DispatchKey::CPU);
}

bool wants_capture(const c10::OperatorHandle& op) {
  const std::string& name = op.operator_name().name;
  if (!name.starts_with("aten::") || is_composition(op)) return false;
  if (op.hasKernelForDispatchKey(c10::DispatchKey::PrivateUse1)) return false;  // one of its own
  if (std::ranges::binary_search(kLeftAlone, std::string_view(name)) || is_view(op) || is_random_composition(op))
    return false;
  for (const auto& result : op.schema().returns()) {
    const auto kind = result.type()->kind();
    if (kind != c10::TypeKind::TensorType && kind != c10::TypeKind::ListType) return false;
  }
  return true;
}

void register_own(torch::Library& library) {
  library.impl("dropout", TORCH_FN(dropout));
  library.impl("native_dropout", TORCH_FN(native_dropout));
  library.impl("empty.memory_format", TORCH_FN(empty));
  library.impl("empty_strided", TORCH_FN(empty_strided));
  library.impl("copy_", TORCH_FN(copy_));
  library.impl("_copy_from", TORCH_FN(copy_from));
  library.impl("_to_copy", TORCH_FN(to_copy));
  library.impl("_local_scalar_dense", TORCH_FN(local_scalar_dense));
  library.impl("equal", TORCH_FN(equal));
  library.impl("resize_", TORCH_FN(resize_));
  library.impl("set_.source_Storage", TORCH_FN(set_whole_storage));
  library.impl("set_.source_Storage_storage_offset", TORCH_FN(set_source_storage));
  library.impl("set_.source_Tensor", TORCH_FN(set_source_tensor));
  library.impl("set_", TORCH_FN(set_empty));
  library.impl("is_set_to", TORCH_FN(is_set_to));
  library.impl("_has_compatible_shallow_copy_type", TORCH_FN(shallow_copy_compatible));
  library.impl("as_strided", TORCH_FN(at::native::as_strided_tensorimpl));
  library.impl("unfold", TORCH_FN(at::native::unfold));
  library.impl("_reshape_alias", TORCH_FN(at::native::_reshape_alias));
  library.impl("view_as_real", TORCH_FN(at::native::view_as_real));
  library.impl("view_as_complex", TORCH_FN(at::native::view_as_complex));
}

}  // namespace

void register_kernels() {
  register_own(aten_library(c10::DispatchKey::PrivateUse1));
  aten_library(c10::DispatchKey::AutogradPrivateUse1).impl("dropout", TORCH_FN(dropout));
  for (const c10::OperatorHandle& op : defined_operators()) {
    if (!wants_capture(op)) continue;
    add_kernel(op.operator_name(), c10::DispatchKey::PrivateUse1,
               c10::KernelFunction::makeFromBoxedFunctor(std::make_unique<CaptureKernel>()));
  }
}

}  // namespace genie::frontend

namespace at::native {
REGISTER_PRIVATEUSE1_DISPATCH(_fused_sdp_choice_stub, &genie::frontend::choose_attention)
}  // namespace at::native
