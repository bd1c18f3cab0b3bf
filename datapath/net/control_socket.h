// ControlSocket: the TCP connection beside the lanes of a network endpoint.
//
// Purpose: handshake, keys, requests for memory, signs of life; its hang-up says that the peer has gone. Frames are one
//   fixed header and a payload of bounded size, in order.
// Thread-safety: none; a socket belongs to its transport's thread.
// Ownership: a payload that receive() answered is good until the next call.
// Trust: what comes from the peer is checked for length here; the meaning of fields is checked by the transport.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "datapath/base/clock.h"
#include "datapath/base/file_descriptor.h"
#include "datapath/transport.h"
#include "genie/status.h"

namespace genie::datapath::net {

inline constexpr uint32_t kFrameMagic = 0x544e4547;  // "GENT"
inline constexpr uint16_t kNetVersion = 2;
inline constexpr size_t kMaxTokenBytes = 512;
// Memory that is handed over and is no larger travels in the frame that says so.
inline constexpr size_t kEagerBytes = size_t{32} << 10;
inline constexpr size_t kMaxPayloadBytes = size_t{64} << 10;

enum class FrameType : uint16_t {
  kHello = 1,   // client: its fabric, token and link address
  kHelloReply,  // listener: status, link address
  kReady,       // client: its lanes are connected
  kReserve,     // client: size of a region that it wants to share
  kUnreserve,   // client: it could not make it
  kAnnounce,    // either: a region that the other may address: key, address, packed key
  kImport,      // client: is this a key of yours?
  kReply,       // listener: status of a request
  kRevoke,      // either: key of a region that is no longer shared
  kRevoked,     // either: nothing of this side is on its way to it any more
  kHandOver,    // either: memory that is to become the other's: key, address, packed key or the bytes themselves
  kTaken,       // either: key of memory that was handed over and need not be kept any more
  kPing,
  kPong,
  kGoodbye,  // either: the endpoint ends; how many messages were sent on each lane
  kFarewell  // either: the answer, once they have been read
};

struct Frame {
  uint32_t magic = kFrameMagic;
  uint16_t version = kNetVersion;
  FrameType type = FrameType::kHello;
  uint32_t payload_bytes = 0;
  uint32_t status = 0;   // an Errc
  uint64_t request = 0;  // a reply repeats its request's
  uint64_t size = 0;
  uint64_t address = 0;
  RemoteKey key;
};
static_assert(sizeof(Frame) == 72);

class ControlSocket {
 public:
  enum class Event : uint8_t { kNothing, kFrame, kHangup, kMalformed };

  ControlSocket() = default;
  explicit ControlSocket(FileDescriptor fd);

  int fd() const noexcept { return fd_.get(); }
  bool open() const noexcept { return fd_.valid(); }
  void close() noexcept { fd_ = FileDescriptor(); }

  // Never blocks: what the socket does not take now is kept, in order, for flush(). kQuotaExceeded when the peer lets too
  // much pile up, kDisconnected when it has gone.
  Status send(Frame frame, std::span<const std::byte> payload = {});
  // kAgain while something is left.
  Status flush();
  size_t unsent_bytes() const noexcept { return unsent_.size() - sent_; }

  // The next frame, without blocking.
  Event receive(Frame& frame, std::span<const std::byte>& payload);

  // Until the socket is readable (or writable); kTimedOut.
  Status wait_readable(Deadline deadline) const;
  Status wait_writable(Deadline deadline) const;

  // The peer's address without its port, as numbers.
  std::string peer_host() const;

 private:
  static constexpr size_t kMaxUnsent = size_t{256} << 20;

  FileDescriptor fd_;
  std::vector<std::byte> unsent_;
  size_t sent_ = 0;
  std::vector<std::byte> received_;
  size_t begin_ = 0;
  size_t end_ = 0;
};

struct TcpListener {
  FileDescriptor fd;
  std::string address;  // with the port that port 0 became
};
// kAlreadyExists when somebody listens there already.
Result<TcpListener> listen_tcp(std::string_view address);

// kUnreachable when nobody listens there.
Result<FileDescriptor> connect_tcp(std::string_view address, Deadline deadline);

}  // namespace genie::datapath::net
