// A stand-in for CUDA's driver (libcuda.so.1) on machines that have no GPU, for tests of what Genie does with GPU memory.
//
// Purpose: "GPU memory" is a range of addresses that neither the CPU nor a device can touch, as with a real GPU without peer
//   access; only the driver's copies reach its bytes. A program that links this library has it found by dlopen().
// Thread-safety: any thread. Ownership: whoever allocates frees.
#pragma once

#include <cstddef>

#pragma GCC visibility push(default)
namespace genie::test {

// Page-aligned, zeroed. Throws std::system_error.
std::byte* allocate_gpu_memory(size_t size);
void free_gpu_memory(std::byte* memory) noexcept;

// Whether cuMemGetHandleForAddressRange() gives descriptors (of files that hold the bytes) or fails. Default: it fails.
void export_gpu_memory(bool exports) noexcept;
// How many of the next copies fail with "launch failure".
void fail_gpu_copies(int count) noexcept;
// Contexts and streams that were not given back.
int gpu_handles_open() noexcept;

}  // namespace genie::test
#pragma GCC visibility pop
