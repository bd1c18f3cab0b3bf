// The device as libtorch's own device machinery sees it: guards, streams, events, generators, pinned memory; and the captured
// graph as a program sees it.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/DeviceAccelerator.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>
#include <genie/genie.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <algorithm>
#include <thread>

namespace {

class DeviceTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { session_ = new genie::Session(genie::Session::connect("embedded:")); }
  static void TearDownTestSuite() {
    delete session_;
    session_ = nullptr;
  }
  static torch::Device device(int index = 0) { return session_->device(index); }
  static const at::AcceleratorHooksInterface& hooks() {
    return at::globalContext().getAcceleratorHooksInterface(device().type());
  }

  static genie::Session* session_;
};
genie::Session* DeviceTest::session_ = nullptr;

std::string edge(uint32_t from, uint32_t to) { return "n" + std::to_string(from) + " -> n" + std::to_string(to); }

TEST_F(DeviceTest, AGuardChoosesTheIndex) {
  const torch::Device plain("remote_accelerator");
  EXPECT_EQ(torch::ones({1}, plain).device(), device(0));
  {
    const c10::DeviceGuard guard(device(1));
    EXPECT_EQ(torch::ones({1}, plain).device(), device(1));
    {
      const c10::OptionalDeviceGuard inner(device(0));
      EXPECT_EQ(torch::ones({1}, plain).device(), device(0));
    }
    EXPECT_EQ(torch::ones({1}, plain).device(), device(1));
    // An index belongs to its thread.
    std::thread([&] { EXPECT_EQ(torch::ones({1}, plain).device(), device(0)); }).join();
  }
  EXPECT_EQ(torch::ones({1}, plain).device(), device(0));
}

TEST_F(DeviceTest, TheAcceleratorsOwnFunctions) {
  EXPECT_EQ(at::getAccelerator(), device().type());
  EXPECT_TRUE(hooks().isBuilt());
  EXPECT_TRUE(hooks().isAvailable());
  EXPECT_EQ(hooks().deviceCount(), at::accelerator::deviceCount());
  EXPECT_TRUE(hooks().hasPrimaryContext(device().index()));
  EXPECT_FALSE(hooks().hasPrimaryContext(static_cast<c10::DeviceIndex>(at::accelerator::deviceCount() - 1)));

  const c10::DeviceIndex before = at::accelerator::getDeviceIndex();
  at::accelerator::setDeviceIndex(device(1).index());
  EXPECT_EQ(at::accelerator::getDeviceIndex(), device(1).index());
  EXPECT_EQ(at::accelerator::exchangeDevice(before), device(1).index());
  EXPECT_EQ(hooks().exchangeDevice(device(1).index()), before);
  EXPECT_EQ(hooks().exchangeDevice(before), device(1).index());
  EXPECT_EQ(hooks().maybeExchangeDevice(before), before);
  hooks().setCurrentDevice(device(1).index());
  EXPECT_EQ(hooks().getCurrentDevice(), device(1).index());
  hooks().setCurrentDevice(before);
}

// There is one stream per device: events and streams have nothing to wait for but the node.
TEST_F(DeviceTest, StreamsAndEventsAreThereForThoseWhoUseThem) {
  const c10::Stream stream = at::accelerator::getCurrentStream(device().index());
  EXPECT_EQ(stream.device(), device());
  at::accelerator::setCurrentStream(stream);
  const c10::impl::VirtualGuardImpl guard(device().type());
  for (const c10::Stream& other : {guard.getDefaultStream(device()), guard.getNewStream(device()),
                                   guard.getStreamFromGlobalPool(device(), true)}) {
    EXPECT_EQ(other, stream);
  }
  {
    const c10::StreamGuard on(stream);
    const auto x = torch::ones({4}, device()) * 2;
    c10::Event event(device().type());
    EXPECT_TRUE(event.query()) << "what was never recorded has happened";
    event.record(stream);
    event.block(stream);
    EXPECT_TRUE(event.query());
    event.synchronize();
    EXPECT_TRUE(stream.query());
    const auto before = session_->stats();
    stream.synchronize();
    EXPECT_GT(session_->stats().executed_ops, before.executed_ops) << "the stream's work ran on the node";
    EXPECT_EQ(x.cpu().sum().item<float>(), 8.0F);
  }
  const auto y = torch::ones({4}, device()) + 1;
  const auto before = session_->stats();
  at::accelerator::synchronizeDevice(device().index());
  EXPECT_GT(session_->stats().executed_ops, before.executed_ops);
  // An index without a session has nothing to wait for.
  at::accelerator::synchronizeDevice(static_cast<c10::DeviceIndex>(at::accelerator::deviceCount() - 1));
}

