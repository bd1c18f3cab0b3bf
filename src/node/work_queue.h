// WorkQueue: hands work to one device worker, which sleeps when there is none.
//
// Purpose: the lock-free queue of datapath/queue with a sleeping consumer and pushers that can wait for room. A lock is
//   taken only to fall asleep, to wake a sleeper, and for urgent work.
// Thread-safety: any thread may push; one thread pops.
// Ownership: the queue owns what was pushed; work that was not taken stays with its pusher.
//
// Sleeping: a sleeper announces itself (a read-modify-write of its counter), then looks again, then sleeps under the
//   mutex; whoever changes the queue does so first, then reads the announcement by a read-modify-write of the same
//   counter. Of two such accesses one comes second and sees what was before the first.
#pragma once

#include <algorithm>
#include <atomic>
#include <bit>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <utility>

#include "datapath/base/clock.h"
#include "datapath/base/pause.h"
#include "datapath/base/spin_budget.h"
#include "datapath/queue/mpmc_queue.h"

namespace genie::node {

template <typename T>
class WorkQueue {
 public:
  // `capacity` is rounded up to a power of two. `never_sleeps`: an idle consumer spins until there is work.
  WorkQueue(size_t capacity, bool never_sleeps)
      : queue_(std::bit_ceil(std::max<uint64_t>(capacity, 2))), never_sleeps_(never_sleeps) {}
  ~WorkQueue() {
    T* left = nullptr;
    while (queue_.try_pop(left)) delete left;
  }
  WorkQueue(const WorkQueue&) = delete;
  WorkQueue& operator=(const WorkQueue&) = delete;

  // False when full or closed; `item` is then untouched.
  bool try_push(std::unique_ptr<T>& item) {
    if (closed_.load(std::memory_order_acquire) || !queue_.try_push(item.get())) return false;
    (void)item.release();
    wake(consumer_sleeps_);
    return true;
  }

  // Like try_push, and waits for room.
  bool push(std::unique_ptr<T>& item, Deadline deadline) {
    if (try_push(item)) return true;
    std::unique_lock lock(mutex_);
    pushers_sleep_.fetch_add(1, std::memory_order_acq_rel);
    bool pushed = false;
    while (!(pushed = queue_.try_push(item.get())) && !closed_.load(std::memory_order_acquire) && !deadline.expired()) {
      signal_.wait_for(lock, std::chrono::nanoseconds(deadline.left_ns()));
    }
    pushers_sleep_.fetch_sub(1, std::memory_order_relaxed);
    if (!pushed) return false;
    (void)item.release();
    signal_.notify_all();
    return true;
  }

  // Never waits for room and is popped before everything else; for work whose number is bounded elsewhere. False when
  // closed.
  bool push_urgent(std::unique_ptr<T>& item) {
    const std::lock_guard lock(mutex_);
    if (closed_.load(std::memory_order_acquire)) return false;
    urgent_.push_back(std::move(item));
    has_urgent_.store(true, std::memory_order_release);
    signal_.notify_all();
    return true;
  }

  // Blocks until there is an item or the queue was closed; null once it is closed and empty.
  std::unique_ptr<T> pop() {
    if (std::unique_ptr<T> item = try_pop()) return item;
    const uint64_t began_ns = now_ns();
    std::unique_ptr<T> item = spin_pop(began_ns);
    if (item == nullptr) item = sleep_pop();
    spin_.learn(now_ns() - began_ns);
    return item;
  }

  // By the popping thread, or by anybody once that has ended.
  std::unique_ptr<T> try_pop() {
    if (has_urgent_.load(std::memory_order_acquire)) {
      const std::lock_guard lock(mutex_);
      if (std::unique_ptr<T> item = pop_urgent_locked()) return item;
    }
    T* item = nullptr;
    if (!queue_.try_pop(item)) return nullptr;
    wake(pushers_sleep_);
    return std::unique_ptr<T>(item);
  }

  // What was pushed before is still popped. A push that raced with close() may leave an item behind: see try_pop().
  void close() {
    const std::lock_guard lock(mutex_);
    closed_.store(true, std::memory_order_release);
    signal_.notify_all();
  }

 private:
  std::unique_ptr<T> pop_urgent_locked() {
    if (urgent_.empty()) return nullptr;
    std::unique_ptr<T> item = std::move(urgent_.front());
    urgent_.pop_front();
    has_urgent_.store(!urgent_.empty(), std::memory_order_release);
    return item;
  }

  // Null when it is time to sleep, or when the queue was closed and is empty.
  std::unique_ptr<T> spin_pop(uint64_t began_ns) {
    for (;;) {
      if (std::unique_ptr<T> item = try_pop()) return item;
      if (closed_.load(std::memory_order_acquire)) return try_pop();
      if (never_sleeps_) {
        cpu_pause();
        continue;
      }
      const uint64_t spun_ns = now_ns() - began_ns;
      if (spun_ns >= spin_.ns()) return nullptr;
      spin_step(spun_ns);
    }
  }

  std::unique_ptr<T> sleep_pop() {
    std::unique_lock lock(mutex_);
    consumer_sleeps_.fetch_add(1, std::memory_order_acq_rel);
    std::unique_ptr<T> item;
    T* raw = nullptr;
    while ((item = pop_urgent_locked()) == nullptr) {
      if (queue_.try_pop(raw)) {
        item.reset(raw);
        break;
      }
      if (closed_.load(std::memory_order_acquire)) break;
      signal_.wait(lock);
    }
    consumer_sleeps_.fetch_sub(1, std::memory_order_relaxed);
    signal_.notify_all();  // perhaps for a pusher that waits for room
    return item;
  }

  void wake(std::atomic<int>& sleepers) {
    if (sleepers.fetch_add(0, std::memory_order_acq_rel) == 0) return;
    { const std::lock_guard lock(mutex_); }
    signal_.notify_all();
  }

  queue::MpmcQueue<T*> queue_;
  const bool never_sleeps_;
  SpinBudget spin_;  // the consumer's
  std::atomic<int> consumer_sleeps_{0};
  std::atomic<int> pushers_sleep_{0};
  std::atomic<bool> closed_{false};
  std::atomic<bool> has_urgent_{false};
  std::mutex mutex_;
  std::condition_variable signal_;
  std::deque<std::unique_ptr<T>> urgent_;
};

}  // namespace genie::node
