// UploadRegion: memory that a client handed over for its uploads, and what sessions pay for it.
//
// Purpose: several storages live in one region without a copy, those of other sessions too where they share weights by content
//   (content_store.h); it goes with the last of them. What it costs the machine counts against the quota of each session that
//   has a storage in it, for as long as it has one, whichever of the storages are gone.
// Thread-safety: made by the poller, then the worker's; dropped on any thread.
// Ownership: an UploadRegion is one session's stake, shared by its orders and storages; the memory is shared by the stakes.
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

// What the client handed over.
class RegionMemory {
 public:
  static uint32_t live() noexcept { return live_.load(std::memory_order_relaxed); }

  explicit RegionMemory(datapath::Taken taken) : taken_(std::move(taken)) {
    live_.fetch_add(1, std::memory_order_relaxed);
  }
  ~RegionMemory() { live_.fetch_sub(1, std::memory_order_relaxed); }
  RegionMemory(const RegionMemory&) = delete;
  RegionMemory& operator=(const RegionMemory&) = delete;

  const datapath::Taken& taken() const noexcept { return taken_; }

 private:
  inline static std::atomic<uint32_t> live_{0};

  const datapath::Taken taken_;
};

class UploadRegion {
 public:
  // Each is a mapping of this process, of which the kernel gives 65,530 by default. A session that keeps more regions than
  // this has further uploads copied; a node that holds more takes none.
  static constexpr uint32_t kMaxKeptBySession = 4096;
  static constexpr uint32_t kMaxOfNode = 32768;

  UploadRegion(Status why, std::shared_ptr<const RegionMemory> memory, std::shared_ptr<RegionAccount> account)
      : why_(std::move(why)), memory_(std::move(memory)), account_(std::move(account)) {
    account_->count.fetch_add(1, std::memory_order_relaxed);
  }
  ~UploadRegion() {
    if (charged_) account_->bytes.fetch_sub(taken().resident_bytes, std::memory_order_relaxed);
    account_->count.fetch_sub(1, std::memory_order_relaxed);
  }
  UploadRegion(const UploadRegion&) = delete;
  UploadRegion& operator=(const UploadRegion&) = delete;

  // Not OK: it could not be taken, or does not fit; its uploads fail with this.
  const Status& status() const noexcept { return why_; }
  void fail(Status why) { why_ = std::move(why); }
  const std::shared_ptr<const RegionMemory>& memory() const noexcept { return memory_; }
  const datapath::Taken& taken() const noexcept { return memory_->taken(); }
  const RegionAccount& account() const noexcept { return *account_; }

  // Storages live in it from now on.
  bool charged() const noexcept { return charged_; }
  void charge() noexcept {
    account_->bytes.fetch_add(taken().resident_bytes, std::memory_order_relaxed);
    charged_ = true;
  }

 private:
  Status why_;
  const std::shared_ptr<const RegionMemory> memory_;
  const std::shared_ptr<RegionAccount> account_;
  bool charged_ = false;
};

}  // namespace genie::node
