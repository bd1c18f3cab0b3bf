// Transfers that travel as active messages.
#include <algorithm>
#include <cstring>
#include <utility>

#include "datapath/base/clock.h"
#include "datapath/ucx/ucx_impl.h"

namespace genie::datapath::ucx {
namespace {

constexpr size_t kMaxFreeCopies = 16;

constexpr size_t padded(size_t size) { return (size + alignof(PieceHeader) - 1) & ~(alignof(PieceHeader) - 1); }
static_assert(padded(kPieceBytes) + sizeof(PieceHeader) <= kGatherBytes);

}  // namespace

std::unique_ptr<Copy> CopyPool::take() {
  if (free_.empty()) return std::make_unique<Copy>(size_);
  std::unique_ptr<Copy> copy = std::move(free_.back());
  free_.pop_back();
  return copy;
}

void CopyPool::give_back(std::unique_ptr<Copy> copy) {
  if (free_.size() < kMaxFreeCopies) free_.push_back(std::move(copy));
}

// -- Sending -------------------------------------------------------------------------------------------------------------

Carried& UcxFabric::take_carried(UcxLink& link, uint32_t lane, Carried::Kind kind) {
  const SlotId slot = carried_.emplace();
  Carried& carried = *carried_.find(slot.index, slot.generation);
  carried.fabric = this;
  carried.link = &link;
  carried.lane = lane;
  carried.kind = kind;
  carried.slot = slot;
  return carried;
}

// Errors are the link's: what was to be sent ends when it is closed.
void UcxFabric::send_carried(Carried& carried, const void* bytes, size_t size) {
  UcxLane& lane = carried.link->lanes[carried.lane];
  unsigned id = kPlacedId;
  size_t header_size = sizeof(MessageTag);
  switch (carried.kind) {
    case Carried::Kind::kPieces: id = kPiecesId; break;
    case Carried::Kind::kWrite: id = kWriteId, header_size = sizeof(WriteHeader); break;
    case Carried::Kind::kRead: id = kReadId, header_size = sizeof(ReadHeader); break;
    case Carried::Kind::kAnswer: id = kAnswerId, header_size = sizeof(AnswerHeader); break;
    case Carried::Kind::kPlaced: break;
  }
  lane.tag.placed = lane.placed;
  carried.tag = lane.tag;  // every header begins with it
  ++lane.tag.number;
  ucp_request_param_t param{};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_FLAGS;
  param.cb.send = &UcxFabric::on_carried;
  param.user_data = &carried;
  param.flags = UCP_AM_SEND_FLAG_EAGER;
  const ucs_status_ptr_t request = ucp_am_send_nbx(lane.endpoint, id, &carried.tag, header_size, bytes, size, &param);
  if (UCS_PTR_IS_ERR(request)) {
    carried.result = Errc::kDisconnected;
    fail(*carried.link, Errc::kDisconnected, ucs_status_string(UCS_PTR_STATUS(request)));
  } else if (request != nullptr) {
    carried.in_ucx = true;
    ++carried.link->outstanding;
  }
}

void UcxFabric::on_carried(void* request, ucs_status_t status, void* argument) {
  auto& carried = *static_cast<Carried*>(argument);
  UcxFabric& fabric = *carried.fabric;
  ucp_request_free(request);
  carried.in_ucx = false;
  if (!fabric.ending_) {
    --carried.link->outstanding;
    if (status != UCS_OK) {
      if (carried.result == Errc::kOk) carried.result = errc_of(status);
      fabric.fail(*carried.link, Errc::kDisconnected, ucs_status_string(status));
    }
  }
  fabric.settle(carried);
}

// Ends it if nothing is missing any more.
void UcxFabric::settle(Carried& carried) {
  if (carried.in_ucx || (carried.awaited && !ending_)) return;
  switch (carried.kind) {
    case Carried::Kind::kPieces: gather_copies_.give_back(std::move(carried.copy)); break;
    case Carried::Kind::kWrite:
    case Carried::Kind::kRead:
      if (carried.signaled) done_.push({carried.cookie, carried.result});
      break;
    case Carried::Kind::kAnswer:
      if (carried.mapping != nullptr && --carried.mapping->answers == 0 && carried.mapping->dropped) {
        std::erase_if(dropped_, [&](const auto& mapping) { return mapping.get() == carried.mapping; });
      }
      if (carried.copy != nullptr) answer_copies_.give_back(std::move(carried.copy));
      if (!ending_) --carried.link->lanes[carried.lane].answers;
      break;
    case Carried::Kind::kPlaced:
      if (ending_) break;
      UcxLane& lane = carried.link->lanes[carried.lane];
      lane.telling = false;
      if (lane.placed != lane.tag.placed) owe(lane);
      break;
  }
  carried_.erase(carried.slot.index, carried.slot.generation);
}

// Adds a piece to those that leave together. False when there is no room: the others are to be sent first.
bool UcxFabric::gather(UcxLane& lane, const PieceHeader& header, const std::byte* bytes) {
  if (lane.gathered + sizeof(header) + padded(header.size) > kGatherBytes) return false;
  if (lane.pieces == nullptr) {
    const auto index = static_cast<uint32_t>(&lane - lane.link->lanes.data());
    lane.pieces = &take_carried(*lane.link, index, Carried::Kind::kPieces);
    lane.pieces->copy = gather_copies_.take();
    gathering_.push_back(&lane);
  }
  std::byte* const at = lane.pieces->copy->data() + lane.gathered;
  std::memcpy(at, &header, sizeof(header));
  std::memcpy(at + sizeof(header), bytes, header.size);
  // What lay there before may have been for somebody else.
  std::memset(at + sizeof(header) + header.size, 0, padded(header.size) - header.size);
  lane.gathered += sizeof(header) + padded(header.size);
  return true;
}

void UcxFabric::send_pieces(UcxLane& lane) {
  Carried& pieces = *std::exchange(lane.pieces, nullptr);
  const size_t size = std::exchange(lane.gathered, 0);
  std::erase(gathering_, &lane);
  if (lane.endpoint != nullptr && !lane.link->failed && !lane.link->forced) {
    send_carried(pieces, pieces.copy->data(), size);
  }
  settle(pieces);
}

void UcxFabric::carry(UcxLink& link, uint32_t index, const Descriptor& item, bool piece) {
  UcxLane& lane = link.lanes[index];
  const bool writes = item.op == Descriptor::Op::kWrite;
  const auto& remote = *static_cast<const UcxRemote*>(item.remote);
  Place place = remote.place;
  place.offset = item.remote_address - remote.base;
  ++link.awaited;
  if (piece) {
    const PieceHeader header{.place = place, .size = static_cast<uint32_t>(item.size)};
    if (!gather(lane, header, item.local)) {
      send_pieces(lane);
      (void)gather(lane, header, item.local);
    }
    lane.written.push({.cookie = item.cookie, .signaled = item.signaled});
    return;
  }
  ++lane.large;
  if (lane.pieces != nullptr) send_pieces(lane);
  Carried& carried = take_carried(link, index, writes ? Carried::Kind::kWrite : Carried::Kind::kRead);
  carried.awaited = true;
  carried.signaled = item.signaled;
  carried.cookie = item.cookie;
  carried.local = item.local;
  carried.size = item.size;
  if (writes) {
    carried.write.place = place;
    lane.written.push({.carried = carried.slot});
    send_carried(carried, item.local, item.size);
  } else {
    carried.read.place = place;
    carried.read.size = item.size;
    carried.read.read = carried.slot.index;
    carried.read.read_generation = carried.slot.generation;
    lane.reads.push_back(carried.slot);
    send_carried(carried, nullptr, 0);
  }
}

void UcxFabric::end_written(UcxLink& link, const Written& written, Errc result) {
  Carried* const carried = carried_.find(written.carried.index, written.carried.generation);
  if (carried == nullptr) {
    --link.awaited;
    if (written.signaled) done_.push({written.cookie, result});
    return;
  }
  end_awaited(*carried, result);
}

void UcxFabric::end_awaited(Carried& carried, Errc result) {
  carried.awaited = false;
  if (carried.result == Errc::kOk) carried.result = result;
  --carried.link->lanes[carried.lane].large;
  --carried.link->awaited;
  settle(carried);
}

// The peer has told of so many of this lane's writes. False: it cannot have.
bool UcxFabric::confirm(UcxLane& lane, uint32_t placed) {
  uint32_t fresh = placed - lane.confirmed;
  if (fresh > lane.written.size()) {
    fail(*lane.link, Errc::kProtocol, "writes placed that were never made");
    return false;
  }
  lane.confirmed = placed;
  for (; fresh != 0; --fresh) end_written(*lane.link, lane.written.pop(), Errc::kOk);
  return true;
}

// The link is being closed by force: the peer says no more, and what UCX still has it gives back.
void UcxFabric::drop_carried(UcxLink& link) {
  for (UcxLane& lane : link.lanes) {
    if (lane.pieces != nullptr) send_pieces(lane);
    while (!lane.written.empty()) end_written(link, lane.written.pop(), Errc::kCancelled);
    for (const SlotId slot : lane.reads) end_awaited(*carried_.find(slot.index, slot.generation), Errc::kCancelled);
    lane.reads.clear();
  }
}

// -- Receiving -----------------------------------------------------------------------------------------------------------

// Null where the peer may not address it.
UcxMemory* UcxFabric::find_granted(UcxLink& link, const Place& place, uint64_t size) {
  UcxMemory** const found = link.granted.find(place.grant, place.generation);
  if (found == nullptr || !(*found)->on_host) return nullptr;
  UcxMemory* const memory = *found;
  return size <= memory->size && place.offset <= memory->size - size ? memory : nullptr;
}

// What is on its way while this side closes may name memory that has gone by now.
void UcxFabric::refuse(UcxLink& link) {
  if (!link.closing) return fail(link, Errc::kProtocol, "memory addressed that was not granted");
  link.deaf = true;  // to count what comes after it would tell the peer that this one was placed
}

bool UcxFabric::place(UcxLane& lane, const Place& where, const void* bytes, size_t size) {
  const UcxMemory* const memory = find_granted(*lane.link, where, size);
  if (memory == nullptr) {
    refuse(*lane.link);
    return false;
  }
  std::memcpy(memory->data + where.offset, bytes, size);
  ++lane.placed;
  owe(lane);
  return true;
}

ucs_status_t UcxFabric::on_write(void* argument, const void* header, size_t header_size, void* data, size_t size,
                                 const ucp_am_recv_param_t* param) {
  auto& fabric = *static_cast<UcxFabric*>(argument);
  UcxLane* const lane = fabric.arrived(header, header_size, sizeof(WriteHeader), param);
  if (lane == nullptr) return UCS_OK;
  WriteHeader write;
  std::memcpy(&write, header, sizeof(write));
  (void)fabric.place(*lane, write.place, data, size);
  return UCS_OK;
}

ucs_status_t UcxFabric::on_pieces(void* argument, const void* header, size_t header_size, void* data, size_t size,
                                  const ucp_am_recv_param_t* param) {
  auto& fabric = *static_cast<UcxFabric*>(argument);
  UcxLane* const lane = fabric.arrived(header, header_size, sizeof(MessageTag), param);
  if (lane == nullptr) return UCS_OK;
  const auto index = static_cast<size_t>(lane - lane->link->lanes.data());
  std::span<const std::byte> left(static_cast<const std::byte*>(data), size);
  while (!left.empty()) {
    PieceHeader piece;
    if (left.size() >= sizeof(piece)) std::memcpy(&piece, left.data(), sizeof(piece));
    if (left.size() < sizeof(piece) || left.size() - sizeof(piece) < padded(piece.size)) {
      fabric.fail(*lane->link, Errc::kProtocol, "pieces that do not add up");
      return UCS_OK;
    }
    const std::span<const std::byte> bytes = left.subspan(sizeof(piece), piece.size);
    left = left.subspan(sizeof(piece) + padded(piece.size));
    if (piece.message != 0) {
      fabric.sink_->on_message(*lane->link, index, bytes);
    } else if (!fabric.place(*lane, piece.place, bytes.data(), bytes.size())) {
      return UCS_OK;
    }
  }
  return UCS_OK;
}

void UcxFabric::owe(UcxLane& lane) {
  if (lane.owes || lane.telling) return;
  lane.owes = true;
  lane.owed_since = polls_;
  lane.owed_since_ns = now_ns();
  owing_.push(&lane);
}

// One word for all that has come since the last, and none where what this side says next takes it along: between the poll()
// that delivers a write and the next but one there is time for that, unless bulk makes them long.
void UcxFabric::tell_placed() {
  constexpr uint64_t kPatiencePolls = 2;
  constexpr uint64_t kPatienceNs = 20'000;
  ++polls_;
  if (owing_.empty()) return;
  const uint64_t now = now_ns();
  const auto due = [&](const UcxLane& lane) {
    return polls_ - lane.owed_since >= kPatiencePolls || now - lane.owed_since_ns >= kPatienceNs;
  };
  while (!owing_.empty() && due(*owing_.front())) {
    UcxLane& lane = *owing_.pop();
    lane.owes = false;
    if (lane.placed == lane.tag.placed || lane.endpoint == nullptr || lane.link->failed) continue;
    const auto index = static_cast<uint32_t>(&lane - lane.link->lanes.data());
    Carried& carried = take_carried(*lane.link, index, Carried::Kind::kPlaced);
    lane.telling = true;
    send_carried(carried, nullptr, 0);
    settle(carried);
  }
}

ucs_status_t UcxFabric::on_placed(void* argument, const void* header, size_t header_size, void*, size_t,
                                  const ucp_am_recv_param_t* param) {
  (void)static_cast<UcxFabric*>(argument)->arrived(header, header_size, sizeof(MessageTag), param);
  return UCS_OK;
}

ucs_status_t UcxFabric::on_read(void* argument, const void* header, size_t header_size, void*, size_t,
                                const ucp_am_recv_param_t* param) {
  auto& fabric = *static_cast<UcxFabric*>(argument);
  UcxLane* const lane = fabric.arrived(header, header_size, sizeof(ReadHeader), param);
  if (lane == nullptr) return UCS_OK;
  Request request{.link = lane->link->slot, .lane = static_cast<uint32_t>(lane - lane->link->lanes.data())};
  std::memcpy(&request.header, header, sizeof(request.header));
  if (lane->answers == kMaxReads) {
    fabric.fail(*lane->link, Errc::kProtocol, "more reads at a time than there may be");
    return UCS_OK;
  }
  ++lane->answers;
  fabric.requests_.push(request);
  return UCS_OK;
}

void UcxFabric::answer_reads() {
  while (!requests_.empty()) {
    const Request request = requests_.pop();
    UcxLink** const link = links_.find(request.link.index, request.link.generation);
    if (link != nullptr) answer(**link, request.lane, request.header);
  }
}

// Memory of the caller's may be gone when UCX gets to send it: then it sends a copy.
void UcxFabric::answer(UcxLink& link, uint32_t index, const ReadHeader& request) {
  UcxLane& lane = link.lanes[index];
  if (link.failed || lane.endpoint == nullptr) {
    --lane.answers;
    return;
  }
  const UcxMemory* const memory = find_granted(link, request.place, request.size);
  if (memory == nullptr || request.size == 0 || request.size > kChunkBytes) {
    --lane.answers;
    return refuse(link);
  }
  Carried& carried = take_carried(link, index, Carried::Kind::kAnswer);
  carried.answer.read = request.read;
  carried.answer.read_generation = request.read_generation;
  const std::byte* bytes = memory->data + request.place.offset;
  if (memory->lasting) {
    carried.mapping = memory->mapping.get();
    ++carried.mapping->answers;
  } else {
    carried.copy = answer_copies_.take();
    std::memcpy(carried.copy->data(), bytes, request.size);
    bytes = carried.copy->data();
  }
  send_carried(carried, bytes, request.size);
  settle(carried);
}

ucs_status_t UcxFabric::on_answer(void* argument, const void* header, size_t header_size, void* data, size_t size,
                                  const ucp_am_recv_param_t* param) {
  auto& fabric = *static_cast<UcxFabric*>(argument);
  UcxLane* const lane = fabric.arrived(header, header_size, sizeof(AnswerHeader), param);
  if (lane == nullptr) return UCS_OK;
  AnswerHeader answer;
  std::memcpy(&answer, header, sizeof(answer));
  const auto read = std::ranges::find_if(
      lane->reads, [&](SlotId slot) { return slot.index == answer.read && slot.generation == answer.read_generation; });
  Carried* const carried = read == lane->reads.end() ? nullptr : fabric.carried_.find(read->index, read->generation);
  if (carried == nullptr || carried->size != size) {
    fabric.fail(*lane->link, Errc::kProtocol, "an answer to no read");
    return UCS_OK;
  }
  std::memcpy(carried->local, data, size);
  *read = lane->reads.back();
  lane->reads.pop_back();
  fabric.end_awaited(*carried, Errc::kOk);
  return UCS_OK;
}

}  // namespace genie::datapath::ucx
