// The log's level, as the environment gives it. One process, one level: each case runs in a child.
#include "datapath/base/log.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

namespace {

// Sets GENIE_LOG and writes a line of each level, then ends.
[[noreturn]] void write_all(const char* level) {
  ::setenv("GENIE_LOG", level, 1);
  GENIE_LOG_DEBUG("a debug line");
  GENIE_LOG_INFO("an info line");
  GENIE_LOG_WARN("a warn line");
  GENIE_LOG_WARN("another warn line");
  std::_Exit(0);
}

const auto kEnds = testing::ExitedWithCode(0);

class Log : public testing::Test {
 protected:
  void SetUp() override { GTEST_FLAG_SET(death_test_style, "threadsafe"); }
};

TEST_F(Log, WritesFromItsLevelOn) {
  EXPECT_EXIT(write_all("info"), kEnds, "^[^\n]* an info line\n[^\n]* a warn line\n[^\n]* another warn line\n$");
  EXPECT_EXIT(write_all("warn"), kEnds, "^[^\n]* a warn line\n[^\n]* another warn line\n$");
  EXPECT_EXIT(write_all(""), kEnds, "^[^\n]* a warn line\n[^\n]* another warn line\n$");
  EXPECT_EXIT(write_all("off"), kEnds, "^$");
}

TEST_F(Log, SaysOnceThatALevelIsNone) {
  EXPECT_EXIT(write_all("bogus"), kEnds,
              "^[^\n]*GENIE_LOG=bogus is no level[^\n]*trace, debug, info, warn, error or off\n"
              "[^\n]* a warn line\n[^\n]* another warn line\n$");
}

}  // namespace
