// Views are geometry: where they lie, and what PyTorch says of a wrong one, is as on the CPU.
#include <genie/genie.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <vector>

namespace {

const torch::Device kRemote("remote_accelerator:0");

using View = std::function<std::vector<torch::Tensor>(const torch::Tensor&)>;

class Views : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    torch::set_num_threads(1);
    session = new genie::Session(genie::Session::connect("embedded:"));
  }

  // The same geometry and the same bytes, or the same error.
  static void expect_same(const torch::Tensor& base, const View& view, const std::string& what) {
    const torch::Tensor there = base.to(kRemote);
    ASSERT_EQ(there.strides(), base.strides()) << what;
    std::string error;
    std::vector<torch::Tensor> local;
    try {
      local = view(base);
    } catch (const c10::Error& refused) {
      error = refused.what_without_backtrace();
    }
    try {
      const std::vector<torch::Tensor> remote = view(there);
      EXPECT_EQ(error, "") << what;
      ASSERT_EQ(remote.size(), local.size()) << what;
      for (size_t i = 0; i < local.size(); ++i) {
        EXPECT_EQ(remote[i].sizes(), local[i].sizes()) << what;
        EXPECT_EQ(remote[i].strides(), local[i].strides()) << what;
        EXPECT_EQ(remote[i].storage_offset(), local[i].storage_offset()) << what;
        EXPECT_EQ(remote[i].is_contiguous(), local[i].is_contiguous()) << what;
        EXPECT_TRUE(torch::equal(remote[i].cpu(), local[i])) << what;
      }
    } catch (const c10::Error& refused) {
      EXPECT_EQ(error, refused.what_without_backtrace()) << what;
    }
  }

  static genie::Session* session;
};
genie::Session* Views::session = nullptr;

std::vector<torch::Tensor> bases() {
  torch::manual_seed(5);
  return {torch::randn({}),
          torch::randn({7}),
          torch::randn({0, 3}),
          torch::randn({4, 6}),
          torch::randn({4, 6}).t(),
          torch::randn({1, 6, 1}),
          torch::randn({2, 3, 4, 5}),
          torch::randn({2, 3, 4, 5}).to(at::MemoryFormat::ChannelsLast),
          torch::randn({6, 1}).as_strided({6, 1}, {1, 6}),
          torch::randn({3, 4}, torch::kComplexFloat)};
}

constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
constexpr int64_t kLeast = std::numeric_limits<int64_t>::min();

TEST_F(Views, TransposesLieAsOnTheCpu) {
  for (const torch::Tensor& base : bases()) {
    for (int64_t first = -5; first < 5; ++first) {
      for (int64_t second = -5; second < 5; ++second) {
        expect_same(
            base, [&](const torch::Tensor& t) { return std::vector{t.transpose(first, second)}; },
            "transpose of " + c10::str(base.sizes(), first, ", ", second));
      }
    }
  }
}

TEST_F(Views, SlicesLieAsOnTheCpu) {
  const std::vector<std::optional<int64_t>> ends{std::nullopt, 0, 1, 3, 100, -1, -3, -100, kMost, kLeast};
  for (const torch::Tensor& base : bases()) {
    for (int64_t dim = -3; dim < 3; ++dim) {
      for (const auto start : ends) {
        for (const auto end : ends) {
          for (const int64_t step : {-1, 0, 1, 2, 50}) {
            expect_same(
                base, [&](const torch::Tensor& t) { return std::vector{t.slice(dim, start, end, step)}; },
                "slice of " +
                    c10::str(base.sizes(), dim, ": ", start.value_or(-999), ", ", end.value_or(-999), ", ", step));
          }
        }
      }
    }
  }
}

TEST_F(Views, SplitsLieAsOnTheCpu) {
  for (const torch::Tensor& base : bases()) {
    for (int64_t dim = -3; dim < 3; ++dim) {
      for (const int64_t size : {int64_t{-1}, int64_t{0}, int64_t{1}, int64_t{2}, int64_t{3}, int64_t{100}, kMost}) {
        expect_same(
            base, [&](const torch::Tensor& t) { return t.split(size, dim); },
            "split of " + c10::str(base.sizes(), dim, ": ", size));
      }
    }
  }
}

