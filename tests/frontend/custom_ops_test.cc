// Operators of a library (tests/custom_ops), registered shape functions, the check of shapes, and what errors from the node say.
// Runs on a node inside the process or, with GENIE_TEST_REMOTE=1, on a genie-node process that loaded the library.
#include <dlfcn.h>
#include <gmock/gmock.h>
#include <torch/script.h>

#include <fstream>

#include "tests/frontend/session_fixture.h"

namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

// Calls "genie_test::NAME" with boxed arguments.
torch::jit::Stack call_all(const char* name, torch::jit::Stack arguments) {
  c10::Dispatcher::singleton().findSchemaOrThrow((std::string("genie_test::") + name).c_str(), "").callBoxed(arguments);
  return arguments;
}
at::Tensor call(const char* name, torch::jit::Stack arguments) {
  return call_all(name, std::move(arguments)).at(0).toTensor();
}

// What an error says; empty when nothing was thrown.
template <class F>
std::string text_of(F&& action) {
  try {
    action();
  } catch (const genie::Error& error) {
    return error.what();
  } catch (const c10::Error& error) {
    return error.what_without_backtrace();
  }
  return "";
}

class CustomOpsTest : public genie::test::SessionTest {
 protected:
  static void SetUpTestSuite() { ASSERT_NE(::dlopen(GENIE_CUSTOM_OPS, RTLD_NOW | RTLD_LOCAL), nullptr) << ::dlerror(); }
  void SetUp() override { start({"--load-library", GENIE_CUSTOM_OPS}); }
  void TearDown() override {
    genie::set_check_shapes(false);
    genie::set_trace_lines(false);
    genie::set_source_finder({});
    SessionTest::TearDown();
  }
  uint64_t flushes() const { return session->stats().flushes; }
  at::Tensor here(at::IntArrayRef sizes) const {
    return torch::arange(1, c10::multiply_integers(sizes) + 1, torch::kFloat).view(sizes);
  }
};

TEST_F(CustomOpsTest, WithAMetaKernelItIsCaptured) {
  const auto x = here({3, 4});
  const auto there = x.to(device());
  const auto before = session->stats();
  const auto y = call("scale", {call("scale", {there, 2.5}) + 1, 0.5});
  EXPECT_EQ(flushes(), before.flushes);
  EXPECT_EQ(genie::describe(y).op, "genie_test::scale");
  EXPECT_EQ(
      session->stats().captured_by_op.at("genie_test::scale"), 2U + [&] {
        const auto found = before.captured_by_op.find("genie_test::scale");
        return found == before.captured_by_op.end() ? 0U : found->second;
      }());
  EXPECT_TRUE(torch::equal(y.cpu(), (x * 2.5 + 1) * 0.5));
  EXPECT_EQ(session->stats().client_fallbacks, before.client_fallbacks);
  // What the Meta kernel refuses is refused where it is called.
  EXPECT_THAT(text_of([&] { (void)call("scale", {there.to(torch::kLong), 2.0}); }), HasSubstr("wants floating-point"));
}

TEST_F(CustomOpsTest, WithoutAMetaKernelTheNodeSaysTheShape) {
  const auto x = here({3, 4});
  const auto there = x.to(device());
  const auto doubled = there * 2;
  const auto before = session->stats();
  const auto y = call("repeat_rows", {doubled, 2});
  EXPECT_EQ(y.sizes(), at::IntArrayRef({6, 4}));
  EXPECT_EQ(flushes(), before.flushes + 1);
  EXPECT_EQ(session->stats().shapes_from_node, before.shapes_from_node + 1);
  EXPECT_TRUE(torch::equal((y + 1).cpu(), (x * 2).repeat({2, 1}) + 1));
  // Two requests that look alike, two shapes: nothing may be remembered.
  for (const auto& mask : {torch::tensor({true, false, true}), torch::tensor({false, true, false})}) {
    const auto kept = call("keep_rows", {there, mask.to(device())});
    EXPECT_EQ(kept.size(0), mask.sum().item<int64_t>());
    EXPECT_TRUE(torch::equal(kept.cpu(), x.index({mask})));
  }
}

