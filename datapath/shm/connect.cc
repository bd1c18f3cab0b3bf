// The beginning and the end of endpoints.
#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include "datapath/base/log.h"
#include "datapath/memory/pages.h"
#include "datapath/shm/transport_impl.h"

namespace genie::datapath {

std::unique_ptr<Transport> make_shm_transport(const ShmOptions& options) {
  return std::make_unique<shm::ShmTransport>(options);
}

namespace shm {

namespace {

// Of the process's limit, for sockets, files and libraries.
constexpr rlim_t kReservedDescriptors = 256;

uint64_t tag_of(EndpointId id) noexcept { return uint64_t{id.generation} << 32 | id.index; }

}  // namespace

ShmTransport::ShmTransport(const ShmOptions& options)
    : options_(options),
      capabilities_{.name = "shm",
                    .maps_remote_memory = true,
                    .registers_any_memory = false,
                    .publishes_memory = true,
                    .max_send_bytes = kMaxMessageBytes},
      epoll_(::epoll_create1(EPOLL_CLOEXEC)),
      wake_fd_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      reserve_(::open("/dev/null", O_RDONLY | O_CLOEXEC)) {
  rlimit descriptors{};
  if (::getrlimit(RLIMIT_NOFILE, &descriptors) == 0) {
    max_descriptors_ = descriptors.rlim_cur - std::min<rlim_t>(descriptors.rlim_cur / 2, kReservedDescriptors);
  }
  if (options_.max_bytes_in_total == 0) {
    options_.max_bytes_in_total = static_cast<size_t>(::sysconf(_SC_PHYS_PAGES)) / 2 * page_bytes();
  }
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = kWakeTag;
  ::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, wake_fd_.get(), &event);
}

ShmTransport::~ShmTransport() {
  if (listener_.valid()) ::unlink(path_.c_str());
}

Status ShmTransport::listen(std::string_view where) {
  if (listener_.valid()) return Status(Errc::kAlreadyExists, "this transport listens on unix:" + path_ + " already");
  Result<std::string> path = parse_unix_address(where);
  if (!path.ok()) return path.status();
  Result<FileDescriptor> fd = listen_unix(*path, options_.allow_other_users);
  if (!fd.ok()) return fd.status();
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = kListenerTag;
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd->get(), &event) != 0) {
    return Status(Errc::kIo, std::string("cannot watch the listening socket: ") + std::strerror(errno));
  }
  listener_ = std::move(*fd);
  path_ = std::move(*path);
  return {};
}

std::string ShmTransport::address() const {
  return listener_.valid() ? std::string("unix:").append(path_) : std::string();
}

std::span<const std::byte> ShmTransport::endpoint_token(EndpointId id) const {
  const Endpoint* endpoint = endpoints_.find(id.index, id.generation);
  return endpoint == nullptr ? std::span<const std::byte>() : std::span<const std::byte>(endpoint->token);
}

Endpoint& ShmTransport::add_endpoint(ControlChannel channel, bool listener_side) {
  const SlotId slot = endpoints_.emplace();
  Endpoint& endpoint = *endpoints_.find(slot.index, slot.generation);
  endpoint.id = EndpointId{slot.index, slot.generation};
  endpoint.listener_side = listener_side;
  endpoint.channel = std::move(channel);
  epoll_event event{};
  event.events = EPOLLIN | EPOLLRDHUP;
  event.data.u64 = tag_of(endpoint.id);
  ::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, endpoint.channel.fd(), &event);
  return endpoint;
}

void ShmTransport::watch(Endpoint& endpoint, bool writable) {
  if (endpoint.wants_writable == writable) return;
  endpoint.wants_writable = writable;
  epoll_event event{};
  event.events = EPOLLIN | EPOLLRDHUP | (writable ? static_cast<uint32_t>(EPOLLOUT) : 0U);
  event.data.u64 = tag_of(endpoint.id);
  ::epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, endpoint.channel.fd(), &event);
}

