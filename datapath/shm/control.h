// The control channel of a shared-memory endpoint: a SOCK_SEQPACKET unix socket.
//
// Purpose: handshake, descriptors, requests for memory, doorbells; its hang-up says that the peer has gone. Messages are
//   one fixed struct, plus the token in a hello, plus at most one descriptor; a doorbell is one byte.
// Thread-safety: none; a channel belongs to its transport's thread.
// Trust: what comes from the peer is checked for length here; the meaning of fields is checked by the transport.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "datapath/base/file_descriptor.h"
#include "datapath/base/ring_queue.h"
#include "datapath/transport.h"
#include "genie/status.h"

namespace genie::datapath {

inline constexpr uint32_t kControlMagic = 0x494e4547;  // "GENI"
inline constexpr uint16_t kControlVersion = 1;
inline constexpr size_t kMaxTokenBytes = 512;

enum class ControlType : uint16_t {
  kHello = 1,      // client: token follows
  kHelloReply,     // listener: status, the ring's descriptor
  kAllocate,       // client: size
  kAllocateReply,  // listener: status, key, the region's descriptor
  kImport,         // client: key of a region of the listener
  kImportReply,    // listener: status, the region's descriptor
  kRelease,        // client: key of a region that it allocated and no longer shares
  kRevoke,         // listener: key of a region that it no longer shares
  kHandOver,       // either: memory that is the other's from now on; a key to name it, its size, its descriptor
};

struct ControlMessage {
  uint32_t magic = kControlMagic;
  uint16_t version = kControlVersion;
  ControlType type = ControlType::kHello;
  uint64_t request = 0;  // a reply repeats its request's
  uint64_t size = 0;
  uint32_t status = 0;  // an Errc
  uint32_t token_size = 0;
  RemoteKey key;
};
static_assert(sizeof(ControlMessage) == 64);

struct Incoming {
  enum class Kind : uint8_t { kNothing, kBell, kMessage, kHangup, kMalformed };
  Kind kind = Kind::kNothing;
  ControlMessage message;
  FileDescriptor fd;
  std::array<std::byte, kMaxTokenBytes> token;
};

class ControlChannel {
 public:
  ControlChannel() = default;
  explicit ControlChannel(FileDescriptor fd) : fd_(std::move(fd)) {}

  int fd() const noexcept { return fd_.get(); }

  // Never blocks: what the socket does not take now is kept, in order, for flush(). kQuotaExceeded when the peer lets
  // more than `kMaxUnsent` pile up, kDisconnected when it has gone.
  Status send(const ControlMessage& message, int fd_to_pass = -1, std::span<const std::byte> token = {});
  // kAgain while something is left.
  Status flush();
  bool has_unsent() const noexcept { return !unsent_.empty(); }

  // One byte that wakes the peer up. A full socket means that it has wake-ups waiting already.
  void ring_bell() noexcept;

  // The next datagram, without blocking.
  void receive(Incoming& incoming) noexcept;

  // Until the socket is readable (or writable); kTimedOut.
  Status wait_readable(Deadline deadline) const;
  Status wait_writable(Deadline deadline) const;

  static constexpr size_t kMaxUnsent = 70'000;

 private:
  struct Unsent {
    ControlMessage message;
    FileDescriptor fd;
  };
  Status send_now(const ControlMessage& message, int fd_to_pass, std::span<const std::byte> token) noexcept;

  FileDescriptor fd_;
  RingQueue<Unsent> unsent_;
};

// The path in "unix:/path"; kInvalidArgument when it is none or too long for a socket.
Result<std::string> parse_unix_address(std::string_view address);

// A socket that listens at `path`. A stale socket file (nobody answers there) is replaced; a live one gives
// kAlreadyExists.
Result<FileDescriptor> listen_unix(const std::string& path, bool allow_other_users);

// kUnreachable when nobody listens there.
Result<FileDescriptor> connect_unix(const std::string& path, Deadline deadline);

}  // namespace genie::datapath
