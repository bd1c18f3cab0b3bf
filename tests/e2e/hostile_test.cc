// Clients that do not keep the protocol: each ends its own session, never the node, and never another session.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <random>

#include "datapath/backends.h"
#include "src/executor/executor.h"
#include "src/protocol/fragments.h"
#include "src/protocol/invocation_coder.h"
#include "src/protocol/session_messages.h"
#include "src/session/link.h"
#include "tests/e2e/node_process.h"
#include "tests/random_seed.h"

namespace genie {
namespace {

using datapath::Completion;
using datapath::Opcode;
using test::kPatienceMs;
using test::NodeProcess;

// A session opened by hand: whatever bytes we like go to the node.
class RawClient {
 public:
  explicit RawClient(const NodeProcess& node) {
    auto control = control::ControlClient::make(node.uri(), "");
    const executor::OperatorSet mine = executor::operator_set();
    auto answer = (*control)->open({.protocol_version = wire::kProtocolVersion,
                                    .torch_version = mine.torch_version,
                                    .schema_hash = mine.schema_hash},
                                   Deadline::after_ms(kPatienceMs));
    EXPECT_TRUE(answer.ok()) << answer.status().to_string();
    answer_ = std::move(*answer);
    transport_ = std::move(*datapath::make_backend("shm", {}));
  }

  bool connect() { return connect_with(answer_.data_token); }
  bool connect_with(const std::string& token) {
    const auto endpoint = transport_->connect(answer_.data.at(0).address, std::as_bytes(std::span(token)),
                                              Deadline::after_ms(kPatienceMs));
    if (!endpoint) return false;
    endpoint_ = *endpoint;
    gone_ = false;
    // The node says that the token is its own; to another it hangs up, which whoever waits for an answer sees.
    if (token == answer_.data_token) {
      const auto welcome = receive();
      return welcome && std::holds_alternative<wire::Progress>(*welcome);
    }
    return true;
  }

  // Keeps trying while the node is slow; false once the connection is gone.
  bool send(std::span<const std::byte> bytes, uint32_t tag = 0) {
    std::vector<std::byte> copy(bytes.begin(), bytes.end());
    const Deadline deadline = Deadline::after_ms(kPatienceMs);
    datapath::Buffer buffer = datapath::Buffer::borrow(copy);
    Status sent = Errc::kAgain;
    while ((sent = transport_->send(endpoint_, buffer, tag, {})).code() == Errc::kAgain && !deadline.expired())
      poll_once();
    if (!sent.ok()) return false;
    kept_.push_back(std::move(copy));  // borrowed until its completion
    poll_once();
    return !gone_;
  }
  bool send(const wire::ClientMessage& message) {
    const auto bytes = encoder_.encode(message);
    EXPECT_TRUE(bytes.ok());
    return send(*bytes);
  }

  // The next message of the node; nullopt when it has hung up.
  std::optional<wire::NodeMessage> receive() {
    const Deadline deadline = Deadline::after_ms(kPatienceMs);
    while (messages_.empty() && !gone_ && !deadline.expired()) poll_once();
    EXPECT_TRUE(!messages_.empty() || gone_) << "the node neither answered nor hung up";
    if (messages_.empty()) return std::nullopt;
    wire::NodeMessage message = std::move(messages_.front());
    messages_.erase(messages_.begin());
    return message;
  }

  // Until the node hangs up; what it said before.
  Status farewell() {
    Status last;
    while (const auto message = receive()) {
      if (const auto* farewell = std::get_if<wire::Farewell>(&*message)) last = farewell->status;
    }
    EXPECT_TRUE(gone_);
    return last;
  }

  // Memory for uploads that is not handed over yet.
  datapath::Region prepare(size_t size) {
    const auto region = transport_->prepare(endpoint_, size);
    EXPECT_TRUE(region.ok()) << region.status().to_string();
    return region.ok() ? *region : datapath::Region{};
  }
  wire::Key hand_over(const datapath::Region& region, size_t size) {
    const auto key = transport_->hand_over(region.key, size, Deadline::after_ms(kPatienceMs));
    EXPECT_TRUE(key.ok()) << key.status().to_string();
    return key.ok() ? key->bytes : wire::Key{};
  }
  wire::Key handed_over(size_t size) { return hand_over(prepare(size), size); }

