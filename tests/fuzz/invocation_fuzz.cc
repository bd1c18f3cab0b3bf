// Invocations from a client that means harm: a template, the storages it is to run over and its numbers, all from the input.
//
// Input: u32 bytes of the template | the template | u8 slots given | per slot {u8 id, u8 version} | i64 numbers, which replace
// the template's own from the first on. A slot that is not given gets what an honest client would name. The session holds
// kStorages storages of kBytes; its quota is small, so that operators end soon.
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <span>
#include <vector>

#include "src/executor/executor.h"
#include "src/protocol/program_format.h"
#include "template_generated.h"

namespace {

using namespace genie::executor;

constexpr uint64_t kStorages = 16;
constexpr uint64_t kFirstNewId = 1000;
constexpr size_t kBytes = 1024;
constexpr uint64_t kQuota = uint64_t{1} << 20;

class Input {
 public:
  Input(const uint8_t* data, size_t size) : rest_(reinterpret_cast<const std::byte*>(data), size) {}

  std::span<const std::byte> take(size_t size) {
    const auto taken = rest_.first(std::min(size, rest_.size()));
    rest_ = rest_.subspan(taken.size());
    return taken;
  }
  // Zero where the input has ended.
  template <typename T>
  T number() {
    T value{};
    const auto bytes = take(sizeof(T));
    std::memcpy(&value, bytes.data(), bytes.size());
    return value;
  }
  bool empty() const { return rest_.empty(); }

 private:
  std::span<const std::byte> rest_;
};

std::unique_ptr<Store> small_session() {
  auto store = Store::make({.quota_bytes = kQuota, .storages_max = 64, .generators_max = 4});
  for (uint64_t id = 1; id <= kStorages; ++id) {
    // Exactly so large, and zeros: valid as numbers and as indices alike.
    const auto bytes = std::make_shared<std::unique_ptr<std::byte[]>>(new std::byte[kBytes]());
    (void)store->adopt({id, 0}, {bytes->get(), kBytes, true, bytes});
  }
  return store;
}

// Of a template that compiled.
std::vector<SlotBinding> honest_slots(const std::vector<std::byte>& serialized) {
  using genie::wire::SlotKind;
  std::vector<SlotBinding> slots;
  uint64_t existing = 0;
  for (const uint8_t kind : *genie::wire::GetTemplate(serialized.data())->slot_kinds()) {
    if (kind == static_cast<uint8_t>(SlotKind::kExisting)) {
      slots.push_back({.id = 1 + existing++ % kStorages, .version_in = 0, .version_out = 1, .size_bytes = kBytes});
    } else if (kind == static_cast<uint8_t>(SlotKind::kCreated)) {
      slots.push_back({.id = kFirstNewId + slots.size(), .version_in = 0, .version_out = 1, .size_bytes = kBytes});
    }
  }
  return slots;
}

}  // namespace

// A sanitizer's own ends the process where there is not enough memory; ours throws, as everywhere else.
void* operator new(size_t size) {
  constexpr size_t kMost = size_t{1} << 32;
  void* const data = size > kMost ? nullptr : std::malloc(size == 0 ? 1 : size);
  if (data == nullptr) throw std::bad_alloc();
  return data;
}
void operator delete(void* data) noexcept { std::free(data); }
void operator delete(void* data, size_t) noexcept { std::free(data); }

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  use_placed_memory();  // as genie-node does; it brings the limit of an allocation
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input input(data, size);
  // FlatBuffers wants its bytes aligned.
  const auto given = input.take(input.number<uint32_t>());
  const std::vector<std::byte> serialized(given.begin(), given.end());
  const auto program = compile(serialized);
  if (!program.ok()) return 0;
  auto slots = honest_slots(serialized);
  if (slots.size() != bound_slot_count(**program)) std::abort();
  for (size_t i = input.number<uint8_t>(), slot = 0; i > 0 && slot < slots.size(); --i, ++slot) {
    slots[slot].id = input.number<uint8_t>();
    slots[slot].version_in = input.number<uint8_t>();
  }
  const auto defaults = default_params(**program);
  std::vector<int64_t> params(defaults.begin(), defaults.end());
  for (size_t i = 0; i < params.size() && !input.empty(); ++i) params[i] = input.number<int64_t>();
  const auto store = small_session();
  (void)store->invoke(**program, slots, params);
  return 0;
}