TEST_F(CustomOpsTest, InPlaceItReturnsItsArgument) {
  const auto there = here({2, 3}).to(device());
  const auto row = there[1];
  const auto before = flushes();
  auto same = call("add_one_", {row});
  EXPECT_TRUE(same.is_same(row));
  call("add_one_", {there});
  EXPECT_EQ(flushes(), before);
  auto expected = here({2, 3}) + 1;
  expected[1] += 1;
  EXPECT_TRUE(torch::equal(there.cpu(), expected));
}

TEST_F(CustomOpsTest, ItsAutogradFormulaIsUsed) {
  auto run = [this](torch::Device where) {
    auto x = here({2, 3}).to(where).requires_grad_();
    const auto before = flushes();
    auto y = call("cube", {x * 2});
    y.sum().backward();
    EXPECT_EQ(flushes(), before);
    EXPECT_THAT(y.grad_fn()->name(), HasSubstr("Cube"));
    return std::vector<at::Tensor>{y.detach().cpu(), x.grad().cpu()};
  };
  const auto local = run(torch::kCPU);
  const auto remote = run(device());
  EXPECT_TRUE(torch::equal(local[0], remote[0]));
  EXPECT_TRUE(torch::equal(local[1], remote[1]));
}

TEST_F(CustomOpsTest, SeveralResultsAndLists) {
  const auto x = here({5, 3});
  const auto there = x.to(device());
  const auto before = flushes();
  const auto halves = call_all("halves", {there});
  const auto rows = call_all("rows", {there}).at(0).toTensorVector();
  EXPECT_EQ(flushes(), before);
  const auto local = call_all("halves", {x});
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(halves[i].toTensor().strides(), local[i].toTensor().strides());
    EXPECT_TRUE(torch::equal(halves[i].toTensor().cpu(), local[i].toTensor()));
  }
  ASSERT_EQ(rows.size(), 5U);
  for (int64_t i = 0; i < 5; ++i) EXPECT_TRUE(torch::equal(rows[static_cast<size_t>(i)].cpu(), x[i]));
}

TEST_F(CustomOpsTest, ARegisteredShapeFunctionSparesTheFlush) {
  const auto x = here({3, 4});
  const auto there = x.to(device());
  // How often the call itself has to flush.
  const auto asks = [&] {
    const auto before = flushes();
    const auto y = call("repeat_rows", {there, 3});
    const uint64_t asked = flushes() - before;
    EXPECT_TRUE(torch::equal(y.cpu(), x.repeat({3, 1})));
    return asked;
  };
  EXPECT_EQ(asks(), 1U);
  genie::register_shape_function("genie_test::repeat_rows", [](genie::ShapeCall& shapes) {
    const auto& rows = shapes.tensor(0);
    EXPECT_EQ(shapes.size(), 2U);
    shapes.add({rows.size(0) * shapes[1].toInt(), rows.size(1)}, rows.scalar_type());
    return true;
  });
  EXPECT_EQ(asks(), 0U);
  genie::register_shape_function("genie_test::repeat_rows", [](genie::ShapeCall& shapes) {
    shapes.add({1}, at::kLong);
    return false;  // it does not know after all
  });
  EXPECT_EQ(asks(), 1U);
  genie::register_shape_function("genie_test::repeat_rows", {});
  EXPECT_EQ(asks(), 1U);

  // Before the Meta kernel, and for lists whose length nobody else knows.
  EXPECT_THAT(text_of([&] { (void)call_all("unknown_rows", {there}); }),
              AllOf(HasSubstr("genie_test::unknown_rows"), HasSubstr("register_shape_function")));
  genie::register_shape_function("genie_test::unknown_rows", [](genie::ShapeCall& shapes) {
    shapes.begin_list(static_cast<size_t>(shapes.tensor(0).size(0)));
    for (int64_t i = 0; i < shapes.tensor(0).size(0); ++i) shapes.add_like(shapes.tensor(0)[i]);
    return true;
  });
  const auto rows = call_all("unknown_rows", {there}).at(0).toTensorVector();
  ASSERT_EQ(rows.size(), 3U);
  EXPECT_TRUE(torch::equal(rows[2].cpu(), x[2]));
  genie::register_shape_function("genie_test::unknown_rows", {});
}

