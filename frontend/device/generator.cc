#include "frontend/device/generator.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <array>
#include <atomic>
#include <memory>
#include <mutex>
#include <random>
#include <utility>

#include "frontend/capture/copies.h"
#include "frontend/capture/recorder.h"
#include "frontend/capture/registry.h"
#include "frontend/capture/session_core.h"

namespace genie::frontend {
namespace {

// A generator is a storage on the node: seeding and reading its state are records in program order, and it ends there some time
// after it has gone here.
class RemoteGenerator final : public c10::GeneratorImpl {
 public:
  RemoteGenerator(int device_index, bool own)
      : GeneratorImpl(c10::Device(c10::DeviceType::PrivateUse1, static_cast<c10::DeviceIndex>(device_index)),
                      c10::DispatchKeySet(c10::DispatchKey::PrivateUse1)),
        own_(own) {}

  // A device's default one is numbered by the device's place in its session.
  GeneratorUse use() {
    SessionCore& core = core_of(device().index());
    if (!own_) return {.number = static_cast<uint32_t>(device().index() - core.first_device())};
    const std::lock_guard<std::mutex> guard(state_mutex_);
    if (state_.get() == nullptr || state_->session != &core) state_ = StateRef::adopt(core.new_generator());
    return {.number = static_cast<uint32_t>(state_->id - session::kGeneratorIds), .state = state_.get()};
  }

  // Seeding a device that no session serves waits for the session: torch::manual_seed() seeds every index there is.
  void set_current_seed(uint64_t seed) override {
    seed_ = seed;
    const SessionCore* core = find_core(device().index());
    const bool waits = core == nullptr || core->closed();
    let_wait({}, waits);
    if (!waits) record_seed();
  }
  void set_offset(uint64_t) override { TORCH_CHECK(false, "generators of remote_accelerator have no offset"); }
  uint64_t get_offset() const override { TORCH_CHECK(false, "generators of remote_accelerator have no offset"); }
  uint64_t current_seed() const override { return seed_; }
  uint64_t seed() override {
    std::random_device device;
    set_current_seed((uint64_t{device()} << 32) | device());
    return seed_;
  }
  void set_state(const c10::TensorImpl& state) override {
    const at::Tensor bytes(c10::intrusive_ptr<c10::TensorImpl>::reclaim_copy(const_cast<c10::TensorImpl*>(&state)));
    static OpInfo& op = op_info("genie::set_generator_state", "");
    let_wait({}, false);
    torch::jit::Stack stack{at::Generator(self()), bytes};
    record_call(op, stack);
  }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override {
    const_cast<RemoteGenerator*>(this)->apply_waiting();
    static OpInfo& op = op_info("genie::generator_state", "");
    torch::jit::Stack stack{at::Generator(self())};
    record_call(op, stack);
    return fetch(stack.back().toTensor()).getIntrusivePtr();
  }

  void apply_waiting() {
    if (!waits_.load(std::memory_order_acquire)) return;
    at::Tensor state;
    {
      const std::lock_guard<std::mutex> guard(state_mutex_);
      if (!waits_.exchange(false)) return;
      state = std::exchange(waiting_state_, {});
    }
    try {
      if (state.defined()) {
        set_state(*state.unsafeGetTensorImpl());
      } else {
        record_seed();
      }
    } catch (...) {
      let_wait(std::move(state), true);
      throw;
    }
  }

 private:
  c10::intrusive_ptr<c10::GeneratorImpl> self() const {
    return c10::intrusive_ptr<c10::GeneratorImpl>::reclaim_copy(const_cast<RemoteGenerator*>(this));
  }
  // What the first use is to begin from: a state, or the seed.
  void let_wait(at::Tensor state, bool waits) {
    const std::lock_guard<std::mutex> guard(state_mutex_);
    waiting_state_ = std::move(state);
    waits_.store(waits, std::memory_order_release);
  }
  void record_seed() {
    static OpInfo& op = op_info("genie::manual_seed", "");
    torch::jit::Stack stack{at::Generator(self()), static_cast<int64_t>(seed_)};
    record_call(op, stack);
  }
  GeneratorImpl* clone_impl() const override {
    auto made = std::make_unique<RemoteGenerator>(device().index(), /*own=*/true);
    made->seed_ = seed_;
    // Whoever asked takes the first reference, and setting the state takes one: it waits until there is another.
    made->let_wait(at::Tensor(get_state()), true);
    return made.release();
  }

  const bool own_;
  std::mutex state_mutex_;
  StateRef state_;
  uint64_t seed_ = c10::detail::getNonDeterministicRandom();
  std::atomic<bool> waits_{false};  // for its first use: this state, or else the seed
  at::Tensor waiting_state_;
};

std::array<at::Generator, kMaxDevices>& defaults() {
  static auto* const instance = [] {
    auto* made = new std::array<at::Generator, kMaxDevices>;
    for (int i = 0; i < kMaxDevices; ++i)
      (*made)[static_cast<size_t>(i)] = at::make_generator<RemoteGenerator>(i, /*own=*/false);
    return made;
  }();
  return *instance;
}

}  // namespace

const at::Generator& default_generator(int device_index) {
  const int index = device_index < 0 ? current_device() : device_index;
  TORCH_CHECK(index < kMaxDevices, "remote_accelerator:", index, " does not exist: this process has ", kMaxDevices,
              " indices");
  return defaults()[static_cast<size_t>(index)];
}

at::Generator new_generator(int device_index) {
  return at::make_generator<RemoteGenerator>(device_index < 0 ? current_device() : device_index, /*own=*/true);
}

GeneratorUse use_generator(const c10::IValue& value, int device_index) {
  const at::Generator generator =
      value.isNone() || !value.toGenerator().defined() ? default_generator(device_index) : value.toGenerator();
  auto* impl = static_cast<RemoteGenerator*>(generator.unsafeGetGeneratorImpl());
  impl->apply_waiting();
  return impl->use();
}

}  // namespace genie::frontend
