#include "tests/unit/model/explorer.h"

#include <ucontext.h>
#include <csetjmp>

#include <array>
#include <cstdlib>
#include <unordered_set>
#include <vector>

namespace genie::model {
namespace {

constexpr size_t kFiberCount = 2;
constexpr size_t kStackBytes = 128 * 1024;
constexpr size_t kMaxAccesses = 400;  // honest executions have fewer than a hundred

struct StateHash {
  size_t operator()(const std::pair<uint64_t, uint64_t>& digest) const noexcept { return digest.first; }
};

class Search final : public Choices {
 public:
  Search(const std::function<std::unique_ptr<Program>()>& make, const Mutation& mutation, Prune prune)
      : make_(make), mutation_(mutation), prune_(prune) {}

  Exploration run() {
    do {
      run_once();
    } while (violation_.empty() && next_path());
    result_.states = seen_.size();
    if (!violation_.empty()) {
      // Once more, this time with a record of each access.
      machine_.set_tracing(true);
      seen_.clear();
      run_once();
      result_.violation = violation_ + "\n" + machine_.trace();
    }
    return result_;
  }

  size_t choose(size_t count) override {
    if (depth_ == path_.size()) path_.push_back({0, count});
    return path_[depth_++].taken;
  }

  void schedule_point() {
    if (running_ == kMainThread) return;
    if (!primed_) {
      // Both fibers wait at their first access before the first decision: a state has one decision, not one per fiber.
      primed_ = true;
      if (_setjmp(fiber_jumps_[1]) == 0) _longjmp(main_jump_, 1);
      return;
    }
    if (++accesses_ > kMaxAccesses) leave(End::kEndless);
    // Replayed states were seen, of course; the first choice of this execution that is new leads to states that count.
    if (prune_ == Prune::kKnownStates && depth_ >= path_.size() && !seen_.insert(machine_.digest()).second)
      leave(End::kCut);
    const size_t other = 1 - running_;
    if (finished_[other] || choose(2) == 0) return;
    switch_to(other);
  }

  void wrote_cell(uint32_t cell) {
    if (mutation_.write_after_store && running_ != kMainThread) {
      moved_[running_].push_back({cell, true});
    } else {
      access_cell({cell, true});
    }
  }
  void read_cell(uint32_t cell, uint64_t value) {
    machine_.note_result(running_, value);
    if (mutation_.read_after_store && running_ != kMainThread) {
      moved_[running_].push_back({cell, false});
    } else {
      access_cell({cell, false});
    }
  }
  void after_store() {
    if (running_ == kMainThread) return;
    for (const CellAccess& access : moved_[running_]) access_cell(access);
    moved_[running_].clear();
  }

  Machine machine_{this};
  const Mutation& mutation() const noexcept { return mutation_; }
  size_t running() const noexcept { return running_; }

 private:
  enum class End : uint8_t { kComplete, kCut, kEndless, kViolation };
  struct Choice {
    size_t taken;
    size_t count;
  };
  struct CellAccess {
    uint32_t cell;
    bool write;
  };

  void access_cell(const CellAccess& access) {
    const bool ordered =
        access.write ? machine_.write_cell(running_, access.cell) : machine_.read_cell(running_, access.cell);
    if (ordered) return;
    violation_ = "data race on cell " + std::to_string(access.cell);
    if (running_ != kMainThread) leave(End::kViolation);
    end_ = End::kViolation;
  }

  void run_once();
  void start_fibers();
  static void fiber_main(unsigned index);
  void finish_fiber(size_t index);
  void switch_to(size_t other);
  [[noreturn]] void resume(size_t index);
  // Ends the execution from inside a fiber, which is never resumed.
  [[noreturn]] void leave(End end) {
    end_ = end;
    _longjmp(main_jump_, 1);
  }
  // The last choice that has an untried alternative takes it; false when there is none.
  bool next_path() {
    while (!path_.empty() && path_.back().taken + 1 == path_.back().count) path_.pop_back();
    if (path_.empty()) return false;
    ++path_.back().taken;
    return true;
  }

  const std::function<std::unique_ptr<Program>()>& make_;
  const Mutation mutation_;
  const Prune prune_;
  Exploration result_;
  std::unordered_set<std::pair<uint64_t, uint64_t>, StateHash> seen_;
  std::vector<Choice> path_;

