// ContentStore: a node's large uploads by their content, for sessions of one identity to share.
//
// Purpose: bytes that nobody can write any more are entered under their size and a sketch, and hashed by a thread of low
//   priority, so that neither the poller nor a device's worker waits for that. A session that brings the same bytes
//   again gets a hold on those that are there.
// What sharing rests on: a *hold* is a right to read. Bytes change only after claim(), which succeeds for the only hold there is.
//   Invariants: (1) holds are made here alone, under the mutex, of blobs that are in the index; (2) claim() finds under the same
//   mutex that its hold is the only one, takes the blob out of the index, and waits until the hasher has let go of it: nobody
//   can get a further hold, nobody reads; (3) a hold lives as long as anything that reads through it: it belongs to the owner of
//   the storage's memory, so that a fetch in flight keeps it. Hence whoever has claimed may write, and what others did with
//   the bytes happened before (the mutex orders it). (4) The store has no hold itself: a blob leaves with its last one.
// Thread-safety: any thread.
// Ownership: a hold keeps its memory and the store; the index keeps neither.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <thread>
#include <unordered_map>
#include <vector>

#include "src/executor/executor.h"
#include "src/node/upload_region.h"
#include "src/protocol/content.h"

namespace genie::node {

struct ContentKey {
  uint64_t identity = 0;  // nothing is shared between two
  uint64_t size = 0;
  uint64_t sketch = 0;
  friend bool operator==(const ContentKey&, const ContentKey&) = default;
};

// Hears of what find() could not tell yet.
class ContentWaiter {
 public:
  virtual ~ContentWaiter() = default;
  // Once, on any thread: asking again may tell more. Must not block.
  virtual void on_settled(uint64_t question) noexcept = 0;
};

class ContentStore;

class ContentHold final : public executor::Content {
 public:
  ~ContentHold() override;
  bool claim() noexcept override;
  std::span<std::byte> bytes() const noexcept;
  const ContentKey& key() const noexcept;
  const wire::ContentHash& hash() const noexcept;
  const std::shared_ptr<const RegionMemory>& memory() const noexcept;

 private:
  friend class ContentStore;
  struct Blob;
  ContentHold(std::shared_ptr<ContentStore> store, std::shared_ptr<Blob> blob)
      : store_(std::move(store)), blob_(std::move(blob)) {}

  const std::shared_ptr<ContentStore> store_;
  const std::shared_ptr<Blob> blob_;
};

class ContentStore : public std::enable_shared_from_this<ContentStore> {
 public:
  static constexpr size_t kMaxBlobs = 65536;
  static constexpr size_t kMaxOfKey = 16;  // of one sketch: more are not entered
  // So many a session is told of at once: at most four of the sketch that it asks for, and what was entered behind them.
  static constexpr size_t kMaxFound = 64;
  static constexpr size_t kMaxAlike = 4;

  struct Counters {
    uint64_t blobs = 0;  // now
    uint64_t bytes = 0;  // of these
    uint64_t hashed_bytes = 0;
    uint64_t known_bytes = 0;  // that were not sent again
  };

  static std::shared_ptr<ContentStore> make() { return std::shared_ptr<ContentStore>(new ContentStore()); }
  ~ContentStore();

  // Enters bytes that lie in `memory` and that only claim() leads to. Null: there is no room, or they are too few
  // to be worth it.
  std::shared_ptr<ContentHold> add(uint64_t identity, std::span<std::byte> bytes,
                                   std::shared_ptr<const RegionMemory> memory);

  struct Found {
    bool settled = true;  // false: `waiter` will hear when to ask again
    // Hashed: what was asked for, no two with one hash, then what was entered behind the first of it.
    std::vector<std::shared_ptr<ContentHold>> holds;
  };
  Found find(const ContentKey& key, const std::weak_ptr<ContentWaiter>& waiter, uint64_t question);

  Counters counters() const;
  // A session had these without sending them.
  void count_known(uint64_t bytes) noexcept { known_bytes_.fetch_add(bytes, std::memory_order_relaxed); }
  // Nothing is hashed any more, and nobody is told of anything. Idempotent.
  void stop();

 private:
  friend class ContentHold;
  using Blob = ContentHold::Blob;
  struct KeyHash {
    size_t operator()(const ContentKey& key) const noexcept {
      return key.sketch ^ (key.identity * 0x9E3779B97F4A7C15U);
    }
  };
  struct Waiting {
    std::weak_ptr<ContentWaiter> waiter;
    uint64_t question = 0;
  };
  using Settled = std::vector<Waiting>;

  ContentStore() = default;
  std::shared_ptr<ContentHold> make_hold_locked(std::shared_ptr<Blob> blob);
  bool claim(Blob& blob) noexcept;
  void drop(Blob& blob) noexcept;
  void take_out_locked(Blob& blob) noexcept;
  Settled settle_locked(const ContentKey& key);
  static void tell(const Settled& settled) noexcept;
  void run();
  bool hash(Blob& blob, wire::ContentHasher& hasher) const;

  mutable std::mutex mutex_;
  std::condition_variable work_;
  std::condition_variable let_go_;
  std::unordered_multimap<ContentKey, std::shared_ptr<Blob>, KeyHash> index_;
  std::map<uint64_t, Blob*> order_;  // those of the index, as they came
  uint64_t next_number_ = 1;
  std::unordered_multimap<ContentKey, Waiting, KeyHash> waiting_;
  std::deque<std::weak_ptr<Blob>> queue_;  // to be hashed; those that were taken out meanwhile too
  const Blob* reading_ = nullptr;
  uint64_t bytes_ = 0;
  uint64_t hashed_bytes_ = 0;
  std::atomic<uint64_t> known_bytes_{0};
  std::atomic<bool> stopping_{false};
  std::thread hasher_;  // from the first blob on
};

// What sessions of one identity see of it.
struct ContentAccess {
  std::shared_ptr<ContentStore> store;  // null: nothing is shared
  uint64_t identity = 0;

  std::shared_ptr<ContentHold> add(std::span<std::byte> bytes, std::shared_ptr<const RegionMemory> memory) const {
    return store == nullptr ? nullptr : store->add(identity, bytes, std::move(memory));
  }
  ContentStore::Found find(uint64_t size, uint64_t sketch, const std::weak_ptr<ContentWaiter>& waiter,
                           uint64_t question) const {
    return store->find({.identity = identity, .size = size, .sketch = sketch}, waiter, question);
  }
};

}  // namespace genie::node
