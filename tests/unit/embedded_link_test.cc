// The embedded link over a real node and a real store: memory, limits and ends, without any program.
#include "src/session/embedded_link.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <thread>
#include <vector>

#include "tests/link_steps.h"

namespace genie::session {
namespace {

std::unique_ptr<Link> open_process_link() { return open_link("embedded:"); }

TEST(EmbeddedLink, ReturnsWhatWasUploaded) {
  const auto link = open_process_link();
  Submission submission;
  submission.uploads.push_back(filled(*link, 1, 1000, 7));
  submission.fetches.push_back({.storage = {1, 0}, .offset = 10, .size = 20});
  const auto ticket = submit(*link, std::move(submission));
  ASSERT_TRUE(ticket->outcome().status.ok()) << ticket->outcome().status.to_string();
  ASSERT_EQ(ticket->outcome().fetched.size(), 1U);
  const std::span<std::byte> bytes = ticket->outcome().fetched[0]->bytes();
  EXPECT_EQ(bytes.size(), 20U);
  EXPECT_EQ(bytes[0], std::byte{7});
  EXPECT_EQ(reinterpret_cast<uintptr_t>(bytes.data()) % 64, 0U);
  const LinkCounters counters = link->counters();
  EXPECT_EQ(counters.uploads, 1U);
  EXPECT_EQ(counters.upload_bytes, 1000U);
  EXPECT_EQ(counters.upload_copied_bytes, 0U);
  EXPECT_EQ(counters.fetch_bytes, 20U);
  EXPECT_EQ(counters.fetch_copied_bytes, 20U);
}

// Memory that goes back to its owner as soon as nobody holds it.
struct Lent {
  std::vector<std::byte> bytes = std::vector<std::byte>(64, std::byte{3});
  std::shared_ptr<std::atomic<bool>> returned = std::make_shared<std::atomic<bool>>(false);
  UploadRequest to(Link& link, uint64_t id, bool transient) {
    auto keep_alive = std::shared_ptr<void>(nullptr, [returned = returned](void*) { *returned = true; });
    return {.storage = {id, 0}, .memory = link.lend_upload(bytes, std::move(keep_alive)), .transient = transient};
  }
};

TEST(EmbeddedLink, LentMemoryIsReadInPlaceAndReturnedWithTheAnswer) {
  const auto link = open_process_link();
  Lent kept;
  Lent transient;
  Submission submission;
  submission.uploads.push_back(kept.to(*link, 5, false));
  submission.uploads.push_back(transient.to(*link, 6, true));
  submission.fetches.push_back({.storage = {5, 0}, .offset = 0, .size = 64});
  submission.fetches.push_back({.storage = {6, 0}, .offset = 0, .size = 64});
  kept.bytes[0] = std::byte{4};  // not submitted yet
  const auto ticket = submit(*link, std::move(submission));
  EXPECT_TRUE(*kept.returned);
  EXPECT_TRUE(*transient.returned);
  EXPECT_EQ(ticket->outcome().fetched[0]->bytes()[0], std::byte{4}) << "no snapshot";
  EXPECT_EQ(ticket->outcome().fetched[1]->bytes()[0], std::byte{3});
  EXPECT_EQ(link->counters().upload_copied_bytes, 64U) << "the one that lives on";
  kept.bytes.assign(64, std::byte{9});
  Submission fetch;
  fetch.fetches.push_back({.storage = {5, 0}, .offset = 0, .size = 64});
  fetch.fetches.push_back({.storage = {6, 0}, .offset = 0, .size = 64});
  const auto later = submit(*link, std::move(fetch));
  EXPECT_EQ(later->outcome().fetched[0]->bytes()[0], std::byte{4});
  EXPECT_EQ(later->outcome().fetch_status[1].code(), Errc::kNotFound) << "a transient storage is gone";
}

TEST(EmbeddedLink, ClosingLetsGoOfLentMemory) {
  auto link = open_process_link();
  // So many that the end of the session, which goes before them, finds most of them still queued.
  std::vector<Lent> lent(200);
  for (Lent& each : lent) {
    Submission submission;
    submission.uploads.push_back(each.to(*link, 5, false));
    ASSERT_TRUE(link->submit(std::move(submission)).ok());
  }
  link->close();
  EXPECT_TRUE(std::ranges::all_of(lent, [](const Lent& each) { return each.returned->load(); }));
  const auto refused = link->submit({});
  EXPECT_EQ(refused.code(), Errc::kCancelled);
}

TEST(EmbeddedLink, FetchErrorsAreOnePerFetch) {
  const auto link = open_process_link();
  Submission submission;
  submission.uploads.push_back(filled(*link, 1, 16, 1));
  submission.fetches.push_back({.storage = {1, 0}, .offset = 0, .size = 16});
  submission.fetches.push_back({.storage = {2, 0}, .offset = 0, .size = 16});
  submission.fetches.push_back({.storage = {1, 0}, .offset = 8, .size = 16});
  submission.fetches.push_back({.storage = {1, 3}, .offset = 0, .size = 16});
  const auto ticket = submit(*link, std::move(submission));
  const Outcome& outcome = ticket->outcome();
  EXPECT_EQ(outcome.status.code(), Errc::kNotFound);
  ASSERT_EQ(outcome.fetch_status.size(), 4U);
  EXPECT_TRUE(outcome.fetch_status[0].ok());
  EXPECT_NE(outcome.fetched[0], nullptr);
  EXPECT_EQ(outcome.fetch_status[1].code(), Errc::kNotFound);
  EXPECT_EQ(outcome.fetched[1], nullptr);
  EXPECT_EQ(outcome.fetch_status[2].code(), Errc::kOutOfRange);
  EXPECT_EQ(outcome.fetch_status[3].code(), Errc::kStale);
  EXPECT_NE(outcome.status.to_string().find("node 'embedded' (cpu)"), std::string::npos) << outcome.status.to_string();
}

TEST(EmbeddedLink, UnknownTemplateFailsItsStreamUntilTheNextEpoch) {
  const auto link = open_process_link();
  Submission bad;
  bad.stream = 3;
  bad.epoch = 1;
  bad.template_id = 77;
  const auto ticket = submit(*link, std::move(bad));
  EXPECT_EQ(ticket->outcome().status.code(), Errc::kNotFound);
  Submission fine;
  fine.stream = 3;
  fine.epoch = 2;
  EXPECT_TRUE(submit(*link, std::move(fine))->outcome().status.ok());
}

TEST(EmbeddedLink, QuotaIsAnErrorOfTheUploadAndOfItsUsers) {
  node::NodeOptions options;
  options.name = "small";
  options.session_limits.memory_bytes = 1000;
  Result<std::unique_ptr<node::Node>> node = node::Node::make(std::move(options));
  ASSERT_TRUE(node.ok());
  std::shared_ptr<node::Node> shared = std::move(*node);
  auto link = open_embedded(shared, {});
  ASSERT_TRUE(link.ok());
  Submission submission;
  submission.uploads.push_back(filled(**link, 1, 600, 1));
  submission.uploads.push_back(filled(**link, 2, 600, 1));
  submission.fetches.push_back({.storage = {1, 0}, .offset = 0, .size = 600});
  submission.fetches.push_back({.storage = {2, 0}, .offset = 0, .size = 600});
  const auto ticket = submit(**link, std::move(submission));
  EXPECT_EQ(ticket->outcome().status.code(), Errc::kQuotaExceeded) << ticket->outcome().status.to_string();
  EXPECT_TRUE(ticket->outcome().fetch_status[0].ok());
  EXPECT_EQ(ticket->outcome().fetch_status[1].code(), Errc::kPoisoned);
  EXPECT_EQ(shared->status().storage_bytes, 600U);
  link->reset();
  EXPECT_EQ(shared->status().sessions, 0U);
  EXPECT_EQ(shared->status().storage_bytes, 0U);
}

TEST(EmbeddedLink, ManyThreadsShareASession) {
  const auto link = open_process_link();
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (uint32_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (uint64_t i = 0; i < 300; ++i) {
        const uint64_t id = (static_cast<uint64_t>(t) << 32) + i;
        Submission submission;
        submission.stream = t;
        submission.uploads.push_back(filled(*link, id, 256, static_cast<int>(i & 0x7F)));
        submission.fetches.push_back({.storage = {id, 0}, .offset = 0, .size = 256});
        submission.frees = {id - 1};
        const auto ticket = submit(*link, std::move(submission));
        const Outcome& outcome = ticket->outcome();
        if (!outcome.status.ok() || outcome.fetched[0]->bytes()[255] != std::byte(i & 0x7F)) ++wrong;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_EQ(link->counters().submissions, 1200U);
}

TEST(EmbeddedLink, StoppingTheNodeEndsWhatIsPending) {
  Result<std::unique_ptr<node::Node>> node = node::Node::make({.name = "stopping"});
  ASSERT_TRUE(node.ok());
  std::shared_ptr<node::Node> shared = std::move(*node);
  auto link = open_embedded(shared, {});
  ASSERT_TRUE(link.ok());
  std::vector<std::shared_ptr<Ticket>> tickets;
  for (uint64_t i = 0; i < 200; ++i) {
    Submission submission;
    submission.uploads.push_back(filled(**link, i, 4096, 1));
    auto ticket = (*link)->submit(std::move(submission));
    ASSERT_TRUE(ticket.ok());
    tickets.push_back(std::move(*ticket));
  }
  shared->stop();
  for (const auto& ticket : tickets) {
    ASSERT_TRUE(ticket->done());
    const Errc code = ticket->outcome().status.code();
    EXPECT_TRUE(code == Errc::kOk || code == Errc::kCancelled);
  }
  EXPECT_FALSE((*link)->submit({}).ok());
  (*link)->close();
}

TEST(LinkOpen, SaysWhatAnAddressLooksLike) {
  const auto link = Link::open("carrier-pigeon:coop", {});
  ASSERT_FALSE(link.ok());
  EXPECT_EQ(link.code(), Errc::kInvalidArgument);
  EXPECT_NE(link.status().text().find("embedded:"), std::string_view::npos);
}

// Kept to the very end of the process: work is pending when it exits, and nothing may crash or hang.
std::unique_ptr<Link>& link_for_exit() {
  static std::unique_ptr<Link> link;
  return link;
}

TEST(EmbeddedLink, ProcessMayExitWithWorkPending) {
  link_for_exit() = open_process_link();
  for (uint64_t i = 0; i < 50; ++i) {
    Submission submission;
    submission.uploads.push_back(filled(*link_for_exit(), i, 1 << 16, 1));
    ASSERT_TRUE(link_for_exit()->submit(std::move(submission)).ok());
  }
}

}  // namespace
}  // namespace genie::session