TEST_F(Views, OtherShapesLieAsOnTheCpu) {
  const std::vector<std::vector<int64_t>> shapes{
      {},           {1},    {-1},   {24},    {6, 4},    {4, 6},     {2, 2, 6}, {1, 6},     {6, 1},
      {1, 1, 6, 1}, {0, 3}, {3, 0}, {-1, 0}, {120},     {2, 60},    {6, 4, 5}, {-1, 5},    {-1, -1},
      {-2, 3},      {7, 1}, {5},    {12},    {3, 2, 2}, {kMost, 2}, {4, 1, 6}, {2, 3, 20}, {2, 3, 4, 5}};
  for (const torch::Tensor& base : bases()) {
    for (const auto& shape : shapes) {
      expect_same(
          base, [&](const torch::Tensor& t) { return std::vector{t.view(shape)}; },
          "view of " + c10::str(base.sizes(), " as ", at::IntArrayRef(shape)));
      expect_same(
          base, [&](const torch::Tensor& t) { return std::vector{t.reshape(shape)}; },
          "reshape of " + c10::str(base.sizes(), " as ", at::IntArrayRef(shape)));
    }
  }
}

TEST_F(Views, ViewsOfViewsLieAsOnTheCpu) {
  const torch::Tensor base = torch::randn({4, 6, 8});
  const std::vector<View> programs{
      [](const torch::Tensor& t) { return t.slice(1, 1, 5).transpose(0, 2).split(3, 0); },
      [](const torch::Tensor& t) { return t.split(2, -1)[1].split(2, 1); },
      [](const torch::Tensor& t) {
        return std::vector{t.slice(0, 2, 3).view({6, 8}).slice(1, 0, 8, 3)};
      },
      [](const torch::Tensor& t) { return std::vector{t.slice(0, 1, 4, 2).slice(2, 1, 8, 2).transpose(1, -1)}; },
      [](const torch::Tensor& t) {
        return std::vector{t.slice(2, 3, 4).view({2, 2, 6, 1})};
      }};
  for (size_t i = 0; i < programs.size(); ++i) expect_same(base, programs[i], "program " + std::to_string(i));
}

// They share memory, and autograd knows it.
TEST_F(Views, WritesThroughAViewReachItsBase) {
  for (const bool inference : {false, true}) {
    const c10::InferenceMode mode(inference);
    const auto program = [](torch::Device device) {
      torch::Tensor base = torch::arange(24, torch::kFloat).to(device).view({4, 6});
      base.slice(1, 2, 5).transpose(0, 1).add_(100);
      base.split(2, 0)[1].mul_(2);
      return base.cpu();
    };
    EXPECT_TRUE(torch::equal(program(kRemote), program(torch::kCPU)));
  }
}

TEST_F(Views, GradientsPassThroughThem) {
  const auto program = [](torch::Device device) {
    const torch::Tensor leaf = torch::arange(24, torch::kFloat).to(device).requires_grad_();
    const torch::Tensor matrix = leaf.view({4, 6});
    const auto parts = matrix.transpose(0, 1).split(2, 0);
    (parts[0].mul(parts[2]).sum() + matrix.slice(0, 1, 4, 2).pow(2).sum()).backward();
    return leaf.grad().cpu();
  };
  EXPECT_TRUE(torch::equal(program(kRemote), program(torch::kCPU)));
}

// A storage that was cut off below a tensor: what lies beyond it is refused, as on the CPU.
TEST_F(Views, BeyondTheStorageIsRefused) {
  for (const torch::Device device : {torch::Device(torch::kCPU), kRemote}) {
    const torch::Tensor tensor = torch::ones({4, 6}).to(device);
    tensor.storage().unsafeGetStorageImpl()->set_nbytes(16);
    EXPECT_THROW((void)tensor.transpose(0, 1), c10::Error) << device;
    EXPECT_THROW((void)tensor.slice(0, 1, 3), c10::Error) << device;
    EXPECT_THROW((void)tensor.split(2, 0), c10::Error) << device;
  }
}

}  // namespace
