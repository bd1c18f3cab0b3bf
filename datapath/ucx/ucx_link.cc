// Links: their beginning, what they run over, and their end.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <set>
#include <string>
#include <utility>

#include "datapath/base/log.h"
#include "datapath/memory/remote_key.h"
#include "datapath/ucx/ucx_impl.h"
#include "datapath/ucx/ucx_log.h"

namespace genie::datapath::ucx {
namespace {

// In front of the worker's address.
struct LinkAddress {
  uint32_t link = 0;
  uint32_t generation = 0;
  uint64_t nonce = 0;
  uint64_t worker_bytes = 0;
};

// What UCX prints of an endpoint for people, and tells to nobody else:
//   "... lane[0]: 0:tcp/lo.0 md[0] -> ... am am_bw#0 ...", "... put[0]: 0..<short>.." for lanes of devices that can put.
std::string printed(ucp_ep_h endpoint) {
  char* text = nullptr;
  size_t size = 0;
  FILE* const stream = ::open_memstream(&text, &size);
  if (stream == nullptr) return "";
  if (endpoint != nullptr) ucp_ep_print_info(endpoint, stream);
  std::fclose(stream);
  const std::string result(text, size);
  std::free(text);
  return result;
}

// Nonsense in a worker's address makes UCX read on: over zeros, which end it.
constexpr size_t kAddressPadding = size_t{64} << 10;

}  // namespace

UcxLink::~UcxLink() {
  for (const ucs_status_ptr_t request : closers) ucp_request_free(request);
  for (UcxLane& lane : lanes) {
    if (lane.endpoint == nullptr) continue;
    ucp_request_param_t param{};
    param.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS;
    param.flags = peer_errors ? uint32_t{UCP_EP_CLOSE_FLAG_FORCE} : 0U;
    const ucs_status_ptr_t request = ucp_ep_close_nbx(std::exchange(lane.endpoint, nullptr), &param);
    if (UCS_PTR_IS_PTR(request)) ucp_request_free(request);
  }
  fabric->forget(*this);
}

Result<std::unique_ptr<FabricLink>> UcxFabric::open_link(std::string_view) {
  auto link = std::make_unique<UcxLink>();
  link->fabric = this;
  fill_random(std::as_writable_bytes(std::span(&link->nonce, 1)));
  link->slot = links_.emplace(link.get());
  for (UcxLane& lane : link->lanes) lane.link = link.get();
  return std::unique_ptr<FabricLink>(std::move(link));
}

void UcxFabric::forget(UcxLink& link) {
  for (UcxLane& lane : link.lanes) {
    std::erase(unflushed_, &lane);
    for (size_t left = owing_.size(); left != 0; --left) {
      UcxLane* const other = owing_.pop();
      if (other != &lane) owing_.push(other);
    }
    if (lane.pieces != nullptr) send_pieces(lane);  // goes nowhere: what it holds is free again
    if (lane.place != nullptr) give_back(*std::exchange(lane.place, nullptr));
  }
  std::erase(closing_, &link);
  links_.erase(link.slot.index, link.slot.generation);
}

Result<std::vector<std::byte>> UcxFabric::address(FabricLink& base) {
  const auto& link = static_cast<const UcxLink&>(base);
  const LinkAddress own{.link = link.slot.index,
                        .generation = link.slot.generation,
                        .nonce = link.nonce,
                        .worker_bytes = worker_address_.size()};
  std::vector<std::byte> bytes(sizeof(own));
  std::memcpy(bytes.data(), &own, sizeof(own));
  bytes.insert(bytes.end(), worker_address_.begin(), worker_address_.end());
  if (bytes.size() > kMaxAddressBytes) {
    return Status(Errc::kConfig, "UCX finds so many devices that its address is too long: choose with UCX_NET_DEVICES");
  }
  return bytes;
}

Status UcxFabric::connect_lane(UcxLane& lane, const void* worker_address, bool peer_errors) {
  ucp_ep_params_t params{};
  params.field_mask =
      UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE | UCP_EP_PARAM_FIELD_ERR_HANDLER;
  params.address = static_cast<const ucp_address_t*>(worker_address);
  params.err_mode = peer_errors ? UCP_ERR_HANDLING_MODE_PEER : UCP_ERR_HANDLING_MODE_NONE;
  params.err_handler.cb = &UcxFabric::on_error;
  params.err_handler.arg = &lane;
  const ucs_status_t status = ucp_ep_create(worker_, &params, &lane.endpoint);
  if (status == UCS_OK) return {};
  lane.endpoint = nullptr;
  return {Errc::kUnreachable, std::string("UCX finds no common transport to the peer (") + ucs_status_string(status) +
                                  "): compare UCX_TLS and UCX_NET_DEVICES of both sides"};
}

Status UcxFabric::connect(FabricLink& base, std::span<const std::byte> peer_address) {
  auto& link = static_cast<UcxLink&>(base);
  LinkAddress peer;
  if (peer_address.size() < sizeof(peer)) return Status(Errc::kProtocol, "an address of UCX that is too short");
  std::memcpy(&peer, peer_address.data(), sizeof(peer));
  if (peer.worker_bytes == 0 || peer.worker_bytes != peer_address.size() - sizeof(peer)) {
    return Status(Errc::kProtocol, "an address of UCX of wrong length");
  }
  std::vector<std::byte> worker(peer.worker_bytes + kAddressPadding);
  std::memcpy(worker.data(), peer_address.data() + sizeof(peer), peer.worker_bytes);
  Status connected;
  {
    const QuietUcx quiet;  // it tells of the refusal as of an error
    connected = connect_lane(link.lanes[0], worker.data(), true);
  }
  link.peer_errors = connected.ok();
  // Shared memory cannot tell of its peer's death. A network that fails must not become it on one side.
  if (!connected.ok() && !networks_) connected = connect_lane(link.lanes[0], worker.data(), false);
  GENIE_TRY(std::move(connected));
  for (uint32_t lane = 0; lane < kLaneCount; ++lane) {
    if (lane != 0) GENIE_TRY(connect_lane(link.lanes[lane], worker.data(), link.peer_errors));
    link.lanes[lane].tag = {.link = peer.link << kLaneBits | lane, .generation = peer.generation, .nonce = peer.nonce};
    link.lanes[lane].reads.reserve(kMaxReads);
  }
  // The ends need not agree: either takes what the other sends.
  link.carries = printed(link.lanes[0].endpoint).find(" put[") == std::string::npos;
  link.ordered.fill(link.carries);
  return {};
}

std::string UcxFabric::describe(FabricLink& base) {
  const auto& link = static_cast<UcxLink&>(base);
  const std::string text = printed(link.lanes[0].endpoint);
  std::set<std::string> names;
  for (size_t at = text.find("lane["); at != std::string::npos; at = text.find("lane[", at + 1)) {
    const size_t slash = text.find('/', at);
    const size_t line = text.find('\n', at);
    if (slash == std::string::npos || slash > line) continue;
    const size_t begin = text.find_last_of(" :", slash) + 1;
    const size_t end = text.find_first_of(". ", slash);
    names.insert(text.substr(begin, end - begin));
  }
  std::string joined;
  for (const std::string& name : names) joined += (joined.empty() ? "" : ", ") + name;
  return joined + (link.carries ? ", writes and reads as messages" : "");
}

// -- The end -------------------------------------------------------------------------------------------------------------

void UcxFabric::on_error(void* argument, ucp_ep_h, ucs_status_t status) {
  UcxLink& link = *static_cast<UcxLane*>(argument)->link;
  link.fabric->fail(link, Errc::kDisconnected, ucs_status_string(status));
}

void UcxFabric::fail(UcxLink& link, Errc why, const char* what) {
  if (link.failed) return;
  link.failed = true;
  link.why = why;
  link.deaf = link.deaf || why == Errc::kProtocol;
  GENIE_LOG_DEBUG("UCX: a link broke: {}", what);
  failed_.push(link.slot);
}

void UcxFabric::close(FabricLink& base, bool orderly) {
  auto& link = static_cast<UcxLink&>(base);
  if (link.forced) return;
  for (UcxLane& lane : link.lanes) {
    if (lane.writes != nullptr) flush_writes(lane);
    if (lane.pieces != nullptr) send_pieces(lane);
  }
  if (!link.closing) closing_.push_back(&link);
  link.closing = true;
  if (!orderly || link.failed) return close_endpoints(link);
  for (const UcxLane& lane : link.lanes) {
    const ucp_request_param_t param{};
    if (lane.endpoint == nullptr) continue;
    const ucs_status_ptr_t request = ucp_ep_flush_nbx(lane.endpoint, &param);
    if (UCS_PTR_IS_PTR(request)) link.closers.push_back(request);
  }
}

void UcxFabric::close_endpoints(UcxLink& link) {
  link.forced = true;
  drop_carried(link);
  for (UcxLane& lane : link.lanes) {
    if (lane.endpoint == nullptr) continue;
    ucp_request_param_t param{};
    param.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS;
    param.flags = link.peer_errors ? uint32_t{UCP_EP_CLOSE_FLAG_FORCE} : 0U;
    const ucs_status_ptr_t request = ucp_ep_close_nbx(std::exchange(lane.endpoint, nullptr), &param);
    if (UCS_PTR_IS_PTR(request)) link.closers.push_back(request);
  }
}

// True when nothing of it is in flight any more: first what was sent, then its endpoints.
bool UcxFabric::look_at_closing(UcxLink& link) {
  std::erase_if(link.closers, [](ucs_status_ptr_t request) {
    if (ucp_request_check_status(request) == UCS_INPROGRESS) return false;
    ucp_request_free(request);
    return true;
  });
  if (!link.closers.empty() || link.outstanding != 0 || link.awaited != 0) return false;
  if (!link.forced) close_endpoints(link);
  return link.closers.empty() && link.outstanding == 0 && done_.empty();
}

}  // namespace genie::datapath::ucx
