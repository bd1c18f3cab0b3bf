// Transfers and messages.
#include <algorithm>
#include <cstring>
#include <utility>

#include "datapath/ucx/ucx_impl.h"

namespace genie::datapath::ucx {

// Held by whoever took it until end_of().
Batch& UcxFabric::take_batch(UcxLane& lane) {
  if (free_batches_ == nullptr) {
    batches_.push_back(std::make_unique<Batch>());
    batches_.back()->fabric = this;
    free_batches_ = batches_.back().get();
  }
  Batch& batch = *std::exchange(free_batches_, free_batches_->next);
  batch.lane = &lane;
  batch.posted = 0;
  batch.remaining = 1;
  batch.count = 0;
  batch.status = UCS_OK;
  return batch;
}

// One part of it, a transfer or the flush, has ended.
void UcxFabric::end_of(Batch& batch, ucs_status_t status) {
  if (status != UCS_OK) batch.status = status;
  if (--batch.remaining != 0) return;
  batch.lane->large -= batch.posted;
  for (uint32_t i = 0; i < batch.count; ++i) done_.push({batch.cookies[i], errc_of(batch.status)});
  batch.next = std::exchange(free_batches_, &batch);
}

void UcxFabric::on_batch(void* request, ucs_status_t status, void* argument) {
  auto& batch = *static_cast<Batch*>(argument);
  ucp_request_free(request);
  if (batch.fabric->ending_) return;
  --batch.lane->link->outstanding;
  batch.fabric->end_of(batch, status);
}

void UcxFabric::follow(Batch& batch, ucs_status_ptr_t request) {
  if (UCS_PTR_IS_ERR(request)) {
    batch.status = UCS_PTR_STATUS(request);
  } else if (request != nullptr) {
    ++batch.remaining;
    ++batch.lane->link->outstanding;
  }
}

// A put that has ended says only that the local buffer is free again. One flush serves all that were posted since the last.
void UcxFabric::flush_writes(UcxLane& lane) {
  Batch& batch = *std::exchange(lane.writes, nullptr);
  std::erase(unflushed_, &lane);
  ucp_request_param_t param{};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
  param.cb.send = &UcxFabric::on_batch;
  param.user_data = &batch;
  follow(batch, ucp_ep_flush_nbx(lane.endpoint, &param));
  end_of(batch, UCS_OK);
}

void UcxFabric::post_natively(UcxLane& lane, size_t index, const Descriptor& item) {
  const ucp_rkey_h key = static_cast<const UcxRemote*>(item.remote)->keys[index];
  const bool writes = item.op == Descriptor::Op::kWrite;
  if (writes && lane.writes == nullptr) {
    lane.writes = &take_batch(lane);
    unflushed_.push_back(&lane);
  }
  Batch& batch = writes ? *lane.writes : take_batch(lane);
  ++batch.posted;
  ++lane.large;
  ucp_request_param_t param{};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
  param.cb.send = &UcxFabric::on_batch;
  param.user_data = &batch;
  if (item.signaled) batch.cookies[batch.count++] = item.cookie;
  if (writes) {
    follow(batch, ucp_put_nbx(lane.endpoint, item.local, item.size, item.remote_address, key, &param));
    if (batch.count == kMaxBatch) flush_writes(lane);
  } else {
    follow(batch, ucp_get_nbx(lane.endpoint, item.local, item.size, item.remote_address, key, &param));
    end_of(batch, UCS_OK);
  }
}

// Memory that the CPU cannot touch UCX moves by itself, also where everything else is carried.
size_t UcxFabric::post(FabricLink& base, TransferClass transfer_class, std::span<const Descriptor> descriptors) {
  auto& link = static_cast<UcxLink&>(base);
  const auto index = static_cast<uint32_t>(transfer_class);
  UcxLane& lane = link.lanes[index];
  size_t took = 0;
  for (const Descriptor& item : descriptors) {
    if (lane.endpoint == nullptr || link.failed) break;
    const auto& remote = *static_cast<const UcxRemote*>(item.remote);
    const auto* const memory = static_cast<const UcxMemory*>(item.memory);
    const bool carried = remote.carried && (memory == nullptr || memory->on_host);
    const bool piece = carried && item.op == Descriptor::Op::kWrite && item.size <= kPieceBytes;
    const bool reads = item.op == Descriptor::Op::kRead;
    if (!piece && lane.large >= (!carried ? kMaxLarge : reads ? kMaxReads : kMaxCarriedWrites)) break;
    if (carried) {
      carry(link, index, item, piece);
    } else {
      post_natively(lane, index, item);
    }
    ++took;
  }
  return took;
}

// -- Messages ------------------------------------------------------------------------------------------------------------

std::span<std::byte> UcxFabric::message_place(FabricLink& base, TransferClass transfer_class) {
  auto& link = static_cast<UcxLink&>(base);
  UcxLane& lane = link.lanes[static_cast<size_t>(transfer_class)];
  if (lane.endpoint == nullptr || link.failed) return {};
  if (lane.place == nullptr) {
    if (free_places_ == nullptr) {
      places_.push_back(std::make_unique<MessagePlace>());
      lane.place = places_.back().get();
      lane.place->fabric = this;
    } else {
      lane.place = std::exchange(free_places_, free_places_->next);
    }
  }
  return lane.place->bytes;
}

void UcxFabric::give_back(MessagePlace& place) { place.next = std::exchange(free_places_, &place); }

void UcxFabric::send(FabricLink& base, TransferClass transfer_class, size_t size) {
  auto& link = static_cast<UcxLink&>(base);
  UcxLane& lane = link.lanes[static_cast<size_t>(transfer_class)];
  MessagePlace& place = *lane.place;
  if (lane.pieces != nullptr) {
    const bool joined =
        size <= kPieceBytes && gather(lane, {.size = static_cast<uint32_t>(size), .message = 1}, place.bytes.data());
    send_pieces(lane);
    if (joined) return;
  }
  place.link = &link;
  place.tag = lane.tag;
  ++lane.tag.number;
  ucp_request_param_t param{};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_FLAGS;
  param.cb.send = &UcxFabric::on_sent;
  param.user_data = &place;
  param.flags = UCP_AM_SEND_FLAG_EAGER;
  const ucs_status_ptr_t request =
      ucp_am_send_nbx(lane.endpoint, kMessageId, &place.tag, sizeof(place.tag), place.bytes.data(), size, &param);
  if (UCS_PTR_IS_ERR(request)) {
    fail(link, Errc::kDisconnected, ucs_status_string(UCS_PTR_STATUS(request)));
  } else if (request != nullptr) {
    ++link.outstanding;
    lane.place = nullptr;  // UCX still reads it
  }
}

void UcxFabric::on_sent(void* request, ucs_status_t status, void* argument) {
  auto& place = *static_cast<MessagePlace*>(argument);
  UcxFabric& fabric = *place.fabric;
  ucp_request_free(request);
  fabric.give_back(place);
  if (fabric.ending_) return;
  --place.link->outstanding;
  if (status != UCS_OK) fabric.fail(*place.link, Errc::kDisconnected, ucs_status_string(status));
}

// Also of a link that broke here: what its peer sent before is still good. Not of one whose peer broke the protocol.
UcxLane* UcxFabric::arrived(const void* header, size_t header_size, size_t wanted_size,
                            const ucp_am_recv_param_t* param) {
  if (header_size != wanted_size || (param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) != 0) return nullptr;
  MessageTag tag;
  std::memcpy(&tag, header, sizeof(tag));
  const uint32_t index = tag.link & ((1U << kLaneBits) - 1);
  UcxLink** const found = links_.find(tag.link >> kLaneBits, tag.generation);
  if (index >= kLaneCount || found == nullptr || (*found)->nonce != tag.nonce) return nullptr;
  UcxLink& link = **found;
  if (link.owner == nullptr || link.forced || link.deaf || sink_ == nullptr) return nullptr;
  UcxLane& lane = link.lanes[index];
  if (tag.number != lane.received++) {
    fail(link, Errc::kProtocol, "active messages out of order");
    return nullptr;
  }
  return confirm(lane, tag.placed) ? &lane : nullptr;
}

ucs_status_t UcxFabric::on_message(void* argument, const void* header, size_t header_size, void* data, size_t size,
                                   const ucp_am_recv_param_t* param) {
  auto& fabric = *static_cast<UcxFabric*>(argument);
  UcxLane* const lane = fabric.arrived(header, header_size, sizeof(MessageTag), param);
  if (lane == nullptr) return UCS_OK;
  const auto index = static_cast<size_t>(lane - lane->link->lanes.data());
  fabric.sink_->on_message(*lane->link, index, {static_cast<const std::byte*>(data), size});
  return UCS_OK;
}

}  // namespace genie::datapath::ucx
