// linear as one record with a node of its own: the numbers of CPU eager, bit by bit, in both directions.
#include <genie/genie.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <string>

namespace {

const torch::Device kRemote("remote_accelerator:0");

struct LinearCase {
  const char* name;
  torch::Tensor input, weight, bias;
};

class Linear : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    torch::set_num_threads(1);
    session = new genie::Session(genie::Session::connect("embedded:"));
  }
  static genie::Session* session;
};
genie::Session* Linear::session = nullptr;

std::vector<LinearCase> cases() {
  torch::manual_seed(3);
  const auto weight = torch::randn({5, 7});
  const auto bias = torch::randn({5});
  return {
      {"matrix", torch::randn({4, 7}), weight, bias},
      {"matrix without bias", torch::randn({4, 7}), weight, {}},
      {"batch", torch::randn({2, 3, 7}), weight, bias},
      {"batch without bias", torch::randn({2, 3, 7}), weight, {}},
      {"one row", torch::randn({1, 1, 7}), weight, bias},
      {"one column", torch::randn({4, 1}), torch::randn({5, 1}), bias},
      {"one output", torch::randn({4, 7}), torch::randn({1, 7}), torch::randn({1})},
      {"transposed input", torch::randn({7, 4}).t(), weight, bias},
      {"transposed weight", torch::randn({4, 7}), torch::randn({7, 5}).t(), bias},
      {"batch that is not contiguous", torch::randn({3, 2, 7}).transpose(0, 1), weight, bias},
      {"another one", torch::randn({3, 5, 6}).transpose(0, 1), torch::randn({8, 6}), torch::randn({8})},
      {"and without bias", torch::randn({3, 5, 6}).transpose(0, 1), torch::randn({8, 6}), {}},
      {"vector", torch::randn({7}), weight, bias},
      {"four dimensions", torch::randn({2, 1, 3, 7}), weight, bias},
      {"empty batch", torch::randn({0, 7}), weight, bias},
      {"double", torch::randn({4, 7}, torch::kDouble), weight.to(torch::kDouble), bias.to(torch::kDouble)},
      {"bfloat16", torch::randn({4, 7}).to(torch::kBFloat16), weight.to(torch::kBFloat16), bias.to(torch::kBFloat16)},
      {"complex", torch::randn({4, 7}, torch::kComplexFloat), torch::randn({5, 7}, torch::kComplexFloat),
       torch::randn({5}, torch::kComplexFloat)},
  };
}

std::vector<torch::Tensor> leaves(const LinearCase& one, torch::Device device) {
  std::vector<torch::Tensor> out{one.input.to(device).detach().requires_grad_(),
                                 one.weight.to(device).detach().requires_grad_()};
  if (one.bias.defined()) out.push_back(one.bias.to(device).detach().requires_grad_());
  return out;
}

torch::Tensor apply(const std::vector<torch::Tensor>& in) {
  return torch::linear(in[0], in[1], in.size() == 3 ? std::optional<torch::Tensor>(in[2]) : std::nullopt);
}

void expect_same(const torch::Tensor& remote, const torch::Tensor& local, const std::string& what) {
  ASSERT_EQ(remote.defined(), local.defined()) << what;
  if (!local.defined()) return;
  EXPECT_EQ(remote.sizes(), local.sizes()) << what;
  EXPECT_TRUE(torch::equal(remote.cpu(), local)) << what;
}

TEST_F(Linear, ValuesAndGradientsAreEagers) {
  for (const LinearCase& one : cases()) {
    const auto here = leaves(one, torch::kCPU);
    const auto there = leaves(one, kRemote);
    const auto local = apply(here);
    const auto remote = apply(there);
    expect_same(remote, local, one.name);
    const auto weights = torch::randn_like(local);
    local.backward(weights);
    remote.backward(weights.to(kRemote));
    for (size_t i = 0; i < here.size(); ++i)
      expect_same(there[i].grad(), here[i].grad(), std::string(one.name) + ", gradient " + std::to_string(i));
  }
}

