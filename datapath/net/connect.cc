// The beginning of endpoints: listen, connect, handshake, quarantine.
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "datapath/base/log.h"
#include "datapath/base/tcp_address.h"
#include "datapath/memory/pages.h"
#include "datapath/net/transport_impl.h"

namespace genie::datapath {

std::unique_ptr<Transport> make_net_transport(std::unique_ptr<net::Fabric> fabric, const NetOptions& options) {
  return std::make_unique<net::NetTransport>(std::move(fabric), options);
}

namespace net {
namespace {

constexpr size_t kMaxHandshakes = 256;
// How long a failing address is left alone: doubles with each failure, from and up to.
constexpr uint64_t kFirstQuarantineMs = 100;
constexpr uint64_t kLongestQuarantineMs = 30'000;

uint64_t tag_of(EndpointId id) noexcept { return uint64_t{id.generation} << 32 | id.index; }

void add_to(int epoll, int fd, uint32_t events, uint64_t tag) {
  epoll_event event{};
  event.events = events;
  event.data.u64 = tag;
  ::epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
}

// A hello's payload: three texts, each behind its length.
void put(std::vector<std::byte>& out, std::span<const std::byte> bytes) {
  const auto size = static_cast<uint32_t>(bytes.size());
  const auto* const raw = reinterpret_cast<const std::byte*>(&size);
  out.insert(out.end(), raw, raw + sizeof(size));
  out.insert(out.end(), bytes.begin(), bytes.end());
}

bool get(std::span<const std::byte>& in, size_t limit, std::span<const std::byte>& bytes) {
  uint32_t size = 0;
  if (in.size() < sizeof(size)) return false;
  std::memcpy(&size, in.data(), sizeof(size));
  in = in.subspan(sizeof(size));
  if (size > limit || size > in.size()) return false;
  bytes = in.first(size);
  in = in.subspan(size);
  return true;
}

}  // namespace

NetTransport::NetTransport(std::unique_ptr<Fabric> fabric, const NetOptions& options)
    : options_(options),
      fabric_(std::move(fabric)),
      info_(fabric_->info()),
      capabilities_{.name = info_.name,
                    .maps_remote_memory = false,
                    .registers_any_memory = true,
                    .publishes_memory = false,
                    .needs_polling = true,
                    .max_send_bytes = info_.max_message_bytes - sizeof(MessageHeader)},
      epoll_(::epoll_create1(EPOLL_CLOEXEC)),
      wake_fd_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  if (options_.max_bytes_in_total == 0) {
    options_.max_bytes_in_total = static_cast<size_t>(::sysconf(_SC_PHYS_PAGES)) / 2 * page_bytes();
  }
  add_to(epoll_.get(), wake_fd_.get(), EPOLLIN, kWakeTag);
  add_to(epoll_.get(), fabric_->event_fd(), EPOLLIN, kFabricTag);
}

// What was sent before still has a moment to leave.
NetTransport::~NetTransport() {
  constexpr uint64_t kFarewellMs = 100;
  const auto settle_until = [&](Deadline deadline) {
    std::array<Completion, 16> dropped;
    while (endpoints_.size() != 0 && !deadline.expired()) {
      const size_t count = poll(dropped);
      for (size_t i = 0; i < count; ++i) dropped[i] = Completion();
      if (count == 0) wait(1'000'000);
    }
  };
  endpoints_.for_each([&](SlotId, Endpoint& endpoint) {
    if (endpoint.visible()) end(endpoint, Errc::kOk, Errc::kCancelled, true);
  });
  settle_until(Deadline::after_ms(kFarewellMs));
  endpoints_.for_each([&](SlotId, Endpoint& endpoint) { close_link(endpoint, false); });
  settle_until(Deadline::after_ms(kFarewellMs));
}

Status NetTransport::listen(std::string_view where) {
  if (listener_.valid()) return Status(Errc::kAlreadyExists, "this transport listens on " + address_ + " already");
  Result<TcpListener> listener = listen_tcp(where);
  GENIE_TRY(listener.status());
  add_to(epoll_.get(), listener->fd.get(), EPOLLIN, kListenerTag);
  listener_ = std::move(listener->fd);
  address_ = std::move(listener->address);
  return {};
}

std::span<const std::byte> NetTransport::endpoint_token(EndpointId id) const {
  const Endpoint* const endpoint = endpoints_.find(id.index, id.generation);
  return endpoint == nullptr ? std::span<const std::byte>() : std::span<const std::byte>(endpoint->token);
}

Endpoint& NetTransport::add_endpoint(ControlSocket socket, bool listener_side) {
  const SlotId slot = endpoints_.emplace();
  Endpoint& endpoint = *endpoints_.find(slot.index, slot.generation);
  endpoint.id = EndpointId{slot.index, slot.generation};
  endpoint.listener_side = listener_side;
  endpoint.socket = std::move(socket);
  endpoint.peer = endpoint.socket.peer_host();
  endpoint.heard_ns = now_ns();
  add_to(epoll_.get(), endpoint.socket.fd(), EPOLLIN | EPOLLRDHUP, tag_of(endpoint.id));
  next_tend_ns_ = 0;
  return endpoint;
}

void NetTransport::watch(Endpoint& endpoint, bool writable) {
  if (endpoint.wants_writable == writable || !endpoint.socket.open()) return;
  endpoint.wants_writable = writable;
  epoll_event event{};
  event.events = EPOLLIN | EPOLLRDHUP | (writable ? static_cast<uint32_t>(EPOLLOUT) : 0U);
  event.data.u64 = tag_of(endpoint.id);
  ::epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, endpoint.socket.fd(), &event);
}

