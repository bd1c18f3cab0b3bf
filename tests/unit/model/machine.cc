#include "tests/unit/model/machine.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>

namespace genie::model {
namespace {

constexpr bool acquires(std::memory_order order) {
  return order == std::memory_order_acquire || order == std::memory_order_acq_rel || order == std::memory_order_seq_cst;
}
constexpr bool releases(std::memory_order order) {
  return order == std::memory_order_release || order == std::memory_order_acq_rel || order == std::memory_order_seq_cst;
}

const char* order_name(std::memory_order order) {
  switch (order) {
    case std::memory_order_relaxed: return "relaxed";
    case std::memory_order_acquire: return "acquire";
    case std::memory_order_release: return "release";
    default: return "acq_rel";
  }
}

// Two mixes of the same words, so that a collision is out of question for some millions of states.
class Digest {
 public:
  void add(uint64_t word) noexcept {
    a_ = (a_ ^ word) * 0x9E3779B97F4A7C15ULL;
    a_ ^= a_ >> 29;
    b_ = (b_ + word) * 0xC2B2AE3D27D4EB4FULL;
    b_ ^= b_ >> 32;
  }
  void add(const View& view) noexcept {
    static_assert(kMaxLocations == 8 && kMaxThreads == 3);
    uint64_t word = 0;
    for (const uint8_t position : view.newest) word = word << 8 | position;
    add(word);
    word = 0;
    for (const uint8_t epoch : view.clock) word = word << 8 | epoch;
    add(word);
  }
  std::pair<uint64_t, uint64_t> value() const noexcept { return {a_, b_}; }

