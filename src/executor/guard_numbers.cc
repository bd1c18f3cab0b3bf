// Kernels that compute with integers and scales as they come.
#include <ATen/ops/isfinite.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "src/executor/guard_operands.h"
#include "src/executor/guard_tables.h"

namespace genie::executor {
namespace {

using Stack = torch::jit::Stack;

// Different dimensions of the tensor, none counted from the end; answers the last.
int64_t want_fft(const Operands& call) {
  const at::Tensor& self = call.tensor(0);
  std::set<int64_t> seen;
  const auto dims = call.numbers(1);
  for (const int64_t dim : dims) {
    want(dim >= 0 && dim < self.dim(), "a dimension that the tensor does not have");
    want(seen.insert(dim).second, "a dimension twice");
  }
  want(call.number(2) >= 0 && call.number(2) <= 2, "an unknown normalization");
  return dims.empty() ? -1 : dims.back();
}

// (self, dim, normalization, ...)
void fft(const Stack& stack) { (void)want_fft(Operands(stack)); }

// (self, dim, normalization, last_dim_size): half of a spectrum.
void fft_to_real(const Stack& stack) {
  const Operands call(stack);
  const int64_t last = want_fft(call);
  want(!call.numbers(1).empty() && call.number(3) >= 1, "no dimension, or no size");
  want(call.tensor(0).size(last) == call.number(3) / 2 + 1, "the size does not belong to this spectrum");
}

// The last of `to` samples must lie within `from` pixels, which is so when the scale led from one to the other.
void want_scale(const c10::IValue& scale, int64_t from, int64_t to) {
  if (scale.isNone()) return;
  const double factor = scale.toDouble();
  want(std::isfinite(factor) && factor > 0.0 && to >= 1, "a scale is not positive");
  want((static_cast<double>(to) - 0.5) / factor < static_cast<double>(from) + 0.5,
       "a scale does not lead from the input's size to the output's");
}

// (self, output_size, align_corners, scales_h, scales_w)
void upsample_smooth(const Stack& stack) {
  const Operands call(stack);
  if (!call.is_numbers(1) || call.numbers(1).size() != 2 || call.count() < 5) return;  // derives its sizes
  want(call.tensor(0).dim() == 4, "a wrong rank");
  if (call.flag(2)) return;
  want_scale(call.value(3), call.tensor(0).size(2), call.numbers(1)[0]);
  want_scale(call.value(4), call.tensor(0).size(3), call.numbers(1)[1]);
}

// (grad_output, output_size, input_size, align_corners, scales_h, scales_w)
void upsample_smooth_backward(const Stack& stack) {
  const Operands call(stack);
  const auto to = call.numbers(1);
  const auto from = call.numbers(2);
  want(to.size() == 2 && from.size() == 4, "sizes of a wrong rank");
  if (call.flag(3)) return;
  want_scale(call.value(4), from[2], to[0]);
  want_scale(call.value(5), from[3], to[1]);
}

// End; start and end; or start, end and step, behind which comes the dtype or the result. As whole numbers their differences
// must not overflow, and the step must not become 0.
void range(const Stack& stack) {
  const Operands call(stack);
  constexpr size_t kOptions = 4;  // dtype, layout, device, pin_memory
  constexpr double kMost = 1e18;
  const bool stepped = call.count() == 3 + kOptions || call.count() == kOptions;
  const size_t numbers = stepped ? 3 : call.count() - std::min(call.count(), kOptions);
  bool whole = false;
  if (stepped && call.value(3).isInt()) whole = at::isIntegralType(static_cast<at::ScalarType>(call.number(3)), true);
  if (stepped && call.has(3)) whole = at::isIntegralType(call.tensor(3).scalar_type(), true);
  for (size_t i = 0; i < numbers; ++i) {
    const c10::IValue& value = call.value(i);
    if (value.isInt()) want(std::abs(static_cast<double>(value.toInt())) < kMost, "a bound is too large");
    if (value.isDouble() && whole) want(std::abs(value.toDouble()) < kMost, "a bound is too large");
    if (value.isDouble() && whole && i == 2) want(std::abs(value.toDouble()) >= 1.0, "the step is 0 as a whole number");
  }
}

// (grad_output, self, target, ...): divides by a number that is 0 as a whole one.
void smooth_loss_backward(const Stack& stack) {
  const Operands call(stack);
  want(at::isFloatingType(call.tensor(1).scalar_type()), "the input is not of floating-point numbers");
}

// (self, noise, lower, upper, training, generator, out)
void noisy(const Stack& stack) {
  const Operands call(stack);
  want_same_sizes(call.tensor(0), call.tensor(1), "the noise has other sizes than the input");
  if (call.has(6)) want_same_sizes(call.tensor(0), call.tensor(6), "the result has other sizes than the input");
}

// The smallest 64-bit number has no positive counterpart, and dividing it by -1 traps.
void common_divisor(const Stack& stack) {
  const Operands call(stack);
  for (const size_t i : {0, 1}) {
    const at::Tensor& tensor = call.tensor(i);
    if (tensor.scalar_type() == at::kLong && tensor.numel() != 0)
      want(!tensor.eq(INT64_MIN).any().item<bool>(), "a number is too small");
  }
}

// stride, padding, dilation, transposed, output_padding and groups from `first` on.
void want_windows(const Operands& call, size_t first) {
  constexpr int64_t kMost = int64_t{1} << 24;
  const auto within = [&](size_t index, int64_t least) {
    for (const int64_t number : call.numbers(index)) want(number >= least && number < kMost, "a window out of range");
  };
  within(first, 1);
  within(first + 1, 0);
  within(first + 2, 1);
  within(first + 4, 0);
  want(call.number(first + 5) >= 1, "no groups");
}

// (input, weight, bias, stride, ...)
void convolution(const Stack& stack) { want_windows(Operands(stack), 3); }

// (grad_output, input, weight, bias_sizes, stride, ...)
void convolution_backward(const Stack& stack) { want_windows(Operands(stack), 4); }

// (count, prob): draws until the count is used up.
void binomial(const Stack& stack) {
  const Operands call(stack);
  constexpr double kMost = 1e15;
  for (const size_t i : {0, 1}) {
    const at::Tensor& tensor = call.tensor(i);
    want(at::isFloatingType(tensor.scalar_type()), "counts and probabilities are floating-point numbers");
    want(tensor.numel() == 0 || tensor.abs().le(i == 0 ? kMost : 1.0).all().item<bool>(),
         "a count is too large, or a probability above 1");
  }
}

// (tensors, dim, num_chunks)
void chunk_cat(const Stack& stack) {
  const Operands call(stack);
  const int64_t dim = call.number(1);
  for (const at::Tensor& tensor : call.tensors(0))
    want(tensor.defined() && dim >= -tensor.dim() && dim < tensor.dim(), "a dimension that a tensor does not have");
  want(call.number(2) >= 1 && call.number(2) < (int64_t{1} << 24), "the number of chunks is out of range");
}

// (self): LAPACK leaves its memory when it meets NaN or infinity.
void finite(const Stack& stack) {
  want(at::isfinite(Operands(stack).tensor(0)).all().item<bool>(), "the matrix holds NaN or infinity");
}

// (x, n): computed term by term.
void polynomial(const Stack& stack) {
  const Operands call(stack);
  constexpr int64_t kMost = 1'000'000;
  if (call.is_tensor(1)) {
    // Unsigned integers beyond bytes have no comparisons.
    const at::Tensor& given = call.tensor(1);
    const at::Tensor degree = c10::isBarebonesUnsignedType(given.scalar_type()) ? given.to(at::kDouble) : given;
    want(degree.numel() == 0 || degree.le(kMost).all().item<bool>(), "the degree is too large");
  } else {
    want(call.value(1).toScalar().toDouble() <= static_cast<double>(kMost), "the degree is too large");
  }
}

// A tensor without elements may have a dimension of any size: what is made for each index of one needs a limit.
constexpr int64_t kMostSlices = int64_t{1} << 20;

// (self, dim)
void unbind(const Stack& stack) {
  const Operands call(stack);
  want(call.tensor(0).size(call.number(1)) <= kMostSlices, "too many slices");
}

// (self, split_size, dim)
void split(const Stack& stack) {
  const Operands call(stack);
  if (!call.value(1).isInt()) return;  // a list of sizes is as long as its message
  const int64_t size = call.number(1);
  want(size >= 0 && call.tensor(0).size(call.number(2)) / std::max<int64_t>(size, 1) <= kMostSlices, "too many slices");
}

// (self, bins, ...): tensors of edges for each index of the last dimension.
void histogram_edges(const Stack& stack) {
  const Operands call(stack);
  const at::Tensor& self = call.tensor(0);
  want(self.dim() >= 1 && self.size(-1) <= kMostSlices, "too many dimensions of a histogram");
}

constexpr GuardEntry kNumberGuards[] = {
    {"aten::_histogramdd_bin_edges", histogram_edges},
    {"aten::_histogramdd_from_bin_cts", histogram_edges},
    {"aten::unbind_copy", unbind},
    {"aten::split_copy", split},
    {"aten::unsafe_split", split},
    {"aten::convolution", convolution},
    {"aten::convolution_backward", convolution_backward},
    {"aten::binomial", binomial},
    {"aten::special_chebyshev_polynomial_t", polynomial},
    {"aten::special_chebyshev_polynomial_u", polynomial},
    {"aten::special_chebyshev_polynomial_v", polynomial},
    {"aten::special_chebyshev_polynomial_w", polynomial},
    {"aten::special_hermite_polynomial_h", polynomial},
    {"aten::special_hermite_polynomial_he", polynomial},
    {"aten::special_laguerre_polynomial_l", polynomial},
    {"aten::special_legendre_polynomial_p", polynomial},
    {"aten::special_shifted_chebyshev_polynomial_t", polynomial},
    {"aten::special_shifted_chebyshev_polynomial_u", polynomial},
    {"aten::special_shifted_chebyshev_polynomial_v", polynomial},
    {"aten::special_shifted_chebyshev_polynomial_w", polynomial},

    {"aten::_fft_c2c", fft},
    {"aten::_fft_r2c", fft},
    {"aten::_fft_c2r", fft_to_real},
    {"aten::_upsample_bilinear2d_aa", upsample_smooth},
    {"aten::_upsample_bicubic2d_aa", upsample_smooth},
    {"aten::_upsample_lanczos2d_aa", upsample_smooth},
    {"aten::_upsample_bilinear2d_aa_backward", upsample_smooth_backward},
    {"aten::_upsample_bicubic2d_aa_backward", upsample_smooth_backward},
    {"aten::_upsample_lanczos2d_aa_backward", upsample_smooth_backward},
    {"aten::_chunk_cat", chunk_cat},
    {"aten::_linalg_eigvals", finite},
    {"aten::linalg_eigvals", finite},
    {"aten::rrelu_with_noise", noisy},
    {"aten::rrelu_with_noise_", noisy},
    {"aten::smooth_l1_loss_backward", smooth_loss_backward},
    {"aten::arange", range},
    {"aten::range", range},
    {"aten::gcd", common_divisor},
    {"aten::gcd_", common_divisor},
    {"aten::lcm", common_divisor},
    {"aten::lcm_", common_divisor},
};

}  // namespace

std::span<const GuardEntry> number_guards() { return kNumberGuards; }

}  // namespace genie::executor
