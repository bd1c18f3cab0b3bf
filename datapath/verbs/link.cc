// The beginning and the end of links.
#include "datapath/verbs/link.h"

#include <algorithm>
#include <cstring>
#include <random>
#include <utility>

#include "datapath/base/log.h"
#include "datapath/memory/pages.h"
#include "datapath/verbs/fabric_impl.h"

namespace genie::datapath::verbs {
namespace {

constexpr uint32_t kAddressMagic = 0x42524556;  // "VERB"
constexpr uint16_t kAddressVersion = 1;

// What a link's address() holds: this, then a RailAddress for each rail. Both ends are of one byte order and one build,
// which the engine's handshake has made sure of.
struct LinkAddress {
  uint32_t magic = kAddressMagic;
  uint16_t version = kAddressVersion;
  uint16_t rails = 0;
  uint64_t nonce = 0;
  std::array<uint64_t, net::kLaneCount> rings{};
};
struct RailAddress {
  Gid gid{};
  std::array<PairAddress, net::kLaneCount> pairs{};
  uint32_t ring_key = 0;
  uint16_t lid = 0;
  uint8_t ethernet = 0;
  uint8_t mtu = 0;
  uint8_t reads_in = 0;
  std::array<uint8_t, 3> unused{};
};
static_assert(sizeof(LinkAddress) == 40 && sizeof(RailAddress) == 52);

constexpr size_t kRingBytes = kSlots * kSlotBytes;

Result<std::vector<RailAddress>> parse(std::span<const std::byte> bytes, LinkAddress& header) {
  const Status nonsense(Errc::kProtocol, "the peer's RDMA address cannot be understood");
  if (bytes.size() < sizeof(header)) return nonsense;
  std::memcpy(&header, bytes.data(), sizeof(header));
  bytes = bytes.subspan(sizeof(header));
  if (header.magic != kAddressMagic || header.rails == 0 || header.rails > kRailsMax) return nonsense;
  if (header.version != kAddressVersion) {
    return Status(Errc::kVersionMismatch, "the peer's RDMA transport is of another version; install the same on both");
  }
  if (bytes.size() != header.rails * sizeof(RailAddress)) return nonsense;
  std::vector<RailAddress> rails(header.rails);
  std::memcpy(rails.data(), bytes.data(), bytes.size());
  for (const RailAddress& rail : rails) {
    if (rail.mtu < IBV_MTU_256 || rail.mtu > IBV_MTU_4096 || rail.reads_in == 0 || rail.ethernet > 1) return nonsense;
  }
  return rails;
}

uint64_t random_nonce() {
  std::random_device source;
  return uint64_t{source()} << 32 | source();
}

}  // namespace

uint32_t make_notice(uint32_t rail, const std::array<Lane, net::kLaneCount>& lanes) noexcept {
  uint32_t notice = kNoticeBit | rail << 24;
  for (size_t lane = 0; lane < lanes.size(); ++lane) notice |= (lanes[lane].received & 0xff) << (8 * lane);
  return notice;
}

Link::~Link() {
  fabric.cut(*this, Errc::kCancelled);
  fabric.forget(*this);
}

Result<std::unique_ptr<net::FabricLink>> VerbsFabric::open_link(std::string_view host) {
  handle_async_events();  // which ports are up now
  auto link = std::make_unique<Link>(*this);
  link->nonce = random_nonce();
  link->ordered = {true, true, devices_.size() == 1};
  const Result<Route> route = find_route(host);
  std::vector<Device*> order;
  for (const auto& device : devices_) {
    if (device->up) order.push_back(device.get());
  }
  const auto on_route = [&](const Device* device) {
    return route.ok() && device->name == route->device && device->port == route->port;
  };
  std::stable_sort(order.begin(), order.end(),
                   [&](const Device* a, const Device* b) { return on_route(a) > on_route(b); });
  if (order.empty()) return Status(Errc::kDeviceLost, "no RDMA port of this process is up any more");
  for (Device* device : order) {
    GidEntry gid = device->gid;
    if (on_route(device) && options_.gid_index < 0) {
      for (const GidEntry& entry : device->gids) {
        if (entry.gid == route->gid && entry.type == gid.type) gid = entry;
      }
    }
    GENIE_TRY(add_rail(*link, *device, gid));
  }
  GENIE_TRY(make_rings(*link));
  // What travels within the work request does so on every rail: a transfer may change over.
  uint32_t inline_max = UINT32_MAX;
  for (const Rail& rail : link->rails) {
    for (const auto& pair : rail.pairs) inline_max = std::min(inline_max, pair->inline_max);
  }
  for (const Rail& rail : link->rails) {
    for (const auto& pair : rail.pairs) pair->inline_max = inline_max;
  }
  return std::unique_ptr<net::FabricLink>(std::move(link));
}

Status VerbsFabric::add_rail(Link& link, Device& device, const GidEntry& gid) {
  Rail& rail = link.rails.emplace_back();
  rail.device = &device;
  rail.own_index = static_cast<uint32_t>(link.rails.size() - 1);
  rail.gid = gid;
  Result<std::shared_ptr<Domain>> domain = Domain::make(device, options_.relaxed_ordering);
  GENIE_TRY(domain.status());
  rail.domain = std::move(*domain);
  for (size_t lane = 0; lane < net::kLaneCount; ++lane) {
    GENIE_TRY(device.reserve(kSends + kReceives));
    auto pair = std::make_unique<QueuePair>();
    pair->link = &link;
    pair->rail = static_cast<uint8_t>(link.rails.size() - 1);
    pair->lane = static_cast<uint8_t>(lane);
    Status made = pair->create(*rail.domain);
    if (made.ok()) made = add_pair(*pair);
    if (!made.ok()) {
      device.unreserve(kSends + kReceives);
      return made;
    }
    rail.pairs[lane] = std::move(pair);
    GENIE_TRY(rail.pairs[lane]->initialize(device));
  }
  return {};
}

Status VerbsFabric::add_pair(QueuePair& pair) {
  if (free_pairs_.empty()) {
    if (pairs_.size() > UINT16_MAX) return Status(Errc::kQuotaExceeded, "too many RDMA connections in one process");
    free_pairs_.push_back(static_cast<uint16_t>(pairs_.size()));
    pairs_.emplace_back();
  }
  const uint16_t index = free_pairs_.back();
  free_pairs_.pop_back();
  pairs_[index].pair = &pair;
  pair.id = uint32_t{pairs_[index].generation} << 16 | index;
  return {};
}

void VerbsFabric::remove_pair(QueuePair& pair) noexcept {
  const auto index = static_cast<uint16_t>(pair.id);
  pairs_[index].pair = nullptr;
  // Completions of the old one may still lie in the queue.
  ++pairs_[index].generation;
  free_pairs_.push_back(index);
}

QueuePair* VerbsFabric::find_pair(uint32_t id) noexcept {
  const auto index = static_cast<uint16_t>(id);
  if (index >= pairs_.size() || pairs_[index].generation != id >> 16) return nullptr;
  return pairs_[index].pair;
}

Status VerbsFabric::make_rings(Link& link) {
  Result<std::unique_ptr<net::FabricMemory>> memory = allocate(2 * net::kLaneCount * kRingBytes, true);
  GENIE_TRY(memory.status());
  link.rings.reset(static_cast<VerbsMemory*>(memory->release()));
  std::byte* at = link.rings->data;
  for (Lane& lane : link.lanes) {
    lane.outgoing = at;
    lane.incoming = at + kRingBytes;
    at += 2 * kRingBytes;
  }
  for (Rail& rail : link.rails) {
    const Result<ibv_mr*> region = link.rings->in(rail.domain, true);
    GENIE_TRY(region.status());
    rail.ring_key = (*region)->lkey;
  }
  return {};
}

Result<std::vector<std::byte>> VerbsFabric::address(net::FabricLink& base) {
  Link& link = static_cast<Link&>(base);
  LinkAddress header{.rails = static_cast<uint16_t>(link.rails.size()), .nonce = link.nonce};
  for (size_t lane = 0; lane < net::kLaneCount; ++lane) {
    header.rings[lane] = reinterpret_cast<uint64_t>(link.lanes[lane].incoming);
  }
  std::vector<std::byte> bytes(sizeof(header) + link.rails.size() * sizeof(RailAddress));
  std::memcpy(bytes.data(), &header, sizeof(header));
  std::byte* at = bytes.data() + sizeof(header);
  for (const Rail& rail : link.rails) {
    const Result<ibv_mr*> region = link.rings->in(rail.domain, true);
    GENIE_TRY(region.status());
    RailAddress end{.gid = rail.gid.gid,
                    .ring_key = (*region)->rkey,
                    .lid = rail.device->lid,
                    .ethernet = static_cast<uint8_t>(rail.device->ethernet ? 1 : 0),
                    .mtu = static_cast<uint8_t>(rail.device->mtu),
                    .reads_in = rail.device->reads_in};
    for (size_t lane = 0; lane < net::kLaneCount; ++lane) {
      end.pairs[lane] = {rail.pairs[lane]->pair->qp_num, rail.pairs[lane]->first_packet};
    }
    std::memcpy(at, &end, sizeof(end));
    at += sizeof(end);
  }
  return bytes;
}

Status VerbsFabric::connect_rail(Rail& rail, std::span<const std::byte> peer) {
  RailAddress end;
  std::memcpy(&end, peer.data(), sizeof(end));
  rail.peer_ring_key = end.ring_key;
  rail.peer_text = gid_text(end.gid);
  const PathOptions path{.mtu = std::min(rail.device->mtu, static_cast<ibv_mtu>(end.mtu)),
                         .peer_gid = end.gid,
                         .peer_lid = end.lid,
                         .reads_in = rail.device->reads_in,
                         .reads_out = std::min(rail.device->reads_out, end.reads_in),
                         .gid_index = rail.gid.index};
  for (size_t lane = 0; lane < net::kLaneCount; ++lane) {
    GENIE_TRY(rail.pairs[lane]->connect(*rail.device, end.pairs[lane], path, options_));
  }
  return {};
}

Status VerbsFabric::connect(net::FabricLink& base, std::span<const std::byte> peer_address) {
  Link& link = static_cast<Link&>(base);
  LinkAddress header;
  const Result<std::vector<RailAddress>> peer = parse(peer_address, header);
  GENIE_TRY(peer.status());
  if (header.nonce == link.nonce) return Status(Errc::kProtocol, "a peer that echoes this side's RDMA address");
  link.left = link.nonce < header.nonce;
  std::vector<RailEnd> ours;
  std::vector<RailEnd> theirs;
  for (const Rail& rail : link.rails) ours.push_back({rail.gid.gid, rail.device->ethernet});
  for (const RailAddress& rail : *peer) theirs.push_back({rail.gid, rail.ethernet == 1});
  const std::vector<RailPair> pairs =
      link.left ? pair_rails(ours, theirs, kRailsMax) : pair_rails(theirs, ours, kRailsMax);
  if (pairs.empty()) {
    return Status(Errc::kUnreachable,
                  "the two ends have no RDMA ports of one kind (Ethernet, InfiniBand); name others");
  }
  std::vector<Rail> chosen;
  Status trouble;
  for (const RailPair& pair : pairs) {
    Rail& rail = chosen.emplace_back(std::move(link.rails[link.left ? pair.left : pair.right]));
    rail.peer_index = link.left ? pair.right : pair.left;
    const auto index = static_cast<uint8_t>(chosen.size() - 1);
    for (const auto& queue : rail.pairs) queue->rail = index;
    const auto* end = reinterpret_cast<const std::byte*>(&(*peer)[rail.peer_index]);
    const Status connected = connect_rail(rail, {end, sizeof(RailAddress)});
    if (connected.ok()) continue;
    trouble = connected;
    rail.state = RailState::kDown;
  }
  for (Rail& rail : link.rails) destroy_pairs(link, rail);
  link.rails = std::move(chosen);
  // A rail that only one side has would fail later and cost a second then: the peer has to try again without it.
  if (!trouble.ok()) return trouble;
  for (size_t lane = 0; lane < net::kLaneCount; ++lane) link.lanes[lane].peer_incoming = header.rings[lane];
  link.state = LinkState::kOpen;
  links_.push_back(&link);
  for (const Rail& rail : link.rails) {
    GENIE_LOG_INFO("verbs: connected {} to {}", rail.device->describe(), rail.peer_text);
  }
  return {};
}

std::string VerbsFabric::describe(net::FabricLink& base) {
  const Link& link = static_cast<Link&>(base);
  std::string text;
  for (const Rail& rail : link.rails) {
    text += fmt::format("{}{} port {} GID {} ({})", text.empty() ? "" : " + ", rail.device->name, rail.device->port,
                        rail.gid.index, gid_type_name(rail.gid.type));
  }
  return text;
}

void VerbsFabric::close(net::FabricLink& base, bool orderly) {
  Link& link = static_cast<Link&>(base);
  if (link.state == LinkState::kCut || link.state == LinkState::kClosed) return;
  if (link.state != LinkState::kDraining) ending_.push_back(&link);
  if (orderly && link.alive()) {
    link.state = LinkState::kDraining;
    drain(link);
  } else {
    cut(link, link.state == LinkState::kFailed ? Errc::kDisconnected : Errc::kCancelled);
  }
}

// Whatever was posted without a completion of its own gets one behind it.
void VerbsFabric::drain(Link& link) {
  for (Rail& rail : link.rails) {
    if (rail.state != RailState::kUp) continue;
    for (const auto& pair : rail.pairs) {
      if (pair->unsignaled != 0) post_fence(*pair);
    }
  }
}

// Ends everything of the link. Without queue pairs no device touches its memory any more.
void VerbsFabric::cut(Link& link, Errc result) noexcept {
  if (link.state == LinkState::kCut || link.state == LinkState::kClosed) return;
  for (Rail& rail : link.rails) destroy_pairs(link, rail);
  link.state = LinkState::kCut;
  for (Lane& lane : link.lanes) {
    for (uint32_t count = lane.begin; count != lane.end; ++count) {
      if (!lane.flight(count).done) finish(link, lane, lane.flight(count), result);
    }
  }
  mark_dirty(link);
}

void VerbsFabric::destroy_pairs(Link&, Rail& rail) noexcept {
  for (auto& pair : rail.pairs) {
    if (pair == nullptr) continue;
    pair->pair.reset();
    remove_pair(*pair);
    rail.device->unreserve(kSends + kReceives);
    pair.reset();
  }
  if (rail.domain != nullptr) rail.domain->ended = true;
}

void VerbsFabric::forget(Link& link) noexcept {
  for (std::vector<Link*>* list : {&links_, &dirty_, &ending_, &failing_}) std::erase(*list, &link);
}

}  // namespace genie::datapath::verbs
