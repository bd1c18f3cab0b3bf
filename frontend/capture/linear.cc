// linear: one record, and one autograd node where a gradient is needed.
//
// PyTorch reaches a device's linear as view, transpose, addmm (or mm) and view, with a node of autograd for each. Here the
// operator travels whole. Its node keeps input and weight and issues in its backward what the nodes of those pieces would, in
// the same order and layouts, so that gradients are the same bits as CPU eager's; being made of differentiable operators, it
// can be differentiated again. What is rare (other layouts, forward-mode derivatives, complex numbers) is left to the pieces.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/linear_native.h>
#include <ATen/ops/linear_ops.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/node.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/library.h>

#include <mutex>

#include "frontend/capture/registration.h"
#include "frontend/capture/typed_kernels.h"
#include "frontend/capture/watchers.h"

namespace genie::frontend {
namespace {

using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

// The typed kernel itself: below autograd there is nothing between.
at::Tensor record_linear(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias) {
  return typed::Kernel<at::_ops::linear>::call(input, weight, bias);
}

// The CPU multiplies an input with gaps in another way, to other bits, when the weight is one that learns, also where no
// gradient is recorded. The node does not know which weights learn.
bool goes_by_pieces(const at::Tensor& input, const at::Tensor& weight) {
  return input.dim() > 2 && weight.defined() && weight.requires_grad() && !input.is_contiguous();
}

// Where autograd has nothing to say: in inference mode.
at::Tensor linear_without_autograd(const at::Tensor& input, const at::Tensor& weight,
                                   const std::optional<at::Tensor>& bias) {
  if (goes_by_pieces(input, weight)) [[unlikely]]
    return at::native::linear(input, weight, bias);
  return record_linear(input, weight, bias);
}

// As autograd's formulas for mm ask it: such a factor gets its gradient in its own layout.
bool is_column_major(at::IntArrayRef sizes, at::IntArrayRef strides) {
  return strides[0] == 1 && strides[1] == sizes[0];
}

class LinearBackward final : public torch::autograd::Node {
 public:
  LinearBackward(torch::autograd::edge_list edges, const at::Tensor& input, const at::Tensor& weight)
      : Node(std::move(edges)), input_(input, false), weight_(weight, false) {}

  std::string name() const override { return "LinearBackward"; }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    input_.reset_data();
    weight_.reset_data();
  }

  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    variable_list out(3);
    if (!grads[0].defined()) return out;
    const at::Tensor input = input_.unpack();
    const at::Tensor weight = weight_.unpack();
    const int64_t width = input.size(-1);
    const at::Tensor rows = input.dim() == 2 ? input : input.view({-1, width});
    const at::Tensor grad = input.dim() == 2 ? grads[0] : grads[0].reshape({rows.size(0), weight.size(0)});
    if (task_should_compute_output(0)) {
      const at::Tensor mine =
          is_column_major(rows.sizes(), rows.strides()) ? weight.t().mm(grad.t()).t() : grad.mm(weight);
      out[0] = input.dim() == 2 ? mine : mine.reshape(input.sizes());
    }
    if (task_should_compute_output(1)) {
      const at::Tensor factor = weight.t();
      out[1] = is_column_major(factor.sizes(), factor.strides()) ? grad.t().mm(rows) : rows.t().mm(grad).t();
    }
    // The engine sums it to the bias's shape, as it does for addmm.
    if (task_should_compute_output(2)) out[2] = grad;
    return out;
  }

 private:
  SavedVariable input_;
  SavedVariable weight_;
};

// Where PyTorch's pieces are exactly: rows = input as a matrix, then addmm or mm with the transposed weight.
bool is_plain(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& bias) {
  const bool matrix = input.dim() == 2 || (input.dim() == 3 && input.is_contiguous());
  return matrix && weight.dim() == 2 && input.numel() != 0 && weight.numel() != 0 && !input.is_complex() &&
         input.device().is_privateuseone() && weight.device().is_privateuseone() &&
         input.scalar_type() == weight.scalar_type() && input.size(-1) == weight.size(1) &&
         (!bias.defined() ||
          (bias.dim() == 1 && bias.size(0) == weight.size(0) && bias.scalar_type() == input.scalar_type()));
}

at::Tensor linear_with_autograd(const at::Tensor& input, const at::Tensor& weight,
                                const std::optional<at::Tensor>& bias) {
  const at::Tensor offset = bias.has_value() ? *bias : at::Tensor();
  const auto operands = {&input, &weight, &offset};
  if (has_forward_grad(operands) || is_watched(operands) || goes_by_pieces(input, weight))
    return at::native::linear(input, weight, bias);
  if (!wants_gradient(operands)) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    return record_linear(input, weight, bias);
  }
  if (!is_plain(input, weight, offset)) return at::native::linear(input, weight, bias);
  const auto node =
      c10::make_intrusive<LinearBackward>(torch::autograd::collect_next_edges(input, weight, offset), input, weight);
  at::Tensor result;
  {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    result = record_linear(input, weight, bias);
  }
  torch::autograd::set_history(result, node);
  return result;
}

}  // namespace

void register_linear() {
  aten_library(c10::DispatchKey::AutogradPrivateUse1).impl("linear", TORCH_FN(linear_with_autograd));
  aten_library(c10::DispatchKey::PrivateUse1).impl("linear", TORCH_FN(linear_without_autograd));
}

}  // namespace genie::frontend
