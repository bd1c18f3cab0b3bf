// What a loop does that waits for another thread. Any thread.
#pragma once

#include <cstdint>
#include <thread>

namespace genie {

// Tells the core that this is a spin loop.
inline void cpu_pause() noexcept {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// One step of a loop that has spun for `spun_ns` and will soon sleep. After a moment it offers the core to others: where
// threads outnumber cores, the one that is waited for may need this very core.
inline void spin_step(uint64_t spun_ns) noexcept {
  constexpr uint64_t kPauseNs = 2'000;
  if (spun_ns < kPauseNs) {
    cpu_pause();
  } else {
    std::this_thread::yield();
  }
}

}  // namespace genie
