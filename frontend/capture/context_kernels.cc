// What an open capture does with an operator call, above autograd: it gives factories their device, lifts CPU operands, and
// writes results back into CPU tensors. Below it everything is as if the program had named the device itself.
//
// The kernel is the fallback of the dispatch key DeferredInit, which only threads with an open capture include: nobody else's calls
// come here. While a call is served the key is excluded, so that kernels that run on the CPU find plain PyTorch.
#include <ATen/native/Resize.h>
#include <ATen/ops/as_strided.h>
#include <ATen/ops/empty_strided.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/graph_task.h>

#include "frontend/capture/context.h"
#include "frontend/capture/copies.h"
#include "frontend/capture/lift.h"
#include "frontend/capture/op_context.h"
#include "frontend/capture/registration.h"
#include "frontend/capture/registry.h"

namespace genie::frontend {
namespace {

using c10::DispatchKey;

enum class Access : uint8_t { kRead, kWrite, kOut };

struct Operand {
  at::Tensor original;  // the program's, on the CPU
  at::Tensor stand_in;  // on the device
  bool is_out = false;  // overwritten: its size is the operator's to choose
};

constexpr c10::DispatchKeySet kBelow(c10::DispatchKeySet::FULL_AFTER, DispatchKey::DeferredInit);

// The CPU tensor that torch::tensor({...}) has made and fills; see ends_torch_tensor().
thread_local const c10::TensorImpl* filled_tensor = nullptr;

bool in_backward() { return torch::autograd::get_current_graph_task_id() != -1; }

c10::Device factory_device() {
  if (const CaptureState* capture = current_capture()) return capture->device;
  // A thread of autograd, which works for a capturing one.
  return {c10::DeviceType::PrivateUse1, static_cast<c10::DeviceIndex>(current_device())};
}

// Calls `visit` with every tensor among the arguments but those that stay on the client.
template <class Visit>
void each_tensor(const OpContext& info, c10::ArrayRef<c10::IValue> args, Visit visit) {
  for (size_t i = 0; i < args.size(); ++i) {
    const c10::IValue& arg = args[i];
    if (static_cast<int>(i) == info.host) continue;
    if (arg.isTensor()) {
      visit(arg.toTensor());
    } else if (arg.isTensorList()) {
      for (const at::Tensor& tensor : arg.toTensorList()) visit(tensor);
    } else if (arg.isOptionalTensorList()) {
      for (const std::optional<at::Tensor>& tensor : arg.toOptionalTensorList()) {
        if (tensor.has_value()) visit(*tensor);
      }
    }
  }
}

class ContextCall {
 public:
  ContextCall(const c10::OperatorHandle& op, const OpContext& info, torch::jit::Stack& stack)
      : op_(op), info_(info), stack_(stack), count_(op.schema().arguments().size()) {}

  // Whether the call changed: it is then to be dispatched anew, and finish()ed.
  bool prepare() {
    const bool fetched = bring_host_argument();
    survey();
    if (info_.device >= 0) {
      if (!arg(info_.device).isNone() || !place_factory()) return fetched;
      if (info_.like) return true;
    }
    if (!on_cpu_) return fetched || info_.device >= 0;
    const bool lifts_alone = info_.device >= 0 || (info_.lifts_alone && !has_cpu_generator() && !in_backward());
    if (!on_remote_ && !lifts_alone) return fetched;
    target_ = on_remote_ ? remote_ : factory_device();
    for (size_t i = 0; i < count_; ++i) replace(i);
    return fetched || !lifted_.empty() || !written_.empty() || info_.device >= 0;
  }

  void finish() {
    for (auto& [original, stand_in, is_out] : written_) {
      if (is_out) at::native::resize_output(original, stand_in.sizes());
      original.copy_(stand_in);
    }
    const size_t results = op_.schema().returns().size();
    for (size_t i = stack_.size() - results; i < stack_.size(); ++i) restore(stack_[i]);
  }

 private:
  c10::IValue& arg(size_t i) { return stack_[stack_.size() - count_ + i]; }
  c10::ArrayRef<c10::IValue> args() const { return torch::jit::last(stack_, count_); }