// -- The connecting side -------------------------------------------------------------------------------------------------

Status NetTransport::check_quarantine(const std::string& address) const {
  const auto found = quarantine_.find(address);
  if (found == quarantine_.end()) return {};
  const uint64_t left_ns = Deadline::at_ns(found->second.until_ns).left_ns();
  if (left_ns == 0) return {};
  return {Errc::kUnreachable, address + " failed " + std::to_string(found->second.failures) +
                                  " times in a row and is left alone for another " +
                                  std::to_string(left_ns / 1'000'000 + 1) + " ms"};
}

void NetTransport::note_failure(const std::string& address) {
  Quarantine& entry = quarantine_[address];
  const uint32_t doublings = std::min<uint32_t>(entry.failures++, 16);
  const uint64_t pause_ms = std::min(kFirstQuarantineMs << doublings, kLongestQuarantineMs);
  entry.until_ns = Deadline::after_ms(pause_ms).when_ns();
}

Result<EndpointId> NetTransport::connect(std::string_view address, std::span<const std::byte> token,
                                         Deadline deadline) {
  if (token.size() > kMaxTokenBytes) return Status(Errc::kInvalidArgument, "a connection's token of over 512 bytes");
  GENIE_TRY(parse_tcp_address(address).status());
  const std::string key(address);
  GENIE_TRY(check_quarantine(key));
  Result<EndpointId> made = handshake(address, token, deadline);
  // A refusal is an answer: the address works.
  const Errc code = made.code();
  if (code == Errc::kUnreachable || code == Errc::kTimedOut || code == Errc::kDisconnected) {
    note_failure(key);
  } else {
    quarantine_.erase(key);
  }
  return made;
}

