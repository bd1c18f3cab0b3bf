// Programs that end while tensors, sessions, captures and threads of theirs are still there, in every order.
#include <gtest/gtest.h>

#include <string>
#include <tuple>

#include "tests/e2e/node_process.h"
#include "tests/e2e/run_command.h"

namespace genie::test {
namespace {

// An end that hangs is a failure, too.
constexpr char kPatience[] = "timeout -s ABRT 120 ";

class Exit : public ::testing::TestWithParam<const char*> {};

TEST_P(Exit, InThisProcess) {
  const Ran ran = run_command(std::string(kPatience) + GENIE_EXIT_PROGRAM + " " + GetParam() + " embedded:");
  EXPECT_EQ(ran.status, 0) << ran.err;
}

TEST_P(Exit, OfAClientOfANode) {
  NodeProcess node({"--threads", "1"});
  ASSERT_TRUE(node.wait_ready()) << node.errors();
  const Ran ran = run_command(std::string(kPatience) + GENIE_EXIT_PROGRAM + " " + GetParam() + " " + node.uri());
  EXPECT_EQ(ran.status, 0) << ran.err;
  EXPECT_TRUE(node.becomes_empty());
}

INSTANTIATE_TEST_SUITE_P(Ways, Exit,
                         ::testing::Values("tensor_outlives_session", "session_outlives_tensor", "work_pending",
                                           "work_running", "of_a_thread", "exit_from_a_thread", "quick", "open_capture",
                                           "after_backward", "two_sessions"),
                         [](const auto& info) { return std::string(info.param); });

TEST(Load, TheLibraryStaysWhenItIsClosed) {
  const Ran ran =
      run_command(std::string("GENIE_CLUSTER=embedded: ") + kPatience + GENIE_LOAD_PROGRAM + " " + GENIE_LIBRARY);
  EXPECT_EQ(ran.status, 0) << ran.err;
}

}  // namespace
}  // namespace genie::test
