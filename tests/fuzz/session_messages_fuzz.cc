// Session messages from a peer that means harm: what decodes can be sent again and comes back the same.
#include <cstdlib>
#include <cstring>
#include <memory>
#include <span>
#include <vector>

#include "src/protocol/session_messages.h"

namespace genie::wire {
namespace {

// Encodings are canonical: once through the codec, bytes do not change any more.
template <typename Message>
void check(Encoder& encoder, Result<Message> (*decode)(std::span<const std::byte>), std::span<const std::byte> bytes) {
  const Result<Message> first = decode(bytes);
  if (!first.ok()) return;
  const auto sent = encoder.encode(*first);
  if (!sent.ok()) return;  // beyond what may be sent
  const std::vector<std::byte> once(sent->begin(), sent->end());
  const Result<Message> second = decode(once);
  if (!second.ok()) std::abort();
  const auto again = encoder.encode(*second);
  if (!again.ok() || again->size() != once.size() || std::memcmp(again->data(), once.data(), once.size()) != 0)
    std::abort();
}

}  // namespace
}  // namespace genie::wire

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace genie::wire;
  static Encoder encoder;
  // A private, aligned copy of exactly these bytes, as decoders want them.
  const auto copy = std::make_unique<std::byte[]>(size == 0 ? 1 : size);
  if (size != 0) std::memcpy(copy.get(), data, size);
  const std::span<const std::byte> bytes(copy.get(), size);
  check(encoder, &decode_client_message, bytes);
  check(encoder, &decode_node_message, bytes);
  return 0;
}
