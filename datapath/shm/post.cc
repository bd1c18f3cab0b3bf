// Posting operations and moving them on.
#include <algorithm>
#include <array>
#include <cassert>
#include <cstring>
#include <utility>

#include "datapath/shm/stream_copy.h"
#include "datapath/shm/transport_impl.h"

namespace genie::datapath::shm {

Status ShmTransport::write(EndpointId endpoint, Buffer& local, const RemoteRegion& remote, size_t offset,
                           const PostOptions& options) {
  return post_transfer(endpoint, local, remote, offset, PendingOp{.opcode = Opcode::kWrite}, options);
}

Status ShmTransport::write_with_notify(EndpointId endpoint, Buffer& local, const RemoteRegion& remote, size_t offset,
                                       uint32_t immediate, const PostOptions& options) {
  return post_transfer(endpoint, local, remote, offset,
                       PendingOp{.opcode = Opcode::kWriteNotify, .immediate = immediate}, options);
}

Status ShmTransport::read(EndpointId endpoint, Buffer& local, const RemoteRegion& remote, size_t offset,
                          const PostOptions& options) {
  return post_transfer(endpoint, local, remote, offset, PendingOp{.opcode = Opcode::kRead}, options);
}

Status ShmTransport::send(EndpointId id, Buffer& message, uint32_t immediate, const PostOptions& options) {
  Endpoint* endpoint = find(id);
  if (endpoint == nullptr || endpoint->state != EndpointState::kOpen) return Errc::kDisconnected;
  if (message.size() > kMaxMessageBytes) {
    return Status(Errc::kOutOfRange, "a message larger than max_send_bytes; write it into a region");
  }
  PendingOp op{.opcode = Opcode::kSend, .immediate = immediate};
  return post(*endpoint, op, message, options);
}

Status ShmTransport::post_transfer(EndpointId id, Buffer& local, const RemoteRegion& remote, size_t offset,
                                   PendingOp op, const PostOptions& options) {
  Endpoint* endpoint = find(id);
  if (endpoint == nullptr || endpoint->state != EndpointState::kOpen) return Errc::kDisconnected;
  const Import* import = imports_.find(remote.index, remote.generation);
  if (import == nullptr) return imports_.why(remote.index, remote.generation);
  if (import->endpoint != id) return Status(Errc::kInvalidArgument, "the region belongs to another endpoint");
  if (import->revoked) return Errc::kStale;
  if (op.opcode != Opcode::kRead && import->mapping.is_private()) {
    return Status(Errc::kPermission, "the peer's region is published: it can be read, not written");
  }
  if (offset > import->size || local.size() > import->size - offset) return Errc::kOutOfRange;
  op.import_index = remote.index;
  op.import_generation = remote.generation;
  op.remote = import->mapping.data() + offset;
  return post(*endpoint, op, local, options);
}

// Runs the operation at once where it is short and nothing of its class waits before it.
Status ShmTransport::post(Endpoint& endpoint, PendingOp& op, Buffer& buffer, const PostOptions& options) {
  RingQueue<PendingOp>& queue = endpoint.pending[static_cast<size_t>(options.transfer_class)];
  if (completions_.size() >= options_.max_completions || queue.size() >= options_.max_pending_ops) return Errc::kAgain;
  op.user_data = options.user_data;
  op.deadline_ns = options.deadline.when_ns();
  op.buffer = std::move(buffer);
  if (queue.empty() && op.buffer.size() <= options_.chunk_bytes) {
    size_t budget = op.buffer.size();
    if (advance(endpoint, op, budget)) {
      finish(endpoint, std::move(op), Errc::kOk);
      return {};
    }
  }
  count_users(op, 1);
  earliest_deadline_ns_ = std::min(earliest_deadline_ns_, op.deadline_ns);
  queue.push(std::move(op));
  ++pending_ops_;
  start_scanning(endpoint);
  return {};
}

// A region must not go while an operation that waits names it.
void ShmTransport::count_users(const PendingOp& op, int change) {
  if (op.import_index != UINT32_MAX) {
    Import* import = imports_.find(op.import_index, op.import_generation);
    assert(import != nullptr);
    import->users += static_cast<uint32_t>(change);
  }
  if (op.buffer.key().valid()) {
    LocalRegion* region = regions_.find(op.buffer.key().index, op.buffer.key().generation);
    if (region != nullptr) region->users += static_cast<uint32_t>(change);
  }
}

void ShmTransport::copy_chunk(PendingOp& op, size_t bytes) {
  std::byte* local = op.buffer.data() + op.done;
  std::byte* remote = op.remote + op.done;
  std::byte* to = op.opcode == Opcode::kRead ? local : remote;
  const std::byte* from = op.opcode == Opcode::kRead ? remote : local;
  if (op.buffer.size() >= kStreamingBytes) {
    stream_copy(to, from, bytes);
  } else {
    std::memcpy(to, from, bytes);
  }
  (op.opcode == Opcode::kRead ? counters_.bytes_copied_rx : counters_.bytes_copied_tx) += bytes;
  op.done += bytes;
}

bool ShmTransport::advance(Endpoint& endpoint, PendingOp& op, size_t& budget) {
  std::span<const std::byte> payload;
  if (op.opcode == Opcode::kSend) {
    payload = op.buffer.bytes();
  } else {
    const size_t bytes = std::min(budget, op.buffer.size() - op.done);
    if (bytes != 0) copy_chunk(op, bytes);
    budget -= bytes;
    if (op.done < op.buffer.size()) return false;
    if (op.opcode != Opcode::kWriteNotify) return true;
  }
  const MessageKind kind = op.opcode == Opcode::kSend ? MessageKind::kMessage : MessageKind::kNotify;
  if (!endpoint.sender->try_send(kind, op.immediate, payload)) return false;
  ++counters_.messages_sent;
  counters_.bytes_copied_tx += payload.size();
  after_push(endpoint);
  return true;
}

// The sender's half of the protocol against lost wake-ups (endpoint.h).
void ShmTransport::after_push(Endpoint& endpoint) {
  std::atomic_thread_fence(std::memory_order_seq_cst);
  std::atomic<uint32_t>& sleeps = endpoint.outgoing->receiver_sleeps;
  if (sleeps.load(std::memory_order_relaxed) == 0) return;
  sleeps.store(0, std::memory_order_relaxed);
  endpoint.channel.ring_bell();
}

void ShmTransport::finish(Endpoint& endpoint, PendingOp op, Errc result) {
  completions_.push(Completion{.opcode = op.opcode,
                               .result = result,
                               .immediate = op.immediate,
                               .endpoint = endpoint.id,
                               .user_data = op.user_data,
                               .buffer = std::move(op.buffer)});
}

}  // namespace genie::datapath::shm
