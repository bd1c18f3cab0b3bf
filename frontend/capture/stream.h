// Stream: the records of one program thread, in program order, until they are flushed.
//
// Purpose: appending is a few stores into growing arrays: code words, parameters, and the storages that records touch. The code
//   words hold no storage numbers, so that they are at once the request for shape inference and the body of the template.
// Thread-safety: the stream's lock guards the open segment; it is uncontended unless autograd's threads, or a flush asked for by
//   another stream, meet the program thread.
// Ownership: a segment holds a reference on every storage that it touches.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "frontend/capture/op_info.h"
#include "frontend/capture/storage_state.h"
#include "frontend/capture/words.h"
#include "src/session/link.h"

namespace genie::frontend {

class Journal;

class SpinLock {
 public:
  void lock() noexcept {
    while (held_.exchange(true, std::memory_order_acquire)) {
      // Held long only while a flush registers a template: give the core away then.
      for (int spins = 0; held_.load(std::memory_order_relaxed); ++spins) {
        if (spins < 256) {
          __builtin_ia32_pause();
        } else {
          std::this_thread::yield();
        }
      }
    }
  }
  void unlock() noexcept { held_.store(false, std::memory_order_release); }

 private:
  std::atomic<bool> held_{false};
};

// How a record touches a storage slot: [slot : 29 | mode : 3].
enum class Touch : uint32_t { kRead = 0, kWrite = 1, kDefine = 2 };
constexpr uint32_t touch_word(uint32_t slot, Touch mode) { return (slot << 3) | static_cast<uint32_t>(mode); }
constexpr uint32_t touch_slot(uint32_t word) { return word >> 3; }
constexpr Touch touch_mode(uint32_t word) { return static_cast<Touch>(word & 7U); }

struct RecordEntry {
  OpInfo* op = nullptr;
  uint32_t code = 0;     // first word in Segment::code
  uint32_t params = 0;   // first number in Segment::params
  uint32_t touches = 0;  // first word in Segment::touches: one per tensor head word, in order
};

struct SlotEntry {
  StorageState* state = nullptr;  // referenced
  bool existed = false;           // on the node before the segment (or uploaded for it)
};

struct Segment {
  uint32_t number = 0;  // unique in the process; 0 is never used
  std::vector<RecordEntry> records;
  Words<uint32_t> code;
  Words<int64_t> params;
  Words<uint32_t> touches;
  std::vector<SlotEntry> slots;
  std::vector<std::string> strings;
  std::vector<const SourceLine*> sources;  // of the records up to the last that has one; empty without tracing
  std::vector<StateRef> generators;  // that records draw from: they end on the node no sooner than the segment ran

  void clear() {
    records.clear();
    code.clear();
    params.clear();
    touches.clear();
    slots.clear();
    strings.clear();
    sources.clear();
    generators.clear();
  }
  const SourceLine* source_of(size_t record) const { return record < sources.size() ? sources[record] : nullptr; }
  uint32_t code_end(size_t record) const {
    return record + 1 < records.size() ? records[record + 1].code : static_cast<uint32_t>(code.size());
  }
  uint32_t params_end(size_t record) const {
    return record + 1 < records.size() ? records[record + 1].params : static_cast<uint32_t>(params.size());
  }
  uint32_t touches_end(size_t record) const {
    return record + 1 < records.size() ? records[record + 1].touches : static_cast<uint32_t>(touches.size());
  }
};

// A snapshot that goes with the next submission, and the storage that it becomes.
struct PendingUpload {
  StateRef state;
  std::unique_ptr<session::Upload> memory;
};

struct Stream {
  Stream(const SessionCore* owner, uint32_t number) : owner(owner), number(number) {}

  SpinLock lock;
  const SessionCore* const owner;
  const uint32_t number;  // in its session
  uint32_t epoch = 0;     // moved on after a failure, under the session's flush lock
  Segment open;
  Segment last;                          // what was flushed last, for genie::graph(); its slots hold no references
  std::atomic<uint32_t> open_number{0};  // open.number, readable without the lock
  std::atomic<bool> abandoned{false};    // its thread ended; another may take it over
  std::shared_ptr<Journal> journal;      // of the captures that its thread has open; null: none
  uint32_t journaled = 0;                // how many of the open segment's records it has
  std::vector<PendingUpload> uploads;
  uint64_t upload_bytes = 0;
  // Written by who holds the lock, read by anybody.
  std::atomic<uint64_t> captured{0};
  std::atomic<uint64_t> shapes_cached{0};
  // Filled only for storages that several streams read at once.
  std::unordered_map<StorageState*, uint32_t> shared_slots;

  // The slot of a storage in the open segment, added on first touch. Lock held.
  uint32_t slot_of(StorageState* state);
  // Empties the open segment (which must hold no references) and gives it a new number. Lock held.
  void begin_segment();
};

// Numbers for segments: unique in the process.
uint32_t next_segment_number();

}  // namespace genie::frontend
