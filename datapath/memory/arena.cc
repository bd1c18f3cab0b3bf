#include "datapath/memory/arena.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cassert>
#include <cstdint>
#include <deque>
#include <mutex>
#include <utility>

#include "datapath/memory/pages.h"

namespace genie::datapath {
namespace {

// Free lists by size: a power of two (first level), cut into kSteps equal steps (second level).
constexpr unsigned kStepBits = 4;
constexpr unsigned kSteps = 1U << kStepBits;
constexpr unsigned kLevels = 48;

struct ListIndex {
  unsigned level;
  unsigned step;
};

// The list that holds free pieces of `granules` (in units of the alignment).
ListIndex list_of(size_t granules) noexcept {
  if (granules < kSteps) return {0, static_cast<unsigned>(granules)};
  const auto top = static_cast<unsigned>(std::bit_width(granules)) - 1;
  return {top - kStepBits + 1, static_cast<unsigned>(granules >> (top - kStepBits)) & (kSteps - 1)};
}

// The smallest size whose list holds only pieces of at least `granules`.
size_t round_to_list(size_t granules) noexcept {
  if (granules < kSteps) return granules;
  const size_t step = size_t{1} << (static_cast<unsigned>(std::bit_width(granules)) - 1 - kStepBits);
  return (granules + step - 1) & ~(step - 1);
}

}  // namespace

// Invariants, under mutex_: pieces tile the mapping in address order (left/right); no two free neighbours; a piece is
// in exactly one list iff it is free; a bit is set iff its list is not empty. references_ counts the Arena and each
// live Buffer; the last one deletes the core.
class Arena::Core {
 public:
  struct Piece {
    Core* core = nullptr;
    size_t begin = 0;  // in granules
    size_t size = 0;   // in granules
    Piece* left = nullptr;
    Piece* right = nullptr;
    Piece* previous = nullptr;
    Piece* next = nullptr;
    bool free = false;
  };

  explicit Core(PageMapping mapping) : mapping_(std::move(mapping)) {
    Piece* whole = new_piece();
    whole->size = mapping_.size() / kAlignment;
    insert(whole);
  }

  Result<Buffer> allocate(size_t size) {
    if (size == 0) return Status(Errc::kInvalidArgument, "an arena buffer of 0 bytes");
    if (size > mapping_.size()) return Errc::kOutOfMemory;
    const size_t granules = (size + kAlignment - 1) / kAlignment;
    std::lock_guard lock(mutex_);
    Piece* piece = take(granules);
    if (piece == nullptr) return Errc::kOutOfMemory;
    if (piece->size > granules) split(piece, granules);
    used_granules_ += granules;
    references_.fetch_add(1, std::memory_order_relaxed);
    return Buffer(mapping_.data() + piece->begin * kAlignment, size, key_, &Core::release, piece);
  }

  void drop_reference() noexcept {
    if (references_.fetch_sub(1, std::memory_order_acq_rel) == 1) delete this;
  }

  void set_key(MemoryKey key) {
    std::lock_guard lock(mutex_);
    key_ = key;
  }

  size_t bytes_in_use() const {
    std::lock_guard lock(mutex_);
    return used_granules_ * kAlignment;
  }

  size_t largest_free() const {
    std::lock_guard lock(mutex_);
    if (level_bits_ == 0) return 0;
    const auto level = static_cast<unsigned>(std::bit_width(level_bits_)) - 1;
    const auto step = static_cast<unsigned>(std::bit_width(step_bits_[level])) - 1;
    size_t largest = 0;
    for (const Piece* piece = lists_[level][step]; piece != nullptr; piece = piece->next) {
      largest = std::max(largest, piece->size);
    }
    return largest * kAlignment;
  }

  const PageMapping& mapping() const noexcept { return mapping_; }

 private:
  static void release(void* context, std::byte*, size_t) noexcept {
    auto* piece = static_cast<Piece*>(context);
    Core* core = piece->core;
    core->give_back(piece);
    core->drop_reference();
  }

  void give_back(Piece* piece) noexcept {
    std::lock_guard lock(mutex_);
    assert(!piece->free);
    used_granules_ -= piece->size;
    if (piece->left != nullptr && piece->left->free) piece = join(piece->left, piece);
    if (piece->right != nullptr && piece->right->free) {
      Piece* right = piece->right;
      remove(right);
      absorb(piece, right);
    }
    insert(piece);
  }

  Piece* join(Piece* left, Piece* piece) noexcept {
    remove(left);
    absorb(left, piece);
    return left;
  }