TEST_F(CustomOpsTest, AnAnswerThatCannotBeIsRefused) {
  const auto there = here({3, 4}).to(device());
  const auto refusal = [&](genie::ShapeFunction function) {
    genie::register_shape_function("genie_test::repeat_rows", std::move(function));
    const std::string text = text_of([&] { (void)call("repeat_rows", {there, 3}); });
    EXPECT_THAT(text, HasSubstr("the shape function of genie_test::repeat_rows"));
    return text;
  };
  EXPECT_THAT(refusal([](genie::ShapeCall&) { return true; }), HasSubstr("describes 0 new results"));
  EXPECT_THAT(
      refusal([](genie::ShapeCall& shapes) { return shapes.add({1}, at::kLong), shapes.add_undefined(), true; }),
      HasSubstr("describes 2 new results, its schema has 1"));
  EXPECT_THAT(refusal([](genie::ShapeCall& shapes) { return shapes.begin_list(0), true; }), HasSubstr("as a list"));
  EXPECT_THAT(refusal([](genie::ShapeCall& shapes) { return shapes.begin_list(2), true; }), HasSubstr("undescribed"));
  EXPECT_THAT(refusal([](genie::ShapeCall& shapes) { return shapes.add({-1}, at::kLong), true; }),
              HasSubstr("negative size"));
  EXPECT_THAT(refusal([](genie::ShapeCall& shapes) {
                return shapes.add({2, 2}, at::kLong, {0, 1}), true;
              }),
              HasSubstr("gaps or overlap"));
  EXPECT_THAT(refusal([](genie::ShapeCall& shapes) {
                return shapes.add({2, 2}, at::kLong, {1}), true;
              }),
              HasSubstr("1 strides for 2 sizes"));
  EXPECT_THAT(refusal([](genie::ShapeCall& shapes) { return shapes.add_like(shapes.tensor(1)), true; }),
              HasSubstr("takes argument 1 for a tensor"));
  EXPECT_THAT(refusal([](genie::ShapeCall& shapes) { return (void)shapes[2], true; }),
              HasSubstr("asks for argument 2 of 2"));
  genie::register_shape_function("genie_test::repeat_rows", {});
  EXPECT_THAT(text_of([] { genie::register_shape_function("genie_test::nothing", {}); }), HasSubstr("no operator"));
}

TEST_F(CustomOpsTest, WhatCannotBeCapturedSaysWhy) {
  const auto there = here({3, 4}).to(device());
  EXPECT_THAT(text_of([&] { (void)call_all("count_positive", {there}); }),
              AllOf(HasSubstr("genie_test::count_positive"), HasSubstr("returns int"), HasSubstr("CPU")));
  EXPECT_THAT(text_of([&] { (void)call("first_row", {there}); }),
              AllOf(HasSubstr("genie_test::first_row"), HasSubstr("makes a view")));
  EXPECT_THAT(text_of([&] {
                (void)call("keep_rows", {there, torch::tensor({true, false, true})});
              }),
              HasSubstr("Expected all tensors to be on the same device"));
}

