// UploadRegion: memory that a client handed over for its uploads.
//
// Purpose: several storages live in one region without a copy; it goes with the last of them. What it costs the machine
//   counts against the session's quota for as long as it lives, whichever of its storages are gone.
// Thread-safety: made by the poller, then the worker's; dropped on any thread.
// Ownership: shared by the orders and the storages that lie in it.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <utility>

#include "datapath/transport.h"
#include "genie/status.h"

namespace genie::node {

class UploadRegion {
 public:
  UploadRegion(Status why, datapath::Taken taken) : why_(std::move(why)), taken_(std::move(taken)) {}
  ~UploadRegion() {
    if (counter_ != nullptr) counter_->fetch_sub(taken_.resident_bytes, std::memory_order_relaxed);
  }
  UploadRegion(const UploadRegion&) = delete;
  UploadRegion& operator=(const UploadRegion&) = delete;

  // Not OK: it could not be taken, or does not fit; its uploads fail with this.
  const Status& status() const noexcept { return why_; }
  void fail(Status why) { why_ = std::move(why); }
  const datapath::Taken& taken() const noexcept { return taken_; }

  bool charged() const noexcept { return counter_ != nullptr; }
  void charge(std::shared_ptr<std::atomic<uint64_t>> counter) noexcept {
    counter->fetch_add(taken_.resident_bytes, std::memory_order_relaxed);
    counter_ = std::move(counter);
  }

 private:
  Status why_;
  datapath::Taken taken_;
  std::shared_ptr<std::atomic<uint64_t>> counter_;
};

}  // namespace genie::node
