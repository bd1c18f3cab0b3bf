#include <genie/genie.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

namespace {

const torch::Device kRemote("remote_accelerator:0");

class Basic : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { session = new genie::Session(genie::Session::connect("embedded:")); }
  static genie::Session* session;
};
genie::Session* Basic::session = nullptr;

TEST_F(Basic, AddComesBack) {
  const auto a = torch::randn({3, 4});
  const auto b = torch::randn({3, 4});
  const auto c = a.to(kRemote) + b.to(kRemote);
  EXPECT_TRUE(genie::is_remote(c));
  EXPECT_TRUE(torch::equal(c.cpu(), a + b));
}

TEST_F(Basic, NothingRunsBeforeAValueIsNeeded) {
  const auto a = torch::randn({3, 4}, kRemote);
  const auto before = session->stats();
  const auto b = (a * 2).relu().sum();
  EXPECT_EQ(session->stats().executed_ops, before.executed_ops);
  EXPECT_EQ(session->stats().flushes, before.flushes);
  (void)b.item<float>();
  EXPECT_EQ(session->stats().flushes, before.flushes + 1);
}

TEST_F(Basic, DeadResultsNeverRun) {
  const auto a = torch::ones({8}, kRemote);
  (void)a.sum().item<float>();
  const auto before = session->stats();
  { const auto dead = a.exp().log().sin(); }
  EXPECT_EQ((a + 1).sum().item<float>(), 16.0F);
  const auto after = session->stats();
  EXPECT_EQ(after.pruned_ops - before.pruned_ops, 3U);
  EXPECT_EQ(after.executed_ops - before.executed_ops, 2U);
}

TEST_F(Basic, ViewsAndInPlaceAlias) {
  const auto host = torch::arange(12, torch::kFloat).view({3, 4});
  auto remote = host.to(kRemote);
  auto local = host.clone();
  remote.select(0, 1).add_(10);
  local.select(0, 1).add_(10);
  remote.t().narrow(0, 1, 2).mul_(3);
  local.t().narrow(0, 1, 2).mul_(3);
  remote.index_put_({torch::indexing::Slice(), 0}, 7);
  local.index_put_({torch::indexing::Slice(), 0}, 7);
  EXPECT_TRUE(torch::equal(remote.cpu(), local));
  EXPECT_TRUE(torch::equal(remote.t().cpu(), local.t()));
  EXPECT_TRUE(torch::equal(remote.slice(1, 0, 4, 2).cpu(), local.slice(1, 0, 4, 2)));
}

TEST_F(Basic, CopiesKeepTheirLayout) {
  const auto transposed = torch::randn({7, 4}).t();
  const auto picture = torch::randn({2, 3, 4, 5}).contiguous(at::MemoryFormat::ChannelsLast);
  const auto gaps = torch::randn({6, 8}).slice(1, 0, 8, 2);
  for (const torch::Tensor& host : {transposed, picture, gaps}) {
    for (const auto type : {torch::kFloat, torch::kDouble}) {
      const auto expected = host.to(torch::kMeta).to(type);  // what PyTorch promises for any device
      const auto remote = host.to(kRemote, type);
      EXPECT_EQ(remote.strides(), expected.strides());
      EXPECT_EQ(remote.cpu().strides(), expected.strides());
      EXPECT_TRUE(torch::equal(remote.cpu(), host.to(type)));
    }
  }
  EXPECT_EQ(transposed.to(kRemote, torch::kFloat, false, false, at::MemoryFormat::Contiguous).strides(),
            torch::IntArrayRef({7, 1}));
  EXPECT_EQ(
      torch::randn({2, 3, 4, 5}).to(kRemote, torch::kFloat, false, false, at::MemoryFormat::ChannelsLast).strides(),
      picture.strides());
}

TEST_F(Basic, OutVariantsResize) {
  const auto a = torch::randn({2, 3});
  auto out = torch::empty({0}, kRemote);
  const auto ra = a.to(kRemote);
  torch::add_out(out, ra, ra);
  EXPECT_EQ(out.sizes(), a.sizes());
  EXPECT_TRUE(torch::equal(out.cpu(), a + a));
}

