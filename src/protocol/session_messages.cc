#include "src/protocol/session_messages.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "session_generated.h"
#include "src/protocol/program_format.h"
#include "src/protocol/varint.h"

namespace genie::wire {
namespace {

constexpr const char* kClientIdentifier = "GNC1";
constexpr const char* kNodeIdentifier = "GNN1";

// Nesting of tables that our messages have, and tables that one message may hold.
constexpr flatbuffers::uoffset_t kMaxDepth = 8;
constexpr flatbuffers::uoffset_t kMaxTables = 4 * kMaxFetches;

fbs::Key to_wire(const Key& key) {
  std::array<uint64_t, 4> words{};
  std::memcpy(words.data(), key.data(), key.size());
  return {words[0], words[1], words[2], words[3]};
}

Key from_wire(const fbs::Key& key) {
  const std::array<uint64_t, 4> words{key.a(), key.b(), key.c(), key.d()};
  Key out;
  std::memcpy(out.data(), words.data(), out.size());
  return out;
}

std::string_view cut(std::string_view text) { return text.substr(0, kMaxTextBytes); }

uint16_t code_of(const Status& status) { return static_cast<uint16_t>(status.code()); }

flatbuffers::Offset<flatbuffers::String> text_of(flatbuffers::FlatBufferBuilder& builder, const Status& status) {
  if (status.text().empty()) return 0;
  const std::string_view text = cut(status.text());
  return builder.CreateString(text.data(), text.size());
}

Status status_of(uint16_t code, const flatbuffers::String* text) {
  const Errc errc = errc_from_wire(code);
  if (errc == Errc::kOk || text == nullptr || text->size() == 0) return errc;
  return {errc, std::string(cut(text->string_view()))};
}

// Absent vectors cost no bytes: most of a decode step's are.
template <typename T>
flatbuffers::Offset<flatbuffers::Vector<T>> numbers(flatbuffers::FlatBufferBuilder& builder,
                                                    const std::vector<T>& from) {
  return from.empty() ? 0 : builder.CreateVector(from);
}

flatbuffers::Offset<flatbuffers::Vector<uint8_t>> bytes_of(flatbuffers::FlatBufferBuilder& builder,
                                                           std::span<const std::byte> from) {
  return from.empty() ? 0 : builder.CreateVector(reinterpret_cast<const uint8_t*>(from.data()), from.size());
}

std::span<const std::byte> span_of(const flatbuffers::Vector<uint8_t>* from) {
  if (from == nullptr) return {};
  return {reinterpret_cast<const std::byte*>(from->data()), from->size()};
}

std::vector<std::byte> bytes_in(const flatbuffers::Vector<uint8_t>* from) {
  const std::span<const std::byte> bytes = span_of(from);
  return {bytes.begin(), bytes.end()};
}

template <typename Wire, typename Plain, typename Convert>
flatbuffers::Offset<flatbuffers::Vector<const Wire*>> structs(flatbuffers::FlatBufferBuilder& builder,
                                                              const std::vector<Plain>& from, const Convert& convert) {
  if (from.empty()) return 0;
  Wire* to = nullptr;
  const auto offset = builder.CreateUninitializedVectorOfStructs<Wire>(from.size(), &to);
  for (const Plain& item : from) *to++ = convert(item);
  return offset;
}

flatbuffers::Offset<void> build(flatbuffers::FlatBufferBuilder& builder, const SubmissionMessage& message) {
  std::vector<std::byte> packed_frees;
  uint64_t previous = 0;
  for (const uint64_t id : message.frees) put_difference(packed_frees, std::exchange(previous, id), id);
  const auto frees = bytes_of(builder, packed_frees);
  const auto uploads = structs<fbs::Upload>(builder, message.uploads, [](const UploadEntry& entry) {
    return fbs::Upload(entry.storage.id, entry.offset, entry.size, entry.storage.version, entry.window, entry.region,
                       0);
  });
  const auto invocation = bytes_of(builder, message.invocation);
  const auto fetches = structs<fbs::Fetch>(builder, message.fetches, [](const FetchEntry& entry) {
    return fbs::Fetch(entry.storage.id, entry.offset, entry.size, entry.place, entry.storage.version, entry.window);
  });
  const auto offers = structs<fbs::WindowOffer>(builder, message.window_offers, [](const WindowOffer& offer) {
    return fbs::WindowOffer(to_wire(offer.key), offer.size, offer.window, 0);
  });
  const auto regions =
      structs<fbs::Region>(builder, message.regions, [](const Key& key) { return fbs::Region(to_wire(key)); });
  const auto results = numbers(builder, message.result_releases);
  return fbs::CreateSubmission(builder, message.ticket, message.stream, message.epoch, frees, uploads,
                               message.template_id, invocation, fetches, offers, regions, results)
      .Union();
}

flatbuffers::Offset<void> build(flatbuffers::FlatBufferBuilder& builder, const ResultRelease& message) {
  return fbs::CreateResultRelease(builder, numbers(builder, message.results)).Union();
}

flatbuffers::Offset<void> build(flatbuffers::FlatBufferBuilder& builder, const CompletionMessage& message) {
  std::vector<flatbuffers::Offset<fbs::Reported>> reported;
  for (const executor::ReportedTensor& tensor : message.reported) {
    const auto sizes = numbers(builder, tensor.sizes);
    const auto strides = numbers(builder, tensor.strides);
    reported.push_back(fbs::CreateReported(builder, tensor.defined, tensor.dtype, sizes, strides, tensor.storage_offset,
                                           tensor.storage_bytes));
  }
  std::vector<flatbuffers::Offset<fbs::Fetched>> fetched;
  for (const FetchedEntry& entry : message.fetched) {
    const auto text = text_of(builder, entry.status);
    const auto bytes = bytes_of(builder, entry.bytes);
    fetched.push_back(fbs::CreateFetched(builder, code_of(entry.status), text, bytes, entry.result, entry.region,
                                         entry.offset, entry.passing));
  }
  const auto text = text_of(builder, message.status);
  const auto reported_vector = numbers(builder, reported);
  const auto fetched_vector = numbers(builder, fetched);
  return fbs::CreateCompletion(builder, message.ticket, code_of(message.status), text, message.failed_record,
                               message.executed_records, message.upload_copied_bytes, message.fetch_copied_bytes,
                               reported_vector, fetched_vector)
      .Union();
}

flatbuffers::Offset<void> build(flatbuffers::FlatBufferBuilder& builder, const ResultRegion& message) {
  const fbs::Key key = to_wire(message.key);
  return fbs::CreateResultRegion(builder, message.region, message.size, &key).Union();
}

flatbuffers::Offset<void> build(flatbuffers::FlatBufferBuilder& builder, const Question& message) {
  return fbs::CreateQuestion(builder, message.question, message.size, message.sketch).Union();
}

flatbuffers::Offset<void> build(flatbuffers::FlatBufferBuilder& builder, const Answer& message) {
  const auto blobs = structs<fbs::Blob>(builder, message.blobs, [](const Answer::Blob& blob) {
    return fbs::Blob(blob.name, blob.size, blob.sketch, blob.hash.low, blob.hash.high);
  });
  return fbs::CreateAnswer(builder, message.question, blobs).Union();
}

flatbuffers::Offset<void> build(flatbuffers::FlatBufferBuilder& builder, const Progress& message) {
  return fbs::CreateProgress(builder, message.records).Union();
}

flatbuffers::Offset<void> build(flatbuffers::FlatBufferBuilder& builder, const Farewell& message) {
  const auto text = text_of(builder, message.status);
  return fbs::CreateFarewell(builder, code_of(message.status), text).Union();
}

// The verifier lets vectors begin at any multiple of four, where an element of eight bytes may not be read in place.
template <typename T>
std::vector<T> copied(const flatbuffers::Vector<T>* from) {
  if (from == nullptr || from->size() == 0) return {};
  std::vector<T> out(from->size());
  std::memcpy(out.data(), from->Data(), out.size() * sizeof(T));
  return out;
}

template <typename Plain, typename Wire, typename Convert>
std::vector<Plain> converted(const flatbuffers::Vector<const Wire*>* from, const Convert& convert) {
  std::vector<Plain> out;
  if (from == nullptr) return out;
  out.reserve(from->size());
  for (size_t i = 0; i < from->size(); ++i) {
    Wire item;
    std::memcpy(&item, from->Data() + i * sizeof(Wire), sizeof(Wire));
    out.push_back(convert(item));
  }
  return out;
}

Result<ClientMessage> read(const fbs::Submission& from) {
  if (from.fetches() != nullptr && from.fetches()->size() > kMaxFetches) {
    return Status(Errc::kProtocol, "a submission with more than " + std::to_string(kMaxFetches) + " fetches");
  }
  if (from.regions() != nullptr && from.regions()->size() > kMaxRegions) {
    return Status(Errc::kProtocol, "a submission with more than " + std::to_string(kMaxRegions) + " regions");
  }
  SubmissionMessage message;
  message.ticket = from.ticket();
  message.stream = from.stream();
  message.epoch = from.epoch();
  VarintReader frees(span_of(from.frees()));
  for (uint64_t previous = 0; frees.ok() && !frees.at_end() && message.frees.size() < kMaxFrees;) {
    previous = frees.difference_from(previous);
    message.frees.push_back(previous);
  }
  if (!frees.ok() || !frees.at_end()) return Status(Errc::kProtocol, "storages to be freed that cannot be read");
  message.uploads = converted<UploadEntry>(from.uploads(), [](const fbs::Upload& u) {
    return UploadEntry{{u.id(), u.version()}, u.offset(), u.size(), u.window(), u.region()};
  });
  message.template_id = from.template_id();
  message.invocation = bytes_in(from.invocation());
  message.fetches = converted<FetchEntry>(from.fetches(), [](const fbs::Fetch& f) {
    return FetchEntry{{f.id(), f.version()}, f.offset(), f.size(), f.window(), f.place()};
  });
  message.window_offers = converted<WindowOffer>(from.window_offers(), [](const fbs::WindowOffer& w) {
    return WindowOffer{w.window(), w.size(), from_wire(w.key())};
  });
  message.regions = converted<Key>(from.regions(), [](const fbs::Region& r) { return from_wire(r.key()); });
  message.result_releases = copied(from.result_releases());
  return ClientMessage(std::move(message));
}

// Verified vectors may share their bytes, so a count alone does not bound what they hold together: these do.
bool within_limits(const fbs::Completion& from) {
  const auto rank_ok = [](const flatbuffers::Vector<int64_t>* dims) {
    return dims == nullptr || dims->size() <= kMaxRank;
  };
  const auto small = [](const fbs::Fetched* entry) {
    return entry->bytes() == nullptr || entry->bytes()->size() <= kMaxInlineBytes;
  };
  const auto shaped = [&](const fbs::Reported* tensor) {
    return rank_ok(tensor->sizes()) && rank_ok(tensor->strides());
  };
  return (from.reported() == nullptr || std::all_of(from.reported()->begin(), from.reported()->end(), shaped)) &&
         (from.fetched() == nullptr || std::all_of(from.fetched()->begin(), from.fetched()->end(), small));
}

Result<NodeMessage> read(const fbs::Completion& from) {
  if (!within_limits(from)) return Status(Errc::kProtocol, "a completion beyond the limits of the protocol");
  CompletionMessage message;
  message.ticket = from.ticket();
  message.status = status_of(from.code(), from.text());
  message.failed_record = from.failed_record();
  message.executed_records = from.executed_records();
  message.upload_copied_bytes = from.upload_copied_bytes();
  message.fetch_copied_bytes = from.fetch_copied_bytes();
  if (from.reported() != nullptr) {
    for (const fbs::Reported* tensor : *from.reported()) {
      message.reported.push_back({.defined = tensor->defined(),
                                  .dtype = tensor->dtype(),
                                  .sizes = copied(tensor->sizes()),
                                  .strides = copied(tensor->strides()),
                                  .storage_offset = tensor->storage_offset(),
                                  .storage_bytes = tensor->storage_bytes()});
    }
  }
  if (from.fetched() != nullptr) {
    for (const fbs::Fetched* entry : *from.fetched()) {
      FetchedEntry& fetched = message.fetched.emplace_back();
      fetched.status = status_of(entry->code(), entry->text());
      fetched.bytes = bytes_in(entry->bytes());
      fetched.result = entry->result();
      fetched.region = entry->region();
      fetched.offset = entry->offset();
      fetched.passing = entry->passing();
    }
  }
  return NodeMessage(std::move(message));
}

Result<NodeMessage> read(const fbs::Answer& from) {
  if (from.blobs() != nullptr && from.blobs()->size() > kMaxBlobs) {
    return Status(Errc::kProtocol, "an answer with more than " + std::to_string(kMaxBlobs) + " blobs");
  }
  return NodeMessage(Answer{from.question(), converted<Answer::Blob>(from.blobs(), [](const fbs::Blob& blob) {
                              return Answer::Blob{blob.name(), blob.size(), blob.sketch(), {blob.low(), blob.high()}};
                            })});
}

// Verified: the whole message lies within `bytes`, every offset, vector and string too.
template <typename Root>
const Root* verified(std::span<const std::byte> bytes, const char* identifier) {
  if (bytes.size() > kMaxMessageBytes || reinterpret_cast<uintptr_t>(bytes.data()) % sizeof(uint64_t) != 0)
    return nullptr;
  const auto* data = reinterpret_cast<const uint8_t*>(bytes.data());
  flatbuffers::Verifier verifier(data, bytes.size(), kMaxDepth, kMaxTables);
  return verifier.VerifyBuffer<Root>(identifier) ? flatbuffers::GetRoot<Root>(data) : nullptr;
}

constexpr const char* kMalformed = "a malformed message: both sides must be of the same version of Genie";

}  // namespace

struct Encoder::Builder {
  flatbuffers::FlatBufferBuilder flat{1024};

