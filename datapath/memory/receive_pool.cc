#include "datapath/memory/receive_pool.h"

#include <array>
#include <atomic>
#include <cassert>
#include <cstdint>
#include <new>
#include <utility>

namespace genie::datapath {
namespace {

constexpr size_t kClasses = 4;
constexpr std::array<size_t, kClasses> kClassBytes = {256, 1024, 4096, 16384};
constexpr std::align_val_t kBlockAlignment{64};

}  // namespace

// Lies in front of the bytes that it hands out.
struct alignas(64) ReceivePool::Block {
  Core* core;
  Block* next;
  size_t size_class;

  std::byte* bytes() noexcept { return reinterpret_cast<std::byte*>(this + 1); }
};

struct ReceivePool::Core {
  ~Core() {
    for (size_t i = 0; i < kClasses; ++i) {
      destroy(ready[i]);
      destroy(returned[i].load(std::memory_order_relaxed));
    }
  }

  static void destroy(Block* block) noexcept {
    while (block != nullptr) ::operator delete(std::exchange(block, block->next), kBlockAlignment);
  }

  void drop_reference() noexcept {
    if (references.fetch_sub(1, std::memory_order_acq_rel) == 1) delete this;
  }

  static void release(void* context, std::byte*, size_t) noexcept {
    auto* block = static_cast<Block*>(context);
    Core* core = block->core;
    std::atomic<Block*>& list = core->returned[block->size_class];
    block->next = list.load(std::memory_order_relaxed);
    while (!list.compare_exchange_weak(block->next, block, std::memory_order_release, std::memory_order_relaxed)) {
    }
    core->drop_reference();
  }

  std::array<Block*, kClasses> ready{};  // of the allocating thread
  std::array<std::atomic<Block*>, kClasses> returned{};
  std::atomic<size_t> references{1};
};

ReceivePool::ReceivePool() : core_(new Core) {}
ReceivePool::~ReceivePool() { core_->drop_reference(); }

Buffer ReceivePool::allocate(size_t size) {
  size_t size_class = 0;
  while (kClassBytes[size_class] < size) ++size_class;
  assert(size_class < kClasses);
  Block*& ready = core_->ready[size_class];
  if (ready == nullptr) ready = core_->returned[size_class].exchange(nullptr, std::memory_order_acquire);
  Block* block = ready;
  if (block != nullptr) {
    ready = block->next;
  } else {
    void* memory = ::operator new(sizeof(Block) + kClassBytes[size_class], kBlockAlignment);
    block = new (memory) Block{core_, nullptr, size_class};
  }
  core_->references.fetch_add(1, std::memory_order_relaxed);
  return Buffer(block->bytes(), size, MemoryKey(), &Core::release, block);
}

}  // namespace genie::datapath