void ShmTransport::unwatch(Endpoint& endpoint) {
  ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, endpoint.channel.fd(), nullptr);
}

Status ShmTransport::open_rings(Endpoint& endpoint, int fd, bool listener_side) {
  Result<SharedMapping> memory = SharedMapping::map(fd, sizeof(EndpointMemory));
  if (!memory.ok()) return memory.status();
  endpoint.memory = std::move(*memory);
  auto* shared = reinterpret_cast<EndpointMemory*>(endpoint.memory.data());
  endpoint.outgoing = listener_side ? &shared->to_client : &shared->to_listener;
  endpoint.incoming = listener_side ? &shared->to_listener : &shared->to_client;
  const auto ring = [](Direction* direction) { return queue::SpscRing<RingUnit>::at(&direction->control, kRingUnits); };
  endpoint.sender.emplace(ring(endpoint.outgoing));
  endpoint.receiver.emplace(ring(endpoint.incoming));
  endpoint.state = EndpointState::kOpen;
  start_scanning(endpoint);
  return {};
}

Result<EndpointId> ShmTransport::connect(std::string_view address, std::span<const std::byte> token,
                                         Deadline deadline) {
  if (token.size() > kMaxTokenBytes) return Status(Errc::kInvalidArgument, "a connection's token of over 512 bytes");
  Result<std::string> path = parse_unix_address(address);
  if (!path.ok()) return path.status();
  Result<FileDescriptor> fd = connect_unix(*path, deadline);
  if (!fd.ok()) return fd.status();
  ControlChannel channel(std::move(*fd));
  const ControlMessage hello{.type = ControlType::kHello, .token_size = static_cast<uint32_t>(token.size())};
  GENIE_TRY(channel.send(hello, -1, token));
  Incoming incoming;
  do {
    if (!channel.wait_readable(deadline).ok()) {
      return Status(Errc::kTimedOut, "the process at unix:" + *path + " accepted but does not answer");
    }
    channel.receive(incoming);
  } while (incoming.kind == Incoming::Kind::kNothing || incoming.kind == Incoming::Kind::kBell);
  const ControlMessage& answer = incoming.message;
  if (incoming.kind == Incoming::Kind::kHangup) {
    return Status(Errc::kDisconnected, "the process at unix:" + *path + " hung up during the handshake");
  }
  if (incoming.kind != Incoming::Kind::kMessage || answer.type != ControlType::kHelloReply) {
    return Status(Errc::kProtocol, "the process at unix:" + *path + " does not speak this protocol");
  }
  if (answer.version != kControlVersion)
    return Status(Errc::kVersionMismatch, "unix:" + *path + " is of another version");
  if (answer.status != 0) {
    const auto code = static_cast<Errc>(answer.status);
    return Status(code, "unix:" + *path + " refused the connection (" + errc_name(code) + ")");
  }
  Endpoint& endpoint = add_endpoint(std::move(channel), false);
  endpoint.token.assign(token.begin(), token.end());
  const Status opened = open_rings(endpoint, incoming.fd.get(), false);
  if (!opened.ok()) {
    endpoints_.erase(endpoint.id.index, endpoint.id.generation);
    return opened;
  }
  return endpoint.id;
}

