// Refuses at load a libtorch other than the one this library was built for: capture relies on internals whose layout changes between
// releases, so going on would mean wrong numbers or a crash later.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/version.h>

#include <cstdio>
#include <cstdlib>

namespace genie::frontend {
namespace {

#ifndef GENIE_BUILT_FOR_TORCH
#define GENIE_BUILT_FOR_TORCH                                                      \
  ((uint64_t{TORCH_VERSION_MAJOR} << 56) | (uint64_t{TORCH_VERSION_MINOR} << 48) | \
   (uint64_t{TORCH_VERSION_PATCH} << 40))
#endif

struct Version {
  explicit Version(uint64_t packed)
      : major(static_cast<unsigned>(packed >> 56)),
        minor(static_cast<unsigned>((packed >> 48) & 0xFF)),
        patch(static_cast<unsigned>((packed >> 40) & 0xFF)) {}
  bool operator==(const Version&) const = default;
  unsigned major;
  unsigned minor;
  unsigned patch;
};

// Before anything of ours registers itself with libtorch.
[[gnu::constructor(150)]] void check_libtorch() {
  const Version built(GENIE_BUILT_FOR_TORCH);
  const Version loaded(aoti_torch_abi_version());
  if (built == loaded) return;
  std::fprintf(stderr,
               "genie: this library was built for libtorch %u.%u.%u, but %u.%u.%u is loaded. Install torch==%u.%u.%u, "
               "or rebuild "
               "Genie with GENIE_LIBTORCH pointing at the libtorch that you use.\n",
               built.major, built.minor, built.patch, loaded.major, loaded.minor, loaded.patch, built.major,
               built.minor, built.patch);
  std::_Exit(78);  // EX_CONFIG
}

}  // namespace
}  // namespace genie::frontend
