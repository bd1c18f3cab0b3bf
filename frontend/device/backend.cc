// The device `remote_accelerator` as PyTorch sees it: name, guard, hooks.
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/StorageImpl.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include "frontend/capture/op_info.h"
#include "frontend/capture/recorder.h"
#include "frontend/capture/registry.h"
#include "frontend/device/allocator.h"
#include "frontend/device/backend.h"
#include "frontend/device/generator.h"
#include "frontend/device/pinned.h"

namespace genie::frontend {
namespace {

constexpr c10::DeviceType kRemote = c10::DeviceType::PrivateUse1;

// One stream per device: order is kept by storage versions, not by streams of the device.
struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return kRemote; }
  c10::Device exchangeDevice(c10::Device device) const override {
    const c10::Device before = getDevice();
    setDevice(device);
    return before;
  }
  c10::Device getDevice() const override { return {kRemote, static_cast<c10::DeviceIndex>(current_device())}; }
  void setDevice(c10::Device device) const override {
    if (device.has_index()) set_current_device(device.index());
  }
  void uncheckedSetDevice(c10::Device device) const noexcept override {
    if (device.has_index()) set_current_device(device.index());
  }
  c10::Stream getStream(c10::Device device) const override { return c10::Stream(c10::Stream::DEFAULT, device); }
  c10::Stream getDefaultStream(c10::Device device) const override { return c10::Stream(c10::Stream::DEFAULT, device); }
  c10::Stream getNewStream(c10::Device device, int) const override { return c10::Stream(c10::Stream::DEFAULT, device); }
  c10::Stream getStreamFromGlobalPool(c10::Device device, bool) const override {
    return c10::Stream(c10::Stream::DEFAULT, device);
  }
  c10::Stream exchangeStream(c10::Stream stream) const override { return stream; }
  c10::DeviceIndex deviceCount() const noexcept override { return kMaxDevices; }
  // Events order streams of a device; with one stream there is nothing to wait for.
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeEvent(void*) const override {}
  void synchronizeStream(const c10::Stream& stream) const override { synchronizeDevice(stream.device_index()); }
  void synchronizeDevice(const c10::DeviceIndex index) const override {
    if (SessionCore* core = find_core(index)) core->synchronize();
  }
};

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex index) const override { return find_core(index) != nullptr; }
  c10::DeviceIndex deviceCount() const override { return kMaxDevices; }
  void setCurrentDevice(c10::DeviceIndex index) const override { set_current_device(index); }
  c10::DeviceIndex getCurrentDevice() const override { return static_cast<c10::DeviceIndex>(current_device()); }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex index) const override {
    const int before = current_device();
    set_current_device(index);
    return static_cast<c10::DeviceIndex>(before);
  }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex index) const override { return exchangeDevice(index); }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex index) const override { return default_generator(index); }
  at::Generator getNewGenerator(c10::DeviceIndex index) const override { return new_generator(index); }
  bool isPinnedPtr(const void* address) const override { return is_pinned_address(address); }
  c10::Allocator* getPinnedMemoryAllocator() const override { return pinned_allocator(); }
  at::Device getDeviceFromPtr(void*) const override {
    refuse_data_access(nullptr);
    return at::Device(kRemote);
  }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t new_bytes) const override {
    resize_storage(storage, new_bytes);
  }
};

// Before ordinary static objects: a program may have a static torch::Device("remote_accelerator:0").
[[gnu::constructor(200)]] void register_backend() {
  c10::register_privateuse1_backend("remote_accelerator");
  at::RegisterPrivateUse1HooksInterface(new Hooks);
  c10::SetAllocator(kRemote, remote_allocator());
}

C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard)

}  // namespace

void resize_storage(const c10::Storage& storage, size_t new_bytes) {
  auto* impl = storage.unsafeGetStorageImpl();
  StorageState* state = StorageState::of(impl);
  if (state->defined) {
    // The node has (or will have) the old bytes: grow there, in program order.
    static OpInfo& op = op_info("genie::resize_storage", "");
    auto whole = at::detail::make_tensor<c10::TensorImpl>(
        c10::Storage(storage), c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), caffe2::TypeMeta::Make<uint8_t>());
    whole.unsafeGetTensorImpl()->set_sizes_contiguous({static_cast<int64_t>(impl->nbytes())});
    torch::jit::Stack stack{whole, static_cast<int64_t>(new_bytes)};
    record_call(op, stack);
  }
  impl->set_nbytes(new_bytes);
  state->size_bytes = new_bytes;
}

}  // namespace genie::frontend
