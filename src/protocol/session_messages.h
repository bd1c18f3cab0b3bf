// The messages of a session's endpoint, as plain structs, and their codec.
//
// Purpose: nobody outside src/protocol sees a generated header. Encoding never fails within the limits below; decoding
//   answers kProtocol with a text for anything else, and never reads outside of the bytes it was given.
// Thread-safety: an Encoder belongs to one thread at a time; decode functions may be called from any thread.
// Ownership: decoded messages own their contents. The bytes to decode must be private memory, aligned to 8.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "genie/status.h"
#include "src/executor/executor.h"
#include "src/protocol/content.h"

namespace genie::wire {

// Changes with every change of the messages; exchanged at the handshake, where both sides must have the same.
inline constexpr uint32_t kProtocolVersion = 7;

inline constexpr size_t kMaxMessageBytes = size_t{16} << 20;
inline constexpr size_t kMaxTextBytes = 8192;   // longer error texts are cut
inline constexpr size_t kMaxInlineBytes = 256;  // a fetch up to this size rides in its completion
inline constexpr size_t kMaxFetches = 65536;    // of one submission
inline constexpr size_t kMaxRegions = 64;       // of one submission
inline constexpr size_t kMaxQuestions = 64;     // of a session, without an answer
inline constexpr size_t kMaxBlobs = 64;         // in one answer
inline constexpr size_t kMaxFrees = kMaxMessageBytes / 8;
inline constexpr uint32_t kNoWindow = UINT32_MAX;
inline constexpr uint32_t kKnownBlob = UINT32_MAX;  // in the place of a region's number
inline constexpr size_t kUploadAlignment = 64;      // of an upload within its region

using Key = std::array<std::byte, 32>;

struct UploadEntry {
  executor::StorageVersion storage;
  uint64_t offset = 0;
  uint64_t size = 0;
  // None: it lies in `region`, by its number in the submission, or it is the blob that the node calls `offset`.
  uint32_t window = kNoWindow;
  uint32_t region = 0;
};

struct FetchEntry {
  executor::StorageVersion storage;
  uint64_t offset = 0;
  uint64_t size = 0;
  uint32_t window =
      kNoWindow;  // memory of the client that wants the bytes, and where in it; none: the node finds a place
  uint64_t place = 0;
};

struct WindowOffer {
  uint32_t window = 0;
  uint64_t size = 0;
  Key key{};
};

struct SubmissionMessage {
  uint64_t ticket = 0;
  uint32_t stream = 0;
  uint32_t epoch = 0;
  std::vector<uint64_t> frees;
  std::vector<UploadEntry> uploads;
  uint64_t template_id = 0;
  std::vector<std::byte> invocation;  // as an InvocationCoder made it; empty without a template
  std::vector<FetchEntry> fetches;
  std::vector<WindowOffer> window_offers;
  std::vector<Key> regions;  // as the transport's hand_over() named them
  std::vector<uint64_t> result_releases;
};

// Results and blobs that the client has let go of, when there is no submission for them to ride along with.
struct ResultRelease {
  std::vector<uint64_t> results;
};

// Does the node have such a blob, of any session of the same identity?
struct Question {
  uint64_t question = 0;
  uint64_t size = 0;
  uint64_t sketch = 0;
};

using ClientMessage = std::variant<SubmissionMessage, ResultRelease, Question>;

struct FetchedEntry {
  Status status;
  std::vector<std::byte> bytes;  // of an inline fetch
  // Of the others: the name by which it is released, and where it lies.
  uint64_t result = 0;
  uint32_t region = 0;
  uint64_t offset = 0;
  bool passing = false;  // to be copied and released at once
};

struct CompletionMessage {
  uint64_t ticket = 0;
  Status status;
  int64_t failed_record = -1;
  uint64_t executed_records = 0;
  uint64_t upload_copied_bytes = 0;
  uint64_t fetch_copied_bytes = 0;
  std::vector<executor::ReportedTensor> reported;
  std::vector<FetchedEntry> fetched;  // as many as the submission asked for
};

struct Progress {
  uint64_t records = 0;
};

struct Farewell {
  Status status;
};

// Memory for results, which the client maps privately; size 0: no longer.
struct ResultRegion {
  uint32_t region = 0;
  uint64_t size = 0;
  Key key{};
};

// Blobs like that, and what was brought behind them: the client may be about to bring it too.
struct Answer {
  // Kept for this session until an upload takes it or it is released.
  struct Blob {
    uint64_t name = 0;
    uint64_t size = 0;
    uint64_t sketch = 0;
    ContentHash hash;
  };
  uint64_t question = 0;
  std::vector<Blob> blobs;
};

using NodeMessage = std::variant<CompletionMessage, Progress, Farewell, ResultRegion, Answer>;

class Encoder {
 public:
  Encoder();
  ~Encoder();
  Encoder(Encoder&&) noexcept;
  Encoder& operator=(Encoder&&) noexcept;

  // The bytes are valid until the next call. kOutOfRange for a message beyond kMaxMessageBytes.
  Result<std::span<const std::byte>> encode(const ClientMessage& message);
  Result<std::span<const std::byte>> encode(const NodeMessage& message);

 private:
  struct Builder;
  std::unique_ptr<Builder> builder_;
};

Result<ClientMessage> decode_client_message(std::span<const std::byte> bytes);
Result<NodeMessage> decode_node_message(std::span<const std::byte> bytes);

// A code that came over the wire: unknown ones become kInternal.
Errc errc_from_wire(uint32_t code) noexcept;

}  // namespace genie::wire
