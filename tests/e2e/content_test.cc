// Weights that several sessions upload: sent once, shared until somebody writes, whatever the transport.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "datapath/ucx/ucx_fabric.h"
#include "src/protocol/content.h"
#include "tests/e2e/node_process.h"
#include "tests/e2e/run_command.h"
#include "tests/e2e/template_builder.h"
#include "tests/link_steps.h"

namespace genie::session {
namespace {

using test::NodeProcess;

constexpr size_t kMiB = size_t{1} << 20;
constexpr int64_t kElements = 600'000;
constexpr size_t kBytes = kElements * sizeof(float);

std::vector<std::byte> weights(float value, size_t elements = kElements) {
  std::vector<float> values(elements);
  for (size_t i = 0; i < elements; ++i) values[i] = value + static_cast<float>(i % 1000);
  std::vector<std::byte> bytes(elements * sizeof(float));
  std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

class ContentTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (GetParam() == "ucx" && !datapath::ucx_compiled_in()) GTEST_SKIP() << "this build has no UCX";
    start();
  }
  void start(std::vector<std::string> flags = {}) {
    flags.insert(flags.begin(), {"--transport", GetParam()});
    node_.emplace(std::move(flags));
    ASSERT_TRUE(node_->wait_ready()) << node_->errors();
  }
  // A session of its own.
  std::unique_ptr<Link> open() const { return open_link(node_->uri()); }

  static UploadRequest upload(Link& link, uint64_t id, std::span<const std::byte> bytes) {
    Result<std::unique_ptr<Upload>> memory =
        link.snapshot(bytes, [&](std::span<std::byte> to) { std::memcpy(to.data(), bytes.data(), bytes.size()); });
    EXPECT_TRUE(memory.ok()) << memory.status().to_string();
    return {.storage = {id, 0}, .memory = std::move(*memory)};
  }
  static void send(Link& link, uint64_t id, std::span<const std::byte> bytes) {
    Submission submission;
    submission.uploads.push_back(upload(link, id, bytes));
    const auto ticket = submit(link, std::move(submission));
    EXPECT_TRUE(ticket->outcome().status.ok()) << ticket->outcome().status.to_string();
  }
  static void free(Link& link, uint64_t id) {
    Submission submission;
    submission.frees = {id};
    (void)submit(link, std::move(submission));
  }
  static std::vector<std::byte> fetch(Link& link, uint64_t id, size_t size, uint32_t version = 0) {
    Submission submission;
    submission.fetches.push_back({.storage = {id, version}, .offset = 0, .size = size});
    const auto ticket = submit(link, std::move(submission));
    EXPECT_TRUE(ticket->outcome().status.ok()) << ticket->outcome().status.to_string();
    if (!ticket->outcome().status.ok()) return {};
    const std::span<const std::byte> bytes = ticket->outcome().fetched.at(0)->bytes();
    return {bytes.begin(), bytes.end()};
  }
  // An optimizer's step: storage `id` += storage `other`, in place.
  static void add_in_place(Link& link, uint64_t id, uint32_t version, uint64_t other) {
    const auto add = link.register_template(test::add_template(1, kElements));
    ASSERT_TRUE(add.ok()) << add.status().to_string();
    Submission step;
    step.template_id = *add;
    step.slots = {{.id = id, .version_in = version, .version_out = version + 1, .size_bytes = 0},
                  {.id = other, .version_in = 0, .version_out = 0, .size_bytes = 0}};
    const auto ticket = submit(link, std::move(step));
    EXPECT_TRUE(ticket->outcome().status.ok()) << ticket->outcome().status.to_string();
  }
  static float first_of(const std::vector<std::byte>& bytes) {
    float value = -1;
    if (bytes.size() >= sizeof(value)) std::memcpy(&value, bytes.data(), sizeof(value));
    return value;
  }
  // A write to memory that was handed over is a copy where the kernel lets nobody write it any more.
  static uint64_t bytes_of_first_write() { return GetParam() == "shm" ? kBytes : 0; }

