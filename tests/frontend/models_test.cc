// Models forward and backward, bit-equal to CPU eager. Runs on a node inside the process or, with GENIE_TEST_REMOTE=1, on a
// genie-node process over shared memory.
#include <genie/genie.h>
#include <gtest/gtest.h>
#include <torch/script.h>
#include <torch/torch.h>

#include <filesystem>
#include <thread>

#include "bench/models/registry.h"
#include "bench/models/resnet.h"
#include "bench/models/scripted.h"
#include "tests/frontend/one_session.h"

namespace genie::models {
static void PrintTo(const Entry& entry, std::ostream* out) { *out << entry.name; }
}  // namespace genie::models

namespace {

using genie::test::kRemote;

// Runs the same module on both sides: moves it to the device and compares with what it gave on the CPU.
template <typename Module>
void expect_equal_forward(Module& module, const torch::Tensor& input) {
  const torch::NoGradGuard no_grad;
  genie::synchronize();  // torch::manual_seed() is a record too
  const auto local = module->forward(input);
  module->to(kRemote);
  EXPECT_TRUE(torch::equal(local, module->forward(input.to(kRemote)).cpu()));
  const auto before = genie::stats();
  const auto again = module->forward(input.to(kRemote)).cpu();
  const auto after = genie::stats();
  EXPECT_TRUE(torch::equal(local, again));
  EXPECT_EQ(after.flushes - before.flushes, 1U) << "one flush per forward";
  EXPECT_EQ(after.templates_registered, before.templates_registered) << "no template after warm-up";
  EXPECT_EQ(after.uploads - before.uploads, 1U) << "only the input travels";
}

TEST(Models, ResNet18InNn) {
  torch::manual_seed(1);
  genie::models::ResNet model;
  model->eval();
  expect_equal_forward(model, torch::randn({1, 3, 224, 224}));
}

// Every model of bench/models, reduced in depth and width.
class EveryModel : public ::testing::TestWithParam<genie::models::Entry> {};

TEST_P(EveryModel, ForwardIsEagers) {
  const torch::NoGradGuard no_grad;
  torch::manual_seed(8);
  auto model = GetParam().make(genie::models::Scale::kReduced);
  const auto inputs = GetParam().inputs(genie::models::Scale::kReduced);
  genie::synchronize();  // torch::manual_seed() is a record too
  const auto local = model.forward(inputs);
  model.module->to(kRemote);
  const auto forward = [&] {
    genie::models::Tensors there;
    for (const auto& input : inputs) there.push_back(input.to(kRemote));
    return model.forward(there).cpu();
  };
  // The first time the node has to say some shapes, which cuts the forward in two.
  for (int warm_up = 0; warm_up < 2; ++warm_up) EXPECT_TRUE(torch::equal(local, forward()));
  const auto before = genie::stats();
  EXPECT_TRUE(torch::equal(local, forward()));
  const auto after = genie::stats();
  EXPECT_EQ(after.templates_registered, before.templates_registered);
  EXPECT_EQ(after.client_fallbacks, 0U);
  EXPECT_EQ(after.uploads - before.uploads, inputs.size());
  const auto flushes = after.flushes - before.flushes;
  if (!GetParam().data_dependent) {
    EXPECT_EQ(flushes, 1U);
    return;
  }
  // Whatever came on top asked for the size of a nonzero().
  auto why = after.flush_reasons;
  for (const auto& [reason, count] : before.flush_reasons) why[reason] -= count;
  EXPECT_GT(why["shape"], 0U);
  EXPECT_EQ(flushes, why["shape"] + why["value"]);
  EXPECT_EQ(why["value"], 1U);
}

INSTANTIATE_TEST_SUITE_P(Models, EveryModel, ::testing::ValuesIn(genie::models::entries()),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(Models, TransformerEncoderInNn) {
  torch::manual_seed(2);
  torch::nn::TransformerEncoder model(torch::nn::TransformerEncoderOptions(
      torch::nn::TransformerEncoderLayerOptions(64, 4).dim_feedforward(128).dropout(0.0), 2));
  model->eval();
  expect_equal_forward(model, torch::randn({10, 2, 64}));
}

void expect_equal_script(torch::jit::Module module, const torch::Tensor& input) {
  const torch::NoGradGuard no_grad;
  genie::synchronize();
  const auto path = std::filesystem::temp_directory_path() / ("genie-models-" + std::to_string(getpid()) + ".pt");
  module.save(path.string());
  auto local = torch::jit::load(path.string());
  auto remote = torch::jit::load(path.string(), kRemote);
  std::filesystem::remove(path);
  for (const auto& parameter : remote.parameters()) EXPECT_TRUE(genie::is_remote(parameter));
  const auto expected = local.forward({input}).toTensor();
  // The profiling executor specialises during the first calls: all must agree.
  for (int call = 0; call < 3; ++call) {
    EXPECT_TRUE(torch::equal(expected, remote.forward({input.to(kRemote)}).toTensor().cpu())) << "call " << call;
  }
  const auto before = genie::stats();
  EXPECT_TRUE(torch::equal(expected, remote.forward({input.to(kRemote)}).toTensor().cpu()));
  const auto after = genie::stats();
  EXPECT_EQ(after.flushes - before.flushes, 1U);
  EXPECT_EQ(after.templates_registered, before.templates_registered);
}

TEST(Models, ResNet18InTorchScript) {
  torch::manual_seed(3);
  expect_equal_script(genie::models::scripted_resnet18(), torch::randn({1, 3, 224, 224}));
}

TEST(Models, TransformerEncoderInTorchScript) {
  torch::manual_seed(4);
  expect_equal_script(genie::models::scripted_encoder(), torch::randn({2, 12, 64}));
}

TEST(Models, AttentionIsOneRecord) {
  const auto attention_records = [] {
    uint64_t count = 0;
    for (const auto& [op, captured] : genie::stats().captured_by_op) {
      if (op.find("scaled_dot_product") != std::string::npos) count += captured;
    }
    return count;
  };
  const auto q = torch::randn({1, 2, 4, 8}).to(kRemote);
  const auto before = genie::stats();
  const uint64_t attention_before = attention_records();
  const auto out = torch::scaled_dot_product_attention(q, q, q);
  const auto after = genie::stats();
  EXPECT_EQ(attention_records() - attention_before, 1U);
  EXPECT_EQ(after.captured_ops - before.captured_ops, 1U);
  EXPECT_TRUE(torch::equal(out.cpu(), torch::scaled_dot_product_attention(q.cpu(), q.cpu(), q.cpu())));
}

// A small CNN with batch norm: running statistics, pooling, dropout off, cross entropy.
struct SmallCnnImpl : torch::nn::Module {
  SmallCnnImpl() {
    register_module("conv1", conv1);
    register_module("bn1", bn1);
    register_module("conv2", conv2);
    register_module("fc", fc);
  }
  torch::Tensor forward(torch::Tensor x) {
    x = torch::max_pool2d(torch::relu(bn1(conv1(x))), 2);
    x = torch::max_pool2d(torch::relu(conv2(x)), 2);
    return fc(x.flatten(1));
  }
  torch::nn::Conv2d conv1{torch::nn::Conv2dOptions(1, 8, 3).padding(1)};
  torch::nn::BatchNorm2d bn1{8};
  torch::nn::Conv2d conv2{torch::nn::Conv2dOptions(8, 16, 3).padding(1)};
  torch::nn::Linear fc{16 * 7 * 7, 10};
};
TORCH_MODULE(SmallCnn);

struct Trained {
  std::vector<float> losses;
  std::vector<torch::Tensor> state;
};

Trained train(torch::Device device, const torch::Tensor& images, const torch::Tensor& labels) {
  torch::manual_seed(5);
  SmallCnn model;
  model->train();
  model->to(device);
  torch::optim::SGD optimizer(model->parameters(), torch::optim::SGDOptions(0.1).momentum(0.9).weight_decay(1e-4));
  Trained out;
  for (int step = 0; step < 3; ++step) {
    optimizer.zero_grad();
    auto loss = torch::cross_entropy_loss(model->forward(images.to(device)), labels.to(device));
    loss.backward();
    optimizer.step();
    out.losses.push_back(loss.item<float>());
  }
  for (const auto& parameter : model->parameters()) out.state.push_back(parameter.detach().cpu());
  for (const auto& buffer : model->buffers()) out.state.push_back(buffer.cpu());
  return out;
}

TEST(Models, ThreeTrainingStepsOfACnn) {
  torch::manual_seed(6);
  const auto images = torch::randn({8, 1, 28, 28});
  const auto labels = torch::randint(0, 10, {8}, torch::kLong);
  const Trained local = train(torch::kCPU, images, labels);
  const Trained remote = train(kRemote, images, labels);
  EXPECT_EQ(local.losses, remote.losses);
  ASSERT_EQ(local.state.size(), remote.state.size());
  for (size_t i = 0; i < local.state.size(); ++i)
    EXPECT_TRUE(torch::equal(local.state[i], remote.state[i])) << "tensor " << i;
}

TEST(Models, TwoThreadsWithAModelEachDoNotCutEachOther) {
  const torch::NoGradGuard no_grad;
  torch::manual_seed(7);
  auto make = [] {
    return torch::nn::Sequential(torch::nn::Linear(16, 32), torch::nn::ReLU(), torch::nn::Linear(32, 4));
  };
  std::vector<torch::nn::Sequential> models{make(), make()};
  const auto input = torch::randn({3, 16});
  std::vector<torch::Tensor> expected;
  for (auto& model : models) {
    expected.push_back(model->forward(input));
    model->to(kRemote);
  }
  constexpr int kSteps = 20;
  auto run = [&](size_t which, int steps) {
    const torch::NoGradGuard in_thread;
    for (int step = 0; step < steps; ++step) {
      EXPECT_TRUE(torch::equal(expected[which], models[which]->forward(input.to(kRemote)).cpu()));
    }
  };
  auto both = [&](int steps) {
    std::thread first(run, 0, steps);
    std::thread second(run, 1, steps);
    first.join();
    second.join();
  };
  both(2);
  const auto before = genie::stats();
  both(kSteps);
  const auto after = genie::stats();
  EXPECT_EQ(after.flushes - before.flushes, 2U * kSteps);
  EXPECT_EQ(after.templates_registered, before.templates_registered);
  EXPECT_EQ(after.uploads - before.uploads, 2U * kSteps);
}

}  // namespace
