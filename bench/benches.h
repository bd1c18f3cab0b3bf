// The registry of benches: each subcommand of genie-bench registers itself from its own source file.
//
//     namespace { const genie::bench::Registration kQueue("queue", run_queue); }
//
// Thread-safety: registration happens before main(), look-up after. Ownership: names are string literals.
#pragma once

#include <string_view>

#include "bench/harness/harness.h"

namespace genie::bench {

using RunBench = void (*)(Harness&);

class Registration {
 public:
  Registration(std::string_view name, RunBench run) noexcept : name_(name), run_(run), next_(first()) {
    first() = this;
  }
  // Null when this build has no such bench. Several files may register under one name: run() each, following
  // next_of_name().
  static const Registration* find(std::string_view name) noexcept { return find_from(first(), name); }
  const Registration* next_of_name() const noexcept { return find_from(next_, name_); }
  void run(Harness& harness) const { run_(harness); }

 private:
  static const Registration* find_from(const Registration* from, std::string_view name) noexcept {
    while (from != nullptr && from->name_ != name) from = from->next_;
    return from;
  }
  static const Registration*& first() noexcept {
    static const Registration* list = nullptr;
    return list;
  }

  std::string_view name_;
  RunBench run_;
  const Registration* next_;
};

}  // namespace genie::bench