  // A window, offered with `message`.
  datapath::Region window(uint32_t number, size_t size, wire::SubmissionMessage& message) {
    const auto region = transport_->allocate(endpoint_, size, Deadline::after_ms(kPatienceMs));
    EXPECT_TRUE(region.ok()) << region.status().to_string();
    if (!region.ok()) return {};
    message.window_offers.push_back({.window = number, .size = size, .key = region->remote.bytes});
    return *region;
  }

  datapath::Transport& transport() { return *transport_; }
  datapath::EndpointId endpoint() const { return endpoint_; }
  control::OpenAnswer& answer() { return answer_; }

 private:
  void poll_once() {
    std::array<Completion, 16> completions;
    const size_t count = transport_->poll(completions);
    for (size_t i = 0; i < count; ++i) {
      if (completions[i].opcode == Opcode::kDisconnected) gone_ = true;
      if (completions[i].opcode != Opcode::kReceive) continue;
      const auto whole = reassembler_.feed(completions[i].immediate, completions[i].buffer.bytes());
      ASSERT_TRUE(whole.ok());
      if (whole->empty()) continue;
      auto message = wire::decode_node_message(*whole);
      ASSERT_TRUE(message.ok());
      messages_.push_back(std::move(*message));
    }
  }

  control::OpenAnswer answer_;
  std::unique_ptr<datapath::Transport> transport_;
  datapath::EndpointId endpoint_;
  wire::Encoder encoder_;
  wire::Reassembler reassembler_;
  std::vector<wire::NodeMessage> messages_;
  std::vector<std::vector<std::byte>> kept_;
  bool gone_ = false;
};

// One node and one honest session for all attacks.
class Hostile : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    node_ = new NodeProcess();
    ASSERT_TRUE(node_->wait_ready()) << node_->errors();
    auto link = session::Link::open(node_->uri(), {});
    ASSERT_TRUE(link.ok()) << link.status().to_string();
    witness_ = std::move(*link);
  }
  static void TearDownTestSuite() {
    witness_.reset();
    EXPECT_TRUE(node_->becomes_empty());
    ASSERT_EQ(::kill(node_->pid(), SIGTERM), 0);
    EXPECT_EQ(node_->wait_exit(), 0) << node_->errors();
    delete node_;
  }
  // Whatever happened: the node lives, only the honest session is left, and it works.
  void TearDown() override {
    session::Submission submission;
    auto memory = witness_->begin_upload(1000);
    ASSERT_TRUE(memory.ok()) << memory.status().to_string();
    std::memset((*memory)->bytes().data(), 7, 1000);
    submission.uploads.push_back({.storage = {++id_, 0}, .memory = std::move(*memory)});
    submission.fetches.push_back({.storage = {id_, 0}, .offset = 0, .size = 1000});
    submission.frees = {id_ - 1};
    auto ticket = witness_->submit(std::move(submission));
    ASSERT_TRUE(ticket.ok()) << ticket.status().to_string();
    ASSERT_TRUE(witness_->wait(**ticket).ok());
    ASSERT_TRUE((*ticket)->outcome().status.ok()) << (*ticket)->outcome().status.to_string();
    EXPECT_EQ((*ticket)->outcome().fetched[0]->bytes()[999], std::byte{7});
    EXPECT_TRUE(node_->eventually([](const control::NodeReport& report) {
      return report.sessions == 1 && report.storages == 1 && report.in_flight == 0 &&
             report.regions == 2;  // for its uploads and its results
    }));
  }

  // The node must call it a violation and hang up.
  static void expect_refused(const std::function<void(RawClient&)>& attack, std::string_view wanted = "") {
    RawClient client(*node_);
    ASSERT_TRUE(client.connect());
    attack(client);
    const Status said = client.farewell();
    EXPECT_EQ(said.code(), Errc::kProtocol) << said.to_string();
    EXPECT_NE(said.text().find(wanted), std::string_view::npos) << said.to_string();
  }

