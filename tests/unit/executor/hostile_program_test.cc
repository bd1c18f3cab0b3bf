// Templates and invocations from a peer that means harm: an error, never a crash, never a byte outside the session's storages.
#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "src/executor/executor.h"
#include "tests/e2e/template_builder.h"
#include "tests/random_seed.h"

namespace genie::executor {
namespace {

constexpr int64_t kElements = 8;

class HostileProgram : public ::testing::Test {
 protected:
  void SetUp() override {
    store_ = Store::make({});
    for (uint64_t id : {1, 2}) {
      auto bytes = std::make_shared<std::vector<float>>(kElements, static_cast<float>(id));
      auto* data = reinterpret_cast<std::byte*>(bytes->data());
      ASSERT_TRUE(store_->adopt({id, 0}, HostMemory{data, bytes->size() * sizeof(float), true, bytes}).ok());
    }
  }

  // The storages are as they were, but for their version.
  void expect_alive(uint32_t version) {
    const auto bytes = store_->bytes({2, 0}, 0, sizeof(float) * kElements);
    ASSERT_TRUE(bytes.ok()) << bytes.status().to_string();
    EXPECT_EQ(*reinterpret_cast<const float*>(bytes->data()), 2.0F);
    EXPECT_TRUE(store_->bytes({1, version}, 0, sizeof(float) * kElements).ok());
  }

  std::vector<SlotBinding> bindings(uint32_t version) const { return {{1, version, version + 1, 0}, {2, 0, 0, 0}}; }

  std::unique_ptr<Store> store_;
};

TEST_F(HostileProgram, RunsWhenItIsNotHostile) {
  const auto program = compile(test::add_template(3, kElements));
  ASSERT_TRUE(program.ok()) << program.status().to_string();
  const auto outcome = store_->invoke(**program, bindings(0), default_params(**program));
  EXPECT_TRUE(outcome.status.ok()) << outcome.status.to_string();
  EXPECT_EQ(outcome.executed_records, 3U);
  const auto bytes = store_->bytes({1, 1}, 0, sizeof(float) * kElements);
  ASSERT_TRUE(bytes.ok());
  EXPECT_EQ(*reinterpret_cast<const float*>(bytes->data()), 7.0F);
}

TEST_F(HostileProgram, UnknownOperatorsAreNamed) {
  const auto program = compile(test::unknown_operator_template());
  ASSERT_FALSE(program.ok());
  EXPECT_EQ(program.code(), Errc::kNotFound);
  EXPECT_NE(program.status().to_string().find("nobody::does_this"), std::string::npos);
}

TEST_F(HostileProgram, EveryTruncationIsRefused) {
  const auto whole = test::add_template(2, kElements);
  for (size_t size = 0; size < whole.size(); ++size) {
    std::vector<std::byte> cut(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(size));
    // Trailing padding may be missing without harm; anything else is refused.
    if (compile(cut).ok()) {
      EXPECT_GE(size + 8, whole.size());
    }
  }
}

TEST_F(HostileProgram, GeometriesBeyondTheStorageAreRefused) {
  const auto program = compile(test::add_template(1, kElements));
  ASSERT_TRUE(program.ok());
  uint32_t version = 0;
  for (const int64_t elements : {kElements + 1, int64_t{1} << 40, INT64_MAX, int64_t{-1}, INT64_MIN}) {
    const std::vector<int64_t> params{elements, elements, 1};
    const auto outcome = store_->invoke(**program, bindings(version), params);
    EXPECT_FALSE(outcome.status.ok()) << elements;
    EXPECT_EQ(outcome.failed_record, 0);
    // The storage that the record would have written is poisoned: start afresh.
    EXPECT_FALSE(store_->bytes({1, version + 1}, 0, 4).ok());
    SetUp();
  }
}

TEST_F(HostileProgram, StaleVersionsAndStrangersChangeNothing) {
  const auto program = compile(test::add_template(1, kElements));
  ASSERT_TRUE(program.ok());
  const auto params = default_params(**program);
  EXPECT_EQ(store_->invoke(**program, std::vector<SlotBinding>{{1, 0, 1, 0}, {99, 0, 0, 0}}, params).status.code(),
            Errc::kNotFound);
  SetUp();
  EXPECT_EQ(store_->invoke(**program, std::vector<SlotBinding>{{1, 0, 1, 0}, {2, 7, 7, 0}}, params).status.code(),
            Errc::kStale);
  SetUp();
  EXPECT_EQ(store_->invoke(**program, std::vector<SlotBinding>{{1, 0, 1, 0}}, params).status.code(), Errc::kProtocol);
  EXPECT_EQ(store_->invoke(**program, bindings(0), params.first(1)).status.code(), Errc::kProtocol);
  expect_alive(0);
}

// Ids cost memory even where they name nothing: a client cannot make a node remember more than so many.
TEST_F(HostileProgram, TheNumberOfStoragesIsBounded) {
  constexpr size_t kMost = 5;
  store_ = Store::make({.storages_max = kMost});
  auto bytes = std::make_shared<std::vector<float>>(kElements, 2.0F);
  const auto adopt = [&](uint64_t id) {
    return store_->adopt({id, 0},
                         {reinterpret_cast<std::byte*>(bytes->data()), kElements * sizeof(float), true, bytes});
  };
  ASSERT_TRUE(adopt(1).ok() && adopt(2).ok());
  const auto program = compile(test::add_template(1, kElements));
  ASSERT_TRUE(program.ok());
  // What an invocation would have written is remembered as lost, whatever its id.
  for (uint64_t id = 100; id < 200; ++id) {
    const auto outcome =
        store_->invoke(**program, std::vector<SlotBinding>{{id, 0, 1, 0}, {2, 0, 0, 0}}, default_params(**program));
    EXPECT_EQ(outcome.status.code(), Errc::kNotFound);
    EXPECT_LE(store_->storage_count(), kMost);
  }
  const Status refused = adopt(3);
  EXPECT_EQ(refused.code(), Errc::kQuotaExceeded) << refused.to_string();
  expect_alive(0);
  store_->free(100);
  EXPECT_TRUE(adopt(3).ok());
  EXPECT_EQ(adopt(kGeneratorIds + 1).code(), Errc::kInvalidArgument);
  store_->free(kGeneratorIds + 1);
  EXPECT_EQ(store_->storage_count(), kMost);
}

TEST_F(HostileProgram, RandomMutationsNeverHarm) {
  const uint64_t seed = test::random_seed();
  std::mt19937_64 random(seed);
  const auto whole = test::add_template(2, kElements);
  size_t accepted = 0;
  for (int round = 0; round < 20'000; ++round) {
    auto bytes = whole;
    for (uint64_t flips = 1 + random() % 4; flips > 0; --flips)
      bytes[random() % bytes.size()] = static_cast<std::byte>(random());
    const auto program = compile(bytes);
    if (!program.ok()) continue;
    ++accepted;
    SetUp();
    std::vector<int64_t> params(param_count(**program));
    // Mostly sane numbers, so that records run far enough to reach the operators.
    for (int64_t& value : params)
      value = random() % 8 == 0 ? static_cast<int64_t>(random()) : static_cast<int64_t>(random() % 10);
    std::vector<SlotBinding> slots(bound_slot_count(**program));
    for (size_t i = 0; i < slots.size(); ++i) slots[i] = {1 + i, 0, 1, 64};
    (void)store_->invoke(**program, slots, params);
  }
  EXPECT_GT(accepted, 0U) << "no mutation reached the executor";
}

}  // namespace
}  // namespace genie::executor
