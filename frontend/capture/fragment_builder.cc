#include "frontend/capture/fragment_builder.h"

#include <xxhash.h>

#include <algorithm>
#include <unordered_map>

#include "genie/shapes.h"
#include "src/executor/schema_hash.h"
#include "src/protocol/program_format.h"
#include "template_generated.h"

namespace genie::frontend {

using wire::SlotKind;
using wire::Tag;

bool FragmentBuilder::build(const Segment& segment) {
  mark_live(segment);
  bound_.clear();
  local_of_.assign(segment.slots.size(), kUnused);
  if (live_.empty()) return false;
  encode(segment);
  return true;
}

// Backwards over the records: a record lives when somebody can see what it writes. A definition satisfies the need for what
// came before it; an in-place write does not, it may cover a part only.
void FragmentBuilder::mark_live(const Segment& segment) {
  const size_t slot_count = segment.slots.size();
  visible_.assign(slot_count, false);
  for (size_t i = 0; i < slot_count; ++i)
    visible_[i] = !segment.slots[i].state->handle_gone.load(std::memory_order_acquire);
  needed_ = visible_;
  live_.clear();
  pruned_ = 0;
  for (size_t i = segment.records.size(); i-- > 0;) {
    const uint32_t begin = segment.records[i].touches;
    const uint32_t end = segment.touches_end(i);
    bool alive = segment.records[i].op->side_effect;
    for (uint32_t t = begin; t < end && !alive; ++t) {
      alive = touch_mode(segment.touches[t]) != Touch::kRead && needed_[touch_slot(segment.touches[t])];
    }
    if (!alive) {
      ++pruned_;
      continue;
    }
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

uint32_t FragmentBuilder::local_slot(const Segment& segment, uint32_t segment_slot) {
  uint32_t& local = local_of_[segment_slot];
  if (local != kUnused) return local;
  local = static_cast<uint32_t>(kinds_.size());
  const SlotKind kind = segment.slots[segment_slot].existed ? SlotKind::kExisting
                        : visible_[segment_slot]            ? SlotKind::kCreated
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
  params_.clear();
  kinds_.clear();
  written_by_.clear();
  local_to_segment_.clear();
  strings_.clear();
  for (uint32_t number = 0; number < live_.size(); ++number) encode_record(segment, live_[number], number);
  for (uint32_t local = 0; local < kinds_.size(); ++local) {
    if (kinds_[local] == static_cast<uint8_t>(SlotKind::kTransient)) continue;
    bound_.push_back(Bound{local_to_segment_[local], kinds_[local] == static_cast<uint8_t>(SlotKind::kCreated),
                           written_by_[local] != kUnused, written_by_[local]});
  }
  // Everything that tells two templates apart; numbers are parameters and do not.
  check_shapes_ = is_checking_shapes();
  uint64_t seed = XXH3_64bits_withSeed(kinds_.data(), kinds_.size(), check_shapes_ ? 1 : 0);
  for (const std::string& text : strings_) seed = XXH3_64bits_withSeed(text.data(), text.size() + 1, seed);
  const XXH128_hash_t hash = XXH3_128bits_withSeed(code_.data(), code_.size() * sizeof(uint32_t), seed);
  key_ = TemplateKey{hash.low64, hash.high64};
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
      const uint32_t local = local_slot(segment, touch_slot(touched));
      code_.push_back(local);
      if (touch_mode(touched) != Touch::kRead) written_by_[local] = number;
    } else if (tag == Tag::kResized) {
      code_.push_back(segment.code[at++]);
    } else if (tag == Tag::kBoolList) {
      for (uint32_t words = (wire::payload_of(word) + 31) / 32; words > 0; --words) code_.push_back(segment.code[at++]);
    }
  }
  params_.insert(params_.end(), segment.params.begin() + entry.params,
                 segment.params.begin() + segment.params_end(record));
}

std::vector<std::byte> FragmentBuilder::serialize(const Segment& segment) const {
  flatbuffers::FlatBufferBuilder builder(code_.size() * 4 + params_.size() * 8 + 4096);
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
  const auto params_offset = builder.CreateVector(params_);
  builder.Finish(
      wire::CreateTemplate(builder, wire::kProgramFormat, ops_offset, kinds_offset, strings_offset, code_offset,
                           params_offset, static_cast<uint32_t>(record_ops_.size()), check_shapes_),
      "GNTP");
  const auto* bytes = reinterpret_cast<const std::byte*>(builder.GetBufferPointer());
  return {bytes, bytes + builder.GetSize()};
}

}  // namespace genie::frontend
