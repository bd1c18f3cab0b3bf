#include "src/protocol/invocation_coder.h"

#include <algorithm>
#include <utility>

#include "datapath/base/differences.h"
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

// All ids, then all versions in, versions out, sizes, indices, values.
void flatten(const InvocationNumbers& invocation, std::vector<uint64_t>& numbers) {
  const size_t slots = invocation.slots.size();
  numbers.resize(count_of(slots, invocation.param_index.size()));
  uint64_t* to = numbers.data();
  for (const executor::SlotBinding& slot : invocation.slots) {
    to[0] = slot.id;
    to[slots] = slot.version_in;
    to[2 * slots] = slot.version_out;
    to[3 * slots] = slot.size_bytes;
    ++to;
  }
  to = std::ranges::copy(invocation.param_index, numbers.data() + 4 * slots).out;
  std::ranges::copy(invocation.param_value, to);
}

}  // namespace

const std::vector<uint64_t>* InvocationCoder::expected_of(uint64_t template_id, uint32_t slots, uint32_t params) const {
  const auto found = last_.find(template_id);
  if (found == last_.end()) return nullptr;
  const Flat& flat = found->second.flat;
  return flat.slots == slots && flat.params == params ? &found->second.expected : nullptr;
}

void InvocationCoder::Last::expect_after(const std::vector<uint64_t>& now) {
  const uint64_t* const before = flat.numbers.data();
  for (size_t i = 0; i < now.size(); ++i) expected[i] = 2 * now[i] - before[i];
}

// By counts that both sides have alike, whatever memory their vectors took.
void InvocationCoder::remember(uint64_t template_id) {
  const auto cost = [](const Flat& flat) { return 2 * flat.numbers.size() + kNumbersPerEntry; };
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
      found = last_.emplace(template_id, Last{{}, {}, ages_.begin()}).first;
    } else {
      ages_.splice(ages_.begin(), ages_, found->second.age);
    }
    Last& last = found->second;
    Flat& flat = last.flat;
    if (flat.slots == scratch_.slots && flat.params == scratch_.params) {
      last.expect_after(numbers);
    } else {
      flat = {.slots = scratch_.slots, .params = scratch_.params, .numbers = {}};
      last.expected = std::vector<uint64_t>(numbers);  // no more room than they need
    }
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
  for (const auto& [id, last] : last_) {
    numbers += last.flat.numbers.capacity() + last.expected.capacity() + kNumbersPerEntry;
  }
  return numbers * sizeof(uint64_t);
}

// Its number, slots, params, then runs: how many numbers are the expected ones, how many are not, and these as differences from
// them. Without a last one each is the difference from the number before it.
void InvocationCoder::encode(uint64_t template_id, const InvocationNumbers& invocation, std::vector<std::byte>& out) {
  Flat& flat = scratch_;
  flat.slots = static_cast<uint32_t>(invocation.slots.size());
  flat.params = static_cast<uint32_t>(invocation.param_index.size());
  std::vector<uint64_t>& now = flat.numbers;
  flatten(invocation, now);
  put_varint(out, invocations_++);
  put_varint(out, flat.slots);
  put_varint(out, flat.params);
  if (const auto* const expected = expected_of(template_id, flat.slots, flat.params)) {
    const uint64_t* const likely = expected->data();
    size_t told = 0;  // of the numbers
    // Those from `begin` to `end` are not the expected ones, those since the last that was told are.
    const auto tell = [&](size_t begin, size_t end) {
      put_varint(out, begin - told);
      put_varint(out, end - begin);
      for (size_t i = begin; i < end; ++i) put_difference(out, likely[i], now[i]);
      told = end;
    };
    size_t begin = 0;
    size_t end = 0;
    for_each_difference(now.data(), likely, now.size(), [&](size_t at) {
      if (at != end) {
        if (begin != end) tell(begin, end);
        begin = at;
      }
      end = at + 1;
    });
    if (begin != end) tell(begin, end);
    if (told != now.size()) put_varint(out, now.size() - told);
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
  if (const auto* const expected = expected_of(template_id, flat.slots, flat.params)) {
    now = *expected;
    for (size_t at = 0; at < count;) {
      const uint64_t as_expected = reader.number();
      if (!reader.ok() || as_expected > count - at) return wrong();
      at += as_expected;
      if (at == count) break;
      const uint64_t others = reader.number();
      if (!reader.ok() || others == 0 || others > count - at) return wrong();
      for (const size_t end = at + others; at < end; ++at) now[at] = reader.difference_from(now[at]);
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
