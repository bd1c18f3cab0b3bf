// A fetched result in a block of its own.
//
// Thread-safety: none; belongs to who fetched. Ownership: holds the block.
#pragma once

#include <utility>

#include "datapath/memory/buffer.h"
#include "src/session/link.h"

namespace genie::session {

class BlockFetched final : public Fetched {
 public:
  explicit BlockFetched(datapath::Buffer block) : block_(std::move(block)) {}
  std::span<std::byte> bytes() override { return block_.bytes(); }

 private:
  datapath::Buffer block_;
};

}  // namespace genie::session