  static NodeProcess* node_;
  static std::unique_ptr<session::Link> witness_;
  static uint64_t id_;
};
NodeProcess* Hostile::node_ = nullptr;
std::unique_ptr<session::Link> Hostile::witness_;
uint64_t Hostile::id_ = 1000;

std::vector<std::byte> valid_message() {
  wire::SubmissionMessage message;
  message.ticket = 1;
  message.frees = {1, 2, 3};
  message.fetches = {{.storage = {1, 0}, .offset = 0, .size = 16}};
  wire::Encoder encoder;
  const auto bytes = encoder.encode(wire::ClientMessage(message));
  return {bytes->begin(), bytes->end()};
}

TEST_F(Hostile, Garbage) {
  std::mt19937_64 random(test::random_seed());
  for (int round = 0; round < 5; ++round) {
    expect_refused([&](RawClient& client) {
      std::vector<std::byte> garbage(1 + random() % 4000);
      for (std::byte& byte : garbage) byte = std::byte(random());
      (void)client.send(garbage);
    });
  }
}

TEST_F(Hostile, ATruncatedMessage) {
  expect_refused([](RawClient& client) {
    const std::vector<std::byte> message = valid_message();
    (void)client.send(std::span(message).first(message.size() / 2));
  });
}

TEST_F(Hostile, MutatedMessagesEndInAnAnswerOrAFarewell) {
  std::mt19937_64 random(test::random_seed());
  const std::vector<std::byte> good = valid_message();
  for (int round = 0; round < 20; ++round) {
    RawClient client(*node_);
    ASSERT_TRUE(client.connect());
    bool alive = true;
    for (int i = 0; i < 50 && alive; ++i) {
      std::vector<std::byte> bad = good;
      bad[random() % bad.size()] ^= std::byte(1U << (random() % 8));
      alive = client.send(bad);
    }
  }
}

std::vector<std::byte> invoking(uint64_t ticket, std::vector<std::byte> invocation) {
  wire::SubmissionMessage message;
  message.ticket = ticket;
  message.template_id = 7;
  message.invocation = std::move(invocation);
  wire::Encoder encoder;
  const auto bytes = encoder.encode(wire::ClientMessage(message));
  return {bytes->begin(), bytes->end()};
}

// What an honest client would send of steps of 40 storages, whether there is such a template or not.
std::vector<std::byte> step_of(wire::InvocationCoder& coder, uint64_t step) {
  wire::InvocationNumbers numbers;
  for (uint64_t i = 0; i < 40; ++i) numbers.slots.push_back({.id = i * step + 1});
  std::vector<std::byte> bytes;
  coder.encode(7, numbers, bytes);
  return bytes;
}

TEST_F(Hostile, InvocationsThatCannotBeRead) {
  expect_refused([](RawClient& client) { (void)client.send(invoking(1, {})); }, "invocation");
  expect_refused(
      [](RawClient& client) {
        wire::InvocationCoder coder;
        std::vector<std::byte> cut = step_of(coder, 1);
        cut.pop_back();
        (void)client.send(invoking(1, cut));
      },
      "invocation");
  // One is left out, or comes twice.
  expect_refused(
      [](RawClient& client) {
        wire::InvocationCoder coder;
        (void)client.send(invoking(1, step_of(coder, 1)));
        (void)step_of(coder, 2);
        (void)client.send(invoking(2, step_of(coder, 3)));
      },
      "invocation");
  expect_refused(
      [](RawClient& client) {
        wire::InvocationCoder coder;
        const std::vector<std::byte> step = step_of(coder, 1);
        for (uint64_t ticket : {1, 2}) (void)client.send(invoking(ticket, step));
      },
      "invocation");
  std::mt19937_64 random(test::random_seed());
  for (int round = 0; round < 10; ++round) {
    RawClient client(*node_);
    ASSERT_TRUE(client.connect());
    wire::InvocationCoder coder;
    bool alive = true;
    for (uint64_t i = 1; i <= 50 && alive; ++i) {
      std::vector<std::byte> step = step_of(coder, i);
      if (random() % 4 == 0) step[random() % step.size()] ^= std::byte(1U << (random() % 8));
      alive = client.send(invoking(i, std::move(step)));
    }
  }
}

