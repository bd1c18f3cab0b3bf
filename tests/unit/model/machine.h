// Machine: the C++ memory model as an abstract machine, small enough to explore.
//
// Purpose: gives the meaning of one execution. Every atomic location has its modification order, a list of messages.
//   Every thread has a view: per location the newest message that it knows of, and per thread how much of that thread's
//   past happened before. A load may return any message that is not older than the view: stale reads. A release store
//   puts its thread's view into the message; an acquire load of that message joins it. A read-modify-write is placed
//   directly behind the message that it read, and carries on that message's view (release sequence). A store may be
//   placed before messages that its thread does not know of. Plain cells are checked for data races by happens-before.
//   seq_cst is taken as acquire and release only, which allows more than C++ does: it may alarm, it cannot miss.
//   Fences and consume are not there. Values out of thin air and load buffering are not there either, as in RC11.
// Thread-safety: one thread. Ownership: value type; choices come from the Choices that the caller keeps alive.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

namespace genie::model {

inline constexpr size_t kMaxThreads = 3;  // the last one stands for what comes before the start and after the join
inline constexpr size_t kMaxLocations = 8;
inline constexpr size_t kMainThread = kMaxThreads - 1;

// Where the machine may go several ways, somebody decides.
class Choices {
 public:
  virtual ~Choices() = default;
  // A number below `count`.
  virtual size_t choose(size_t count) = 0;
};

struct View {
  std::array<uint8_t, kMaxLocations> newest{};  // position in the location's modification order
  std::array<uint8_t, kMaxThreads> clock{};     // epochs of each thread that happened before

  void join(const View& other) noexcept;
};

class Machine {
 public:
  explicit Machine(Choices* choices) : choices_(choices) { clear(); }
  // Before an execution.
  void clear();

  uint32_t add_location(uint64_t value);
  uint32_t add_cell();

  uint64_t load(size_t thread, uint32_t location, std::memory_order order);
  void store(size_t thread, uint32_t location, uint64_t value, std::memory_order order);
  // On failure `expected` becomes what was read.
  bool compare_exchange(size_t thread, uint32_t location, uint64_t& expected, uint64_t desired, bool weak,
                        std::memory_order success, std::memory_order failure);

  // Plain accesses. False: a data race.
  [[nodiscard]] bool write_cell(size_t thread, uint32_t cell);
  [[nodiscard]] bool read_cell(size_t thread, uint32_t cell);

  // Thread creation and join: `to` knows all that `from` does.
  void hand_over(size_t from, size_t to);

  // A thread's locals are a function of what it read so far; results of accesses are noted here by the machine,
  // values of plain reads by the caller.
  void note_result(size_t thread, uint64_t value);
  // Two states with equal digests go on in the same ways.
  std::pair<uint64_t, uint64_t> digest() const;
  // Keeps the accesses of the next executions for trace().
  void set_tracing(bool tracing) { tracing_ = tracing; }
  // The accesses of this execution, one per line.
  std::string trace() const;

 private:
  struct Message {
    uint64_t value;
    View view;
    bool by_rmw;
  };
  struct Cell {
    std::array<uint8_t, kMaxThreads> written{};  // the epoch of each thread's last write, plus one
    std::array<uint8_t, kMaxThreads> read{};
  };
  struct Event {
    size_t thread;
    const char* what;
    uint32_t where;
    uint64_t value;
    std::memory_order order;
    bool newest;
  };

  Message& message_at(uint32_t location, size_t position) { return messages_[location][position]; }
  size_t choose_message(size_t thread, uint32_t location);
  void see(size_t thread, uint32_t location, size_t position, std::memory_order order);
  void insert(size_t thread, uint32_t location, size_t position, uint64_t value, std::memory_order order,
              const View* continued);
  bool ordered_after(size_t thread, const std::array<uint8_t, kMaxThreads>& epochs) const;
  void record(size_t thread, const char* what, uint32_t where, uint64_t value, std::memory_order order, bool newest);

  Choices* choices_;
  size_t location_count_ = 0;
  std::array<std::vector<Message>, kMaxLocations> messages_;
  std::vector<Cell> cells_;
  std::array<View, kMaxThreads> threads_;
  std::array<uint64_t, kMaxThreads> history_{};
  std::array<uint8_t, kMaxThreads> spurious_left_{};
  bool tracing_ = false;
  std::vector<Event> events_;
};

}  // namespace genie::model
