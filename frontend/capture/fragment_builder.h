// FragmentBuilder: turns a flushed segment into a template and one invocation of it.
//
// Purpose: drop records whose results nobody can see, number the storages by first use, and split structure (the template) from
//   numbers (the invocation's parameters).
// Thread-safety: one builder per session, used under its flush lock.
#pragma once

#include <cstdint>
#include <string>
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

class FragmentBuilder {
 public:
  // Works the segment through. False when nothing of it is alive.
  bool build(const Segment& segment);

  const TemplateKey& key() const { return key_; }
  const std::vector<int64_t>& params() const { return params_; }
  const std::vector<uint32_t>& live_records() const { return live_; }  // numbers in the segment, ascending
  size_t pruned() const { return pruned_; }
  // Whether a live record touches that slot of the segment.
  bool slot_is_live(uint32_t segment_slot) const {
    return segment_slot < local_of_.size() && local_of_[segment_slot] != kUnused;
  }

  // The template as it travels; only on a cache miss.
  std::vector<std::byte> serialize(const Segment& segment) const;
  // Storages that the invocation binds, in order, with versions moved on for those that are written.
  struct Bound {
    uint32_t segment_slot;
    bool created;
    bool written;
    uint32_t last_writer;  // number of the live record that writes it last
  };
  const std::vector<Bound>& bound() const { return bound_; }

 private:
  static constexpr uint32_t kUnused = UINT32_MAX;

  void mark_live(const Segment& segment);
  void encode(const Segment& segment);
  void encode_record(const Segment& segment, size_t record, uint32_t number);
  uint32_t local_slot(const Segment& segment, uint32_t segment_slot);

  std::vector<bool> needed_;
  std::vector<bool> visible_;  // slot's storage outlives the fragment
  std::vector<uint32_t> live_;
  std::vector<uint32_t> code_;          // operators by their number in the op table
  std::vector<uint32_t> record_heads_;  // positions of record headers in code_
  std::vector<OpInfo*> record_ops_;
  std::vector<int64_t> params_;
  std::vector<uint32_t> local_of_;
  std::vector<uint8_t> kinds_;
  std::vector<uint32_t> written_by_;  // by local slot: live record that writes it last
  std::vector<uint32_t> local_to_segment_;
  std::vector<std::string> strings_;
  std::vector<Bound> bound_;
  TemplateKey key_;
  size_t pruned_ = 0;
  bool check_shapes_ = false;
};

}  // namespace genie::frontend
