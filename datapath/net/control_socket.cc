#include "datapath/net/control_socket.h"

#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <memory>
#include <utility>

#include "datapath/base/tcp_address.h"
#include "datapath/base/waiting.h"

namespace genie::datapath::net {
namespace {

constexpr size_t kReadBytes = size_t{16} << 10;

using AddressList = std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)>;

Result<AddressList> resolve(std::string_view text, bool passive) {
  const Result<TcpAddress> address = parse_tcp_address(text);
  GENIE_TRY(address.status());
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = passive ? AI_PASSIVE : 0;
  addrinfo* found = nullptr;
  const bool any = address->host.empty() || address->host == "*";
  const int failed = ::getaddrinfo(any ? nullptr : address->host.c_str(), address->port.c_str(), &hints, &found);
  if (failed != 0) {
    return Status(Errc::kUnreachable, std::string(text) + ": " + ::gai_strerror(failed) + "; check host and port");
  }
  return AddressList(found, &::freeaddrinfo);
}

std::string numeric_host(const sockaddr_storage& address, socklen_t size) {
  std::array<char, NI_MAXHOST> host{};
  const int failed = ::getnameinfo(reinterpret_cast<const sockaddr*>(&address), size, host.data(), host.size(), nullptr,
                                   0, NI_NUMERICHOST);
  return failed == 0 ? host.data() : "";
}

uint16_t port_of(int fd) {
  sockaddr_storage bound{};
  socklen_t size = sizeof(bound);
  ::getsockname(fd, reinterpret_cast<sockaddr*>(&bound), &size);
  return ntohs(bound.ss_family == AF_INET6 ? reinterpret_cast<const sockaddr_in6&>(bound).sin6_port
                                           : reinterpret_cast<const sockaddr_in&>(bound).sin_port);
}

}  // namespace