TEST_F(Hostile, PiecesOutOfPlace) {
  expect_refused([](RawClient& client) { (void)client.send(valid_message(), 77); }, "out of place");
  expect_refused([](RawClient& client) {
    (void)client.send(valid_message(), static_cast<uint32_t>(wire::FragmentTag::kMore));
    (void)client.send(valid_message(), static_cast<uint32_t>(wire::FragmentTag::kWhole));
  });
}

TEST_F(Hostile, AnEndlessMessage) {
  expect_refused([](RawClient& client) {
    const std::vector<std::byte> piece(client.transport().capabilities().max_send_bytes);
    for (int i = 0; i < 4096; ++i) {
      if (!client.send(piece, static_cast<uint32_t>(wire::FragmentTag::kMore))) return;
    }
  });
}

TEST_F(Hostile, MemoryThatIsNotTheirs) {
  const auto with = [](const std::function<void(RawClient&, wire::SubmissionMessage&)>& change) {
    return [change](RawClient& client) {
      wire::SubmissionMessage message;
      change(client, message);
      (void)client.send(wire::ClientMessage(message));
    };
  };
  expect_refused(with([](RawClient&, wire::SubmissionMessage& message) {
                   message.uploads = {{.storage = {1, 0}, .offset = 0, .size = 10, .region = 99}};
                 }),
                 "region that the submission does not bring");
  for (const auto& [offset, size] : {std::pair<uint64_t, uint64_t>{4000, 129}, {UINT64_MAX - 3, 8}, {0, UINT64_MAX}}) {
    expect_refused(with([&](RawClient& client, wire::SubmissionMessage& message) {
                     (void)client.window(7, 4096, message);
                     message.uploads = {{.storage = {1, 0}, .offset = offset, .size = size, .window = 7}};
                   }),
                   "beyond its window");
    expect_refused(with([&](RawClient& client, wire::SubmissionMessage& message) {
                     message.regions = {client.handed_over(4096)};
                     message.uploads = {{.storage = {1, 0}, .offset = offset / 64 * 64, .size = size, .region = 0}};
                   }),
                   "beyond its region");
  }
  expect_refused(with([](RawClient&, wire::SubmissionMessage& message) {
                   message.uploads = {{.storage = {1, 0}, .offset = 0, .size = 10, .window = 7}};
                 }),
                 "beyond its window");
  expect_refused(with([](RawClient&, wire::SubmissionMessage& message) { message.result_releases = {1}; }),
                 "does not hold");
  expect_refused([](RawClient& client) { (void)client.send(wire::ClientMessage(wire::ResultRelease{{0}})); },
                 "does not hold");
  expect_refused(with([](RawClient&, wire::SubmissionMessage& message) {
                   wire::WindowOffer offer{.window = 1, .size = 4096};
                   offer.key.fill(std::byte{0x77});
                   message.window_offers = {offer};
                 }),
                 "");
}