TEST_F(Basic, OutVariantsWithoutAClientShape) {
  const auto x = torch::randn({4, 3});
  const auto index = torch::tensor({2, 0});
  auto out = torch::empty({0}, kRemote);
  torch::index_select_out(out, x.to(kRemote), 0, index.to(kRemote));
  EXPECT_TRUE(torch::equal(out.cpu(), x.index_select(0, index)));
  auto places = torch::empty({0}, torch::TensorOptions(kRemote).dtype(torch::kLong));
  torch::nonzero_out(places, x.to(kRemote).gt(0));
  EXPECT_TRUE(torch::equal(places.cpu(), x.gt(0).nonzero())) << "a size that only the node knows";
  auto chosen = torch::zeros({64}, kRemote).slice(0, 3, 3);
  torch::masked_select_out(chosen, x.to(kRemote), x.to(kRemote).gt(0));
  EXPECT_TRUE(torch::equal(chosen.cpu(), x.masked_select(x.gt(0))));
  auto wrong = torch::empty({0}, kRemote);
  EXPECT_THROW(torch::nonzero_out(wrong, x), c10::Error) << "an operand on the CPU";
  auto whole = torch::zeros({8}, kRemote);
  auto part = whole.slice(0, 4, 4);
  const auto a = torch::randn({3});
  torch::add_out(part, a.to(kRemote), a.to(kRemote));
  EXPECT_TRUE(torch::equal(part.cpu(), a + a)) << "the offset stays";
}

TEST_F(Basic, ZeroTensorsBecomeRealOnes) {
  EXPECT_TRUE(torch::equal(torch::_efficientzerotensor({4}, kRemote).cpu(), torch::zeros({4})));
}

TEST_F(Basic, DataDependentShapesFlush) {
  const auto host = torch::tensor({0.0F, 1.0F, 0.0F, 2.0F});
  const auto remote = host.to(kRemote);
  EXPECT_TRUE(torch::equal(remote.nonzero().cpu(), host.nonzero()));
  EXPECT_TRUE(torch::equal(remote.masked_select(remote > 0).cpu(), host.masked_select(host > 0)));
  EXPECT_TRUE(torch::equal(remote.index({remote > 0}).cpu(), host.index({host > 0})));
}

// Pieces that are declared to be new tensors and lie in their source on the CPU do so here: kernels answer other bits for memory
// with gaps.
TEST_F(Basic, UnsafePiecesLieInTheirSource) {
  const auto x = torch::randn({5, 9});
  const auto run = [&](torch::Device device) {
    auto whole = x.to(device).clone();
    auto pieces = whole.unsafe_chunk(3, 1);
    pieces[1].sigmoid_();
    pieces.push_back(whole);
    auto uneven = whole.unsafe_split_with_sizes({2, 7}, 1);
    uneven[0].zero_();
    pieces.push_back(uneven[1]);
    return pieces;
  };
  const auto expected = run(torch::kCPU);
  const auto got = run(kRemote);
  for (size_t i = 0; i < got.size(); ++i) {
    EXPECT_EQ(got[i].strides(), expected[i].strides());
    EXPECT_TRUE(torch::equal(got[i].cpu(), expected[i])) << i;
  }
}

TEST_F(Basic, OnlyMasksFlushWhenTheyIndex) {
  using torch::indexing::Slice;
  const auto x = torch::randn({4, 5, 6});
  const auto rows = torch::tensor({0, 3, -1});
  const auto columns = torch::tensor({{1}, {4}});
  const auto run = [&](torch::Device device) {
    const auto t = x.to(device);
    const auto r = rows.to(device);
    const auto c = columns.to(device);
    return std::vector<torch::Tensor>{t.index({r}),
                                      t.index({Slice(), c}),
                                      t.index({r, Slice(), c}),
                                      t.index({r, c}),
                                      t.transpose(0, 2).index({Slice(), r}),
                                      t.index({r.to(torch::kInt), 2})};
  };
  const auto expected = run(torch::kCPU);
  const auto before = session->stats().flushes;
  const auto got = run(kRemote);
  for (size_t i = 0; i < got.size(); ++i) {
    EXPECT_EQ(got[i].sizes(), expected[i].sizes()) << i;
    EXPECT_EQ(got[i].strides(), expected[i].strides()) << i;
  }
  EXPECT_EQ(session->stats().flushes, before);
  for (size_t i = 0; i < got.size(); ++i) EXPECT_TRUE(torch::equal(got[i].cpu(), expected[i])) << i;
  EXPECT_TRUE(torch::equal(x.to(kRemote).index({x.to(kRemote) > 0}).cpu(), x.index({x > 0})));
  EXPECT_GT(session->stats().flush_reasons.at("shape"), 0U);
  EXPECT_THROW((void)x.to(kRemote).index({torch::tensor({9}).to(kRemote)}).cpu(), genie::Error);
}

TEST_F(Basic, SnapshotsAreTakenAtCapture) {
  auto source = torch::ones({1024, 1024});
  const auto remote = source.to(kRemote);
  source.fill_(5);
  EXPECT_EQ(remote.mean().item<float>(), 1.0F);
}

