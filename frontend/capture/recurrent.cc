// Recurrent layers: LSTM, GRU and the simple ones, whole sequences and packed ones.
//
// On a device of its own kind PyTorch asks for a fused kernel per step that no CPU has, and projects the input step by step.
// Here they take the CPU's way, operator by operator, so that numbers and gradients are its own: the input of all steps is
// projected at once; a layer of an LSTM is one record where the CPU has one kernel for it (oneDNN's).
#include <ATen/Context.h>
#include <ATen/autocast_mode.h>
#include <ATen/ops/_pack_padded_sequence_native.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/dropout.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/mkldnn_rnn_layer.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tanh.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <span>
#include <vector>

#include "frontend/capture/recorder.h"
#include "frontend/capture/registration.h"

namespace genie::frontend {
namespace {

using at::Tensor;
using Tensors = std::vector<Tensor>;
using OptionalTensor = std::optional<Tensor>;

enum class Cell : uint8_t { kLstm, kGru, kTanh, kRelu };

constexpr int64_t kOneDnnLstm = 2;

// What one step hands to the next: h, and for an LSTM also c.
struct Hidden {
  Tensor h;
  Tensor c;

  Hidden narrow(int64_t start, int64_t length) const {
    return {h.narrow(0, start, length), c.defined() ? c.narrow(0, start, length) : Tensor()};
  }
};

Hidden join(const std::vector<Hidden>& parts) {
  Tensors h;
  Tensors c;
  for (const Hidden& part : parts) {
    h.push_back(part.h);
    if (part.c.defined()) c.push_back(part.c);
  }
  return {at::cat(h, 0), c.empty() ? Tensor() : at::cat(c, 0)};
}

// Of one layer in one direction.
struct Weights {
  Tensor w_ih, w_hh;
  OptionalTensor b_ih, b_hh;
  Tensor projection;  // of an LSTM's h, where it has one

