// A session with a real genie-node: memory both ways, counters, ends.
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <numeric>
#include <thread>
#include <vector>

#include "tests/e2e/node_process.h"
#include "tests/e2e/node_steps.h"
#include "tests/link_steps.h"

namespace genie::session {
namespace {

using test::NodeProcess;

std::unique_ptr<Link> open(const NodeProcess& node, const LinkOptions& options = {}) {
  return open_link(node.uri(), options);
}

TEST(RemoteLink, CarriesBytesOfEverySizeBothWays) {
  NodeProcess node;
  ASSERT_TRUE(node.wait_ready()) << node.errors();
  const auto link = open(node);
  ASSERT_NE(link, nullptr);
  EXPECT_EQ(link->node().transport, "shm");
  EXPECT_EQ(link->node().devices.at(0).kind, "cpu");
  const std::vector<size_t> sizes{0,          1,         255,      256, 257, 4096, 100'000, (256U << 10) - 1,
                                  256U << 10, 1'000'003, 20U << 20};
  const size_t total = carry_every_size(*link, 1, sizes);
  const LinkCounters counters = link->counters();
  const size_t small = std::accumulate(sizes.begin(), sizes.begin() + 8, size_t{0});
  EXPECT_EQ(counters.uploads, sizes.size());
  EXPECT_EQ(counters.upload_bytes, total);
  // Only what is smaller than a region of its own is copied again, out of the window.
  EXPECT_EQ(counters.upload_copied_bytes, small);
  // One pass, from the storage to where the caller reads it.
  EXPECT_EQ(counters.fetch_copied_bytes, counters.fetch_bytes);
  EXPECT_EQ(counters.fetches, 2 * sizes.size());
}

TEST(RemoteLink, ResultsOutliveTheLinkAndTheNode) { test::expect_results_outlive(std::make_unique<NodeProcess>()); }

TEST(RemoteLink, WhatTheProgramWroteDoesNotHideTheNextResult) {
  NodeProcess node;
  ASSERT_TRUE(node.wait_ready()) << node.errors();
  const auto link = open(node);
  for (const size_t size : {size_t{257}, size_t{5000}, size_t{3} << 20}) {
    const std::byte* first = nullptr;
    for (uint64_t id = 1; id <= 4; ++id) {
      Submission submission;
      submission.uploads.push_back(filled(*link, id, size));
      submission.fetches.push_back({.storage = {id, 0}, .offset = 0, .size = size});
      auto ticket = submit(*link, std::move(submission));
      ASSERT_TRUE(ticket->outcome().status.ok()) << ticket->outcome().status.to_string();
      Fetched& result = *ticket->outcome().fetched[0];
      if (first == nullptr) first = result.bytes().data();
      EXPECT_EQ(result.bytes().data(), first) << "the same place again";
      EXPECT_TRUE(holds(result.bytes(), id));
      ASSERT_TRUE(result.claim());
      std::memset(result.bytes().data(), 0xEE, size);
      Submission release;
      release.frees = {id};
      ticket.reset();
      (void)submit(*link, std::move(release));
    }
  }
}

TEST(RemoteLink, OneStorageIsFetchedIntoResultsOfTheirOwn) {
  NodeProcess node;
  ASSERT_TRUE(node.wait_ready()) << node.errors();
  const auto link = open(node);
  Submission submission;
  submission.uploads.push_back(filled(*link, 1, 5000));
  for (int i = 0; i < 3; ++i) submission.fetches.push_back({.storage = {1, 0}, .offset = 0, .size = 5000});
  const auto ticket = submit(*link, std::move(submission));
  auto& results = ticket->outcome().fetched;
  ASSERT_TRUE(results[1]->claim());
  std::memset(results[1]->bytes().data(), 0xEE, 5000);
  EXPECT_TRUE(holds(results[0]->bytes(), 1));
  EXPECT_TRUE(holds(results[2]->bytes(), 1));
}

// Small enough for the node: what the program keeps beyond is copied out, again and again.
TEST(RemoteLink, ResultsBeyondTheLimitAreCopiedOut) {
  NodeProcess node({"--memory-quota", "4MiB"});
  ASSERT_TRUE(node.wait_ready()) << node.errors();
  const auto link = open(node);
  constexpr size_t kBytes = size_t{1} << 20;
  Submission upload;
  upload.uploads.push_back(filled(*link, 1, kBytes));
  (void)submit(*link, std::move(upload));
  const auto fetch = [&] {
    Submission submission;
    submission.fetches.push_back({.storage = {1, 0}, .offset = 0, .size = kBytes});
    auto ticket = submit(*link, std::move(submission));
    EXPECT_TRUE(ticket->outcome().status.ok()) << ticket->outcome().status.to_string();
    return std::move(ticket->outcome().fetched[0]);
  };
  std::vector<std::unique_ptr<Fetched>> kept;
  for (int i = 0; i < 20; ++i) kept.push_back(fetch());
  for (const auto& result : kept) EXPECT_TRUE(holds(result->bytes(), 1));
  const uint64_t copied = link->counters().fetch_copied_bytes;
  EXPECT_GE(copied, (20 + 16) * kBytes) << "at most four stay where the node put them";
  EXPECT_LT(copied, 40 * kBytes) << "but some do";
  EXPECT_LE(node.report().region_bytes, 6U << 20);
  kept.clear();
  kept.push_back(fetch());
  kept.push_back(fetch());
  EXPECT_EQ(link->counters().fetch_copied_bytes, copied + 2 * kBytes) << "there is room again";
}

TEST(RemoteLink, LargeResultsGiveTheirMemoryBackWithoutAnotherSubmission) {
  NodeProcess node;
  ASSERT_TRUE(node.wait_ready()) << node.errors();
  const auto link = open(node);
  Submission submission;
  submission.uploads.push_back(filled(*link, 1, 8U << 20));
  submission.fetches.push_back({.storage = {1, 0}, .offset = 0, .size = 8U << 20});
  auto ticket = submit(*link, std::move(submission));
  EXPECT_GE(node.report().region_bytes, 8U << 20);
  ticket.reset();
  EXPECT_TRUE(node.eventually([](const control::NodeReport& report) { return report.region_bytes < (1U << 20); }));
  Submission again;
  again.fetches.push_back({.storage = {1, 0}, .offset = 0, .size = 8U << 20});
  ticket = submit(*link, std::move(again));
  EXPECT_TRUE(holds(ticket->outcome().fetched[0]->bytes(), 1));
}

TEST(RemoteLink, ResultsAreKeptApart) {
  NodeProcess node;
  ASSERT_TRUE(node.wait_ready()) << node.errors();
  const auto link = open(node);
  std::vector<std::unique_ptr<Fetched>> kept;
  for (uint64_t id = 1; id <= 200; ++id) {
    Submission submission;
    submission.uploads.push_back(filled(*link, id, 3000));
    submission.fetches.push_back({.storage = {id, 0}, .offset = 0, .size = 3000});
    submission.frees = {id - 1};
    auto ticket = submit(*link, std::move(submission));
    ASSERT_TRUE(ticket->outcome().status.ok());
    if (id % 3 != 0) {
      kept.push_back(std::move(ticket->outcome().fetched[0]));
    } else {
      kept.push_back(nullptr);
    }
  }
  for (uint64_t id = 1; id <= kept.size(); ++id) {
    if (kept[id - 1] != nullptr) {
      EXPECT_TRUE(holds(kept[id - 1]->bytes(), id)) << id;
    }
  }
}

TEST(RemoteLink, WritingAfterTheSubmissionDoesNotChangeTheStorage) {
  NodeProcess node;
  ASSERT_TRUE(node.wait_ready()) << node.errors();
  const auto link = open(node);
  Submission submission;
  submission.uploads.push_back(filled(*link, 1, 5000));
  std::byte* const window = submission.uploads[0].memory->bytes().data();
  (void)submit(*link, std::move(submission));
  std::memset(window, 0xEE, 5000);  // the window is shared with the node for the whole session
  Submission fetch;
  fetch.fetches.push_back({.storage = {1, 0}, .offset = 0, .size = 5000});
  const auto ticket = submit(*link, std::move(fetch));
  EXPECT_TRUE(holds(ticket->outcome().fetched[0]->bytes(), 1));
}

TEST(RemoteLink, LargeMessagesTravelInPieces) {
  NodeProcess node;
  ASSERT_TRUE(node.wait_ready()) << node.errors();
  const auto link = open(node);
  Submission submission;
  constexpr uint64_t kFarApart = 0x9E37'79B9'7F4A'7C15;  // so that each takes its bytes in the message
  for (uint64_t i = 1; i <= 50'000; ++i) submission.frees.push_back((i * kFarApart) >> 2 | uint64_t{1} << 40);
  for (uint64_t id = 1; id <= 2'000; ++id) submission.fetches.push_back({.storage = {id, 0}, .offset = 0, .size = 8});
  const auto ticket = submit(*link, std::move(submission));
  EXPECT_EQ(ticket->outcome().fetch_status.size(), 2000U);
  EXPECT_EQ(ticket->outcome().status.code(), Errc::kNotFound);
  EXPECT_GT(link->counters().message_bytes, 400'000U);
  Submission too_large;
  too_large.frees.resize(3'000'000);
  EXPECT_EQ(link->submit(std::move(too_large)).code(), Errc::kOutOfRange);
  Submission fine;
  EXPECT_TRUE(submit(*link, std::move(fine))->outcome().status.ok());
}

TEST(RemoteLink, ManyThreadsSubmitAndWait) {
  NodeProcess node;
  ASSERT_TRUE(node.wait_ready()) << node.errors();
  const auto link = open(node);
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (uint32_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (uint64_t i = 1; i <= 200; ++i) {
        const uint64_t id = (static_cast<uint64_t>(t) << 32) + i;
        Submission submission;
        submission.stream = t;
        submission.uploads.push_back(filled(*link, id, 64 + 40 * i));
        submission.fetches.push_back({.storage = {id, 0}, .offset = 0, .size = 64 + 40 * i});
        submission.frees = {id - 1};
        const auto ticket = submit(*link, std::move(submission));
        if (!ticket->outcome().status.ok() || !holds(ticket->outcome().fetched[0]->bytes(), id)) ++wrong;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

TEST(RemoteLink, ManySubmissionsWaitForRoom) {
  NodeProcess node;
  ASSERT_TRUE(node.wait_ready()) << node.errors();
  const auto link = open(node);
  std::vector<std::shared_ptr<Ticket>> tickets;
  for (uint64_t i = 1; i <= 3000; ++i) {
    Submission submission;
    submission.frees = {i};
    auto ticket = link->submit(std::move(submission));
    ASSERT_TRUE(ticket.ok()) << ticket.status().to_string();
    tickets.push_back(std::move(*ticket));
  }
  for (const auto& ticket : tickets) {
    ASSERT_TRUE(link->wait(*ticket).ok());
    EXPECT_TRUE(ticket->outcome().status.ok());
  }
}

TEST(RemoteLink, BusyPollingWorksToo) {
  NodeProcess node({"--polling", "busy"});
  ASSERT_TRUE(node.wait_ready()) << node.errors();
  const auto link = open(node, {.busy_polling = true});
  Submission submission;
  submission.uploads.push_back(filled(*link, 1, 64));
  submission.fetches.push_back({.storage = {1, 0}, .offset = 0, .size = 64});
  EXPECT_TRUE(holds(submit(*link, std::move(submission))->outcome().fetched[0]->bytes(), 1));
}

TEST(RemoteLink, ClosingLeavesNothingBehind) {
  NodeProcess node;
  ASSERT_TRUE(node.wait_ready()) << node.errors();
  auto link = open(node);
  Submission submission;
  submission.uploads.push_back(filled(*link, 1, 1U << 20));
  submission.uploads.push_back(filled(*link, 2, 1000));
  submission.fetches.push_back({.storage = {1, 0}, .offset = 0, .size = 1000});
  (void)submit(*link, std::move(submission));
  EXPECT_EQ(node.report().storages, 2U);
  EXPECT_EQ(node.report().sessions, 1U);
  link->close();
  EXPECT_TRUE(node.becomes_empty());
  EXPECT_EQ(link->submit({}).code(), Errc::kCancelled);
  EXPECT_EQ(link->begin_upload(10).code(), Errc::kCancelled);
  link->close();
}

TEST(RemoteLink, LendingIsForEmbeddedNodes) {
  NodeProcess node;
  ASSERT_TRUE(node.wait_ready()) << node.errors();
  const auto link = open(node);
  std::vector<std::byte> bytes(10);
  EXPECT_EQ(link->lend_upload(bytes, nullptr), nullptr);
}

}  // namespace
}  // namespace genie::session