TEST_F(CustomOpsTest, ANodeWithoutTheLibraryIsTold) {
  if (!genie::test::remote_mode()) GTEST_SKIP() << "an embedded node has what the program has";
  start({});
  const auto x = here({3, 4});
  const auto there = x.to(device());
  const auto sum = there + 1;
  const std::string text = text_of([&] { (void)call("scale", {there, 2.0}); });
  EXPECT_THAT(text, AllOf(HasSubstr("genie_test::scale"), HasSubstr("--load-library"), HasSubstr(GENIE_CUSTOM_OPS),
                          HasSubstr("ops.cc")));
  EXPECT_TRUE(torch::equal(sum.cpu(), x + 1)) << "the session goes on";

  start({"--load-library", GENIE_OTHER_CUSTOM_OPS});
  EXPECT_THAT(text_of([&] {
                (void)call("scale", {x.to(device()), 2.0});
              }),
              AllOf(HasSubstr("genie_test::scale has another schema"), HasSubstr("--load-library")));
  EXPECT_TRUE(torch::equal(call("repeat_rows", {x.to(device()), 2}).cpu(), x.repeat({2, 1}))) << "this one is the same";
  // What libtorch itself has besides aten is for the node's own process.
  const auto quantized = c10::Dispatcher::singleton().findSchema({"quantized::leaky_relu", ""});
  ASSERT_TRUE(quantized.has_value());
  EXPECT_THAT(text_of([&] {
                torch::jit::Stack stack{x.to(device()), 0.1, false, 1.0, 0};
                quantized->callBoxed(stack);
              }),
              HasSubstr("is not on node"));
}

TEST_F(CustomOpsTest, ANodeSaysWhyALibraryCannotBeLoaded) {
  if (!genie::test::remote_mode()) GTEST_SKIP() << "of genie-node only";
  {
    genie::test::NodeProcess missing({"--load-library", "/nonexistent/ops.so"});
    EXPECT_EQ(missing.wait_exit(), 2);
    EXPECT_THAT(missing.errors(), AllOf(HasSubstr("/nonexistent/ops.so"), HasSubstr("cannot be loaded")));
  }
  {
    genie::test::NodeProcess twice({"--load-library", GENIE_CUSTOM_OPS, "--load-library", GENIE_OTHER_CUSTOM_OPS});
    EXPECT_EQ(twice.wait_exit(), 2);
    EXPECT_THAT(twice.errors(), AllOf(HasSubstr(GENIE_OTHER_CUSTOM_OPS ": cannot be loaded"), HasSubstr("genie_test")));
  }
  genie::test::NodeProcess elsewhere({}, false);  // for its folder
  const std::string file = elsewhere.folder() + "/node.yaml";
  std::ofstream(file) << "load_library: [" << GENIE_CUSTOM_OPS << ", " << file << "]\n";
  genie::test::NodeProcess wrong({"--config", file});
  EXPECT_EQ(wrong.wait_exit(), 2);
  EXPECT_THAT(wrong.errors(), AllOf(HasSubstr(file + ": cannot be loaded"), Not(HasSubstr("ops.so: cannot"))));

  std::ofstream(file, std::ios::trunc) << "load_library:\n  - " << GENIE_CUSTOM_OPS << "\n";
  genie::test::NodeProcess right({"--config", file});
  ASSERT_TRUE(right.wait_ready()) << right.errors();
  session.emplace(genie::Session::connect(right.uri()));
  EXPECT_TRUE(torch::equal(call("scale", {here({2, 2}).to(device()), 2.0}).cpu(), here({2, 2}) * 2));
  session.reset();
}

