// Sessions over UCX between two network namespaces, with a real genie-node there: over a plain wire, over one that loses,
// delays, reorders and duplicates, and over one that is cut.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <optional>
#include <thread>
#include <vector>

#include "datapath/ucx/ucx_fabric.h"
#include "tests/e2e/node_process.h"
#include "tests/e2e/template_builder.h"
#include "tests/eventually.h"
#include "tests/link_steps.h"
#include "tests/network/wire.h"

namespace genie::session {
namespace {

using test::eventually;
using test::Faults;
using test::kPatienceMs;
using test::NodeProcess;
using test::Wire;
using test::WireCounters;

constexpr size_t kLarge = 16U << 20;
// What a wire does to frames wherever nothing else is said.
constexpr Faults kFaults{.loss = 0.01, .delay_us = 200, .jitter_us = 300, .reorder = 0.01, .duplicate = 0.01};

class Sessions : public testing::Test {
 protected:
  void SetUp() override {
    if (!datapath::ucx_compiled_in()) GTEST_SKIP() << "this build has no UCX";
    if (!test::why_no_networks().empty()) GTEST_SKIP() << test::why_no_networks();
  }

  // A node there, and over a socket in the file system also here. A machine that is busy with other things keeps the two from
  // each other for seconds: where that is not the matter, they have patience.
  void start_node(const std::string& peer_timeout_ms = "60000") {
    const std::string there = std::string("tcp://") + test::kThere;
    node_.emplace(
        std::vector<std::string>{"--name", "across", "--listen", there + ":7700", "--data-listen", there + ":7710",
                                 "--transport", "ucx,shm", "--peer-timeout-ms", peer_timeout_ms},
        /*own_listen=*/true, &test::go_there);
    ASSERT_TRUE(node_->wait_ready()) << node_->errors();
    uri_ = there + ":7700";
  }
  std::unique_ptr<Link> open_across(uint64_t peer_timeout_ms = 60'000) {
    return open_link(uri_, {.connect_timeout_ms = 60'000,
                            .progress_timeout_ms = kPatienceMs,
                            .transport = "ucx",
                            .peer_timeout_ms = peer_timeout_ms});
  }

