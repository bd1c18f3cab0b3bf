#include "datapath/shm/control.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "datapath/base/waiting.h"

namespace genie::datapath {
namespace {

bool fill(sockaddr_un& name, const std::string& path) {
  name = {};
  name.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof(name.sun_path)) return false;
  std::memcpy(name.sun_path, path.data(), path.size());
  return true;
}

Status describe(const char* what, const std::string& path, Errc code) {
  return Status(code, std::string(what) + " unix:" + path + ": " + std::strerror(errno));
}

// A socket file without a listener behind it is left over from a process that was killed.
Status remove_stale(const std::string& path, const sockaddr_un& name) {
  struct stat info {};
  if (::lstat(path.c_str(), &info) != 0) return {};
  if (!S_ISSOCK(info.st_mode)) {
    return Status(Errc::kAlreadyExists, path + " exists and is not a socket; choose another path");
  }
  FileDescriptor probe(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!probe.valid()) return describe("cannot probe", path, Errc::kIo);
  if (::connect(probe.get(), reinterpret_cast<const sockaddr*>(&name), sizeof(name)) == 0 || errno == EAGAIN) {
    return Status(Errc::kAlreadyExists, "another process listens on unix:" + path + "; stop it or choose another path");
  }
  if (errno != ECONNREFUSED) return describe("cannot probe", path, Errc::kAlreadyExists);
  ::unlink(path.c_str());
  return {};
}

}  // namespace

Status ControlChannel::send_now(const ControlMessage& message, int fd_to_pass,
                                std::span<const std::byte> token) noexcept {
  iovec parts[2] = {{const_cast<ControlMessage*>(&message), sizeof(message)},
                    {const_cast<std::byte*>(token.data()), token.size()}};
  msghdr header{};
  header.msg_iov = parts;
  header.msg_iovlen = token.empty() ? 1 : 2;
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  if (fd_to_pass >= 0) {
    header.msg_control = control;
    header.msg_controllen = sizeof(control);
    cmsghdr* entry = CMSG_FIRSTHDR(&header);
    entry->cmsg_level = SOL_SOCKET;
    entry->cmsg_type = SCM_RIGHTS;
    entry->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(entry), &fd_to_pass, sizeof(int));
  }
  for (;;) {
    if (::sendmsg(fd_.get(), &header, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0) return {};
    if (errno == EINTR) continue;
    // ETOOMANYREFS: too many descriptors on their way to peers that do not read.
    if (errno == EAGAIN || errno == ENOBUFS || errno == ETOOMANYREFS) return Errc::kAgain;
    return Errc::kDisconnected;
  }
}

Status ControlChannel::send(const ControlMessage& message, int fd_to_pass, std::span<const std::byte> token) {
  GENIE_TRY([&]() -> Status {
    const Status flushed = flush();
    return flushed.code() == Errc::kAgain ? Status() : flushed;
  }());
  if (unsent_.empty()) {
    const Status sent = send_now(message, fd_to_pass, token);
    if (sent.code() != Errc::kAgain) return sent;
  }
  // A token only travels in the first message of a fresh socket, which always has room.
  if (!token.empty()) return Errc::kDisconnected;
  if (unsent_.size() >= kMaxUnsent) return Errc::kQuotaExceeded;
  Unsent kept{message, FileDescriptor()};
  if (fd_to_pass >= 0) {
    kept.fd = FileDescriptor(::fcntl(fd_to_pass, F_DUPFD_CLOEXEC, 0));
    if (!kept.fd.valid()) return Errc::kQuotaExceeded;
  }
  unsent_.push(std::move(kept));
  return {};
}

Status ControlChannel::flush() {
  while (!unsent_.empty()) {
    const Status sent = send_now(unsent_.front().message, unsent_.front().fd.get(), {});
    if (!sent.ok()) return sent;
    unsent_.pop();
  }
  return {};
}

void ControlChannel::ring_bell() noexcept {
  const char bell = 1;
  while (::send(fd_.get(), &bell, sizeof(bell), MSG_DONTWAIT | MSG_NOSIGNAL) < 0 && errno == EINTR) {
  }
}

