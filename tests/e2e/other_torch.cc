// Loaded ahead of libtorch: claims to be libtorch 2.12.1.
#include <cstdint>

extern "C" [[gnu::visibility("default")]] uint64_t aoti_torch_abi_version() {
  return (uint64_t{2} << 56) | (uint64_t{12} << 48) | (uint64_t{1} << 40);
}
