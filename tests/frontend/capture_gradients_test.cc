// Gradients through genie::Capture: they reach the leaves that stayed on the CPU, and are the CPU's own.
#include "tests/frontend/capture_fixture.h"

namespace genie::test {
namespace {

using torch::Tensor;

// A forward and backward pass of a module that lives on the CPU.
TEST_F(CaptureTest, GradientsReachCpuLeaves) {
  torch::manual_seed(3);
  torch::nn::Linear in(6, 5);
  torch::nn::Linear recurrent(5, 5);
  torch::nn::ModuleList model(in, recurrent);
  const auto x = torch::randn({2, 6});
  const auto run = [&] {
    model->zero_grad();
    auto input = x.clone().requires_grad_();
    auto hidden = torch::zeros({2, 5});
    for (int i = 0; i < 4; ++i) hidden = torch::tanh(in(input) + recurrent(hidden));  // each leaf is used 4 times
    hidden.pow(2).sum().backward();
    std::vector<Tensor> grads{input.grad()};
    for (const Tensor& parameter : model->parameters()) grads.push_back(parameter.grad().clone());
    return grads;
  };
  const auto expected = run();
  genie::synchronize();
  const auto before = session->stats();
  std::vector<Tensor> grads;
  {
    const Capture capture;
    grads = run();
  }
  const auto after = session->stats();
  for (size_t i = 0; i < grads.size(); ++i) {
    ASSERT_TRUE(grads[i].device().is_cpu());
    EXPECT_TRUE(torch::equal(grads[i], expected[i])) << i;
  }
  EXPECT_EQ(after.flushes - before.flushes, 1U) << "all gradients are captured before the first is fetched";
}

// All kinds of views of a leaf, each used several times.
TEST_F(CaptureTest, GradientsThroughViewsReachCpuLeaves) {
  const auto start = torch::randn({4, 6});
  const auto run = [&] {
    auto w = start.clone().requires_grad_();
    auto x = torch::full({4, 4}, 0.25F, torch::kCPU);
    for (int i = 0; i < 3; ++i) {
      x = torch::tanh(x.mm(w).mm(w.t()) + w.slice(1, 1, 5) * w.narrow(1, 2, 4) + w[i].view({6, 1}).slice(0, 0, 4) +
                      w.view({2, 12}).slice(1, 0, 4).slice(0, 1, 2) + w.select(1, i).expand({4, 4}));
    }
    const auto chunks = w.chunk(2);
    (x.sum() + (chunks[0] * chunks[1]).sum() + w.diagonal().sum()).backward();
    return w.grad();
  };
  const auto expected = run();
  const Capture capture;
  const auto grad = run();
  ASSERT_TRUE(grad.device().is_cpu());
  EXPECT_TRUE(torch::allclose(grad, expected, 1e-5, 1e-6));
  EXPECT_EQ(grad.strides(), expected.strides());
}

// The identity, whose gradient is turned around.
struct Reversed : torch::autograd::Function<Reversed> {
  static Tensor forward(torch::autograd::AutogradContext*, const Tensor& x) { return x.view_as(x); }
  static torch::autograd::tensor_list backward(torch::autograd::AutogradContext*, torch::autograd::tensor_list grads) {
    return {-grads[0]};
  }
};

// What a program hangs on a view of a leaf is not passed by.
TEST_F(CaptureTest, ViewsKeepTheirOwnWayBack) {
  const auto start = torch::randn({4, 3});
  const auto factor = torch::randn({3});
  using Way = std::function<std::vector<Tensor>(const Tensor&)>;
  const std::vector<Way> ways = {
      [&](const Tensor& w) -> std::vector<Tensor> {
        (Reversed::apply(w) * factor).sum().backward();
        return {w.grad()};
      },
      [&](const Tensor& w) -> std::vector<Tensor> {
        Tensor row;
        {
          const torch::NoGradGuard no_grad;
          row = w[1];
        }
        row.requires_grad_();
        (row * factor).sum().backward();
        EXPECT_FALSE(w.grad().defined()) << "it is a leaf";
        return {row.grad()};
      },
      [&](const Tensor& w) -> std::vector<Tensor> {
        auto turned = w.t();
        turned.register_hook([](const Tensor& grad) { return grad * 3; });
        const auto loss = (turned.exp() * factor.view({3, 1})).sum();
        turned.retain_grad();  // also when it was used already
        loss.backward();
        return {w.grad(), turned.grad()};
      },
      [&](const Tensor& w) -> std::vector<Tensor> {
        const auto turned = w.t();
        const auto loss = (turned.exp() * factor.view({3, 1})).sum() + turned.sin().sum() + (turned * turned).sum();
        return torch::autograd::grad({loss}, {turned, w});
      },
      [&](const Tensor& w) -> std::vector<Tensor> {  // sums keep eager's order
        auto x = torch::full({2, 3}, 0.5F, torch::kCPU);
        for (int i = 0; i < 5; ++i) x = torch::tanh(x.mm(w.t()).mm(w));
        x.sum().backward();
        return {w.grad()};
      },
      [&](const Tensor& w) -> std::vector<Tensor> {
        auto x = torch::full({2, 3}, 0.5F, torch::kCPU);
        for (int i = 0; i < 5; ++i) x = torch::tanh(x.mm(w.view({3, 4})).mm(w.view({4, 3})) + w.narrow(0, i % 3, 2));
        x.sum().backward();
        return {w.grad()};
      },
  };
  for (size_t i = 0; i < ways.size(); ++i) {
    const auto expected = ways[i](start.clone().requires_grad_());
    const Capture capture;
    const auto made = ways[i](start.clone().requires_grad_());
    for (size_t j = 0; j < expected.size(); ++j) {
      ASSERT_TRUE(made[j].defined() && made[j].device().is_cpu()) << i;
      EXPECT_TRUE(torch::equal(made[j], expected[j])) << "way " << i << ": " << made[j] << expected[j];
    }
  }
}

TEST_F(CaptureTest, BackwardMayBeCalledOutside) {
  auto w = torch::ones({3}, torch::requires_grad());
  Tensor loss;
  {
    const Capture capture;
    loss = (w * torch::arange(3)).sum();
  }
  loss.backward();
  EXPECT_TRUE(torch::equal(w.grad(), torch::arange(3).to(torch::kFloat)));
  {
    const Capture capture;
    auto more = (w * w).sum();
    more.backward();
  }
  EXPECT_TRUE(torch::equal(w.grad(), torch::arange(3) + 2.0F)) << "gradients accumulate";
}

TEST_F(CaptureTest, SecondDerivativesReachCpuLeaves) {
  const auto run = [] {
    auto x = torch::full({4}, 1.5F, torch::TensorOptions(torch::kCPU).requires_grad(true));
    const auto y = (x.pow(3) * 2).sum();
    const auto first = torch::autograd::grad({y}, {x}, {}, true, true)[0];
    EXPECT_TRUE(first.device().is_cpu());
    return torch::autograd::grad({(first * first).sum()}, {x})[0];
  };
  const auto expected = run();
  const Capture capture;
  EXPECT_TRUE(torch::equal(run(), expected));
}

template <class Optimizer, class Options>
std::vector<Tensor> train(const Options& options, bool captured) {
  torch::manual_seed(9);
  torch::nn::Sequential model(torch::nn::Conv2d(1, 4, 3), torch::nn::BatchNorm2d(4), torch::nn::ReLU(),
                              torch::nn::Flatten(), torch::nn::Linear(4 * 36, 3));
  Optimizer optimizer(model->parameters(), options);
  const auto x = torch::randn({5, 1, 8, 8});
  const auto target = torch::tensor({0, 1, 2, 1, 0});
  for (int step = 0; step < 3; ++step) {
    std::optional<Capture> capture;
    if (captured) capture.emplace();
    optimizer.zero_grad();
    torch::nn::functional::cross_entropy(model->forward(x), target).backward();
    torch::nn::utils::clip_grad_norm_(model->parameters(), 0.5);
    optimizer.step();
  }
  std::vector<Tensor> out = model->parameters();
  for (const Tensor& buffer : model->buffers()) out.push_back(buffer);
  return out;
}

// The whole step within captures: optimizers and batch norms write into CPU tensors.
TEST_F(CaptureTest, TrainingANeverMovedModelEqualsEager) {
  const auto compare = [](const std::vector<Tensor>& captured, const std::vector<Tensor>& eager) {
    ASSERT_EQ(captured.size(), eager.size());
    for (size_t i = 0; i < eager.size(); ++i) {
      ASSERT_TRUE(captured[i].device().is_cpu()) << i;
      EXPECT_TRUE(torch::equal(captured[i], eager[i])) << i;
    }
  };
  const auto sgd = torch::optim::SGDOptions(0.1).momentum(0.9).weight_decay(0.01);
  compare(train<torch::optim::SGD>(sgd, true), train<torch::optim::SGD>(sgd, false));
  const auto adam = torch::optim::AdamOptions(0.01);
  compare(train<torch::optim::Adam>(adam, true), train<torch::optim::Adam>(adam, false));
}

}  // namespace
}  // namespace genie::test