TEST_F(Hostile, RegionsForUploadsThatAreNotWhatTheySay) {
  const auto submit = [](RawClient& client, std::vector<wire::Key> regions, std::vector<wire::UploadEntry> uploads) {
    wire::SubmissionMessage message{.ticket = 1};
    message.regions = std::move(regions);
    message.uploads = std::move(uploads);
    (void)client.send(wire::ClientMessage(message));
  };
  expect_refused([&](RawClient& client) { submit(client, {wire::Key{}}, {}); }, "not handed over");
  expect_refused(
      [&](RawClient& client) {
        const wire::Key key = client.handed_over(4096);
        submit(client, {key, key}, {});
      },
      "not handed over");
  expect_refused(
      [&](RawClient& client) {
        const wire::Key key = client.handed_over(4096);
        submit(client, {key}, {});
        submit(client, {key}, {});
      },
      "not handed over");
  expect_refused(
      [&](RawClient& client) {
        submit(client, {client.handed_over(4096)},
               {{.storage = {1, 0}, .offset = 128, .size = 100}, {.storage = {2, 0}, .offset = 64, .size = 65}});
      },
      "overlap");
  expect_refused(
      [&](RawClient& client) {
        submit(client, {client.handed_over(4096)}, {{.storage = {1, 0}, .offset = 8, .size = 16}});
      },
      "beyond its region");
  expect_refused([&](RawClient& client) { submit(client, std::vector<wire::Key>(wire::kMaxRegions + 1), {}); },
                 "regions");
}

// Pages that were never written are the node's to find: they read as zeros and count against the quota.
TEST_F(Hostile, ARegionFullOfHoles) {
  RawClient client(*node_);
  ASSERT_TRUE(client.connect());
  const size_t size = size_t{32} << 20;
  wire::SubmissionMessage message{.ticket = 1};
  message.regions = {client.handed_over(size)};
  message.uploads = {{.storage = {1, 0}, .offset = 0, .size = size}};
  message.fetches = {{.storage = {1, 0}, .offset = size - 8, .size = 8}};
  ASSERT_TRUE(client.send(wire::ClientMessage(message)));
  const auto answer = client.receive();
  ASSERT_TRUE(answer.has_value());
  const auto& completion = std::get<wire::CompletionMessage>(*answer);
  EXPECT_TRUE(completion.status.ok()) << completion.status.to_string();
  EXPECT_EQ(completion.fetched.at(0).bytes, std::vector<std::byte>(8));
  EXPECT_TRUE(node_->eventually([&](const control::NodeReport& report) { return report.storage_bytes >= size; }));
}

// Every region is a mapping of the node, and there are so many.
TEST_F(Hostile, MoreRegionsThanASessionMayKeep) {
  RawClient client(*node_);
  ASSERT_TRUE(client.connect());
  constexpr uint64_t kKept = 4096;
  for (uint64_t i = 1; i <= kKept + 100; ++i) {
    wire::SubmissionMessage message{.ticket = i};
    message.regions = {client.handed_over(4096)};
    message.uploads = {{.storage = {i, 0}, .offset = 0, .size = 4096}};
    ASSERT_TRUE(client.send(wire::ClientMessage(message)));
    const auto answer = client.receive();
    ASSERT_TRUE(answer.has_value());
    const auto& completion = std::get<wire::CompletionMessage>(*answer);
    ASSERT_TRUE(completion.status.ok()) << completion.status.to_string();
    ASSERT_EQ(completion.upload_copied_bytes, i <= kKept ? 0U : 4096U) << i;
  }
}

TEST_F(Hostile, AnotherClientsRegion) {
  RawClient victim(*node_);
  ASSERT_TRUE(victim.connect());
  const wire::Key key = victim.handed_over(4096);
  RawClient thief(*node_);
  ASSERT_TRUE(thief.connect());
  wire::SubmissionMessage message;
  message.regions = {key};
  (void)thief.send(wire::ClientMessage(message));
  EXPECT_EQ(thief.farewell().code(), Errc::kProtocol);
}

TEST_F(Hostile, AnotherClientsKey) {
  RawClient victim(*node_);
  ASSERT_TRUE(victim.connect());
  auto region = victim.transport().allocate(victim.endpoint(), 4096, Deadline::after_ms(kPatienceMs));
  ASSERT_TRUE(region.ok()) << region.status().to_string();
  RawClient thief(*node_);
  ASSERT_TRUE(thief.connect());
  EXPECT_FALSE(thief.transport().import_region(thief.endpoint(), region->remote).ok());
  wire::SubmissionMessage message;
  message.window_offers = {{.window = 1, .size = 4096, .key = region->remote.bytes}};
  (void)thief.send(wire::ClientMessage(message));
  EXPECT_FALSE(thief.farewell().ok());
}

