// The context style: genie::Capture. Every program also runs without one, on the CPU, and must give the same numbers.
#include <ATen/CPUGeneratorImpl.h>

#include <sys/wait.h>
#include <unistd.h>

#include <thread>

#include "tests/frontend/capture_fixture.h"

namespace genie::test {
namespace {

using torch::Tensor;

TEST_F(CaptureTest, FactoriesWithoutADeviceAreCaptured) {
  const auto like = torch::ones({2, 3});
  expect_captured([] { return torch::ones({2, 3}); });
  expect_captured([] { return torch::zeros({2, 3}, torch::kLong); });
  expect_captured([] { return torch::full({2}, 7.5); });
  expect_captured([] { return torch::eye(3); });
  expect_captured([] { return torch::arange(7); });
  expect_captured([] { return torch::linspace(0, 1, 5); });
  expect_captured([] { return torch::scalar_tensor(3.5); });
  expect_captured([] { return torch::hann_window(6); });
  expect_captured([] { return torch::tril_indices(3, 3); });
  expect_captured([] { return torch::rand({4}); });
  expect_captured([] { return torch::randn({4, 4}); });
  expect_captured([] { return torch::randint(10, {6}); });
  expect_captured([] { return torch::randperm(9); });
  expect_captured([] { return torch::normal(1.0, 2.0, {5}); });
  expect_captured([] { return at::normal(torch::zeros({4}), torch::ones({4})); });
  expect_captured([] { return torch::tensor({1.0, 2.5}); });
  expect_captured([] { return torch::tensor({{1, 2}, {3, 4}}); });
  expect_captured([] { return torch::tensor(4.0F); });
  expect_captured([&] { return torch::zeros_like(like); });
  expect_captured([&] { return torch::full_like(like, 3); });
  expect_captured([&] { return torch::randn_like(like); });
  expect_captured([&] { return like.new_ones({4}); });
}

TEST_F(CaptureTest, WhatNamesTheCpuStaysThere) {
  const auto cpu = torch::ones({3});
  auto generator = at::make_generator<at::CPUGeneratorImpl>(3);
  const Capture capture;
  EXPECT_TRUE(torch::ones({2}, torch::kCPU).device().is_cpu());
  EXPECT_TRUE(torch::empty({2}, torch::kCPU).to(torch::kCPU).device().is_cpu());
  EXPECT_TRUE(torch::randn({2}, torch::TensorOptions(torch::kCPU)).device().is_cpu());
  EXPECT_TRUE(torch::randperm(4, generator).device().is_cpu());
  EXPECT_TRUE(torch::bernoulli(cpu, generator).device().is_cpu());
  EXPECT_TRUE(torch::zeros_like(cpu, torch::kCPU).device().is_cpu());
  EXPECT_TRUE(torch::sparse_coo_tensor(cpu.to(torch::kLong).view({1, 3}), cpu).device().is_cpu());
  EXPECT_TRUE(cpu.view({1, 3}).clone().to(torch::kDouble).device().is_cpu()) << "views and copies stay";
  EXPECT_TRUE(is_remote(torch::ones({2}, device()))) << "a device that is named";
  std::array<float, 3> memory{1, 2, 3};
  const auto blob = torch::from_blob(memory.data(), {3});
  EXPECT_EQ(blob.data_ptr(), memory.data());
  const auto doubled = blob * 2;
  EXPECT_EQ(doubled.device(), device());
  memory[0] = 10;
  EXPECT_EQ((blob * 2).cpu()[0].item<float>(), 20.0F) << "the program's memory is read at each use";
  EXPECT_EQ(doubled.cpu()[0].item<float>(), 2.0F) << "and what was read stays";
  auto parameter = torch::from_blob(memory.data(), {3}).requires_grad_();
  EXPECT_EQ((parameter * 2).cpu()[0].item<float>(), 20.0F);
  memory[0] = 5;
  auto sum = (parameter * 2).sum();
  EXPECT_EQ(sum.item<float>(), 20.0F) << "that of a parameter, too";
  sum.backward();
  EXPECT_EQ(parameter.grad().data_ptr<float>()[0], 2.0F);
}

TEST_F(CaptureTest, NothingIsCapturedOutside) {
  {
    const Capture outer;
    EXPECT_TRUE(is_capturing());
    { const Capture inner; }
    EXPECT_TRUE(is_capturing());
    EXPECT_TRUE(is_remote(torch::ones({1})));
    std::thread([] {
      EXPECT_FALSE(is_capturing());
      EXPECT_FALSE(is_remote(torch::ones({1})));
    }).join();
  }
  EXPECT_FALSE(is_capturing());
  EXPECT_FALSE(is_remote(torch::ones({1})));
  EXPECT_FALSE(is_remote(torch::ones({1}) + 1));
  try {
    const Capture capture;
    throw std::runtime_error("out of the scope");
  } catch (const std::runtime_error&) {
    EXPECT_FALSE(is_capturing());
  }
  auto first = std::make_unique<Capture>();
  auto second = std::make_unique<Capture>();
  first.reset();  // in the wrong order
  EXPECT_TRUE(is_capturing());
  second.reset();
  EXPECT_FALSE(is_capturing());
  std::optional<Capture> moved(std::in_place);
  std::thread([&moved] { moved.reset(); }).join();
  EXPECT_FALSE(is_capturing()) << "ended by another thread";
  EXPECT_FALSE(is_remote(torch::ones({1})));
  moved.emplace();
  std::thread([&moved] { moved.reset(); }).join();
  EXPECT_FALSE(is_remote(torch::ones({1}))) << "also where nobody asked";
  moved.emplace();
  std::thread([&moved] { moved.reset(); }).join();
  const auto cpu = torch::ones({1}, torch::kCPU);
  EXPECT_FALSE(is_remote(cpu + cpu));
  EXPECT_THROW(Capture(torch::kCPU), c10::Error);
}

TEST_F(CaptureTest, OutsideTwoDevicesFollowPyTorchsRules) {
  const auto cpu = torch::ones({3});
  const auto remote = torch::ones({3}, device());
  EXPECT_THROW((void)(remote + cpu), c10::Error);
  EXPECT_THROW((void)torch::mm(remote.view({1, 3}), cpu.view({3, 1})), c10::Error);
  EXPECT_THROW((void)(cpu + remote), c10::Error);
  try {
    (void)(remote + cpu);
  } catch (const c10::Error& error) {
    EXPECT_NE(std::string(error.what()).find("Expected all tensors to be on the same device"), std::string::npos);
  }
  EXPECT_TRUE(torch::equal((remote + torch::tensor(2.0F)).cpu(), torch::full({3}, 3.0F))) << "numbers mix";
  EXPECT_TRUE(torch::equal((torch::tensor(2.0F) * remote).cpu(), torch::full({3}, 2.0F)));
  const Capture capture;
  EXPECT_TRUE(torch::equal((remote + cpu).cpu(), torch::full({3}, 2.0F, torch::kCPU)));
}

TEST_F(CaptureTest, AModelThatWasNeverMovedWorksAndTravelsOnce) {
  torch::nn::Sequential model(torch::nn::Linear(64, 128), torch::nn::ReLU(), torch::nn::Linear(128, 8));
  const auto x = torch::randn({4, 64});
  const torch::NoGradGuard no_grad;
  const auto expected = model->forward(x);
  const auto forward = [&] {
    const Capture capture;
    const auto y = model->forward(x);
    EXPECT_EQ(y.device(), device());
    return y.cpu();
  };
  genie::synchronize();
  const auto begin = session->stats();
  EXPECT_TRUE(torch::equal(forward(), expected));
  const auto first = session->stats();
  EXPECT_EQ(first.uploads - begin.uploads, 5U) << "four parameters and the input";
  EXPECT_EQ(first.flushes - begin.flushes, 1U);
  EXPECT_TRUE(torch::equal(forward(), expected));
  const auto second = session->stats();
  EXPECT_EQ(second.uploads, first.uploads) << "nothing changed";
  EXPECT_EQ(second.templates_registered, first.templates_registered);
  model->parameters()[0].mul_(2);
  EXPECT_TRUE(torch::equal(forward(), model->forward(x)));
  EXPECT_EQ(session->stats().uploads, second.uploads + 1) << "its version moved";
}

// Pointwise operators take them by value; others, whose gradients keep them, as tensors.
TEST_F(CaptureTest, OperandsWithoutDimensions) {
  const auto target = torch::tensor(2);
  const auto x = torch::randn({4});
  const auto run = [&] {
    auto logits = x.clone().requires_grad_();
    (torch::nll_loss(torch::log_softmax(logits, 0) * torch::tensor(2.0F, torch::kCPU), target)).backward();
    return logits.grad();
  };
  const auto expected = run();
  const Capture capture;
  EXPECT_TRUE(torch::equal(run(), expected));
}

// However the program writes, the next use sees it.
TEST_F(CaptureTest, WritesAreSeen) {
  auto weight = torch::ones({300});
  const auto sum = [&] {
    const Capture capture;
    return weight.sum().item<float>();
  };
  EXPECT_EQ(sum(), 300.0F);
  weight.add_(1);
  EXPECT_EQ(sum(), 600.0F) << "in place";
  weight.set_data(torch::full({300}, 3.0F));
  EXPECT_EQ(sum(), 900.0F) << "other memory";
  weight.variable_data().fill_(4);
  EXPECT_EQ(sum(), 1200.0F) << "by .data, which has a version of its own";
  weight.data_ptr<float>()[0] = 104;
  EXPECT_EQ(sum(), 1300.0F) << "by its address";
  weight.accessor<float, 1>()[0] = 204;
  EXPECT_EQ(sum(), 1400.0F);
  weight.slice(0, 0, 1).zero_();
  EXPECT_EQ(sum(), 1196.0F) << "by a view";
  weight.resize_({301}).fill_(1);
  EXPECT_EQ(sum(), 301.0F) << "another size";
  {
    const Capture capture;
    EXPECT_EQ(weight.sum().item<float>(), 301.0F);
    weight.mul_(2);
    EXPECT_EQ(weight.sum().item<float>(), 602.0F) << "within a capture";
  }
}

// What was fetched may be an operand again; its bytes stay the program's own.
TEST_F(CaptureTest, FetchedTensorsAreLiftedToo) {
  const auto remote = torch::arange(4096, torch::TensorOptions(torch::kFloat).device(device()));
  auto fetched = remote.cpu();
  const auto sum = [&] {
    const Capture capture;
    return fetched.sum().item<float>();
  };
  const float expected = 4095.0F * 2048.0F;
  EXPECT_EQ(sum(), expected);
  const auto before = session->stats().uploads;
  EXPECT_EQ(sum(), expected);
  EXPECT_EQ(session->stats().uploads, before) << "sent once";
  fetched.data_ptr<float>()[0] = 1000;
  EXPECT_EQ(sum(), expected + 1000);
  EXPECT_EQ(remote[0].item<float>(), 0.0F) << "the node's value is not touched";
}

TEST_F(CaptureTest, DeadStoragesAreForgotten) {
  const auto bytes_on_node = [&] { return session->stats().upload_bytes; };
  for (int i = 0; i < 20; ++i) {
    const auto fresh = torch::full({1000}, static_cast<float>(i));  // likely where the one before lay
    const Capture capture;
    EXPECT_EQ(fresh.mean().item<float>(), static_cast<float>(i));
  }
  EXPECT_GE(bytes_on_node(), 20U * 4000U);
  auto tensor = torch::ones({1000});
  const auto weak = tensor.storage().getWeakStorageImpl();
  {
    const Capture capture;
    EXPECT_EQ(tensor.sum().item<float>(), 1000.0F);
  }
  tensor.reset();
  EXPECT_TRUE(weak.expired()) << "the cache keeps nothing alive";
}

// A data set that is walked through does not gather on the node; weights that need no gradient stay there.
TEST_F(CaptureTest, WhatWasSentOnceMakesRoom) {
  std::vector<Tensor> tensors;
  for (int i = 0; i < 5; ++i) tensors.push_back(torch::full({16, 1 << 20}, static_cast<float>(i)));  // 64 MiB each
  const auto uploads_of = [&](const Tensor& tensor) {
    const float expected = tensor.const_data_ptr<float>()[0];
    const auto before = session->stats().uploads;
    const Capture capture;
    EXPECT_EQ(tensor.max().item<float>(), expected);
    return session->stats().uploads - before;
  };
  for (const Tensor& tensor : tensors) EXPECT_EQ(uploads_of(tensor), 1U);
  EXPECT_EQ(uploads_of(tensors[4]), 0U);
  EXPECT_EQ(uploads_of(tensors[0]), 1U) << "it made room";
  EXPECT_EQ(uploads_of(tensors[0]), 0U) << "it was sent again: it stays";
  auto parameter = torch::ones({16, 1 << 20}).requires_grad_();
  EXPECT_EQ(uploads_of(parameter), 1U);
  for (int i = 0; i < 5; ++i) EXPECT_EQ(uploads_of(torch::full({16, 1 << 20}, 7.0F)), 1U);
  EXPECT_EQ(uploads_of(tensors[0]), 0U);
  EXPECT_EQ(uploads_of(parameter), 0U);
}

TEST_F(CaptureTest, APartOfALargeStorageTravelsAlone) {
  const auto data = torch::randn({4096, 1024});
  const auto before = session->stats().upload_bytes;
  const Capture capture;
  EXPECT_TRUE(torch::equal((data.slice(0, 8, 16) + 1).cpu(), data.slice(0, 8, 16).clone().add_(1)));
  EXPECT_LT(session->stats().upload_bytes - before, uint64_t{1} << 20);
  const auto picked = data.t().slice(0, 3, 5);  // with gaps
  EXPECT_TRUE(torch::equal((picked * 2).cpu(), picked.clone().mul_(2)));
}

TEST_F(CaptureTest, GeometriesOfLiftedTensorsHold) {
  const auto base = torch::randn({6, 8}, torch::kComplexFloat);
  const std::vector<Tensor> views = {base,
                                     base.t(),
                                     base.conj(),
                                     torch::imag(base.conj()),
                                     base.slice(1, 1, 8, 3),
                                     base[2],
                                     base.select(1, 4),
                                     torch::view_as_real(base).select(2, 1)};
  for (const Tensor& view : views) {
    const auto expected = view + view;
    const Capture capture;
    EXPECT_TRUE(torch::equal((view + view).cpu(), expected));
  }
  const auto empty = torch::empty({0, 3});
  const Capture capture;
  EXPECT_EQ((empty + empty).cpu().sizes(), empty.sizes());
}

TEST_F(CaptureTest, WritesIntoCpuTensorsAreThereAtOnce) {
  auto buffer = torch::ones({3});
  auto out = torch::empty({0});
  const auto expected = torch::arange(3, torch::kFloat);
  const Capture capture;
  const auto remote = torch::arange(3, torch::kFloat);
  auto& same = buffer.add_(remote);
  EXPECT_TRUE(same.is_same(buffer));
  EXPECT_EQ(buffer.data_ptr<float>()[2], 3.0F);
  buffer.slice(0, 0, 1).mul_(remote[2]);
  EXPECT_EQ(buffer.data_ptr<float>()[0], 2.0F);
  torch::add_out(out, remote, remote);
  ASSERT_EQ(out.sizes(), expected.sizes());
  EXPECT_EQ(out.data_ptr<float>()[1], 2.0F);
  buffer.copy_(remote);
  EXPECT_EQ(buffer.data_ptr<float>()[2], 2.0F);
  auto leaf = torch::ones({3}, torch::TensorOptions(torch::kCPU).requires_grad(true));
  EXPECT_THROW(leaf.add_(remote), c10::Error) << "PyTorch's rule for leaves";
  auto on_cpu = leaf.clone();
  on_cpu.mul_(remote);
  on_cpu.sum().backward();
  EXPECT_TRUE(leaf.grad().device().is_cpu());
  EXPECT_EQ(leaf.grad().data_ptr<float>()[2], 2.0F);
}

// Running statistics are read before they are written; outputs are not.
TEST_F(CaptureTest, StatisticsOfOutVariantsAreReadToo) {
  const auto x = torch::randn({5, 3, 2});
  const auto weight = torch::rand({3});
  const auto run = [&](bool annotated, const Tensor& input) {
    auto mean = torch::full({3}, 0.5F, torch::kCPU);
    auto variance = torch::full({3}, 2.0F, torch::kCPU);
    std::vector<Tensor> out;
    for (int i = 0; i < 3; ++i) out.push_back(torch::empty({0}, torch::kCPU));
    if (annotated) {
      at::_native_batch_norm_legit_out(out[0], out[1], out[2], input, weight, {}, mean, variance, true, 0.25, 1e-5);
    } else {
      at::native_batch_norm_out(out[0], out[1], out[2], input, weight, {}, mean, variance, true, 0.25, 1e-5);
    }
    out.push_back(mean);
    out.push_back(variance);
    return out;
  };
  for (const bool annotated : {false, true}) {
    const auto expected = run(annotated, x);
    const Capture capture;
    const auto made = run(annotated, x.to(device()));
    for (size_t i = 0; i < expected.size(); ++i) {
      ASSERT_TRUE(made[i].device().is_cpu());
      EXPECT_TRUE(torch::equal(made[i], expected[i])) << annotated << i << made[i] << expected[i];
    }
  }
}

// How long the sequences of a batch are is the client's to know.
TEST_F(CaptureTest, PackedSequences) {
  namespace rnn = torch::nn::utils::rnn;
  const auto x = torch::randn({3, 5, 4});
  const auto outside = torch::tensor({2, 5, 3});
  const auto run = [&](auto& layer, const Tensor& lengths, bool sorted) {
    layer->zero_grad();
    auto input = x.clone().requires_grad_();
    const auto packed = rnn::pack_padded_sequence(input, lengths, /*batch_first=*/true, /*enforce_sorted=*/sorted);
    EXPECT_TRUE(packed.batch_sizes().device().is_cpu());
    const auto done = std::get<0>(layer->forward_with_packed_input(packed));
    const auto [padded, back] = rnn::pad_packed_sequence(done, /*batch_first=*/true);
    EXPECT_TRUE(torch::equal(back.cpu(), lengths.cpu()));
    padded.pow(2).sum().backward();
    std::vector<Tensor> out{padded.detach().cpu(), input.grad()};
    for (const Tensor& parameter : layer->parameters()) out.push_back(parameter.grad().clone());
    return out;
  };
  const auto compare = [&](auto layer) {
    const auto sorted = torch::tensor({5, 3, 2});
    const std::array expected{run(layer, outside, false), run(layer, sorted, true)};
    const Capture capture;
    const std::array made{run(layer, outside, false), run(layer, torch::tensor({5, 3, 2}), true)};
    EXPECT_TRUE(is_remote(torch::tensor({5, 3, 2})));
    for (size_t i = 0; i < expected.size(); ++i) {
      for (size_t j = 0; j < expected[i].size(); ++j) {
        EXPECT_TRUE(torch::allclose(made[i][j], expected[i][j], 1e-5, 1e-6)) << i << j;
      }
      EXPECT_TRUE(torch::equal(made[i][0], expected[i][0])) << i;
    }
  };
  compare(torch::nn::LSTM(torch::nn::LSTMOptions(4, 6).bidirectional(true).num_layers(2)));
  compare(torch::nn::GRU(torch::nn::GRUOptions(4, 6)));
  compare(torch::nn::RNN(torch::nn::RNNOptions(4, 6)));
}

// Operators that PyTorch composes of others, with nothing but CPU operands.
TEST_F(CaptureTest, CompositionsAreCaptured) {
  const auto x = torch::randn({3, 5, 4});
  const auto y = torch::randn({3, 4, 2});
  const std::vector<std::function<Tensor()>> programs = {
      [&] { return torch::matmul(x, y); },
      [&] {
        return torch::einsum("bij,bjk->bik", {x, y});
      },
      [&] { return torch::batch_norm(x, {}, {}, {}, {}, true, 0.1, 1e-5, false); },
      [&] { return torch::layer_norm(x, {4}); },
      [&] { return torch::softmax(x, 1); },
      [&] { return torch::scaled_dot_product_attention(x, x, x); },
      [&] { return torch::where(x > 0, x, 0); },
      [&] {
        return torch::cat({x, x}, 1);
      },
      [&] {
        return torch::index_select(x, 1, torch::tensor({2, 0}));
      },
      [&] {
        return x.index({torch::tensor({2, 0})});
      },
      [&] { return torch::nn::functional::gelu(x); },
      [&] {
        return torch::stack({x, x});
      },
  };
  for (size_t i = 0; i < programs.size(); ++i) {
    const auto expected = programs[i]();
    const Capture capture;
    const auto made = programs[i]();
    EXPECT_EQ(made.device(), device()) << "program " << i;
    EXPECT_TRUE(torch::equal(made.cpu(), expected)) << "program " << i;
  }
}

TEST_F(CaptureTest, OperandsThatAreHandedOnAreThePrograms) {
  const auto x = torch::randn({3, 4});
  const Capture capture;
  EXPECT_TRUE(torch::dropout(x, 0.5, /*train=*/false).is_same(x));
  auto twice = torch::broadcast_tensors({x, torch::ones({3, 4}, torch::kCPU)});
  twice[0].zero_();
  EXPECT_EQ(x.data_ptr<float>()[0], 0.0F) << "a view writes through";
  EXPECT_EQ(x.sum().item<float>(), 0.0F);
}

// What is handed on of memory that was sent without its gaps is no view of the program's.
TEST_F(CaptureTest, ViewsOfOperandsWithGaps) {
  std::vector<int64_t> memory(12);
  for (size_t i = 0; i < memory.size(); ++i) memory[i] = static_cast<int64_t>(i);
  const auto x = torch::from_blob(memory.data(), {3, 4}, torch::kLong).slice(1, 0, 4, 2);
  const auto large = torch::arange(int64_t{1} << 20).view({-1, 4}).slice(0, 3, 6).slice(1, 1, 4, 2);
  for (const Tensor& from : {x, large}) {
    const auto expected = torch::einsum("ij->ji", {from});
    const auto diagonal = torch::einsum("ii->i", {from.slice(0, 0, 2)});
    const Capture capture;
    EXPECT_TRUE(torch::equal(torch::einsum("ij->ji", {from}).cpu(), expected));
    EXPECT_TRUE(torch::equal(torch::einsum("ii->i", {from.slice(0, 0, 2)}).cpu(), diagonal));
  }
}

// A child, as a worker that loads data is, computes on the CPU and leaves the session to its parent.
TEST_F(CaptureTest, AForkedChildIsOutsideOfTheCapture) {
  auto weight = torch::ones({1000});
  Capture capture;
  const auto before = weight + 1;
  const pid_t child = ::fork();
  if (child == 0) {
    ::alarm(60);  // however it hangs
    const auto check = [](int code, bool right) {
      if (!right) ::_exit(code);
    };
    const auto throws = [](const auto& what) {
      try {
        (void)what();
        return false;
      } catch (const Error& error) {
        return std::string_view(error.what()).find("fork") != std::string_view::npos;
      }
    };
    try {
      check(2, !is_capturing());
      const auto made = torch::tensor({1.0F, 2.0F}) + torch::ones({2});
      check(3, made.device().is_cpu() && made.data_ptr<float>()[1] == 3.0F);
      const auto sum = torch::relu(weight).add(1).sum();
      check(4, sum.device().is_cpu() && sum.item<float>() == 2000.0F);
      weight.mul_(4);
      check(5, weight.data_ptr<float>()[0] == 4.0F);
      check(6, throws([] { return Capture(); }));
      check(7, throws([&] { return weight.to(before.device()); }));
      capture.end();
      check(8, capture.graph().nodes.empty());
    } catch (...) {
      ::_exit(9);
    }
    ::_exit(0);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  EXPECT_TRUE(is_capturing());
  const auto after = weight * 2 + torch::ones({1000});
  EXPECT_EQ(before.sum().item<float>(), 2000.0F);
  EXPECT_EQ(after.sum().item<float>(), 3000.0F);
  EXPECT_EQ(weight.data_ptr<float>()[0], 1.0F);
  EXPECT_EQ(capture.graph().nodes.front().op, "aten::add.Scalar");
}

TEST_F(CaptureTest, GraphsHoldTheirScope) {
  const auto names = [](const Graph& graph) {
    std::vector<std::string> out;
    for (const GraphNode& node : graph.nodes) out.push_back(node.op);
    return out;
  };
  using Names = std::vector<std::string>;
  const auto w = torch::ones({2, 2});
  const auto before = torch::ones({2, 2}, device()) * 3;
  Capture outer;
  const auto a = w.exp();
  EXPECT_EQ(names(outer.graph()), Names({"aten::exp"}));
  { const auto dead = a.log(); }
  (void)a.cpu();  // flushes, and prunes log
  Graph inside;
  {
    const Capture inner;
    const auto b = a.add(before);
    (void)b.sum().item<float>();
    const auto c = b.add_(w).neg();
    inside = inner.graph();
    EXPECT_EQ(names(inside), Names({"aten::add.Tensor", "aten::sum", "aten::add_.Tensor", "aten::neg"}));
  }
  EXPECT_EQ(names(genie::graph()), names(inside)) << "the latest finished one";
  const auto d = a.sqrt();
  outer.end();
  const auto later = a.sin();
  EXPECT_EQ(names(outer.graph()), Names({"aten::exp", "aten::log", "aten::add.Tensor", "aten::sum", "aten::add_.Tensor",
                                         "aten::neg", "aten::sqrt"}));
  EXPECT_EQ(names(genie::graph()), names(outer.graph()));
  EXPECT_EQ(inside.nodes[2].depends_on, (std::vector<uint32_t>{0, 1})) << "edges cross flushes";
  EXPECT_EQ(inside.nodes[0].inputs[0].storage, 0U);
  EXPECT_EQ(outer.graph().omitted, 0U);
  EXPECT_NE(inside.to_dot().find("aten::neg"), std::string::npos);
}

TEST_F(CaptureTest, BackwardBelongsToTheGraph) {
  auto w = torch::ones({2, 2}, torch::requires_grad());
  Capture capture;
  w.mm(w).sum().backward();
  size_t mms = 0;
  for (const GraphNode& node : capture.graph().nodes) mms += node.op == "aten::mm" ? 1 : 0;
  EXPECT_EQ(mms, 3U) << capture.graph().to_string();
}

TEST_F(CaptureTest, ThreadsCaptureForThemselves) {
  const auto w = torch::randn({16, 16});
  const auto expected = w.mm(w).cpu();
  std::vector<std::thread> threads;
  std::atomic<int> right = 0;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int step = 0; step < 20; ++step) {
        const Capture capture;
        const auto y = w.mm(w);
        if (torch::equal(y.cpu(), expected) && capture.graph().nodes.size() == 1) ++right;
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(right, 80);
}

TEST_F(CaptureTest, SecondSessionsDevice) {
  const Session other = Session::connect("embedded:");
  const auto w = torch::ones({4});
  Tensor first;
  Tensor second;
  {
    const Capture capture;
    first = w + 1;
    const Capture there(other.device());
    second = w + 2;
    {
      const Capture nested;
      EXPECT_EQ(torch::ones({1}).device(), other.device());
    }
  }
  EXPECT_EQ(first.device(), device());
  EXPECT_EQ(second.device(), other.device());
  EXPECT_TRUE(torch::equal(first.cpu() + 1, second.cpu()));
}

}  // namespace
}  // namespace genie::test
