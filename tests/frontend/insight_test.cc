// What a program can find out about its tensors, its graph and its time, without changing what runs.
#include "tests/frontend/session_fixture.h"

namespace genie::test {
namespace {

const torch::Device kRemote("remote_accelerator:0");

class Insight : public SessionTest {};

TEST_F(Insight, DescribeNeverFlushes) {
  const auto t = torch::ones({2, 3}, kRemote).exp();
  const auto before = session->stats().flushes;
  const auto told = genie::describe(t);
  EXPECT_EQ(told.op, "aten::exp");
  EXPECT_EQ(told.shape, "[2, 3]");
  EXPECT_EQ(told.dtype, "Float");
  EXPECT_EQ(told.device, "remote_accelerator:0");
  EXPECT_FALSE(genie::is_materialized(t));
  EXPECT_EQ(session->stats().flushes, before);
  genie::materialize(t);
  EXPECT_TRUE(genie::is_materialized(t));
}

TEST_F(Insight, GraphShowsMutationsAsEdges) {
  session->synchronize();
  auto t = torch::ones({2}, kRemote);
  const auto read = t * 2;
  t.add_(1);
  const auto again = t * 3;
  const auto graph = genie::graph();
  ASSERT_GE(graph.nodes.size(), 4U);
  const auto& add = graph.nodes[graph.nodes.size() - 2];
  EXPECT_EQ(add.op, "aten::add_.Scalar");
  EXPECT_EQ(add.depends_on.size(), 2U) << graph.to_string();  // after the write by ones() and after the read by mul
}

TEST_F(Insight, LookingNeverFlushes) {
  const auto made = torch::randn({3, 4}, kRemote).t().mm(torch::randn({3, 5}, kRemote));
  const auto before = session->stats();
  EXPECT_EQ(made.sizes(), (std::vector<int64_t>{4, 5}));
  EXPECT_EQ(made.stride(0), 5);
  EXPECT_EQ(made.numel(), 20);
  EXPECT_EQ(made.scalar_type(), torch::kFloat);
  EXPECT_TRUE(made.is_contiguous());
  EXPECT_TRUE(genie::is_remote(made));
  EXPECT_FALSE(genie::is_materialized(made));
  EXPECT_EQ(genie::describe(made).state, "captured");
  EXPECT_FALSE(genie::graph().to_dot().empty());
  EXPECT_FALSE(session->stats().to_string().empty());
  EXPECT_EQ(session->stats().flushes, before.flushes);
  EXPECT_EQ(session->stats().submissions, before.submissions);
}

TEST_F(Insight, TimeIsSplitByOperatorAndPhase) {
  const auto a = torch::ones({3, 3}, kRemote);
  const auto calls = [&](const char* op) {
    const auto times = session->stats().time_by_op;
    return times.contains(op) ? times.at(op).calls : 0;
  };
  genie::set_timing(false);
  (void)a.mm(a).sum().item<float>();
  const uint64_t mm_before = calls("aten::mm");
  const uint64_t nonzero_before = calls("aten::nonzero");

  genie::set_timing(true);
  EXPECT_TRUE(genie::is_timing());
  auto x = a;
  for (int i = 0; i < 5; ++i) x = x.mm(a);
  (void)x.sum().item<float>();
  (void)a.nonzero();
  genie::set_timing(false);
  (void)a.mm(a).sum().item<float>();

  EXPECT_EQ(calls("aten::mm"), mm_before + 5);
  EXPECT_EQ(calls("aten::nonzero"), nonzero_before + 1);
  const auto stats = session->stats();
  const OpTime& mm = stats.time_by_op.at("aten::mm");
  EXPECT_GT(mm.dispatch_ns, 0U);
  EXPECT_GT(mm.shape_ns, 0U);
  EXPECT_GT(mm.record_ns, 0U);
  EXPECT_GT(mm.plan_ns, 0U);
  EXPECT_EQ(mm.total_ns(), mm.dispatch_ns + mm.shape_ns + mm.record_ns + mm.plan_ns);
  // Its wait for the node is asking for a shape; so it holds at least what the flush took of it.
  const OpTime& nonzero = stats.time_by_op.at("aten::nonzero");
  EXPECT_GT(nonzero.shape_ns, nonzero.plan_ns);
  EXPECT_NE(stats.to_string().find("aten::mm"), std::string::npos);
}

TEST_F(Insight, FailuresAreKept) {
  const auto bad = torch::embedding(torch::ones({4, 2}, kRemote), torch::tensor({9}).to(kRemote));
  EXPECT_THROW((void)bad.cpu(), genie::Error);
  const auto failures = session->stats().last_failures;
  ASSERT_FALSE(failures.empty());
  EXPECT_NE(failures.back().find("aten::embedding"), std::string::npos) << failures.back();
  EXPECT_NE(failures.back().find("[4, 2]"), std::string::npos) << failures.back();  // its operands' shapes
}

}  // namespace
}  // namespace genie::test
