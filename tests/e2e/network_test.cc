// Sessions with a real genie-node over a network transport, on loopback: bytes both ways, counters, ends.
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <filesystem>
#include <thread>
#include <vector>

#include "datapath/ucx/ucx_fabric.h"
#include "tests/e2e/node_process.h"
#include "tests/e2e/node_steps.h"
#include "tests/e2e/template_builder.h"
#include "tests/link_steps.h"

namespace genie::session {
namespace {

using test::NodeProcess;

class Network : public testing::Test {
 protected:
  void SetUp() override {
    if (!datapath::ucx_compiled_in()) GTEST_SKIP() << "this build has no UCX";
  }
  static std::vector<std::string> flags(std::vector<std::string> more = {}) {
    more.insert(more.begin(), {"--transport", "ucx"});
    return more;
  }
};

std::unique_ptr<Link> open(const NodeProcess& node, const LinkOptions& options = {}) {
  return open_link(node.uri(), options);
}

TEST_F(Network, CarriesBytesOfEverySizeBothWays) {
  NodeProcess node(flags());
  ASSERT_TRUE(node.wait_ready()) << node.errors();
  const auto link = open(node);
  ASSERT_NE(link, nullptr);
  expect_every_size_across(*link);
}

// One session over each transport, at the same time.
TEST_F(Network, ANodeOffersSeveralTransports) {
  NodeProcess node({"--transport", "ucx,shm"});
  ASSERT_TRUE(node.wait_ready()) << node.errors();
  std::vector<std::unique_ptr<Link>> links;
  for (const char* wanted : {"auto", "ucx", "shm"}) {
    LinkOptions options;
    options.transport = wanted;
    links.push_back(open(node, options));
    ASSERT_NE(links.back(), nullptr);
  }
  EXPECT_EQ(links[0]->node().transport, "shm");
  EXPECT_EQ(links[0]->node().transport_why, "shm: the best that both ends have");
  EXPECT_EQ(links[1]->node().transport, "ucx");
  EXPECT_EQ(links[1]->node().transport_why, "ucx: asked for");
  EXPECT_EQ(links[2]->node().transport, "shm");
  for (uint64_t id = 1; id <= 20; ++id) {
    for (const auto& link : links) {
      Submission submission;
      submission.uploads.push_back(filled(*link, id, 100'000));
      submission.fetches.push_back({.storage = {id, 0}, .offset = 0, .size = 100'000});
      const auto ticket = submit(*link, std::move(submission));
      ASSERT_TRUE(ticket->outcome().status.ok()) << ticket->outcome().status.to_string();
      EXPECT_TRUE(holds(ticket->outcome().fetched[0]->bytes(), id));
    }
  }
  LinkOptions verbs;
  verbs.transport = "verbs";
  const auto refused = Link::open(node.uri(), verbs);
  ASSERT_FALSE(refused.ok());
  const std::string text = refused.status().to_string();
  EXPECT_TRUE(text.find("offers the transport shm,ucx") != std::string::npos ||
              text.find("not compiled in") != std::string::npos)
      << text;
  links[1]->close();
  node.signal(SIGTERM);
  EXPECT_EQ(node.wait_exit(), 0);
}

TEST_F(Network, AFasterTransportThatFailsIsPassedOverLoudly) {
  NodeProcess node({"--transport", "shm,ucx"});
  ASSERT_TRUE(node.wait_ready()) << node.errors();
  ASSERT_TRUE(std::filesystem::remove(node.folder() + "/node.sock.data"));
  testing::internal::CaptureStderr();
  const auto link = open(node);
  const std::string said = testing::internal::GetCapturedStderr();
  ASSERT_NE(link, nullptr);
  EXPECT_EQ(link->node().transport, "ucx");
  EXPECT_NE(said.find("shm was there and would be faster than ucx, but cannot be used"), std::string::npos) << said;
  EXPECT_NE(link->node().transport_why.find("not shm: its data endpoint"), std::string::npos)
      << link->node().transport_why;
  Submission submission;
  submission.uploads.push_back(filled(*link, 1, 1000));
  submission.fetches.push_back({.storage = {1, 0}, .offset = 0, .size = 1000});
  const auto ticket = submit(*link, std::move(submission));
  EXPECT_TRUE(holds(ticket->outcome().fetched[0]->bytes(), 1));
  // Asked for by name there is nothing to fall back to.
  LinkOptions shm;
  shm.transport = "shm";
  const auto refused = Link::open(node.uri(), shm);
  ASSERT_FALSE(refused.ok());
  EXPECT_NE(refused.status().text().find("does not answer"), std::string::npos) << refused.status().to_string();
}

TEST_F(Network, ANodeThatIsReachedOverTcpOffersItsNetworks) {
  NodeProcess node({"--listen", "tcp://127.0.0.1:0"}, /*own_listen=*/false);
  ASSERT_TRUE(node.wait_ready()) << node.errors();
  const std::string uri = node.of_ready("control=");
  LinkOptions options;
  options.transport = "ucx";
  const auto across = open_link(uri, options);
  ASSERT_NE(across, nullptr);
  EXPECT_EQ(across->node().transport, "ucx");
  const auto here = open_link(uri);
  ASSERT_NE(here, nullptr);
  EXPECT_EQ(here->node().transport, "shm") << "one machine, though reached over TCP";
}

TEST_F(Network, AComputedResultIsWrittenFromWhereItIs) {
  NodeProcess node(flags());
  ASSERT_TRUE(node.wait_ready()) << node.errors();
  const auto link = open(node);
  constexpr uint64_t kElements = 50'000;
  const auto id = link->register_template(test::add_template(1, kElements));
  ASSERT_TRUE(id.ok()) << id.status().to_string();
  Submission upload;
  for (uint64_t storage = 1; storage <= 2; ++storage) {
    auto memory = link->begin_upload(kElements * sizeof(float));
    ASSERT_TRUE(memory.ok());
    std::memset((*memory)->bytes().data(), 0, kElements * sizeof(float));
    upload.uploads.push_back({.storage = {storage, 0}, .memory = std::move(*memory)});
  }
  (void)submit(*link, std::move(upload));
  for (uint32_t step = 0; step < 3; ++step) {
    Submission submission;
    submission.template_id = *id;
    submission.slots = {{.id = 1, .version_in = step, .version_out = step + 1, .size_bytes = 0},
                        {.id = 2, .version_in = 0, .version_out = 0, .size_bytes = 0}};
    submission.fetches.push_back({.storage = {1, step + 1}, .offset = 0, .size = kElements * sizeof(float)});
    const auto ticket = submit(*link, std::move(submission));
    ASSERT_TRUE(ticket->outcome().status.ok()) << ticket->outcome().status.to_string();
    EXPECT_EQ(ticket->outcome().fetched[0]->bytes().size(), kElements * sizeof(float));
  }
  EXPECT_EQ(link->counters().fetches, 3U);
  EXPECT_EQ(link->counters().fetch_copied_bytes, 0U);
}

TEST_F(Network, ResultsOutliveTheLinkAndTheNode) {
  test::expect_results_outlive(std::make_unique<NodeProcess>(flags()));
}

TEST_F(Network, ResultsAreKeptApartAndTheirPlacesUsedAgain) {
  NodeProcess node(flags());
  ASSERT_TRUE(node.wait_ready()) << node.errors();
  const auto link = open(node);
  std::vector<std::unique_ptr<Fetched>> kept;
  for (uint64_t id = 1; id <= 200; ++id) {
    Submission submission;
    submission.uploads.push_back(filled(*link, id, 30'000));
    submission.fetches.push_back({.storage = {id, 0}, .offset = 0, .size = 30'000});
    submission.frees = {id - 1};
    auto ticket = submit(*link, std::move(submission));
    ASSERT_TRUE(ticket->outcome().status.ok());
    std::unique_ptr<Fetched> result = std::move(ticket->outcome().fetched[0]);
    EXPECT_TRUE(holds(result->bytes(), id)) << id;
    if (id % 3 != 0) {
      kept.push_back(std::move(result));
    } else {
      std::memset(result->bytes().data(), 0xEE, 30'000);
      kept.push_back(nullptr);
    }
  }
  for (uint64_t id = 1; id <= kept.size(); ++id) {
    if (kept[id - 1] != nullptr) {
      EXPECT_TRUE(holds(kept[id - 1]->bytes(), id)) << id;
    }
  }
}

TEST_F(Network, ManyThreadsSubmitAndWait) {
  NodeProcess node(flags());
  ASSERT_TRUE(node.wait_ready()) << node.errors();
  const auto link = open(node);
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (uint32_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (uint64_t i = 1; i <= 100; ++i) {
        const uint64_t id = (static_cast<uint64_t>(t) << 32) + i;
        const size_t size = 64 + 1000 * i;
        Submission submission;
        submission.stream = t;
        submission.uploads.push_back(filled(*link, id, size));
        submission.fetches.push_back({.storage = {id, 0}, .offset = 0, .size = size});
        submission.frees = {id - 1};
        const auto ticket = submit(*link, std::move(submission));
        if (!ticket->outcome().status.ok() || !holds(ticket->outcome().fetched[0]->bytes(), id)) ++wrong;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

// Nobody waits on this side: what was handed over is fetched all the same.
TEST_F(Network, AnUploadArrivesWhileTheProgramDoesSomethingElse) {
  NodeProcess node(flags());
  ASSERT_TRUE(node.wait_ready()) << node.errors();
  const auto link = open(node);
  Submission submission;
  submission.uploads.push_back(filled(*link, 1, 20U << 20));
  const auto ticket = link->submit(std::move(submission));
  ASSERT_TRUE(ticket.ok()) << ticket.status().to_string();
  EXPECT_TRUE(node.eventually([](const control::NodeReport& report) { return report.storage_bytes >= 20U << 20; }));
  ASSERT_TRUE(link->wait(**ticket).ok());
}

TEST_F(Network, ANodeThatIsKilledInTheMiddleEndsWhatIsPending) {
  NodeProcess node(flags());
  ASSERT_TRUE(node.wait_ready()) << node.errors();
  const auto link = open(node);
  std::vector<std::shared_ptr<Ticket>> tickets;
  for (uint64_t id = 1; id <= 4; ++id) {
    Submission submission;
    submission.uploads.push_back(filled(*link, id, 32U << 20));
    submission.fetches.push_back({.storage = {id, 0}, .offset = 0, .size = 32U << 20});
    auto ticket = link->submit(std::move(submission));
    ASSERT_TRUE(ticket.ok()) << ticket.status().to_string();
    tickets.push_back(std::move(*ticket));
  }
  node.signal(SIGKILL);
  int lost = 0;
  for (const auto& ticket : tickets) {
    EXPECT_TRUE(link->wait(*ticket).ok()) << "it ends, with the error as its outcome";
    const Status& status = ticket->outcome().status;
    if (status.ok()) continue;
    ++lost;
    EXPECT_EQ(status.code(), Errc::kDisconnected);
    EXPECT_NE(status.text().find("node '"), std::string_view::npos) << status.to_string();
  }
  EXPECT_GT(lost, 0);
  EXPECT_EQ(link->submit({}).code(), Errc::kDisconnected);
}

TEST_F(Network, AStoppedNodeIsGivenUp) {
  NodeProcess node(flags());
  ASSERT_TRUE(node.wait_ready()) << node.errors();
  const auto link = open(node, {.progress_timeout_ms = 60'000});
  node.stop();
  const auto ticket = link->submit({});
  if (ticket.ok()) {
    EXPECT_TRUE(link->wait(**ticket).ok());
    EXPECT_EQ((*ticket)->outcome().status.code(), Errc::kDisconnected);
  }
}

TEST_F(Network, ClosingLeavesNothingBehind) {
  NodeProcess node(flags());
  ASSERT_TRUE(node.wait_ready()) << node.errors();
  auto link = open(node);
  Submission submission;
  submission.uploads.push_back(filled(*link, 1, 1U << 20));
  submission.uploads.push_back(filled(*link, 2, 1000));
  submission.fetches.push_back({.storage = {1, 0}, .offset = 0, .size = 1000});
  (void)submit(*link, std::move(submission));
  EXPECT_EQ(node.report().storages, 2U);
  link->close();
  EXPECT_TRUE(node.becomes_empty());
  EXPECT_EQ(link->submit({}).code(), Errc::kCancelled);
}

}  // namespace
}  // namespace genie::session
