// Posting operations and moving them on.
//
// Per class, operations end in the order in which they were posted; the bytes of several are in flight at a time. A
// message or a notification leaves after all bytes that were posted before it have arrived (or, where the fabric keeps that
// order itself, are posted), and when the peer has room for it (credits).
#include <algorithm>
#include <array>
#include <cassert>
#include <cstring>
#include <utility>

#include "datapath/net/transport_impl.h"

namespace genie::datapath::net {

Status NetTransport::write(EndpointId endpoint, Buffer& local, const RemoteRegion& remote, size_t offset,
                           const PostOptions& options) {
  return post_transfer(endpoint, local, remote, offset, Opcode::kWrite, 0, options);
}

Status NetTransport::write_with_notify(EndpointId endpoint, Buffer& local, const RemoteRegion& remote, size_t offset,
                                       uint32_t immediate, const PostOptions& options) {
  return post_transfer(endpoint, local, remote, offset, Opcode::kWriteNotify, immediate, options);
}

Status NetTransport::read(EndpointId endpoint, Buffer& local, const RemoteRegion& remote, size_t offset,
                          const PostOptions& options) {
  return post_transfer(endpoint, local, remote, offset, Opcode::kRead, 0, options);
}

Status NetTransport::send(EndpointId id, Buffer& message, uint32_t immediate, const PostOptions& options) {
  Endpoint* const endpoint = usable(id);
  if (endpoint == nullptr) return Errc::kDisconnected;
  if (message.size() > capabilities_.max_send_bytes) {
    return Status(Errc::kOutOfRange, "a message larger than max_send_bytes; write it into a region");
  }
  LocalRegion* const region = regions_.find(message.key().index, message.key().generation);
  if (region != nullptr && !region->memory->on_host) {
    return Status(Errc::kInvalidArgument, "messages leave from host memory; write GPU memory into a region");
  }
  Op* const op = enqueue(*endpoint, Opcode::kSend, immediate, message, options);
  if (op == nullptr) return Errc::kAgain;
  if (region != nullptr) ++region->users;
  launch(*endpoint, op->lane);
  return {};
}

Status NetTransport::post_transfer(EndpointId id, Buffer& local, const RemoteRegion& remote, size_t offset,
                                   Opcode opcode, uint32_t immediate, const PostOptions& options) {
  Endpoint* const endpoint = usable(id);
  if (endpoint == nullptr) return Errc::kDisconnected;
  Import* const import = imports_.find(remote.index, remote.generation);
  if (import == nullptr) return imports_.why(remote.index, remote.generation);
  if (import->endpoint != id) return Status(Errc::kInvalidArgument, "the region belongs to another endpoint");
  if (import->revoked) return Errc::kStale;
  if (offset > import->key.size || local.size() > import->key.size - offset) return Errc::kOutOfRange;
  LocalRegion* region = nullptr;
  if (local.key().valid()) {
    region = region_around(local);
    if (region == nullptr) {
      return Status(Errc::kInvalidArgument, "the buffer does not lie in the region whose key it carries");
    }
  }
  Op* const op = enqueue(*endpoint, opcode, immediate, local, options);
  if (op == nullptr) return Errc::kAgain;
  op->import_index = remote.index;
  op->import_generation = remote.generation;
  op->remote = import->remote.get();
  op->remote_address = import->address + offset;
  ++import->users;
  if (region != nullptr) {
    op->memory = region->memory.get();
    ++region->users;
  }
  launch(*endpoint, op->lane);
  return {};
}

LocalRegion* NetTransport::region_around(const Buffer& buffer) {
  LocalRegion* const region = regions_.find(buffer.key().index, buffer.key().generation);
  if (region == nullptr) return nullptr;
  const auto offset = static_cast<size_t>(buffer.data() - region->memory->data);  // huge when it lies before
  return offset <= region->size && buffer.size() <= region->size - offset ? region : nullptr;
}

// Null, and the buffer untouched, when there is no room. What the operation names must be counted as used.
Op* NetTransport::enqueue(Endpoint& endpoint, Opcode opcode, uint32_t immediate, Buffer& buffer,
                          const PostOptions& options) {
  const auto lane = static_cast<uint32_t>(options.transfer_class);
  RingQueue<SlotId>& queue = endpoint.lanes[lane].queue;
  if (completions_.size() >= options_.max_completions || queue.size() >= options_.max_pending_ops) return nullptr;
  const SlotId slot = ops_.emplace();
  Op& op = *ops_.find(slot.index, slot.generation);
  op.opcode = opcode;
  op.immediate = immediate;
  op.endpoint = endpoint.id;
  op.lane = lane;
  op.user_data = options.user_data;
  op.deadline_ns = options.deadline.when_ns();
  op.buffer.swap(buffer);
  earliest_deadline_ns_ = std::min(earliest_deadline_ns_, op.deadline_ns);
  queue.push(slot);
  ++endpoint.ops;
  return &op;
}

void NetTransport::launch(Endpoint& endpoint, size_t lane) {
  if (endpoint.lanes_ready) {
    post_transfers(endpoint, lane);
    finish_front(endpoint, lane);
  }
  if (endpoint.ops != 0) list(endpoint);
}

// A region must not go while an operation that waits names it.
void NetTransport::release_users(const Op& op) {
  if (op.import_index != UINT32_MAX) {
    Import* const import = imports_.find(op.import_index, op.import_generation);
    assert(import != nullptr);
    if (--import->users == 0) on_unused_import(*import);
  }
  if (op.buffer.key().valid()) {
    LocalRegion* const region = regions_.find(op.buffer.key().index, op.buffer.key().generation);
    if (region != nullptr) --region->users;
  }
}

// Fills the lane with descriptors, a batch at a time.
void NetTransport::post_transfers(Endpoint& endpoint, size_t index) {
  Lane& lane = endpoint.lanes[index];
  while (lane.posted < lane.queue.size()) {
    const size_t count = describe_transfers(lane);
    const size_t took = count == 0 ? 0
                                   : fabric_->post(*endpoint.link, static_cast<TransferClass>(index),
                                                   {batch_.descriptors.data(), count});
    for (size_t i = 0; i < took; ++i) {
      batch_.owners[i]->posted += batch_.descriptors[i].size;
      ++batch_.owners[i]->in_flight;
    }
    lane.in_flight += static_cast<uint32_t>(took);
    while (lane.posted < lane.queue.size()) {
      const SlotId slot = lane.queue.at(lane.posted);
      if (!ops_.find(slot.index, slot.generation)->all_posted()) break;
      ++lane.posted;
    }
    if (took < count || count == 0) return;
  }
}

// What comes next of the lane's operations, into batch_; answers how many descriptors that makes.
size_t NetTransport::describe_transfers(Lane& lane) {
  size_t count = 0;
  size_t at = lane.posted;
  size_t begun = 0;  // of the operation at `at`
  while (at < lane.queue.size() && count < kBatch && lane.in_flight + count < info_.max_in_flight) {
    const SlotId slot = lane.queue.at(at);
    Op& op = *ops_.find(slot.index, slot.generation);
    const size_t done = op.posted + begun;
    if (!op.is_transfer() || done == op.buffer.size()) {
      ++at;
      begun = 0;
      continue;
    }
    batch_.owners[count] = &op;
    batch_.descriptors[count] = {.op = op.opcode == Opcode::kRead ? Descriptor::Op::kRead : Descriptor::Op::kWrite,
                                 .local = op.buffer.data() + done,
                                 .size = std::min(info_.chunk_bytes, op.buffer.size() - done),
                                 .memory = op.memory,
                                 .remote = op.remote,
                                 .remote_address = op.remote_address + done,
                                 .cookie = cookie_of(slot)};
    begun += batch_.descriptors[count].size;
    ++count;
  }
  return count;
}

// Ends what has arrived, from the front, and sends the messages whose turn has come.
void NetTransport::finish_front(Endpoint& endpoint, size_t index) {
  Lane& lane = endpoint.lanes[index];
  for (;;) {
    send_messages(endpoint, index);
    if (lane.messaged == 0) return;
    const SlotId slot = lane.queue.front();
    const Op& op = *ops_.find(slot.index, slot.generation);
    if (op.in_flight != 0) return;
    const Errc result = op.result;
    lane.queue.pop();
    --lane.posted;
    --lane.messaged;
    complete(slot, result);
  }
}

// Where the fabric keeps writes and messages in order, a message goes once all bytes before it are posted.
void NetTransport::send_messages(Endpoint& endpoint, size_t index) {
  Lane& lane = endpoint.lanes[index];
  for (; lane.messaged < lane.posted; ++lane.messaged) {
    const SlotId slot = lane.queue.at(lane.messaged);
    const Op& op = *ops_.find(slot.index, slot.generation);
    if (op.opcode == Opcode::kWrite || op.opcode == Opcode::kRead || op.result != Errc::kOk) continue;
    const bool arrived = lane.messaged == 0 && op.in_flight == 0;
    if (!arrived && !endpoint.link->ordered[index]) return;
    const bool sent = op.opcode == Opcode::kSend
                          ? send_message(endpoint, index, MessageKind::kMessage, op.immediate, op.buffer.bytes())
                          : send_message(endpoint, index, MessageKind::kNotify, op.immediate, {});
    if (!sent) return;
  }
}

// False: not now.
bool NetTransport::send_message(Endpoint& endpoint, size_t index, MessageKind kind, uint32_t immediate,
                                std::span<const std::byte> payload) {
  Lane& lane = endpoint.lanes[index];
  const auto transfer_class = static_cast<TransferClass>(index);
  const bool counted = kind != MessageKind::kCredits;
  if (counted && lane.sent - lane.peer_consumed >= kMessageWindow) return false;
  const std::span<std::byte> place = fabric_->message_place(*endpoint.link, transfer_class);
  if (place.empty()) return false;
  const MessageHeader header{
      .kind = kind, .immediate = immediate, .after = endpoint.frames_sent, .consumed = lane.consumed};
  std::memcpy(place.data(), &header, sizeof(header));
  if (!payload.empty()) std::memcpy(place.data() + sizeof(header), payload.data(), payload.size());
  fabric_->send(*endpoint.link, transfer_class, sizeof(header) + payload.size());
  lane.told = lane.consumed;
  if (!counted) return true;
  ++lane.sent;
  ++counters_.messages_sent;
  counters_.bytes_copied_tx += payload.size();
  return true;
}

// Where nothing goes the other way, credits need a message of their own. The window bounds how many of those there are.
void NetTransport::return_credits(Endpoint& endpoint) {
  for (size_t i = 0; i < kLaneCount; ++i) {
    Lane& lane = endpoint.lanes[i];
    if (lane.consumed - lane.told >= kMessageWindow / 2) (void)send_message(endpoint, i, MessageKind::kCredits, 0, {});
  }
}

void NetTransport::complete(SlotId slot, Errc result) {
  Op& op = *ops_.find(slot.index, slot.generation);
  if (Endpoint* const endpoint = find(op.endpoint); endpoint != nullptr) --endpoint->ops;
  release_users(op);
  const bool copied = info_.copies || (info_.stages && (op.memory == nullptr || op.memory->staged));
  if (result == Errc::kOk && copied && op.is_transfer()) {
    (op.opcode == Opcode::kRead ? counters_.bytes_copied_rx : counters_.bytes_copied_tx) += op.buffer.size();
  }
  completions_.push(Completion{.opcode = op.opcode,
                               .result = result,
                               .immediate = op.immediate,
                               .endpoint = op.endpoint,
                               .user_data = op.user_data,
                               .buffer = std::move(op.buffer)});
  ops_.erase(slot.index, slot.generation);
}

}  // namespace genie::datapath::net
