#include "genie/status.h"

#include <gtest/gtest.h>

namespace genie {
namespace {

TEST(Status, OkIsZero) {
  Status status;
  EXPECT_TRUE(status.ok());
  EXPECT_EQ(status.code(), Errc::kOk);
  EXPECT_EQ(status.to_string(), "ok");
}

TEST(Status, BareCodeHasNoText) {
  const Status status = Errc::kAgain;
  EXPECT_FALSE(status.ok());
  EXPECT_EQ(status.code(), Errc::kAgain);
  EXPECT_TRUE(status.text().empty());
}

TEST(Status, TextSurvivesCopiesAndMoves) {
  Status first(Errc::kTimedOut, "no answer from node a");
  Status copy = first;
  Status moved = std::move(first);
  first = Status();
  moved = copy;
  EXPECT_EQ(copy.to_string(), "timed out: no answer from node a");
  EXPECT_EQ(moved.code(), Errc::kTimedOut);
}

TEST(Result, HoldsValueOrStatus) {
  Result<int> good(7);
  ASSERT_TRUE(good.ok());
  EXPECT_EQ(*good, 7);
  Result<int> bad{Status(Errc::kNotFound, "storage 9")};
  EXPECT_FALSE(bad.ok());
  EXPECT_EQ(bad.code(), Errc::kNotFound);
}

TEST(Error, CarriesTheStatus) {
  const Error error{Status(Errc::kConfig, "line 3: unknown key 'devcie'")};
  EXPECT_EQ(error.status().code(), Errc::kConfig);
  EXPECT_STREQ(error.what(), "genie: configuration error: line 3: unknown key 'devcie'");
}

}  // namespace
}  // namespace genie
