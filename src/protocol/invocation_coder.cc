#include "src/protocol/invocation_coder.h"

#include <utility>

#include "src/protocol/session_messages.h"
#include "src/protocol/varint.h"

namespace genie::wire {
namespace {

// Whoever decodes makes so many numbers of them; each took at least a byte once, when it was new.
constexpr uint64_t kMostSlots = kMaxMessageBytes / 32;
constexpr uint64_t kMostParams = kMaxMessageBytes / 16;

// What it takes to remember one with no numbers at all, at least.
constexpr size_t kNumbersPerEntry = 20;

size_t count_of(uint64_t slots, uint64_t params) { return slots * 4 + params * 2; }

template <typename Get>
void append(std::vector<uint64_t>& numbers, const std::vector<executor::SlotBinding>& slots, const Get& get) {
  for (const executor::SlotBinding& slot : slots) numbers.push_back(get(slot));
}

}  // namespace

const InvocationCoder::Flat* InvocationCoder::last_of(uint64_t template_id, uint32_t slots, uint32_t params) const {
  const auto found = last_.find(template_id);
  if (found == last_.end()) return nullptr;
  const Flat& flat = found->second.flat;
  return flat.slots == slots && flat.params == params ? &flat : nullptr;
}

// By counts that both sides have alike, whatever memory their vectors took.
void InvocationCoder::remember(uint64_t template_id) {
  const auto cost = [](const Flat& flat) { return flat.numbers.size() + kNumbersPerEntry; };
  const std::vector<uint64_t>& numbers = scratch_.numbers;
  const bool keeps = numbers.size() <= largest();
  auto found = last_.find(template_id);
  if (found != last_.end()) {
    remembered_ -= cost(found->second.flat);
    if (!keeps) {
      ages_.erase(found->second.age);
      last_.erase(found);
    }
  }
  if (keeps) {
    if (found == last_.end()) {
      ages_.push_front(template_id);
      found = last_.emplace(template_id, Last{{}, ages_.begin()}).first;
    } else {
      ages_.splice(ages_.begin(), ages_, found->second.age);
    }
    Flat& flat = found->second.flat;
    flat.slots = scratch_.slots;
    flat.params = scratch_.params;
    if (flat.numbers.capacity() > 2 * numbers.size()) flat.numbers = {};
    flat.numbers.assign(numbers.begin(), numbers.end());
    remembered_ += cost(flat);
  }
  while (remembered_ > most_) {
    const auto oldest = last_.find(ages_.back());
    remembered_ -= cost(oldest->second.flat);
    last_.erase(oldest);
    ages_.pop_back();
  }
  if (scratch_.numbers.capacity() > 2 * largest()) scratch_.numbers = {};
}

size_t InvocationCoder::bytes_held() const noexcept {
  size_t numbers = scratch_.numbers.capacity();
  for (const auto& [id, last] : last_) numbers += last.flat.numbers.capacity() + kNumbersPerEntry;
  return numbers * sizeof(uint64_t);
}

// Its number, slots, params, then runs: how many numbers are the last invocation's, how many are not, and these as differences
// from it. Without a last one each is the difference from the number before it.
void InvocationCoder::encode(uint64_t template_id, const InvocationNumbers& invocation, std::vector<std::byte>& out) {
  Flat& flat = scratch_;
  flat.slots = static_cast<uint32_t>(invocation.slots.size());
  flat.params = static_cast<uint32_t>(invocation.param_index.size());
  std::vector<uint64_t>& now = flat.numbers;
  now.clear();
  now.reserve(count_of(flat.slots, flat.params));
  append(now, invocation.slots, [](const executor::SlotBinding& slot) { return slot.id; });
  append(now, invocation.slots, [](const executor::SlotBinding& slot) { return slot.version_in; });
  append(now, invocation.slots, [](const executor::SlotBinding& slot) { return slot.version_out; });
  append(now, invocation.slots, [](const executor::SlotBinding& slot) { return slot.size_bytes; });
  now.insert(now.end(), invocation.param_index.begin(), invocation.param_index.end());
  for (const int64_t value : invocation.param_value) now.push_back(static_cast<uint64_t>(value));
  put_varint(out, invocations_++);
  put_varint(out, flat.slots);
  put_varint(out, flat.params);
  if (const Flat* const last = last_of(template_id, flat.slots, flat.params)) {
    const std::vector<uint64_t>& before = last->numbers;
    for (size_t at = 0; at < now.size();) {
      const size_t begin = at;
      while (at < now.size() && now[at] == before[at]) ++at;
      put_varint(out, at - begin);
      if (at == now.size()) break;
      const size_t changed = at;
      while (at < now.size() && now[at] != before[at]) ++at;
      put_varint(out, at - changed);
      for (size_t i = changed; i < at; ++i) put_difference(out, before[i], now[i]);
    }
  } else {
    uint64_t previous = 0;
    for (const uint64_t number : now) put_difference(out, std::exchange(previous, number), number);
  }
  remember(template_id);
}

Result<InvocationNumbers> InvocationCoder::decode(uint64_t template_id, std::span<const std::byte> bytes) {
  const auto wrong = [] { return Status(Errc::kProtocol, "an invocation that cannot be read"); };
  VarintReader reader(bytes);
  if (reader.number() != invocations_ || !reader.ok()) return wrong();
  const uint64_t slots = reader.number();
  const uint64_t params = reader.number();
  if (!reader.ok() || slots > kMostSlots || params > kMostParams) return wrong();
  Flat& flat = scratch_;
  flat.slots = static_cast<uint32_t>(slots);
  flat.params = static_cast<uint32_t>(params);
  std::vector<uint64_t>& now = flat.numbers;
  const size_t count = count_of(slots, params);
  if (const Flat* const last = last_of(template_id, flat.slots, flat.params)) {
    now = last->numbers;
    for (size_t at = 0; at < count;) {
      const uint64_t same = reader.number();
      if (!reader.ok() || same > count - at) return wrong();
      at += same;
      if (at == count) break;
      const uint64_t changed = reader.number();
      if (!reader.ok() || changed == 0 || changed > count - at) return wrong();
      for (const size_t end = at + changed; at < end; ++at) now[at] = reader.difference_from(now[at]);
    }
  } else {
    if (count > reader.bytes_left()) return wrong();
    now.resize(count);
    uint64_t previous = 0;
    for (uint64_t& number : now) number = previous = reader.difference_from(previous);
  }
  if (!reader.ok() || !reader.at_end()) return wrong();

  InvocationNumbers invocation;
  const uint64_t* const ids = now.data();
  const uint64_t* const indices = ids + 4 * slots;
  invocation.slots.resize(slots);
  for (size_t i = 0; i < slots; ++i) {
    const uint64_t version_in = ids[slots + i];
    const uint64_t version_out = ids[2 * slots + i];
    if (version_in > UINT32_MAX || version_out > UINT32_MAX) return wrong();
    invocation.slots[i] = {.id = ids[i],
                           .version_in = static_cast<uint32_t>(version_in),
                           .version_out = static_cast<uint32_t>(version_out),
                           .size_bytes = ids[3 * slots + i]};
  }
  invocation.param_index.resize(params);
  invocation.param_value.resize(params);
  for (size_t i = 0; i < params; ++i) {
    if (indices[i] > UINT32_MAX) return wrong();
    invocation.param_index[i] = static_cast<uint32_t>(indices[i]);
    invocation.param_value[i] = static_cast<int64_t>(indices[params + i]);
  }
  ++invocations_;
  remember(template_id);
  return invocation;
}

}  // namespace genie::wire
