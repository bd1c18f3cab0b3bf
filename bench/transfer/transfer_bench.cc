// genie-bench transfer: bytes between two processes on this machine, over each transport.
//
// The measuring process and its partner each have a core; both poll without sleep, but for cpu_per_byte. Peers: for
// network transports the programs of their libraries (outside_peers.h), run alternately over the same path; for shared
// memory memcpy between the same buffers, and a unix socket between the same processes for messages. An operation's
// fixed cost shows below 64 KiB, where bandwidth has no target.
#include <sched.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "bench/benches.h"
#include "bench/harness/threads.h"
#include "bench/transfer/outside_peers.h"
#include "bench/transfer/partnership.h"
#include "bench/transfer/sizes.h"
#include "datapath/backends.h"

namespace genie::bench {
namespace {

constexpr size_t kKiB = size_t{1} << 10;
constexpr size_t kMiB = size_t{1} << 20;
constexpr const char* kDefaultSizes = "8..1G";
// In flight at a time: small operations as a caller with many tensors posts them, large ones so that the next one is
// there when one ends.
constexpr size_t kSmallDepth = 64;
constexpr size_t kLargeDepth = 4;
constexpr size_t kDescriptors = 56;
constexpr size_t kBulkBytes = 64 * kMiB;
constexpr size_t kBulkDepth = 2;

size_t depth_of(size_t bytes) { return bytes <= 64 * kKiB ? kSmallDepth : kLargeDepth; }

class TransferRows {
 public:
  TransferRows(Harness& harness, std::string transport)
      : harness_(harness), transport_(std::move(transport)), peer_(outside_peer(transport_)), both_(transport_) {
    if (transport_ != "shm" && peer_.empty()) {
      harness_.note(transport_ + ": its peer is not installed (Debian: ucx-utils, perftest); rows have none");
    }
  }

  void measure(TransferOp op, size_t bytes) {
    if (op == TransferOp::kSend && bytes > std::min(both_.max_send_bytes(), kMiB)) return;
    if (bytes <= kEchoBytesMax && bytes % sizeof(uint64_t) == 0) latency(op, bytes);
    if (bytes <= 4 * kKiB) message_rate(op, bytes);
    if (bytes >= 4 * kKiB) bandwidth(op, bytes);
    if (bytes >= 256 * kKiB && bytes <= 128 * kMiB) cpu_per_byte(op, bytes);
    if (op == TransferOp::kWrite && (bytes == 64 || bytes == 4 * kKiB)) post_batch(bytes);
    if (op == TransferOp::kWrite && bytes == 8 * kKiB) class_latency(bytes);
  }

 private:
  Json params(TransferOp op, size_t bytes) const {
    Json made = {{"transport", transport_}, {"op", op_name(op)}, {"bytes", bytes}};
    if (const char* tls = std::getenv("UCX_TLS"); transport_ == "ucx" && tls != nullptr) made["tls"] = tls;
    return made;
  }
  bool wants(const char* name, TransferOp op, size_t bytes) {
    if (!harness_.wants(name, params(op, bytes))) return false;
    both_.need(std::max(bytes, kEchoBytesMax) * (bytes <= 4 * kKiB ? kDescriptors : 1));
    return true;
  }
  // An outside peer takes two processes for each run.
  size_t runs() const {
    return peer_.empty() ? harness_.full_or_quick<size_t>(11, 3) : harness_.full_or_quick<size_t>(7, 1);
  }
  size_t warm_up() const { return peer_.empty() ? 1 : harness_.full_or_quick<size_t>(1, 0); }
  // Operations of one run.
  size_t count_for(size_t bytes) const {
    const size_t wanted = harness_.full_or_quick<size_t>(256 * kMiB, 32 * kMiB);
    return std::clamp<size_t>(wanted / bytes, bytes > 128 * kMiB ? 1 : 2,
                              harness_.full_or_quick<size_t>(20'000, 4'000));
  }
  void with_outside(Row& row, Figure figure, TransferOp op, size_t bytes, size_t count) {
    if (peer_.empty()) return;
    // ucp_get over TCP waits a millisecond for each: enough of them to see that.
    constexpr size_t kReads = 200;
    if (op == TransferOp::kRead && bytes < kMiB) count = std::min(count, kReads);
    row.peer(peer_, [=, this] { return run_outside({transport_, figure, op, bytes, count}); });
  }

