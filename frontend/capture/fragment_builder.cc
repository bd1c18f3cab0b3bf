#include "frontend/capture/fragment_builder.h"

#include <xxhash.h>

#include <c10/util/Exception.h>

#include <algorithm>
#include <new>
#include <utility>

#include "genie/shapes.h"
#include "src/executor/schema_hash.h"
#include "src/protocol/program_format.h"
#include "template_generated.h"

namespace genie::frontend {

using wire::SlotKind;
using wire::Tag;

namespace {

// Beyond it all plans go: a program whose steps repeat has far fewer, and one whose steps do not gains nothing by them.
constexpr size_t kPlansBytesMax = size_t{64} << 20;

enum SlotFlag : uint8_t {
  kExisted = 1,
  kVisible = 2,  // the storage outlives the fragment
};

void add_bytes(XXH3_state_t* state, const auto& values) {
  XXH3_128bits_update(state, values.data(), values.size() * sizeof(values[0]));
}

// By operator; what is captured counts dead records, too.
std::vector<FragmentPlan::Count> count_records(const Segment& segment, const std::vector<uint32_t>& live) {
  std::vector<FragmentPlan::Count> counts;
  std::unordered_map<const OpInfo*, size_t> places;
  const auto count_of = [&](OpInfo* op) -> FragmentPlan::Count& {
    const auto [place, fresh] = places.try_emplace(op, counts.size());
    if (fresh) counts.push_back({op, 0, 0});
    return counts[place->second];
  };
  for (const RecordEntry& record : segment.records) {
    if (!record.op->bookkeeping) ++count_of(record.op).captured;
  }
  for (const uint32_t record : live) ++count_of(segment.records[record].op).executed;
  return counts;
}

}  // namespace

void FragmentBuilder::FreeState::operator()(void* state) const noexcept {
  XXH3_freeState(static_cast<XXH3_state_t*>(state));
}

FragmentBuilder::FragmentBuilder() : hash_(XXH3_createState()) {
  if (hash_ == nullptr) throw std::bad_alloc();
}

size_t FragmentPlan::bytes() const {
  return sizeof(FragmentPlan) + live.size() * sizeof(live[0]) + params.size() * sizeof(params[0]) +
         bound.size() * sizeof(bound[0]) + counts.size() * sizeof(counts[0]) + slot_used.size() / 8;
}

std::vector<int64_t> FragmentPlan::numbers_of(const Segment& segment) const {
  std::vector<int64_t> numbers;
  for (const Range& range : params)
    numbers.insert(numbers.end(), segment.params.begin() + range.begin, segment.params.begin() + range.end);
  return numbers;
}

const FragmentPlan& FragmentBuilder::plan(const Segment& segment) {
  look_at(segment);
  const FragmentPlan* const recent = recent_plan(segment);
  if (recent != nullptr && !check_shapes_) return *recent;
  const TemplateKey form = form_of(segment);
  if (const auto known = plans_.find(form); known != plans_.end()) {
    // The debug mode that trusts nothing that was remembered.
    TORCH_INTERNAL_ASSERT(!check_shapes_ || make(segment) == known->second, "a remembered plan is another segment's");
    TORCH_INTERNAL_ASSERT(recent == nullptr || *recent == known->second, "a recent plan is another segment's");
    if (recent == nullptr) keep_recent(segment, known->second);
    return known->second;
  }
  FragmentPlan fresh = make(segment);
  plans_bytes_ += fresh.bytes();
  if (plans_bytes_ > kPlansBytesMax) {
    recent_ = {};
    plans_.clear();
    plans_bytes_ = fresh.bytes();
  }
  // Kept in full when it comes again: most programs that repeat nothing never pay for that.
  return plans_.insert_or_assign(form, std::move(fresh)).first->second;
}

void FragmentBuilder::look_at(const Segment& segment) {
  slot_flags_.resize(segment.slots.size());
  uint8_t* flags = slot_flags_.data();
  for (const SlotEntry& slot : segment.slots) {
    const bool visible = !slot.state->handle_gone.load(std::memory_order_acquire);
    *flags++ = static_cast<uint8_t>((slot.existed ? kExisted : 0) | (visible ? kVisible : 0));
  }
  check_shapes_ = is_checking_shapes();
}

const FragmentPlan* FragmentBuilder::recent_plan(const Segment& segment) const {
  for (const Recent& recent : recent_) {
    if (recent.plan != nullptr && recent.check_shapes == check_shapes_ && recent.slot_flags == slot_flags_ &&
        recent.code == segment.code && recent.touches == segment.touches && recent.strings == segment.strings) {
      return recent.plan;
    }
  }
  return nullptr;
}

void FragmentBuilder::keep_recent(const Segment& segment, const FragmentPlan& plan) {
  recent_[next_recent_] = {check_shapes_, segment.code, segment.touches, slot_flags_, segment.strings, &plan};
  next_recent_ = (next_recent_ + 1) % recent_.size();
}

// Everything that the plan depends on. Where records begin and how many numbers they have follows from their words.
TemplateKey FragmentBuilder::form_of(const Segment& segment) {
  auto* state = static_cast<XXH3_state_t*>(hash_.get());
  XXH3_128bits_reset_withSeed(state, check_shapes_ ? 1 : 0);
  add_bytes(state, segment.code);
  add_bytes(state, segment.touches);
  add_bytes(state, slot_flags_);
  for (const std::string& text : segment.strings) XXH3_128bits_update(state, text.c_str(), text.size() + 1);
  const XXH128_hash_t hash = XXH3_128bits_digest(state);
  return {hash.low64, hash.high64};
}

FragmentPlan FragmentBuilder::make(const Segment& segment) {
  FragmentPlan out;
  number_slots(segment);
  out.live = live_;
  out.pruned = segment.records.size() - live_.size();
  out.counts = count_records(segment, live_);
  out.slot_used.assign(segment.slots.size(), false);
  if (live_.empty()) return out;
  for (size_t slot = 0; slot < local_of_.size(); ++slot) out.slot_used[slot] = local_of_[slot] != kUnused;
  for (const uint32_t record : live_) {
    const FragmentPlan::Range range{segment.records[record].params, segment.params_end(record)};
    if (!out.params.empty() && out.params.back().end == range.begin) {
      out.params.back().end = range.end;
    } else if (range.begin != range.end) {
      out.params.push_back(range);
    }
  }
  for (uint32_t local = 0; local < kinds_.size(); ++local) {
    if (kinds_[local] == static_cast<uint8_t>(SlotKind::kTransient)) continue;
    out.bound.push_back({local_to_segment_[local], kinds_[local] == static_cast<uint8_t>(SlotKind::kCreated),
                         written_by_[local] != kUnused, written_by_[local]});
  }
  // Everything that tells two templates apart; numbers are parameters and do not.
  uint64_t seed = XXH3_64bits_withSeed(kinds_.data(), kinds_.size(), check_shapes_ ? 1 : 0);
  for (const std::string& text : strings_) seed = XXH3_64bits_withSeed(text.data(), text.size() + 1, seed);
  const XXH128_hash_t hash = XXH3_128bits_withSeed(code_.data(), code_.size() * sizeof(uint32_t), seed);
  out.key = TemplateKey{hash.low64, hash.high64};
  return out;
}

void FragmentBuilder::number_slots(const Segment& segment) {
  mark_live(segment);
  local_of_.assign(segment.slots.size(), kUnused);
  encode(segment);
}

// Backwards over the records: a record lives when somebody can see what it writes. A definition satisfies the need for what
// came before it; an in-place write does not, it may cover a part only.
void FragmentBuilder::mark_live(const Segment& segment) {
  const size_t slot_count = segment.slots.size();
  needed_.assign(slot_count, false);
  for (size_t i = 0; i < slot_count; ++i) needed_[i] = (slot_flags_[i] & kVisible) != 0;
  live_.clear();
  for (size_t i = segment.records.size(); i-- > 0;) {
    const uint32_t begin = segment.records[i].touches;
    const uint32_t end = segment.touches_end(i);
    bool alive = segment.records[i].op->side_effect;
    for (uint32_t t = begin; t < end && !alive; ++t) {
      alive = touch_mode(segment.touches[t]) != Touch::kRead && needed_[touch_slot(segment.touches[t])];
    }
    if (!alive) continue;
    live_.push_back(static_cast<uint32_t>(i));
    for (uint32_t t = begin; t < end; ++t) {
      if (touch_mode(segment.touches[t]) == Touch::kDefine) needed_[touch_slot(segment.touches[t])] = false;
    }
    for (uint32_t t = begin; t < end; ++t) {
      if (touch_mode(segment.touches[t]) != Touch::kDefine) needed_[touch_slot(segment.touches[t])] = true;
    }
  }
  std::reverse(live_.begin(), live_.end());
}

uint32_t FragmentBuilder::local_slot(uint32_t segment_slot) {
  uint32_t& local = local_of_[segment_slot];
  if (local != kUnused) return local;
  local = static_cast<uint32_t>(kinds_.size());
  const uint8_t flags = slot_flags_[segment_slot];
  const SlotKind kind = (flags & kExisted) != 0   ? SlotKind::kExisting
                        : (flags & kVisible) != 0 ? SlotKind::kCreated
                                                  : SlotKind::kTransient;
  kinds_.push_back(static_cast<uint8_t>(kind));
  written_by_.push_back(kUnused);
  local_to_segment_.push_back(segment_slot);
  return local;
}

void FragmentBuilder::encode(const Segment& segment) {
  code_.clear();
  record_heads_.clear();
  record_ops_.clear();
  kinds_.clear();
  written_by_.clear();
  local_to_segment_.clear();
  strings_.clear();
  for (uint32_t number = 0; number < live_.size(); ++number) encode_record(segment, live_[number], number);
}

void FragmentBuilder::encode_record(const Segment& segment, size_t record, uint32_t number) {
  const RecordEntry& entry = segment.records[record];
  const uint32_t end = segment.code_end(record);
  uint32_t at = entry.code;
  uint32_t touch = entry.touches;
  record_heads_.push_back(static_cast<uint32_t>(code_.size()));
  record_ops_.push_back(entry.op);
  code_.push_back(segment.code[at++]);
  code_.push_back(segment.code[at++]);
  while (at < end) {
    const uint32_t word = segment.code[at++];
    const Tag tag = wire::tag_of(word);
    if (tag == Tag::kString) {
      code_.push_back(wire::head(tag, static_cast<uint32_t>(strings_.size())));
      strings_.push_back(segment.strings[wire::payload_of(word)]);
      continue;
    }
    code_.push_back(word);
    if (tag == Tag::kTensor || tag == Tag::kFresh || tag == Tag::kReported) {
      const uint32_t touched = segment.touches[touch++];
      const uint32_t local = local_slot(touch_slot(touched));
      code_.push_back(local);
      if (touch_mode(touched) != Touch::kRead) written_by_[local] = number;
    } else if (tag == Tag::kResized) {
      code_.push_back(segment.code[at++]);
    } else if (tag == Tag::kBoolList) {
      for (uint32_t words = (wire::payload_of(word) + 31) / 32; words > 0; --words) code_.push_back(segment.code[at++]);
    }
  }
}

std::vector<std::byte> FragmentBuilder::serialize(const Segment& segment, const std::vector<int64_t>& numbers) {
  number_slots(segment);
  flatbuffers::FlatBufferBuilder builder(code_.size() * 4 + numbers.size() * 8 + 4096);
  std::unordered_map<const OpInfo*, uint32_t> local_ops;
  std::vector<flatbuffers::Offset<wire::OpDecl>> ops;
  std::vector<uint32_t> code = code_;
  for (size_t i = 0; i < record_ops_.size(); ++i) {
    const OpInfo* op = record_ops_[i];
    const auto [place, fresh] = local_ops.try_emplace(op, static_cast<uint32_t>(ops.size()));
    if (fresh) {
      const auto& name = op->op_name;
      ops.push_back(wire::CreateOpDecl(builder, builder.CreateString(name.name),
                                       builder.CreateString(name.overload_name),
                                       op->custom ? op->schema_hash : executor::schema_hash(op->handle.schema())));
    }
    code[record_heads_[i]] = place->second;
  }
  std::vector<flatbuffers::Offset<flatbuffers::String>> strings;
  for (const std::string& text : strings_) strings.push_back(builder.CreateString(text));
  const auto ops_offset = builder.CreateVector(ops);
  const auto kinds_offset = builder.CreateVector(kinds_);
  const auto strings_offset = builder.CreateVector(strings);
  const auto code_offset = builder.CreateVector(code);
  const auto params_offset = builder.CreateVector(numbers);
  builder.Finish(
      wire::CreateTemplate(builder, wire::kProgramFormat, ops_offset, kinds_offset, strings_offset, code_offset,
                           params_offset, static_cast<uint32_t>(record_ops_.size()), check_shapes_),
      "GNTP");
  const auto* bytes = reinterpret_cast<const std::byte*>(builder.GetBufferPointer());
  return {bytes, bytes + builder.GetSize()};
}

}  // namespace genie::frontend
