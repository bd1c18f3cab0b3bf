#include "frontend/capture/template_cache.h"

#include <algorithm>
#include <utility>

namespace genie::frontend {

const KnownTemplate* TemplateCache::find(const TemplateKey& key) {
  const auto found = known_.find(key);
  if (found == known_.end()) return nullptr;
  found->second.last_used = ++clock_;
  return &found->second;
}

const std::vector<uint64_t>& TemplateCache::make_room(uint64_t bytes) {
  while (!known_.empty() && (known_.size() >= count_max_ || bytes > bytes_max_ - std::min(bytes_max_, bytes_)))
    forget_oldest();
  return to_forget_;
}

// Looks at all of them: a registration compiles a template on the node, which costs far more.
void TemplateCache::forget_oldest() {
  const auto oldest = std::min_element(known_.begin(), known_.end(), [](const auto& a, const auto& b) {
    return a.second.last_used < b.second.last_used;
  });
  to_forget_.push_back(oldest->second.id);
  bytes_ -= oldest->second.bytes;
  known_.erase(oldest);
  ++forgotten_;
}

const KnownTemplate* TemplateCache::insert(const TemplateKey& key, KnownTemplate known) {
  to_forget_.clear();
  bytes_ += known.bytes;
  known.last_used = ++clock_;
  return &known_.insert_or_assign(key, std::move(known)).first->second;
}

}  // namespace genie::frontend
