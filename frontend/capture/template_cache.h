// TemplateCache: the templates that the node knows, and which of them it forgets when it may know no more.
//
// Purpose: the client decides and tells the node, so that both always know the same ones. A program with more distinct
//   fragments than the node holds goes on: what comes back is registered again.
// Thread-safety: one thread at a time (the session's flush lock). Ownership: holds its entries; a pointer into one is valid until
//   the next call of make_room.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "frontend/capture/fragment_builder.h"

namespace genie::frontend {

struct KnownTemplate {
  uint64_t id = 0;
  std::vector<int64_t> defaults;
  uint64_t bytes = 0;  // serialized
  // As it was registered; kept by the debug mode alone.
  std::vector<std::byte> serialized = {};
  uint64_t last_used = 0;
};

class TemplateCache {
 public:
  // How many the node holds, and how many bytes of them.
  TemplateCache(uint64_t count_max, uint64_t bytes_max) : count_max_(count_max), bytes_max_(bytes_max) {}

  // Null when the node does not know it. What is found counts as used now.
  const KnownTemplate* find(const TemplateKey& key);
  // Forgets the least recently used until one more of `bytes` fits. The ids go with the next registration, and again with the
  // one after it until one succeeds: the node may not have heard of them.
  const std::vector<uint64_t>& make_room(uint64_t bytes);
  const KnownTemplate* insert(const TemplateKey& key, KnownTemplate known);

  size_t size() const { return known_.size(); }
  uint64_t forgotten() const { return forgotten_; }

 private:
  void forget_oldest();

  const uint64_t count_max_;
  const uint64_t bytes_max_;
  std::unordered_map<TemplateKey, KnownTemplate, TemplateKeyHash> known_;
  std::vector<uint64_t> to_forget_;
  uint64_t bytes_ = 0;
  uint64_t clock_ = 0;
  uint64_t forgotten_ = 0;
};

}  // namespace genie::frontend