Result<EndpointId> NetTransport::handshake(std::string_view address, std::span<const std::byte> token,
                                           Deadline deadline) {
  const std::string place(address);
  Result<FileDescriptor> fd = connect_tcp(address, deadline);
  GENIE_TRY(fd.status());
  ControlSocket socket(std::move(*fd));
  Result<std::unique_ptr<FabricLink>> link = fabric_->open_link(socket.peer_host());
  GENIE_TRY(link.status());
  const Result<std::vector<std::byte>> own_address = fabric_->address(**link);
  GENIE_TRY(own_address.status());
  std::vector<std::byte> payload;
  put(payload, std::as_bytes(std::span(info_.name)));
  put(payload, token);
  put(payload, *own_address);
  GENIE_TRY(socket.send(Frame{.type = FrameType::kHello}, payload));
  Frame answer;
  std::span<const std::byte> bytes;
  ControlSocket::Event event;
  while ((event = socket.receive(answer, bytes)) == ControlSocket::Event::kNothing) {
    if (!socket.wait_readable(deadline).ok()) {
      return Status(Errc::kTimedOut, "the process at " + place + " accepted but does not answer");
    }
  }
  if (event == ControlSocket::Event::kHangup) {
    return Status(Errc::kDisconnected, "the process at " + place + " hung up during the handshake");
  }
  if (event == ControlSocket::Event::kMalformed || answer.type != FrameType::kHelloReply) {
    return Status(Errc::kProtocol, "the process at " + place + " does not speak this protocol");
  }
  if (answer.version != kNetVersion) {
    return Status(Errc::kVersionMismatch, place + " speaks version " + std::to_string(answer.version) +
                                              " of the network protocol, this side version " +
                                              std::to_string(kNetVersion) + ": install the same Genie on both sides");
  }
  if (answer.status != 0) {
    const auto code = static_cast<Errc>(answer.status);
    const std::string reason(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    return Status(code, place + " refused the connection (" + errc_name(code) + ") " + reason);
  }
  GENIE_TRY(fabric_->connect(**link, bytes));
  Endpoint& endpoint = add_endpoint(std::move(socket), false);
  endpoint.peer = place;
  endpoint.token.assign(token.begin(), token.end());
  endpoint.link = std::move(*link);
  endpoint.link->owner = &endpoint;
  endpoint.state = EndpointState::kOpen;
  endpoint.lanes_ready = true;
  const EndpointId id = endpoint.id;
  transmit(endpoint, Frame{.type = FrameType::kReady});
  regions_.for_each([&](SlotId, LocalRegion& region) {
    if (!region.endpoint.valid() && usable(id) != nullptr) announce(endpoint, region);
  });
  if (usable(id) == nullptr) return Errc::kDisconnected;
  return id;
}

// -- The listening side --------------------------------------------------------------------------------------------------

void NetTransport::accept_all() {
  for (;;) {
    FileDescriptor fd(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!fd.valid()) {
      if (errno == EINTR || errno == ECONNABORTED) continue;
      if (errno == EMFILE || errno == ENFILE) {
        GENIE_LOG_ERROR("{} cannot accept a client: too many open files; raise 'ulimit -n'", address_);
      }
      return;
    }
    // Also beyond max_endpoints clients may say hello, so that they can be told why they are refused.
    if (handshakes_ >= kMaxHandshakes) continue;
    Endpoint& endpoint = add_endpoint(ControlSocket(std::move(fd)), true);
    endpoint.deadline_ns = Deadline::after_ms(options_.control_timeout_ms).when_ns();
    ++handshakes_;
  }
}

Status NetTransport::admit(Endpoint& endpoint, const Frame& hello, std::span<const std::byte> payload,
                           std::vector<std::byte>& own_address) {
  if (hello.type != FrameType::kHello) return Errc::kProtocol;
  if (hello.version != kNetVersion) return Errc::kVersionMismatch;
  if (open_endpoints_ >= options_.max_endpoints) return Errc::kQuotaExceeded;
  std::span<const std::byte> name;
  std::span<const std::byte> token;
  std::span<const std::byte> peer_address;
  constexpr size_t kMaxNameBytes = 64;
  if (!get(payload, kMaxNameBytes, name) || !get(payload, kMaxTokenBytes, token) ||
      !get(payload, kMaxAddressBytes, peer_address) || !payload.empty()) {
    return Errc::kProtocol;
  }
  if (std::string_view(reinterpret_cast<const char*>(name.data()), name.size()) != info_.name) {
    return Status(Errc::kUnsupported, "this side speaks " + std::string(info_.name));
  }
  Result<std::unique_ptr<FabricLink>> link = fabric_->open_link(endpoint.peer);
  GENIE_TRY(link.status());
  Result<std::vector<std::byte>> address = fabric_->address(**link);
  GENIE_TRY(address.status());
  GENIE_TRY(fabric_->connect(**link, peer_address));
  own_address = std::move(*address);
  endpoint.link = std::move(*link);
  endpoint.link->owner = &endpoint;
  endpoint.token.assign(token.begin(), token.end());
  return {};
}

void NetTransport::handle_hello(Endpoint& endpoint, const Frame& hello, std::span<const std::byte> payload) {
  std::vector<std::byte> own_address;
  const Status status = admit(endpoint, hello, payload, own_address);
  const Frame answer{.type = FrameType::kHelloReply, .status = static_cast<uint32_t>(status.code())};
  const std::span<const std::byte> reason = std::as_bytes(std::span(status.text()));
  const Status sent = endpoint.socket.send(answer, status.ok() ? std::span<const std::byte>(own_address) : reason);
  if (!status.ok() || !sent.ok()) {
    if (!status.ok()) GENIE_LOG_INFO("refused a connection from {}: {}", endpoint.peer, status.to_string());
    return end(endpoint, Errc::kDisconnected, Errc::kDisconnected);
  }
  --handshakes_;
  ++open_endpoints_;
  endpoint.state = EndpointState::kOpen;
  next_tend_ns_ = 0;
  completions_.push(Completion{.opcode = Opcode::kConnected, .endpoint = endpoint.id});
  const EndpointId id = endpoint.id;
  regions_.for_each([&](SlotId, LocalRegion& region) {
    if (!region.endpoint.valid() && usable(id) != nullptr) announce(endpoint, region);
  });
}

}  // namespace net
}  // namespace genie::datapath
