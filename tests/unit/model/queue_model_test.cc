// The queues under every interleaving and every stale read: 2 threads, capacity 2, 4 operations each. First in order,
// nothing lost, nothing doubled, no data race on a slot. Then each given acquire or release is weakened to relaxed, one
// at a time, and each publish is swapped with its write (each hand-back with its read): every mutant must be found, or
// the order that it weakened had no reason to be in the code.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <iterator>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "datapath/queue/mpmc_queue.h"
#include "datapath/queue/spsc_ring.h"
#include "tests/unit/model/model_memory.h"

namespace genie::model {
namespace {

constexpr uint64_t kCapacity = 2;
constexpr size_t kOperations = 4;
using Ring = queue::SpscRing<uint64_t, ModelMemory>;
using Queue = queue::MpmcQueue<uint64_t, ModelMemory>;

// What one thread did; plain arrays, for a fiber may be left at any access.
struct Log {
  std::array<uint64_t, 3 * kOperations> values{};
  size_t count = 0;
  void add(uint64_t value) { values[count++] = value; }
  std::span<const uint64_t> all() const { return {values.data(), count}; }
};

// One letter per operation: 'u' pushes one item, 'U' two in a batch, 'R' two in place; 'o', 'O' and 'P' pop likewise.
using Script = std::array<std::string_view, 2>;

// The different things that happened, where somebody asks.
using Outcomes = std::set<std::string>;

std::string text_of(std::span<const uint64_t> values) {
  std::string text;
  for (const uint64_t value : values) text += ' ' + std::to_string(value);
  return text;
}

class SpscProgram final : public Program {
 public:
  SpscProgram(const Script& script, Outcomes* outcomes) : script_(script), outcomes_(outcomes) {}

  void thread(size_t index) override {
    for (const char operation : script_[index]) {
      if (index == 0) {
        push(operation);
      } else {
        pop(operation);
      }
    }
  }

  std::string check() override {
    const size_t before = popped_.count;
    if (outcomes_ != nullptr) outcomes_->insert(std::to_string(next_) + ':' + text_of(popped_.all()));
    while (pop('o') != 0) {
    }
    if (producer_.corrupt() || consumer_.corrupt()) return "an index looked impossible";
    if (popped_.count - before > kCapacity) return "more items than slots";
    std::vector<uint64_t> expected(next_ - 1);
    for (uint64_t i = 0; i + 1 < next_; ++i) expected[i] = i + 1;
    if (!std::ranges::equal(popped_.all(), expected)) {
      return "pushed 1 to " + std::to_string(next_ - 1) + ", popped" + text_of(popped_.all());
    }
    return {};
  }

 private:
  void push(char operation) {
    if (operation == 'u') {
      next_ += producer_.try_push(next_);
    } else if (operation == 'U') {
      const std::array<uint64_t, 2> items{next_, next_ + 1};
      next_ += producer_.push_batch(items);
    } else {
      const auto slots = producer_.reserve(2);
      for (size_t i = 0; i < slots.size(); ++i) ModelMemory::write(slots[i], next_ + i);
      if (!slots.empty()) producer_.commit(slots.size());
      next_ += slots.size();
    }
  }

  size_t pop(char operation) {
    std::array<uint64_t, 2> items{};
    size_t count = 0;
    if (operation == 'o') {
      count = consumer_.try_pop(items[0]);
    } else if (operation == 'O') {
      count = consumer_.pop_batch(items);
    } else {
      const auto slots = consumer_.peek(2);
      for (const auto& slot : slots) items[count++] = ModelMemory::read(slot);
      if (count != 0) consumer_.release(count);
    }
    for (size_t i = 0; i < count; ++i) popped_.add(items[i]);
    return count;
  }

  const Script& script_;
  Outcomes* const outcomes_;
  alignas(queue::kNoSharing) std::array<std::byte, Ring::bytes(kCapacity)> memory_;
  Ring ring_ = Ring::format(&memory_, kCapacity);
  queue::SpscProducer<uint64_t, ModelMemory> producer_ = ring_.producer();
  queue::SpscConsumer<uint64_t, ModelMemory> consumer_ = ring_.consumer();
  uint64_t next_ = 1;
  Log popped_;
};

class MpmcProgram final : public Program {
 public:
  // `prefilled` items are pushed before the start.
  MpmcProgram(const Script& script, size_t prefilled, Outcomes* outcomes) : script_(script), outcomes_(outcomes) {
    for (size_t i = 0; i < prefilled; ++i) operate(kMainThread, 'u');
  }