TEST_F(Hostile, ReleasingAResultTwiceOrAnothersResult) {
  constexpr size_t kBytes = size_t{1} << 20;
  const auto fetch = [](RawClient& client) {
    wire::SubmissionMessage message{.ticket = 1};
    (void)client.window(7, kBytes, message);
    message.uploads = {{.storage = {1, 0}, .offset = 0, .size = kBytes, .window = 7}};
    message.fetches = {{.storage = {1, 0}, .offset = 0, .size = kBytes}};
    EXPECT_TRUE(client.send(wire::ClientMessage(message)));
    const auto lent = client.receive();
    EXPECT_EQ(std::get<wire::ResultRegion>(*lent).region, 0U);
    const auto answer = client.receive();
    return std::get<wire::CompletionMessage>(*answer).fetched.at(0).result;
  };
  RawClient victim(*node_);
  ASSERT_TRUE(victim.connect());
  const uint64_t held = fetch(victim);
  expect_refused(
      [&](RawClient& client) {
        const uint64_t own = fetch(client);
        EXPECT_EQ(own, held) << "names are a session's own";
        (void)client.send(wire::ClientMessage(wire::ResultRelease{{own, own}}));
      },
      "does not hold");
  ASSERT_TRUE(victim.send(wire::ClientMessage(wire::ResultRelease{{held}})));
  wire::SubmissionMessage again{.ticket = 2};
  again.fetches = {{.storage = {1, 0}, .offset = 0, .size = kBytes}};
  ASSERT_TRUE(victim.send(wire::ClientMessage(again)));
  const auto answer = victim.receive();
  EXPECT_TRUE(std::get<wire::CompletionMessage>(*answer).status.ok());
}

// What a client may have of the node's blobs is what the node told it of.
TEST_F(Hostile, BlobsThatTheyDoNotHold) {
  constexpr size_t kBytes = size_t{2} << 20;
  const std::vector<std::byte> secret(kBytes, std::byte{0x42});
  auto brought = witness_->snapshot(
      secret, [&](std::span<std::byte> to) { std::memcpy(to.data(), secret.data(), secret.size()); });
  ASSERT_TRUE(brought.ok());
  session::Submission submission;
  submission.uploads.push_back({.storage = {++id_, 0}, .memory = std::move(*brought)});
  submission.frees = {id_ - 1};
  auto ticket = witness_->submit(std::move(submission));
  ASSERT_TRUE(ticket.ok() && witness_->wait(**ticket).ok() && (*ticket)->outcome().status.ok());

  const auto ask = [&](RawClient& client, uint64_t number) {
    EXPECT_TRUE(client.send(
        wire::ClientMessage(wire::Question{.question = number, .size = kBytes, .sketch = wire::sketch_of(secret)})));
    const auto answer = client.receive();
    return answer ? std::get<wire::Answer>(*answer).blobs : std::vector<wire::Answer::Blob>();
  };
  const auto claim = [](RawClient& client, uint64_t name, uint64_t size) {
    wire::SubmissionMessage message{.ticket = 1};
    message.uploads = {{.storage = {1, 0}, .offset = name, .size = size, .region = wire::kKnownBlob}};
    (void)client.send(wire::ClientMessage(message));
  };
  for (const uint64_t name : {uint64_t{0}, uint64_t{1}, UINT64_MAX}) {
    expect_refused([&](RawClient& client) { claim(client, name, kBytes); }, "does not hold");
  }
  expect_refused(
      [&](RawClient& client) {
        const auto blobs = ask(client, 1);
        ASSERT_EQ(blobs.size(), 1U);
        claim(client, blobs[0].name, kBytes + 4096);
      },
      "does not hold");
  expect_refused(
      [&](RawClient& client) {
        const auto blobs = ask(client, 1);
        ASSERT_EQ(blobs.size(), 1U);
        (void)client.send(wire::ClientMessage(wire::ResultRelease{{blobs[0].name}}));
        claim(client, blobs[0].name, kBytes);
      },
      "does not hold");
  // Holding it again and again, for nothing, until the session ends.
  RawClient greedy(*node_);
  ASSERT_TRUE(greedy.connect());
  size_t told = 0;
  for (uint64_t number = 1; number <= 5000; ++number) told += ask(greedy, number).size();
  EXPECT_EQ(told, 4096U) << "how many it may keep is bounded";
}

