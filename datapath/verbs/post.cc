// Posting transfers and messages.
#include <arpa/inet.h>

#include <cassert>
#include <cstring>
#include <utility>

#include "datapath/base/log.h"
#include "datapath/verbs/fabric_impl.h"

namespace genie::datapath::verbs {
namespace {

// Smaller transfers of the bulk lane stay on one rail: spreading them gains nothing.
constexpr size_t kSpreadBytes = size_t{16} << 10;
// Of the messages of a lane every so many gets a completion.
constexpr uint32_t kMessagesPerCompletion = 16;
static_assert(kMessagesPerCompletion < net::kReservedMessages * 8 && kMessagesPerCompletion * 2 < kSlots);
constexpr size_t kStagingPlaces = 8;

}  // namespace

// The rail of a transfer, or -1 while there is none: only bulk may leave the home of its lane, for whose writes and messages
// `ordered` promises nothing.
int VerbsFabric::choose_rail(const Link& link, size_t lane, const net::Descriptor& wanted) const noexcept {
  const int home = link.lanes[lane].home;
  const bool home_up = link.rails[static_cast<size_t>(home)].state == RailState::kUp;
  if (link.ordered[lane]) return home_up ? home : -1;
  if (home_up && wanted.size < kSpreadBytes) return home;
  std::array<RailLoad, kRailsMax> loads;
  for (size_t i = 0; i < link.rails.size(); ++i) {
    const Rail& rail = link.rails[i];
    if (rail.state != RailState::kUp) continue;  // its queue pairs may be gone
    loads[i] = {.up = true,
                .megabits = rail.device->megabits,
                .bytes_out = rail.pairs[lane]->bytes_out,
                .numa_node = rail.device->numa_node};
  }
  const VerbsMemory* memory = static_cast<const VerbsMemory*>(wanted.memory);
  // The device touches the bytes where they are staged.
  if (memory == nullptr || memory->staged) memory = link.lanes[lane].staging.get();
  return quickest_rail(std::span(loads).first(link.rails.size()), wanted.size,
                       memory != nullptr ? memory->numa_node() : kAnyNode);
}

// Memory that no device knows or reaches is copied by way of memory that they know; what fits into the work request needs
// neither. False when all such places are taken.
bool VerbsFabric::stage(Lane& lane, Flight& flight, const QueuePair& pair) {
  const net::Descriptor& wanted = flight.descriptor;
  const bool write = wanted.op == net::Descriptor::Op::kWrite;
  if (wanted.memory != nullptr ? !wanted.memory->staged : write && wanted.size <= pair.inline_max) return true;
  if (lane.staging == nullptr) {
    Result<std::unique_ptr<net::FabricMemory>> made = allocate(kStagingPlaces * info_.chunk_bytes, true);
    if (!made.ok()) {
      GENIE_LOG_ERROR("verbs: no memory to copy unregistered buffers through: {}", made.status().to_string());
      return false;
    }
    lane.staging.reset(static_cast<VerbsMemory*>(made->release()));
    for (size_t i = 0; i < kStagingPlaces; ++i) {
      lane.staging_free.push_back(lane.staging->data + i * info_.chunk_bytes);
    }
  }
  if (lane.staging_free.empty()) return false;
  flight.staged = lane.staging_free.back();
  lane.staging_free.pop_back();
  return true;
}

// The bytes between a flight's place in the staging memory and where they belong.
Status VerbsFabric::copy_staged(const Flight& flight) {
  const net::Descriptor& wanted = flight.descriptor;
  const bool write = wanted.op == net::Descriptor::Op::kWrite;
  std::byte* const to = write ? flight.staged : wanted.local;
  const std::byte* const from = write ? wanted.local : flight.staged;
  if (wanted.memory != nullptr) return static_cast<const VerbsMemory*>(wanted.memory)->copy(to, from, wanted.size);
  std::memcpy(to, from, wanted.size);
  return {};
}

// A transfer that cannot be posted. Where messages follow writes without waiting for them, nothing may follow this one.
void VerbsFabric::refuse(Link& link, size_t lane, Flight& flight, const Status& why) {
  GENIE_LOG_ERROR("verbs: {}", why.to_string());
  finish(link, link.lanes[lane], flight, why.code());
  if (link.ordered[lane] && flight.descriptor.op == net::Descriptor::Op::kWrite) fail_link(link, why);
}

// The next request of the rail's list; the doorbell is rung when it is full.
ibv_send_wr& VerbsFabric::extend(QueuePair& pair, Work work) {
  Chain& chain = chains_[pair.rail];
  if (chain.count == kChain || (chain.count != 0 && chain.pair != &pair)) ring_doorbell(chain);
  chain.pair = &pair;
  ibv_send_wr& request = chain.requests[chain.count++];
  assert(request.num_sge == 1 || request.num_sge == 0);
  request.wr_id = pair.send_id();
  request.num_sge = 1;
  request.send_flags = 0;
  pair.work(pair.posted) = work;
  ++pair.posted;
  ++pair.unsignaled;
  return request;
}

// One doorbell for the whole list. A device that refuses a request loses its rail; the books say what did not end.
void VerbsFabric::ring_doorbell(Chain& chain) {
  if (chain.count == 0) return;
  QueuePair& pair = *chain.pair;
  ibv_send_wr& last = chain.requests[chain.count - 1];
  ibv_send_wr* const next = std::exchange(last.next, nullptr);
  ibv_send_wr* bad = nullptr;
  const int error = ibv_post_send(pair.pair.get(), chain.requests.data(), &bad);
  last.next = next;
  if (error != 0) [[unlikely]] {
    // These will never complete.
    const auto refused = static_cast<uint32_t>(&chain.requests[chain.count] - bad);
    pair.posted -= refused;
    chain.count = 0;
    fail_rail(*pair.link, pair.rail, std::string("the device refuses work: ") + std::strerror(error));
    return;
  }
  chain.count = 0;
}

void VerbsFabric::ring_doorbells() {
  for (Chain& chain : chains_) {
    if (chain.count == 0) continue;
    // The last of a batch tells of all before it.
    chain.requests[chain.count - 1].send_flags |= IBV_SEND_SIGNALED;
    chain.pair->unsignaled = 0;
    ring_doorbell(chain);
  }
}

// Puts a flight, new or one that lost its rail, on the list of its rail.
void VerbsFabric::append(Link& link, size_t lane_index, uint32_t count) {
  Lane& lane = link.lanes[lane_index];
  Flight& flight = lane.flight(count);
  const net::Descriptor& wanted = flight.descriptor;
  Rail& rail = link.rails[flight.rail];
  QueuePair& pair = *rail.pairs[lane_index];
  const bool write = wanted.op == net::Descriptor::Op::kWrite;
  const VerbsMemory* memory =
      flight.staged != nullptr ? lane.staging.get() : static_cast<const VerbsMemory*>(wanted.memory);
  const bool by_value = write && wanted.size <= pair.inline_max && (memory == nullptr || memory->on_host);
  uint32_t key = 0;
  if (!by_value) {
    const Result<ibv_mr*> region = memory->in(rail.domain, false);
    if (!region.ok()) [[unlikely]]
      return refuse(link, lane_index, flight, region.status());
    key = (*region)->lkey;
  }
  ibv_send_wr& request = extend(pair, {Work::Kind::kFlight, count});
  request.opcode = write ? IBV_WR_RDMA_WRITE : IBV_WR_RDMA_READ;
  if (by_value) request.send_flags |= IBV_SEND_INLINE;
  request.sg_list->addr = reinterpret_cast<uint64_t>(flight.staged != nullptr ? flight.staged : wanted.local);
  request.sg_list->length = static_cast<uint32_t>(wanted.size);
  request.sg_list->lkey = key;
  request.wr.rdma.remote_addr = wanted.remote_address;
  request.wr.rdma.rkey = static_cast<const Remote*>(wanted.remote)->keys[flight.rail];
  pair.bytes_out += wanted.size;
}

size_t VerbsFabric::post(net::FabricLink& base, TransferClass transfer_class, std::span<const net::Descriptor> batch) {
  Link& link = static_cast<Link&>(base);
  if (link.state != LinkState::kOpen) return 0;
  const auto lane_index = static_cast<size_t>(transfer_class);
  Lane& lane = link.lanes[lane_index];
  size_t taken = 0;
  for (; taken < batch.size() && lane.end - lane.begin < kFlights && link.alive(); ++taken) {
    const int rail = choose_rail(link, lane_index, batch[taken]);
    if (rail < 0) break;
    Flight& flight = lane.flight(lane.end);
    flight = Flight{.descriptor = batch[taken], .rail = static_cast<uint8_t>(rail)};
    if (!stage(lane, flight, *link.rails[static_cast<size_t>(rail)].pairs[lane_index])) break;
    const uint32_t count = lane.end++;
    if (flight.staged != nullptr && flight.descriptor.op == net::Descriptor::Op::kWrite) {
      if (const Status copied = copy_staged(flight); !copied.ok()) [[unlikely]] {
        refuse(link, lane_index, flight, copied);
        continue;
      }
    }
    append(link, lane_index, count);
  }
  ring_doorbells();
  return taken;
}

std::span<std::byte> VerbsFabric::message_place(net::FabricLink& base, TransferClass transfer_class) {
  Link& link = static_cast<Link&>(base);
  Lane& lane = link.lanes[static_cast<size_t>(transfer_class)];
  if (link.state != LinkState::kOpen || lane.sent - lane.acknowledged >= kSlots) return {};
  return {lane.outgoing + lane.next_out * kSlotBytes, kSlotBytes};
}

void VerbsFabric::send(net::FabricLink& base, TransferClass transfer_class, size_t size) {
  Link& link = static_cast<Link&>(base);
  const auto lane_index = static_cast<size_t>(transfer_class);
  Lane& lane = link.lanes[lane_index];
  assert(size <= kSlotBytes);
  const uint32_t place = lane.next_out;
  const uint32_t number = lane.sent++;
  lane.next_out = (place + 1) % kSlots;
  lane.sizes[place] = static_cast<uint16_t>(size);
  // Without its rail the message waits in its place: whoever takes over sends it.
  if (!link.alive() || link.rails[lane.home].state != RailState::kUp) return;
  post_message(link, lane_index, number, place);
}

void VerbsFabric::post_message(Link& link, size_t lane_index, uint32_t number, uint32_t place) {
  Lane& lane = link.lanes[lane_index];
  Rail& rail = link.rails[lane.home];
  QueuePair& pair = *rail.pairs[lane_index];
  ibv_send_wr& request = extend(pair, {Work::Kind::kMessage, 0});
  const uint32_t size = lane.sizes[place];
  request.opcode = IBV_WR_RDMA_WRITE_WITH_IMM;
  request.num_sge = size == 0 ? 0 : 1;
  request.imm_data = htonl(number & kNumberMask);
  request.sg_list->addr = reinterpret_cast<uint64_t>(lane.outgoing + place * kSlotBytes);
  request.sg_list->length = size;
  request.sg_list->lkey = rail.ring_key;
  request.wr.rdma.remote_addr = lane.peer_incoming + place * kSlotBytes;
  request.wr.rdma.rkey = rail.peer_ring_key;
  if (size <= pair.inline_max) request.send_flags |= IBV_SEND_INLINE;
  if (pair.unsignaled >= kMessagesPerCompletion) {
    request.send_flags |= IBV_SEND_SIGNALED;
    pair.unsignaled = 0;
  }
  ring_doorbell(chains_[pair.rail]);
}

void VerbsFabric::post_notice(Link& link, uint32_t failed, uint32_t over) {
  Rail& rail = link.rails[over];
  QueuePair& pair = *rail.pairs[static_cast<size_t>(TransferClass::kControl)];
  ibv_send_wr& request = extend(pair, {Work::Kind::kOther, 0});
  request.opcode = IBV_WR_RDMA_WRITE_WITH_IMM;
  request.num_sge = 0;
  request.imm_data = htonl(make_notice(failed, link.lanes));
  request.wr.rdma.remote_addr = link.lanes[0].peer_incoming;
  request.wr.rdma.rkey = rail.peer_ring_key;
  ring_doorbells();
}

void VerbsFabric::post_fence(QueuePair& pair) {
  ibv_send_wr& request = extend(pair, {Work::Kind::kOther, 0});
  request.opcode = IBV_WR_RDMA_WRITE;
  request.num_sge = 0;
  request.wr.rdma.remote_addr = pair.link->lanes[pair.lane].peer_incoming;
  request.wr.rdma.rkey = pair.link->rails[pair.rail].peer_ring_key;
  ring_doorbells();
}

}  // namespace genie::datapath::verbs