// Whether a weight learns decides how the CPU multiplies, also where no gradient is recorded.
TEST_F(Linear, ValuesWithoutRecordingAreEagers) {
  for (const LinearCase& one : cases()) {
    for (const bool learns : {true, false}) {
      const auto on = [&](torch::Device device) {
        auto in = leaves(one, device);
        for (auto& tensor : in) tensor.set_requires_grad(learns);
        const torch::NoGradGuard no_grad;
        const auto plain = apply(in);
        const c10::InferenceMode inference;
        return std::vector<torch::Tensor>{plain, apply(in)};
      };
      const auto here = on(torch::kCPU);
      const auto there = on(kRemote);
      for (size_t i = 0; i < here.size(); ++i)
        expect_same(there[i], here[i], std::string(one.name) + (i == 0 ? ", no_grad" : ", inference"));
    }
  }
}

TEST_F(Linear, CanBeDifferentiatedTwice) {
  for (const LinearCase& one : cases()) {
    if (one.input.is_complex()) continue;
    const auto second = [&](torch::Device device) {
      const auto in = leaves(one, device);
      const auto first = torch::autograd::grad({apply(in).pow(3).sum()}, {in[0], in[1]}, {}, true, true);
      torch::autograd::backward({first[0].pow(2).sum() + first[1].pow(2).sum()}, {});
      return in;
    };
    const auto here = second(torch::kCPU);
    const auto there = second(kRemote);
    for (size_t i = 0; i < here.size(); ++i)
      expect_same(there[i].grad(), here[i].grad(), std::string(one.name) + ", gradient " + std::to_string(i));
  }
}

TEST_F(Linear, OnlyWantedGradientsAreComputed) {
  const auto input = torch::randn({4, 7}).to(kRemote);
  const auto weight = torch::randn({5, 7}).to(kRemote).requires_grad_();
  const auto bias = torch::randn({5}).to(kRemote);
  const auto result = torch::linear(input, weight, bias);
  const auto before = session->stats();
  result.sum().backward();
  (void)weight.grad().cpu();
  // linear, sum, its gradient (ones, as one record or spread out), and one mm.
  EXPECT_LE(session->stats().executed_ops - before.executed_ops, 5U);
  EXPECT_FALSE(input.grad().defined());
  EXPECT_FALSE(bias.grad().defined());
}

TEST_F(Linear, IsOneRecordWithAndWithoutGradient) {
  const auto input = torch::randn({2, 3, 7}).to(kRemote);
  const auto weight = torch::randn({5, 7}).to(kRemote).requires_grad_();
  const auto bias = torch::randn({5}).to(kRemote).requires_grad_();
  for (const bool grad : {true, false}) {
    const at::AutoGradMode mode(grad);
    const auto before = session->stats().captured_ops;
    const auto result = torch::linear(input, weight, bias);
    EXPECT_EQ(session->stats().captured_ops - before, 1U);
    EXPECT_EQ(result.requires_grad(), grad);
  }
}

TEST_F(Linear, AWeightChangedSinceIsNoticed) {
  const auto input = torch::randn({4, 7}).to(kRemote).requires_grad_();
  auto weight = torch::randn({5, 7}).to(kRemote);
  const auto result = torch::linear(input, weight);
  weight.add_(1);
  EXPECT_THROW(result.sum().backward(), c10::Error);
}

TEST_F(Linear, BackwardTwiceIsRefused) {
  const auto weight = torch::randn({5, 7}).to(kRemote).requires_grad_();
  const auto loss = torch::linear(torch::randn({4, 7}).to(kRemote), weight).sum();
  loss.backward();
  EXPECT_THROW(loss.backward(), c10::Error);
}

TEST_F(Linear, RefusesWhatEagerRefuses) {
  const auto input = torch::randn({4, 7}).to(kRemote).requires_grad_();
  EXPECT_THROW(torch::linear(input, torch::randn({5, 6}).to(kRemote)), c10::Error);
  EXPECT_THROW(torch::linear(input, torch::randn({5, 7})), c10::Error);
}

}  // namespace
