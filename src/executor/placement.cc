#include "src/executor/placement.h"

#include <c10/core/CPUAllocator.h>
#include <malloc.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <new>
#include <unordered_map>
#include <utility>

namespace genie::executor {
namespace {

thread_local PlacementScope* current_scope = nullptr;
thread_local AllocationLimit* current_limit = nullptr;

// Who owns memory that was placed. Kept aside, since a DataPtr's context must be the memory itself: kernels that allocate without
// an owner (raw_allocate(), as mkldnn's convolutions do) insist on it and give back by address.
class PlacedMemory {
 public:
  c10::DataPtr add(HostMemory memory) {
    void* const data = memory.data;
    const std::lock_guard<std::mutex> lock(mutex_);
    owners_.insert_or_assign(data, std::move(memory.owner));
    return {data, data, [](void* placed) { instance().remove(placed); }, c10::Device(c10::DeviceType::CPU)};
  }
  // False when it was not placed.
  bool remove(void* data) {
    std::shared_ptr<void> owner;  // let go of after the lock
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = owners_.find(data);
    if (found == owners_.end()) return false;
    owner = std::move(found->second);
    owners_.erase(found);
    return true;
  }
  static PlacedMemory& instance() {
    static auto* const leaked = new PlacedMemory;  // tensors may outlive static destruction
    return *leaked;
  }

 private:
  std::mutex mutex_;
  std::unordered_map<void*, std::shared_ptr<void>> owners_;
};

c10::Allocator* ordinary_allocator = nullptr;

void delete_raw(void* data) {
  if (data != nullptr && !PlacedMemory::instance().remove(data)) ordinary_allocator->raw_deallocate(data);
}

}  // namespace

// Everything but placed memory is libtorch's own allocator's business, deleters included.
class PlacingAllocator final : public c10::Allocator {
 public:
  explicit PlacingAllocator(c10::Allocator& ordinary) : ordinary_(ordinary) {}

  c10::DataPtr allocate(size_t size) override {
    AllocationLimit* const limit = current_limit;
    if (limit != nullptr && size > limit->left_bytes_) [[unlikely]] {
      limit->refused_bytes_ = size;
      throw std::bad_alloc();
    }
    PlacementScope* const scope = current_scope;
    if (scope != nullptr && size == scope->size_) {
      HostMemory memory = scope->birthplace_.place(scope->storage_, size);
      if (memory.data != nullptr) {
        if (limit != nullptr) limit->left_bytes_ -= size;
        return PlacedMemory::instance().add(std::move(memory));
      }
    }
    c10::DataPtr memory = ordinary_.allocate(size);
    if (limit != nullptr && memory.get() != nullptr) {
      limit->left_bytes_ -= std::min<uint64_t>(limit->left_bytes_, malloc_usable_size(memory.get()));
      (void)memory.compare_exchange_deleter(ordinary_.raw_deleter(), &PlacingAllocator::free_counted);
    }
    return memory;
  }
  c10::DeleterFnPtr raw_deleter() const override { return &delete_raw; }
  void copy_data(void* to, const void* from, std::size_t size) const override { ordinary_.copy_data(to, from, size); }

 private:
  // Of memory that was counted. Perhaps by a record that is over: then it makes room for the present one.
  static void free_counted(void* data) {
    if (AllocationLimit* const limit = current_limit; limit != nullptr) {
      limit->left_bytes_ += std::min<uint64_t>(UINT64_MAX - limit->left_bytes_, malloc_usable_size(data));
    }
    ordinary_allocator->raw_deallocate(data);
  }

  c10::Allocator& ordinary_;
};

PlacementScope::PlacementScope(Birthplace& birthplace, uint64_t storage, size_t size) noexcept
    : birthplace_(birthplace), storage_(storage), size_(size) {
  current_scope = this;
}

PlacementScope::~PlacementScope() { current_scope = nullptr; }

AllocationLimit::AllocationLimit(uint64_t bytes) noexcept : left_bytes_(bytes) { current_limit = this; }

AllocationLimit::~AllocationLimit() { current_limit = nullptr; }

void AllocationLimit::set(uint64_t bytes) noexcept {
  left_bytes_ = bytes;
  refused_bytes_ = 0;
}

void use_placed_memory() {
  // Leaked: storages keep a pointer to their allocator for as long as they live.
  static auto* const allocator = [] {
    ordinary_allocator = c10::GetCPUAllocator();
    return new PlacingAllocator(*ordinary_allocator);
  }();
  c10::SetCPUAllocator(allocator, /*priority=*/1);
}

}  // namespace genie::executor
