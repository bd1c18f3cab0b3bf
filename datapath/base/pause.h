// cpu_pause(): tells the core that this is a spin loop. Any thread.
#pragma once

namespace genie {

inline void cpu_pause() noexcept {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace genie
