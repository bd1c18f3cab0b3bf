// What comes and goes on an endpoint's socket.
#include <sys/epoll.h>

#include <cstring>
#include <utility>

#include "datapath/base/log.h"
#include "datapath/net/transport_impl.h"

namespace genie::datapath::net {
namespace {

// Frames of one endpoint before others get their turn.
constexpr int kFramesPerTurn = 64;

}  // namespace

// A failure is dealt with by the next poll().
void NetTransport::transmit(Endpoint& endpoint, const Frame& frame, std::span<const std::byte> payload) {
  ++endpoint.frames_sent;
  const Status sent = endpoint.socket.send(frame, payload);
  if (sent.ok()) {
    watch(endpoint, endpoint.socket.unsent_bytes() != 0);
  } else if (sent.code() != Errc::kDisconnected) {
    // A hang-up is reported by the socket itself, after what the peer had sent.
    endpoint.broken = sent.code();
    list(endpoint);
  }
}

// The endpoint may be ending afterwards.
void NetTransport::service(Endpoint& endpoint) {
  endpoint.frames_left = false;
  for (int turn = 0; turn < kFramesPerTurn && endpoint.socket.open(); ++turn) {
    Frame frame;
    std::span<const std::byte> payload;
    switch (endpoint.socket.receive(frame, payload)) {
      case ControlSocket::Event::kNothing: return;
      case ControlSocket::Event::kHangup:
        endpoint.socket.close();
        // Nothing more comes: what has not come by now is lost, unless the peer said how much there is.
        if (endpoint.state == EndpointState::kLingering) return close_link(endpoint, false);
        return start_draining(endpoint);
      case ControlSocket::Event::kMalformed: break;
      case ControlSocket::Event::kFrame:
        endpoint.heard_ns = now_;
        if (endpoint.state == EndpointState::kHandshake && endpoint.link == nullptr) {
          return handle_hello(endpoint, frame, payload);  // it may be gone
        }
        ++endpoint.frames_received;
        if (handle(endpoint, frame, payload)) continue;
        break;
    }
    GENIE_LOG_WARN("{}: {} broke the protocol; its connection is closed", info_.name, endpoint.peer);
    endpoint.socket.close();
    end(endpoint, Errc::kProtocol, Errc::kProtocol);
    return close_link(endpoint, false);
  }
  // The socket may be empty by now and tell no more.
  endpoint.frames_left = true;
  list(endpoint);
}

// False: the peer broke the protocol.
bool NetTransport::handle(Endpoint& endpoint, const Frame& frame, std::span<const std::byte> payload) {
  list(endpoint);  // a message may have waited for it
  switch (frame.type) {
    case FrameType::kPing: transmit(endpoint, Frame{.type = FrameType::kPong}); return true;
    case FrameType::kPong: return true;
    case FrameType::kFarewell:
      if (endpoint.state == EndpointState::kLingering) close_link(endpoint, false);
      return true;
    case FrameType::kGoodbye: {
      std::array<uint32_t, kLaneCount> sent{};
      if (payload.size() != sizeof(sent)) return false;
      std::memcpy(sent.data(), payload.data(), sizeof(sent));
      endpoint.farewell = sent;
      if (endpoint.state == EndpointState::kOpen) {
        start_draining(endpoint);
      } else {
        // Both said it: neither reads any more.
        transmit(endpoint, Frame{.type = FrameType::kFarewell});
      }
      return true;
    }
    default: break;
  }
  if (!endpoint.visible()) return true;  // of no interest any more
  switch (frame.type) {
    case FrameType::kAnnounce: return accept_announcement(endpoint, frame, payload);
    case FrameType::kRevoke: on_revoke(endpoint, unpack_key(frame.key)); return true;
    case FrameType::kRevoked:
      std::erase_if(endpoint.revoked,
                    [&](const Leaving& region) { return pack_key(region.key).bytes == frame.key.bytes; });
      return true;
    case FrameType::kTaken:
      std::erase_if(endpoint.handed_away, [&](Leaving& region) {
        if (pack_key(region.key).bytes != frame.key.bytes) return false;
        keep_spare(endpoint.id, std::move(region.memory), region.key.size);
        return true;
      });
      return true;
    case FrameType::kHandOver: return accept_hand_over(endpoint, frame, payload);
    case FrameType::kReply:
      if (!endpoint.listener_side && frame.request == endpoint.awaited_request) {
        endpoint.reply = static_cast<Errc>(frame.status);
      }
      return !endpoint.listener_side;
    default: return endpoint.listener_side && handle_from_client(endpoint, frame);
  }
}

bool NetTransport::handle_from_client(Endpoint& endpoint, const Frame& frame) {
  const auto reply = [&](Errc status) {
    transmit(endpoint,
             Frame{.type = FrameType::kReply, .status = static_cast<uint32_t>(status), .request = frame.request});
  };
  switch (frame.type) {
    case FrameType::kReady: endpoint.lanes_ready = true; return true;
    case FrameType::kReserve: {
      const Status quota = check_quota(endpoint, frame.size);
      if (quota.ok()) {
        charge(endpoint, frame.size);
      } else {
        GENIE_LOG_INFO("{}: {} gets no {} bytes beside {} in {} regions: {}", info_.name, endpoint.peer, frame.size,
                       endpoint.shared_bytes, endpoint.shared_regions, quota.to_string());
      }
      reply(quota.code());
      return true;
    }
    case FrameType::kUnreserve:
      if (endpoint.shared_regions == 0 || frame.size > endpoint.shared_bytes) return false;
      refund(endpoint, frame.size);
      return true;
    case FrameType::kImport: {
      const KeyFields key = unpack_key(frame.key);
      const LocalRegion* const region = regions_.find(key.index, key.generation);
      Errc status = Errc::kOk;
      if (region == nullptr) {
        status = regions_.why(key.index, key.generation) == Errc::kStale ? Errc::kStale : Errc::kPermission;
      } else if (region->prepared || (region->endpoint.valid() && region->endpoint != endpoint.id) ||
                 !same_nonce(region->key.nonce, key.nonce) || region->key.size != key.size) {
        status = Errc::kPermission;
      }
      reply(status);
      return true;
    }
    default: return false;
  }
}

// A request of the connecting side: blocks until the listener has answered.
Status NetTransport::call(EndpointId id, Frame frame, std::span<const std::byte> payload, Deadline deadline) {
  Endpoint* endpoint = usable(id);
  if (endpoint == nullptr) return Errc::kDisconnected;
  frame.request = endpoint->next_request++;
  endpoint->awaited_request = frame.request;
  endpoint->reply.reset();
  transmit(*endpoint, frame, payload);
  for (;;) {
    endpoint = usable(id);
    if (endpoint == nullptr || endpoint->broken.has_value()) return Errc::kDisconnected;
    if (endpoint->reply.has_value()) break;
    if (endpoint->socket.unsent_bytes() != 0) {
      GENIE_TRY(endpoint->socket.wait_writable(deadline));
      if (endpoint->socket.flush().code() == Errc::kDisconnected) return Errc::kDisconnected;
    } else if (!endpoint->socket.wait_readable(deadline).ok()) {
      endpoint->awaited_request = 0;
      return {Errc::kTimedOut, "the listener does not answer a request for memory"};
    }
    now_ = now_ns();
    service(*endpoint);
  }
  endpoint->awaited_request = 0;
  const Errc status = *std::exchange(endpoint->reply, std::nullopt);
  if (status == Errc::kQuotaExceeded) {
    return {status, "the node refuses more memory for this session; free results or raise its quota"};
  }
  return status;
}

}  // namespace genie::datapath::net
