// Training as libtorch's C++ has it: losses, weights, buffers and the optimizer's state are the same bits as CPU eager's. Runs on a
// node inside the process or, with GENIE_TEST_REMOTE=1, on a genie-node process over shared memory.
#include <ATen/autocast_mode.h>
#include <genie/genie.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <filesystem>
#include <functional>
#include <memory>
#include <sstream>

#include "bench/models/gpt2.h"
#include "bench/models/resnet.h"
#include "tests/frontend/one_session.h"

namespace {

using genie::test::kRemote;
using torch::Tensor;

struct Trained {
  std::vector<float> losses;
  std::vector<Tensor> state;  // on the CPU
};

void expect_same(const std::vector<Tensor>& local, const std::vector<Tensor>& remote) {
  ASSERT_EQ(local.size(), remote.size());
  for (size_t i = 0; i < local.size(); ++i) {
    EXPECT_TRUE(torch::equal(local[i], remote[i]))
        << "tensor " << i << " of " << local.size() << ", " << local[i].sizes() << ", differs by up to "
        << (local[i] - remote[i]).abs().max().item<double>();
  }
}

void add_state(const torch::nn::Module& module, std::vector<Tensor>& out) {
  for (const auto& parameter : module.parameters()) out.push_back(parameter.detach().cpu());
  for (const auto& buffer : module.buffers()) out.push_back(buffer.cpu());
}

using Optimizer = std::shared_ptr<torch::optim::Optimizer>;
using MakeOptimizer = std::function<Optimizer(std::vector<Tensor>)>;

// Trains a fresh model for five steps; the seed is set after its construction, so that dropout draws the same numbers on both
// sides. A step is one flush, where the gradients' norm is looked at: it carries the optimizer's part of the step before. The
// first two of these parts make the optimizer's state and go on with it; from then on the node knows the template.
template <typename Module, typename... Options>
Trained train(torch::Device device, const MakeOptimizer& make_optimizer,
              const std::function<Tensor(Module&, torch::Device)>& loss_of, const Options&... options) {
  torch::manual_seed(11);
  Module model(options...);
  model->train();
  model->to(device);
  const Optimizer optimizer = make_optimizer(model->parameters());
  torch::manual_seed(12);
  Trained out;
  genie::Stats warm;
  constexpr int kSteps = 5;
  constexpr int kWarm = 3;
  for (int step = 0; step < kSteps; ++step) {
    if (step == kWarm) warm = genie::stats();
    optimizer->zero_grad();
    auto loss = loss_of(model, device);
    loss.backward();
    torch::nn::utils::clip_grad_norm_(model->parameters(), 1.0);
    optimizer->step();
    out.losses.push_back(loss.template item<float>());
  }
  if (device != torch::kCPU) {
    const auto now = genie::stats();
    EXPECT_EQ(now.flushes - warm.flushes, static_cast<uint64_t>(kSteps - kWarm));
    EXPECT_EQ(now.templates_registered, warm.templates_registered);
    EXPECT_EQ(now.client_fallbacks, 0U);
  }
  add_state(*model, out.state);
  return out;
}

template <typename Module, typename... Options>
void expect_same_training(const MakeOptimizer& make_optimizer,
                          const std::function<Tensor(Module&, torch::Device)>& loss_of, const Options&... options) {
  const Trained local = train<Module>(torch::kCPU, make_optimizer, loss_of, options...);
  const Trained remote = train<Module>(kRemote, make_optimizer, loss_of, options...);
  EXPECT_EQ(local.losses, remote.losses);
  EXPECT_NE(local.losses.front(), local.losses.back());
  expect_same(local.state, remote.state);
}

// -- Optimizers ------------------------------------------------------------------------------------------------------------

struct Perceptron : torch::nn::SequentialImpl {
  Perceptron()
      : SequentialImpl(torch::nn::Linear(6, 16), torch::nn::LayerNorm(torch::nn::LayerNormOptions({16})),
                       torch::nn::GELU(), torch::nn::Dropout(0.2), torch::nn::Linear(16, 3)) {}
};
using PerceptronHolder = torch::nn::ModuleHolder<Perceptron>;

template <typename Kind, typename KindOptions>
MakeOptimizer maker(const KindOptions& options) {
  return [options](std::vector<Tensor> parameters) { return std::make_shared<Kind>(std::move(parameters), options); };
}

struct Named {
  const char* name;
  MakeOptimizer make;
};
void PrintTo(const Named& optimizer, std::ostream* out) { *out << optimizer.name; }

class EveryOptimizer : public ::testing::TestWithParam<Named> {};

TEST_P(EveryOptimizer, FiveStepsAreEagers) {
  torch::manual_seed(1);
  const auto data = torch::randn({8, 6});
  const auto target = torch::randint(0, 3, {8}, torch::kLong);
  expect_same_training<PerceptronHolder>(GetParam().make, [&](PerceptronHolder& model, torch::Device device) {
    return torch::cross_entropy_loss(model->forward(data.to(device)), target.to(device));
  });
}

std::vector<Named> optimizers() {
  namespace optim = torch::optim;
  return {
      {"sgd", maker<optim::SGD>(optim::SGDOptions(0.1).momentum(0.9).nesterov(true).weight_decay(1e-4))},
      {"adam", maker<optim::Adam>(optim::AdamOptions(0.01).amsgrad(true).weight_decay(1e-3))},
      {"adamw", maker<optim::AdamW>(optim::AdamWOptions(0.01))},
      {"adagrad", maker<optim::Adagrad>(optim::AdagradOptions(0.05).lr_decay(0.01))},
      {"rmsprop", maker<optim::RMSprop>(optim::RMSpropOptions(0.01).momentum(0.9).centered(true))},
  };
}
INSTANTIATE_TEST_SUITE_P(Training, EveryOptimizer, ::testing::ValuesIn(optimizers()),
                         [](const auto& info) { return std::string(info.param.name); });

// -- Models ----------------------------------------------------------------------------------------------------------------

TEST(Training, ResNet18) {
  torch::manual_seed(2);
  const auto images = torch::randn({4, 3, 32, 32});
  const auto labels = torch::randint(0, 10, {4}, torch::kLong);
  expect_same_training<genie::models::ResNet>(
      maker<torch::optim::SGD>(torch::optim::SGDOptions(0.1).momentum(0.9).weight_decay(1e-4)),
      [&](genie::models::ResNet& model, torch::Device device) {
        return torch::cross_entropy_loss(model->forward(images.to(device)), labels.to(device));
      },
      genie::models::ResNetConfig{.classes = 10, .width = 16});
}

TEST(Training, AGptOfFourLayers) {
  torch::manual_seed(3);
  const auto tokens = torch::randint(0, 97, {2, 17}, torch::kLong);
  expect_same_training<genie::models::Gpt2>(
      maker<torch::optim::AdamW>(torch::optim::AdamWOptions(1e-3)),
      [&](genie::models::Gpt2& model, torch::Device device) {
        const auto logits = model->forward(tokens.narrow(1, 0, 16).to(device));
        return torch::cross_entropy_loss(logits.flatten(0, 1), tokens.narrow(1, 1, 16).flatten().to(device));
      },
      genie::models::Gpt2Config{.vocabulary = 97, .context = 32, .width = 64, .heads = 4, .layers = 4});
}

// -- Random numbers --------------------------------------------------------------------------------------------------------

TEST(Training, ADeadRandomOperatorStillMovesTheGenerator) {
  const auto draw = [](torch::Device device) {
    torch::manual_seed(4);
    { torch::randn({5}, device); }
    auto unseen = torch::ones({4}, device);
    torch::dropout(unseen, 0.5, /*train=*/true);
    return torch::rand({3}, device).cpu();
  };
  const auto before = genie::stats();
  EXPECT_TRUE(torch::equal(draw(torch::kCPU), draw(kRemote)));
  EXPECT_GT(genie::stats().pruned_ops, before.pruned_ops) << "what only the dead results needed is not computed";
}

TEST(Training, DropoutRepeatsFromASavedGenerator) {
  torch::manual_seed(5);
  torch::nn::Dropout dropout(0.4);
  const auto x = torch::ones({64}, kRemote);
  auto generator = at::globalContext().defaultGenerator(kRemote);
  const Tensor state = generator.get_state();
  const auto first = dropout(x).cpu();
  const auto second = dropout(x).cpu();
  generator.set_state(state);
  EXPECT_TRUE(torch::equal(dropout(x).cpu(), first));
  EXPECT_TRUE(torch::equal(dropout(x).cpu(), second));
  EXPECT_FALSE(torch::equal(first, second));
}

// -- Saving ----------------------------------------------------------------------------------------------------------------

// Three steps, a checkpoint, three more; or the last three by a new model and a new optimizer that read the checkpoint.
TEST(Training, ACheckpointGoesOnWhereItWasWritten) {
  torch::manual_seed(6);
  const auto data = torch::randn({8, 6});
  const auto steps = [&](PerceptronHolder& model, torch::optim::Optimizer& optimizer, torch::Device device) {
    torch::manual_seed(7);
    for (int step = 0; step < 3; ++step) {
      optimizer.zero_grad();
      model->forward(data.to(device)).pow(2).mean().backward();
      optimizer.step();
    }
  };
  PerceptronHolder model;
  model->to(kRemote);
  torch::optim::Adam optimizer(model->parameters(), torch::optim::AdamOptions(0.01));
  steps(model, optimizer, kRemote);
  std::stringstream weights;
  std::stringstream moments;
  torch::save(model, weights);
  torch::save(optimizer, moments);
  steps(model, optimizer, kRemote);
  std::vector<Tensor> expected;
  add_state(*model, expected);

  const auto go_on = [&](torch::Device device) {
    std::stringstream weights_in(weights.str());
    std::stringstream moments_in(moments.str());
    PerceptronHolder again;
    again->to(device);
    torch::optim::Adam resumed(again->parameters(), torch::optim::AdamOptions(0.01));
    torch::load(again, weights_in, device);
    torch::load(resumed, moments_in, device);
    for (const auto& parameter : again->parameters()) EXPECT_EQ(parameter.device(), device);
    steps(again, resumed, device);
    std::vector<Tensor> out;
    add_state(*again, out);
    return out;
  };
  expect_same(expected, go_on(kRemote));
  expect_same(expected, go_on(torch::kCPU));
}

TEST(Training, TensorsAreSavedByTheirValues) {
  const auto base = torch::arange(12.0, kRemote).view({3, 4});
  std::stringstream file;
  torch::save(std::vector<Tensor>{base, base.t(), base.select(0, 1)}, file);
  std::vector<Tensor> back;
  torch::load(back, file, torch::kCPU);
  const auto expected = torch::arange(12.0).view({3, 4});
  expect_same({expected, expected.t(), expected.select(0, 1)}, back);
}

// -- Autograd --------------------------------------------------------------------------------------------------------------

// What `run` makes of tensors on either side.
void expect_same_on_both(const std::function<std::vector<Tensor>(torch::Device)>& run) {
  const auto on = [&](torch::Device device) {
    auto out = run(device);
    for (auto& tensor : out) tensor = tensor.detach().cpu();
    return out;
  };
  expect_same(on(torch::kCPU), on(kRemote));
}

Tensor leaf(torch::Device device, at::IntArrayRef sizes, uint64_t seed) {
  torch::manual_seed(seed);
  return torch::randn(sizes).to(device).requires_grad_();
}

TEST(Training, HooksSeeAndChangeGradients) {
  expect_same_on_both([](torch::Device device) {
    auto x = leaf(device, {4, 3}, 8);
    std::vector<Tensor> seen;
    x.register_hook([&](const Tensor& grad) { seen.push_back(grad.detach().clone()); });
    auto hidden = x.sin();
    hidden.retain_grad();
    hidden.register_hook([](const Tensor& grad) { return grad * 2; });
    const auto removed = hidden.register_hook([&](const Tensor& grad) { seen.push_back(grad); });
    hidden.remove_hook(removed);
    (hidden * x).sum().backward();
    seen.insert(seen.end(), {x.grad(), hidden.grad()});
    EXPECT_EQ(seen.size(), 3U);
    return seen;
  });
}

TEST(Training, DetachCutsAndKeepsSharing) {
  expect_same_on_both([](torch::Device device) {
    auto x = leaf(device, {4, 3}, 9);
    auto y = x.exp();
    auto cut = y.detach();
    EXPECT_FALSE(cut.requires_grad());
    (y * cut).sum().backward();
    const auto grad = x.grad().clone();
    x.mutable_grad() = Tensor();
    auto z = (x * 2).tanh();
    auto alias = z.detach();
    {
      const torch::NoGradGuard no_grad;
      alias.add_(1);  // of z too: tanh's backward uses its result, so that autograd refuses
      x.sub_(0.1);
    }
    EXPECT_THROW(z.sum().backward(), c10::Error);
    auto w = x.cos();
    w.detach_();
    EXPECT_FALSE(w.requires_grad());
    return std::vector<Tensor>{grad, cut, z, w, x};
  });
}

TEST(Training, GradientsAccumulateAndFrozenPartsStay) {
  expect_same_on_both([](torch::Device device) {
    torch::manual_seed(10);
    PerceptronHolder model;
    model->eval();
    model->to(device);
    model->parameters()[0].set_requires_grad(false);
    const auto data = torch::randn({6, 6});
    for (int part = 0; part < 3; ++part) model->forward(data.narrow(0, 2 * part, 2).to(device)).sum().backward();
    std::vector<Tensor> out;
    for (const auto& parameter : model->parameters()) {
      if (parameter.grad().defined()) out.push_back(parameter.grad().clone());
    }
    EXPECT_EQ(out.size(), model->parameters().size() - 1);
    model->zero_grad(/*set_to_none=*/false);
    out.push_back(model->parameters()[1].grad());
    torch::nn::utils::clip_grad_value_(model->parameters(), 0.01);
    return out;
  });
}

// The penalty of WGAN-GP: a gradient is part of what is differentiated.
TEST(Training, AGradientPenaltyThroughConvolutionAndNorms) {
  expect_same_on_both([](torch::Device device) {
    torch::manual_seed(11);
    torch::nn::Sequential critic(torch::nn::Conv2d(torch::nn::Conv2dOptions(2, 4, 3).stride(2).padding(1)),
                                 torch::nn::GroupNorm(torch::nn::GroupNormOptions(2, 4)),
                                 torch::nn::LeakyReLU(torch::nn::LeakyReLUOptions().negative_slope(0.2)),
                                 torch::nn::Flatten(), torch::nn::Linear(64, 8),
                                 torch::nn::LayerNorm(torch::nn::LayerNormOptions({8})), torch::nn::Softplus(),
                                 torch::nn::Linear(8, 1));
    critic->to(device);
    const auto x = leaf(device, {3, 2, 8, 8}, 12);
    const auto score = critic->forward(x);
    const auto grad = torch::autograd::grad({score.sum()}, {x}, {}, /*retain_graph=*/true, /*create_graph=*/true)[0];
    const auto penalty = (grad.flatten(1).norm(2, 1) - 1).pow(2).mean();
    (score.mean() + 10 * penalty).backward();
    std::vector<Tensor> out{penalty, grad, x.grad()};
    for (const auto& parameter : critic->parameters()) out.push_back(parameter.grad());
    return out;
  });
}

struct ScaledExp : torch::autograd::Function<ScaledExp> {
  static Tensor forward(torch::autograd::AutogradContext* context, const Tensor& x, double scale) {
    auto y = (x * scale).exp();
    context->save_for_backward({y});
    context->saved_data["scale"] = scale;
    return y;
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list grads) {
    return {grads[0] * context->get_saved_variables()[0] * context->saved_data["scale"].toDouble(), Tensor()};
  }
};

TEST(Training, OwnAutogradFunctions) {
  expect_same_on_both([](torch::Device device) {
    const auto x = leaf(device, {5}, 13);
    const auto y = ScaledExp::apply(x, 0.5);
    const auto first = torch::autograd::grad({y.sum()}, {x}, {}, true, true)[0];
    first.pow(2).sum().backward();
    return std::vector<Tensor>{y, first, x.grad()};
  });
}

// -- Autocast --------------------------------------------------------------------------------------------------------------

class Autocast {
 public:
  Autocast(at::DeviceType type, at::ScalarType dtype) : type_(type) {
    at::autocast::set_autocast_enabled(type, true);
    at::autocast::set_autocast_dtype(type, dtype);
    at::autocast::increment_nesting();
  }
  Autocast(const Autocast&) = delete;
  Autocast& operator=(const Autocast&) = delete;
  ~Autocast() {
    if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
    at::autocast::set_autocast_enabled(type_, false);
  }

 private:
  const at::DeviceType type_;
};

// Weights stay in float; what autocast computes in bfloat16 has eager's bits, forward and backward.
TEST(Training, AutocastComputesAsOnTheCpu) {
  expect_same_on_both([](torch::Device device) {
    torch::manual_seed(14);
    torch::nn::Linear first(8, 16);
    torch::nn::Linear second(16, 4);
    first->to(device);
    second->to(device);
    const auto x = leaf(device, {5, 8}, 15);
    Tensor y;
    {
      const Autocast autocast(device.type(), torch::kBFloat16);
      y = second(torch::relu(first(x)));
    }
    EXPECT_EQ(y.scalar_type(), torch::kBFloat16);
    const auto loss = torch::mse_loss(y.to(torch::kFloat), torch::ones({5, 4}, device));
    loss.backward();
    EXPECT_EQ(first->weight.grad().scalar_type(), torch::kFloat);
    return std::vector<Tensor>{
        y, loss, x.grad(), first->weight.grad(), first->bias.grad(), second->weight.grad(), second->bias.grad()};
  });
}

}  // namespace