TEST_F(Basic, FetchedTensorsArePrivate) {
  auto remote = torch::ones({256, 256}, kRemote);
  auto first = remote.cpu();
  first.fill_(9);
  EXPECT_EQ(remote.sum().item<float>(), 65536.0F);
  remote.add_(1);
  EXPECT_EQ(first.max().item<float>(), 9.0F);
  EXPECT_EQ(remote.cpu().max().item<float>(), 2.0F);
}

TEST_F(Basic, BackwardEqualsEager) {
  const auto host = torch::randn({4, 4});
  auto run = [&](torch::Device device) {
    auto x = host.to(device).detach().requires_grad_(true);
    auto loss = (x.matmul(x).relu() * 0.5).sum();
    loss.backward();
    return std::make_pair(loss.item<float>(), x.grad().cpu());
  };
  const auto local = run(torch::kCPU);
  const auto remote = run(kRemote);
  EXPECT_EQ(local.first, remote.first);
  EXPECT_TRUE(torch::equal(local.second, remote.second));
}

TEST_F(Basic, OperatorsWhoseMetaKernelsMisleadAreRight) {
  const auto table = torch::randn({10, 3});
  const auto index = torch::tensor({1, 2, 4, 5, 4, 3});
  const auto offsets = torch::tensor({0, 3});
  for (const int64_t mode : {0, 1, 2}) {
    const auto local = torch::embedding_bag(table, index, offsets, false, mode);
    const auto remote = torch::embedding_bag(table.to(kRemote), index.to(kRemote), offsets.to(kRemote), false, mode);
    EXPECT_TRUE(torch::equal(std::get<0>(remote).cpu(), std::get<0>(local))) << mode;
  }
  const auto x = torch::randn({4, 2, 3});
  const auto mean = torch::randn({2});
  const auto variance = torch::rand({2});
  for (const bool training : {true, false}) {
    auto [m, v] = std::pair{mean.clone(), variance.clone()};
    auto [rm, rv] = std::pair{mean.to(kRemote), variance.to(kRemote)};
    const auto local = torch::_native_batch_norm_legit(x, {}, {}, m, v, training, 0.1, 1e-5);
    const auto remote = torch::_native_batch_norm_legit(x.to(kRemote), {}, {}, rm, rv, training, 0.1, 1e-5);
    EXPECT_TRUE(torch::equal(std::get<0>(remote).cpu(), std::get<0>(local)));
    EXPECT_TRUE(torch::equal(std::get<1>(remote).cpu(), std::get<1>(local)));
    EXPECT_TRUE(torch::equal(rm.cpu(), m));
  }
  const auto points = torch::rand({20, 2});
  const auto local = torch::histogramdd(points, torch::IntArrayRef({4, 5}));
  const auto remote = torch::histogramdd(points.to(kRemote), torch::IntArrayRef({4, 5}));
  EXPECT_TRUE(torch::equal(std::get<0>(remote).cpu(), std::get<0>(local)));
  EXPECT_TRUE(torch::equal(std::get<1>(remote)[1].cpu(), std::get<1>(local)[1]));
}

TEST_F(Basic, GradientsThatTheCpuComputesWholeAreEquals) {
  for (const auto function : {torch::silu, torch::mish}) {
    const auto host = torch::randn({20});
    const auto here = host.clone().requires_grad_();
    const auto there = host.to(kRemote).requires_grad_();
    const auto weights = torch::randn({20});
    function(here).backward(weights);
    function(there).backward(weights.to(kRemote));
    EXPECT_TRUE(torch::equal(there.grad().cpu(), here.grad()));
  }
}

TEST_F(Basic, ManualSeedGivesTheSameNumbers) {
  torch::manual_seed(11);
  const auto local = torch::randn({5, 5});
  torch::manual_seed(11);
  const auto remote = torch::randn({5, 5}, kRemote);
  EXPECT_TRUE(torch::equal(local, remote.cpu()));
}