  // One execution.
  std::unique_ptr<Program> program_;
  size_t depth_ = 0;
  size_t accesses_ = 0;
  size_t running_ = kMainThread;
  bool primed_ = false;  // fiber 1 has come to its first access, or to its end
  std::array<bool, kFiberCount> finished_{};
  std::array<std::vector<CellAccess>, kFiberCount> moved_;
  End end_ = End::kComplete;
  std::string violation_;

  std::jmp_buf main_jump_;
  std::array<std::jmp_buf, kFiberCount> fiber_jumps_;
  std::array<bool, kFiberCount> started_{};
  std::array<ucontext_t, kFiberCount> contexts_{};
  std::array<std::unique_ptr<char[]>, kFiberCount> stacks_{std::unique_ptr<char[]>(new char[kStackBytes]),
                                                           std::unique_ptr<char[]>(new char[kStackBytes])};
};

thread_local Search* search = nullptr;

void Search::fiber_main(unsigned index) {
  search->program_->thread(index);
  search->finish_fiber(index);
}

void Search::finish_fiber(size_t index) {
  // A plain access that no store followed still happens.
  after_store();
  finished_[index] = true;
  if (!primed_ || finished_[1 - index]) {
    primed_ = true;
    _longjmp(main_jump_, 1);
  }
  running_ = 1 - index;
  resume(running_);
}

void Search::switch_to(size_t other) {
  const size_t self = running_;
  running_ = other;
  if (_setjmp(fiber_jumps_[self]) == 0) resume(other);
}

// A fiber's first start needs a context of its own; from then on jumps are enough, and make no system call.
void Search::resume(size_t index) {
  if (started_[index]) _longjmp(fiber_jumps_[index], 1);
  started_[index] = true;
  setcontext(&contexts_[index]);
  std::abort();  // it does not return
}

void Search::start_fibers() {
  started_ = {};
  for (unsigned i = 0; i < kFiberCount; ++i) {
    getcontext(&contexts_[i]);
    contexts_[i].uc_stack.ss_sp = stacks_[i].get();
    contexts_[i].uc_stack.ss_size = kStackBytes;
    contexts_[i].uc_link = nullptr;
    makecontext(&contexts_[i], reinterpret_cast<void (*)()>(&Search::fiber_main), 1, i);
  }
}

void Search::run_once() {
  depth_ = 0;
  accesses_ = 0;
  finished_ = {};
  primed_ = false;
  for (auto& list : moved_) list.clear();
  end_ = End::kComplete;
  running_ = kMainThread;
  machine_.clear();
  program_ = make_();
  for (size_t i = 0; i < kFiberCount; ++i) machine_.hand_over(kMainThread, i);
  start_fibers();
  running_ = 1;
  if (_setjmp(main_jump_) == 0) resume(1);
  running_ = 0;
  if (end_ == End::kComplete && _setjmp(main_jump_) == 0) resume(0);

  running_ = kMainThread;
  if (end_ == End::kComplete) {
    for (size_t i = 0; i < kFiberCount; ++i) machine_.hand_over(i, kMainThread);
    const std::string wrong = program_->check();
    if (!wrong.empty()) {
      violation_ = wrong;
      end_ = End::kViolation;
    }
  }
  if (end_ == End::kComplete) ++result_.executions;
  if (end_ == End::kCut) ++result_.cut_executions;
  if (end_ == End::kEndless) ++result_.endless_executions;
  program_.reset();
}

}  // namespace

Exploration explore(const std::function<std::unique_ptr<Program>()>& make, const Mutation& mutation, Prune prune) {
  Search mine(make, mutation, prune);
  search = &mine;
  Exploration result = mine.run();
  search = nullptr;
  return result;
}

Machine& machine() { return search->machine_; }
const Mutation& mutation() { return search->mutation(); }
size_t current_thread() { return search->running(); }
void schedule_point() { search->schedule_point(); }
void wrote_cell(uint32_t cell) { search->wrote_cell(cell); }
void read_cell(uint32_t cell, uint64_t value) { search->read_cell(cell, value); }
void after_store() { search->after_store(); }

}  // namespace genie::model
