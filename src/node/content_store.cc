#include "src/node/content_store.h"

#include <sys/resource.h>

#include <algorithm>
#include <utility>

namespace genie::node {
namespace {

constexpr int kNiceness = 10;  // of the hasher: operators go first

}  // namespace

// Guarded by the store's mutex, but for what is constant and `unwanted`.
struct ContentHold::Blob : std::enable_shared_from_this<ContentHold::Blob> {
  enum class State : uint8_t { kQueued, kHashing, kHashed };

  Blob(const ContentKey& its_key, std::span<std::byte> its_bytes, std::shared_ptr<const RegionMemory> its_memory)
      : key(its_key), bytes(its_bytes), memory(std::move(its_memory)) {}

  const ContentKey key;
  uint64_t number = 0;  // in the order in which they came
  const std::span<std::byte> bytes;
  std::shared_ptr<const RegionMemory> memory;  // until the last hold goes
  size_t holds = 0;
  bool listed = true;  // in the index
  State state = State::kQueued;
  wire::ContentHash hash;             // constant once others have a hold
  std::atomic<bool> unwanted{false};  // the hasher may as well stop
};

ContentHold::~ContentHold() { store_->drop(*blob_); }
bool ContentHold::claim() noexcept { return store_->claim(*blob_); }
std::span<std::byte> ContentHold::bytes() const noexcept { return blob_->bytes; }
const ContentKey& ContentHold::key() const noexcept { return blob_->key; }
const wire::ContentHash& ContentHold::hash() const noexcept { return blob_->hash; }
const std::shared_ptr<const RegionMemory>& ContentHold::memory() const noexcept { return blob_->memory; }

ContentStore::~ContentStore() { stop(); }

std::shared_ptr<ContentHold> ContentStore::make_hold_locked(std::shared_ptr<Blob> blob) {
  Blob& held = *blob;
  std::shared_ptr<ContentHold> hold(new ContentHold(shared_from_this(), std::move(blob)));
  ++held.holds;
  return hold;
}

std::shared_ptr<ContentHold> ContentStore::add(uint64_t identity, std::span<std::byte> bytes,
                                               std::shared_ptr<const RegionMemory> memory) {
  if (bytes.size() < wire::kMinContentBytes) return nullptr;
  const ContentKey key{.identity = identity, .size = bytes.size(), .sketch = wire::sketch_of(bytes)};
  const std::lock_guard lock(mutex_);
  const bool full = index_.size() >= kMaxBlobs || index_.count(key) >= kMaxOfKey;
  if (full || stopping_.load(std::memory_order_relaxed)) return nullptr;
  auto blob = std::make_shared<Blob>(key, bytes, std::move(memory));
  std::shared_ptr<ContentHold> hold = make_hold_locked(blob);
  index_.emplace(key, blob);
  blob->number = next_number_++;
  order_.emplace(blob->number, blob.get());
  bytes_ += bytes.size();
  queue_.push_back(blob);
  if (!hasher_.joinable()) hasher_ = std::thread([this] { run(); });
  work_.notify_one();
  return hold;
}

ContentStore::Found ContentStore::find(const ContentKey& key, const std::weak_ptr<ContentWaiter>& waiter,
                                       uint64_t question) {
  Found found;
  const std::lock_guard lock(mutex_);
  const auto [begin, end] = index_.equal_range(key);
  for (auto each = begin; each != end; ++each) {
    if (each->second->state == Blob::State::kHashed) continue;
    found.settled = false;
    if (each->second->state == Blob::State::kQueued) queue_.push_front(each->second);  // somebody waits for it
  }
  if (!found.settled && !stopping_.load(std::memory_order_relaxed)) {
    waiting_.emplace(key, Waiting{waiter, question});
    return found;
  }
  found.settled = true;
  uint64_t first = 0;
  for (auto each = begin; each != end && found.holds.size() < kMaxAlike; ++each) {
    const Blob& blob = *each->second;
    const auto is_same = [&](const std::shared_ptr<ContentHold>& hold) { return hold->hash() == blob.hash; };
    if (blob.state != Blob::State::kHashed || std::ranges::any_of(found.holds, is_same)) continue;
    if (found.holds.empty()) first = blob.number;
    found.holds.push_back(make_hold_locked(each->second));
  }
  if (found.holds.empty()) return found;
  // A model's weights come in one order: who asks for the first of them is spared asking for the next.
  size_t looked_at = 0;
  for (auto next = order_.upper_bound(first); next != order_.end() && found.holds.size() < kMaxFound; ++next) {
    if (++looked_at > 2 * kMaxFound) break;
    Blob& blob = *next->second;
    if (blob.key.identity != key.identity || blob.key == key || blob.state != Blob::State::kHashed) continue;
    found.holds.push_back(make_hold_locked(blob.shared_from_this()));
  }
  return found;
}

ContentStore::Counters ContentStore::counters() const {
  const std::lock_guard lock(mutex_);
  return {.blobs = index_.size(),
          .bytes = bytes_,
          .hashed_bytes = hashed_bytes_,
          .known_bytes = known_bytes_.load(std::memory_order_relaxed)};
}

// -- Holds -------------------------------------------------------------------------------------------------------------------

void ContentStore::take_out_locked(Blob& blob) noexcept {
  if (!blob.listed) return;
  blob.listed = false;
  blob.unwanted.store(true, std::memory_order_relaxed);
  bytes_ -= blob.bytes.size();
  order_.erase(blob.number);
  const auto [begin, end] = index_.equal_range(blob.key);
  index_.erase(std::find_if(begin, end, [&](const auto& entry) { return entry.second.get() == &blob; }));
}

bool ContentStore::claim(Blob& blob) noexcept {
  Settled settled;
  {
    std::unique_lock lock(mutex_);
    if (blob.holds != 1) return false;
    take_out_locked(blob);
    let_go_.wait(lock, [&] { return reading_ != &blob; });  // at most one piece
    settled = settle_locked(blob.key);
  }
  tell(settled);
  return true;
}

void ContentStore::drop(Blob& blob) noexcept {
  Settled settled;
  std::shared_ptr<const RegionMemory> memory;  // goes without the mutex
  {
    const std::lock_guard lock(mutex_);
    if (--blob.holds != 0) return;
    take_out_locked(blob);
    memory = std::move(blob.memory);
    settled = settle_locked(blob.key);
  }
  tell(settled);
}

// Those who wait for blobs of this key, if nothing is left to be waited for.
ContentStore::Settled ContentStore::settle_locked(const ContentKey& key) {
  const auto [first_waiting, last_waiting] = waiting_.equal_range(key);
  if (first_waiting == last_waiting) return {};
  const auto [begin, end] = index_.equal_range(key);
  const auto is_open = [](const auto& entry) { return entry.second->state != Blob::State::kHashed; };
  if (std::any_of(begin, end, is_open)) return {};
  Settled settled;
  for (auto each = first_waiting; each != last_waiting; ++each) settled.push_back(std::move(each->second));
  waiting_.erase(first_waiting, last_waiting);
  return settled;
}

void ContentStore::tell(const Settled& settled) noexcept {
  for (const Waiting& waiting : settled) {
    if (const std::shared_ptr<ContentWaiter> waiter = waiting.waiter.lock()) waiter->on_settled(waiting.question);
  }
}

// -- The hasher --------------------------------------------------------------------------------------------------------------

void ContentStore::run() {
  (void)::setpriority(PRIO_PROCESS, 0, kNiceness);  // of this thread alone
  wire::ContentHasher hasher;
  std::unique_lock lock(mutex_);
  for (;;) {
    work_.wait(lock, [this] { return !queue_.empty() || stopping_.load(std::memory_order_relaxed); });
    if (stopping_.load(std::memory_order_relaxed)) return;
    std::shared_ptr<Blob> blob = queue_.front().lock();
    queue_.pop_front();
    if (blob == nullptr || !blob->listed || blob->state != Blob::State::kQueued) continue;
    blob->state = Blob::State::kHashing;
    reading_ = blob.get();
    std::shared_ptr<const RegionMemory> memory = blob->memory;  // its last hold may go meanwhile
    lock.unlock();
    const bool whole = hash(*blob, hasher);
    lock.lock();
    reading_ = nullptr;
    if (whole) {
      blob->hash = hasher.hash();
      blob->state = Blob::State::kHashed;
      hashed_bytes_ += blob->bytes.size();
    }
    const Settled settled = settle_locked(blob->key);
    lock.unlock();
    let_go_.notify_all();
    tell(settled);
    memory.reset();
    blob.reset();
    lock.lock();
  }
}

bool ContentStore::hash(Blob& blob, wire::ContentHasher& hasher) const {
  hasher.begin();
  for (std::span<const std::byte> rest = blob.bytes; !rest.empty();) {
    if (blob.unwanted.load(std::memory_order_relaxed) || stopping_.load(std::memory_order_relaxed)) return false;
    const size_t size = std::min(rest.size(), wire::ContentHasher::kPieceBytes);
    hasher.add(rest.first(size));
    rest = rest.subspan(size);
  }
  return true;
}

void ContentStore::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_.store(true, std::memory_order_relaxed);
    waiting_.clear();
  }
  work_.notify_all();
  if (hasher_.joinable()) hasher_.join();
}

}  // namespace genie::node
