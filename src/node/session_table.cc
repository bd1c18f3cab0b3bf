#include "src/node/session_table.h"

#include <utility>

namespace genie::node {

void SessionTable::add(std::shared_ptr<RemoteSession> session) {
  const std::lock_guard lock(mutex_);
  std::string id = session->options().id;
  entries_.emplace(std::move(id), Entry{.session = std::move(session)});
  ++unclaimed_;
}

SessionTable::Entry SessionTable::find(std::string_view id) const {
  const std::lock_guard lock(mutex_);
  const auto found = entries_.find(std::string(id));
  return found == entries_.end() ? Entry() : found->second;
}

std::shared_ptr<RemoteSession> SessionTable::claim(std::string_view token, DataPlane& plane) {
  const std::lock_guard lock(mutex_);
  for (auto& [id, entry] : entries_) {
    // 32 random bytes, good for one connection: a timing that tells of a prefix is of no use.
    if (entry.plane != nullptr || entry.session->options().token != token) continue;
    entry.plane = &plane;
    --unclaimed_;
    return entry.session;
  }
  return nullptr;
}

void SessionTable::remove(const std::string& id) {
  const std::lock_guard lock(mutex_);
  entries_.erase(id);
}

std::vector<std::shared_ptr<RemoteSession>> SessionTable::take_late(uint64_t now_ns, bool all) {
  std::vector<std::shared_ptr<RemoteSession>> late;
  const std::lock_guard lock(mutex_);
  if (unclaimed_ == 0) return late;
  for (auto each = entries_.begin(); each != entries_.end();) {
    const Entry& entry = each->second;
    if (entry.plane == nullptr && (all || now_ns >= entry.session->options().attach_deadline_ns)) {
      late.push_back(entry.session);
      --unclaimed_;
      each = entries_.erase(each);
    } else {
      ++each;
    }
  }
  return late;
}

void SessionTable::clear() {
  const std::lock_guard lock(mutex_);
  entries_.clear();
  unclaimed_ = 0;
}

std::shared_ptr<RemoteSession> SessionTable::take_unclaimed(std::string_view id) {
  const std::lock_guard lock(mutex_);
  const auto found = entries_.find(std::string(id));
  if (found == entries_.end() || found->second.plane != nullptr) return nullptr;
  std::shared_ptr<RemoteSession> session = std::move(found->second.session);
  entries_.erase(found);
  --unclaimed_;
  return session;
}

}  // namespace genie::node