void ShmTransport::accept_all() {
  for (;;) {
    FileDescriptor fd(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (!fd.valid()) {
      if (errno == EINTR || errno == ECONNABORTED) continue;
      if (errno != EMFILE && errno != ENFILE) return;
      // Without this the waiting client would make every wait() return at once.
      reserve_ = FileDescriptor();
      const FileDescriptor turned_away(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
      reserve_ = FileDescriptor(::open("/dev/null", O_RDONLY | O_CLOEXEC));
      if (!turned_away.valid()) return;
      GENIE_LOG_ERROR("unix:{} turned a client away: too many open files; raise 'ulimit -n'", path_);
      continue;
    }
    // Also beyond max_endpoints clients may say hello, so that they can be told why they are refused.
    constexpr size_t kMaxHandshakes = 256;
    if (handshakes_ >= kMaxHandshakes) continue;
    Endpoint& endpoint = add_endpoint(ControlChannel(std::move(fd)), true);
    endpoint.handshake_deadline_ns = Deadline::after_ms(options_.control_timeout_ms).when_ns();
    earliest_handshake_ns_ = std::min(earliest_handshake_ns_, endpoint.handshake_deadline_ns);
    ++handshakes_;
  }
}

Status ShmTransport::admit(const Endpoint& endpoint, const ControlMessage& hello) const {
  if (hello.version != kControlVersion) return Errc::kVersionMismatch;
  if (open_endpoints_ >= options_.max_endpoints) return Errc::kQuotaExceeded;
  if (options_.allow_other_users) return {};
  ucred peer{};
  socklen_t size = sizeof(peer);
  if (::getsockopt(endpoint.channel.fd(), SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) return Errc::kPermission;
  return peer.uid == ::geteuid() || peer.uid == 0 ? Status() : Status(Errc::kPermission);
}

void ShmTransport::handle_hello(Endpoint& endpoint, const Incoming& incoming) {
  const ControlMessage& hello = incoming.message;
  FileDescriptor memory;
  Status status = hello.type == ControlType::kHello ? admit(endpoint, hello) : Status(Errc::kProtocol);
  if (status.ok()) {
    Result<FileDescriptor> made = make_sealed_memory(sizeof(EndpointMemory));
    status = made.status();
    if (made.ok()) {
      memory = std::move(*made);
      status = populate(memory.get(), 0, sizeof(EndpointMemory));
    }
  }
  if (status.ok()) status = open_rings(endpoint, memory.get(), true);
  const ControlMessage answer{.type = ControlType::kHelloReply, .status = static_cast<uint32_t>(status.code())};
  const Status sent = endpoint.channel.send(answer, status.ok() ? memory.get() : -1);
  if (!status.ok() || !sent.ok()) {
    if (!status.ok()) GENIE_LOG_INFO("refused a connection on unix:{}: {}", path_, status.to_string());
    endpoint.state = EndpointState::kHandshake;
    end(endpoint, Errc::kDisconnected, Errc::kDisconnected);
    return;
  }
  endpoint.token.assign(incoming.token.begin(), incoming.token.begin() + hello.token_size);
  --handshakes_;
  ++open_endpoints_;
  completions_.push(Completion{.opcode = Opcode::kConnected, .endpoint = endpoint.id});
}

Status ShmTransport::close(EndpointId id) {
  Endpoint* endpoint = find(id);
  if (endpoint == nullptr || endpoint->state == EndpointState::kHandshake)
    return endpoints_.why(id.index, id.generation);
  end(*endpoint, Errc::kOk, Errc::kCancelled);
  return {};
}

void ShmTransport::end(Endpoint& endpoint, Errc cause, Errc flushed) {
  const EndpointId id = endpoint.id;
  remove_from_scan(endpoint);
  if (endpoint.state == EndpointState::kHandshake) {
    --handshakes_;
  } else {
    if (endpoint.listener_side) --open_endpoints_;
    shared_regions_ -= endpoint.shared_regions;
    shared_bytes_ -= endpoint.shared_bytes;
    const uint64_t now = now_ns();
    for (RingQueue<PendingOp>& queue : endpoint.pending) {
      while (!queue.empty()) {
        --pending_ops_;
        PendingOp op = queue.pop();
        count_users(op, -1);
        const bool late = cause == Errc::kTimedOut && op.deadline_ns <= now;
        finish(endpoint, std::move(op), late ? Errc::kTimedOut : flushed);
      }
    }
    completions_.push(Completion{.opcode = Opcode::kDisconnected, .result = cause, .endpoint = id});
  }
  endpoints_.erase(id.index, id.generation);  // closes the socket: the peer sees the hang-up
}

}  // namespace shm
}  // namespace genie::datapath
