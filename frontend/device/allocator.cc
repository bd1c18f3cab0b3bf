#include "frontend/device/allocator.h"

#include "frontend/capture/registry.h"
#include "frontend/capture/session_core.h"

namespace genie::frontend {
namespace {

void drop_state(void* context) {
  auto* state = static_cast<StorageState*>(context);
  state->handle_gone.store(true, std::memory_order_release);
  state->release();
}

class RemoteAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t size_bytes) override {
    const int index = current_device();
    const c10::Device device(c10::DeviceType::PrivateUse1, static_cast<c10::DeviceIndex>(index));
    return lazy_data_ptr(core_of(index).new_storage(size_bytes), device);
  }
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void*, const void*, std::size_t) const override { refuse_data_access(nullptr); }
};

}  // namespace

c10::Allocator* remote_allocator() {
  static auto* const instance = new RemoteAllocator;
  return instance;
}

c10::DataPtr lazy_data_ptr(StorageState* state, c10::Device device) { return {nullptr, state, drop_state, device}; }

void refuse_data_access(c10::StorageImpl*) {
  TORCH_CHECK(false,
              "a tensor on remote_accelerator has no address in this process: its bytes are on a node. Call .cpu() (or "
              ".to(\"cpu\")) and use the pointer of the result");
}

}  // namespace genie::frontend