  void bandwidth(TransferOp op, size_t bytes) {
    if (!wants("transfer.bandwidth", op, bytes)) return;
    const bool shm = transport_ == "shm";
    const bool targeted = bytes >= (shm ? 64 * kKiB : kMiB) && (!shm || op != TransferOp::kSend);
    const size_t count = count_for(bytes);
    const auto rate = [=](double ns) { return static_cast<double>(bytes * count) / ns; };
    Row row = harness_.row({.name = "transfer.bandwidth",
                            .params = params(op, bytes),
                            .unit = "GB/s",
                            .better = Better::kHigher,
                            .target = targeted ? std::optional(shm ? 0.95 : 0.97) : std::nullopt});
    row.runs(runs()).warmup(warm_up()).ours([&] { return rate(both_.stream(op, bytes, count, depth_of(bytes))); });
    if (shm && op == TransferOp::kSend) {
      row.peer("unix socket", [&] { return rate(both_.socket_stream(bytes, count)); });
    } else if (shm) {
      row.peer("memcpy", [&] { return rate(copy(op, bytes, count)); });
    }
    with_outside(row, Figure::kBandwidth, op, bytes, count);
    row.measure();
  }

  double copy(TransferOp op, size_t bytes, size_t count) {
    std::byte* to = op == TransferOp::kWrite ? both_.remote() : both_.local();
    const std::byte* from = op == TransferOp::kWrite ? both_.local() : both_.remote();
    const uint64_t begun = now_ns();
    for (size_t i = 0; i < count; ++i) {
      std::memcpy(to, from, bytes);
      asm volatile("" ::: "memory");
    }
    return static_cast<double>(now_ns() - begun);
  }

  void latency(TransferOp op, size_t bytes) {
    if (!wants("transfer.latency", op, bytes)) return;
    const bool shm = transport_ == "shm";
    const size_t count = harness_.full_or_quick<size_t>(5'000, 1'000);
    std::optional<double> target;
    if (shm && op == TransferOp::kSend) target = 1.0;
    if (!shm && bytes <= 4 * kKiB) target = 1.15;
    Row row = harness_.row({.name = "transfer.latency",
                            .params = params(op, bytes),
                            .unit = "us",
                            .better = Better::kLower,
                            .target = target});
    row.runs(runs()).warmup(warm_up()).ours([&](Samples& samples) { both_.latency(op, bytes, count, samples); });
    if (shm && op == TransferOp::kSend) {
      row.peer("unix socket", [&](Samples& samples) { both_.socket_latency(bytes, count, samples); });
    }
    with_outside(row, Figure::kLatency, op, bytes, count);
    row.measure();
  }

  void message_rate(TransferOp op, size_t bytes) {
    if (!wants("transfer.message_rate", op, bytes)) return;
    const bool shm = transport_ == "shm";
    const size_t count = harness_.full_or_quick<size_t>(100'000, 20'000);
    const auto rate = [=](double ns) { return static_cast<double>(count) * 1e3 / ns; };
    std::optional<double> target;
    if (!shm || op == TransferOp::kSend) target = shm ? 1.0 : 0.8;
    Row row = harness_.row({.name = "transfer.message_rate",
                            .params = params(op, bytes),
                            .unit = "Mmsg/s",
                            .better = Better::kHigher,
                            .target = target});
    row.runs(runs()).warmup(warm_up()).ours([&] { return rate(both_.stream(op, bytes, count, kSmallDepth)); });
    if (shm && op == TransferOp::kSend) {
      row.peer("unix socket", [&] { return rate(both_.socket_stream(bytes, count)); });
    }
    with_outside(row, Figure::kMessageRate, op, bytes, count);
    row.measure();
  }

  void cpu_per_byte(TransferOp op, size_t bytes) {
    if (!wants("transfer.cpu_per_byte", op, bytes)) return;
    const size_t count = count_for(bytes);
    Row row = harness_.row(
        {.name = "transfer.cpu_per_byte", .params = params(op, bytes), .unit = "ns/B", .better = Better::kLower});
    row.runs(harness_.full_or_quick<size_t>(7, 2)).ours([&] {
      return both_.cpu_per_byte(op, bytes, count, kLargeDepth);
    });
    // perftest can sleep only where the other side is told.
    if (transport_ != "verbs" || op == TransferOp::kSend) with_outside(row, Figure::kCpuPerByte, op, bytes, count);
    row.measure();
  }

