// Partnership: the measuring process and its partner, connected, and what can be measured between them.
//
// Thread-safety: one thread. Ownership: ends the partner when it goes; the partner also ends when this process dies.
#pragma once

#include <sys/types.h>

#include <string>
#include <string_view>

#include "bench/harness/harness.h"
#include "bench/transfer/end.h"
#include "datapath/base/file_descriptor.h"

namespace genie::bench {

enum class TransferOp : uint8_t { kWrite, kRead, kSend };
inline constexpr std::string_view op_name(TransferOp op) {
  return op == TransferOp::kWrite ? "write" : op == TransferOp::kRead ? "read" : "send";
}

class Partnership {
 public:
  // Starts this program once more as the partner. Throws std::runtime_error with the reason where the transport does not
  // work here.
  explicit Partnership(const std::string& transport);
  Partnership(const Partnership&) = delete;
  Partnership& operator=(const Partnership&) = delete;
  ~Partnership();

  size_t max_send_bytes() { return end_.transport().capabilities().max_send_bytes; }
  // Memory on both sides for transfers of `bytes`.
  void need(size_t bytes);
  std::byte* local() { return end_.local(); }
  // Where the partner's region is mapped here; null where it is not.
  std::byte* remote() { return end_.theirs().mapped; }

  // Nanoseconds for `count` operations of `bytes`, `depth` of them at a time; the messages of sends have arrived then.
  double stream(TransferOp op, size_t bytes, size_t count, size_t depth, bool sleeps = false);
  // One way of writes and sends, the whole of reads, in microseconds each.
  void latency(TransferOp op, size_t bytes, size_t count, Samples& samples);
  // Microseconds from posting a write of the latency class to its end, while so many bulk writes of `bulk_bytes` are in flight to
  // the same region.
  void latency_beside(size_t bytes, size_t count, size_t bulk_bytes, size_t bulk_depth, Samples& samples);
  // CPU time of both processes per byte while they sleep whenever there is nothing to do, in nanoseconds.
  double cpu_per_byte(TransferOp op, size_t bytes, size_t count, size_t depth);
  // Microseconds until the last of `count` writes to adjacent places has been posted; then they are waited for.
  double post_batch(size_t bytes, size_t count);

  // The peer of messages between two processes on one machine: SOCK_SEQPACKET.
  double socket_stream(size_t bytes, size_t count);
  void socket_latency(size_t bytes, size_t count, Samples& samples);

 private:
  class Serving;
  void start(const std::string& transport, const std::string& address);
  void stop() noexcept;
  void post(TransferOp op, size_t bytes, datapath::TransferClass how);

  End end_;
  datapath::FileDescriptor socket_;
  std::string path_;
  pid_t partner_ = -1;
  size_t room_ = 0;
  uint64_t stamp_ = 0;
};

}  // namespace genie::bench
