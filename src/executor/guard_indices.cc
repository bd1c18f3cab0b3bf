// Kernels that follow indices, offsets, lengths or pivots without looking.
#include <ATen/ops/aminmax.h>
#include <ATen/ops/sum.h>

#include <algorithm>
#include <array>
#include <mutex>
#include <set>
#include <tuple>

#include "src/executor/guard_operands.h"
#include "src/executor/guard_tables.h"

namespace genie::executor {

void want_within(const at::Tensor& indices, int64_t first, int64_t end, const char* what) {
  want(at::isIntegralType(indices.scalar_type(), /*includeBool=*/false), "indices are not integers");
  if (indices.numel() == 0) return;
  const auto [least, most] = at::aminmax(indices.detach());
  want(least.item<int64_t>() >= first && most.item<int64_t>() < end, what);
}

void want_same_leading(const at::Tensor& a, const at::Tensor& b, int64_t tail, const char* what) {
  want(a.dim() == b.dim() && a.dim() >= tail, what);
  for (int64_t d = 0; d < a.dim() - tail; ++d) want(a.size(d) == b.size(d), what);
}

void want_vector(const Operands& call, size_t index, int64_t elements, const char* what) {
  if (call.has(index)) want(call.tensor(index).dim() == 1 && call.tensor(index).numel() == elements, what);
}

int64_t trailing_elements(const at::Tensor& tensor, int64_t tail) {
  want(tensor.dim() >= tail, "too few dimensions");
  int64_t elements = 1;
  for (int64_t d = tensor.dim() - tail; d < tensor.dim(); ++d) elements *= tensor.size(d);
  return elements;
}

namespace {

using Stack = torch::jit::Stack;

// Max pooling over the last `kTail` dimensions: (grad_output, self, ...), the indices at `kIndices`.
template <int kTail, size_t kIndices>
void max_pool_backward(const Stack& stack) {
  const Operands call(stack);
  const at::Tensor& grad = call.tensor(0);
  const at::Tensor& self = call.tensor(1);
  want(grad.dim() == kTail + 1 || grad.dim() == kTail + 2, "the gradient has a wrong rank");
  want_same_leading(grad, self, kTail, "batch or channels of the gradient differ from the input's");
  want_same_sizes(grad, call.tensor(kIndices), "the indices have other sizes than the gradient");
  want(grad.scalar_type() == self.scalar_type(), "the dtypes differ");
  want(call.tensor(kIndices).scalar_type() == at::kLong, "indices are not 64-bit integers");
  want_within(call.tensor(kIndices), 0, trailing_elements(self, kTail), "an index lies outside the input");
}

// (grad_output, self, kernel_size, output_size, indices)
template <int kTail>
void fractional_max_pool_backward(const Stack& stack) {
  max_pool_backward<kTail, 4>(stack);
  const Operands call(stack);
  const auto output = call.numbers(3);
  want(output.size() == kTail && call.numbers(2).size() == kTail, "sizes of a wrong rank");
  const auto given = call.tensor(0).sizes();
  want(given.slice(given.size() - kTail) == at::IntArrayRef(output), "the gradient has another size than the output");
}

// (grad_output, indices, num_weights, padding_idx, scale_grad_by_freq)
void embedding_backward(const Stack& stack) {
  const Operands call(stack);
  const at::Tensor& grad = call.tensor(0);
  const at::Tensor& indices = call.tensor(1);
  want(call.number(2) >= 0, "a negative number of rows");
  want(grad.dim() == indices.dim() + 1 && grad.sizes().slice(0, static_cast<size_t>(indices.dim())) == indices.sizes(),
       "the gradient is not one row per index");
  want_within(indices, 0, call.number(2), "an index lies outside the table");
}

// (self, indices, max_norm, norm_type)
void embedding_renorm(const Stack& stack) {
  const Operands call(stack);
  want(call.tensor(0).dim() == 2, "the table is not a matrix");
  want_within(call.tensor(1), 0, call.tensor(0).size(0), "an index lies outside the table");
}

// Offsets of bags: they rise from 0 to at most `end`.
void want_offsets(const at::Tensor& offsets, int64_t end) {
  want(offsets.dim() == 1, "offsets are not a vector");
  want_within(offsets, 0, end + 1, "an offset lies outside the indices");
  if (offsets.numel() > 1) {
    const at::Tensor steps = offsets.slice(0, 1).sub(offsets.slice(0, 0, -1));
    want_within(steps, 0, INT64_MAX, "offsets fall");
  }
  if (offsets.numel() > 0) want(offsets[0].item<int64_t>() == 0, "offsets do not begin at 0");
}

// Where no bag is told for each index, the offsets tell it: as many bags as results, or one mark more for the end.
void want_bags_by_offset(const at::Tensor& offsets, int64_t indices, int64_t bags) {
  want(offsets.numel() > 0 || indices == 0, "indices without a bag");
  want(offsets.numel() <= bags || (offsets.numel() == bags + 1 && offsets[-1].item<int64_t>() == indices),
       "there are more offsets than bags");
}

// The kernel writes machine code for each width of a row, about 4 bytes per column, for each kind of weights and indices, and
// keeps it for good, which no session's quota counts. Widths as tables have them are so few that all of them together take some
// 150 MB; all sessions of this process share what there is for others.
void want_code_for(const Operands& call) {
  constexpr int64_t kNarrow = 1024;
  constexpr int64_t kWide = 8192;
  constexpr int64_t kVeryWide = 65536;
  constexpr int64_t kMost = int64_t{1} << 20;
  constexpr int64_t kMostOfOthers = int64_t{1} << 24;  // of all other widths
  constexpr const char* kWhy =
      "the table's rows are too long for the memory that this node has for code: make their length a multiple of 64, "
      "above 8192 of 1024, and at most 65536";
  const int64_t columns = call.tensor(0).size(1);
  if (columns <= kNarrow || (columns <= kWide && columns % 64 == 0) || (columns <= kVeryWide && columns % 1024 == 0))
    return;
  want(columns <= kMost, kWhy);
  static std::mutex mutex;
  static std::set<std::tuple<int64_t, at::ScalarType, at::ScalarType, bool>> written;
  static int64_t in_all = 0;
  const std::tuple code(columns, call.tensor(0).scalar_type(), call.tensor(1).scalar_type(), call.has(6));
  const std::lock_guard<std::mutex> lock(mutex);
  if (written.contains(code)) return;
  want(columns <= kMostOfOthers - in_all, kWhy);
  written.insert(code);
  in_all += columns;
}

// (weight, indices, offsets, scale, mode, sparse, per_sample_weights, include_last_offset, padding_idx)
void embedding_bag(const Stack& stack) {
  const Operands call(stack);
  const at::Tensor& weight = call.tensor(0);
  const at::Tensor& indices = call.tensor(1);
  want(weight.dim() == 2 && indices.dim() == 1, "the table is not a matrix, or the indices not a vector");
  want_within(indices, 0, weight.size(0), "an index lies outside the table");
  want_offsets(call.tensor(2), indices.numel());
  want(call.tensor(2).numel() > 0 || (indices.numel() == 0 && !call.flag(7)), "indices without a bag");
  want(call.number(4) >= 0 && call.number(4) <= 2, "an unknown mode");
  if (call.has(6)) want(call.tensor(6).sizes() == indices.sizes(), "the weights are not one per index");
  want_code_for(call);
}

struct Bags {
  const at::Tensor& grad;
  const at::Tensor& indices;
  const at::Tensor& offset2bag;
  const at::Tensor& bag_size;
  const at::Tensor& maximum;
  int64_t rows;
  int64_t mode;
};

void want_bags(const Bags& bags) {
  want(bags.rows >= 0, "a negative number of rows");
  want(bags.mode >= 0 && bags.mode <= 2, "an unknown mode");
  want(bags.grad.dim() == 2 && bags.indices.dim() == 1, "the gradient is not a matrix, or the indices not a vector");
  const int64_t count = bags.grad.size(0);
  want_within(bags.indices, 0, bags.rows, "an index lies outside the table");
  if (bags.offset2bag.numel() != 0) {
    want(bags.offset2bag.sizes() == bags.indices.sizes(), "the bags are not one per index");
    want_within(bags.offset2bag, 0, count, "a bag lies outside the gradient");
  }
  if (bags.mode == 1) want(bags.bag_size.dim() == 1 && bags.bag_size.numel() == count, "the sizes are not one per bag");
  if (bags.mode == 2) {
    want(bags.maximum.sizes() == bags.grad.sizes(), "the maxima have other sizes than the gradient");
    want_within(bags.maximum, -1, bags.rows, "a maximum lies outside the table");
  }
}

// (grad, indices, offsets, offset2bag, bag_size, maximum_indices, num_weights, scale, mode, sparse, per_sample_weights, ...)
void embedding_bag_backward(const Stack& stack) {
  const Operands call(stack);
  want_bags(
      {call.tensor(0), call.tensor(1), call.tensor(3), call.tensor(4), call.tensor(5), call.number(6), call.number(8)});
  want_offsets(call.tensor(2), call.tensor(1).numel());
  if (call.tensor(3).numel() == 0) want_bags_by_offset(call.tensor(2), call.tensor(1).numel(), call.tensor(0).size(0));
  if (call.has(10)) want_same_sizes(call.tensor(10), call.tensor(1), "the weights are not one per index");
}

// (grad, indices, offset2bag, bag_size, maximum_indices, num_weights, scale, mode, per_sample_weights, ...)
void embedding_bag_dense_backward(const Stack& stack) {
  const Operands call(stack);
  want_bags(
      {call.tensor(0), call.tensor(1), call.tensor(2), call.tensor(3), call.tensor(4), call.number(5), call.number(7)});
  want(call.number(7) == 2 || call.tensor(2).numel() == call.tensor(1).numel(), "the bags are not one per index");
  if (call.has(8)) want_same_sizes(call.tensor(8), call.tensor(1), "the weights are not one per index");
}

// (grad, weight, indices, offsets, offset2bag, mode, padding_idx)
void embedding_bag_weights_backward(const Stack& stack) {
  const Operands call(stack);
  const at::Tensor& grad = call.tensor(0);
  const at::Tensor& weight = call.tensor(1);
  const at::Tensor& indices = call.tensor(2);
  want(grad.dim() == 2 && weight.dim() == 2 && grad.size(1) == weight.size(1), "the rows have different lengths");
  want(indices.dim() == 1, "the indices are not a vector");
  want_within(indices, 0, weight.size(0), "an index lies outside the table");
  want_offsets(call.tensor(3), indices.numel());
  if (call.tensor(4).numel() != 0) {
    want_same_sizes(call.tensor(4), indices, "the bags are not one per index");
    want_within(call.tensor(4), 0, grad.size(0), "a bag lies outside the gradient");
  } else {
    want_bags_by_offset(call.tensor(3), indices.numel(), grad.size(0));
  }
}

std::vector<int64_t> lengths_of(const c10::IValue& value) {
  if (value.isIntList()) return value.toIntVector();
  const at::Tensor tensor = value.toTensor().to(at::kLong).contiguous();
  return {tensor.const_data_ptr<int64_t>(), tensor.const_data_ptr<int64_t>() + tensor.numel()};
}

// log_probs, targets, input_lengths, target_lengths from `first` on; answers [batch, steps, longest target].
std::array<int64_t, 3> want_ctc(const Operands& call, size_t first) {
  const at::Tensor& probs = call.tensor(first);
  const at::Tensor& targets = call.tensor(first + 1);
  want(probs.dim() == 2 || probs.dim() == 3, "the log-probabilities are neither (T, C) nor (T, N, C)");
  const int64_t batch = probs.dim() == 3 ? probs.size(1) : 1;
  const auto inputs = lengths_of(call.value(first + 2));
  const auto lengths = lengths_of(call.value(first + 3));
  want(static_cast<int64_t>(inputs.size()) == batch && static_cast<int64_t>(lengths.size()) == batch,
       "the lengths are not one per sequence");
  int64_t longest = 0;
  int64_t total = 0;
  for (const int64_t length : inputs)
    want(length >= 0 && length <= probs.size(0), "a sequence is longer than its input");
  for (const int64_t length : lengths) {
    want(length >= 0 && length <= targets.numel(), "a target's length is negative or too large");
    longest = std::max(longest, length);
    total += length;
  }
  want(targets.dim() == 1 || targets.dim() == 2, "the targets are neither a vector nor a matrix");
  if (targets.dim() == 1) {
    want(total <= targets.numel(), "the targets are shorter than their lengths");
  } else {
    want(targets.size(0) == batch && longest <= targets.size(1), "the targets are shorter than their lengths");
  }
  want_within(targets, 0, probs.size(-1), "a target is not a class");
  return {batch, probs.size(0), longest};
}

// (log_probs, targets, input_lengths, target_lengths, blank, ...)
void ctc_loss(const Stack& stack) {
  const Operands call(stack);
  want_ctc(call, 0);
  want(call.number(4) >= 0 && call.number(4) < call.tensor(0).size(-1), "the blank is not a class");
}

// (grad, log_probs, targets, input_lengths, target_lengths, neg_log_likelihood, log_alpha, blank, ...)
void ctc_loss_backward(const Stack& stack) {
  const Operands call(stack);
  const auto [batch, steps, longest] = want_ctc(call, 1);
  want(call.number(7) >= 0 && call.number(7) < call.tensor(1).size(-1), "the blank is not a class");
  want(call.tensor(0).numel() == batch && call.tensor(5).numel() == batch, "the losses are not one per sequence");
  const at::Tensor& alpha = call.tensor(6);
  const int64_t back = alpha.dim();
  want(back >= 2 && alpha.size(-1) >= 2 * longest + 1 && alpha.size(-2) == steps &&
           (back == 2 ? batch == 1 : back == 3 && alpha.size(0) == batch),
       "log_alpha does not belong to this loss");
  for (const size_t i : {0, 5, 6})
    want(call.tensor(i).scalar_type() == call.tensor(1).scalar_type(), "the dtypes differ");
}

// Along its last dimension, `lengths` splits `axis` of the data.
void want_segments(const at::Tensor& data, const Operands& call, size_t lengths_at, size_t offsets_at, int64_t axis,
                   const at::Tensor* output) {
  want(call.has(lengths_at) != call.has(offsets_at), "either lengths or offsets say where segments begin");
  const bool by_lengths = call.has(lengths_at);
  const at::Tensor& marks = call.tensor(by_lengths ? lengths_at : offsets_at);
  want(marks.dim() >= 1 && axis == marks.dim() - 1 && axis < data.dim(), "the axis is not the last of the segments'");
  for (int64_t d = 0; d < axis; ++d) want(marks.size(d) == data.size(d), "the segments have another batch");
  const int64_t along = data.size(axis);
  want_within(marks, 0, along + 1, "a segment reaches beyond the data");
  int64_t segments = marks.size(axis);
  if (by_lengths) {
    if (marks.numel() != 0) want_within(marks.sum(-1), 0, along + 1, "the segments are longer than the data");
  } else {
    want(segments >= 1, "offsets are empty");
    --segments;
    want_within(marks.slice(-1, 1).sub(marks.slice(-1, 0, -1)), 0, INT64_MAX, "offsets fall");
  }
  if (output == nullptr) return;
  want(output->dim() == data.dim(), "the result has another rank than the data");
  for (int64_t d = 0; d < data.dim(); ++d)
    want(output->size(d) == (d == axis ? segments : data.size(d)), "the result has other sizes than the segments");
}

// (data, reduce, lengths, indices, offsets, axis, unsafe, initial)
void segment_reduce(const Stack& stack) {
  const Operands call(stack);
  want(!call.has(3), "segments by index are not implemented");
  want_segments(call.tensor(0), call, 2, 4, call.number(5), nullptr);
}

// (grad, output, data, reduce, lengths, offsets, axis, initial)
void segment_reduce_backward(const Stack& stack) {
  const Operands call(stack);
  want_same_sizes(call.tensor(0), call.tensor(1), "the gradient and the result have different sizes");
  want_segments(call.tensor(2), call, 4, 5, call.number(6), &call.tensor(1));
}

// (repeats, output_size) or (self, repeats, ...), which is a composition
void repeat_interleave(const Stack& stack) {
  const Operands call(stack);
  const at::Tensor& repeats = call.tensor(0);
  constexpr int64_t kMost = int64_t{1} << 40;
  want(repeats.dim() == 1, "the repeats are not a vector");
  want_within(repeats, 0, kMost, "a repeat is negative or too large");
  want(repeats.numel() < (int64_t{1} << 22), "too many repeats");  // so that their sum cannot overflow
  want(call.none(1) || call.number(1) == repeats.sum().item<int64_t>(), "the size is not the sum of the repeats");
}

// (LU, pivots, ...): row exchanges, numbered from 1.
void lu_pivots(const Stack& stack) {
  const Operands call(stack);
  want(call.tensor(0).dim() >= 2, "not a matrix");
  want_within(call.tensor(1), 1, call.tensor(0).size(-2) + 1, "a pivot lies outside the matrix");
}

// Negative where a block of two rows is exchanged: then both rows say so.
void ldl_pivots(const Stack& stack) {
  const Operands call(stack);
  const at::Tensor& matrix = call.tensor(0);
  want(matrix.dim() >= 2, "not a matrix");
  const int64_t rows = matrix.size(-2);
  want(call.tensor(1).dim() >= 1 && call.tensor(1).size(-1) == rows, "the pivots are not one per row");
  want_within(call.tensor(1), -rows, rows + 1, "a pivot lies outside the matrix");
  const auto pivots = lengths_of(call.value(1));
  int64_t negative = 0;
  for (size_t i = 0; i < pivots.size(); ++i) {
    want(pivots[i] != 0, "a pivot is 0");
    negative = pivots[i] < 0 ? negative + 1 : 0;
    const bool ends = i + 1 == pivots.size() || pivots[i + 1] > 0 || static_cast<int64_t>(i + 1) % rows == 0;
    want(!ends || negative % 2 == 0, "half a block of two rows");
    if (ends) negative = 0;
  }
}

// (self, b, ...)
void least_squares(const Stack& stack) {
  const Operands call(stack);
  want(call.tensor(0).numel() > 0 && call.tensor(1).numel() > 0, "there is nothing to solve");
}

// (LU_data, LU_pivots, ...)
void lu_unpack(const Stack& stack) {
  const Operands call(stack);
  const at::Tensor& lu = call.tensor(0);
  const at::Tensor& pivots = call.tensor(1);
  want(lu.dim() >= 2 && pivots.dim() == lu.dim() - 1, "the pivots have another rank than the matrices");
  want(pivots.sizes().slice(0, static_cast<size_t>(lu.dim() - 2)) ==
           lu.sizes().slice(0, static_cast<size_t>(lu.dim() - 2)),
       "the pivots have another batch than the matrices");
  want(pivots.size(-1) == std::min(lu.size(-2), lu.size(-1)), "the pivots are not one per row");
  want_within(pivots, 1, lu.size(-2) + 1, "a pivot lies outside the matrix");
}

// The gradient of a loss: one number, or one per sample.
void want_loss_gradient(const at::Tensor& grad, int64_t reduction, at::IntArrayRef samples) {
  want(reduction >= 0 && reduction <= 2, "an unknown reduction");
  want(reduction == 0 ? grad.sizes() == samples : grad.numel() == 1, "the gradient does not belong to this loss");
}

// (grad_output, self, target, weight, reduction, ignore_index, total_weight): classes at dimension 1, or 0 of a vector.
void nll_loss_backward(const Stack& stack) {
  const Operands call(stack);
  const at::Tensor& self = call.tensor(1);
  const at::Tensor& target = call.tensor(2);
  want(self.dim() == 1 || self.dim() == 2 || self.dim() == 4, "a wrong rank");
  const int64_t classes = self.size(self.dim() == 1 ? 0 : 1);
  auto samples = self.sizes().vec();
  samples.erase(samples.begin() + (self.dim() == 1 ? 0 : 1));
  want(target.sizes() == at::IntArrayRef(samples) || (self.dim() == 1 && target.numel() == 1),
       "the targets are not one per sample");
  want_loss_gradient(call.tensor(0), call.number(4), target.sizes());
  want_vector(call, 3, classes, "the weight is not one number per class");
  want(call.tensor(6).numel() == 1, "the total weight is not a number");
  want_within(target.masked_fill(target.eq(call.number(5)), 0), 0, std::max<int64_t>(classes, 1),
              "a target is not a class");
}

// (grad_output, self, target, p, margin, weight, reduction)
void multi_margin_backward(const Stack& stack) {
  const Operands call(stack);
  const at::Tensor& self = call.tensor(1);
  want(self.dim() <= 2, "a wrong rank");
  want(call.tensor(2).numel() == (self.dim() == 2 ? self.size(0) : 1), "the targets are not one per sample");
  want_loss_gradient(call.tensor(0), call.number(6), call.tensor(2).sizes());
}

// (grad_output, self, target, reduction, is_target)
void multilabel_margin_backward(const Stack& stack) {
  const Operands call(stack);
  const at::Tensor& self = call.tensor(1);
  want(self.dim() <= 2, "a wrong rank");
  want_same_sizes(self, call.tensor(2), "the targets have other sizes than the input");
  want_same_sizes(self, call.tensor(4), "the targets have other sizes than the input");
  want_loss_gradient(call.tensor(0), call.number(3), self.sizes().slice(0, self.dim() == 2 ? 1 : 0));
}

constexpr GuardEntry kIndexGuards[] = {
    {"aten::max_pool2d_with_indices_backward", max_pool_backward<2, 7>},
    {"aten::max_pool3d_with_indices_backward", max_pool_backward<3, 7>},
    {"aten::adaptive_max_pool2d_backward", max_pool_backward<2, 2>},
    {"aten::adaptive_max_pool3d_backward", max_pool_backward<3, 2>},
    {"aten::fractional_max_pool2d_backward", fractional_max_pool_backward<2>},
    {"aten::fractional_max_pool3d_backward", fractional_max_pool_backward<3>},
    {"aten::embedding_dense_backward", embedding_backward},
    {"aten::embedding_renorm", embedding_renorm},
    {"aten::embedding_renorm_", embedding_renorm},
    {"aten::_embedding_bag", embedding_bag},
    {"aten::_embedding_bag_forward_only", embedding_bag},
    {"aten::_embedding_bag_backward", embedding_bag_backward},
    {"aten::_embedding_bag_dense_backward", embedding_bag_dense_backward},
    {"aten::_embedding_bag_per_sample_weights_backward", embedding_bag_weights_backward},
    {"aten::_ctc_loss", ctc_loss},
    {"aten::_ctc_loss_backward", ctc_loss_backward},
    {"aten::segment_reduce", segment_reduce},
    {"aten::_segment_reduce_backward", segment_reduce_backward},
    {"aten::repeat_interleave", repeat_interleave},
    {"aten::linalg_lu_solve", lu_pivots},
    {"aten::linalg_ldl_solve", ldl_pivots},
    {"aten::linalg_lstsq", least_squares},
    {"aten::lu_unpack", lu_unpack},
    {"aten::nll_loss_backward", nll_loss_backward},
    {"aten::nll_loss2d_backward", nll_loss_backward},
    {"aten::multi_margin_loss_backward", multi_margin_backward},
    {"aten::multilabel_margin_loss_backward", multilabel_margin_backward},
};

}  // namespace

std::span<const GuardEntry> index_guards() { return kIndexGuards; }

}  // namespace genie::executor