TEST_F(CustomOpsTest, AWrongShapeFunctionIsFound) {
  const auto x = here({3, 4});
  const auto there = x.to(device());
  genie::register_shape_function("genie_test::repeat_rows", [](genie::ShapeCall& shapes) {
    shapes.add({5, 4}, at::kFloat);
    return true;
  });
  const std::string sizes = text_of([&] { (void)call("repeat_rows", {there, 2}).cpu(); });
  EXPECT_THAT(sizes,
              AllOf(HasSubstr("genie_test::repeat_rows"), HasSubstr("gives Float[6, 4]"), HasSubstr("Float[5, 4]")));
  genie::register_shape_function("genie_test::repeat_rows", [](genie::ShapeCall& shapes) {
    shapes.add({6, 4}, at::kLong);
    return true;
  });
  EXPECT_THAT(text_of([&] { (void)call("repeat_rows", {there, 2}).cpu(); }), HasSubstr("Long[6, 4]"));
  // Wrong strides give right numbers: only the check finds them, here and in a Meta kernel.
  genie::register_shape_function("genie_test::repeat_rows", [](genie::ShapeCall& shapes) {
    shapes.add({6, 4}, at::kFloat, {1, 6});
    return true;
  });
  for (const bool check : {false, true, false}) {
    genie::set_check_shapes(check);
    EXPECT_EQ(genie::is_checking_shapes(), check);
    at::Tensor y;
    const std::string strides = text_of([&] { y = call("repeat_rows", {there, 2}).cpu(); });
    const std::string columns = text_of([&] { (void)call("by_columns", {there}).cpu(); });
    if (check) {
      EXPECT_THAT(strides,
                  AllOf(HasSubstr("genie_test::repeat_rows"), HasSubstr("gives Float[6, 4] with strides [4, 1]"),
                        HasSubstr("Float[6, 4] with strides [1, 6] was promised")));
      EXPECT_THAT(columns, HasSubstr("genie_test::by_columns gives Float[3, 4] with strides [1, 3]"));
    } else {
      EXPECT_EQ(strides, "");
      EXPECT_EQ(columns, "");
      EXPECT_TRUE(torch::equal(y, x.repeat({2, 1})));
    }
  }
  genie::register_shape_function("genie_test::repeat_rows", {});
}

// Everything that models use must keep its promises.
TEST_F(CustomOpsTest, TheCheckPassesWhatIsRight) {
  genie::set_check_shapes(true);
  torch::manual_seed(1);
  torch::nn::Sequential net(torch::nn::Conv2d(torch::nn::Conv2dOptions(3, 8, 3).stride(2)), torch::nn::BatchNorm2d(8),
                            torch::nn::ReLU(), torch::nn::MaxPool2d(2), torch::nn::Flatten(), torch::nn::Linear(72, 6),
                            torch::nn::LayerNorm(torch::nn::LayerNormOptions({6})), torch::nn::GELU());
  net->to(device());
  torch::optim::AdamW optimizer(net->parameters());
  for (int step = 0; step < 2; ++step) {
    optimizer.zero_grad();
    torch::log_softmax(net->forward(torch::randn({4, 3, 15, 15}, device())), 1).square().mean().backward();
    optimizer.step();
  }
  auto heads = torch::randn({2, 4, 5, 8}, device()).requires_grad_();
  at::scaled_dot_product_attention(heads, heads, heads).sum().backward();
  EXPECT_TRUE(heads.grad().cpu().defined());
  // Results that are arguments, resized or not.
  const auto x = here({3, 4});
  auto out = torch::empty({0}, device());
  torch::add_out(out, x.to(device()), x.to(device()));
  EXPECT_TRUE(torch::equal(out.cpu(), x + x));
  torch::add_out(out, out, x.to(device()));
  EXPECT_TRUE(torch::equal(out.t().mul_(2).cpu(), (x * 6).t()));
  // Where libtorch's own meta kernels promise other strides than its CPU kernels give.
  const auto columns = x.t().to(device());
  EXPECT_EQ(torch::fft_rfft2(columns).strides(), torch::fft_rfft2(x.t()).strides());
  EXPECT_EQ(torch::nonzero_static(columns, 5).strides(), at::IntArrayRef({2, 1}));
  const auto image = torch::randn({1, 2, 2, 3}).to(torch::kFloat, false, false, at::MemoryFormat::ChannelsLast);
  const auto where =
      torch::arange(6).view({1, 1, 2, 3}).expand({1, 2, 2, 3}).contiguous(at::MemoryFormat::ChannelsLast);
  const auto spread = at::max_unpool2d(image.to(device()), where.to(device()), {4, 6});
  const auto expected = at::max_unpool2d(image, where, {4, 6});
  EXPECT_EQ(spread.strides(), expected.strides());
  EXPECT_TRUE(torch::equal(spread.cpu(), expected));
  call("add_one_", {out});
  EXPECT_TRUE(torch::equal(torch::einsum("ij,kj->ik", {out, out}).cpu(), (x * 6 + 1).mm((x * 6 + 1).t())));
  session->synchronize();
}