ControlSocket::ControlSocket(FileDescriptor fd) : fd_(std::move(fd)) {
  const int on = 1;
  ::setsockopt(fd_.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
}

Status ControlSocket::send(Frame frame, std::span<const std::byte> payload) {
  if (!fd_.valid()) return Errc::kDisconnected;
  if (unsent_bytes() + payload.size() > kMaxUnsent) return Errc::kQuotaExceeded;
  frame.payload_bytes = static_cast<uint32_t>(payload.size());
  const auto* const header = reinterpret_cast<const std::byte*>(&frame);
  size_t done = 0;
  const size_t total = sizeof(frame) + payload.size();
  if (unsent_.empty()) {
    iovec parts[2] = {{&frame, sizeof(frame)}, {const_cast<std::byte*>(payload.data()), payload.size()}};
    msghdr message{};
    message.msg_iov = parts;
    message.msg_iovlen = payload.empty() ? 1 : 2;
    ssize_t took;
    do {
      took = ::sendmsg(fd_.get(), &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    } while (took < 0 && errno == EINTR);
    if (took < 0 && errno != EAGAIN && errno != ENOBUFS) return Errc::kDisconnected;
    done = took > 0 ? static_cast<size_t>(took) : 0;
    if (done == total) return {};
  }
  if (done < sizeof(frame)) unsent_.insert(unsent_.end(), header + done, header + sizeof(frame));
  const size_t of_payload = done > sizeof(frame) ? done - sizeof(frame) : 0;
  unsent_.insert(unsent_.end(), payload.begin() + static_cast<std::ptrdiff_t>(of_payload), payload.end());
  return {};
}

Status ControlSocket::flush() {
  while (unsent_bytes() != 0) {
    const ssize_t took = ::send(fd_.get(), unsent_.data() + sent_, unsent_bytes(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (took < 0 && errno == EINTR) continue;
    if (took < 0) return errno == EAGAIN || errno == ENOBUFS ? Errc::kAgain : Errc::kDisconnected;
    sent_ += static_cast<size_t>(took);
  }
  unsent_.clear();
  sent_ = 0;
  return {};
}

ControlSocket::Event ControlSocket::receive(Frame& frame, std::span<const std::byte>& payload) {
  for (;;) {
    size_t wanted = sizeof(Frame);
    if (end_ - begin_ >= sizeof(Frame)) {
      std::memcpy(&frame, received_.data() + begin_, sizeof(frame));
      if (frame.magic != kFrameMagic || frame.payload_bytes > kMaxPayloadBytes) return Event::kMalformed;
      wanted += frame.payload_bytes;
      if (end_ - begin_ >= wanted) {
        payload = {received_.data() + begin_ + sizeof(Frame), frame.payload_bytes};
        begin_ += wanted;
        return Event::kFrame;
      }
    }
    if (begin_ != 0) {
      std::memmove(received_.data(), received_.data() + begin_, end_ - begin_);
      end_ -= std::exchange(begin_, 0);
    }
    if (received_.size() < wanted + kReadBytes) received_.resize(wanted + kReadBytes);
    const ssize_t got = ::recv(fd_.get(), received_.data() + end_, received_.size() - end_, MSG_DONTWAIT);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return errno == EAGAIN ? Event::kNothing : Event::kHangup;
    if (got == 0) return Event::kHangup;
    end_ += static_cast<size_t>(got);
  }
}

Status ControlSocket::wait_readable(Deadline deadline) const { return wait_ready(fd_.get(), POLLIN, deadline); }
Status ControlSocket::wait_writable(Deadline deadline) const { return wait_ready(fd_.get(), POLLOUT, deadline); }

std::string ControlSocket::peer_host() const {
  sockaddr_storage peer{};
  socklen_t size = sizeof(peer);
  if (::getpeername(fd_.get(), reinterpret_cast<sockaddr*>(&peer), &size) != 0) return "";
  return numeric_host(peer, size);
}

Result<TcpListener> listen_tcp(std::string_view address) {
  Result<AddressList> found = resolve(address, true);
  GENIE_TRY(found.status());
  const std::string text(address);
  int error = 0;
  for (const addrinfo* at = found->get(); at != nullptr; at = at->ai_next) {
    FileDescriptor fd(::socket(at->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    const int on = 1;
    if (fd.valid()) ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (!fd.valid() || ::bind(fd.get(), at->ai_addr, at->ai_addrlen) != 0 || ::listen(fd.get(), SOMAXCONN) != 0) {
      error = errno;
      continue;
    }
    TcpAddress own = *parse_tcp_address(address);
    if (own.host.empty()) own.host = "*";
    own.port = std::to_string(port_of(fd.get()));
    return TcpListener{std::move(fd), own.to_string()};
  }
  return Status(error == EADDRINUSE ? Errc::kAlreadyExists : Errc::kIo,
                "cannot listen on " + text + ": " + std::strerror(error));
}

Result<FileDescriptor> connect_tcp(std::string_view address, Deadline deadline) {
  Result<AddressList> found = resolve(address, false);
  GENIE_TRY(found.status());
  Status last(Errc::kUnreachable, std::string(address) + ": no address");
  for (const addrinfo* at = found->get(); at != nullptr; at = at->ai_next) {
    FileDescriptor fd(::socket(at->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (!fd.valid()) {
      last = Status(Errc::kQuotaExceeded, std::string("cannot make a socket: ") + std::strerror(errno));
      continue;
    }
    int error = ::connect(fd.get(), at->ai_addr, at->ai_addrlen) == 0 ? 0 : errno;
    if (error == EINPROGRESS) {
      if (!wait_ready(fd.get(), POLLOUT, deadline).ok()) {
        last = Status(Errc::kTimedOut, "no answer from " + std::string(address) + "; is the host up, the port open?");
        continue;
      }
      socklen_t size = sizeof(error);
      ::getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &error, &size);
    }
    if (error == 0) return fd;
    last = Status(Errc::kUnreachable, "nobody listens on " + std::string(address) + ": " + std::strerror(error));
  }
  return last;
}

}  // namespace genie::datapath::net