// The node keeps the tensors that records made for those that read them: they must be what they are by then.
TEST_F(Basic, AStorageIsReadInEveryFormThatItTakes) {
  const auto program = [](const torch::Device& device) {
    std::vector<torch::Tensor> seen;
    auto x = torch::arange(6, torch::kFloat).to(device).view({2, 3});
    x.add_(1);
    seen.push_back(x.clone());
    seen.push_back(x.t().matmul(x));
    seen.push_back(x.view({6}).slice(0, 1, 5).mul(2));
    seen.push_back(x.view(torch::kInt).add(1));  // the same bytes as another type
    seen.push_back(x + x);
    x.resize_({3, 4}).fill_(2);
    seen.push_back(x + 1);
    const auto one = torch::ones({6}).to(device);
    torch::add_out(x, one, one);  // and shorter
    seen.push_back(x * 3);
    x.t_();
    seen.push_back(x.unsqueeze(0) - 1);
    auto square = torch::arange(4, torch::kFloat).to(device).view({2, 2});
    square.t_().add_(square);
    seen.push_back(square.exp());
    const auto complex = torch::complex(square, square + 1);
    seen.push_back(torch::real(complex.conj().mul(complex)));
    seen.push_back(torch::imag(complex.conj() + complex.mul(2)));
    seen.push_back(torch::view_as_real(complex).sum(0));
    for (auto& tensor : seen) tensor = tensor.cpu();
    return seen;
  };
  // Twice: the second time the node knows the template.
  const auto local = program(torch::kCPU);
  for (int round = 0; round < 2; ++round) {
    const auto remote = program(kRemote);
    ASSERT_EQ(remote.size(), local.size());
    for (size_t i = 0; i < local.size(); ++i) EXPECT_TRUE(torch::equal(remote[i], local[i])) << "value " << i;
  }
}

TEST_F(Basic, PredictedStridesAreKept) {
  const auto x = torch::randn({2, 3, 8, 8}).contiguous(torch::MemoryFormat::ChannelsLast);
  const auto w = torch::randn({4, 3, 3, 3});
  const std::vector<std::function<torch::Tensor(torch::Tensor, torch::Tensor)>> programs = {
      [](torch::Tensor a, torch::Tensor b) { return torch::conv2d(a, b); },
      [](torch::Tensor a, torch::Tensor) { return torch::relu(a.transpose(1, 3)); },
      [](torch::Tensor a, torch::Tensor) { return torch::where(a > 0, a, a * 2); },
      [](torch::Tensor a, torch::Tensor) {
        return torch::layer_norm(a, {8, 8});
      },
      [](torch::Tensor a, torch::Tensor) {
        return a.permute({3, 1, 0, 2}).exp().sum(1);
      },
      [](torch::Tensor a, torch::Tensor) { return torch::max_pool2d(a, 2); },
  };
  for (size_t i = 0; i < programs.size(); ++i) {
    const auto local = programs[i](x, w);
    const auto remote = programs[i](x.to(kRemote), w.to(kRemote));
    const auto value = remote.cpu();
    EXPECT_EQ(remote.strides(), value.strides()) << "program " << i;
    EXPECT_TRUE(torch::equal(value, local)) << "program " << i;
  }
}

TEST_F(Basic, PrintingWorks) {
  std::ostringstream local;
  std::ostringstream remote;
  const auto t = torch::arange(6, torch::kFloat).view({2, 3});
  local << t;
  remote << t.to(kRemote);
  EXPECT_NE(remote.str().find("0  1  2"), std::string::npos) << remote.str();
}

TEST_F(Basic, DataPointersAreRefused) {
  const auto t = torch::ones({2}, kRemote);
  EXPECT_THROW((void)t.data_ptr<float>(), c10::Error);
}

TEST_F(Basic, ErrorsSurfaceWhereTheValueIsUsed) {
  const auto good = torch::ones({3}, kRemote) * 2;
  const auto index = torch::tensor({7}).to(kRemote);
  const auto table = torch::ones({3, 2}, kRemote);
  const auto bad = torch::embedding(table, index);
  const auto later = bad + 1;
  try {
    (void)later.cpu();
    FAIL() << "an index out of range must be an error";
  } catch (const genie::Error& error) {
    EXPECT_NE(std::string(error.what()).find("aten::embedding"), std::string::npos) << error.what();
  }
  EXPECT_THROW((void)bad.cpu(), genie::Error);
  EXPECT_THROW((void)(later * 2), genie::Error);
  EXPECT_EQ(good.sum().item<float>(), 6.0F);
  EXPECT_EQ((table + 1).sum().item<float>(), 12.0F);
}

TEST_F(Basic, RepeatedStepsHitTheirTemplate) {
  const auto weight = torch::randn({8, 8}).to(kRemote);
  auto step = [&](int64_t rows) {
    return torch::relu(torch::randn({rows, 8}).to(kRemote).matmul(weight)).sum().item<float>();
  };
  step(2);
  const auto before = session->stats();
  for (int64_t rows = 3; rows < 10; ++rows) step(rows);
  const auto after = session->stats();
  EXPECT_EQ(after.templates_registered, before.templates_registered);
  EXPECT_EQ(after.flushes - before.flushes, 7U);
}

}  // namespace