TEST_F(CustomOpsTest, AnErrorNamesOperatorAndOperands) {
  const auto there = here({2, 3}).to(device());
  const auto others = std::vector<at::Tensor>{there[0].clone(), there.sum().to(torch::kLong)};
  const std::string text = text_of([&] { (void)call("fails", {there, others}).cpu(); });
  EXPECT_THAT(text,
              AllOf(HasSubstr("node '"), HasSubstr("genie_test::fails (x=Float[2, 3], others=[Float[3], Long[]]): "),
                    HasSubstr("no luck with 2 others")));
  EXPECT_THAT(text, Not(HasSubstr("captured"))) << "without tracing no line is known";
  // Of PyTorch's own, and at the calling line in eager mode.
  const auto index = torch::tensor({99}).to(device());
  genie::set_lazy(false);
  const std::string eager = text_of([&] { (void)there.index_select(1, index); });
  genie::set_lazy(true);
  EXPECT_THAT(eager, AllOf(HasSubstr("aten::index_select (self=Float[2, 3], index=Long[1]): "), HasSubstr("id=99")));
}

TEST_F(CustomOpsTest, TracedErrorsSayWhereTheyWereCaptured) {
  const auto there = here({2, 3}).to(device());
  const auto index = torch::tensor({99}).to(device());
  genie::set_trace_lines(true);
  genie::set_source_finder([] { return genie::SourceLine{"train.cc:7", "net.head"}; });
  const auto bad = there.index_select(1, index);
  genie::set_source_finder([] { return genie::SourceLine{"train.cc:8", ""}; });
  const auto good = there + 1;
  const auto lost = bad + good;
  const std::string text = text_of([&] { (void)lost.cpu(); });
  EXPECT_THAT(text, AllOf(HasSubstr("aten::index_select"), HasSubstr("(captured at train.cc:7 in net.head)")));
  EXPECT_EQ(text_of([&] { (void)bad.cpu(); }), text) << "at each use";
  EXPECT_THAT(session->stats().last_failures, ::testing::Contains(HasSubstr("train.cc:7")));
  EXPECT_EQ(genie::describe(bad).module, "net.head");

  // Where the call itself has to wait for the node.
  EXPECT_THAT(text_of([&] { (void)call("keep_rows", {there, index}); }), HasSubstr("(captured at train.cc:8)"));
  genie::set_lazy(false);
  EXPECT_THAT(text_of([&] { (void)there.index_select(1, index); }), HasSubstr("(captured at train.cc:8)"));
  genie::set_lazy(true);

  // TorchScript knows its own lines.
  torch::jit::Module inner("Head");
  inner.define("def forward(self, x, i):\n  y = x + 1\n  return torch.index_select(y, 1, i)\n");
  torch::jit::Module outer("Net");
  outer.register_module("head", inner);
  outer.define("def forward(self, x, i):\n  return self.head.forward(x, i) * 2\n");
  const auto scripted = outer.forward({there, index}).toTensor();
  EXPECT_THAT(genie::describe(scripted).module, HasSubstr("Net"));
  const std::string script = text_of([&] { (void)scripted.cpu(); });
  EXPECT_THAT(script, AllOf(HasSubstr("captured at "), HasSubstr(":3"), HasSubstr("head")));
}

}  // namespace