  void thread(size_t index) override {
    for (const char operation : script_[index]) operate(index, operation);
  }

  std::string check() override {
    const size_t early = popped_[kMainThread].count;
    if (outcomes_ != nullptr) {
      outcomes_->insert(std::to_string(pushed_[0]) + ',' + std::to_string(pushed_[1]) + ':' +
                        text_of(popped_[0].all()) + " |" + text_of(popped_[1].all()));
    }
    while (operate(kMainThread, 'o') != 0) {
    }
    if (popped_[kMainThread].count - early > kCapacity) return "more items than slots";
    std::vector<uint64_t> all;
    std::vector<uint64_t> expected;
    for (size_t thread = 0; thread < kMaxThreads; ++thread) {
      std::ranges::copy(popped_[thread].all(), std::back_inserter(all));
      for (uint64_t i = 1; i <= pushed_[thread]; ++i) expected.push_back(value_of(thread, i));
      if (const std::string wrong = check_order(thread); !wrong.empty()) return wrong;
    }
    std::ranges::sort(all);
    std::ranges::sort(expected);
    if (all != expected) return "pushed" + text_of(expected) + ", popped" + text_of(all);
    return {};
  }

 private:
  static uint64_t value_of(size_t thread, uint64_t number) { return thread * 100 + number; }

  // Of each producer's items, each consumer gets later ones later. Whoever drains after the join gets the latest.
  std::string check_order(size_t producer) const {
    uint64_t latest = 0;
    for (size_t consumer = 0; consumer < kMaxThreads; ++consumer) {
      uint64_t last = consumer == kMainThread ? latest : 0;
      for (const uint64_t value : popped_[consumer].all()) {
        if (value / 100 != producer) continue;
        if (value <= last) return "thread " + std::to_string(consumer) + " popped" + text_of(popped_[consumer].all());
        last = value;
      }
      latest = std::max(latest, last);
    }
    return {};
  }

  size_t operate(size_t thread, char operation) {
    std::array<uint64_t, 2> items{};
    const size_t wanted = operation == 'U' || operation == 'O' ? 2 : 1;
    if (operation == 'u' || operation == 'U') {
      for (size_t i = 0; i < wanted; ++i) items[i] = value_of(thread, pushed_[thread] + 1 + i);
      const size_t count = queue_.push_batch({items.data(), wanted});
      pushed_[thread] += count;
      return count;
    }
    const size_t count = queue_.pop_batch({items.data(), wanted});
    for (size_t i = 0; i < count; ++i) popped_[thread].add(items[i]);
    return count;
  }

