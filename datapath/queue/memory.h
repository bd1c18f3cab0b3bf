// StdMemory: the C++ memory model as the queues see it.
//
// Purpose: the queues name every shared access through a policy, so that the very code that ships is also what the
//   model explorer (tests/unit/model) runs with stale reads and weakened orders. A policy gives:
//     Atomic<T>            the atomic type, with std::atomic's load, store and compare_exchange;
//     Cell<T>              a plain (not atomic) shared value, touched only through read() and write();
//     order(site, order)   the memory order of one named site in the code. Here: the order as written;
//     will_write(address)  a hint without meaning to the model.
// Thread-safety, ownership: stateless.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace genie::queue {

// Two lines of 64 bytes: processors that prefetch the adjacent line would otherwise couple neighbours.
inline constexpr size_t kNoSharing = 128;
inline constexpr size_t kCacheLine = 64;

struct StdMemory {
  template <class T>
  using Atomic = std::atomic<T>;
  template <class T>
  using Cell = T;

  template <class Site>
  [[gnu::always_inline]] static constexpr std::memory_order order(Site /*site*/, std::memory_order order) noexcept {
    return order;
  }
  template <class T>
  [[gnu::always_inline]] static void write(T& cell, const T& value) noexcept {
    cell = value;
  }
  template <class T>
  [[gnu::always_inline]] static const T& read(const T& cell) noexcept {
    return cell;
  }
  // The line will be read and soon written: fetching it for writing at once saves the second trip that turns a shared
  // line into an exclusive one. (The compiler's own prefetch for writing is a plain one on baseline x86-64.)
  [[gnu::always_inline]] static void will_write(const void* line) noexcept {
#if defined(__x86_64__)
    asm volatile("prefetchw %0" : : "m"(*static_cast<const char*>(line)));
#else
    __builtin_prefetch(line, 1);
#endif
  }
};

// A wrong answer here would make a ring in shared memory meaningless.
static_assert(std::atomic<uint64_t>::is_always_lock_free);
static_assert(sizeof(std::atomic<uint64_t>) == sizeof(uint64_t));

}  // namespace genie::queue