  void absorb(Piece* left, Piece* right) noexcept {
    left->size += right->size;
    left->right = right->right;
    if (left->right != nullptr) left->right->left = left;
    right->next = spare_;
    spare_ = right;
  }

  // Good fit from the lists; where only the request's own list may hold one, that list is searched.
  Piece* take(size_t granules) noexcept {
    Piece* piece = first_at_least(list_of(round_to_list(granules)));
    if (piece == nullptr) {
      const ListIndex own = list_of(granules);
      piece = lists_[own.level][own.step];
      while (piece != nullptr && piece->size < granules) piece = piece->next;
    }
    if (piece != nullptr) remove(piece);
    return piece;
  }

  Piece* first_at_least(ListIndex at) const noexcept {
    const uint32_t steps = step_bits_[at.level] & (~uint32_t{0} << at.step);
    if (steps != 0) return lists_[at.level][static_cast<unsigned>(std::countr_zero(steps))];
    const uint64_t levels = level_bits_ & (~uint64_t{0} << (at.level + 1));
    if (levels == 0) return nullptr;
    const auto level = static_cast<unsigned>(std::countr_zero(levels));
    return lists_[level][static_cast<unsigned>(std::countr_zero(step_bits_[level]))];
  }

  void split(Piece* piece, size_t granules) {
    Piece* rest = new_piece();
    rest->begin = piece->begin + granules;
    rest->size = piece->size - granules;
    rest->left = piece;
    rest->right = piece->right;
    if (rest->right != nullptr) rest->right->left = rest;
    piece->right = rest;
    piece->size = granules;
    insert(rest);
  }

  void insert(Piece* piece) noexcept {
    const ListIndex at = list_of(piece->size);
    piece->free = true;
    piece->previous = nullptr;
    piece->next = lists_[at.level][at.step];
    if (piece->next != nullptr) piece->next->previous = piece;
    lists_[at.level][at.step] = piece;
    step_bits_[at.level] |= uint32_t{1} << at.step;
    level_bits_ |= uint64_t{1} << at.level;
  }

  void remove(Piece* piece) noexcept {
    const ListIndex at = list_of(piece->size);
    piece->free = false;
    if (piece->next != nullptr) piece->next->previous = piece->previous;
    if (piece->previous != nullptr) {
      piece->previous->next = piece->next;
      return;
    }
    lists_[at.level][at.step] = piece->next;
    if (piece->next != nullptr) return;
    step_bits_[at.level] &= ~(uint32_t{1} << at.step);
    if (step_bits_[at.level] == 0) level_bits_ &= ~(uint64_t{1} << at.level);
  }

  Piece* new_piece() {
    Piece* piece = spare_;
    if (piece != nullptr) {
      spare_ = piece->next;
      *piece = Piece();
    } else {
      piece = &pieces_.emplace_back();
    }
    piece->core = this;
    return piece;
  }

  PageMapping mapping_;
  std::atomic<size_t> references_{1};
  mutable std::mutex mutex_;
  MemoryKey key_;
  size_t used_granules_ = 0;
  uint64_t level_bits_ = 0;
  std::array<uint32_t, kLevels> step_bits_{};
  std::array<std::array<Piece*, kSteps>, kLevels> lists_{};
  std::deque<Piece> pieces_;
  Piece* spare_ = nullptr;
};

Result<std::unique_ptr<Arena>> Arena::make(const ArenaOptions& options) {
  Result<PageMapping> mapping = map_pages(options.size_bytes, options.hugepages);
  if (!mapping.ok()) return mapping.status();
  return std::unique_ptr<Arena>(new Arena(new Core(std::move(*mapping))));
}

Arena::~Arena() { core_->drop_reference(); }

Result<Buffer> Arena::allocate(size_t size) { return core_->allocate(size); }
void Arena::set_key(MemoryKey key) { core_->set_key(key); }
std::span<std::byte> Arena::memory() const noexcept { return {core_->mapping().data(), core_->mapping().size()}; }
bool Arena::contains(const std::byte* data, size_t size) const noexcept {
  const auto begin = reinterpret_cast<uintptr_t>(core_->mapping().data());
  const auto at = reinterpret_cast<uintptr_t>(data);
  return at >= begin && at - begin <= core_->mapping().size() && size <= core_->mapping().size() - (at - begin);
}
bool Arena::hugepages() const noexcept { return core_->mapping().hugepages(); }
size_t Arena::bytes_in_use() const { return core_->bytes_in_use(); }
size_t Arena::largest_free() const { return core_->largest_free(); }

}  // namespace genie::datapath
