// Which transport a client takes of those that a node offers, and what it says about it.
#include "src/session/data_connection.h"

#include <gtest/gtest.h>

namespace genie::session {
namespace {

const std::vector<std::string> kAll = {"shm", "verbs", "ucx"};

control::OpenAnswer offers(const std::vector<std::string>& names) {
  control::OpenAnswer answer;
  for (const std::string& name : names) answer.data.push_back({name, "address of " + name});
  return answer;
}

std::string tries(const TransportPlan& plan) {
  std::string names;
  for (const control::DataOffer& offer : plan.tries) names += offer.transport + " ";
  return names;
}

TEST(DataConnection, RanksWhatBothEndsHave) {
  EXPECT_EQ(tries(plan_transports("auto", offers({"ucx", "verbs", "shm"}), kAll, true)), "shm verbs ucx ");
  EXPECT_EQ(tries(plan_transports("auto", offers({"ucx", "shm"}), {"shm", "ucx"}, true)), "shm ucx ");
  EXPECT_EQ(tries(plan_transports("ucx", offers({"ucx", "shm"}), kAll, true)), "ucx ");
  EXPECT_EQ(tries(plan_transports("auto", offers({"another"}), kAll, true)), "");
}

TEST(DataConnection, SharesMemoryWithinOneMachineOnly) {
  const TransportPlan plan = plan_transports("auto", offers({"shm", "ucx"}), kAll, false);
  EXPECT_EQ(tries(plan), "ucx ");
  ASSERT_EQ(plan.passed_over.size(), 1U);
  EXPECT_EQ(plan.passed_over[0].transport, "shm");
  EXPECT_FALSE(plan.passed_over[0].loud);
  // Whoever asks for it by name is told what the system says.
  EXPECT_EQ(tries(plan_transports("shm", offers({"shm", "ucx"}), kAll, false)), "shm ");
}

TEST(DataConnection, IsLoudWhereThisProgramLacksWhatTheNodeHas) {
  const TransportPlan plan = plan_transports("auto", offers({"verbs", "ucx"}), {"shm", "ucx"}, false);
  EXPECT_EQ(tries(plan), "ucx ");
  ASSERT_EQ(plan.passed_over.size(), 1U);
  EXPECT_EQ(plan.passed_over[0].transport, "verbs");
  EXPECT_TRUE(plan.passed_over[0].loud);
}

TEST(DataConnection, WhatIsNoBetterIsNoReason) {
  TransportPlan plan = plan_transports("auto", offers({"shm", "verbs"}), {"shm", "ucx"}, true);
  EXPECT_EQ(tries(plan), "shm ");
  ASSERT_EQ(plan.passed_over.size(), 1U);
  std::vector<PassedOver> passed_over = plan.passed_over;
  keep_better("shm", passed_over);
  EXPECT_TRUE(passed_over.empty());
  keep_better("ucx", plan.passed_over);
  EXPECT_EQ(plan.passed_over.size(), 1U);
}

TEST(DataConnection, SaysWhichAndWhy) {
  EXPECT_EQ(explain("ucx", "ucx", offers({"shm", "ucx"}), {}), "ucx: asked for");
  EXPECT_EQ(explain("shm", "auto", offers({"shm"}), {}), "shm: all that the node offers");
  EXPECT_EQ(
      explain("ucx", "auto", offers({"shm", "verbs", "ucx"}),
              {{"shm", "the node runs on another machine"}, {"verbs", "this machine has no RDMA device"}}),
      "ucx: the best that both ends have (not shm: the node runs on another machine; not verbs: this machine has no "
      "RDMA device)");
}

TEST(Backends, AreNamedInListsBestFirst) {
  const auto all = datapath::parse_backends("auto");
  ASSERT_TRUE(all.ok());
  EXPECT_EQ(*all, datapath::compiled_backends());
  EXPECT_EQ(all->front(), "shm");
  EXPECT_EQ(datapath::parse_backends("shm").value(), std::vector<std::string>{"shm"});
  EXPECT_EQ(datapath::parse_backends("shm,shm").value(), std::vector<std::string>{"shm"});
  EXPECT_EQ(datapath::parse_backends("shm,auto").code(), Errc::kConfig);
  for (const char* wrong : {"", "shm,", "tcp", "dpdk"}) {
    const auto refused = datapath::parse_backends(wrong);
    ASSERT_EQ(refused.code(), Errc::kConfig) << wrong;
    EXPECT_NE(refused.status().text().find("shm, "), std::string::npos) << refused.status().to_string();
  }
  if (all->back() == "ucx") {
    EXPECT_EQ(datapath::parse_backends("ucx,shm").value().front(), "shm");
  }
}

}  // namespace
}  // namespace genie::session