TEST_F(Hostile, KeepingEveryResult) {
  NodeProcess node({"--memory-quota", "4MiB"});
  ASSERT_TRUE(node.wait_ready()) << node.errors();
  RawClient client(node);
  ASSERT_TRUE(client.connect());
  constexpr size_t kBytes = size_t{1} << 20;
  std::vector<uint64_t> held;
  const auto fetch = [&](wire::SubmissionMessage message) {
    message.fetches = {{.storage = {1, 0}, .offset = 0, .size = kBytes}};
    EXPECT_TRUE(client.send(wire::ClientMessage(message)));
    while (const auto answer = client.receive()) {
      const auto* const done = std::get_if<wire::CompletionMessage>(&*answer);
      if (done == nullptr) continue;
      if (done->status.ok()) held.push_back(done->fetched.at(0).result);
      return done->status;
    }
    return Status(Errc::kDisconnected);
  };
  wire::SubmissionMessage first;
  (void)client.window(7, kBytes, first);
  first.uploads = {{.storage = {1, 0}, .offset = 0, .size = kBytes, .window = 7}};
  Status last = fetch(std::move(first));
  for (int i = 0; i < 20 && last.ok(); ++i) last = fetch({});
  EXPECT_EQ(last.code(), Errc::kQuotaExceeded) << last.to_string();
  EXPECT_NE(last.text().find("--memory-quota"), std::string_view::npos) << last.to_string();
  EXPECT_LE(node.report().region_bytes, 10U << 20) << "twice the quota, and the window";
  const auto other = session::Link::open(node.uri(), {});
  ASSERT_TRUE(other.ok());
  session::Submission fine;
  auto memory = (*other)->begin_upload(kBytes);
  ASSERT_TRUE(memory.ok());
  fine.uploads.push_back({.storage = {1, 0}, .memory = std::move(*memory)});
  fine.fetches.push_back({.storage = {1, 0}, .offset = 0, .size = kBytes});
  auto ticket = (*other)->submit(std::move(fine));
  ASSERT_TRUE(ticket.ok());
  ASSERT_TRUE((*other)->wait(**ticket).ok());
  EXPECT_TRUE((*ticket)->outcome().status.ok()) << "the others have their own";
  ASSERT_TRUE(client.send(wire::ClientMessage(wire::ResultRelease{held})));
  EXPECT_TRUE(fetch({}).ok());
}

TEST_F(Hostile, MoreInFlightThanAllowed) {
  expect_refused(
      [](RawClient& client) {
        // Slow ones again and again, so that the worker stays behind however slowly we get to run: each copies a window
        // several times.
        const size_t bytes = size_t{16} << 20;
        wire::SubmissionMessage first{.ticket = 1};
        (void)client.window(7, bytes, first);
        if (!client.send(wire::ClientMessage(first))) return;
        for (uint32_t i = 0; i < 4 * client.answer().in_flight_max; ++i) {
          wire::SubmissionMessage message{.ticket = i + 2};
          if (i % 32 == 0) {
            message.uploads.resize(8, {.storage = {1, 0}, .offset = 0, .size = bytes, .window = 7});
          }
          if (!client.send(wire::ClientMessage(message))) return;
        }
      },
      "in flight");
}