  // Whether it was on the device, as torch::tensor({...}) is.
  bool bring_host_argument() {
    if (info_.host < 0 || !arg(info_.host).isTensor()) return false;
    const at::Tensor& tensor = arg(info_.host).toTensor();
    if (!tensor.defined() || !tensor.device().is_privateuseone()) return false;
    arg(info_.host) = tensor.cpu();
    return true;
  }

  void survey() {
    each_tensor(info_, args(), [this](const at::Tensor& tensor) {
      if (!tensor.defined()) return;
      if (tensor.device().is_privateuseone()) {
        on_remote_ = true;
        remote_ = tensor.device();
      } else if (can_lift(tensor) && !tensor.unsafeGetTensorImpl()->is_wrapped_number()) {
        on_cpu_ = true;
      }
    });
  }

  bool has_cpu_generator() {
    if (info_.generator < 0 || !arg(info_.generator).isGenerator()) return false;
    const at::Generator generator = arg(info_.generator).toGenerator();
    return generator.defined() && generator.device().is_cpu();
  }

  // A factory without a device: false where it stays on the CPU all the same, or follows an operand.
  bool place_factory() {
    if (info_.pin_memory >= 0 && arg(info_.pin_memory).isBool() && arg(info_.pin_memory).toBool()) return false;
    if (info_.layout >= 0 && arg(info_.layout).isInt() && arg(info_.layout).toLayout() != at::kStrided) return false;
    if (has_cpu_generator()) return false;
    if (info_.like && (on_remote_ || !on_cpu_ || in_backward())) return false;
    arg(info_.device) = on_remote_ ? remote_ : factory_device();
    return true;
  }

  bool writes(size_t i) {
    if (info_.writes[i]) return true;
    return info_.stats_mode >= 0 && (i == 3 || i == 4) && arg(info_.stats_mode).toBool();
  }

  void replace(size_t i) {
    if (static_cast<int>(i) == info_.host) return;
    const Access access = info_.outs[i] ? Access::kOut : writes(i) ? Access::kWrite : Access::kRead;
    c10::IValue& value = arg(i);
    if (value.isTensor()) {
      at::Tensor stand_in = stand_in_for(value.toTensor(), access);
      if (stand_in.defined()) value = std::move(stand_in);
    } else if (value.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor& tensor : value.toTensorList()) {
        at::Tensor stand_in = stand_in_for(tensor, access);
        list.push_back(stand_in.defined() ? stand_in : tensor);
      }
      value = std::move(list);
    } else if (value.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> list;
      for (const std::optional<at::Tensor>& tensor : value.toOptionalTensorList()) {
        at::Tensor stand_in = tensor.has_value() ? stand_in_for(*tensor, access) : at::Tensor();
        list.push_back(stand_in.defined() ? std::optional<at::Tensor>(stand_in) : tensor);
      }
      value = std::move(list);
    }
  }

  // Undefined: the operand stays.
  at::Tensor stand_in_for(const at::Tensor& tensor, Access access) {
    if (!can_lift(tensor) || tensor.unsafeGetTensorImpl()->is_wrapped_number()) return {};
    if (access != Access::kRead) {
      const bool is_out = access == Access::kOut;
      written_.push_back({tensor, is_out ? blank(tensor) : lift(tensor, target_).clone(), is_out});
      return written_.back().stand_in;
    }
    if (on_remote_ && info_.takes_numbers && tensor.dim() == 0 && !tensor.requires_grad()) return {};
    lifted_.push_back({tensor, lift(tensor, target_)});
    return lifted_.back().stand_in;
  }

  at::Tensor blank(const at::Tensor& like) const {
    return at::empty_strided(like.sizes(), like.strides(), like.options().device(target_));
  }

