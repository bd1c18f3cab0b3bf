// Fragments: messages longer than the transport's largest, in pieces.
//
// Purpose: a transport keeps the order of an endpoint's messages, so pieces need no numbers: the tag that travels with
//   each (Transport's `immediate`) says whether more follow. The receiver's memory is bounded by kMaxMessageBytes.
// Thread-safety: one thread at a time. Ownership: a Reassembler owns the message that it builds.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "genie/status.h"
#include "src/protocol/session_messages.h"

namespace genie::wire {

enum class FragmentTag : uint32_t { kWhole = 0, kMore = 1, kLast = 2 };

// What to send next of `rest` when one piece carries at most `piece_bytes`; `first` says that nothing was sent before.
inline FragmentTag tag_of(size_t rest, size_t piece_bytes, bool first) noexcept {
  if (rest > piece_bytes) return FragmentTag::kMore;
  return first ? FragmentTag::kWhole : FragmentTag::kLast;
}

class Reassembler {
 public:
  // The complete message, valid until the next call; empty while more pieces have to come. kProtocol: a tag that makes no
  // sense here, or a message that grows too long.
  Result<std::span<const std::byte>> feed(uint32_t tag, std::span<const std::byte> piece) {
    if (complete_) {
      complete_ = false;
      parts_ = {};
    }
    switch (static_cast<FragmentTag>(tag)) {
      case FragmentTag::kWhole:
        if (!parts_.empty() || piece.empty()) break;
        return piece;
      case FragmentTag::kMore:
      case FragmentTag::kLast: {
        if (piece.empty() || piece.size() > kMaxMessageBytes - parts_.size()) break;
        parts_.insert(parts_.end(), piece.begin(), piece.end());
        if (static_cast<FragmentTag>(tag) == FragmentTag::kMore) return std::span<const std::byte>();
        complete_ = true;
        return std::span<const std::byte>(parts_);
      }
    }
    return Status(Errc::kProtocol, "a piece of a message out of place");
  }

 private:
  std::vector<std::byte> parts_;
  bool complete_ = false;
};

}  // namespace genie::wire
