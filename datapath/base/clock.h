// Monotonic time and deadlines.
//
// Thread-safety: all functions may be called from any thread. A Deadline is a value.
#pragma once

#include <chrono>
#include <cstdint>

namespace genie {

// Nanoseconds of CLOCK_MONOTONIC (vDSO: no system call).
inline uint64_t now_ns() noexcept {
  return static_cast<uint64_t>(
      std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
          .count());
}

// A point on the monotonic clock by which something must have ended.
class Deadline {
 public:
  static Deadline after_ms(uint64_t timeout_ms) noexcept { return Deadline(now_ns() + timeout_ms * 1'000'000); }
  static Deadline at_ns(uint64_t when_ns) noexcept { return Deadline(when_ns); }

  uint64_t when_ns() const noexcept { return when_ns_; }
  bool expired() const noexcept { return now_ns() >= when_ns_; }
  // Zero once expired.
  uint64_t left_ns() const noexcept {
    const uint64_t now = now_ns();
    return now >= when_ns_ ? 0 : when_ns_ - now;
  }

 private:
  explicit Deadline(uint64_t when_ns) noexcept : when_ns_(when_ns) {}
  uint64_t when_ns_;
};

}  // namespace genie
