#include "frontend/capture/typed_kernels.h"

#include <ATen/ops/_log_softmax_ops.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu_ops.h>
#include <ATen/ops/_softmax_backward_data_ops.h>
#include <ATen/ops/_softmax_ops.h>
#include <ATen/ops/add_ops.h>
#include <ATen/ops/addcdiv_ops.h>
#include <ATen/ops/addcmul_ops.h>
#include <ATen/ops/addmm_ops.h>
#include <ATen/ops/baddbmm_ops.h>
#include <ATen/ops/bmm_ops.h>
#include <ATen/ops/cat_ops.h>
#include <ATen/ops/clamp_ops.h>
#include <ATen/ops/clone_ops.h>
#include <ATen/ops/convolution_backward_ops.h>
#include <ATen/ops/convolution_ops.h>
#include <ATen/ops/div_ops.h>
#include <ATen/ops/embedding_dense_backward_ops.h>
#include <ATen/ops/embedding_ops.h>
#include <ATen/ops/exp_ops.h>
#include <ATen/ops/fill_ops.h>
#include <ATen/ops/gather_ops.h>
#include <ATen/ops/gelu_backward_ops.h>
#include <ATen/ops/gelu_ops.h>
#include <ATen/ops/index_select_ops.h>
#include <ATen/ops/lerp_ops.h>
#include <ATen/ops/log_ops.h>
#include <ATen/ops/masked_fill_ops.h>
#include <ATen/ops/max_pool2d_with_indices_ops.h>
#include <ATen/ops/mean_ops.h>
#include <ATen/ops/mm_ops.h>
#include <ATen/ops/mul_ops.h>
#include <ATen/ops/native_layer_norm_backward_ops.h>
#include <ATen/ops/native_layer_norm_ops.h>
#include <ATen/ops/neg_ops.h>
#include <ATen/ops/pow_ops.h>
#include <ATen/ops/reciprocal_ops.h>
#include <ATen/ops/relu_ops.h>
#include <ATen/ops/rsqrt_ops.h>
#include <ATen/ops/sigmoid_ops.h>
#include <ATen/ops/silu_ops.h>
#include <ATen/ops/sqrt_ops.h>
#include <ATen/ops/sub_ops.h>
#include <ATen/ops/sum_ops.h>
#include <ATen/ops/tanh_ops.h>
#include <ATen/ops/threshold_backward_ops.h>
#include <ATen/ops/where_ops.h>
#include <ATen/ops/zero_ops.h>

#include "frontend/capture/registration.h"

namespace genie::frontend {
namespace {

template <class... Ops>
struct OpList {
  static void register_all() { (register_one<Ops>(), ...); }

 private:
  template <class Op>
  static void register_one() {
    add_kernel({Op::name, Op::overload_name}, c10::DispatchKey::PrivateUse1,
               c10::KernelFunction::makeFromUnboxedFunction(TORCH_FN(typed::Kernel<Op>::call)),
               c10::impl::CppSignature::make<typename Op::schema>());
  }
};

using Hot =
    OpList<at::_ops::add_Tensor, at::_ops::add__Tensor, at::_ops::add_Scalar, at::_ops::sub_Tensor,
           at::_ops::sub__Tensor, at::_ops::mul_Tensor, at::_ops::mul__Tensor, at::_ops::mul_Scalar,
           at::_ops::div_Tensor, at::_ops::div__Tensor, at::_ops::mm, at::_ops::bmm, at::_ops::addmm, at::_ops::baddbmm,
           at::_ops::cat, at::_ops::embedding, at::_ops::index_select, at::_ops::gather, at::_ops::where_self,
           at::_ops::masked_fill_Scalar, at::_ops::_softmax, at::_ops::_log_softmax, at::_ops::native_layer_norm,
           at::_ops::gelu, at::_ops::relu, at::_ops::relu_, at::_ops::sigmoid, at::_ops::tanh, at::_ops::silu,
           at::_ops::silu_, at::_ops::exp, at::_ops::log, at::_ops::sqrt, at::_ops::rsqrt, at::_ops::neg,
           at::_ops::reciprocal, at::_ops::pow_Tensor_Scalar, at::_ops::addcmul_, at::_ops::addcdiv_,
           at::_ops::lerp__Scalar, at::_ops::clamp, at::_ops::zero_, at::_ops::fill__Scalar, at::_ops::clone,
           at::_ops::convolution, at::_ops::max_pool2d_with_indices, at::_ops::mean_dim, at::_ops::sum,
           at::_ops::sum_dim_IntList, at::_ops::_scaled_dot_product_flash_attention_for_cpu, at::_ops::gelu_backward,
           at::_ops::threshold_backward, at::_ops::_softmax_backward_data, at::_ops::native_layer_norm_backward,
           at::_ops::convolution_backward, at::_ops::embedding_dense_backward>;

}  // namespace

void register_typed_kernels() { Hot::register_all(); }

}  // namespace genie::frontend
