// Session messages from a peer that means harm: what decodes can be sent again and comes back the same.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <span>
#include <vector>

#include "src/protocol/invocation_coder.h"
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

bool same(const InvocationNumbers& a, const InvocationNumbers& b) {
  const auto equal = [](const executor::SlotBinding& x, const executor::SlotBinding& y) {
    return x.id == y.id && x.version_in == y.version_in && x.version_out == y.version_out &&
           x.size_bytes == y.size_bytes;
  };
  return std::ranges::equal(a.slots, b.slots, equal) && a.param_index == b.param_index &&
         a.param_value == b.param_value;
}

// Pieces of the input, each for one of 256 templates: what is taken is what an encoder of ours would have sent.
void check_invocations(std::span<const std::byte> bytes) {
  constexpr size_t kRemembered = size_t{1} << 12;  // few, so that much is forgotten
  InvocationCoder receiver(kRemembered), sender(kRemembered), mirror(kRemembered);
  while (bytes.size() >= 2) {
    const auto id = static_cast<uint64_t>(bytes[0]);
    const size_t size = std::min(static_cast<size_t>(bytes[1]), bytes.size() - 2);
    const Result<InvocationNumbers> got = receiver.decode(id, bytes.subspan(2, size));
    bytes = bytes.subspan(2 + size);
    if (!got.ok()) continue;
    std::vector<std::byte> sent;
    sender.encode(id, *got, sent);
    const Result<InvocationNumbers> again = mirror.decode(id, sent);
    if (!again.ok() || !same(*got, *again)) std::abort();
    if (receiver.bytes_held() > 3 * kRemembered * sizeof(uint64_t)) std::abort();
  }
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
  check_invocations(bytes);
  return 0;
}
