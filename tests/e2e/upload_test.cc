// Uploads to a genie-node: what lies in windows, what in regions that are handed over, and what is copied.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>

#include <atomic>
#include <cstring>
#include <fstream>
#include <latch>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "datapath/memory/populate.h"
#include "src/session/link.h"
#include "tests/e2e/node_process.h"
#include "tests/e2e/template_builder.h"

namespace genie::session {
namespace {

using test::NodeProcess;

constexpr size_t kMiB = size_t{1} << 20;
constexpr size_t kWindowBytes = 256 << 10;  // that uploads of one submission may take in windows

std::byte pattern(uint64_t seed, size_t i) { return std::byte((seed * 131 + i * 7 + (i >> 8)) & 0xFF); }

class UploadTest : public ::testing::Test {
 protected:
  void SetUp() override { start({}); }
  void start(std::vector<std::string> flags) {
    link_.reset();
    node_.emplace(std::move(flags));
    ASSERT_TRUE(node_->wait_ready()) << node_->errors();
    Result<std::unique_ptr<Link>> link = Link::open(node_->uri(), {});
    ASSERT_TRUE(link.ok()) << link.status().to_string();
    link_ = std::move(*link);
  }

  UploadRequest filled(uint64_t id, size_t size) {
    Result<std::unique_ptr<Upload>> memory = link_->begin_upload(size);
    EXPECT_TRUE(memory.ok()) << memory.status().to_string();
    const std::span<std::byte> bytes = (*memory)->bytes();
    EXPECT_EQ(bytes.size(), size);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(bytes.data()) % 64, 0U);
    for (size_t i = 0; i < size; ++i) bytes[i] = pattern(id, i);
    return {.storage = {.id = id, .version = 0}, .memory = std::move(*memory)};
  }
  std::shared_ptr<Ticket> submit(Submission submission) {
    Result<std::shared_ptr<Ticket>> ticket = link_->submit(std::move(submission));
    EXPECT_TRUE(ticket.ok()) << ticket.status().to_string();
    const Status waited = link_->wait(**ticket);
    EXPECT_TRUE(waited.ok()) << waited.to_string();
    EXPECT_TRUE((*ticket)->outcome().status.ok()) << (*ticket)->outcome().status.to_string();
    return std::move(*ticket);
  }
  bool holds(uint64_t id, size_t size, uint32_t version = 0) {
    Submission fetch;
    fetch.fetches.push_back({.storage = {id, version}, .offset = 0, .size = size});
    const auto ticket = submit(std::move(fetch));
    const std::span<const std::byte> bytes = ticket->outcome().fetched.at(0)->bytes();
    for (size_t i = 0; i < size; ++i) {
      if (bytes[i] != pattern(id, i)) return false;
    }
    return bytes.size() == size;
  }
  uint64_t copied() const { return link_->counters().upload_copied_bytes; }
  uint64_t regions() const { return link_->counters().upload_regions; }

