#include "src/executor/placement.h"

#include <c10/core/CPUAllocator.h>

#include <utility>

#include "src/executor/sharing.h"

namespace genie::executor {
namespace {

thread_local PlacementScope* current_scope = nullptr;

}  // namespace

// Everything but placed memory is libtorch's own allocator's business, deleters included.
class PlacingAllocator final : public c10::Allocator {
 public:
  explicit PlacingAllocator(c10::Allocator& ordinary) : ordinary_(ordinary) {}

  c10::DataPtr allocate(size_t size) override {
    PlacementScope* const scope = current_scope;
    if (scope != nullptr && size == scope->size_) {
      HostMemory memory = scope->birthplace_.place(scope->storage_, size);
      if (memory.data != nullptr) return pointer_to(std::move(memory));
    }
    return ordinary_.allocate(size);
  }
  // For memory without an owner; nobody asks for that while an operator of ours runs, and raw_allocate() would notice.
  c10::DeleterFnPtr raw_deleter() const override { return ordinary_.raw_deleter(); }
  void copy_data(void* to, const void* from, std::size_t size) const override { ordinary_.copy_data(to, from, size); }

 private:
  c10::Allocator& ordinary_;
};

PlacementScope::PlacementScope(Birthplace& birthplace, uint64_t storage, size_t size) noexcept
    : birthplace_(birthplace), storage_(storage), size_(size) {
  current_scope = this;
}

PlacementScope::~PlacementScope() { current_scope = nullptr; }

void use_placed_memory() {
  // Leaked: storages keep a pointer to their allocator for as long as they live.
  static auto* const allocator = new PlacingAllocator(*c10::GetCPUAllocator());
  c10::SetCPUAllocator(allocator, /*priority=*/1);
}

}  // namespace genie::executor
