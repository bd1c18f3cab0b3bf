// InvocationCoder: the storages and numbers of an invocation, as what differs from what its template's last ones let expect.
//
// Purpose: a step that repeats names the same weights, numbers that grew by one, and storages as far from the last step's as those
//   were from the step's before; its message need not say so. Each side keeps, of a template, what the last invocation was and
//   what goes on from the last two in a straight line, for as many templates as `remembered` numbers allow, the least recently
//   used going first. Both sides see the same invocations in the same order, so that they remember the same; each invocation
//   carries its place in that order, so that a lost one is noticed.
// Thread-safety: none; a coder belongs to one side of one session, under the lock that orders its submissions.
// Errors: decode() answers kProtocol for bytes that no encoder made; the two sides no longer agree then, so the session is over.
#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <span>
#include <unordered_map>
#include <vector>

#include "genie/status.h"
#include "src/executor/executor.h"

namespace genie::wire {

struct InvocationNumbers {
  std::vector<executor::SlotBinding> slots;
  std::vector<uint32_t> param_index;  // parameters that differ from the template's defaults
  std::vector<int64_t> param_value;   // as many
};

class InvocationCoder {
 public:
  // Numbers in all templates together, of a session and side, each of 8 bytes. Both sides must have the same.
  static constexpr size_t kRemembered = size_t{1} << 20;

  explicit InvocationCoder(size_t remembered = kRemembered) : most_(remembered) {}

  // Appends to `out`. There are as many indices as values.
  void encode(uint64_t template_id, const InvocationNumbers& invocation, std::vector<std::byte>& out);
  Result<InvocationNumbers> decode(uint64_t template_id, std::span<const std::byte> bytes);

  // An invocation with more numbers is not remembered: to repeat it takes its bytes again.
  size_t largest() const noexcept { return most_ / 64; }
  // What is held between two calls, about.
  size_t bytes_held() const noexcept;

 private:
  struct Flat {
    uint32_t slots = 0;
    uint32_t params = 0;
    std::vector<uint64_t> numbers;
  };
  struct Last {
    Flat flat;
    std::vector<uint64_t> expected;  // of the next one, if it has the same form
    std::list<uint64_t>::iterator age;

    // Modulo 2^64.
    void expect_after(const std::vector<uint64_t>& now);
  };

  // What is expected of the next one; null when there is none of that form.
  const std::vector<uint64_t>* expected_of(uint64_t template_id, uint32_t slots, uint32_t params) const;
  // What scratch_ holds.
  void remember(uint64_t template_id);

  const size_t most_;
  std::unordered_map<uint64_t, Last> last_;
  std::list<uint64_t> ages_;  // template ids, the most recently used first
  size_t remembered_ = 0;
  uint64_t invocations_ = 0;
  Flat scratch_;
};

}  // namespace genie::wire
