// Recurrent layers: values and gradients are CPU eager's. Runs on a node inside the process or, with GENIE_TEST_REMOTE=1, on a
// genie-node process over shared memory.
#include <genie/genie.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <functional>

#include "tests/frontend/one_session.h"

namespace {

using genie::test::kRemote;
using torch::Tensor;
using Tensors = std::vector<Tensor>;

struct Shape {
  int64_t steps, batch, width, hidden;
};
// oneDNN takes other kernels for other sizes.
constexpr Shape kShapes[] = {{5, 3, 6, 8}, {7, 4, 65, 33}, {1, 1, 3, 5}};

struct Layers {
  int64_t layers = 1;
  bool bias = true;
  bool batch_first = false;
  bool bidirectional = false;
  double dropout = 0.0;
};
constexpr Layers kLayers[] = {{},
                              {.layers = 2, .batch_first = true, .bidirectional = true},
                              {.bias = false},
                              {.layers = 3, .bidirectional = true, .dropout = 0.3}};

void expect_same(const std::function<Tensors(torch::Device)>& run) {
  const auto on = [&](torch::Device device) {
    Tensors out = run(device);
    for (auto& tensor : out) {
      if (tensor.defined()) tensor = tensor.detach().cpu();
    }
    return out;
  };
  const Tensors local = on(torch::kCPU);
  const Tensors remote = on(kRemote);
  ASSERT_EQ(local.size(), remote.size());
  for (size_t i = 0; i < local.size(); ++i) {
    ASSERT_EQ(local[i].defined(), remote[i].defined());
    if (!local[i].defined()) continue;
    EXPECT_EQ(local[i].sizes(), remote[i].sizes());
    EXPECT_TRUE(torch::equal(local[i], remote[i])) << "tensor " << i << " of " << local.size() << " differs by up to "
                                                   << (local[i] - remote[i]).abs().max().item<double>();
  }
}

template <typename Module>
void add_gradients(const Module& module, Tensors& out) {
  for (const auto& parameter : module->parameters()) out.push_back(parameter.grad());
}

Tensors flat(const Tensor& hidden) { return {hidden}; }
Tensors flat(const std::tuple<Tensor, Tensor>& hidden) { return {std::get<0>(hidden), std::get<1>(hidden)}; }

// Forward without and with gradients, and backward from all that a layer answers.
template <typename Module>
Tensors use(Module& module, const Tensor& input) {
  torch::manual_seed(3);  // dropout's
  Tensors out;
  {
    const torch::NoGradGuard no_grad;
    out.push_back(std::get<0>(module->forward(input)));
  }
  const auto [output, hidden] = module->forward(input);
  auto loss = output.pow(2).sum();
  out.push_back(output);
  for (const auto& state : flat(hidden)) {
    loss = loss + state.sin().sum();
    out.push_back(state);
  }
  loss.backward();
  out.push_back(input.grad());
  add_gradients(module, out);
  return out;
}

template <typename Module, typename Options>
void expect_same_layers(const std::function<void(Options&)>& change = {}) {
  for (const Shape& shape : kShapes) {
    for (const Layers& how : kLayers) {
      SCOPED_TRACE(testing::Message() << "hidden " << shape.hidden << ", layers " << how.layers << ", bias "
                                      << how.bias);
      expect_same([&](torch::Device device) {
        torch::manual_seed(1);
        Options options(shape.width, shape.hidden);
        options.num_layers(how.layers).bias(how.bias).batch_first(how.batch_first).dropout(how.dropout);
        options.bidirectional(how.bidirectional);
        if (change) change(options);
        Module module(options);
        const auto first = how.batch_first ? shape.batch : shape.steps;
        const auto second = how.batch_first ? shape.steps : shape.batch;
        const auto input = torch::randn({first, second, shape.width});
        module->to(device);
        return use(module, input.to(device).requires_grad_());
      });
    }
  }
}

TEST(Recurrent, Lstm) { expect_same_layers<torch::nn::LSTM, torch::nn::LSTMOptions>(); }

TEST(Recurrent, LstmWithProjections) {
  expect_same_layers<torch::nn::LSTM, torch::nn::LSTMOptions>([](auto& options) { options.proj_size(3); });
}

TEST(Recurrent, Gru) { expect_same_layers<torch::nn::GRU, torch::nn::GRUOptions>(); }

TEST(Recurrent, RnnOfTanhAndRelu) {
  expect_same_layers<torch::nn::RNN, torch::nn::RNNOptions>();
  expect_same_layers<torch::nn::RNN, torch::nn::RNNOptions>([](auto& options) { options.nonlinearity(torch::kReLU); });
}

template <typename Module, typename Options>
void expect_same_packed() {
  for (const bool bidirectional : {false, true}) {
    expect_same([&](torch::Device device) {
      torch::manual_seed(2);
      Module module(Options(4, 6).num_layers(2).bidirectional(bidirectional));
      module->to(device);
      const auto input = torch::randn({5, 4, 4}).to(device).requires_grad_();
      const auto lengths = torch::tensor({5, 3, 3, 1});  // on the CPU, as PyTorch wants them
      const auto packed = torch::nn::utils::rnn::pack_padded_sequence(input, lengths);
      const auto [output, hidden] = module->forward_with_packed_input(packed);
      const auto [padded, _] = torch::nn::utils::rnn::pad_packed_sequence(output);
      Tensors out = flat(hidden);
      out.push_back(padded);
      auto loss = padded.pow(2).sum();
      for (const auto& state : flat(hidden)) loss = loss + state.sin().sum();
      loss.backward();
      out.push_back(input.grad());
      add_gradients(module, out);
      return out;
    });
  }
}

TEST(Recurrent, PackedSequences) {
  expect_same_packed<torch::nn::LSTM, torch::nn::LSTMOptions>();
  expect_same_packed<torch::nn::GRU, torch::nn::GRUOptions>();
  expect_same_packed<torch::nn::RNN, torch::nn::RNNOptions>();
}

TEST(Recurrent, Cells) {
  expect_same([](torch::Device device) {
    torch::manual_seed(4);
    torch::nn::LSTMCell lstm(6, 8);
    torch::nn::GRUCell gru(8, 7);
    torch::nn::RNNCell rnn(7, 5);
    for (torch::nn::Module* module : std::initializer_list<torch::nn::Module*>{lstm.get(), gru.get(), rnn.get()}) {
      module->to(device);
    }
    const auto input = torch::randn({3, 6}).to(device).requires_grad_();
    const auto [h, c] = lstm->forward(input);
    const auto out = rnn->forward(gru->forward(h));
    (out.pow(2).sum() + c.sum()).backward();
    Tensors all{h, c, out, input.grad()};
    add_gradients(lstm, all);
    add_gradients(gru, all);
    add_gradients(rnn, all);
    return all;
  });
}

TEST(Recurrent, AnLstmCanBeDifferentiatedTwice) {
  expect_same([](torch::Device device) {
    torch::manual_seed(5);
    torch::nn::LSTM lstm(torch::nn::LSTMOptions(4, 6));
    lstm->to(device);
    const auto input = torch::randn({3, 2, 4}).to(device).requires_grad_();
    const auto output = std::get<0>(lstm->forward(input));
    const auto grad = torch::autograd::grad({output.pow(2).sum()}, {input}, {}, true, /*create_graph=*/true)[0];
    grad.pow(2).sum().backward();
    Tensors all{output, grad, input.grad()};
    add_gradients(lstm, all);
    return all;
  });
}

TEST(Recurrent, ALayerOfAnLstmIsOneRecord) {
  const torch::NoGradGuard no_grad;
  torch::nn::LSTM lstm(torch::nn::LSTMOptions(4, 6).num_layers(2));
  lstm->to(kRemote);
  const auto input = torch::randn({9, 2, 4}).to(kRemote);
  const auto count = [] {
    const auto captured = genie::stats().captured_by_op;
    const auto found = captured.find("genie::lstm_layer");
    return found == captured.end() ? uint64_t{0} : found->second;
  };
  const auto before = count();
  const auto flushes = genie::stats().flushes;
  (void)std::get<0>(lstm->forward(input)).cpu();
  EXPECT_EQ(count() - before, 2U);
  EXPECT_EQ(genie::stats().flushes - flushes, 1U);
  EXPECT_EQ(genie::stats().client_fallbacks, 0U);
}

TEST(Recurrent, MistakesAreNamed) {
  torch::nn::LSTM lstm(torch::nn::LSTMOptions(4, 6));
  lstm->to(kRemote);
  const auto input = torch::randn({3, 2, 4}).to(kRemote);
  const auto states = torch::zeros({1, 5, 6}).to(kRemote);  // of another batch
  EXPECT_THROW((void)std::get<0>(lstm->forward(input, std::make_tuple(states, states))).cpu(), std::exception);
  EXPECT_THROW((void)std::get<0>(lstm->forward(torch::randn({3, 2, 5}).to(kRemote))).cpu(), std::exception);
  EXPECT_EQ(std::get<0>(lstm->forward(input)).cpu().size(2), 6);
}

}  // namespace