  // What a bulk transfer to the same peer does to the tail of small writes. Where one bulk chunk takes longer than three idle tails,
  // no more can be asked than that a small write waits for one: judge that by the figures.
  void class_latency(size_t bytes) {
    Json with_bulk = params(TransferOp::kWrite, bytes);
    with_bulk["bulk"] = "64 MiB x2";
    if (!harness_.wants("transfer.class_latency", with_bulk)) return;
    both_.need(kBulkBytes);
    constexpr size_t kWrites = 1'000;
    constexpr double kTimesIdle = 3;
    harness_
        .row({.name = "transfer.class_latency",
              .params = with_bulk,
              .unit = "us",
              .better = Better::kLower,
              .target = kTimesIdle,
              .target_of = TargetOf::kTailRatio})
        .runs(harness_.full_or_quick<size_t>(5, 1))
        .warmup(0)
        .ours([&](Samples& samples) { both_.latency_beside(bytes, kWrites, kBulkBytes, kBulkDepth, samples); })
        .peer("without bulk", [&](Samples& samples) { both_.latency_beside(bytes, kWrites, kBulkBytes, 0, samples); })
        .measure();
  }

  void post_batch(size_t bytes) {
    if (!wants("transfer.post_batch", TransferOp::kWrite, bytes)) return;
    Json with_count = params(TransferOp::kWrite, bytes);
    with_count["descriptors"] = kDescriptors;
    harness_
        .row({.name = "transfer.post_batch",
              .params = with_count,
              .unit = "us",
              .better = Better::kLower,
              .target = 5,
              .target_of = TargetOf::kMedian})
        .runs(harness_.full_or_quick<size_t>(301, 101))
        .warmup(10)
        .ours([&] { return both_.post_batch(bytes, kDescriptors); })
        .measure();
  }

  Harness& harness_;
  const std::string transport_;
  const std::string peer_;  // empty: none outside
  Partnership both_;
};

// This thread has a core of its own meanwhile.
class OwnCore {
 public:
  OwnCore() {
    ::sched_getaffinity(0, sizeof(before_), &before_);
    take_core(0);
  }
  OwnCore(const OwnCore&) = delete;
  OwnCore& operator=(const OwnCore&) = delete;
  ~OwnCore() {
    const sched_param ordinary{};
    ::sched_setscheduler(0, SCHED_OTHER, &ordinary);
    ::sched_setaffinity(0, sizeof(before_), &before_);
  }

 private:
  cpu_set_t before_{};
};

// Both UCX programs, ours and its peer, over the path between machines unless the user says otherwise, and without the
// segment size that makes large transfers over TCP a hundred times slower.
void choose_ucx_path(Harness& harness) {
  if (std::getenv("UCX_TLS") == nullptr) {
    harness.note("ucx: UCX_TLS=tcp, the path between machines that every machine has; set UCX_TLS for another");
    ::setenv("UCX_TLS", "tcp", 0);
  }
  ::setenv("UCX_TCP_TX_SEG_SIZE", "1m", 0);
  ::setenv("UCX_TCP_RX_SEG_SIZE", "1m", 0);
}

void run_over(Harness& harness, const std::string& transport, bool asked_for) {
  if (const auto named = datapath::parse_backends(transport); !named) {
    if (asked_for) throw std::runtime_error(std::string(named.status().text()));
    harness.note(transport + ": not compiled into this build");
    return;
  }
  if (transport == "ucx") choose_ucx_path(harness);
  std::optional<TransferRows> rows;
  try {
    // Before this thread takes its core: at real-time priority it would keep it from the partner that starts there.
    rows.emplace(harness, transport);
  } catch (const std::exception& error) {
    if (asked_for) throw;
    harness.note(transport + ": does not work on this machine: " + error.what());
    return;
  }
  const OwnCore core;
  const std::vector<std::string>& ops = harness.options().ops;
  std::vector<uint64_t> sizes = harness.options().sizes;
  if (sizes.empty()) sizes = parse_sizes(kDefaultSizes);
  for (const TransferOp op : {TransferOp::kWrite, TransferOp::kRead, TransferOp::kSend}) {
    if (!ops.empty() && std::find(ops.begin(), ops.end(), op_name(op)) == ops.end()) continue;
    for (const uint64_t bytes : sizes) rows->measure(op, bytes);
  }
}

void run_transfer(Harness& harness) {
  if (usable_cores().size() < 2) harness.note("only one core is usable: the two processes take turns on it");
  const std::vector<std::string>& asked = harness.options().transports;
  for (const char* transport : {"shm", "ucx", "verbs"}) {
    const bool named = std::find(asked.begin(), asked.end(), transport) != asked.end();
    if (asked.empty() || named) run_over(harness, transport, named);
  }
}

const Registration kTransfer("transfer", run_transfer);

}  // namespace
}  // namespace genie::bench
