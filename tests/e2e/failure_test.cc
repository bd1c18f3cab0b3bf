// What goes wrong between a client and its node, with real processes: a clear error at the right place, nothing left
// behind, nobody else harmed.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <thread>
#include <vector>

#include "src/executor/executor.h"
#include "src/protocol/session_messages.h"
#include "tests/e2e/node_process.h"
#include "tests/e2e/template_builder.h"
#include "tests/link_steps.h"

namespace genie::session {
namespace {

using test::kPatienceMs;
using test::NodeProcess;

constexpr int64_t kElements = 1 << 20;
constexpr size_t kBytes = kElements * sizeof(float);

std::unique_ptr<Link> open(const NodeProcess& node, const LinkOptions& options = {}) {
  return open_link(node.uri(), options);
}

// One float vector as storage 1, another as storage 2; both zero.
void upload_operands(Link& link) {
  Submission submission;
  submission.uploads.push_back(filled(link, 1, kBytes, 0));
  submission.uploads.push_back(filled(link, 2, kBytes, 0));
  EXPECT_TRUE(submit(link, std::move(submission))->outcome().status.ok());
}

Submission step(uint64_t template_id, uint32_t version) {
  Submission submission;
  submission.template_id = template_id;
  submission.slots = {{.id = 1, .version_in = version, .version_out = version + 1, .size_bytes = 0},
                      {.id = 2, .version_in = 0, .version_out = 0, .size_bytes = 0}};
  return submission;
}

// A whole session that must work whatever happens to others.
void expect_works(Link& link, uint64_t id) {
  Submission submission;
  submission.uploads.push_back(filled(link, id, 1000, 7));
  submission.fetches.push_back({.storage = {id, 0}, .offset = 0, .size = 1000});
  submission.frees = {id - 1};
  const auto ticket = submit(link, std::move(submission));
  ASSERT_TRUE(ticket->outcome().status.ok()) << ticket->outcome().status.to_string();
  EXPECT_EQ(ticket->outcome().fetched[0]->bytes()[999], std::byte{7});
}

TEST(Failure, ANodeThatIsNotThere) {
  const auto link = Link::open("unix:/tmp/nobody-listens-here.sock", {});
  ASSERT_FALSE(link.ok());
  EXPECT_EQ(link.code(), Errc::kUnreachable);
  EXPECT_NE(link.status().text().find("unix:/tmp/nobody-listens-here.sock"), std::string_view::npos);
  EXPECT_NE(link.status().text().find("start genie-node"), std::string_view::npos);
}

TEST(Failure, VersionsAreCompared) {
  NodeProcess node({"--name", "alpha"});
  ASSERT_TRUE(node.wait_ready()) << node.errors();
  auto client = control::ControlClient::make(node.uri(), "");
  ASSERT_TRUE(client.ok());
  const executor::OperatorSet mine = executor::operator_set();
  const control::OpenOrder good{.protocol_version = wire::kProtocolVersion,
                                .genie_version = "0.1.0",
                                .torch_version = mine.torch_version,
                                .schema_hash = mine.schema_hash,
                                .operator_count = mine.count};
  const auto refused = [&](const control::OpenOrder& order) {
    const auto answer = (*client)->open(order, Deadline::after_ms(kPatienceMs));
    EXPECT_EQ(answer.code(), Errc::kVersionMismatch);
    EXPECT_NE(answer.status().text().find("node 'alpha'"), std::string_view::npos) << answer.status().to_string();
    return std::string(answer.status().text());
  };
  control::OpenOrder order = good;
  order.torch_version = "1.13.1";
  const std::string torch = refused(order);
  EXPECT_NE(torch.find("libtorch " + mine.torch_version), std::string::npos) << torch;
  EXPECT_NE(torch.find("1.13.1"), std::string::npos) << torch;
  order = good;
  ++order.protocol_version;
  EXPECT_NE(refused(order).find("protocol"), std::string::npos);
  order = good;
  ++order.schema_hash;
  EXPECT_NE(refused(order).find("operators"), std::string::npos);
  order = good;
  order.transport = "ucx";
  EXPECT_EQ((*client)->open(order, Deadline::after_ms(kPatienceMs)).code(), Errc::kUnsupported);
  EXPECT_TRUE((*client)->open(good, Deadline::after_ms(kPatienceMs)).ok());
  // That session never connects to the data endpoint, and does not stay.
  EXPECT_TRUE(node.becomes_empty());
}

TEST(Failure, ABadLineOfTheConfiguration) {
  const auto run = [](const std::string& text) {
    std::string path = (std::filesystem::temp_directory_path() / "genie-config-XXXXXX").string();
    const int fd = ::mkstemp(path.data());
    ::close(fd);
    std::ofstream(path) << text;
    NodeProcess node({"--config", path}, false);
    EXPECT_EQ(node.wait_exit(), 2);
    std::filesystem::remove(path);
    const size_t at = node.errors().find(path);
    return at == std::string::npos ? node.errors() : node.errors().substr(at + path.size());
  };
  EXPECT_EQ(run("name: a\nlisten: unix:/tmp/x\npolling: sometimes\n"),
            ":3: polling: 'sometimes' is wrong; allowed: adaptive, busy\n");
  EXPECT_EQ(run("name: a\nthraeds: 3\n").find(":2: unknown key 'thraeds'; allowed: name, listen,"), 0U);
  EXPECT_EQ(run("listen:\n  - unix:/tmp/x\n  - http://y\n"),
            ":3: listen: 'http://y' is wrong; allowed: unix:/path.sock, tcp://host:port\n");
  EXPECT_EQ(run("memory_quota: lots\n").find(":1: memory_quota: 'lots' is wrong"), 0U);
  EXPECT_EQ(run("listen: unix:/tmp/x\n transport: {\n").find(":"), 0U);
  EXPECT_EQ(run("transport: dpdk\n").find(":1: transport: transport 'dpdk' is not compiled in: use shm"), 0U);
  EXPECT_EQ(run("device: cuda:0\n").find(":1: device: 'cuda:0' is not compiled into this node"), 0U);
}

TEST(Failure, WrongFlagsAndAddresses) {
  EXPECT_EQ(NodeProcess({"--no-such-flag"}).wait_exit(), 2);
  EXPECT_EQ(NodeProcess({}, false).wait_exit(), 2);
  EXPECT_EQ(NodeProcess({"--threads", "many"}).wait_exit(), 2);
  EXPECT_EQ(NodeProcess({"--token-file", "/no/such/file"}).wait_exit(), 2);
  EXPECT_EQ(NodeProcess({"--listen", "unix:/no/such/folder/node.sock"}, false).wait_exit(), 3);
  EXPECT_EQ(NodeProcess({"--help"}).wait_exit(), 0);
}

TEST(Failure, ASecondNodeDoesNotTakeTheFirstsAddress) {
  NodeProcess first;
  ASSERT_TRUE(first.wait_ready()) << first.errors();
  NodeProcess second({"--listen", first.uri()}, false);
  EXPECT_EQ(second.wait_exit(), 3);
  EXPECT_TRUE(open(first) != nullptr);
}

TEST(Failure, TheTokenIsWanted) {
  std::string path = (std::filesystem::temp_directory_path() / "genie-token-XXXXXX").string();
  ::close(::mkstemp(path.data()));
  std::ofstream(path) << "sesame\n";
  NodeProcess node({"--token-file", path});
  ASSERT_TRUE(node.wait_ready()) << node.errors();
  EXPECT_EQ(Link::open(node.uri(), {}).code(), Errc::kUnauthenticated);
  EXPECT_EQ(Link::open(node.uri(), {.token = "sesam"}).code(), Errc::kUnauthenticated);
  EXPECT_TRUE(Link::open(node.uri(), {.token = "sesame"}).ok());
  std::filesystem::remove(path);
}

TEST(Failure, QuotaExceeded) {
  NodeProcess node({"--memory-quota", "8MiB", "--name", "small"});
  ASSERT_TRUE(node.wait_ready()) << node.errors();
  const auto link = open(node);
  const auto too_large = link->begin_upload(9U << 20);
  EXPECT_EQ(too_large.code(), Errc::kQuotaExceeded);
  EXPECT_NE(too_large.status().text().find("node 'small'"), std::string_view::npos) << too_large.status().to_string();
  EXPECT_NE(too_large.status().text().find("--memory-quota"), std::string_view::npos);
  constexpr size_t kSize = 3'500'000;
  for (uint64_t id = 1; id <= 2; ++id) {
    Submission fits;
    fits.uploads.push_back(filled(*link, id, kSize, 1));
    EXPECT_TRUE(submit(*link, std::move(fits))->outcome().status.ok());
  }
  Submission third;
  third.uploads.push_back(filled(*link, 3, kSize, 3));
  third.fetches.push_back({.storage = {3, 0}, .offset = 0, .size = kSize});
  const auto refused = submit(*link, std::move(third));
  EXPECT_EQ(refused->outcome().status.code(), Errc::kQuotaExceeded) << refused->outcome().status.to_string();
  EXPECT_NE(refused->outcome().status.text().find("--memory-quota"), std::string_view::npos);
  EXPECT_EQ(refused->outcome().fetch_status[0].code(), Errc::kPoisoned);
  Submission room;
  room.frees = {1, 3};
  room.uploads.push_back(filled(*link, 4, kSize, 4));
  room.fetches.push_back({.storage = {4, 0}, .offset = 0, .size = kSize});
  EXPECT_TRUE(submit(*link, std::move(room))->outcome().status.ok());
}

TEST(Failure, TemplatesAreForgottenOnlyWhenTheClientSaysSo) {
  NodeProcess node({"--max-templates", "2"});
  ASSERT_TRUE(node.wait_ready()) << node.errors();
  const auto link = open(node);
  EXPECT_EQ(link->node().templates_max, 2U);
  const auto first = link->register_template(test::add_template(1, kElements));
  const auto second = link->register_template(test::add_template(2, kElements));
  ASSERT_TRUE(first.ok() && second.ok());
  const auto refused = link->register_template(test::add_template(3, kElements));
  EXPECT_EQ(refused.code(), Errc::kQuotaExceeded) << refused.status().to_string();
  // An id that nobody has is no error: the client may say it twice.
  const auto third = link->register_template(test::add_template(3, kElements), std::vector<uint64_t>{*first, 99});
  ASSERT_TRUE(third.ok()) << third.status().to_string();
  upload_operands(*link);
  EXPECT_EQ(submit(*link, step(*first, 0))->outcome().status.code(), Errc::kNotFound);
  EXPECT_TRUE(node.eventually([](const control::NodeReport& report) { return report.templates == 2; }));
}

TEST(Failure, TooManySessions) {
  NodeProcess node({"--max-sessions", "1"});
  ASSERT_TRUE(node.wait_ready()) << node.errors();
  auto first = open(node);
  EXPECT_EQ(Link::open(node.uri(), {}).code(), Errc::kQuotaExceeded);
  first.reset();
  EXPECT_TRUE(node.becomes_empty());
  EXPECT_NE(open(node), nullptr);
}

TEST(Failure, AnOperatorThatTheNodeDoesNotHave) {
  NodeProcess node;
  ASSERT_TRUE(node.wait_ready()) << node.errors();
  const auto link = open(node);
  const auto id = link->register_template(test::unknown_operator_template());
  EXPECT_EQ(id.code(), Errc::kNotFound);
  EXPECT_NE(id.status().text().find("nobody::does_this"), std::string_view::npos) << id.status().to_string();
  const std::vector<std::byte> garbage(1000, std::byte{0x5A});
  EXPECT_EQ(link->register_template(garbage).code(), Errc::kProtocol);
  expect_works(*link, 10);
}

TEST(Failure, AnOperatorThatFailsOnTheNode) {
  NodeProcess node({"--name", "beta"});
  ASSERT_TRUE(node.wait_ready()) << node.errors();
  const auto link = open(node);
  upload_operands(*link);
  const auto id = link->register_template(test::add_template(3, kElements));
  ASSERT_TRUE(id.ok()) << id.status().to_string();

  Submission bad = step(*id, 0);
  bad.stream = 1;
  bad.epoch = 1;
  bad.param_index = {7};  // the third record's other operand: sizes that do not fit together
  bad.param_value = {3};
  bad.fetches.push_back({.storage = {2, 0}, .offset = 0, .size = 16});
  bad.fetches.push_back({.storage = {1, 1}, .offset = 0, .size = 16});
  const auto failed = submit(*link, std::move(bad));
  const Outcome& outcome = failed->outcome();
  EXPECT_EQ(outcome.status.code(), Errc::kOpFailed) << outcome.status.to_string();
  EXPECT_EQ(outcome.failed_record, 2);
  EXPECT_NE(outcome.status.text().find("node 'beta' (cpu)"), std::string_view::npos) << outcome.status.to_string();
  EXPECT_NE(outcome.status.text().find("add_"), std::string_view::npos) << outcome.status.to_string();
  EXPECT_TRUE(outcome.fetch_status[0].ok()) << outcome.fetch_status[0].to_string();
  EXPECT_FALSE(outcome.fetch_status[1].ok());  // with the original error
  EXPECT_NE(outcome.fetch_status[1].text().find("add_"), std::string_view::npos) << outcome.fetch_status[1].to_string();

  // The same epoch is not run any more, another stream and the next epoch are.
  Submission later = step(*id, 1);
  later.stream = 1;
  later.epoch = 1;
  const auto skipped = submit(*link, std::move(later));
  EXPECT_EQ(skipped->outcome().status.code(), Errc::kPoisoned);
  EXPECT_EQ(skipped->outcome().executed_records, 0U);
  EXPECT_NE(skipped->outcome().status.text().find("add_"), std::string_view::npos)
      << skipped->outcome().status.to_string();
  Submission fresh;
  fresh.stream = 1;
  fresh.epoch = 2;
  fresh.frees = {1};
  fresh.uploads.push_back(filled(*link, 3, kBytes, 0));
  fresh.template_id = *id;
  fresh.slots = {{.id = 3, .version_in = 0, .version_out = 1, .size_bytes = 0},
                 {.id = 2, .version_in = 0, .version_out = 0, .size_bytes = 0}};
  const auto again = submit(*link, std::move(fresh));
  EXPECT_TRUE(again->outcome().status.ok()) << again->outcome().status.to_string();
  EXPECT_EQ(again->outcome().executed_records, 3U);
  expect_works(*link, 10);
}

TEST(Failure, AClientIsKilledDuringAStep) {
  NodeProcess node;
  ASSERT_TRUE(node.wait_ready()) << node.errors();
  const auto witness = open(node);
  expect_works(*witness, 10);
  int ends[2];
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  std::string program = GENIE_E2E_CLIENT;
  std::string uri = node.uri();
  char* const arguments[] = {program.data(), uri.data(), nullptr};
  const pid_t client = ::fork();
  if (client == 0) {
    ::dup2(ends[1], STDOUT_FILENO);
    ::execv(program.c_str(), arguments);
    ::_exit(127);
  }
  ::close(ends[1]);
  char going[6] = {};
  ASSERT_EQ(::read(ends[0], going, sizeof(going)), 6);
  ::close(ends[0]);
  const control::NodeReport during = node.report();
  EXPECT_EQ(during.sessions, 2U);
  EXPECT_EQ(during.templates, 1U);
  EXPECT_GE(during.regions, 1U);
  ASSERT_EQ(::kill(client, SIGKILL), 0);
  int status = 0;
  ASSERT_EQ(::waitpid(client, &status, 0), client);
  EXPECT_TRUE(node.eventually([](const control::NodeReport& report) {
    return report.sessions == 1 && report.templates == 0 && report.in_flight == 0 && report.storages == 1;
  }));
  expect_works(*witness, 11);
  EXPECT_EQ(node.report().regions, 2U);  // for the witness's uploads and results
}

TEST(Failure, TheNodeIsKilledDuringAStep) {
  NodeProcess node({"--name", "gamma"});
  ASSERT_TRUE(node.wait_ready()) << node.errors();
  const auto link = open(node);
  upload_operands(*link);
  const auto id = link->register_template(test::add_template(5000, kElements));
  ASSERT_TRUE(id.ok()) << id.status().to_string();
  std::vector<std::shared_ptr<Ticket>> tickets;
  for (uint32_t i = 0; i < 5; ++i) {
    Submission submission = step(*id, i);
    submission.fetches.push_back({.storage = {1, i + 1}, .offset = 0, .size = 1000});
    auto ticket = link->submit(std::move(submission));
    ASSERT_TRUE(ticket.ok());
    tickets.push_back(std::move(*ticket));
  }
  ASSERT_TRUE(node.eventually([](const control::NodeReport& report) { return report.in_flight == 5; }));
  std::thread killer([&] { node.signal(SIGKILL); });
  for (const auto& ticket : tickets) {
    EXPECT_TRUE(link->wait(*ticket).ok());
    const Outcome& outcome = ticket->outcome();
    EXPECT_EQ(outcome.status.code(), Errc::kDisconnected);
    EXPECT_NE(outcome.status.text().find("node 'gamma' at " + node.uri()), std::string_view::npos)
        << outcome.status.to_string();
    ASSERT_EQ(outcome.fetch_status.size(), 1U);
    EXPECT_EQ(outcome.fetch_status[0].code(), Errc::kDisconnected);
  }
  killer.join();
  EXPECT_EQ(link->submit({}).code(), Errc::kDisconnected);
  EXPECT_EQ(link->begin_upload(10).code(), Errc::kDisconnected);
  EXPECT_EQ(link->begin_upload(1U << 20).code(), Errc::kDisconnected);
  EXPECT_EQ(link->register_template(test::add_template(1, 1)).code(), Errc::kDisconnected);
}

TEST(Failure, AStoppedNodeIsATimeOut) {
  NodeProcess node({"--name", "delta"});
  ASSERT_TRUE(node.wait_ready()) << node.errors();
  const auto link = open(node, {.progress_timeout_ms = 300});
  expect_works(*link, 10);
  node.stop();
  auto ticket = link->submit({});
  ASSERT_TRUE(ticket.ok());
  const Status waited = link->wait(**ticket);
  EXPECT_EQ(waited.code(), Errc::kTimedOut);
  EXPECT_NE(waited.text().find("node 'delta'"), std::string_view::npos) << waited.to_string();
  EXPECT_EQ(link->register_template(test::add_template(1, 1)).code(), Errc::kTimedOut);
  EXPECT_TRUE(link->begin_upload(1U << 20).ok()) << "memory for uploads needs nobody's help";
  node.signal(SIGCONT);
  // Nothing is lost: the node answers when it goes on.
  const Deadline deadline = Deadline::after_ms(kPatienceMs);
  Status later = Errc::kTimedOut;
  while (later.code() == Errc::kTimedOut && !deadline.expired()) later = link->wait(**ticket);
  EXPECT_TRUE(later.ok()) << later.to_string();
  EXPECT_TRUE((*ticket)->outcome().status.ok());
  expect_works(*link, 11);
}

TEST(Failure, ALongStepIsNoTimeOutWhileItMoves) {
  NodeProcess node;
  ASSERT_TRUE(node.wait_ready()) << node.errors();
  const auto link = open(node, {.progress_timeout_ms = 2500});
  upload_operands(*link);
  const auto id = link->register_template(test::add_template(10'000, kElements));
  ASSERT_TRUE(id.ok());
  const auto ticket = submit(*link, step(*id, 0));
  EXPECT_TRUE(ticket->outcome().status.ok()) << ticket->outcome().status.to_string();
  EXPECT_EQ(ticket->outcome().executed_records, 10'000U);
}

TEST(Failure, TermDrains) {
  NodeProcess node({"--name", "epsilon"});
  ASSERT_TRUE(node.wait_ready()) << node.errors();
  const auto link = open(node);
  upload_operands(*link);
  const auto id = link->register_template(test::add_template(300, kElements));
  ASSERT_TRUE(id.ok());
  auto ticket = link->submit(step(*id, 0));
  ASSERT_TRUE(ticket.ok());
  ASSERT_TRUE(node.eventually([](const control::NodeReport& report) { return report.in_flight == 1; }));
  node.signal(SIGTERM);
  ASSERT_TRUE(link->wait(**ticket).ok());
  EXPECT_TRUE((*ticket)->outcome().status.ok()) << (*ticket)->outcome().status.to_string();
  EXPECT_EQ((*ticket)->outcome().executed_records, 300U);
  EXPECT_EQ(node.wait_exit(), 0) << node.errors();
  link->poll();
  const auto refused = link->submit({});
  EXPECT_EQ(refused.code(), Errc::kDisconnected);
  EXPECT_NE(refused.status().text().find("shutting down"), std::string_view::npos) << refused.status().to_string();
}

}  // namespace
}  // namespace genie::session
