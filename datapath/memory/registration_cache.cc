#include "datapath/memory/registration_cache.h"

#include <cassert>
#include <string>

namespace genie::datapath {
namespace {

uintptr_t address(const std::byte* data) noexcept { return reinterpret_cast<uintptr_t>(data); }

bool wraps_or_empty(const std::byte* data, size_t size) noexcept {
  return data == nullptr || size == 0 || address(data) + size < address(data);
}

}  // namespace

// The index of the first range whose end lies beyond `at`. Both outcomes of a comparison come as often, so that a branch
// would be mispredicted half of the time: the step is computed instead.
size_t RegistrationCache::first_end_beyond(uintptr_t at) const noexcept {
  const uintptr_t* first = ends_.data();
  size_t count = ends_.size();
  while (count > 1) {
    const size_t half = count / 2;
    first += half & (size_t{0} - static_cast<size_t>(first[half - 1] <= at));
    count -= half;
  }
  const auto index = static_cast<size_t>(first - ends_.data());
  return count == 1 && *first <= at ? index + 1 : index;
}

const Registration* RegistrationCache::find(const std::byte* data, size_t size) const noexcept {
  const uintptr_t begin = address(data);
  const auto covers = [&](size_t i) {
    return begin >= ranges_[i].begin && begin < ends_[i] && size <= ends_[i] - begin;
  };
  if (last_ < ranges_.size() && covers(last_)) return &ranges_[last_].entry->registration;
  const size_t at = first_end_beyond(begin);
  if (at >= ranges_.size() || !covers(at)) return nullptr;
  last_ = at;
  return &ranges_[at].entry->registration;
}

Result<const Registration*> RegistrationCache::get(MemoryKey key) const {
  const Entry* found = slots_.find(key.index, key.generation);
  if (found == nullptr) return slots_.why(key.index, key.generation);
  if (found->removed) return Errc::kStale;
  return &found->registration;
}

RegistrationCache::Entry* RegistrationCache::live(MemoryKey key) noexcept {
  Entry* found = slots_.find(key.index, key.generation);
  return found != nullptr && !found->removed ? found : nullptr;
}

Result<MemoryKey> RegistrationCache::add(std::byte* data, size_t size, MemoryKind kind, void* handle) {
  Result<MemoryKey> added = insert(data, size, kind, handle, false, 0);
  if (!added) return added;
  Entry* entry = live(*added);
  unlink(*entry);
  ++entry->registration.users;
  return added;
}

Result<MemoryKey> RegistrationCache::add_foreign(std::byte* data, size_t size, MemoryKind kind, void* handle,
                                                 uint64_t now_ns) {
  return insert(data, size, kind, handle, true, now_ns);
}

Result<MemoryKey> RegistrationCache::insert(std::byte* data, size_t size, MemoryKind kind, void* handle, bool foreign,
                                            uint64_t now_ns) {
  if (wraps_or_empty(data, size)) return Status(Errc::kInvalidArgument, "registration of an empty or wrapping range");
  const uintptr_t begin = address(data);
  if (const Registration* covering = find(data, size); covering != nullptr && covering->kind == kind) {
    return covering->key;
  }
  if (!clear_way(begin, begin + size)) {
    return Status(Errc::kAlreadyExists, "the range overlaps memory that is registered already");
  }
  const SlotId id = slots_.emplace();
  Entry* entry = slots_.find(id.index, id.generation);
  entry->registration = Registration{.data = data,
                                     .size = size,
                                     .kind = kind,
                                     .handle = handle,
                                     .key = MemoryKey{id.index, id.generation},
                                     .foreign = foreign};
  const auto at = static_cast<std::ptrdiff_t>(first_end_beyond(begin));
  ends_.insert(ends_.begin() + at, begin + size);
  ranges_.insert(ranges_.begin() + at, Range{begin, entry});
  if (foreign) {
    foreign_bytes_ += size;
    ++foreign_count_;
    link_newest(*entry, now_ns);
  }
  return entry->registration.key;
}

// Ends the foreign registrations that touch [begin, end). False, and nothing done, when another one touches it.
bool RegistrationCache::clear_way(uintptr_t begin, uintptr_t end) {
  const size_t first = first_end_beyond(begin);
  size_t last = first;
  for (; last < ranges_.size() && ranges_[last].begin < end; ++last) {
    const Registration& there = ranges_[last].entry->registration;
    if (!there.foreign || there.users > 0) return false;
  }
  while (last > first) retire(*ranges_[--last].entry);
  return true;
}

Status RegistrationCache::remove(MemoryKey key, uint64_t now_ns) {
  Entry* entry = live(key);
  if (entry == nullptr) return get(key).status();
  if (entry->registration.users == 0) return Errc::kNotFound;
  if (--entry->registration.users > 0) return {};
  if (entry->registration.foreign) {
    if (entry->registration.in_flight == 0) link_newest(*entry, now_ns);
  } else {
    retire(*entry);
  }
  return {};
}

Status RegistrationCache::make_room(const std::byte* data, size_t size, uint64_t now_ns) {
  if (wraps_or_empty(data, size)) return {Errc::kInvalidArgument, "registration of an empty or wrapping range"};
  if (!clear_way(address(data), address(data) + size)) {
    return {Errc::kAlreadyExists, "the range overlaps memory that is registered already"};
  }
  age(now_ns);
  // What has ended but waits for its last operation still occupies the device.
  size_t bytes = foreign_bytes_;
  size_t count = foreign_count_;
  for (size_t i = 0; i < ended_.size(); ++i) {
    if (!ended_.at(i)->registration.foreign) continue;
    bytes -= ended_.at(i)->registration.size;
    --count;
  }
  while (size > limits_.bytes_max || bytes > limits_.bytes_max - size || count >= limits_.count_max) {
    if (size > limits_.bytes_max || oldest_ == nullptr) {
      return {Errc::kQuotaExceeded, "no room to register " + std::to_string(size) + " bytes beside " +
                                        std::to_string(bytes) + " in use; the limits are " +
                                        std::to_string(limits_.bytes_max) + " bytes and " +
                                        std::to_string(limits_.count_max) + " registrations"};
    }
    bytes -= oldest_->registration.size;
    --count;
    retire(*oldest_);
  }
  return {};
}

void RegistrationCache::forget(const std::byte* data, size_t size) {
  if (wraps_or_empty(data, size)) return;
  const uintptr_t end = address(data) + size;
  size_t at = first_end_beyond(address(data));
  while (at < ranges_.size() && ranges_[at].begin < end) {
    Entry* entry = ranges_[at].entry;
    if (entry->registration.foreign) {
      retire(*entry);
    } else {
      ++at;
    }
  }
}

void RegistrationCache::age(uint64_t now_ns) {
  while (oldest_ != nullptr && now_ns >= oldest_->idle_since_ns &&
         now_ns - oldest_->idle_since_ns >= limits_.idle_ns_max) {
    retire(*oldest_);
  }
}

Status RegistrationCache::begin_use(MemoryKey key) {
  Entry* entry = live(key);
  if (entry == nullptr) return get(key).status();
  unlink(*entry);
  ++entry->registration.in_flight;
  return {};
}

void RegistrationCache::end_use(MemoryKey key, uint64_t now_ns) {
  Entry* entry = slots_.find(key.index, key.generation);
  assert(entry != nullptr && entry->registration.in_flight > 0);
  if (--entry->registration.in_flight > 0) return;
  if (entry->removed) {
    ended_.push(entry);
  } else if (entry->registration.foreign && entry->registration.users == 0) {
    link_newest(*entry, now_ns);
  }
}

bool RegistrationCache::next_ended(Registration& out) {
  if (ended_.empty()) return false;
  out = ended_.pop()->registration;
  if (out.foreign) {
    foreign_bytes_ -= out.size;
    --foreign_count_;
  }
  slots_.erase(out.key.index, out.key.generation);
  return true;
}

// Unfindable from now on; ended when no operation uses it.
void RegistrationCache::retire(Entry& entry) {
  unlink(entry);
  const auto at = static_cast<std::ptrdiff_t>(first_end_beyond(address(entry.registration.data)));
  assert(ranges_[static_cast<size_t>(at)].entry == &entry);
  ends_.erase(ends_.begin() + at);
  ranges_.erase(ranges_.begin() + at);
  entry.removed = true;
  if (entry.registration.in_flight == 0) ended_.push(&entry);
}

void RegistrationCache::link_newest(Entry& entry, uint64_t now_ns) noexcept {
  entry.idle = true;
  entry.idle_since_ns = now_ns;
  entry.newer = nullptr;
  entry.older = newest_;
  (newest_ != nullptr ? newest_->newer : oldest_) = &entry;
  newest_ = &entry;
}

void RegistrationCache::unlink(Entry& entry) noexcept {
  if (!entry.idle) return;
  entry.idle = false;
  (entry.older != nullptr ? entry.older->newer : oldest_) = entry.newer;
  (entry.newer != nullptr ? entry.newer->older : newest_) = entry.older;
}

}  // namespace genie::datapath
