// A layer of an LSTM, whole: the CPU's kernel (oneDNN's) computes all steps of a sequence in one go. It takes its operands' sizes
// and layouts on trust, and its backward pass a workspace of a size that only it knows; here all of that is checked.
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mkldnn_rnn_layer.h>
#include <ATen/ops/mkldnn_rnn_layer_backward.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <array>
#include <map>
#include <mutex>

#include "src/executor/guard_operands.h"

namespace genie::executor {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

constexpr int64_t kLstm = 2;  // among oneDNN's kinds of recurrent layers
constexpr int64_t kGates = 4;

const Tensor& defined(const Tensor& tensor) {
  want(tensor.defined(), "a tensor is missing");
  return tensor;
}

void want_floats(const Tensor& tensor, at::IntArrayRef sizes, const char* what) {
  want(tensor.scalar_type() == at::kFloat && tensor.sizes() == sizes, what);
}

// The operands that both passes have: what they must look like follows from input [steps, batch, width] and hx [batch, hidden].
struct Layer {
  Tensor input, w_ih, w_hh, b_ih, b_hh, hx, cx;
  bool has_biases;
  bool reverse;

  Layer(const Tensor& input, const Tensor& w_ih, const Tensor& w_hh, const OptionalTensor& b_ih,
        const OptionalTensor& b_hh, const Tensor& hx, const Tensor& cx, bool reverse)
      : input(defined(input).contiguous()),
        w_ih(defined(w_ih).contiguous()),
        w_hh(defined(w_hh).contiguous()),
        b_ih(b_ih.has_value() ? defined(*b_ih).contiguous() : at::zeros({0}, w_ih.options())),
        b_hh(b_hh.has_value() ? defined(*b_hh).contiguous() : at::zeros({0}, w_ih.options())),
        hx(defined(hx).contiguous()),
        cx(defined(cx).contiguous()),
        has_biases(b_ih.has_value()),
        reverse(reverse) {
    want(input.dim() == 3 && input.numel() > 0 && hx.dim() == 2 && hx.numel() > 0, "an empty input, or a wrong rank");
    want(b_ih.has_value() == b_hh.has_value(), "one bias is missing");
    want_floats(input, input.sizes(), "the input is not float");
    want_floats(hx, {input.size(1), hidden()}, "the hidden state does not fit the input");
    want_floats(cx, hx.sizes(), "the cell state does not fit the input");
    want_floats(w_ih, {kGates * hidden(), input.size(2)}, "the input's weight does not fit");
    want_floats(w_hh, {kGates * hidden(), hidden()}, "the hidden state's weight does not fit");
    if (!has_biases) return;
    want_floats(*b_ih, {kGates * hidden()}, "the input's bias does not fit");
    want_floats(*b_hh, {kGates * hidden()}, "the hidden state's bias does not fit");
  }

  int64_t hidden() const { return hx.size(1); }
  std::tuple<Tensor, Tensor, Tensor, Tensor> forward(bool training) const {
    // The kernel asks this mode whether it shall keep what a backward pass needs; its numbers differ a little.
    const at::AutoGradMode mode(training);
    return at::mkldnn_rnn_layer(input, w_ih, w_hh, b_ih, b_hh, hx, cx, reverse, {}, kLstm, hidden(), /*num_layers=*/1,
                                has_biases, /*bidirectional=*/false, /*batch_first=*/false, training);
  }
};

// The workspace's size follows from the layer's. A forward pass tells it, once for each.
int64_t workspace_bytes(const Layer& layer) {
  using Key = std::array<int64_t, 4>;
  constexpr size_t kRemembered = 1024;
  static std::mutex mutex;
  static auto* const known = new std::map<Key, int64_t>;
  const Key key{layer.input.size(0), layer.input.size(1), layer.input.size(2), layer.hidden()};
  const std::lock_guard<std::mutex> lock(mutex);
  if (known->size() >= kRemembered) known->clear();
  const auto [place, fresh] = known->try_emplace(key, -1);
  if (place->second < 0) place->second = std::get<3>(layer.forward(/*training=*/true)).numel();
  return place->second;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> lstm_layer(const Tensor& input, const Tensor& w_ih, const Tensor& w_hh,
                                                      const OptionalTensor& b_ih, const OptionalTensor& b_hh,
                                                      const Tensor& hx, const Tensor& cx, bool reverse, bool training) {
  return Layer(input, w_ih, w_hh, b_ih, b_hh, hx, cx, reverse).forward(training);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> lstm_layer_backward(
    const Tensor& input, const Tensor& w_ih, const Tensor& w_hh, const OptionalTensor& b_ih, const OptionalTensor& b_hh,
    const Tensor& hx, const Tensor& cx, const Tensor& output, const Tensor& hy, const Tensor& cy,
    const OptionalTensor& grad_output, const OptionalTensor& grad_hy, const OptionalTensor& grad_cy, bool reverse,
    const Tensor& workspace) {
  const Layer layer(input, w_ih, w_hh, b_ih, b_hh, hx, cx, reverse);
  const std::array<int64_t, 3> out_sizes{input.size(0), input.size(1), layer.hidden()};
  want_floats(output, out_sizes, "the output has other sizes than the layer's");
  want_floats(hy, hx.sizes(), "the last hidden state has other sizes than the first");
  want_floats(cy, hx.sizes(), "the last cell state has other sizes than the first");
  if (grad_output.has_value()) want_floats(*grad_output, out_sizes, "the output's gradient has other sizes");
  if (grad_hy.has_value()) want_floats(*grad_hy, hx.sizes(), "the hidden state's gradient has other sizes");
  if (grad_cy.has_value()) want_floats(*grad_cy, hx.sizes(), "the cell state's gradient has other sizes");
  want(grad_output.has_value() || grad_hy.has_value() || grad_cy.has_value(), "there is no gradient");
  want(workspace.scalar_type() == at::kByte && workspace.dim() == 1 && workspace.numel() == workspace_bytes(layer),
       "the workspace is not what the forward pass made");
  // As the forward pass aligned it, wherever these bytes come from.
  const Tensor aligned = at::empty(workspace.sizes(), workspace.options()).copy_(workspace);
  return at::mkldnn_rnn_layer_backward(layer.input, layer.w_ih, layer.w_hh, layer.b_ih, layer.b_hh, layer.hx, layer.cx,
                                       output.contiguous(), hy.contiguous(), cy.contiguous(), grad_output, grad_hy,
                                       grad_cy, reverse, kLstm, layer.hidden(), /*num_layers=*/1, layer.has_biases,
                                       /*train=*/true, /*bidirectional=*/false, {}, /*batch_first=*/false, aligned);
}

TORCH_LIBRARY_FRAGMENT(genie, library) {
  library.def(
      "lstm_layer(Tensor input, Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, Tensor hx, Tensor cx, bool "
      "reverse, "
      "bool training) -> (Tensor, Tensor, Tensor, Tensor)");
  library.impl("lstm_layer", c10::DispatchKey::CPU, TORCH_FN(lstm_layer));
  library.def(
      "lstm_layer_backward(Tensor input, Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, Tensor hx, Tensor cx, "
      "Tensor output, Tensor hy, Tensor cy, Tensor? grad_output, Tensor? grad_hy, Tensor? grad_cy, bool reverse, "
      "Tensor workspace) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  library.impl("lstm_layer_backward", c10::DispatchKey::CPU, TORCH_FN(lstm_layer_backward));
}

}  // namespace
}  // namespace genie::executor