  std::optional<NodeProcess> node_;
};

TEST_P(ContentTest, TheSecondSessionSendsNone) {
  const auto first = open();
  const auto second = open();
  std::vector<std::vector<std::byte>> model;
  size_t total = 0;
  for (int i = 0; i < 12; ++i) {
    model.push_back(weights(static_cast<float>(i), kElements + 1000 * static_cast<size_t>(i)));
    total += model.back().size();
  }
  for (Link* link : {first.get(), second.get()}) {
    Submission submission;
    for (size_t i = 0; i < model.size(); ++i) submission.uploads.push_back(upload(*link, i + 1, model[i]));
    const auto ticket = submit(*link, std::move(submission));
    ASSERT_TRUE(ticket->outcome().status.ok()) << ticket->outcome().status.to_string();
  }
  EXPECT_EQ(first->counters().upload_bytes, total);
  EXPECT_EQ(first->counters().upload_known_bytes, 0U);
  EXPECT_EQ(second->counters().upload_bytes, 0U);
  EXPECT_EQ(second->counters().upload_regions, 0U);
  EXPECT_EQ(second->counters().upload_known_bytes, total);
  EXPECT_EQ(second->counters().uploads, model.size());
  for (size_t i = 0; i < model.size(); ++i) {
    EXPECT_EQ(fetch(*first, i + 1, model[i].size()), model[i]) << i;
    EXPECT_EQ(fetch(*second, i + 1, model[i].size()), model[i]) << i;
  }
  const control::NodeReport report = node_->report();
  EXPECT_EQ(report.blobs, model.size());
  EXPECT_EQ(report.blob_bytes, total);
  EXPECT_EQ(report.blob_known_bytes, total);
}

TEST_P(ContentTest, AnotherProcessSendsNone) {
  const auto link = open();
  const std::vector<std::byte> bytes = weights(7);
  send(*link, 1, bytes);
  const test::Ran client = test::run_command(std::string(GENIE_E2E_CLIENT) + " " + node_->uri() + " 600000 7");
  EXPECT_EQ(client.status, 0) << client.err;
  EXPECT_EQ(client.out, "sent 0, known " + std::to_string(kBytes) + ", equal\n");
}

TEST_P(ContentTest, WhoWritesASharedWeightHasItsOwnCopy) {
  const auto first = open();
  const auto second = open();
  const std::vector<std::byte> bytes = weights(1);
  const std::vector<std::byte> step = weights(10);
  for (Link* link : {first.get(), second.get()}) {
    send(*link, 1, bytes);
    send(*link, 2, step);
  }
  ASSERT_EQ(second->counters().upload_bytes, 0U);
  add_in_place(*second, 1, 0, 2);
  EXPECT_EQ(second->counters().upload_copied_bytes, kBytes) << "its own copy, first";
  EXPECT_EQ(first_of(fetch(*second, 1, kBytes, 1)), 11.0F);
  EXPECT_EQ(fetch(*first, 1, kBytes), bytes) << "the other one is left alone";
  add_in_place(*second, 1, 1, 2);
  EXPECT_EQ(second->counters().upload_copied_bytes, kBytes) << "once";
  EXPECT_EQ(first_of(fetch(*second, 1, kBytes, 2)), 21.0F);
  EXPECT_EQ(node_->report().blobs, 2U) << "the first session's, which another may still have";
}

TEST_P(ContentTest, TheSoleHoldersWriteTakesItOutOfTheStore) {
  const auto first = open();
  const std::vector<std::byte> bytes = weights(1);
  const std::vector<std::byte> step = weights(10);
  send(*first, 1, bytes);
  send(*first, 2, step);
  {
    const auto second = open();
    send(*second, 1, bytes);
    EXPECT_EQ(second->counters().upload_known_bytes, kBytes);
  }
  ASSERT_TRUE(node_->eventually([](const control::NodeReport& report) { return report.sessions == 1; }));
  EXPECT_EQ(node_->report().blobs, 2U);
  add_in_place(*first, 1, 0, 2);
  EXPECT_EQ(first->counters().upload_copied_bytes, bytes_of_first_write());
  EXPECT_EQ(node_->report().blobs, 1U);
  EXPECT_EQ(first_of(fetch(*first, 1, kBytes, 1)), 11.0F);
  const auto third = open();
  send(*third, 1, bytes);
  EXPECT_EQ(third->counters().upload_bytes, kBytes) << "the bytes are no longer there";
  EXPECT_EQ(fetch(*third, 1, kBytes), bytes);
}

TEST_P(ContentTest, TheFirstSessionMayDie) {
  auto first = open();
  const auto second = open();
  const std::vector<std::byte> bytes = weights(3);
  send(*first, 1, bytes);
  send(*second, 1, bytes);
  ASSERT_EQ(second->counters().upload_known_bytes, kBytes);
  first.reset();
  ASSERT_TRUE(node_->eventually([](const control::NodeReport& report) { return report.sessions == 1; }));
  EXPECT_EQ(fetch(*second, 1, kBytes), bytes);
  EXPECT_GE(node_->report().storage_bytes, kBytes) << "the second one pays for it";
  const auto third = open();
  send(*third, 1, bytes);
  EXPECT_EQ(third->counters().upload_known_bytes, kBytes);
  free(*second, 1);
  EXPECT_EQ(fetch(*third, 1, kBytes), bytes);
  free(*third, 1);
  EXPECT_TRUE(node_->eventually(
      [](const control::NodeReport& report) { return report.blobs == 0 && report.storage_bytes == 0; }));
}

TEST_P(ContentTest, ASketchProvesNothing) {
  const auto first = open();
  const auto second = open();
  std::vector<std::byte> bytes = weights(5);
  send(*first, 1, bytes);
  std::vector<std::byte> other = bytes;
  other[1000] ^= std::byte{1};
  ASSERT_EQ(wire::sketch_of(bytes), wire::sketch_of(other));
  for (uint64_t id = 1; id <= 3; ++id) {
    other[1001] = std::byte(id);
    send(*second, id, other);
    EXPECT_EQ(fetch(*second, id, kBytes), other);
  }
  EXPECT_EQ(second->counters().upload_bytes, 3 * kBytes);
  EXPECT_EQ(second->counters().upload_known_bytes, 0U);
  send(*second, 4, bytes);
  EXPECT_EQ(second->counters().upload_known_bytes, kBytes) << "one of several with that sketch";
  EXPECT_EQ(fetch(*second, 4, kBytes), bytes);
}

// What the client was told of and does not upload is let go.
TEST_P(ContentTest, AnUploadThatIsDroppedHoldsNothing) {
  auto first = open();
  const auto second = open();
  const std::vector<std::byte> bytes = weights(6);
  send(*first, 1, bytes);
  (void)upload(*second, 1, bytes);
  free(*first, 1);
  first.reset();
  (void)submit(*second, {});  // takes the word along
  EXPECT_TRUE(node_->eventually(
      [](const control::NodeReport& report) { return report.blobs == 0 && report.storage_bytes == 0; }));
  EXPECT_EQ(second->counters().upload_known_bytes, 0U);
}

TEST_P(ContentTest, OneSessionMayBringTheSameTwice) {
  const auto link = open();
  const std::vector<std::byte> bytes = weights(8);
  send(*link, 1, bytes);
  send(*link, 2, bytes);
  EXPECT_EQ(link->counters().upload_known_bytes, kBytes);
  EXPECT_LT(node_->report().storage_bytes, 2 * kBytes + 2 * kMiB) << "a region counts once";
  send(*link, 3, weights(10));
  add_in_place(*link, 1, 0, 3);
  EXPECT_EQ(fetch(*link, 2, kBytes), bytes);
  EXPECT_EQ(first_of(fetch(*link, 1, kBytes, 1)), 18.0F);
}

// Each session that holds a blob pays for it: one whose quota has no room is told of nothing, and hears of its quota.
TEST_P(ContentTest, TheQuotaCountsWhatIsShared) {
  start({"--memory-quota", "16MiB"});
  const auto first = open();
  const std::vector<std::byte> large = weights(1, 12 * kMiB / sizeof(float));
  send(*first, 1, large);
  const auto second = open();
  send(*second, 1, weights(2, 6 * kMiB / sizeof(float)));
  Submission submission;
  submission.uploads.push_back(upload(*second, 2, large));
  const auto ticket = submit(*second, std::move(submission));
  EXPECT_EQ(ticket->outcome().status.code(), Errc::kQuotaExceeded) << ticket->outcome().status.to_string();
  Submission room;
  room.frees = {1, 2};
  (void)submit(*second, std::move(room));
  send(*second, 3, large);
  EXPECT_EQ(second->counters().upload_known_bytes, large.size());
  EXPECT_EQ(fetch(*second, 3, large.size()), large);
}

// A fetch reads the shared bytes; they are not written before it is through.
TEST_P(ContentTest, FetchedBytesOutliveEverything) {
  auto first = open();
  const auto second = open();
  const std::vector<std::byte> bytes = weights(4);
  send(*first, 1, bytes);
  send(*second, 1, bytes);
  send(*second, 2, weights(10));
  Submission submission;
  submission.fetches.push_back({.storage = {1, 0}, .offset = 0, .size = kBytes});
  submission.frees = {};
  auto ticket = submit(*first, std::move(submission));
  free(*first, 1);
  add_in_place(*second, 1, 0, 2);
  first.reset();
  const std::span<const std::byte> got = ticket->outcome().fetched.at(0)->bytes();
  EXPECT_TRUE(std::ranges::equal(got, bytes));
}

INSTANTIATE_TEST_SUITE_P(Transports, ContentTest, testing::Values("shm", "ucx"),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace genie::session
