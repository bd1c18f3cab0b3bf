// Shape functions for operators that libtorch has no C++ meta kernel for, and that models use on every step.
// Layouts follow the CPU kernels; where a kernel on the node chooses another layout it re-lays its result.
#include <ATen/ExpandUtils.h>
#include <ATen/ops/result_type.h>
#include <c10/util/strides.h>

#include <array>
#include <unordered_map>

#include "frontend/capture/shapes.h"

namespace genie::frontend {
namespace {

using Sizes = c10::SmallVector<int64_t, 6>;

bool like_first(ShapeRequest& request) {
  request.add_like(request.tensor(0));
  return true;
}

c10::MemoryFormat convolution_format(const at::Tensor& input, const at::Tensor& weight) {
  const auto of_input = input.suggest_memory_format();
  if (of_input != c10::MemoryFormat::Contiguous) return of_input;
  return input.scalar_type() == c10::ScalarType::Double ? of_input : weight.suggest_memory_format();
}

// convolution(input, weight, bias, stride, padding, dilation, transposed, output_padding, groups)
bool convolution(ShapeRequest& request) {
  const at::Tensor& input = request.tensor(0);
  const at::Tensor& weight = request.tensor(1);
  const auto stride = request.args[3].toIntVector();
  const auto padding = request.args[4].toIntVector();
  const auto dilation = request.args[5].toIntVector();
  const bool transposed = request.args[6].toBool();
  const auto output_padding = request.args[7].toIntVector();
  const int64_t groups = request.args[8].toInt();
  const int64_t spatial = input.dim() - 2;
  if (spatial < 1 || weight.dim() != input.dim() || groups < 1) return false;  // the node says what is wrong
  if (input.size(1) != (transposed ? weight.size(0) : weight.size(1) * groups)) return false;
  const auto pick = [](const std::vector<int64_t>& list, int64_t i) {
    return list.size() == 1 ? list[0] : list.at(static_cast<size_t>(i));
  };
  Sizes sizes{input.size(0), transposed ? weight.size(1) * groups : weight.size(0)};
  for (int64_t i = 0; i < spatial; ++i) {
    const int64_t kernel = pick(dilation, i) * (weight.size(i + 2) - 1) + 1;
    const int64_t size =
        transposed ? (input.size(i + 2) - 1) * pick(stride, i) - 2 * pick(padding, i) + kernel + pick(output_padding, i)
                   : (input.size(i + 2) + 2 * pick(padding, i) - kernel) / pick(stride, i) + 1;
    if (input.size(i + 2) + 2 * pick(padding, i) < kernel && !transposed) return false;
    sizes.push_back(size);
  }
  request.add_format(sizes, input.scalar_type(), convolution_format(input, weight));
  return true;
}

// convolution_backward(grad_output, input, weight, bias_sizes, ..., output_mask)
bool convolution_backward(ShapeRequest& request) {
  const at::Tensor& input = request.tensor(1);
  const at::Tensor& weight = request.tensor(2);
  const auto mask = request.args[10].toBoolList();
  const auto format = convolution_format(input, weight);
  mask[0] ? request.add_format(input.sizes(), input.scalar_type(), format) : request.add_undefined();
  mask[1] ? request.add_format(weight.sizes(), weight.scalar_type(), format) : request.add_undefined();
  const int64_t channels = request.tensor(0).size(1);
  mask[2] ? request.add({channels}, weight.scalar_type()) : request.add_undefined();
  return true;
}

c10::ScalarType statistics_type(const ShapeRequest& request, size_t weight) {
  return request.has_tensor(weight) ? request.tensor(weight).scalar_type() : request.tensor(0).scalar_type();
}

bool batch_norm_results(ShapeRequest& request, bool training) {
  const at::Tensor& input = request.tensor(0);
  if (input.dim() < 2) return false;
  request.add_like(input);
  const int64_t saved = training ? input.size(1) : 0;
  request.add({saved}, statistics_type(request, 1));
  request.add({saved}, statistics_type(request, 1));
  return true;
}

// native_batch_norm(input, weight, bias, running_mean, running_var, training, momentum, eps)
bool batch_norm(ShapeRequest& request) { return batch_norm_results(request, request.args[5].toBool()); }

// _native_batch_norm_legit.no_stats(input, weight, bias, training, momentum, eps)
bool batch_norm_no_stats(ShapeRequest& request) { return batch_norm_results(request, request.args[3].toBool()); }

// _batch_norm_with_update(input, weight, bias, running_mean, running_var, momentum, eps)
bool batch_norm_with_update(ShapeRequest& request) {
  if (!batch_norm_results(request, /*training=*/true)) return false;
  request.add({0}, c10::ScalarType::Byte);  // what a fused kernel would have kept
  return true;
}

// native_batch_norm_backward(grad_out, input, weight, running_mean, running_var, save_mean, save_invstd, train, eps, mask)
bool batch_norm_backward(ShapeRequest& request) {
  const at::Tensor& input = request.tensor(1);
  const auto mask = request.args[9].toBoolList();
  const auto type = request.has_tensor(2) ? request.tensor(2).scalar_type() : input.scalar_type();
  mask[0] ? request.add_like(input) : request.add_undefined();
  mask[1] ? request.add({input.size(1)}, type) : request.add_undefined();
  mask[2] ? request.add({input.size(1)}, type) : request.add_undefined();
  return true;
}

// native_layer_norm(input, normalized_shape, weight, bias, eps)
bool layer_norm(ShapeRequest& request) {
  const at::Tensor& input = request.tensor(0);
  const auto normalized = static_cast<int64_t>(request.args[1].toIntVector().size());
  if (normalized > input.dim()) return false;
  Sizes reduced(input.sizes().begin(), input.sizes().end());
  for (int64_t i = input.dim() - normalized; i < input.dim(); ++i) reduced[static_cast<size_t>(i)] = 1;
  request.add(input.sizes(), input.scalar_type());
  request.add(reduced, statistics_type(request, 2));
  request.add(reduced, statistics_type(request, 2));
  return true;
}

// layer_norm(input, normalized_shape, weight, bias, eps, cudnn_enable)
bool layer_norm_alone(ShapeRequest& request) {
  request.add(request.tensor(0).sizes(), request.tensor(0).scalar_type());
  return true;
}

// native_layer_norm_backward(grad_out, input, normalized_shape, mean, rstd, weight, bias, output_mask)
bool layer_norm_backward(ShapeRequest& request) {
  const auto mask = request.args[7].toBoolList();
  mask[0] ? request.add(request.tensor(1).sizes(), request.tensor(1).scalar_type()) : request.add_undefined();
  for (size_t i : {5, 6}) {
    if (mask[i - 4] && request.has_tensor(i)) {
      request.add(request.tensor(i).sizes(), request.tensor(i).scalar_type());
    } else {
      request.add_undefined();
    }
  }
  return true;
}

// native_group_norm(input, weight, bias, N, C, HxW, groups, eps)
bool group_norm(ShapeRequest& request) {
  const at::Tensor& input = request.tensor(0);
  const int64_t count = request.args[3].toInt();
  const int64_t groups = request.args[6].toInt();
  if (input.dim() < 2 || count < 0 || groups < 1) return false;
  request.add_format(input.sizes(), input.scalar_type(), input.suggest_memory_format());
  request.add({count, groups}, statistics_type(request, 1));
  request.add({count, groups}, statistics_type(request, 1));
  return true;
}

// linear(input, weight, bias)
bool linear(ShapeRequest& request) {
  const at::Tensor& input = request.tensor(0);
  const at::Tensor& weight = request.tensor(1);
  if (input.dim() == 0 || weight.dim() == 0 || weight.dim() > 2) return false;  // the node says what is wrong
  TORCH_CHECK(input.size(-1) == weight.size(-1), "mat1 and mat2 shapes cannot be multiplied: linear of ", input.sizes(),
              " with weight ", weight.sizes());
  TORCH_CHECK(input.scalar_type() == weight.scalar_type(), "linear: input is ", input.scalar_type(), " but weight is ",
              weight.scalar_type());
  Sizes sizes(input.sizes().begin(), input.sizes().end() - 1);
  if (weight.dim() == 2) sizes.push_back(weight.size(0));
  request.add(sizes, input.scalar_type());
  return true;
}

// embedding(weight, indices, ...)
bool embedding(ShapeRequest& request) {
  const at::Tensor& weight = request.tensor(0);
  const at::Tensor& indices = request.tensor(1);
  if (weight.dim() != 2) return false;
  Sizes sizes(indices.sizes().begin(), indices.sizes().end());
  sizes.push_back(weight.size(1));
  request.add(sizes, weight.scalar_type());
  return true;
}

// max_unpool2d(self, indices, output_size)
bool max_unpool(ShapeRequest& request) {
  const at::Tensor& self = request.tensor(0);
  const auto wanted = request.args[2].toIntVector();
  if (self.dim() < 3 || wanted.size() != 2) return false;  // the node says what is wrong
  Sizes sizes(self.sizes().begin(), self.sizes().end() - 2);
  sizes.append(wanted.begin(), wanted.end());
  request.add_format(sizes, self.scalar_type(), self.suggest_memory_format());
  return true;
}

// nonzero_static(self, size, fill_value)
bool nonzero_static(ShapeRequest& request) {
  const int64_t count = request.args[1].toInt();
  if (count < 0) return false;
  request.add({count, request.tensor(0).dim()}, c10::ScalarType::Long);
  return true;
}

// embedding_dense_backward(grad_output, indices, num_weights, padding_idx, scale_grad_by_freq)
bool embedding_backward(ShapeRequest& request) {
  const at::Tensor& grad = request.tensor(0);
  request.add({request.args[2].toInt(), grad.size(-1)}, grad.scalar_type());
  return true;
}

// cat(tensors, dim). libtorch has a meta kernel; a cache that grows by one asks each step anew, though.
bool cat(ShapeRequest& request) {
  const auto tensors = request.args[0].toTensorVector();
  if (tensors.empty()) return false;
  const at::Tensor& first = tensors.front();
  const int64_t asked = request.args[1].toInt();
  const int64_t dim = asked < 0 ? asked + first.dim() : asked;
  if (dim < 0 || dim >= first.dim()) return false;
  Sizes sizes(first.sizes().begin(), first.sizes().end());
  auto& length = sizes[static_cast<size_t>(dim)];
  length = 0;
  bool contiguous = false;  // one such operand is enough
  for (const at::Tensor& tensor : tensors) {
    if (tensor.dim() != first.dim() || tensor.scalar_type() != first.scalar_type()) return false;
    for (int64_t i = 0; i < first.dim(); ++i) {
      if (i != dim && tensor.size(i) != first.size(i)) return false;
    }
    length += tensor.size(dim);
    contiguous = contiguous || tensor.suggest_memory_format() == c10::MemoryFormat::Contiguous;
  }
  if (!contiguous) return false;
  request.add(sizes, first.scalar_type());
  return true;
}

// arange([start,] end[, step], dtype, ...) of integers: asked anew each step for positions.
bool arange(ShapeRequest& request) {
  const bool has_start = request.op.op_name.overload_name.starts_with("start");
  const bool has_step = request.op.op_name.overload_name == "start_step";
  const size_t bounds = 1 + (has_start ? 1 : 0) + (has_step ? 1 : 0);
  for (size_t i = 0; i < bounds; ++i) {
    if (!request.args[i].isInt()) return false;
  }
  const c10::IValue& dtype = request.args[bounds];
  if (!dtype.isNone() && dtype.toScalarType() != c10::ScalarType::Long) return false;
  const int64_t start = has_start ? request.args[0].toInt() : 0;
  const int64_t end = request.args[has_start ? 1 : 0].toInt();
  const int64_t step = has_step ? request.args[2].toInt() : 1;
  int64_t span = 0;
  if (step <= 0 || end < start || __builtin_sub_overflow(end, start, &span)) return false;
  const int64_t count = span == 0 ? 0 : (span - 1) / step + 1;
  if (count > INT64_MAX / static_cast<int64_t>(sizeof(int64_t))) return false;
  request.add({count}, c10::ScalarType::Long);
  return true;
}

// where.self(condition, self, other)
bool where(ShapeRequest& request) {
  if (request.args.size() != 3 || !request.args[2].isTensor()) return false;
  const at::Tensor& self = request.tensor(1);
  const at::Tensor& other = request.tensor(2);
  const auto sizes = at::infer_size(at::infer_size(request.tensor(0).sizes(), self.sizes()), other.sizes());
  const bool as_condition = request.tensor(0).sizes() == at::IntArrayRef(sizes);
  const auto type = at::result_type(self, other);
  // The element-wise kernel follows the layout of the first full-size operand.
  if (self.sizes() == at::IntArrayRef(sizes) && as_condition && self.strides() == request.tensor(0).strides() &&
      self.is_non_overlapping_and_dense()) {
    request.out.list_length.push_back(-1);
    request.out.tensors.push_back(dense_meta(sizes, self.strides(), type));
  } else {
    request.add(sizes, type);
  }
  return true;
}

// index_select(self, dim, index)
bool index_select(ShapeRequest& request) {
  const at::Tensor& self = request.tensor(0);
  const at::Tensor& index = request.tensor(2);
  Sizes sizes(self.sizes().begin(), self.sizes().end());
  if (!sizes.empty()) {
    const int64_t dim = c10::maybe_wrap_dim(request.args[1].toInt(), self.dim());
    sizes[static_cast<size_t>(dim)] = index.dim() == 0 ? 1 : index.size(0);
  }
  request.add(sizes, self.scalar_type());
  return true;
}

// index_add, index_reduce(self, dim, index, source, ...): the meta kernel fails where there is nothing to add.
bool index_add(ShapeRequest& request) {
  const at::Tensor& self = request.tensor(0);
  if (self.numel() > 0 && request.tensor(3).numel() > 0) return false;
  const int target = request.op.returns[0].alias_of;
  if (target < 0) {
    request.add(self.sizes(), self.scalar_type());
    return true;
  }
  request.out.list_length.push_back(-1);
  const auto index = static_cast<size_t>(target);
  if (request.tensor(index).sizes() != self.sizes()) {
    request.out.resized.emplace_back(
        index, dense_meta(self.sizes(), c10::contiguous_strides(self.sizes()), self.scalar_type()));
  }
  return true;
}

// isin.Scalar_Tensor(element, test_elements, ...): the meta kernel says [0]
bool one_boolean(ShapeRequest& request) {
  request.add({}, c10::ScalarType::Bool);
  return true;
}

// [B, H, T, D] stored as [B, T, H, D].
void add_heads_inside(ShapeRequest& request, const at::Tensor& like) {
  const int64_t heads = like.size(1);
  const int64_t length = like.size(2);
  const int64_t width = like.size(3);
  request.out.list_length.push_back(-1);
  request.out.tensors.push_back(
      dense_meta(like.sizes(), {length * heads * width, width, heads * width, 1}, like.scalar_type()));
}

// _scaled_dot_product_flash_attention_for_cpu(query, key, value, ...)
bool flash_attention(ShapeRequest& request) {
  const at::Tensor& query = request.tensor(0);
  if (query.dim() != 4) return false;
  request.add_like(query);
  const int64_t heads = query.size(1);
  const int64_t length = query.size(2);
  const auto type = query.scalar_type() == c10::ScalarType::Double ? c10::ScalarType::Double : c10::ScalarType::Float;
  request.out.list_length.push_back(-1);
  request.out.tensors.push_back(dense_meta({query.size(0), heads, length}, {length * heads, 1, heads}, type));
  return true;
}

// _scaled_dot_product_flash_attention_for_cpu_backward(grad_out, query, key, value, ...)
bool flash_attention_backward(ShapeRequest& request) {
  for (size_t i = 1; i <= 3; ++i) add_heads_inside(request, request.tensor(i));
  return true;
}

// randperm.generator_out(n, generator, out): the out argument is made of that size, or resized to it.
bool randperm_out(ShapeRequest& request) {
  const int64_t count = request.args[0].toInt();
  const at::Tensor& out = request.tensor(2);
  request.out.list_length.push_back(-1);
  if (out.dim() != 1 || out.size(0) != count)
    request.out.resized.emplace_back(2, dense_meta({count}, {1}, out.scalar_type()));
  return true;
}

bool generator_state(ShapeRequest& request) {
  request.add({5056}, c10::ScalarType::Byte);  // the CPU generator's legacy state
  return true;
}

bool alloc(ShapeRequest& request) {
  request.add({request.args[0].toInt()}, c10::ScalarType::Byte);
  return true;
}

// _histogramdd_bin_edges(self, bins, ...): one row of edges per dimension
bool bin_edges(ShapeRequest& request) {
  const auto bins = request.args[1].toIntVector();
  request.out.list_length.push_back(static_cast<int32_t>(bins.size()));
  for (const int64_t count : bins)
    request.out.tensors.push_back(dense_meta({count + 1}, {1}, request.tensor(0).scalar_type()));
  return true;
}

// genie::lstm_layer(input, w_ih, w_hh, b_ih, b_hh, hx, cx, reverse, training): in training also a workspace, whose size the
// node says.
bool lstm_layer(ShapeRequest& request) {
  if (request.args[8].toBool()) return false;
  const at::Tensor& input = request.tensor(0);
  const at::Tensor& hx = request.tensor(5);
  if (input.dim() != 3 || hx.dim() != 2) return false;  // the node says what is wrong
  request.add({input.size(0), input.size(1), hx.size(1)}, input.scalar_type());
  request.add(hx.sizes(), hx.scalar_type());
  request.add(hx.sizes(), hx.scalar_type());
  request.add_undefined();
  return true;
}

// Gradients of input, w_ih, w_hh, both biases, hx, cx.
bool lstm_layer_backward(ShapeRequest& request) {
  const auto like = [&](size_t i) { request.add(request.tensor(i).sizes(), c10::ScalarType::Float); };
  for (const size_t i : {0, 1, 2}) like(i);
  for (int bias = 0; bias < 2; ++bias) request.add({request.tensor(1).size(0)}, c10::ScalarType::Float);
  for (const size_t i : {5, 6}) like(i);
  return true;
}

bool no_results(ShapeRequest&) { return true; }

}  // namespace

OwnShapes find_shape_function(std::string_view name) {
  static const std::unordered_map<std::string_view, OwnShapes> functions = {
      {"aten::relu", like_first},
      {"aten::convolution", convolution},
      {"aten::convolution_backward", convolution_backward},
      {"aten::native_batch_norm", batch_norm},
      {"aten::_native_batch_norm_legit", batch_norm},
      {"aten::_native_batch_norm_legit.no_stats", batch_norm_no_stats},
      {"aten::_batch_norm_with_update", batch_norm_with_update},
      {"aten::native_batch_norm_backward", batch_norm_backward},
      {"aten::layer_norm", layer_norm_alone},
      {"aten::native_layer_norm", layer_norm},
      {"aten::native_layer_norm_backward", layer_norm_backward},
      {"aten::native_group_norm", group_norm},
      {"aten::linear", linear},
      {"aten::embedding", embedding},
      {"aten::embedding_dense_backward", embedding_backward},
      {"aten::max_unpool2d", max_unpool},
      {"aten::nonzero_static", nonzero_static},
      {"aten::cat", cat},
      {"aten::arange", arange},
      {"aten::arange.start", arange},
      {"aten::arange.start_step", arange},
      {"aten::where", where},
      {"aten::index_select", index_select},
      {"aten::index_add", index_add},
      {"aten::index_add_", index_add},
      {"aten::index_add.out", index_add},
      {"aten::index_reduce", index_add},
      {"aten::index_reduce.out", index_add},
      {"aten::index_reduce_", index_add},
      {"aten::isin.Scalar_Tensor", one_boolean},
      {"aten::_scaled_dot_product_flash_attention_for_cpu", flash_attention},
      {"aten::_scaled_dot_product_flash_attention_for_cpu_backward", flash_attention_backward},
      {"aten::_histogramdd_bin_edges", bin_edges},
      {"aten::randperm.generator_out", randperm_out},
      {"genie::alloc", alloc},
      {"genie::lstm_layer", lstm_layer},
      {"genie::lstm_layer_backward", lstm_layer_backward},
      {"genie::generator_state", generator_state},
      {"genie::manual_seed", no_results},
      {"genie::set_generator_state", no_results},
      {"genie::resize_storage", no_results},
  };
  const auto found = functions.find(name);
  return found == functions.end() ? nullptr : found->second;
}

}  // namespace genie::frontend