// A client that keeps a way to write what it hands over: here a second mapping, which makes the seal fail.
TEST_F(Hostile, RewritingAnUploadThatItStillMaps) {
  RawClient client(*node_);
  ASSERT_TRUE(client.connect());
  const size_t size = 1U << 20;
  const datapath::Region region = client.prepare(size);
  std::memset(region.data, 1, size);
  void* const kept = ::mremap(region.data, 0, size, MREMAP_MAYMOVE);  // of length 0: another mapping of the same pages
  ASSERT_NE(kept, MAP_FAILED) << std::strerror(errno);
  wire::SubmissionMessage message{.ticket = 1};
  message.regions = {client.hand_over(region, size)};
  message.uploads = {{.storage = {1, 0}, .offset = 0, .size = size / 2},
                     {.storage = {2, 0}, .offset = size / 2, .size = size / 2}};
  ASSERT_TRUE(client.send(wire::ClientMessage(message)));
  const auto first = client.receive();
  ASSERT_TRUE(first.has_value());
  // The node saw that and made copies.
  EXPECT_EQ(std::get<wire::CompletionMessage>(*first).upload_copied_bytes, size);
  std::memset(kept, 2, size);
  wire::SubmissionMessage fetch{.ticket = 2};
  fetch.fetches = {{.storage = {1, 0}, .offset = 0, .size = 8}, {.storage = {2, 0}, .offset = size / 2 - 8, .size = 8}};
  ASSERT_TRUE(client.send(wire::ClientMessage(fetch)));
  const auto second = client.receive();
  ASSERT_TRUE(second.has_value());
  for (const wire::FetchedEntry& fetched : std::get<wire::CompletionMessage>(*second).fetched) {
    EXPECT_EQ(fetched.bytes, std::vector<std::byte>(8, std::byte{1}));
  }
  ::munmap(kept, size);
}

// What the seals are for: a file that shrinks under the node would end it with SIGBUS.
TEST_F(Hostile, TruncatingASharedRegion) {
  RawClient client(*node_);
  ASSERT_TRUE(client.connect());
  const size_t size = 1U << 20;
  wire::SubmissionMessage message{.ticket = 1};
  const datapath::Region window = client.window(7, size, message);
  const datapath::Region region = client.prepare(size);
  for (const std::byte* mapped : {window.data, region.data}) {
    const auto begin = reinterpret_cast<uintptr_t>(mapped);
    char path[128];
    std::snprintf(path, sizeof(path), "/proc/self/map_files/%lx-%lx", begin, begin + size);
    const int fd = ::open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) GTEST_SKIP() << "only a privileged process can open its own mappings: " << std::strerror(errno);
    EXPECT_NE(::ftruncate(fd, 0), 0);
    EXPECT_EQ(errno, EPERM);
    ::close(fd);
  }
  message.regions = {client.hand_over(region, size)};
  message.uploads = {{.storage = {1, 0}, .offset = 0, .size = size, .window = 7},
                     {.storage = {2, 0}, .offset = 0, .size = size}};
  ASSERT_TRUE(client.send(wire::ClientMessage(message)));
  const auto answer = client.receive();
  ASSERT_TRUE(answer.has_value());
  EXPECT_TRUE(std::get<wire::CompletionMessage>(*answer).status.ok());
}

TEST_F(Hostile, ADataConnectionWithoutASession) {
  RawClient client(*node_);
  ASSERT_TRUE(client.connect_with("not the token"));
  EXPECT_TRUE(client.farewell().ok());  // just hung up
  RawClient honest(*node_);
  ASSERT_TRUE(honest.connect());
  RawClient twice(*node_);
  ASSERT_TRUE(twice.connect_with(honest.answer().data_token));  // a token is good once
  EXPECT_TRUE(twice.farewell().ok());
  ASSERT_TRUE(twice.connect());
}

TEST_F(Hostile, SessionIdsAreNotGuessed) {
  auto control = control::ControlClient::make(node_->uri(), "");
  const std::vector<std::byte> bytes(100);
  EXPECT_EQ((*control)->register_template("1", bytes, {}, Deadline::after_ms(kPatienceMs)).code(), Errc::kNotFound);
  EXPECT_TRUE((*control)->close("1", Deadline::after_ms(kPatienceMs)).ok());
}

}  // namespace
}  // namespace genie
