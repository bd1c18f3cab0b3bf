#include "datapath/base/spin_budget.h"

#include <gtest/gtest.h>

namespace genie {
namespace {

TEST(SpinBudget, BeginsWithTheLeast) {
  EXPECT_EQ(SpinBudget(50, 1000).ns(), 50U);
  EXPECT_EQ(SpinBudget(50, 20).ns(), 50U);
}

TEST(SpinBudget, OneShortWaitIsEnoughToOutlastTheNext) {
  SpinBudget budget(50, 1000);
  budget.learn(300);
  EXPECT_EQ(budget.ns(), 600U);
}

TEST(SpinBudget, NeverSpinsForLongerThanTheMost) {
  SpinBudget budget(50, 1000);
  budget.learn(1000);
  EXPECT_EQ(budget.ns(), 1000U);
}

TEST(SpinBudget, WaitsThatNoSpinOutlastsEndTheSpinning) {
  SpinBudget budget(50, 1000);
  budget.learn(900);
  for (int i = 0; i < 5; ++i) budget.learn(1'000'000);
  EXPECT_EQ(budget.ns(), 50U);
}

TEST(SpinBudget, AFewShorterWaitsDoNotUndoWhatALongerOneTaught) {
  SpinBudget budget(50, 1000);
  budget.learn(400);
  for (int i = 0; i < 3; ++i) budget.learn(10);
  EXPECT_GT(budget.ns(), 400U);
  for (int i = 0; i < 100; ++i) budget.learn(10);
  EXPECT_EQ(budget.ns(), 50U);
}

}  // namespace
}  // namespace genie
