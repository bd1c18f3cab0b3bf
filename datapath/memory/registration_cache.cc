#include "datapath/memory/registration_cache.h"

#include <cassert>

namespace genie::datapath {

size_t RegistrationCache::lower(uintptr_t at) const noexcept {
  size_t first = 0;
  size_t count = ranges_.size();
  while (count > 0) {
    const size_t half = count / 2;
    const bool right = ranges_[first + half].end <= at;
    first = right ? first + half + 1 : first;
    count = right ? count - half - 1 : half;
  }
  return first;
}

Result<MemoryKey> RegistrationCache::add(std::byte* data, size_t size, MemoryKind kind, void* handle) {
  const auto begin = reinterpret_cast<uintptr_t>(data);
  if (data == nullptr || size == 0 || begin + size < begin) {
    return Status(Errc::kInvalidArgument, "registration of an empty or wrapping range");
  }
  const size_t at = lower(begin);
  if (at < ranges_.size() && ranges_[at].begin < begin + size) {
    const Range& range = ranges_[at];
    if (range.begin > begin || range.end < begin + size || range.registration->kind != kind) {
      return Status(Errc::kAlreadyExists, "the range overlaps memory that is registered already");
    }
    Registration* shared = slots_.find(range.registration->key.index, range.registration->key.generation);
    ++shared->users;
    return shared->key;
  }
  const SlotId id = slots_.emplace();
  Registration* added = slots_.find(id.index, id.generation);
  *added = Registration{data, size, kind, handle, MemoryKey{id.index, id.generation}, 1};
  ranges_.insert(ranges_.begin() + static_cast<std::ptrdiff_t>(at), Range{begin, begin + size, added});
  return added->key;
}

const Registration* RegistrationCache::find(const std::byte* data, size_t size) const noexcept {
  const auto begin = reinterpret_cast<uintptr_t>(data);
  const auto covers = [&](const Range& range) {
    return begin >= range.begin && begin < range.end && size <= range.end - begin;
  };
  if (last_ < ranges_.size() && covers(ranges_[last_])) return ranges_[last_].registration;
  const size_t at = lower(begin);
  if (at >= ranges_.size() || !covers(ranges_[at])) return nullptr;
  last_ = at;
  return ranges_[at].registration;
}

Result<const Registration*> RegistrationCache::get(MemoryKey key) const {
  const Registration* found = slots_.find(key.index, key.generation);
  if (found == nullptr) return slots_.why(key.index, key.generation);
  return found;
}

Result<Registration> RegistrationCache::remove(MemoryKey key) {
  Registration* found = slots_.find(key.index, key.generation);
  if (found == nullptr) return slots_.why(key.index, key.generation);
  if (--found->users > 0) return *found;
  const Registration gone = *found;
  const size_t at = lower(reinterpret_cast<uintptr_t>(gone.data));
  assert(at < ranges_.size() && ranges_[at].registration == found);
  ranges_.erase(ranges_.begin() + static_cast<std::ptrdiff_t>(at));
  slots_.erase(key.index, key.generation);
  return gone;
}

}  // namespace genie::datapath
