// What .cpu() gives back: how often its bytes were copied, and that it is the program's own. In both modes of SessionTest.
#include <ATen/Parallel.h>

#include <functional>
#include <thread>

#include "tests/frontend/session_fixture.h"

namespace {

using genie::test::remote_mode;

constexpr int64_t kElements = int64_t{1} << 20;
constexpr uint64_t kBytes = kElements * sizeof(float);

class FetchTest : public genie::test::SessionTest {
 protected:
  // Bytes copied on the way back while `step` runs, the program's own writes included.
  uint64_t copied_by(const std::function<void()>& step) {
    const uint64_t before = session->stats().fetch_copied_bytes;
    step();
    return session->stats().fetch_copied_bytes - before;
  }
  torch::Tensor remote_ones() const { return torch::ones({kElements}, device()); }
};

TEST_F(FetchTest, AResultIsNotCopied) {
  const auto x = torch::randn({kElements});
  const auto remote = x.to(device());
  torch::Tensor value;
  EXPECT_EQ(copied_by([&] { value = (remote * 3).relu_().cpu(); }), 0U);
  EXPECT_TRUE(torch::equal(value, (x * 3).relu_()));
  EXPECT_EQ(copied_by([&] {
              session->synchronize();  // the remote tensor's end reaches the node
              value.add_(1);
            }),
            0U)
      << "nobody else has it any more";
  EXPECT_TRUE(torch::equal(value, (x * 3).relu_() + 1));
  const auto every_other = [](const torch::Tensor& t) { return t.view({1 << 10, 1 << 10}).slice(1, 0, 1 << 10, 2); };
  EXPECT_EQ(copied_by([&] { value = every_other(remote).cpu(); }), 0U) << "gathered by the node";
  EXPECT_TRUE(torch::equal(value, every_other(x)));
}

// Whatever an operator allocates besides its result, and in which order: the numbers are the same, and one pass is the most.
TEST_F(FetchTest, EveryOperatorsResultIsCopiedAtMostOnce) {
  const torch::NoGradGuard no_grad;
  const auto x = torch::randn({256, 512});
  const auto remote = x.to(device());
  using Op = std::function<torch::Tensor(const torch::Tensor&)>;
  const std::vector<std::pair<Op, bool>> ops{
      {[](const auto& t) { return t.mm(t.t()); }, true},
      {[](const auto& t) { return t.t().log_softmax(1); }, false},
      {[](const auto& t) { return torch::linear(t, t, t.select(1, 0)); }, true},
      {[](const auto& t) { return std::get<0>(t.sort(1)); }, false},
      {[](const auto& t) { return std::get<1>(t.topk(256, 1)); }, false},
      {[](const auto& t) { return torch::layer_norm(t, {512}); }, true},
      {[](const auto& t) {
         return torch::cat({t, t * 2}, 1);
       },
       true},
      {[](const auto& t) {
         return torch::conv2d(t.view({1, 2, 256, 256}), t.view({-1}).slice(0, 0, 36).view({2, 2, 3, 3}));
       },
       true},
      {[](const auto& t) { return t.cumsum(0).add_(1).slice(0, 0, 200); }, true},
      {[](const auto& t) { return t.to(torch::kDouble); }, true},
  };
  for (size_t i = 0; i < ops.size(); ++i) {
    torch::Tensor value;
    const uint64_t copied = copied_by([&] { value = ops[i].first(remote).cpu(); });
    const torch::Tensor expected = ops[i].first(x);
    EXPECT_TRUE(torch::equal(value, expected)) << "operator " << i;
    EXPECT_LE(copied, ops[i].second ? 0U : value.nbytes()) << "operator " << i;
  }
}

TEST_F(FetchTest, BytesThatWereThereBeforeAreCopiedAtMostOnce) {
  const auto x = torch::randn({kElements});
  const auto remote = x.to(device());
  session->synchronize();
  torch::Tensor value;
  EXPECT_EQ(copied_by([&] { value = remote.cpu(); }), remote_mode() ? kBytes : 0U);
  EXPECT_EQ(copied_by([&] {
              remote.mul_(2);
              session->synchronize();
            }),
            remote_mode() ? 0U : kBytes)
      << "in one process the two shared it until now";
  EXPECT_TRUE(torch::equal(value, x));
  EXPECT_TRUE(torch::equal(remote.cpu(), x * 2));
}

TEST_F(FetchTest, WritingTheResultLeavesTheRemoteTensorAlone) {
  const auto remote = remote_ones();
  const auto one = remote.cpu();
  const auto other = remote.cpu();
  one.view({1 << 10, 1 << 10}).select(0, 5).fill_(7);
  EXPECT_EQ(one.sum().item<float>(), kElements + 6.0F * (1 << 10));
  EXPECT_TRUE(torch::equal(other, torch::ones({kElements})));
  EXPECT_TRUE(torch::equal(remote.cpu(), torch::ones({kElements})));
  other.data_ptr<float>()[3] = 9;
  EXPECT_EQ(other[3].item<float>(), 9.0F);
  EXPECT_EQ(one[3].item<float>(), 1.0F);
  EXPECT_EQ(remote[3].item<float>(), 1.0F);
}

TEST_F(FetchTest, WritingTheRemoteTensorLeavesTheResultAlone) {
  auto remote = remote_ones();
  const auto first = remote.cpu();
  const auto view = remote.view({1 << 10, 1 << 10});
  view.select(0, 1).mul_(5);
  const auto second = remote.cpu();
  remote.add_(1);
  torch::add_out(remote, remote, remote);
  const auto third = remote.cpu();
  view.t().zero_();
  EXPECT_EQ(remote.sum().item<float>(), 0.0F);
  EXPECT_TRUE(torch::equal(first, torch::ones({kElements})));
  EXPECT_EQ(second.sum().item<float>(), kElements + 4.0F * (1 << 10));
  EXPECT_TRUE(torch::equal(third, (second + 1) * 2));
}

TEST_F(FetchTest, ADroppedResultCostsTheNodeNothing) {
  auto remote = remote_ones();
  (void)remote.cpu();
  EXPECT_EQ(copied_by([&] {
              for (int i = 0; i < 4; ++i) {
                remote.add_(1);
                EXPECT_EQ(remote[0].item<float>(), static_cast<float>(2 + i));
              }
            }),
            4 * sizeof(float))
      << "the number, not the tensor";
}

TEST_F(FetchTest, ASmallPartDoesNotKeepTheWhole) {
  const auto remote = remote_ones();
  torch::Tensor row;
  EXPECT_EQ(copied_by([&] { row = remote.view({1 << 10, 1 << 10})[3].cpu(); }), kBytes >> 10);
  EXPECT_EQ(copied_by([&] {
              remote.add_(1);
              session->synchronize();
            }),
            0U);
  EXPECT_TRUE(torch::equal(row, torch::ones({1 << 10})));
}

TEST_F(FetchTest, AResultIsAnOrdinaryTensor) {
  auto value = (remote_ones() * 2).cpu();
  EXPECT_EQ(reinterpret_cast<uintptr_t>(value.const_data_ptr()) % 64, 0U);
  EXPECT_FALSE(value.is_inference());
  EXPECT_FALSE(value.requires_grad());
  value.set_requires_grad(true);
  (value * value).sum().backward();
  EXPECT_TRUE(torch::equal(value.grad(), torch::full({kElements}, 4.0F)));
  const torch::NoGradGuard no_grad;
  value.detach().resize_({2 * kElements}).fill_(3);
  EXPECT_EQ(value[0].item<float>(), 3.0F) << "a larger one gets other memory, all views of it included";
}

TEST_F(FetchTest, ThreadsOfALoopMayBeTheFirstToWrite) {
  const auto remote = remote_ones();
  const auto value = remote.cpu();
  constexpr int64_t kGrain = kElements / 8;
  at::parallel_for(0, kElements, kGrain, [&](int64_t begin, int64_t end) {
    float* const data = value.data_ptr<float>();
    for (int64_t i = begin; i < end; ++i) data[i] += static_cast<float>(i % 7);
  });
  EXPECT_TRUE(torch::equal(value, torch::arange(kElements).remainder(7).to(torch::kFloat) + 1));
  EXPECT_TRUE(torch::equal(remote.cpu(), torch::ones({kElements})));
}

// The node and two threads of the program let go of the same bytes, and write them, all at once.
TEST_F(FetchTest, BothSidesMayWriteAtOnce) {
  constexpr int64_t kFew = 4096;
  auto remote = torch::zeros({kFew}, device());
  for (int i = 0; i < 200; ++i) {
    auto one = remote.cpu();
    auto other = remote.cpu();
    std::thread writer([one = std::move(one), i]() mutable {
      one.add_(1);
      EXPECT_TRUE(torch::equal(one, torch::full({kFew}, i + 1.0F)));
    });
    remote.add_(1);
    const auto next = remote.cpu();
    other.sub_(1);
    EXPECT_TRUE(torch::equal(other, torch::full({kFew}, i - 1.0F)));
    EXPECT_TRUE(torch::equal(next, torch::full({kFew}, i + 1.0F)));
    writer.join();
  }
}

TEST_F(FetchTest, ResultsOutliveSessionAndNode) {
  const auto x = torch::randn({kElements});
  const auto remote = x.to(device());
  auto uploaded = remote.cpu();
  auto computed = (remote * 2).cpu();
  session->close();
  EXPECT_TRUE(torch::equal(uploaded, x));
  if (node) node->signal(SIGKILL);
  session.reset();
  node.reset();
  EXPECT_TRUE(torch::equal(uploaded, x));
  EXPECT_TRUE(torch::equal(computed, x * 2));
  computed.add_(uploaded);
  EXPECT_TRUE(torch::equal(computed, x * 2 + x));
}

}  // namespace
