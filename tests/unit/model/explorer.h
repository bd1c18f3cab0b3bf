// Explorer: runs a small concurrent program in every way that the Machine allows.
//
// Purpose: depth-first search over who runs next (before each atomic access) and what each load returns. An execution is
//   run again from its start for every new choice; a state that was seen before is not gone into again. The program's
//   code runs as it is, on two fibers, over ModelMemory.
// Thread-safety: one explorer at a time per thread of the test. Ownership: see Program.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "tests/unit/model/machine.h"

namespace genie::model {

// One execution's objects. Made anew for each execution, after the machine was cleared; what the two threads use of
// their own stacks must not need destruction: an execution may end anywhere.
class Program {
 public:
  virtual ~Program() = default;
  virtual void thread(size_t index) = 0;
  // After the join: checks the outcome. Empty when it is right.
  virtual std::string check() = 0;
};

// A weakening of the code under test. The sites are those of the queue's enum.
struct Mutation {
  int relaxed_site = -1;           // this site's order becomes relaxed
  bool write_after_store = false;  // a plain write moves behind the atomic store that follows it
  bool read_after_store = false;   // a plain read moves behind the atomic store that follows it
};

struct Exploration {
  uint64_t executions = 0;      // that ran to their end and were checked
  uint64_t cut_executions = 0;  // that reached a state seen before
  uint64_t states = 0;
  uint64_t endless_executions = 0;  // longer than any honest one: given up
  std::string violation;            // the first one found, with its trace; the search ends there
};

// Whether executions end where they reach a state that was seen before. Without, everything is run to its end.
enum class Prune : uint8_t { kKnownStates, kNothing };

Exploration explore(const std::function<std::unique_ptr<Program>()>& make, const Mutation& mutation = {},
                    Prune prune = Prune::kKnownStates);

// -- For ModelMemory: the execution that runs now ------------------------------------------------------------------

Machine& machine();
const Mutation& mutation();
size_t current_thread();
// Lets the other thread run first, or not: before each atomic access.
void schedule_point();
void wrote_cell(uint32_t cell);
void read_cell(uint32_t cell, uint64_t value);
// After each atomic store: plain accesses that the mutation moved behind it.
void after_store();

}  // namespace genie::model
