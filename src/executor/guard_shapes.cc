// Kernels that take the shapes of what a forward pass made, or of a layer's weights, on trust.
#include <ATen/ExpandUtils.h>
#include <ATen/ops/isfinite.h>

#include <algorithm>
#include <array>

#include "src/executor/guard_operands.h"
#include "src/executor/guard_tables.h"

namespace genie::executor {
namespace {

using Stack = torch::jit::Stack;

// (grad_output, output, ...)
void softmax_backward(const Stack& stack) {
  const Operands call(stack);
  want_same_sizes(call.tensor(0), call.tensor(1), "the gradient and the result have different sizes");
}

void masked_softmax_backward(const Stack& stack) {
  softmax_backward(stack);
  const Operands call(stack);
  want_same_sizes(call.tensor(0), call.tensor(2), "the mask has other sizes than the gradient");
}

// (self, mask, dim, mask_type): one mask for all rows and columns, one per batch, or one per element.
void masked_softmax(const Stack& stack) {
  const Operands call(stack);
  const at::Tensor& self = call.tensor(0);
  const at::Tensor& mask = call.tensor(1);
  const int64_t type = call.none(3) ? 2 : call.number(3);
  if (type == 2) {
    want_same_sizes(mask, self, "the mask has other sizes than the input");
    return;
  }
  want(self.dim() == 4 && mask.dim() == 2 && (type == 0 || type == 1), "a wrong rank, or an unknown kind of mask");
  want(mask.size(0) == self.size(type == 0 ? 2 : 0) && mask.size(1) == self.size(3),
       "the mask has other sizes than the input");
}

// (grad_output, self, ...): pooling over the last `kTail` dimensions.
template <int kTail>
void pool_backward(const Stack& stack) {
  const Operands call(stack);
  want(call.tensor(0).dim() == kTail + 1 || call.tensor(0).dim() == kTail + 2, "the gradient has a wrong rank");
  want_same_leading(call.tensor(0), call.tensor(1), kTail, "batch or channels of the gradient differ from the input's");
  want(trailing_elements(call.tensor(1), kTail) > 0, "the input is empty");
}

// (grad_output, self, padding): two numbers for each padded dimension, the last dimension's first.
template <int kTail>
void pad_backward(const Stack& stack) {
  const Operands call(stack);
  const at::Tensor& grad = call.tensor(0);
  const at::Tensor& self = call.tensor(1);
  const auto padding = call.numbers(2);
  want(padding.size() == 2 * kTail, "two numbers per padded dimension");
  want(grad.dim() == kTail + 1 || grad.dim() == kTail + 2, "the gradient has a wrong rank");
  want_same_leading(grad, self, kTail, "batch or channels of the gradient differ from the input's");
  want(grad.scalar_type() == self.scalar_type(), "the dtypes differ");
  for (size_t i = 0; i < kTail; ++i) {
    const int64_t size = self.size(-1 - static_cast<int64_t>(i));
    constexpr int64_t kMost = int64_t{1} << 40;
    for (const int64_t pad : {padding[2 * i], padding[2 * i + 1]})
      want(pad > -kMost && pad < kMost, "a padding is too large");
    want(size > 0 && grad.size(-1 - static_cast<int64_t>(i)) == size + padding[2 * i] + padding[2 * i + 1],
         "the gradient has other sizes than the padded input");
  }
}

// Mirrors at most the whole input.
template <int kTail>
void reflection_backward(const Stack& stack) {
  pad_backward<kTail>(stack);
  const Operands call(stack);
  for (size_t i = 0; i < 2 * kTail; ++i)
    want(call.numbers(2)[i] < call.tensor(1).size(-1 - static_cast<int64_t>(i / 2)), "a padding is too large");
}

// (grad_in, input_sizes, dim, size, step)
void unfold_backward(const Stack& stack) {
  const Operands call(stack);
  const auto sizes = call.numbers(1);
  const int64_t size = call.number(3);
  const int64_t step = call.number(4);
  const auto rank = static_cast<int64_t>(sizes.size());
  int64_t dim = call.number(2);
  if (dim < 0) dim += std::max<int64_t>(rank, 1);
  want(step > 0 && size >= 0 && dim >= 0 && dim < std::max<int64_t>(rank, 1), "a dimension, size or step out of range");
  const int64_t along = rank == 0 ? 1 : sizes[static_cast<size_t>(dim)];
  want(size <= along, "a window is larger than the input");
  std::vector<int64_t> wanted = sizes;
  if (rank != 0) wanted[static_cast<size_t>(dim)] = (along - size) / step + 1;
  wanted.push_back(size);
  want(call.tensor(0).sizes() == at::IntArrayRef(wanted), "the gradient is not that of these windows");
}

// (input, weight, bias, running_mean, running_var, ...): whatever tensors follow the input belong to its channels.
void batch_norm(const Stack& stack) {
  const Operands call(stack);
  want(call.tensor(0).dim() >= 2, "batch norm needs a batch and channels");
  for (size_t i = 1; i < call.count() && (call.is_tensor(i) || call.none(i)); ++i) {
    want_vector(call, i, call.tensor(0).size(1), "a weight or statistic is not one number per channel");
  }
}

void batch_norm_maybe_training(const Stack& stack) {
  batch_norm(stack);
  const Operands call(stack);
  want(call.flag(5) || (call.has(3) && call.has(4)), "without training it needs running statistics");
}

// With statistics as above; without them, its own are the only ones.
void batch_norm_legit(const Stack& stack) {
  const Operands call(stack);
  if (!call.value(3).isBool()) return batch_norm_maybe_training(stack);
  batch_norm(stack);
  want(call.flag(3), "without training it needs running statistics");
}

void batch_norm_evaluating(const Stack& stack) {
  batch_norm(stack);
  const Operands call(stack);
  want(call.has(3) && call.has(4), "without training it needs running statistics");
}

// (grad_out, input, weight, running_mean, running_var, save_mean, save_invstd, train, eps, ...)
void batch_norm_backward(const Stack& stack) {
  const Operands call(stack);
  const at::Tensor& input = call.tensor(1);
  want(input.dim() >= 2, "batch norm needs a batch and channels");
  want_same_sizes(call.tensor(0), input, "the gradient has other sizes than the input");
  const int64_t channels = input.size(1);
  want(input.size(0) >= 1 && channels >= 1, "the batch is empty");  // the kernel divides by both
  want_vector(call, 2, channels, "the weight is not one number per channel");
  const size_t used = call.flag(7) ? 5 : 3;
  for (size_t i = 3; i < 7; ++i) {
    if (i == used || i == used + 1) {
      want(call.has(i), "statistics are missing");
    } else if (!call.has(i) || call.tensor(i).numel() == 0) {
      continue;
    }
    want_vector(call, i, channels, "a statistic is not one number per channel");
  }
}

// (grad_out, input, normalized_shape, mean, rstd, weight, bias, ...)
void layer_norm_backward(const Stack& stack) {
  const Operands call(stack);
  const at::Tensor& input = call.tensor(1);
  want_same_sizes(call.tensor(0), input, "the gradient has other sizes than the input");
  const auto tail = static_cast<int64_t>(call.numbers(2).size());
  want(tail >= 1 && tail <= input.dim(), "the normalized shape is longer than the input's");
  int64_t rows = 1;
  for (int64_t d = 0; d < input.dim() - tail; ++d) rows *= input.size(d);
  for (const size_t i : {3, 4}) want(call.tensor(i).numel() == rows, "a statistic is not one number per row");
}

// (grad_out, input, mean, rstd, weight, N, C, HxW, group, ...)
void group_norm_backward(const Stack& stack) {
  const Operands call(stack);
  const at::Tensor& input = call.tensor(1);
  const int64_t batch = call.number(5);
  const int64_t channels = call.number(6);
  const int64_t groups = call.number(8);
  want(groups > 0 && channels >= 0 && channels % groups == 0, "the groups do not divide the channels");
  want(input.dim() >= 2 && input.size(0) == batch && input.size(1) == channels, "N and C are not the input's");
  want(trailing_elements(input, input.dim() - 2) == call.number(7), "HxW is not the input's");
  want_same_sizes(call.tensor(0), input, "the gradient has other sizes than the input");
  for (const size_t i : {2, 3})
    want(call.tensor(i).numel() == batch * groups, "a statistic is not one number per group");
  want_vector(call, 4, channels, "the weight is not one number per channel");
}

// (grad, x1, x2, p, cdist)
void cdist_backward(const Stack& stack) {
  const Operands call(stack);
  const at::Tensor& grad = call.tensor(0);
  const at::Tensor& x1 = call.tensor(1);
  const at::Tensor& x2 = call.tensor(2);
  want_same_sizes(grad, call.tensor(4), "the gradient has other sizes than the distances");
  want(x1.dim() >= 2 && x2.dim() >= 2 && grad.dim() >= 2, "points are rows of matrices");
  want(x1.size(-1) == x2.size(-1), "the points have different dimensions");
  want(grad.size(-2) == x1.size(-2) && grad.size(-1) == x2.size(-2), "the distances are not between these points");
  const auto batch = at::infer_size(x1.sizes().slice(0, static_cast<size_t>(x1.dim() - 2)),
                                    x2.sizes().slice(0, static_cast<size_t>(x2.dim() - 2)));
  want(grad.sizes().slice(0, static_cast<size_t>(grad.dim() - 2)) == at::IntArrayRef(batch),
       "the batch of the gradient is not that of the points");
}

// (self, p)
void pdist(const Stack& stack) {
  const Operands call(stack);
  constexpr int64_t kMost = int64_t{1} << 31;  // the number of pairs has to be a number
  want(call.tensor(0).dim() == 2 && call.tensor(0).size(0) <= kMost, "points are rows of a matrix");
}

// (grad, self, p, pdist)
void pdist_backward(const Stack& stack) {
  const Operands call(stack);
  want(call.tensor(1).dim() == 2 && call.tensor(1).numel() > 0, "points are rows of a matrix");
  const int64_t points = call.tensor(1).size(0);
  const int64_t pairs = points * (points - 1) / 2;
  want(call.tensor(0).dim() == 1 && call.tensor(3).dim() == 1 && call.tensor(0).numel() == pairs &&
           call.tensor(3).numel() == pairs,
       "the distances are not one per pair of points");
}

// (grad_output, input, grid, interpolation, padding, ...)
template <int kSpatial>
void grid_sampler_backward(const Stack& stack) {
  const Operands call(stack);
  const at::Tensor& grad = call.tensor(0);
  const at::Tensor& input = call.tensor(1);
  const at::Tensor& grid = call.tensor(2);
  want(grad.dim() == kSpatial + 2 && input.dim() == kSpatial + 2 && grid.dim() == kSpatial + 2, "a wrong rank");
  want(grad.size(0) == input.size(0) && grid.size(0) == input.size(0), "the batches differ");
  want(grad.size(1) == input.size(1), "the channels differ");
  for (int d = 0; d < kSpatial; ++d) {
    want(grad.size(d + 2) == grid.size(d + 1), "the gradient has other sizes than the grid");
    want(input.size(d + 2) > 0, "the input is empty");
  }
  want(grid.size(-1) == kSpatial, "the grid's last size is not the number of coordinates");
  want(call.number(3) >= 0 && call.number(3) <= (kSpatial == 2 ? 2 : 1), "an unknown interpolation");
  want(call.number(4) >= 0 && call.number(4) <= 2, "an unknown padding");
  want(at::isfinite(grid).all().item<bool>(), "a coordinate is not finite");
}

// Broadcasts to [batch, heads, rows, columns] as the attention kernel reads it.
void want_mask(const at::Tensor& mask, at::IntArrayRef scores) {
  want(mask.dim() == 2 || mask.dim() == 4, "the mask is neither a matrix nor one per head");
  for (int64_t back = 1; back <= mask.dim(); ++back) {
    const int64_t size = mask.size(-back);
    want(size == 1 || size == scores[static_cast<size_t>(4 - back)], "the mask does not broadcast to the scores");
  }
}

// (query, key, value) from `first` on; answers [batch, heads, rows, columns].
std::array<int64_t, 4> attention_scores(const Operands& call, size_t first) {
  const at::Tensor& query = call.tensor(first);
  const at::Tensor& key = call.tensor(first + 1);
  const at::Tensor& value = call.tensor(first + 2);
  want(query.dim() == 4 && key.dim() == 4 && value.dim() == 4, "query, key and value are not 4-dimensional");
  want(key.size(0) == query.size(0) && value.size(0) == query.size(0), "the batches differ");
  want(key.size(1) == value.size(1) && key.size(1) > 0 && query.size(1) % key.size(1) == 0, "the heads differ");
  want(key.size(2) == value.size(2), "key and value have different lengths");
  want(query.size(3) == key.size(3) && value.size(3) == key.size(3), "the heads' sizes differ");
  want(query.scalar_type() == key.scalar_type() && query.scalar_type() == value.scalar_type(), "the dtypes differ");
  return {query.size(0), query.size(1), query.size(2), key.size(2)};
}

// (query, key, value, dropout, causal, mask, scale)
void attention(const Stack& stack) {
  const Operands call(stack);
  const auto scores = attention_scores(call, 0);
  if (call.has(5)) want_mask(call.tensor(5), scores);
}

// (grad_out, query, key, value, out, logsumexp, dropout, causal, mask, scale)
void attention_backward(const Stack& stack) {
  const Operands call(stack);
  const auto scores = attention_scores(call, 1);
  for (const size_t i : {0, 4}) {
    want_same_sizes(call.tensor(i), call.tensor(1), "the result or its gradient has other sizes than the query");
    want(call.tensor(i).scalar_type() == call.tensor(1).scalar_type(), "the dtypes differ");
  }
  want(call.tensor(5).sizes() == at::IntArrayRef(scores).slice(0, 3), "logsumexp is not one number per row");
  if (call.has(8)) want_mask(call.tensor(8), scores);
}

void want_weight(const Operands& call, size_t index, int64_t rows, int64_t columns) {
  want(call.tensor(index).dim() == 2 && call.tensor(index).size(0) == rows && call.tensor(index).size(1) == columns,
       "a weight is not of the layer's size");
}

void want_bias(const Operands& call, size_t index, int64_t elements) {
  want(call.tensor(index).dim() == 1 && call.tensor(index).numel() == elements, "a bias is not of the layer's size");
}

// All tensors among the first `count` operands have the dtype of the first.
void want_one_dtype(const Operands& call, size_t count) {
  for (size_t i = 1; i < count; ++i) {
    if (call.has(i)) want(call.tensor(i).scalar_type() == call.tensor(0).scalar_type(), "the dtypes differ");
  }
}

void want_heads(int64_t embedding, int64_t heads) {
  want(embedding > 0 && heads > 0 && embedding % heads == 0, "the heads do not divide the embedding");
}

// (src, embed_dim, num_heads, qkv_weight, qkv_bias, proj_weight, proj_bias, use_gelu, norm_first, eps, norm1 weight and bias,
//  norm2 weight and bias, ffn1 weight and bias, ffn2 weight and bias, mask, mask_type)
void encoder_layer(const Stack& stack) {
  const Operands call(stack);
  const int64_t embedding = call.number(1);
  want_heads(embedding, call.number(2));
  want_one_dtype(call, 18);
  want(call.tensor(0).dim() == 3 && call.tensor(0).size(2) == embedding, "the source is not of the embedding's size");
  want_weight(call, 3, 3 * embedding, embedding);
  want_bias(call, 4, 3 * embedding);
  want_weight(call, 5, embedding, embedding);
  want_bias(call, 6, embedding);
  for (const size_t i : {10, 11, 12, 13}) want_bias(call, i, embedding);
  want(call.tensor(14).dim() == 2, "a weight is not of the layer's size");
  const int64_t inner = call.tensor(14).size(0);
  want_weight(call, 14, inner, embedding);
  want_bias(call, 15, inner);
  want_weight(call, 16, embedding, inner);
  want_bias(call, 17, embedding);
}

// (query, key, value, embed_dim, num_head, qkv_weight, qkv_bias, proj_weight, proj_bias, mask, ...)
void multi_head_attention(const Stack& stack) {
  const Operands call(stack);
  const int64_t embedding = call.number(3);
  want_heads(embedding, call.number(4));
  want_one_dtype(call, 9);
  for (const size_t i : {0, 1, 2}) {
    want(call.tensor(i).dim() == 3 && call.tensor(i).size(2) == embedding, "an input is not of the embedding's size");
    want(call.tensor(i).size(0) == call.tensor(0).size(0), "the batches differ");
  }
  want_same_sizes(call.tensor(1), call.tensor(2), "key and value have different sizes");
  want_weight(call, 5, 3 * embedding, embedding);
  want_bias(call, 6, 3 * embedding);
  want_weight(call, 7, embedding, embedding);
  want_bias(call, 8, embedding);
}

// (qkv, qkv_bias, num_heads)
void rescale_qkv(const Stack& stack) {
  const Operands call(stack);
  want(call.tensor(0).dim() == 3 && call.tensor(0).size(2) % 3 == 0 && call.tensor(0).numel() > 0,
       "qkv is empty or not three embeddings wide");
  want_heads(call.tensor(0).size(2) / 3, call.number(2));
  want_bias(call, 1, call.tensor(0).size(2));
  want_one_dtype(call, 2);
}

void want_weight_norm(const at::Tensor& v, int64_t dim, const at::Tensor& g) {
  want(v.dim() >= 1 && (dim == 0 || dim == v.dim() - 1), "the norm is not along the first or the last dimension");
  want(v.numel() > 0 && g.numel() == v.size(dim) && g.scalar_type() == v.scalar_type(),
       "the norms are not one per slice");
}

// (v, g, dim)
void weight_norm(const Stack& stack) {
  const Operands call(stack);
  want_weight_norm(call.tensor(0), call.number(2), call.tensor(1));
}

// (grad_w, saved_v, saved_g, saved_norms, dim)
void weight_norm_backward(const Stack& stack) {
  const Operands call(stack);
  want_same_sizes(call.tensor(0), call.tensor(1), "the gradient has other sizes than the weight");
  for (const size_t i : {2, 3}) want_weight_norm(call.tensor(1), call.number(4), call.tensor(i));
  want_one_dtype(call, 2);
}

// Lists of one tensor per parameter, then lists of one step counter per parameter.
void fused_step(const Stack& stack, std::initializer_list<size_t> states, std::initializer_list<size_t> optional_states,
                std::initializer_list<size_t> counters) {
  const Operands call(stack);
  const auto params = call.tensors(0);
  const auto alike = [&](size_t list) {
    const auto tensors = call.tensors(list);
    want(tensors.size() == params.size(), "the lists have different lengths");
    for (size_t i = 0; i < params.size(); ++i) {
      want(tensors[i].defined() && params[i].defined(), "a tensor is missing");
      want(tensors[i].sizes() == params[i].sizes() && tensors[i].strides() == params[i].strides() &&
               tensors[i].scalar_type() == params[i].scalar_type() && params[i].is_non_overlapping_and_dense(),
           "a state is not laid out like its parameter");
    }
  };
  for (const size_t list : states) alike(list);
  for (const size_t list : optional_states) {
    if (!call.tensors(list).empty()) alike(list);
  }
  for (const size_t list : counters) {
    const auto tensors = call.tensors(list);
    want(tensors.size() == params.size(), "the lists have different lengths");
    for (const at::Tensor& counter : tensors) want(counter.defined() && counter.numel() == 1, "a step is not a number");
  }
  for (size_t i = 1; i < call.count(); ++i) {
    if (call.has(i)) want(call.tensor(i).numel() == 1, "a learning rate or scale is not a number");
  }
}

void fused_adam(const Stack& stack) {
  fused_step(stack, {1, 2, 3}, {4}, {5});
  const Operands call(stack);
  // (..., lr, beta1, beta2, weight_decay, eps, amsgrad, ...)
  want(!call.flag(11) || call.tensors(4).size() == call.tensors(0).size(), "amsgrad without its state");
}
void fused_adagrad(const Stack& stack) { fused_step(stack, {1, 2}, {}, {3}); }
void fused_sgd(const Stack& stack) {
  fused_step(stack, {1}, {2}, {});
  const Operands call(stack);
  want(call.value(4).toDouble() == 0.0 || call.tensors(2).size() == call.tensors(0).size(),
       "momentum without its state");
}

// (self, src, ...): lists of tensors.
void list_copy(const Stack& stack) {
  const Operands call(stack);
  want(call.tensors(0).size() == call.tensors(1).size(), "the lists have different lengths");
}

constexpr GuardEntry kShapeGuards[] = {
    {"aten::_foreach_copy", list_copy},
    {"aten::_foreach_copy_", list_copy},
    {"aten::_softmax_backward_data", softmax_backward},
    {"aten::_log_softmax_backward_data", softmax_backward},
    {"aten::_masked_softmax", masked_softmax},
    {"aten::_masked_softmax_backward", masked_softmax_backward},
    {"aten::_adaptive_avg_pool2d_backward", pool_backward<2>},
    {"aten::_adaptive_avg_pool3d_backward", pool_backward<3>},
    {"aten::avg_pool2d_backward", pool_backward<2>},
    {"aten::avg_pool3d_backward", pool_backward<3>},
    {"aten::reflection_pad1d_backward", reflection_backward<1>},
    {"aten::reflection_pad2d_backward", reflection_backward<2>},
    {"aten::reflection_pad3d_backward", reflection_backward<3>},
    {"aten::replication_pad1d_backward", pad_backward<1>},
    {"aten::replication_pad2d_backward", pad_backward<2>},
    {"aten::replication_pad3d_backward", pad_backward<3>},
    {"aten::unfold_backward", unfold_backward},
    {"aten::native_batch_norm", batch_norm_maybe_training},
    {"aten::_native_batch_norm_legit_functional", batch_norm_maybe_training},
    {"aten::_native_batch_norm_legit", batch_norm_legit},
    {"aten::_native_batch_norm_legit_no_training", batch_norm_evaluating},
    {"aten::_batch_norm_with_update", batch_norm},
    {"aten::_batch_norm_with_update_functional", batch_norm},
    {"aten::_batch_norm_no_update", batch_norm_evaluating},
    {"aten::batch_norm_update_stats", batch_norm},
    {"aten::native_batch_norm_backward", batch_norm_backward},
    {"aten::batch_norm_backward", batch_norm_backward},
    {"aten::native_layer_norm_backward", layer_norm_backward},
    {"aten::native_group_norm_backward", group_norm_backward},
    {"aten::_cdist_backward", cdist_backward},
    {"aten::_pdist_forward", pdist},
    {"aten::_pdist_backward", pdist_backward},
    {"aten::grid_sampler_2d_backward", grid_sampler_backward<2>},
    {"aten::grid_sampler_3d_backward", grid_sampler_backward<3>},
    {"aten::_scaled_dot_product_flash_attention_for_cpu", attention},
    {"aten::_scaled_dot_product_flash_attention_for_cpu_backward", attention_backward},
    {"aten::_transformer_encoder_layer_fwd", encoder_layer},
    {"aten::_native_multi_head_attention", multi_head_attention},
    {"aten::_transform_bias_rescale_qkv", rescale_qkv},
    {"aten::_weight_norm_interface", weight_norm},
    {"aten::_weight_norm_interface_backward", weight_norm_backward},
    {"aten::_fused_adam", fused_adam},
    {"aten::_fused_adam_", fused_adam},
    {"aten::_fused_adamw", fused_adam},
    {"aten::_fused_adamw_", fused_adam},
    {"aten::_fused_adagrad", fused_adagrad},
    {"aten::_fused_adagrad_", fused_adagrad},
    {"aten::_fused_sgd", fused_sgd},
    {"aten::_fused_sgd_", fused_sgd},
};

}  // namespace

std::span<const GuardEntry> shape_guards() { return kShapeGuards; }

}  // namespace genie::executor