void ControlChannel::receive(Incoming& incoming) noexcept {
  iovec parts[2] = {{&incoming.message, sizeof(incoming.message)}, {incoming.token.data(), incoming.token.size()}};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))];
  msghdr header{};
  header.msg_iov = parts;
  header.msg_iovlen = 2;
  header.msg_control = control;
  header.msg_controllen = sizeof(control);
  ssize_t got;
  do {
    got = ::recvmsg(fd_.get(), &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  } while (got < 0 && errno == EINTR);
  incoming.fd = FileDescriptor();
  if (got < 0) {
    incoming.kind = errno == EAGAIN ? Incoming::Kind::kNothing : Incoming::Kind::kHangup;
    return;
  }
  for (cmsghdr* entry = CMSG_FIRSTHDR(&header); entry != nullptr; entry = CMSG_NXTHDR(&header, entry)) {
    if (entry->cmsg_level != SOL_SOCKET || entry->cmsg_type != SCM_RIGHTS) continue;
    for (size_t at = CMSG_LEN(0); at + sizeof(int) <= entry->cmsg_len; at += sizeof(int)) {
      int fd;
      std::memcpy(&fd, reinterpret_cast<const char*>(entry) + at, sizeof(fd));
      incoming.fd = FileDescriptor(fd);
    }
  }
  if (got == 0) {
    incoming.kind = Incoming::Kind::kHangup;
    return;
  }
  if (got == 1) {
    incoming.kind = Incoming::Kind::kBell;
    return;
  }
  const auto size = static_cast<size_t>(got);
  const ControlMessage& message = incoming.message;
  const bool whole = size >= sizeof(message) && message.magic == kControlMagic &&
                     message.token_size <= kMaxTokenBytes && size == sizeof(message) + message.token_size &&
                     (header.msg_flags & MSG_TRUNC) == 0;
  incoming.kind = whole ? Incoming::Kind::kMessage : Incoming::Kind::kMalformed;
}

Status ControlChannel::wait_readable(Deadline deadline) const { return wait_ready(fd_.get(), POLLIN, deadline); }
Status ControlChannel::wait_writable(Deadline deadline) const { return wait_ready(fd_.get(), POLLOUT, deadline); }

Result<std::string> parse_unix_address(std::string_view address) {
  constexpr std::string_view kScheme = "unix:";
  sockaddr_un name;
  if (!address.starts_with(kScheme) || !fill(name, std::string(address.substr(kScheme.size())))) {
    return Status(Errc::kInvalidArgument,
                  std::string(address) + ": not a shared-memory address; write unix:/path.sock (at most 107 bytes)");
  }
  return std::string(address.substr(kScheme.size()));
}

Result<FileDescriptor> listen_unix(const std::string& path, bool allow_other_users) {
  sockaddr_un name;
  if (!fill(name, path)) return Status(Errc::kInvalidArgument, "socket path of wrong length: " + path);
  GENIE_TRY(remove_stale(path, name));
  FileDescriptor fd(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid()) return describe("cannot listen on", path, Errc::kIo);
  if (::bind(fd.get(), reinterpret_cast<const sockaddr*>(&name), sizeof(name)) != 0) {
    return describe("cannot listen on", path, errno == EADDRINUSE ? Errc::kAlreadyExists : Errc::kIo);
  }
  if (::chmod(path.c_str(), allow_other_users ? 0666 : 0600) != 0 || ::listen(fd.get(), SOMAXCONN) != 0) {
    return describe("cannot listen on", path, Errc::kIo);
  }
  return fd;
}

Result<FileDescriptor> connect_unix(const std::string& path, Deadline deadline) {
  sockaddr_un name;
  if (!fill(name, path)) return Status(Errc::kInvalidArgument, "socket path of wrong length: " + path);
  FileDescriptor fd(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (!fd.valid()) return describe("cannot make a socket for", path, Errc::kQuotaExceeded);
  for (;;) {
    // A listener that does not accept fills its backlog; the connect then waits, for as long as this says.
    const uint64_t left = std::max<uint64_t>(deadline.left_ns(), 1'000);
    const timeval timeout{static_cast<time_t>(left / 1'000'000'000),
                          static_cast<suseconds_t>(left % 1'000'000'000 / 1000)};
    ::setsockopt(fd.get(), SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof(timeout));
    if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&name), sizeof(name)) == 0) return fd;
    if (errno == EINTR && !deadline.expired()) continue;
    if (errno == EAGAIN || errno == EINTR) {
      return Status(Errc::kTimedOut, "the process at unix:" + path + " does not accept connections; is it overloaded?");
    }
    return describe("nobody listens on", path, errno == EACCES ? Errc::kPermission : Errc::kUnreachable);
  }
}

}  // namespace genie::datapath
