// Kernels that are registered with PyTorch when the device is first used, not when the library is loaded.
//
// Purpose: registering them all takes tens of milliseconds, which a program that links the library and does not use it would pay at
//   its start. Only the fallback for operators of the device is there from the beginning; it registers the others and calls again.
// Thread-safety: register_kernels() may be called by any thread; one of them registers, the others wait. PyTorch's table is then
//   changed as by a library that is loaded while the program runs.
// Ownership: registered kernels stay until the process ends.
#pragma once

#include <torch/library.h>

#include <atomic>

namespace genie::frontend {

// One block of registrations; a static object, made by GENIE_LATE_KERNELS.
class LateKernels {
 public:
  using Register = void (*)(torch::Library& library);
  LateKernels(const char* name_space, c10::DispatchKey key, Register run, const char* file, uint32_t line) noexcept;

 private:
  friend void register_kernels();
  const char* name_space_;
  c10::DispatchKey key_;
  Register run_;
  const char* file_;
  uint32_t line_;
  LateKernels* next_ = nullptr;  // in the order of their definition
};

extern std::atomic<bool> kernels_registered_flag;
inline bool kernels_registered() noexcept { return kernels_registered_flag.load(std::memory_order_acquire); }
// All of them, once.
void register_kernels();

}  // namespace genie::frontend

// As TORCH_LIBRARY_IMPL(name_space, key, library) { ... }, but late.
#define GENIE_LATE_KERNELS(name_space, key, library) GENIE_LATE_KERNELS_UID(name_space, key, library, C10_UID)
#define GENIE_LATE_KERNELS_UID(name_space, key, library, uid)                                                      \
  static void C10_CONCATENATE(late_##key##_, uid)(torch::Library&);                                                \
  static ::genie::frontend::LateKernels C10_CONCATENATE(late_##key##_block_, uid)(                                 \
      C10_STRINGIZE(name_space), c10::DispatchKey::key, &C10_CONCATENATE(late_##key##_, uid), __FILE__, __LINE__); \
  void C10_CONCATENATE(late_##key##_, uid)(torch::Library & library)