  Tensor of_input(const Tensor& input) const { return at::linear(input, w_ih, b_ih); }
  Tensor of_hidden(const Tensor& h) const { return at::linear(h, w_hh, b_hh); }
};

std::vector<Weights> group(at::TensorList flat, bool has_biases, bool has_projections) {
  const size_t size = 2 + (has_biases ? 2U : 0U) + (has_projections ? 1U : 0U);
  TORCH_CHECK(flat.size() % size == 0, "got an incorrect number of RNN parameters");
  std::vector<Weights> out;
  for (size_t i = 0; i < flat.size(); i += size) {
    Weights weights{.w_ih = flat[i], .w_hh = flat[i + 1]};
    if (has_biases) {
      weights.b_ih = flat[i + 2];
      weights.b_hh = flat[i + 3];
    }
    if (has_projections) weights.projection = flat[i + size - 1];
    out.push_back(std::move(weights));
  }
  return out;
}

// -- One step --------------------------------------------------------------------------------------------------------------
// `input` is what of_input() made of it.

Hidden lstm_step(const Tensor& input, const Hidden& hidden, const Weights& weights) {
  const Tensors gates = weights.of_hidden(hidden.h).add_(input).unsafe_chunk(4, 1);
  Tensor in = gates[0];
  Tensor forget = gates[1];
  Tensor cell = gates[2];
  Tensor out = gates[3];
  in.sigmoid_();
  forget.sigmoid_();
  cell.tanh_();
  out.sigmoid_();
  const Tensor c = (forget * hidden.c).add_(in * cell);
  const Tensor h = out * c.tanh();
  return {weights.projection.defined() ? at::matmul(h, weights.projection.t()) : h, c};
}

Hidden gru_step(const Tensor& input, const Hidden& hidden, const Weights& weights) {
  const Tensors from_input = input.unsafe_chunk(3, 1);
  Tensors from_hidden = weights.of_hidden(hidden.h).unsafe_chunk(3, 1);
  const Tensor reset = from_hidden[0].add_(from_input[0]).sigmoid_();
  const Tensor keep = from_hidden[1].add_(from_input[1]).sigmoid_();
  const Tensor fresh = from_input[2].add(from_hidden[2].mul_(reset)).tanh_();
  return {(hidden.h - fresh).mul_(keep).add_(fresh), Tensor()};
}

Hidden step(Cell cell, const Tensor& input, const Hidden& hidden, const Weights& weights) {
  switch (cell) {
    case Cell::kLstm: return lstm_step(input, hidden, weights);
    case Cell::kGru: return gru_step(input, hidden, weights);
    case Cell::kTanh: return {at::tanh(weights.of_hidden(hidden.h).add_(input)), Tensor()};
    case Cell::kRelu: return {at::relu(weights.of_hidden(hidden.h).add_(input)), Tensor()};
  }
  return {};
}

// -- One layer in one direction --------------------------------------------------------------------------------------------

struct Sequence {
  Tensor output;
  Hidden hidden;
};

// input: [steps, batch, width]
Sequence run_full(Cell cell, const Tensor& input, Hidden hidden, const Weights& weights, bool reverse) {
  Tensors steps = weights.of_input(input).unbind(0);
  TORCH_CHECK(!steps.empty(), "Expected sequence length to be larger than 0 in RNN");
  if (reverse) std::reverse(steps.begin(), steps.end());
  Tensors outputs;
  for (const Tensor& each : steps) {
    hidden = step(cell, each, hidden, weights);
    outputs.push_back(hidden.h);
  }
  if (reverse) std::reverse(outputs.begin(), outputs.end());
  return {at::stack(outputs, 0), hidden};
}

// data: the steps behind each other, each as many rows as sequences are that long; fewer from step to step.
Sequence run_packed(Cell cell, const Tensor& data, std::span<const int64_t> rows, Hidden hidden,
                    const Weights& weights) {
  const Tensor input = weights.of_input(data);
  Tensors outputs;
  std::vector<Hidden> ended;  // the shortest sequences' first
  int64_t begin = 0;
  int64_t before = rows[0];
  for (const int64_t now : rows) {
    if (now < before) {
      ended.push_back(hidden.narrow(now, before - now));
      hidden = hidden.narrow(0, now);
    }
    hidden = step(cell, input.narrow(0, begin, now), hidden, weights);
    outputs.push_back(hidden.h);
    begin += now;
    before = now;
  }
  ended.push_back(hidden);
  std::reverse(ended.begin(), ended.end());
  return {at::cat(outputs, 0), join(ended)};
}

// From the last step, which only the longest sequences have; the others join when their end comes.
Sequence run_packed_reverse(Cell cell, const Tensor& data, std::span<const int64_t> rows, const Hidden& first,
                            const Weights& weights) {
  const Tensor input = weights.of_input(data);
  Tensors outputs;
  int64_t end = data.size(0);
  int64_t before = rows.back();
  Hidden hidden = first.narrow(0, before);
  for (size_t i = rows.size(); i-- > 0;) {
    const int64_t now = rows[i];
    if (now > before) hidden = join({hidden, first.narrow(before, now - before)});
    hidden = step(cell, input.narrow(0, end - now, now), hidden, weights);
    outputs.push_back(hidden.h);
    end -= now;
    before = now;
  }
  std::reverse(outputs.begin(), outputs.end());
  return {at::cat(outputs, 0), hidden};
}

Sequence run_whole_lstm(const Tensor& input, const Hidden& hidden, const Weights& weights, bool reverse) {
  const bool has_biases = weights.b_ih.has_value();
  const auto bias = [&](const OptionalTensor& given) {
    return given.has_value() ? *given : at::empty({0}, weights.w_ih.options());
  };
  auto [output, h, c, workspace] = at::mkldnn_rnn_layer(
      input, weights.w_ih, weights.w_hh, bias(weights.b_ih), bias(weights.b_hh), hidden.h, hidden.c, reverse, {},
      kOneDnnLstm, hidden.h.size(1), /*num_layers=*/1, has_biases, /*bidirectional=*/false, /*batch_first=*/false,
      /*train=*/true);
  return {output, {h, c}};
}

// -- Layers above each other -----------------------------------------------------------------------------------------------

struct Settings {
  int64_t layers;
  double dropout;
  bool train;
  bool bidirectional;
};

struct Result {
  Tensor output;
  Tensor h, c;  // of all layers and directions
};

// `run` works one layer off in one direction: (input, hidden, weights, reverse) -> Sequence.
template <typename Run>
Result run_layers(Tensor input, const Tensor& h, const Tensor& c, const std::vector<Weights>& weights,
                  const Settings& settings, const Run& run) {
  const int64_t directions = settings.bidirectional ? 2 : 1;
  TORCH_CHECK(h.dim() == 3 && h.size(0) == settings.layers * directions, "Expected ", settings.layers * directions,
              " hidden states in stacked_rnn, got ", h.sizes());
  TORCH_CHECK(!c.defined() || (c.dim() == 3 && c.size(0) == h.size(0)), "Expected ", h.size(0),
              " cell states in stacked_rnn, got ", c.sizes());
  TORCH_CHECK(static_cast<int64_t>(weights.size()) == h.size(0), "Expected weights of ", h.size(0),
              " layers in stacked_rnn, got those of ", weights.size());
  const Tensors hs = h.unbind(0);
  const Tensors cs = c.defined() ? c.unbind(0) : Tensors(hs.size());
  Tensors last_h;
  Tensors last_c;
  for (int64_t layer = 0; layer < settings.layers; ++layer) {
    Tensors outputs;
    for (int64_t direction = 0; direction < directions; ++direction) {
      const auto at = static_cast<size_t>(layer * directions + direction);
      Sequence done = run(input, Hidden{hs[at], cs[at]}, weights[at], direction == 1);
      outputs.push_back(done.output);
      last_h.push_back(done.hidden.h);
      last_c.push_back(done.hidden.c);
    }
    input = outputs.size() == 1 ? outputs[0] : at::cat(outputs, -1);
    if (settings.dropout != 0 && settings.train && layer + 1 < settings.layers) {
      input = at::dropout(input, settings.dropout, /*train=*/true);
    }
  }
  return {input, at::stack(last_h, 0), c.defined() ? at::stack(last_c, 0) : Tensor()};
}

Result run_input(Cell cell, const Tensor& input, const Tensor& h, const Tensor& c, const std::vector<Weights>& weights,
                 const Settings& settings, bool batch_first) {
  Result done = run_layers(batch_first ? input.transpose(0, 1) : input, h, c, weights, settings,
                           [cell](const Tensor& in, const Hidden& hidden, const Weights& with, bool reverse) {
                             return run_full(cell, in, hidden, with, reverse);
                           });
  if (batch_first) done.output = done.output.transpose(0, 1);
  return done;
}

Result run_data(Cell cell, const Tensor& data, const Tensor& batch_sizes, const Tensor& h, const Tensor& c,
                const std::vector<Weights>& weights, const Settings& settings) {
  TORCH_CHECK(batch_sizes.device().is_cpu() && batch_sizes.scalar_type() == at::kLong && batch_sizes.dim() == 1 &&
                  batch_sizes.numel() > 0,
              "a packed sequence's batch sizes are a vector of int64 on the CPU");
  const Tensor sizes = batch_sizes.contiguous();
  const std::span<const int64_t> rows(sizes.const_data_ptr<int64_t>(), static_cast<size_t>(sizes.numel()));
  return run_layers(
      data, h, c, weights, settings, [&](const Tensor& in, const Hidden& hidden, const Weights& with, bool reverse) {
        return reverse ? run_packed_reverse(cell, in, rows, hidden, with) : run_packed(cell, in, rows, hidden, with);
      });
}

// Whether the CPU would take its kernel for whole layers. It also does for half and bfloat16, on processors that compute
// in them; here only for float.
bool cpu_has_whole_lstm(const Tensor& input, const Tensor& h, const Tensor& c, at::TensorList weights) {
  const auto is_float = [](const Tensor& tensor) { return tensor.scalar_type() == at::kFloat; };
  return at::globalContext().userEnabledMkldnn() && at::hasMKLDNN() && input.numel() != 0 && input.dim() == 3 &&
         is_float(input) && is_float(h) && is_float(c) && std::all_of(weights.begin(), weights.end(), is_float) &&
         !at::autocast::is_autocast_enabled(at::kPrivateUse1);
}

// -- The operators ---------------------------------------------------------------------------------------------------------

bool has_projections(at::TensorList hx) {
  TORCH_CHECK(hx.size() == 2, "lstm expects two hidden states");
  return hx[0].size(-1) != hx[1].size(-1);
}

std::tuple<Tensor, Tensor, Tensor> lstm_input(const Tensor& input, at::TensorList hx, at::TensorList params,
                                              bool has_biases, int64_t layers, double dropout, bool train,
                                              bool bidirectional, bool batch_first) {
  const bool projections = has_projections(hx);
  const Settings settings{layers, dropout, train, bidirectional};
  const auto weights = group(params, has_biases, projections);
  Result done;
  if (!projections && cpu_has_whole_lstm(input, hx[0], hx[1], params)) {
    done = run_layers((batch_first ? input.transpose(0, 1) : input).contiguous(), hx[0].contiguous(),
                      hx[1].contiguous(), weights, settings, run_whole_lstm);
    if (batch_first) done.output = done.output.transpose(0, 1);
  } else {
    done = run_input(Cell::kLstm, input, hx[0], hx[1], weights, settings, batch_first);
  }
  return {done.output, done.h, done.c};
}

std::tuple<Tensor, Tensor, Tensor> lstm_data(const Tensor& data, const Tensor& batch_sizes, at::TensorList hx,
                                             at::TensorList params, bool has_biases, int64_t layers, double dropout,
                                             bool train, bool bidirectional) {
  const bool projections = has_projections(hx);
  const Result done = run_data(Cell::kLstm, data, batch_sizes, hx[0], hx[1], group(params, has_biases, projections),
                               {layers, dropout, train, bidirectional});
  return {done.output, done.h, done.c};
}

template <Cell cell>
std::tuple<Tensor, Tensor> one_hidden_input(const Tensor& input, const Tensor& hx, at::TensorList params,
                                            bool has_biases, int64_t layers, double dropout, bool train,
                                            bool bidirectional, bool batch_first) {
  const Result done = run_input(cell, input, hx, Tensor(), group(params, has_biases, false),
                                {layers, dropout, train, bidirectional}, batch_first);
  return {done.output, done.h};
}

template <Cell cell>
std::tuple<Tensor, Tensor> one_hidden_data(const Tensor& data, const Tensor& batch_sizes, const Tensor& hx,
                                           at::TensorList params, bool has_biases, int64_t layers, double dropout,
                                           bool train, bool bidirectional) {
  const Result done = run_data(cell, data, batch_sizes, hx, Tensor(), group(params, has_biases, false),
                               {layers, dropout, train, bidirectional});
  return {done.output, done.h};
}

std::tuple<Tensor, Tensor> lstm_cell(const Tensor& input, at::TensorList hx, const Tensor& w_ih, const Tensor& w_hh,
                                     const OptionalTensor& b_ih, const OptionalTensor& b_hh) {
  TORCH_CHECK(hx.size() == 2, "lstm_cell expects two hidden states");
  const Weights weights{.w_ih = w_ih, .w_hh = w_hh, .b_ih = b_ih, .b_hh = b_hh};
  const Hidden done = lstm_step(weights.of_input(input), {hx[0], hx[1]}, weights);
  return {done.h, done.c};
}

Tensor gru_cell(const Tensor& input, const Tensor& hx, const Tensor& w_ih, const Tensor& w_hh,
                const OptionalTensor& b_ih, const OptionalTensor& b_hh) {
  const Weights weights{.w_ih = w_ih, .w_hh = w_hh, .b_ih = b_ih, .b_hh = b_hh};
  return gru_step(weights.of_input(input), {hx, Tensor()}, weights).h;
}

// -- The whole layer, below autograd ---------------------------------------------------------------------------------------
// PyTorch's own formulas differentiate it, twice too.

void check_whole_layer(int64_t mode, at::IntArrayRef batch_sizes) {
  TORCH_CHECK_NOT_IMPLEMENTED(mode == kOneDnnLstm && batch_sizes.empty(),
                              "aten::mkldnn_rnn_layer runs on remote_accelerator for layers of an LSTM and sequences "
                              "that are not packed. Move its operands to the CPU for others");
}

std::tuple<Tensor, Tensor, Tensor, Tensor> whole_layer(const Tensor& input, const Tensor& w_ih, const Tensor& w_hh,
                                                       const Tensor& b_ih, const Tensor& b_hh, const Tensor& hx,
                                                       const Tensor& cx, bool reverse, at::IntArrayRef batch_sizes,
                                                       int64_t mode, int64_t, int64_t, bool has_biases, bool, bool,
                                                       bool) {
  check_whole_layer(mode, batch_sizes);
  static OpInfo& op = op_info("genie::lstm_layer", "");
  const c10::IValue none;
  torch::jit::Stack stack{input,
                          w_ih,
                          w_hh,
                          has_biases ? c10::IValue(b_ih) : none,
                          has_biases ? c10::IValue(b_hh) : none,
                          hx,
                          cx,
                          reverse,
                          at::GradMode::is_enabled()};
  record_call(op, stack);
  return {stack[0].toTensor(), stack[1].toTensor(), stack[2].toTensor(), stack[3].toTensor()};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> whole_layer_backward(
    const Tensor& input, const Tensor& w_ih, const Tensor& w_hh, const Tensor& b_ih, const Tensor& b_hh,
    const Tensor& hx, const Tensor& cx, const Tensor& output, const Tensor& hy, const Tensor& cy,
    const OptionalTensor& grad_output, const OptionalTensor& grad_hy, const OptionalTensor& grad_cy, bool reverse,
    int64_t mode, int64_t, int64_t, bool has_biases, bool, bool, at::IntArrayRef batch_sizes, bool,
    const Tensor& workspace) {
  check_whole_layer(mode, batch_sizes);
  const c10::IValue none;
  const auto given = [&](const OptionalTensor& grad) {
    return grad.has_value() && grad->defined() ? c10::IValue(*grad) : none;
  };
  static OpInfo& op = op_info("genie::lstm_layer_backward", "");
  torch::jit::Stack stack{input,
                          w_ih,
                          w_hh,
                          has_biases ? c10::IValue(b_ih) : none,
                          has_biases ? c10::IValue(b_hh) : none,
                          hx,
                          cx,
                          output,
                          hy,
                          cy,
                          given(grad_output),
                          given(grad_hy),
                          given(grad_cy),
                          reverse,
                          workspace};
  if (stack[10].isNone() && stack[11].isNone() && stack[12].isNone()) return {};
  record_call(op, stack);
  return {stack[0].toTensor(), stack[1].toTensor(), stack[2].toTensor(), stack[3].toTensor(),
          stack[4].toTensor(), stack[5].toTensor(), stack[6].toTensor()};
}

// Compositions: their pieces bring autograd along.
void register_compositions(torch::Library& library) {
  library.impl("lstm.input", TORCH_FN(lstm_input));
  library.impl("lstm.data", TORCH_FN(lstm_data));
  library.impl("gru.input", TORCH_FN(one_hidden_input<Cell::kGru>));
  library.impl("gru.data", TORCH_FN(one_hidden_data<Cell::kGru>));
  library.impl("rnn_tanh.input", TORCH_FN(one_hidden_input<Cell::kTanh>));
  library.impl("rnn_tanh.data", TORCH_FN(one_hidden_data<Cell::kTanh>));
  library.impl("rnn_relu.input", TORCH_FN(one_hidden_input<Cell::kRelu>));
  library.impl("rnn_relu.data", TORCH_FN(one_hidden_data<Cell::kRelu>));
  library.impl("lstm_cell", TORCH_FN(lstm_cell));
  library.impl("gru_cell", TORCH_FN(gru_cell));
}

}  // namespace

void register_recurrent() {
  register_compositions(aten_library(c10::DispatchKey::AutogradPrivateUse1));
  torch::Library& library = aten_library(c10::DispatchKey::PrivateUse1);
  register_compositions(library);
  library.impl("mkldnn_rnn_layer", TORCH_FN(whole_layer));
  library.impl("mkldnn_rnn_layer_backward", TORCH_FN(whole_layer_backward));
  // Its lengths are on the CPU, and so are the batch sizes that it answers.
  library.impl("_pack_padded_sequence", TORCH_FN(at::native::_pack_padded_sequence));
}

}  // namespace genie::frontend
