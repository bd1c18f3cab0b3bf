// What every test of a link does: open one, send storages of known bytes, submit and wait.
#pragma once

#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <utility>

#include "src/session/link.h"

namespace genie::session {

inline std::unique_ptr<Link> open_link(const std::string& uri, const LinkOptions& options = {}) {
  Result<std::unique_ptr<Link>> link = Link::open(uri, options);
  EXPECT_TRUE(link.ok()) << link.status().to_string();
  return link.ok() ? std::move(*link) : nullptr;
}

inline std::shared_ptr<Ticket> submit(Link& link, Submission submission) {
  Result<std::shared_ptr<Ticket>> ticket = link.submit(std::move(submission));
  EXPECT_TRUE(ticket.ok()) << ticket.status().to_string();
  const Status waited = link.wait(**ticket);
  EXPECT_TRUE(waited.ok()) << waited.to_string();
  return std::move(*ticket);
}

template <class Fill>
UploadRequest upload_of(Link& link, uint64_t id, size_t size, const Fill& fill) {
  Result<std::unique_ptr<Upload>> memory = link.begin_upload(size);
  EXPECT_TRUE(memory.ok()) << memory.status().to_string();
  EXPECT_EQ((*memory)->bytes().size(), size);
  fill((*memory)->bytes());
  return {.storage = {.id = id, .version = 0}, .memory = std::move(*memory)};
}

// Every byte is `value`.
inline UploadRequest filled(Link& link, uint64_t id, size_t size, int value) {
  return upload_of(link, id, size, [&](std::span<std::byte> bytes) { std::memset(bytes.data(), value, bytes.size()); });
}

// Bytes that tell storages and offsets apart.
inline std::byte pattern(uint64_t seed, size_t i) { return std::byte((seed * 131 + i * 7 + (i >> 8)) & 0xFF); }

inline UploadRequest filled(Link& link, uint64_t id, size_t size) {
  return upload_of(link, id, size, [&](std::span<std::byte> bytes) {
    for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = pattern(id, i);
  });
}

inline bool holds(std::span<const std::byte> bytes, uint64_t id, size_t offset = 0) {
  for (size_t i = 0; i < bytes.size(); ++i) {
    if (bytes[i] != pattern(id, offset + i)) return false;
  }
  return true;
}

// Of each path that storages take across a network.
inline constexpr std::array<size_t, 10> kNetworkSizes = {
    0, 1, 255, 257, 4096, 32U << 10, (32U << 10) + 1, 256U << 10, 1'000'003, 20U << 20};

// Storages of these sizes there and back, as `first_id` and following; answers their bytes.
inline size_t carry_every_size(Link& link, uint64_t first_id, std::span<const size_t> sizes = kNetworkSizes) {
  size_t total = 0;
  uint64_t id = first_id;
  for (const size_t size : sizes) {
    Submission submission;
    submission.uploads.push_back(filled(link, id, size));
    submission.fetches.push_back({.storage = {id, 0}, .offset = 0, .size = size});
    submission.fetches.push_back({.storage = {id, 0}, .offset = size / 2, .size = size - size / 2});
    const auto ticket = submit(link, std::move(submission));
    const Outcome& outcome = ticket->outcome();
    EXPECT_TRUE(outcome.status.ok()) << size << ": " << outcome.status.to_string();
    if (!outcome.status.ok()) break;
    EXPECT_EQ(outcome.fetched.size(), 2U);
    EXPECT_EQ(outcome.fetched[0]->bytes().size(), size);
    EXPECT_TRUE(holds(outcome.fetched[0]->bytes(), id)) << size;
    EXPECT_TRUE(holds(outcome.fetched[1]->bytes(), id, size / 2)) << size;
    total += size;
    ++id;
  }
  return total;
}

// Over a network no upload is copied by the node.
inline void expect_every_size_across(Link& link) {
  EXPECT_EQ(link.node().transport, "ucx");
  const size_t carried = carry_every_size(link, 1);
  const LinkCounters counters = link.counters();
  EXPECT_EQ(counters.upload_bytes, carried);
  EXPECT_EQ(counters.upload_copied_bytes, 0U);
  EXPECT_LE(counters.fetch_copied_bytes, counters.fetch_bytes);
}

}  // namespace genie::session
