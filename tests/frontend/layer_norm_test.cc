// layer_norm as one record where no gradient is recorded: the numbers, layouts and errors of CPU eager, bit by bit.
#include <genie/genie.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <exception>
#include <string>
#include <utility>
#include <vector>

namespace {

const torch::Device kRemote("remote_accelerator:0");

class LayerNorm : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    torch::set_num_threads(1);
    session = new genie::Session(genie::Session::connect("embedded:"));
  }
  static genie::Session* session;
};
genie::Session* LayerNorm::session = nullptr;

struct Case {
  const char* name;
  torch::Tensor input, weight, bias;
  std::vector<int64_t> shape;

  torch::Tensor run(torch::Device device, bool learns) const {
    const auto on = [&](const torch::Tensor& tensor) {
      return tensor.defined() ? tensor.to(device).requires_grad_(learns) : tensor;
    };
    return torch::layer_norm(on(input), shape, on(weight), on(bias));
  }
};

std::vector<Case> cases() {
  torch::manual_seed(3);
  const auto weight = torch::randn({5});
  const auto bias = torch::randn({5});
  return {
      {"rows", torch::randn({4, 5}), weight, bias, {5}},
      {"without factors", torch::randn({4, 5}), {}, {}, {5}},
      {"without bias", torch::randn({4, 5}), weight, {}, {5}},
      {"without weight", torch::randn({4, 5}), {}, bias, {5}},
      {"two dimensions", torch::randn({2, 3, 5}), torch::randn({3, 5}), torch::randn({3, 5}), {3, 5}},
      {"all of it", torch::randn({3, 5}), torch::randn({3, 5}), {}, {3, 5}},
      {"not contiguous", torch::randn({5, 4}).t(), weight, bias, {5}},
      {"channels last", torch::randn({2, 4, 5, 5}).to(at::MemoryFormat::ChannelsLast), weight, bias, {5}},
      {"empty", torch::randn({0, 5}), weight, bias, {5}},
      {"double", torch::randn({4, 5}, torch::kDouble), weight.to(torch::kDouble), bias.to(torch::kDouble), {5}},
      {"bfloat16", torch::randn({4, 5}).to(torch::kBFloat16), weight.to(torch::kBFloat16), {}, {5}},
      {"bfloat16 with float factors", torch::randn({4, 5}).to(torch::kBFloat16), weight, bias, {5}},
      {"integers", torch::ones({4, 5}, torch::kLong), {}, {}, {5}},
      {"another shape", torch::randn({4, 5}), {}, {}, {4}},
      {"no shape", torch::randn({4, 5}), {}, {}, {}},
      {"more dimensions than there are", torch::randn({5}), {}, {}, {1, 5}},
      {"another weight", torch::randn({4, 5}), torch::randn({4}), {}, {5}},
      {"another bias", torch::randn({4, 5}), weight, torch::randn({1, 5}), {5}},
  };
}

// The result and its strides, or the error, which the node may be the one to raise.
std::pair<torch::Tensor, std::string> outcome(const Case& one, torch::Device device, bool learns) {
  try {
    const torch::Tensor result = one.run(device, learns);
    return {result.cpu(), c10::str(result.strides())};
  } catch (const std::exception& refused) {
    return {{}, refused.what()};
  }
}

TEST_F(LayerNorm, ValuesAndErrorsAreEagers) {
  for (const Case& one : cases()) {
    for (const char* mode : {"grad", "no_grad", "inference"}) {
      const c10::InferenceMode inference(mode == std::string("inference"));
      const at::AutoGradMode grad(mode == std::string("grad"));
      const bool learns = mode == std::string("grad") && one.input.is_floating_point();
      const auto [local, local_layout] = outcome(one, torch::kCPU, learns);
      const auto [remote, remote_layout] = outcome(one, kRemote, learns);
      ASSERT_EQ(remote.defined(), local.defined()) << one.name << ", " << mode << ": " << remote_layout;
      if (local.defined()) {
        EXPECT_TRUE(torch::equal(remote, local)) << one.name << ", " << mode;
        EXPECT_EQ(remote_layout, local_layout) << one.name << ", " << mode;
      }
    }
  }
}

TEST_F(LayerNorm, IsOneRecordWithoutGradient) {
  const auto input = torch::randn({4, 5}).to(kRemote);
  const auto weight = torch::randn({5}).to(kRemote).requires_grad_();
  session->synchronize();
  const auto ops = [&] {
    const auto result = torch::layer_norm(input, {5}, weight);
    const genie::Graph graph = genie::graph();
    session->synchronize();
    std::string names;
    for (const genie::GraphNode& node : graph.nodes) names += node.op + " ";
    return names;
  };
  {
    const torch::NoGradGuard no_grad;
    EXPECT_EQ(ops(), "aten::layer_norm ");
  }
  EXPECT_EQ(ops(), "aten::native_layer_norm ");
}

TEST_F(LayerNorm, GradientsAreEagers) {
  for (const Case& one : cases()) {
    if (!one.input.is_floating_point() || !outcome(one, torch::kCPU, true).first.defined()) continue;
    const auto gradients = [&](torch::Device device) {
      const auto leaf = [&](const torch::Tensor& tensor) {
        return tensor.defined() ? tensor.to(device).detach().requires_grad_() : tensor;
      };
      const auto input = leaf(one.input);
      const auto weight = leaf(one.weight);
      torch::layer_norm(input, one.shape, weight, leaf(one.bias)).pow(2).sum().backward();
      return std::vector{input.grad().cpu(), weight.defined() ? weight.grad().cpu() : torch::Tensor()};
    };
    const auto local = gradients(torch::kCPU);
    const auto remote = gradients(kRemote);
    EXPECT_TRUE(torch::equal(remote[0], local[0])) << one.name;
    if (local[1].defined()) {
      EXPECT_TRUE(torch::equal(remote[1], local[1])) << one.name;
    }
  }
}

}  // namespace