 private:
  uint64_t a_ = 1;
  uint64_t b_ = 2;
};

}  // namespace

void View::join(const View& other) noexcept {
  for (size_t i = 0; i < newest.size(); ++i) newest[i] = std::max(newest[i], other.newest[i]);
  for (size_t i = 0; i < clock.size(); ++i) clock[i] = std::max(clock[i], other.clock[i]);
}

void Machine::clear() {
  for (auto& list : messages_) list.clear();
  location_count_ = 0;
  cells_.clear();
  threads_ = {};
  for (size_t thread = 0; thread < kMaxThreads; ++thread) threads_[thread].clock[thread] = 1;
  history_ = {};
  spurious_left_.fill(1);
  events_.clear();
}

uint32_t Machine::add_location(uint64_t value) {
  if (location_count_ == kMaxLocations) {
    std::fprintf(stderr, "more than %zu atomic locations in one model\n", kMaxLocations);
    std::abort();
  }
  messages_[location_count_].push_back({value, {}, false});
  return static_cast<uint32_t>(location_count_++);
}

uint32_t Machine::add_cell() {
  cells_.emplace_back();
  return static_cast<uint32_t>(cells_.size() - 1);
}

size_t Machine::choose_message(size_t thread, uint32_t location) {
  const size_t oldest = threads_[thread].newest[location];
  const size_t count = messages_[location].size() - oldest;
  // Newest first: the ordinary execution is the first one explored.
  return messages_[location].size() - 1 - (count == 1 ? 0 : choices_->choose(count));
}

void Machine::see(size_t thread, uint32_t location, size_t position, std::memory_order order) {
  View& view = threads_[thread];
  view.newest[location] = std::max(view.newest[location], static_cast<uint8_t>(position));
  if (acquires(order)) view.join(message_at(location, position).view);
}

uint64_t Machine::load(size_t thread, uint32_t location, std::memory_order order) {
  const size_t position = choose_message(thread, location);
  see(thread, location, position, order);
  const uint64_t value = message_at(location, position).value;
  note_result(thread, value);
  record(thread, "load", location, value, order, position + 1 == messages_[location].size());
  return value;
}

void Machine::store(size_t thread, uint32_t location, uint64_t value, std::memory_order order) {
  // Behind any message that the thread knows of, but not between a read-modify-write and what it read.
  std::array<size_t, 64> places{};
  size_t count = 0;
  for (size_t place = messages_[location].size(); place > threads_[thread].newest[location]; --place) {
    const bool splits_rmw = place < messages_[location].size() && message_at(location, place).by_rmw;
    if (!splits_rmw) places[count++] = place;
  }
  const size_t place = places[count == 1 ? 0 : choices_->choose(count)];
  record(thread, "store", location, value, order, place == messages_[location].size());
  insert(thread, location, place, value, order, nullptr);
}

bool Machine::compare_exchange(size_t thread, uint32_t location, uint64_t& expected, uint64_t desired, bool weak,
                               std::memory_order success, std::memory_order failure) {
  // What may be read: any message that is not too old, except that equal values must be replaceable.
  struct Outcome {
    size_t position;
    bool exchanged;
  };
  std::array<Outcome, 64> outcomes{};
  size_t count = 0;
  const auto& list = messages_[location];
  for (size_t position = list.size(); position-- > threads_[thread].newest[location];) {
    if (list[position].value != expected) {
      outcomes[count++] = {position, false};
    } else if (position + 1 == list.size() || !list[position + 1].by_rmw) {
      outcomes[count++] = {position, true};
    }
  }
  // A weak one may also fail for no reason: once per thread is enough to see what that does.
  const size_t newest = list.size() - 1;
  if (weak && spurious_left_[thread] > 0 && list[newest].value == expected) outcomes[count++] = {newest, false};

  const Outcome outcome = outcomes[count == 1 ? 0 : choices_->choose(count)];
  const uint64_t value = list[outcome.position].value;
  note_result(thread, value * 2 + (outcome.exchanged ? 1 : 0));
  if (!outcome.exchanged) {
    if (value == expected) --spurious_left_[thread];
    see(thread, location, outcome.position, failure);
    record(thread, "failed exchange", location, value, failure, outcome.position == newest);
    expected = value;
    return false;
  }
  see(thread, location, outcome.position, success);
  record(thread, "exchange", location, desired, success, outcome.position == newest);
  const View continued = message_at(location, outcome.position).view;
  insert(thread, location, outcome.position + 1, desired, success, &continued);
  return true;
}

// `continued` is the view of the message that a read-modify-write read.
void Machine::insert(size_t thread, uint32_t location, size_t position, uint64_t value, std::memory_order order,
                     const View* continued) {
  auto& list = messages_[location];
  const auto shift = [&](View& view) {
    if (view.newest[location] >= position) ++view.newest[location];
  };
  if (position < list.size()) {
    for (View& view : threads_) shift(view);
    for (size_t i = 0; i < location_count_; ++i) {
      for (Message& message : messages_[i]) shift(message.view);
    }
  }
  View& view = threads_[thread];
  view.newest[location] = static_cast<uint8_t>(position);
  Message message{value, {}, continued != nullptr};
  if (continued != nullptr) message.view = *continued;
  if (position < list.size() && continued != nullptr) shift(message.view);
  if (releases(order)) message.view.join(view);
  message.view.newest[location] = static_cast<uint8_t>(position);
  list.insert(list.begin() + static_cast<std::ptrdiff_t>(position), message);
  // What comes now did not happen before whoever acquires this message.
  ++view.clock[thread];
}

bool Machine::ordered_after(size_t thread, const std::array<uint8_t, kMaxThreads>& epochs) const {
  for (size_t other = 0; other < kMaxThreads; ++other) {
    if (other != thread && epochs[other] > threads_[thread].clock[other]) return false;
  }
  return true;
}

bool Machine::write_cell(size_t thread, uint32_t cell) {
  Cell& state = cells_[cell];
  const bool ordered = ordered_after(thread, state.written) && ordered_after(thread, state.read);
  state.written[thread] = threads_[thread].clock[thread];
  record(thread, "write cell", cell, 0, std::memory_order_relaxed, true);
  return ordered;
}

bool Machine::read_cell(size_t thread, uint32_t cell) {
  Cell& state = cells_[cell];
  const bool ordered = ordered_after(thread, state.written);
  state.read[thread] = threads_[thread].clock[thread];
  record(thread, "read cell", cell, 0, std::memory_order_relaxed, true);
  return ordered;
}

void Machine::hand_over(size_t from, size_t to) {
  threads_[to].join(threads_[from]);
  ++threads_[from].clock[from];
}

void Machine::note_result(size_t thread, uint64_t value) {
  history_[thread] = (history_[thread] ^ (value + 0x51ED270B)) * 0xD6E8FEB86659FD93ULL;
  history_[thread] ^= history_[thread] >> 32;
}

std::pair<uint64_t, uint64_t> Machine::digest() const {
  Digest digest;
  for (size_t thread = 0; thread < kMaxThreads; ++thread) {
    digest.add(history_[thread]);
    digest.add(threads_[thread]);
    digest.add(spurious_left_[thread]);
  }
  for (size_t location = 0; location < location_count_; ++location) {
    digest.add(messages_[location].size());
    for (const Message& message : messages_[location]) {
      digest.add(message.value * 2 + (message.by_rmw ? 1 : 0));
      digest.add(message.view);
    }
  }
  for (const Cell& cell : cells_) {
    uint64_t word = 0;
    for (const uint8_t epoch : cell.written) word = word << 8 | epoch;
    for (const uint8_t epoch : cell.read) word = word << 8 | epoch;
    digest.add(word);
  }
  return digest.value();
}

void Machine::record(size_t thread, const char* what, uint32_t where, uint64_t value, std::memory_order order,
                     bool newest) {
  if (tracing_) events_.push_back({thread, what, where, value, order, newest});
}

std::string Machine::trace() const {
  std::string text;
  for (const Event& event : events_) {
    char line[160];
    std::snprintf(line, sizeof(line), "  thread %zu: %s %u, value %llu, %s%s\n", event.thread, event.what, event.where,
                  static_cast<unsigned long long>(event.value), order_name(event.order),
                  event.newest ? "" : ", not the newest");
    text += line;
  }
  return text;
}

}  // namespace genie::model
