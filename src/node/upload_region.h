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

// The regions of one session that live.
struct RegionAccount {
  std::atomic<uint64_t> bytes{0};
  std::atomic<uint32_t> count{0};
};

class UploadRegion {
 public:
  // Each is a mapping of this process, of which the kernel gives 65,530 by default. A session that keeps more regions than
  // this has further uploads copied; a node that holds more takes none.
  static constexpr uint32_t kMaxKeptBySession = 4096;
  static constexpr uint32_t kMaxOfNode = 32768;
  static uint32_t live() noexcept { return live_.load(std::memory_order_relaxed); }

  UploadRegion(Status why, datapath::Taken taken, std::shared_ptr<RegionAccount> account)
      : why_(std::move(why)), taken_(std::move(taken)), account_(std::move(account)) {
    live_.fetch_add(1, std::memory_order_relaxed);
    account_->count.fetch_add(1, std::memory_order_relaxed);
  }
  ~UploadRegion() {
    if (charged_) account_->bytes.fetch_sub(taken_.resident_bytes, std::memory_order_relaxed);
    account_->count.fetch_sub(1, std::memory_order_relaxed);
    live_.fetch_sub(1, std::memory_order_relaxed);
  }
  UploadRegion(const UploadRegion&) = delete;
  UploadRegion& operator=(const UploadRegion&) = delete;

  // Not OK: it could not be taken, or does not fit; its uploads fail with this.
  const Status& status() const noexcept { return why_; }
  void fail(Status why) { why_ = std::move(why); }
  const datapath::Taken& taken() const noexcept { return taken_; }
  const RegionAccount& account() const noexcept { return *account_; }

  // Storages live in it from now on.
  bool charged() const noexcept { return charged_; }
  void charge() noexcept {
    account_->bytes.fetch_add(taken_.resident_bytes, std::memory_order_relaxed);
    charged_ = true;
  }

 private:
  inline static std::atomic<uint32_t> live_{0};

  Status why_;
  datapath::Taken taken_;
  const std::shared_ptr<RegionAccount> account_;
  bool charged_ = false;
};

}  // namespace genie::node
