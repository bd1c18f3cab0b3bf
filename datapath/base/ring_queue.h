// RingQueue: a FIFO that keeps its memory.
//
// Purpose: queues that fill and drain all the time without allocating once they have grown.
// Thread-safety: none. Ownership: owns its elements; a popped slot is reset at once.
#pragma once

#include <cstddef>
#include <utility>
#include <vector>

namespace genie::datapath {

template <typename T>
class RingQueue {
 public:
  bool empty() const noexcept { return size_ == 0; }
  size_t size() const noexcept { return size_; }

  T& front() noexcept { return slots_[first_]; }
  T& at(size_t position) noexcept { return slots_[(first_ + position) & (slots_.size() - 1)]; }

  void push(T value) {
    if (size_ == slots_.size()) grow();
    slots_[(first_ + size_) & (slots_.size() - 1)] = std::move(value);
    ++size_;
  }

  T pop() {
    T value = std::move(slots_[first_]);
    slots_[first_] = T();
    first_ = (first_ + 1) & (slots_.size() - 1);
    --size_;
    return value;
  }

 private:
  void grow() {
    std::vector<T> larger(slots_.empty() ? 16 : slots_.size() * 2);
    for (size_t i = 0; i < size_; ++i) larger[i] = std::move(at(i));
    slots_.swap(larger);
    first_ = 0;
  }

  std::vector<T> slots_;
  size_t first_ = 0;
  size_t size_ = 0;
};

}  // namespace genie::datapath
