// FragmentBuilder: turns a flushed segment into a template and one invocation of it.
//
// Purpose: drop records whose results nobody can see, number the storages by first use, and split structure (the template) from
//   numbers (the invocation's parameters). What comes of a segment depends on its form alone, so that a step which repeats
//   costs a comparison with the forms of the last few, or else a hash over its words and a look-up.
// Thread-safety: one builder per session, used under its flush lock.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "frontend/capture/stream.h"
#include "src/session/link.h"

namespace genie::frontend {

struct TemplateKey {
  uint64_t low = 0;
  uint64_t high = 0;
  friend bool operator==(const TemplateKey&, const TemplateKey&) = default;
};
struct TemplateKeyHash {
  size_t operator()(const TemplateKey& key) const noexcept { return key.low; }
};

// What becomes of a segment: worked out once for every form that a program's segments take. A form is the segment without its
// numbers and its storages.
struct FragmentPlan {
  // Storages that the invocation binds, in order, with versions moved on for those that are written.
  struct Bound {
    uint32_t segment_slot;
    bool created;
    bool written;
    uint32_t last_writer;  // number of the live record that writes it last
    friend bool operator==(const Bound&, const Bound&) = default;
  };
  struct Range {
    uint32_t begin;
    uint32_t end;
    friend bool operator==(const Range&, const Range&) = default;
  };
  struct Count {
    OpInfo* op;
    uint32_t captured;
    uint32_t executed;
    friend bool operator==(const Count&, const Count&) = default;
  };

  TemplateKey key;
  std::vector<uint32_t> live;  // numbers of records in the segment, ascending
  std::vector<Range> params;   // of the segment's numbers: those that live records have, which are the template's
  std::vector<Bound> bound;
  std::vector<Count> counts;    // by operator
  std::vector<bool> slot_used;  // by a live record
  size_t pruned = 0;

  bool empty() const { return live.empty(); }
  // What the template has in the place of the numbers that an invocation brings.
  std::vector<int64_t> numbers_of(const Segment& segment) const;
  size_t bytes() const;
  friend bool operator==(const FragmentPlan&, const FragmentPlan&) = default;
};

class FragmentBuilder {
 public:
  FragmentBuilder();

  // Valid until the next call.
  const FragmentPlan& plan(const Segment& segment);
  // The template as it travels, for a node that does not know it yet, with these numbers (FragmentPlan::numbers_of).
  std::vector<std::byte> serialize(const Segment& segment, const std::vector<int64_t>& numbers);

 private:
  static constexpr uint32_t kUnused = UINT32_MAX;

  // A form that was seen lately, in full.
  struct Recent {
    bool check_shapes = false;
    Words<uint32_t> code;
    Words<uint32_t> touches;
    std::vector<uint8_t> slot_flags;
    std::vector<std::string> strings;
    const FragmentPlan* plan = nullptr;
  };

  void look_at(const Segment& segment);
  const FragmentPlan* recent_plan(const Segment& segment) const;
  void keep_recent(const Segment& segment, const FragmentPlan& plan);
  TemplateKey form_of(const Segment& segment);
  FragmentPlan make(const Segment& segment);
  void number_slots(const Segment& segment);
  void mark_live(const Segment& segment);
  void encode(const Segment& segment);
  void encode_record(const Segment& segment, size_t record, uint32_t number);
  uint32_t local_slot(uint32_t segment_slot);

  struct FreeState {
    void operator()(void* state) const noexcept;
  };
  const std::unique_ptr<void, FreeState> hash_;

  std::unordered_map<TemplateKey, FragmentPlan, TemplateKeyHash> plans_;  // by form
  size_t plans_bytes_ = 0;
  std::array<Recent, 4> recent_;
  size_t next_recent_ = 0;  // to be replaced

  // Of the segment that is looked at.
  std::vector<uint8_t> slot_flags_;
  bool check_shapes_ = false;

  // Of the one that was worked through last.
  std::vector<bool> needed_;
  std::vector<uint32_t> live_;
  std::vector<uint32_t> code_;          // operators by their number in the op table
  std::vector<uint32_t> record_heads_;  // positions of record headers in code_
  std::vector<OpInfo*> record_ops_;
  std::vector<uint32_t> local_of_;
  std::vector<uint8_t> kinds_;
  std::vector<uint32_t> written_by_;  // by local slot: live record that writes it last
  std::vector<uint32_t> local_to_segment_;
  std::vector<std::string> strings_;
};

}  // namespace genie::frontend