  Result<std::span<const std::byte>> finished() const {
    if (flat.GetSize() > kMaxMessageBytes) {
      return Status(Errc::kOutOfRange, "a message of " + std::to_string(flat.GetSize()) + " bytes; the limit is " +
                                           std::to_string(kMaxMessageBytes));
    }
    return std::as_bytes(std::span(flat.GetBufferPointer(), flat.GetSize()));
  }
};

Encoder::Encoder() : builder_(std::make_unique<Builder>()) {}
Encoder::~Encoder() = default;
Encoder::Encoder(Encoder&&) noexcept = default;
Encoder& Encoder::operator=(Encoder&&) noexcept = default;

Result<std::span<const std::byte>> Encoder::encode(const ClientMessage& message) {
  if (const auto* const submission = std::get_if<SubmissionMessage>(&message);
      submission != nullptr && submission->frees.size() > kMaxFrees) {
    return Status(Errc::kOutOfRange, "more than " + std::to_string(kMaxFrees) + " storages freed in one message");
  }
  flatbuffers::FlatBufferBuilder& flat = builder_->flat;
  flat.Clear();
  constexpr std::array kBodies{fbs::ClientBody::Submission, fbs::ClientBody::ResultRelease, fbs::ClientBody::Question};
  const auto body = std::visit([&](const auto& plain) { return build(flat, plain); }, message);
  flat.Finish(fbs::CreateClientMessage(flat, kBodies[message.index()], body), kClientIdentifier);
  return builder_->finished();
}

Result<std::span<const std::byte>> Encoder::encode(const NodeMessage& message) {
  flatbuffers::FlatBufferBuilder& flat = builder_->flat;
  flat.Clear();
  constexpr std::array kBodies{fbs::NodeBody::Completion, fbs::NodeBody::Progress, fbs::NodeBody::Farewell,
                               fbs::NodeBody::ResultRegion, fbs::NodeBody::Answer};
  const auto body = std::visit([&](const auto& plain) { return build(flat, plain); }, message);
  flat.Finish(fbs::CreateNodeMessage(flat, kBodies[message.index()], body), kNodeIdentifier);
  return builder_->finished();
}

Result<ClientMessage> decode_client_message(std::span<const std::byte> bytes) {
  const auto* message = verified<fbs::ClientMessage>(bytes, kClientIdentifier);
  if (message != nullptr && message->body() != nullptr) {
    if (const auto* submission = message->body_as_Submission()) return read(*submission);
    if (const auto* release = message->body_as_ResultRelease()) {
      return ClientMessage(ResultRelease{copied(release->results())});
    }
    if (const auto* question = message->body_as_Question()) {
      return ClientMessage(Question{question->question(), question->size(), question->sketch()});
    }
  }
  return Status(Errc::kProtocol, kMalformed);
}

Result<NodeMessage> decode_node_message(std::span<const std::byte> bytes) {
  const auto* message = verified<fbs::NodeMessage>(bytes, kNodeIdentifier);
  if (message != nullptr && message->body() != nullptr) {
    if (const auto* completion = message->body_as_Completion()) return read(*completion);
    if (const auto* region = message->body_as_ResultRegion()) {
      return NodeMessage(
          ResultRegion{region->region(), region->size(), region->key() == nullptr ? Key{} : from_wire(*region->key())});
    }
    if (const auto* answer = message->body_as_Answer()) return read(*answer);
    if (const auto* progress = message->body_as_Progress()) return NodeMessage(Progress{progress->records()});
    if (const auto* farewell = message->body_as_Farewell()) {
      return NodeMessage(Farewell{status_of(farewell->code(), farewell->text())});
    }
  }
  return Status(Errc::kProtocol, kMalformed);
}

Errc errc_from_wire(uint32_t code) noexcept {
  const bool known =
      code == 0 || (code >= 16 && code <= 30) || (code >= 48 && code <= 52) || (code >= 64 && code <= 66);
  return known ? static_cast<Errc>(code) : Errc::kInternal;
}

}  // namespace genie::wire