  // An operator that hands an operand on, or a view of one, hands on the program's own.
  at::Tensor original_of(const at::Tensor& result) const {
    for (const Operand& written : written_) {
      if (result.is_same(written.stand_in)) return written.original;
    }
    for (const auto& [original, stand_in, is_out] : lifted_) {
      if (result.is_same(stand_in)) return original;
      // What was sent without its gaps has other strides: its views say nothing about the program's memory.
      const bool view = result.has_storage() && result.storage().is_alias_of(stand_in.storage()) &&
                        stand_in.sizes() == original.sizes() && stand_in.strides() == original.strides();
      if (view && result.scalar_type() == original.scalar_type() && result.is_conj() == original.is_conj() &&
          result.is_neg() == original.is_neg()) {
        const int64_t moved = result.storage_offset() - stand_in.storage_offset();
        return original.as_strided(result.sizes(), result.strides(), original.storage_offset() + moved);
      }
    }
    return {};
  }

  void restore(c10::IValue& value) const {
    if (value.isTensor()) {
      if (!value.toTensor().defined()) return;
      at::Tensor original = original_of(value.toTensor());
      if (original.defined()) value = std::move(original);
    } else if (value.isTensorList()) {
      c10::List<at::Tensor> list = value.toTensorList();
      for (size_t i = 0; i < list.size(); ++i) {
        const at::Tensor result = list.get(i);
        at::Tensor original = result.defined() ? original_of(result) : at::Tensor();
        if (original.defined()) list.set(i, std::move(original));
      }
    }
  }

  const c10::OperatorHandle& op_;
  const OpContext& info_;
  torch::jit::Stack& stack_;
  const size_t count_;
  bool on_remote_ = false;
  bool on_cpu_ = false;
  c10::Device remote_{c10::DeviceType::PrivateUse1};
  c10::Device target_{c10::DeviceType::PrivateUse1};
  c10::SmallVector<Operand, 4> lifted_;
  c10::SmallVector<Operand, 2> written_;
};

// torch::tensor({...}) is an inline function: it makes a CPU tensor below autograd but above ADInplaceOrView, which nothing else
// does, fills it element by element, and moves it to its device, the CPU where none was given.
void watch_torch_tensor(const c10::OperatorHandle& op, const OpContext& info, const torch::jit::Stack& stack) {
  const auto excluded = c10::impl::tls_local_dispatch_key_set().excluded_;
  const bool begins = excluded.has(DispatchKey::AutogradOther) && !excluded.has(DispatchKey::ADInplaceOrView) &&
                      op.operator_name().name == "aten::empty" && stack.back().isTensor();
  if (begins) {
    filled_tensor = stack.back().toTensor().unsafeGetTensorImpl();
  } else if (filled_tensor != nullptr && !info.fills_tensor) {
    filled_tensor = nullptr;
  }
}

bool ends_torch_tensor(const torch::jit::Stack& stack, size_t arguments) {
  const auto args = torch::jit::last(stack, arguments);
  const bool ends = filled_tensor != nullptr && args[0].toTensor().unsafeGetTensorImpl() == filled_tensor &&
                    args[3].isDevice() && args[3].toDevice().is_cpu();
  filled_tensor = nullptr;
  return ends;
}

void run_in_context(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) {
  // Another thread may have ended the capture.
  if (current_capture() == nullptr && !in_backward()) [[unlikely]]
    return op.redispatchBoxed(keys & kBelow, stack);
  const OpContext& info = op_context(op);
  if (info.way == ContextWay::kOpen) return op.redispatchBoxed(keys & kBelow, stack);
  const c10::impl::ExcludeDispatchKeyGuard plain(DispatchKey::DeferredInit);
  if (info.way == ContextWay::kLifted) {
    ContextCall call(op, info, *stack);
    if (call.prepare()) {
      filled_tensor = nullptr;
      op.callBoxed(stack);
      return call.finish();
    }
  } else if (info.way == ContextWay::kTo && ends_torch_tensor(*stack, op.schema().arguments().size())) {
    const c10::Device device = factory_device();
    at::Tensor made = upload_copy(core_of(device.index()), device, torch::jit::last(*stack, 8)[0].toTensor());
    torch::jit::drop(*stack, op.schema().arguments().size());
    stack->emplace_back(std::move(made));
    return;
  }
  op.redispatchBoxed(keys & kBelow, stack);
  watch_torch_tensor(op, info, *stack);
}

}  // namespace

void register_context_kernels() {
  add_fallback(DispatchKey::DeferredInit, c10::KernelFunction::makeFromBoxedFunction<&run_in_context>());
}

}  // namespace genie::frontend