TEST_F(DeviceTest, GeneratorsSeedSaveAndClone) {
  auto generator = hooks().getNewGenerator(device().index());
  const auto options = torch::TensorOptions(device());
  generator.set_current_seed(7);
  EXPECT_EQ(generator.current_seed(), 7U);
  auto here = at::detail::createCPUGenerator(7);
  EXPECT_TRUE(torch::equal(torch::rand({5}, generator, options).cpu(), torch::rand({5}, here, torch::kFloat)));

  const at::Tensor state = generator.get_state();
  EXPECT_TRUE(state.is_cpu());
  auto copy = generator.clone();
  auto copy_of_copy = copy.clone();  // whose state nobody has used yet
  EXPECT_EQ(copy.current_seed(), generator.current_seed());
  const auto expected = torch::rand({5}, generator, options).cpu();
  EXPECT_TRUE(torch::equal(torch::rand({5}, copy, options).cpu(), expected)) << "a clone goes on from here";
  EXPECT_TRUE(torch::equal(torch::rand({5}, copy_of_copy, options).cpu(), expected));
  auto seeded = generator.clone();
  seeded.set_current_seed(5);
  auto other = generator.clone();
  other.set_current_seed(5);
  EXPECT_TRUE(torch::equal(torch::rand({5}, seeded, options).cpu(), torch::rand({5}, other, options).cpu()));
  generator.set_state(state);
  EXPECT_TRUE(torch::equal(torch::rand({5}, generator, options).cpu(), expected));
  // The state is the CPU generator's: it may go there.
  here.set_state(state);
  EXPECT_TRUE(torch::equal(torch::rand({5}, here, torch::kFloat), expected));

  const uint64_t seed = generator.seed();
  EXPECT_EQ(generator.current_seed(), seed);
  here.set_current_seed(seed);
  EXPECT_TRUE(torch::equal(torch::randn({5}, generator, options).cpu(), torch::randn({5}, here, torch::kFloat)));
  EXPECT_THROW(generator.set_offset(1), c10::Error);
  EXPECT_THROW((void)generator.get_offset(), c10::Error);

  const auto cpu = at::detail::createCPUGenerator(1);
  EXPECT_THROW((void)torch::rand({2}, cpu, options), c10::Error);
  EXPECT_THROW((void)hooks().getDefaultGenerator(static_cast<c10::DeviceIndex>(at::accelerator::deviceCount())),
               c10::Error);
  EXPECT_EQ(hooks().getDefaultGenerator(-1).device(), device());
}

TEST_F(DeviceTest, PinnedMemoryIsKnownByItsAddress) {
  c10::Allocator* const pinned = hooks().getPinnedMemoryAllocator();
  const auto source = torch::arange(100).pin_memory();
  EXPECT_TRUE(source.is_pinned());
  EXPECT_TRUE(source.slice(0, 50).is_pinned()) << "an address within counts";
  EXPECT_FALSE(torch::arange(100).is_pinned());
  EXPECT_TRUE(torch::equal(source.to(device()).cpu(), torch::arange(100)));
  EXPECT_TRUE(torch::empty({0}).pin_memory().numel() == 0);

  void* const raw = pinned->raw_allocate(256);
  EXPECT_TRUE(hooks().isPinnedPtr(raw));
  EXPECT_TRUE(hooks().isPinnedPtr(static_cast<char*>(raw) + 255));
  EXPECT_FALSE(hooks().isPinnedPtr(static_cast<char*>(raw) + 256));
  std::memset(raw, 5, 256);
  const at::DataPtr copy = pinned->clone(raw, 256);
  EXPECT_EQ(std::memcmp(copy.get(), raw, 256), 0);
  pinned->raw_deallocate(raw);
  EXPECT_FALSE(hooks().isPinnedPtr(raw));
}

TEST_F(DeviceTest, BytesOfTheDeviceHaveNoAddress) {
  const auto x = torch::ones({4}, device());
  const auto refused = [](const auto& touch) {
    try {
      touch();
    } catch (const c10::Error& error) {
      return std::string(error.what());
    }
    return std::string("nothing was thrown");
  };
  EXPECT_THAT(refused([&] { (void)x.data_ptr(); }), ::testing::HasSubstr(".cpu()"));
  EXPECT_THROW((void)x.mutable_data_ptr<float>(), c10::Error);  // with libtorch's own words
  int somewhere = 0;
  EXPECT_THAT(refused([&] { (void)hooks().getDeviceFromPtr(&somewhere); }), ::testing::HasSubstr(".cpu()"));
  EXPECT_THAT(refused([&] { (void)x.storage().allocator()->clone(nullptr, 16); }), ::testing::HasSubstr(".cpu()"));
}

TEST_F(DeviceTest, ARefusedOperatorSaysSoWhereItIsCalled) {
  try {
    (void)torch::ones({3}, device()).to_sparse();
    FAIL() << "a sparse tensor on the device";
  } catch (const c10::Error& error) {
    EXPECT_NE(std::string(error.what()).find("does not run on remote_accelerator"), std::string::npos) << error.what();
  }
}