  const Script& script_;
  Outcomes* const outcomes_;
  Queue queue_{kCapacity};
  std::array<uint64_t, kMaxThreads> pushed_{};
  std::array<Log, kMaxThreads> popped_;
};

struct Scenario {
  Script script;
  size_t prefilled = 0;
};

const std::vector<Scenario> kSpscScenarios = {
    {{"uuuu", "oooo"}}, {{"UUUU", "OOOO"}}, {{"RRRR", "PPPP"}}, {{"uUuR", "OoPo"}}, {{"UuRu", "oPoO"}},
};
// Small and large, narrow and mixed; some millions of executions in all.
const std::vector<Scenario> kMpmcScenarios = {
    {{"uuuu", "oooo"}},    {{"UuUu", "oOoO"}}, {{"UUUU", "OOOO"}}, {{"uuuu", "uuuu"}},
    {{"oooo", "oooo"}, 2}, {{"uuoo", "ouuo"}}, {{"uouo", "ouou"}},
};

enum class Kind : uint8_t { kSpsc, kMpmc };

Exploration run(Kind kind, const Scenario& scenario, const Mutation& mutation, Prune prune = Prune::kKnownStates,
                Outcomes* outcomes = nullptr) {
  return explore(
      [&]() -> std::unique_ptr<Program> {
        if (kind == Kind::kSpsc) return std::make_unique<SpscProgram>(scenario.script, outcomes);
        return std::make_unique<MpmcProgram>(scenario.script, scenario.prefilled, outcomes);
      },
      mutation, prune);
}

void expect_correct(Kind kind, const std::vector<Scenario>& scenarios) {
  for (const Scenario& scenario : scenarios) {
    const Exploration result = run(kind, scenario, {});
    std::printf("  %.4s | %.4s: %llu executions, %llu cut at known states, %llu states\n", scenario.script[0].data(),
                scenario.script[1].data(), static_cast<unsigned long long>(result.executions),
                static_cast<unsigned long long>(result.cut_executions), static_cast<unsigned long long>(result.states));
    std::fflush(stdout);
    EXPECT_EQ(result.violation, "");
    EXPECT_EQ(result.endless_executions, 0U);
    EXPECT_GT(result.executions, 1U);
  }
}

void expect_found(Kind kind, const std::vector<Scenario>& scenarios, const char* name, const Mutation& mutation) {
  uint64_t executions = 0;
  for (const Scenario& scenario : scenarios) {
    const Exploration result = run(kind, scenario, mutation);
    executions += result.executions + result.cut_executions + result.endless_executions + 1;
    if (result.violation.empty()) continue;
    std::printf("  mutant '%s': found after %llu executions: %s\n", name, static_cast<unsigned long long>(executions),
                result.violation.substr(0, result.violation.find('\n')).c_str());
    return;
  }
  ADD_FAILURE() << "mutant '" << name << "' survived " << executions << " executions";
}

// The search stops where it comes to a state that it knows: that must hide nothing.
void expect_nothing_hidden(Kind kind, const Scenario& scenario) {
  Outcomes pruned;
  Outcomes all;
  const Exploration quick = run(kind, scenario, {}, Prune::kKnownStates, &pruned);
  const Exploration full = run(kind, scenario, {}, Prune::kNothing, &all);
  std::printf("  %s | %s: %llu executions one by one, %zu outcomes\n", std::string(scenario.script[0]).c_str(),
              std::string(scenario.script[1]).c_str(), static_cast<unsigned long long>(full.executions), all.size());
  EXPECT_GT(all.size(), 1U);
  EXPECT_EQ(pruned, all);
  EXPECT_EQ(full.cut_executions, 0U);
  EXPECT_LE(quick.executions, full.executions);
}

TEST(SpscModel, PruningHidesNoOutcome) {
  expect_nothing_hidden(Kind::kSpsc, {{"uuu", "ooo"}});
  expect_nothing_hidden(Kind::kSpsc, {{"UU", "OO"}});
}

TEST(MpmcModel, PruningHidesNoOutcome) {
  expect_nothing_hidden(Kind::kMpmc, {{"uu", "o"}});
  expect_nothing_hidden(Kind::kMpmc, {{"u", "oo"}, 1});
  expect_nothing_hidden(Kind::kMpmc, {{"U", "oo"}});
}

TEST(SpscModel, IsRightInEveryExecution) { expect_correct(Kind::kSpsc, kSpscScenarios); }

TEST(SpscModel, EveryMutantIsFound) {
  using queue::SpscSite;
  const auto relaxed = [](SpscSite site) { return Mutation{.relaxed_site = static_cast<int>(site)}; };
  const auto found = [](const char* name, const Mutation& mutation) {
    expect_found(Kind::kSpsc, kSpscScenarios, name, mutation);
  };
  found("producer loads head relaxed", relaxed(SpscSite::kProducerLoadsHead));
  found("producer stores tail relaxed", relaxed(SpscSite::kProducerStoresTail));
  found("consumer loads tail relaxed", relaxed(SpscSite::kConsumerLoadsTail));
  found("consumer stores head relaxed", relaxed(SpscSite::kConsumerStoresHead));
  found("publish before write", {.write_after_store = true});
  found("hand-back before read", {.read_after_store = true});
}

TEST(MpmcModel, IsRightInEveryExecution) { expect_correct(Kind::kMpmc, kMpmcScenarios); }

TEST(MpmcModel, EveryMutantIsFound) {
  using queue::MpmcSite;
  const auto relaxed = [](MpmcSite site) { return Mutation{.relaxed_site = static_cast<int>(site)}; };
  const auto found = [](const char* name, const Mutation& mutation) {
    expect_found(Kind::kMpmc, kMpmcScenarios, name, mutation);
  };
  found("push loads turn relaxed", relaxed(MpmcSite::kPushLoadsTurn));
  found("push stores turn relaxed", relaxed(MpmcSite::kPushStoresTurn));
  found("pop loads turn relaxed", relaxed(MpmcSite::kPopLoadsTurn));
  found("pop stores turn relaxed", relaxed(MpmcSite::kPopStoresTurn));
  found("publish before write", {.write_after_store = true});
  found("hand-back before read", {.read_after_store = true});
}

}  // namespace
}  // namespace genie::model