  std::optional<NodeProcess> node_;
  std::unique_ptr<Link> link_;
};

TEST_F(UploadTest, AModelsWeightsShareOneRegion) {
  Submission submission;
  size_t total = 0;
  for (uint64_t id = 1; id <= 300; ++id) {
    const size_t size = 1000 + 397 * id;
    total += size;
    submission.uploads.push_back(filled(id, size));
  }
  submission.uploads.push_back(filled(301, 7 * kMiB + 5));
  (void)submit(std::move(submission));
  EXPECT_EQ(regions(), 1U);
  EXPECT_GT(total, 10 * kWindowBytes);
  EXPECT_LE(copied(), kWindowBytes) << "only the first small ones went through a window";
  for (const uint64_t id : {1, 2, 77, 299, 300}) EXPECT_TRUE(holds(id, 1000 + 397 * id)) << id;
  EXPECT_TRUE(holds(301, 7 * kMiB + 5));
}

TEST_F(UploadTest, EveryStepsInputIsHandedOver) {
  for (uint64_t id = 1; id <= 50; ++id) {
    Submission step;
    step.uploads.push_back(filled(id, 600'000));
    step.frees = {id - 1};
    (void)submit(std::move(step));
    ASSERT_TRUE(holds(id, 600'000)) << id;
  }
  EXPECT_EQ(copied(), 0U);
  EXPECT_EQ(regions(), 50U);
  EXPECT_TRUE(node_->eventually([](const control::NodeReport& report) {
    return report.storages == 1 && report.storage_bytes <= 2 * kMiB;
  })) << "freed storages take their regions along";
}

// Every way to make memory present gives the same bytes.
TEST_F(UploadTest, OrdinaryPagesDoToo) {
  const datapath::PageMethod before = datapath::shared_page_method();
  for (const auto method : {datapath::PageMethod::kPlain, datapath::PageMethod::kAdvice}) {
    datapath::set_shared_page_method(method);
    start({});
    Submission submission;
    submission.uploads.push_back(filled(1, 9 * kMiB + 100));
    submission.uploads.push_back(filled(2, 300'000));
    (void)submit(std::move(submission));
    EXPECT_TRUE(holds(1, 9 * kMiB + 100));
    EXPECT_TRUE(holds(2, 300'000));
    EXPECT_EQ(copied(), 0U);
  }
  datapath::set_shared_page_method(before);
}

// A region cannot depart while somebody writes into it: what leaves before is copied, what stays is not.
TEST_F(UploadTest, WhatLeavesARegionAloneIsCopied) {
  Submission first;
  first.uploads.push_back(filled(1, kMiB));
  UploadRequest second = filled(2, kMiB);
  Submission none;
  (void)submit(std::move(first));
  EXPECT_EQ(copied(), kMiB);
  EXPECT_TRUE(holds(1, kMiB));
  UploadRequest third = filled(3, kMiB);
  Submission rest;
  rest.uploads.push_back(std::move(third));
  rest.uploads.push_back(std::move(second));
  (void)submit(std::move(rest));
  EXPECT_EQ(copied(), kMiB) << "the region went with its last uploads";
  EXPECT_TRUE(holds(2, kMiB));
  EXPECT_TRUE(holds(3, kMiB));
}

TEST_F(UploadTest, TooManyRegionsAtOnceAreAClearError) {
  constexpr size_t kThreads = 64;  // each with a region of its own
  std::vector<std::unique_ptr<Upload>> memory(kThreads);
  std::vector<std::thread> threads;
  std::latch all_there(kThreads);
  for (size_t i = 0; i < kThreads; ++i) {
    threads.emplace_back([&, i] {
      auto made = link_->begin_upload(300'000);
      if (made.ok()) memory[i] = std::move(*made);
      all_there.arrive_and_wait();  // a thread that has ended gives its name to the next
    });
  }
  for (std::thread& thread : threads) thread.join();
  Submission submission;
  for (size_t i = 0; i < kThreads; ++i) {
    ASSERT_NE(memory[i], nullptr);
    submission.uploads.push_back({.storage = {i + 1, 0}, .memory = std::move(memory[i])});
  }
  EXPECT_EQ(link_->submit(std::move(submission)).code(), Errc::kOutOfRange);
  Submission fine;
  fine.uploads.push_back(filled(100, kMiB));
  (void)submit(std::move(fine));
  EXPECT_TRUE(holds(100, kMiB));
}

TEST_F(UploadTest, DroppedUploadsGiveTheirMemoryBack) {
  const auto mapped_regions = [] {
    std::ifstream maps("/proc/self/maps");
    int found = 0;
    for (std::string line; std::getline(maps, line);) found += line.find("memfd:genie") != std::string::npos ? 1 : 0;
    return found;
  };
  (void)filled(1, 1000);
  (void)submit({});
  const int before = mapped_regions();
  {
    std::vector<UploadRequest> many;
    for (uint64_t id = 1; id <= 5; ++id) many.push_back(filled(id, 40 * kMiB));
    EXPECT_GE(mapped_regions(), before + 5);
  }
  (void)submit({});
  EXPECT_LE(mapped_regions(), before + 1) << "at most one waits for the next upload";
  Submission submission;
  submission.uploads.push_back(filled(9, kMiB));
  (void)submit(std::move(submission));
  EXPECT_TRUE(holds(9, kMiB));
  EXPECT_EQ(copied(), 0U);
}

// The bytes that were handed over are nobody's to write: a record that does gets a copy, of its own storage alone.
TEST_F(UploadTest, WritingInPlaceCopiesOnce) {
  constexpr int64_t kElements = 100'000;
  constexpr size_t kBytes = kElements * sizeof(float);
  Submission submission;
  for (uint64_t id = 1; id <= 3; ++id) {
    UploadRequest upload = filled(id, kBytes);
    std::vector<float> values(kElements, static_cast<float>(id));
    std::memcpy(upload.memory->bytes().data(), values.data(), kBytes);
    submission.uploads.push_back(std::move(upload));
  }
  (void)submit(std::move(submission));
  ASSERT_EQ(copied(), 0U);
  ASSERT_EQ(regions(), 1U);
  const auto add = link_->register_template(test::add_template(1, kElements));
  ASSERT_TRUE(add.ok()) << add.status().to_string();
  for (uint32_t version = 0; version < 3; ++version) {
    Submission step;
    step.template_id = *add;
    step.slots = {{.id = 1, .version_in = version, .version_out = version + 1, .size_bytes = 0},
                  {.id = 2, .version_in = 0, .version_out = 0, .size_bytes = 0}};
    (void)submit(std::move(step));
    EXPECT_EQ(copied(), kBytes) << "the first write copies, later ones find a private storage";
  }
  Submission fetch;
  for (uint64_t id = 1; id <= 3; ++id) {
    fetch.fetches.push_back({.storage = {id, id == 1 ? 3U : 0U}, .offset = 0, .size = kBytes});
  }
  const auto ticket = submit(std::move(fetch));
  for (uint64_t id = 1; id <= 3; ++id) {
    const auto* const values = reinterpret_cast<const float*>(ticket->outcome().fetched.at(id - 1)->bytes().data());
    const float wanted = id == 1 ? 1 + 3 * 2 : static_cast<float>(id);
    EXPECT_EQ(values[0], wanted) << id;
    EXPECT_EQ(values[kElements - 1], wanted) << id;
  }
}

// A region lives until its last storage is gone, and counts until then.
TEST_F(UploadTest, TheQuotaCountsRegionsThatLive) {
  start({"--memory-quota", "16MiB"});
  Submission both;
  both.uploads.push_back(filled(1, 9 * kMiB));
  both.uploads.push_back(filled(2, kMiB));
  (void)submit(std::move(both));
  Submission free_one;
  free_one.frees = {1};
  (void)submit(std::move(free_one));
  EXPECT_TRUE(node_->eventually([](const control::NodeReport& report) { return report.storages == 1; }));
  EXPECT_GE(node_->report().storage_bytes, 10 * kMiB);
  Submission more;
  more.uploads.push_back(filled(3, 8 * kMiB));
  auto refused = link_->submit(std::move(more));
  ASSERT_TRUE(refused.ok());
  ASSERT_TRUE(link_->wait(**refused).ok());
  EXPECT_EQ((*refused)->outcome().status.code(), Errc::kQuotaExceeded) << (*refused)->outcome().status.to_string();
  Submission again;
  again.frees = {2, 3};
  again.uploads.push_back(filled(4, 8 * kMiB));
  (void)submit(std::move(again));
  EXPECT_TRUE(holds(4, 8 * kMiB));
}

TEST_F(UploadTest, ThreadsFillRegionsOfTheirOwn) {
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (uint32_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (uint64_t i = 1; i <= 20; ++i) {
        const uint64_t id = (static_cast<uint64_t>(t) << 32) + i;
        const size_t size = 200'000 + 30'000 * i;
        Submission submission;
        submission.stream = t;
        submission.uploads.push_back(filled(id, size));
        submission.uploads.push_back(filled(id + 1000, 400'000));
        submission.fetches.push_back({.storage = {id, 0}, .offset = 0, .size = size});
        submission.frees = {id - 1, id + 999};
        const auto ticket = submit(std::move(submission));
        const auto bytes = ticket->outcome().fetched.at(0)->bytes();
        for (size_t at = 0; at < size; at += 97) wrong += bytes[at] != pattern(id, at) ? 1 : 0;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_LE(copied(), 80 * kWindowBytes);
}

// Uploads that one thread writes and another submits: the owner may be in the middle of the next one.
TEST_F(UploadTest, AnotherThreadMaySubmit) {
  for (uint64_t round = 0; round < 10; ++round) {
    std::vector<UploadRequest> written;
    std::thread([&] {
      for (uint64_t i = 1; i <= 3; ++i) written.push_back(filled(round * 10 + i, 300'000));
    }).join();
    Submission submission;
    for (UploadRequest& upload : written) submission.uploads.push_back(std::move(upload));
    (void)submit(std::move(submission));
    for (uint64_t i = 1; i <= 3; ++i) EXPECT_TRUE(holds(round * 10 + i, 300'000));
  }
  EXPECT_EQ(copied(), 0U);
}

// A child of the program does not keep memory writable that was handed over after the fork.
TEST_F(UploadTest, AForkedChildDoesNotHoldOnToUploads) {
  Submission submission;
  submission.uploads.push_back(filled(1, kMiB));
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    ::pause();
    ::_exit(0);
  }
  (void)submit(std::move(submission));
  EXPECT_EQ(copied(), 0U);
  EXPECT_TRUE(holds(1, kMiB));
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
}

}  // namespace
}  // namespace genie::session
