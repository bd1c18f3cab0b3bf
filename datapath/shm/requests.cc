// Control messages: what a client asks for, what a listener answers.
#include <algorithm>
#include <utility>

#include "datapath/base/log.h"
#include "datapath/shm/transport_impl.h"

namespace genie::datapath::shm {

namespace {

// Datagrams of one endpoint that are handled before others get their turn; the rest stays readable.
constexpr int kMessagesPerTurn = 32;

}  // namespace

// Reads what the socket holds; stops at a bell unless `thorough`. The endpoint may be gone afterwards.
void ShmTransport::service(Endpoint& endpoint, bool thorough) {
  Incoming incoming;
  for (int turn = 0; turn < kMessagesPerTurn; ++turn) {
    endpoint.channel.receive(incoming);
    switch (incoming.kind) {
      case Incoming::Kind::kNothing: return;
      case Incoming::Kind::kBell:
        if (endpoint.state == EndpointState::kOpen) start_scanning(endpoint);
        // One sleep costs one bell; what else there is stays readable, and asking for it would be a system call.
        if (!thorough) return;
        break;
      case Incoming::Kind::kMessage:
        if (!handle(endpoint, incoming)) return;
        break;
      case Incoming::Kind::kHangup:
        if (endpoint.state == EndpointState::kHandshake) {
          end(endpoint, Errc::kDisconnected, Errc::kDisconnected);
        } else {
          // What the peer had sent before it went is delivered first.
          endpoint.state = EndpointState::kDraining;
          unwatch(endpoint);
          start_scanning(endpoint);
        }
        return;
      case Incoming::Kind::kMalformed:
        GENIE_LOG_WARN("a peer on shared memory sent a malformed control message; its endpoint is closed");
        end(endpoint, Errc::kProtocol, Errc::kProtocol);
        return;
    }
  }
}

// False when the endpoint is gone.
bool ShmTransport::handle(Endpoint& endpoint, Incoming& incoming) {
  const EndpointId id = endpoint.id;
  bool understood = true;
  if (endpoint.state == EndpointState::kHandshake) {
    handle_hello(endpoint, incoming);
  } else if (endpoint.listener_side) {
    understood = incoming.message.type == ControlType::kHandOver ? accept_hand_over(endpoint, incoming)
                                                                 : handle_from_client(endpoint, incoming.message);
  } else {
    understood = handle_from_listener(endpoint, incoming);
  }
  if (find(id) == nullptr) return false;
  if (understood) return true;
  GENIE_LOG_WARN("a peer on shared memory sent an unexpected control message; its endpoint is closed");
  end(endpoint, Errc::kProtocol, Errc::kProtocol);
  return false;
}

bool ShmTransport::handle_from_client(Endpoint& endpoint, const ControlMessage& message) {
  switch (message.type) {
    case ControlType::kAllocate: allocate_for(endpoint, message); return true;
    case ControlType::kImport: reply_import(endpoint, message); return true;
    case ControlType::kRelease: {
      const Result<SharedRegion*> region = resolve(endpoint, message.key);
      // Releasing twice is a race with nobody; releasing ours is not the client's to do.
      if (!region.ok()) return region.code() == Errc::kStale;
      if (!(*region)->of_client) return false;
      const KeyFields key = unpack_key(message.key);
      drop_shared(endpoint, key);
      revoke_imports(endpoint.id, key);
      return true;
    }
    default: return false;
  }
}

bool ShmTransport::handle_from_listener(Endpoint& endpoint, Incoming& incoming) {
  const ControlMessage& message = incoming.message;
  switch (message.type) {
    case ControlType::kAllocateReply:
    case ControlType::kImportReply:
      if (message.request == endpoint.awaited_request) {
        endpoint.reply = Reply{message, std::move(incoming.fd)};
      } else if (message.type == ControlType::kAllocateReply && message.status == 0) {
        // The caller gave up; nobody else will release it.
        transmit(endpoint, ControlMessage{.type = ControlType::kRelease, .key = message.key});
      }
      return true;
    case ControlType::kHandOver: return accept_hand_over(endpoint, incoming);
    case ControlType::kRevoke: revoke_imports(endpoint.id, unpack_key(message.key)); return true;
    default: return false;
  }
}

// The client makes the memory present itself: that takes long for a large region, and others wait for this thread.
void ShmTransport::allocate_for(Endpoint& endpoint, const ControlMessage& message) {
  const auto refuse = [&](Errc why) { reply(endpoint, ControlType::kAllocateReply, message.request, why); };
  const Status quota = check_quota(endpoint, message.size);
  if (!quota.ok()) return refuse(quota.code());
  Result<FileDescriptor> fd = make_sealed_memory(message.size);
  if (!fd.ok()) return refuse(fd.code());
  charge(endpoint, message.size);
  SharedRegion region;
  region.size = message.size;
  region.of_client = true;
  region.fd = std::move(*fd);
  const int to_pass = region.fd.get();
  const RemoteKey key = add_shared(endpoint, std::move(region));
  reply(endpoint, ControlType::kAllocateReply, message.request, Errc::kOk, key, to_pass);
}

void ShmTransport::reply_import(Endpoint& endpoint, const ControlMessage& message) {
  const Result<SharedRegion*> region = resolve(endpoint, message.key);
  Errc status = region.code();
  int fd = -1;
  if (region.ok()) {
    const LocalRegion* local = regions_.find((*region)->local.index, (*region)->local.generation);
    if ((*region)->of_client || local == nullptr) {
      status = Errc::kInvalidArgument;
    } else {
      fd = local->fd.get();
    }
  }
  reply(endpoint, ControlType::kImportReply, message.request, status, message.key, fd);
}

void ShmTransport::reply(Endpoint& endpoint, ControlType type, uint64_t request, Errc status, const RemoteKey& key,
                         int fd) {
  const ControlMessage message{.type = type, .request = request, .status = static_cast<uint32_t>(status), .key = key};
  transmit(endpoint, message, fd);
}

// The endpoint may be gone afterwards: a peer that lets messages pile up is given up.
void ShmTransport::transmit(Endpoint& endpoint, const ControlMessage& message, int fd) {
  const Status sent = endpoint.channel.send(message, fd);
  if (sent.ok()) {
    watch(endpoint, endpoint.channel.has_unsent());
  } else if (sent.code() != Errc::kDisconnected) {
    // A hang-up is reported by the socket itself, after what the peer had sent.
    end(endpoint, sent.code(), sent.code());
  }
}

// Until the socket has everything.
Status ShmTransport::send_all(Endpoint& endpoint, Deadline deadline) {
  while (endpoint.channel.has_unsent()) {
    GENIE_TRY(endpoint.channel.wait_writable(deadline));
    const Status flushed = endpoint.channel.flush();
    if (flushed.code() != Errc::kAgain) GENIE_TRY(flushed);
  }
  return {};
}

// A request of the connecting side: blocks until the listener has answered.
Result<Reply> ShmTransport::call(Endpoint& endpoint, ControlMessage message, Deadline deadline) {
  const EndpointId id = endpoint.id;
  message.request = endpoint.next_request++;
  endpoint.awaited_request = message.request;
  endpoint.reply.reset();
  Status status = endpoint.channel.send(message);
  if (status.ok()) status = send_all(endpoint, deadline);
  while (status.ok() && !endpoint.reply.has_value()) {
    status = endpoint.channel.wait_readable(deadline);
    if (!status.ok()) break;
    service(endpoint);
    if (find(id) == nullptr) return Errc::kDisconnected;
    if (endpoint.state != EndpointState::kOpen && !endpoint.reply.has_value()) status = Errc::kDisconnected;
  }
  endpoint.awaited_request = 0;
  if (status.code() == Errc::kTimedOut)
    return Status(Errc::kTimedOut, "the listener does not answer a request for memory");
  if (!status.ok()) return status;
  Reply answer = std::move(*endpoint.reply);
  endpoint.reply.reset();
  if (answer.message.status != 0) {
    const auto code = static_cast<Errc>(answer.message.status);
    if (code == Errc::kQuotaExceeded) {
      return Status(code, "the node refuses more memory for this session; free results or raise its quota");
    }
    return code;
  }
  return answer;
}

}  // namespace genie::datapath::shm
