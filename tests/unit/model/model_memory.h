// ModelMemory: the memory policy (datapath/queue/memory.h) that runs a queue on the explorer's machine.
//
// Thread-safety, ownership: objects belong to the execution during which they were made.
#pragma once

#include <atomic>
#include <cstdint>
#include <type_traits>

#include "tests/unit/model/explorer.h"

namespace genie::model {

struct ModelMemory {
  template <class T>
  class Atomic {
   public:
    static_assert(std::is_integral_v<T>);
    Atomic(T value = 0) : location_(machine().add_location(value)) {}  // NOLINT(google-explicit-constructor)
    Atomic(const Atomic&) = delete;
    Atomic& operator=(const Atomic&) = delete;

    T load(std::memory_order order) const {
      schedule_point();
      return static_cast<T>(machine().load(current_thread(), location_, order));
    }
    void store(T value, std::memory_order order) {
      schedule_point();
      machine().store(current_thread(), location_, value, order);
      after_store();
    }
    bool compare_exchange_weak(T& expected, T desired, std::memory_order success, std::memory_order failure) {
      schedule_point();
      uint64_t seen = expected;
      const bool exchanged =
          machine().compare_exchange(current_thread(), location_, seen, desired, true, success, failure);
      expected = static_cast<T>(seen);
      return exchanged;
    }

   private:
    uint32_t location_;
  };

  template <class T>
  class Cell {
   public:
    Cell() : id_(machine().add_cell()) {}

   private:
    friend struct ModelMemory;
    uint32_t id_;
    T value_{};
  };

  template <class Site>
  static std::memory_order order(Site site, std::memory_order order) {
    return mutation().relaxed_site == static_cast<int>(site) ? std::memory_order_relaxed : order;
  }
  static void will_write(const void* /*line*/) {}
  template <class T>
  static void write(Cell<T>& cell, const T& value) {
    wrote_cell(cell.id_);
    cell.value_ = value;
  }
  template <class T>
  static T read(const Cell<T>& cell) {
    read_cell(cell.id_, static_cast<uint64_t>(cell.value_));
    return cell.value_;
  }
};

}  // namespace genie::model
