// The example as the quickstart runs it: one process writes text on a genie-node of its own.
#include <gtest/gtest.h>

#include <string>

#include "datapath/ucx/ucx_fabric.h"
#include "tests/e2e/node_process.h"
#include "tests/e2e/run_command.h"

namespace {

using genie::test::NodeProcess;
using genie::test::Ran;

Ran write_text(const std::string& arguments) {
  return genie::test::run_command(CHAR_GPT_PROGRAM " " CHAR_GPT_MODEL " " + arguments);
}

// "  flushes    200 in all,   1.0 per later token": the last number of the row; -1 where there is none.
double per_later_token(const std::string& out, const std::string& row) {
  const size_t at = out.find("  " + row + " ");
  const size_t comma = out.find(',', at);
  if (at == std::string::npos || comma == std::string::npos) return -1;
  return std::stod(out.substr(comma + 1));
}

void expect_steady_steps(const Ran& ran) {
  ASSERT_EQ(ran.status, 0) << ran.out << ran.err;
  EXPECT_NE(ran.out.find("200 tokens, same as local eager: yes"), std::string::npos) << ran.out;
  EXPECT_EQ(per_later_token(ran.out, "flushes"), 1.0) << ran.out;
  EXPECT_EQ(per_later_token(ran.out, "templates registered"), 0.0) << ran.out;
  EXPECT_EQ(per_later_token(ran.out, "bytes uploaded"), 0.0) << ran.out;
  EXPECT_GT(per_later_token(ran.out, "operations captured"), 0.0) << ran.out;
}

TEST(CharGpt, WritesOnANodeWhatItWritesHere) {
  NodeProcess node({"--threads", "1"});  // as many as the program: the same arithmetic in the same order
  ASSERT_TRUE(node.wait_ready()) << node.errors();
  expect_steady_steps(write_text("--cluster " + node.uri()));
}

TEST(CharGpt, WritesAcrossANetworkWhatItWritesHere) {
  if (!genie::datapath::ucx_compiled_in()) GTEST_SKIP() << "this build has no UCX";
  NodeProcess node({"--threads", "1", "--transport", "ucx"});
  ASSERT_TRUE(node.wait_ready()) << node.errors();
  EXPECT_NE(node.errors().find("transport=ucx"), std::string::npos) << node.errors();
  expect_steady_steps(write_text("--cluster " + node.uri()));
}

TEST(CharGpt, WritesInThisProcessWhatItWritesHere) { expect_steady_steps(write_text("--cluster embedded:")); }

TEST(CharGpt, TakesTheLikeliestAtTemperatureZero) {
  const Ran ran = write_text("--cluster embedded: --temperature 0 --tokens 20 --prompt 'You may'");
  EXPECT_EQ(ran.status, 0) << ran.out << ran.err;
}

TEST(CharGpt, RefusesMoreTokensThanItsContext) {
  const Ran ran = write_text("--cluster embedded: --tokens 1000");
  EXPECT_EQ(ran.status, 2);
  EXPECT_NE(ran.err.find("must fit into 256"), std::string::npos) << ran.err;
}

}  // namespace
