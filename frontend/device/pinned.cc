#include "frontend/device/pinned.h"

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

namespace genie::frontend {
namespace {

constexpr size_t kAlignment = 64;  // as libtorch's own allocator: kernels choose their path by it

struct Blocks {
  std::mutex mutex;
  std::map<uintptr_t, size_t> by_address;
};

Blocks& blocks() {
  static auto* const instance = new Blocks;  // leaked: tensors may outlive static destruction
  return *instance;
}

void release(void* data) {
  {
    const std::lock_guard<std::mutex> guard(blocks().mutex);
    blocks().by_address.erase(reinterpret_cast<uintptr_t>(data));
  }
  std::free(data);
}

class PinnedAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t size_bytes) override {
    if (size_bytes == 0) return {nullptr, c10::Device(c10::DeviceType::CPU)};
    void* data = std::aligned_alloc(kAlignment, (size_bytes + kAlignment - 1) / kAlignment * kAlignment);
    TORCH_CHECK(data != nullptr, "out of memory: ", size_bytes, " bytes of pinned memory wanted");
    const std::lock_guard<std::mutex> guard(blocks().mutex);
    blocks().by_address.emplace(reinterpret_cast<uintptr_t>(data), size_bytes);
    return {data, data, release, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return release; }
  void copy_data(void* to, const void* from, std::size_t size_bytes) const override {
    std::memcpy(to, from, size_bytes);
  }
};

}  // namespace

c10::Allocator* pinned_allocator() {
  static auto* const instance = new PinnedAllocator;
  return instance;
}

bool is_pinned_address(const void* address) {
  const auto wanted = reinterpret_cast<uintptr_t>(address);
  const std::lock_guard<std::mutex> guard(blocks().mutex);
  auto after = blocks().by_address.upper_bound(wanted);
  if (after == blocks().by_address.begin()) return false;
  --after;
  return wanted - after->first < after->second;
}

}  // namespace genie::frontend