// What is captured can be looked at before anything runs.
TEST_F(DeviceTest, TheGraphShowsOperatorsValuesAndOrder) {
  const torch::InferenceMode inference;
  session_->synchronize();
  const auto x = torch::ones({2, 3}, device());
  const auto weight = torch::ones({3, 4}, device());
  auto y = x.mm(weight);
  const auto z = y.sum(std::vector<int64_t>{0}, false);
  y.mul_(torch::tensor(2.0));
  y.add_(1);
  const auto c = torch::view_as_complex(torch::ones({2, 2}, device())) * c10::complex<double>(0, 1);
  const auto n = torch::native_layer_norm(y, std::vector<int64_t>{4}, {}, {}, 1e-5);

  const genie::Graph graph = genie::graph();
  const auto find = [&](const std::string& op) {
    return std::ranges::find_if(graph.nodes, [&](const genie::GraphNode& node) { return node.op.starts_with(op); });
  };
  const auto mm = find("aten::mm");
  const auto sum = find("aten::sum");
  const auto mul = find("aten::mul_");
  const auto add = find("aten::add_");
  ASSERT_NE(mm, graph.nodes.end()) << graph.to_string();
  ASSERT_NE(sum, graph.nodes.end()) << graph.to_string();
  ASSERT_NE(mul, graph.nodes.end()) << graph.to_string();
  ASSERT_NE(add, graph.nodes.end()) << graph.to_string();
  ASSERT_EQ(mm->inputs.size(), 2U);
  EXPECT_EQ(mm->inputs[0].sizes, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(mm->inputs[1].dtype, "Float");
  ASSERT_EQ(mm->outputs.size(), 1U);
  EXPECT_EQ(mm->outputs[0].sizes, (std::vector<int64_t>{2, 4}));
  EXPECT_EQ(sum->inputs[0].storage, mm->outputs[0].storage);
  // Read after write, write after read, write after write.
  EXPECT_TRUE(std::ranges::count(sum->depends_on, mm->id) == 1) << graph.to_string();
  EXPECT_TRUE(std::ranges::count(mul->depends_on, sum->id) == 1) << graph.to_string();
  EXPECT_TRUE(std::ranges::count(add->depends_on, mul->id) == 1) << graph.to_string();
  EXPECT_TRUE(mul->outputs.empty()) << "in place";

  const std::string text = graph.to_string();
  EXPECT_NE(text.find("aten::mm(%"), std::string::npos) << text;
  EXPECT_NE(text.find("Float[2, 4]"), std::string::npos) << text;
  EXPECT_EQ(static_cast<size_t>(std::ranges::count(text, '\n')), graph.nodes.size());
  const std::string dot = graph.to_dot();
  EXPECT_TRUE(dot.starts_with("digraph genie {")) << dot;
  EXPECT_NE(dot.find(edge(mm->id, sum->id)), std::string::npos) << dot;
  EXPECT_EQ(dot.substr(dot.size() - 2), "}\n");

  // After a flush the same is there to look at, and the numbers are what eager computes.
  EXPECT_EQ(y.cpu().sum().item<float>(), 8 * 7.0F);
  EXPECT_EQ(genie::graph().nodes.size(), graph.nodes.size());
  EXPECT_EQ(z.cpu()[0].item<float>(), 6.0F);
  EXPECT_EQ(torch::imag(c.cpu())[0].item<float>(), 1.0F);
  EXPECT_EQ(std::get<0>(n).sizes(), y.sizes());
}

TEST_F(DeviceTest, DescribeSaysWhatATensorIs) {
  const auto x = torch::ones({2, 3}, device());
  const auto y = x.mm(torch::ones({3, 2}, device()));
  const auto captured = genie::describe(y);
  EXPECT_EQ(captured.op, "aten::mm");
  EXPECT_EQ(captured.state, "captured");
  EXPECT_NE(captured.to_string().find("[2, 2]"), std::string::npos) << captured.to_string();
  EXPECT_FALSE(genie::is_materialized(y));
  genie::materialize(y);
  EXPECT_TRUE(genie::is_materialized(y));
  EXPECT_EQ(genie::describe(y).state, "sent");
  EXPECT_EQ(genie::describe(torch::empty({2}, device())).state, "undefined");
  EXPECT_EQ(genie::describe(torch::ones({2}).to(device())).op, "upload");
  EXPECT_TRUE(genie::is_remote(y));
  EXPECT_FALSE(genie::is_remote(torch::ones({2})));
  EXPECT_FALSE(genie::is_remote(at::Tensor()));
  EXPECT_THROW((void)genie::describe(torch::ones({2})), genie::Error);
  EXPECT_THROW((void)session_->device(99), genie::Error);
}

}  // namespace