  std::optional<NodeProcess> node_;
  std::string uri_;
};

// Uploads and fetches that keep the wire busy for a while.
std::vector<std::shared_ptr<Ticket>> start_transfers(Link& link) {
  std::vector<std::shared_ptr<Ticket>> tickets;
  for (uint64_t id = 1; id <= 4; ++id) {
    Submission submission;
    submission.uploads.push_back(filled(link, id, kLarge));
    submission.fetches.push_back({.storage = {id, 0}, .offset = 0, .size = kLarge});
    auto ticket = link.submit(std::move(submission));
    EXPECT_TRUE(ticket.ok()) << ticket.status().to_string();
    if (ticket.ok()) tickets.push_back(std::move(*ticket));
  }
  return tickets;
}

// A storage there and back; the one before it goes.
bool works(Link& link, uint64_t id) {
  Submission submission;
  submission.uploads.push_back(filled(link, id, 100'000));
  submission.fetches.push_back({.storage = {id, 0}, .offset = 0, .size = 100'000});
  submission.frees = {id - 1};
  const auto ticket = submit(link, std::move(submission));
  const Outcome& outcome = ticket->outcome();
  EXPECT_TRUE(outcome.status.ok()) << outcome.status.to_string();
  return outcome.status.ok() && holds(outcome.fetched[0]->bytes(), id);
}

// Storage 1 grows by storage 2 at each step, from 0 by 1; what is fetched must say how often.
void compute(Link& link, uint32_t steps) {
  constexpr uint64_t kElements = 50'000;
  const auto id = link.register_template(test::add_template(1, kElements));
  ASSERT_TRUE(id.ok()) << id.status().to_string();
  Submission upload;
  for (uint64_t storage = 1; storage <= 2; ++storage) {
    upload.uploads.push_back(upload_of(link, storage, kElements * sizeof(float), [&](std::span<std::byte> bytes) {
      const float value = storage == 1 ? 0.0F : 1.0F;
      for (size_t i = 0; i < kElements; ++i) std::memcpy(bytes.data() + i * sizeof(value), &value, sizeof(value));
    }));
  }
  ASSERT_TRUE(submit(link, std::move(upload))->outcome().status.ok());
  for (uint32_t step = 0; step < steps; ++step) {
    Submission submission;
    submission.template_id = *id;
    submission.slots = {{.id = 1, .version_in = step, .version_out = step + 1, .size_bytes = 0},
                        {.id = 2, .version_in = 0, .version_out = 0, .size_bytes = 0}};
    submission.fetches.push_back({.storage = {1, step + 1}, .offset = 0, .size = kElements * sizeof(float)});
    const auto ticket = submit(link, std::move(submission));
    ASSERT_TRUE(ticket->outcome().status.ok()) << ticket->outcome().status.to_string();
    const std::span<const std::byte> bytes = ticket->outcome().fetched[0]->bytes();
    for (size_t i = 0; i < kElements; ++i) {
      float value;
      std::memcpy(&value, bytes.data() + i * sizeof(value), sizeof(value));
      ASSERT_EQ(value, static_cast<float>(step + 1)) << i;
    }
  }
}

// Several threads, each with several submissions in flight.
void submit_from_many_threads(Link& link, uint32_t threads, uint64_t each) {
  std::atomic<uint64_t> right{0};
  std::vector<std::thread> running;
  for (uint32_t t = 0; t < threads; ++t) {
    running.emplace_back([&, t] {
      std::vector<std::pair<uint64_t, std::shared_ptr<Ticket>>> tickets;
      for (uint64_t i = 1; i <= each; ++i) {
        const uint64_t id = (static_cast<uint64_t>(t + 1) << 32) + i;
        Submission submission;
        submission.stream = t;
        submission.uploads.push_back(filled(link, id, 64 + 1000 * i));
        submission.fetches.push_back({.storage = {id, 0}, .offset = 0, .size = 64 + 1000 * i});
        auto ticket = link.submit(std::move(submission));
        if (ticket.ok()) tickets.emplace_back(id, std::move(*ticket));
      }
      for (auto& [id, ticket] : tickets) {
        if (link.wait(*ticket).ok() && ticket->outcome().status.ok() &&
            holds(ticket->outcome().fetched[0]->bytes(), id)) {
          ++right;
        }
      }
    });
  }
  for (std::thread& thread : running) thread.join();
  EXPECT_EQ(right, threads * each);
}

TEST_F(Sessions, CarryBytesOfEverySizeBothWays) {
  Wire wire;
  start_node();
  const auto link = open_across();
  ASSERT_NE(link, nullptr);
  expect_every_size_across(*link);
  link->close();
  EXPECT_TRUE(node_->becomes_empty());
  node_->signal(SIGTERM);
  EXPECT_EQ(node_->wait_exit(), 0);
}

TEST_F(Sessions, CarryTheSameBytesOverABadWire) {
  Wire wire(kFaults);
  start_node();
  const auto link = open_across();
  ASSERT_NE(link, nullptr);
  const size_t carried = carry_every_size(*link, 1'000);
  EXPECT_EQ(link->counters().upload_bytes, carried);
  EXPECT_EQ(link->counters().upload_copied_bytes, 0U);
  compute(*link, 20);
  submit_from_many_threads(*link, 4, 25);
  const WireCounters counters = wire.counters();
  EXPECT_GT(counters.forwarded, 20'000U);
  EXPECT_GT(counters.lost, 50U);
  EXPECT_GT(counters.reordered, 50U);
  EXPECT_GT(counters.duplicated, 50U);
  EXPECT_TRUE(link->check().ok());
  link->close();
  EXPECT_TRUE(node_->becomes_empty()) << "each upload and fetch ended on the node";
}

// The node has another network too, of which nothing is reached from here.
TEST_F(Sessions, TakeTheNetworkThatLeadsThere) {
  constexpr const char* kOther = "another0";  // UCX would take it first
  Wire wire;
  {
    const test::VisitThere there;
    test::make_veth(kOther, "other1", test::this_network().get());
    test::set_address(kOther, "10.66.0.2");
    test::set_up(kOther, true);
    test::set_up("other1", true);
    test::wait_running(kOther);
  }
  start_node();
  const auto link = open_across();
  EXPECT_TRUE(link != nullptr && works(*link, 1));
  const test::VisitThere there;
  test::remove_interface(kOther);
}

// How a wire breaks, as its two ends see it.
enum class Break { kSilently, kInterfaceDown };

class BrokenWire : public Sessions, public testing::WithParamInterface<Break> {
 protected:
  void SetUp() override {
    Sessions::SetUp();
    if (!IsSkipped()) wire_.emplace(Faults{.delay_us = 200});
  }
  void break_wire() {
    if (GetParam() == Break::kSilently) {
      wire_->cut();
    } else {
      wire_->pull();
    }
  }
  void mend_wire() {
    if (GetParam() == Break::kSilently) {
      wire_->heal();
    } else {
      wire_->plug();
    }
  }

  std::optional<Wire> wire_;
};

TEST_P(BrokenWire, EndsWhatIsPendingAtBothEndsAndNothingElse) {
  start_node("8000");
  const auto across = open_across(8'000);
  const auto beside = open_link(node_->uri(), {.transport = "shm"});
  ASSERT_TRUE(across != nullptr && beside != nullptr);
  const uint64_t before = wire_->counters().forwarded;
  const auto tickets = start_transfers(*across);
  ASSERT_EQ(tickets.size(), 4U);
  ASSERT_TRUE(eventually([&] { return wire_->counters().forwarded > before + 2'000; }));
  break_wire();
  uint64_t id = 100;
  ASSERT_TRUE(eventually([&] {
    across->poll();
    return !works(*beside, ++id) || tickets.back()->done();
  }));
  int lost = 0;
  for (const auto& ticket : tickets) {
    EXPECT_TRUE(across->wait(*ticket).ok()) << "it ends, with the error as its outcome";
    const Status& status = ticket->outcome().status;
    if (status.ok()) continue;
    ++lost;
    EXPECT_EQ(status.code(), Errc::kDisconnected) << status.to_string();
    EXPECT_NE(status.text().find("node 'across'"), std::string_view::npos) << status.to_string();
  }
  EXPECT_GT(lost, 0);
  EXPECT_EQ(across->submit({}).code(), Errc::kDisconnected);
  EXPECT_EQ(across->check().code(), Errc::kDisconnected);
  EXPECT_TRUE(node_->eventually([](const control::NodeReport& report) {
    return report.sessions == 1 && report.storages == 1;
  })) << "the node gave the session up";
  EXPECT_TRUE(works(*beside, ++id));

  mend_wire();
  std::unique_ptr<Link> again;
  ASSERT_TRUE(eventually([&] {
    auto opened = Link::open(uri_, {.transport = "ucx"});
    if (opened.ok()) again = std::move(*opened);
    return again != nullptr;
  }));
  EXPECT_TRUE(works(*again, 1));
}

TEST_P(BrokenWire, IsAClearErrorForWhoeverConnects) {
  start_node();
  break_wire();
  const auto refused = Link::open(uri_, {.connect_timeout_ms = 1'500, .transport = "ucx"});
  ASSERT_FALSE(refused.ok());
  EXPECT_TRUE(refused.code() == Errc::kUnreachable || refused.code() == Errc::kTimedOut)
      << refused.status().to_string();
  EXPECT_NE(refused.status().text().find(uri_), std::string_view::npos) << refused.status().to_string();
}

INSTANTIATE_TEST_SUITE_P(Wires, BrokenWire, testing::Values(Break::kSilently, Break::kInterfaceDown),
                         [](const auto& info) {
                           return info.param == Break::kSilently ? "silently" : "interface_down";
                         });

TEST_F(Sessions, OutliveAPartitionThatHealsInTime) {
  constexpr auto kPartition = std::chrono::seconds(1);  // the fault itself, against a bound of 30 s
  Wire wire(Faults{.delay_us = 200});
  start_node("30000");
  const auto link = open_across(30'000);
  ASSERT_NE(link, nullptr);
  const uint64_t before = wire.counters().forwarded;
  const auto tickets = start_transfers(*link);
  ASSERT_TRUE(eventually([&] { return wire.counters().forwarded > before + 2'000; }));
  wire.cut();
  std::this_thread::sleep_for(kPartition);
  ASSERT_FALSE(tickets.back()->done());
  EXPECT_GT(wire.heal().cut, 0U);
  uint64_t id = 0;
  for (const auto& ticket : tickets) {
    ASSERT_TRUE(link->wait(*ticket).ok());
    ASSERT_TRUE(ticket->outcome().status.ok()) << ticket->outcome().status.to_string();
    EXPECT_TRUE(holds(ticket->outcome().fetched[0]->bytes(), ++id));
  }
  EXPECT_TRUE(link->check().ok());
  EXPECT_EQ(node_->report().sessions, 1U);
}

}  // namespace
}  // namespace genie::session

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  (void)genie::test::make_networks();
  return RUN_ALL_TESTS();
}
