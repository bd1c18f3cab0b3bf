#include "src/executor/sharing.h"

#include <utility>

namespace genie::executor {
namespace {

using Holder = std::shared_ptr<const void>;

void drop_holder(void* context) { delete static_cast<Holder*>(context); }

const Holder* holder_of(const c10::Storage& storage) noexcept {
  return storage ? storage.data_ptr().cast_context<Holder>(&drop_holder) : nullptr;
}

}  // namespace

c10::DataPtr pointer_to(HostMemory memory) {
  auto* const owner = new std::shared_ptr<void>(std::move(memory.owner));
  return {memory.data, owner, [](void* context) { delete static_cast<std::shared_ptr<void>*>(context); },
          c10::Device(c10::DeviceType::CPU)};
}

std::shared_ptr<const void> share_memory(c10::Storage& storage) {
  if (const Holder* held = holder_of(storage)) return *held;
  c10::StorageImpl& impl = *storage.unsafeGetStorageImpl();
  c10::DataPtr& pointer = impl._mutable_data_ptr_no_checks();
  void* const data = pointer.get();
  const c10::Device device = pointer.device();
  auto* const held = new Holder(std::make_shared<c10::DataPtr>(std::move(pointer)));
  impl.set_data_ptr_noswap(c10::DataPtr(data, held, &drop_holder, device));
  return *held;
}

bool is_shared(const c10::Storage& storage) noexcept {
  const Holder* held = holder_of(storage);
  return held != nullptr && !is_only_holder(*held);
}

}  // namespace genie::executor
