// A node server and its clients in one process, so that sanitizers see both sides.
#include "src/node/server.h"

#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <array>
#include <atomic>
#include <cstring>
#include <filesystem>
#include <thread>
#include <vector>

#include "datapath/ucx/ucx_fabric.h"
#include "datapath/verbs/verbs_fabric.h"
#include "src/protocol/session_messages.h"
#include "src/session/link.h"

namespace genie::node {
namespace {

class Server : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = ::testing::TempDir() + "genie-server-XXXXXX";
    folder_ = ::mkdtemp(pattern.data());
  }
  void TearDown() override {
    server_.reset();
    std::filesystem::remove_all(folder_);
  }

  std::string uri() const { return "unix:" + folder_ + "/node.sock"; }
  void serve(uint64_t attach_timeout_ms = 10'000, const std::string& transport = "auto") {
    ServerOptions options;
    options.transport = transport;
    options.node.name = "inside";
    options.listen = {uri()};
    options.attach_timeout_ms = attach_timeout_ms;
    Result<std::unique_ptr<NodeServer>> server = NodeServer::start(std::move(options));
    ASSERT_TRUE(server.ok()) << server.status().to_string();
    server_ = std::move(*server);
  }
  std::unique_ptr<session::Link> open(const std::string& transport = "auto") const {
    session::LinkOptions options;
    options.transport = transport;
    auto link = session::Link::open(uri(), options);
    EXPECT_TRUE(link.ok()) << link.status().to_string();
    return link.ok() ? std::move(*link) : nullptr;
  }
  bool becomes_empty() const {
    const Deadline deadline = Deadline::after_ms(60'000);
    while (!deadline.expired()) {
      const control::NodeReport report = server_->report();
      if (report.sessions == 0 && report.regions == 0) return true;
      std::this_thread::yield();
    }
    return false;
  }

  std::string folder_;
  std::unique_ptr<NodeServer> server_;
};

bool carry(session::Link& link, uint32_t stream, uint64_t id, size_t size) {
  auto memory = link.begin_upload(size);
  if (!memory) return false;
  std::memset((*memory)->bytes().data(), static_cast<int>(id & 0xFF), size);
  session::Submission submission;
  submission.stream = stream;
  submission.uploads.push_back({.storage = {id, 0}, .memory = std::move(*memory)});
  submission.fetches.push_back({.storage = {id, 0}, .offset = 0, .size = size});
  submission.frees = {id - 1};
  auto ticket = link.submit(std::move(submission));
  if (!ticket || !link.wait(**ticket).ok() || !(*ticket)->outcome().status.ok()) return false;
  const auto bytes = (*ticket)->outcome().fetched[0]->bytes();
  return bytes.size() == size && bytes.back() == std::byte(id & 0xFF);
}

TEST_F(Server, MakesTheFolderOfItsSocket) {
  const std::string folder = folder_ + "/run";
  ServerOptions options;
  options.listen = {"unix:" + folder + "/node.sock"};
  const auto made = NodeServer::start(options);
  ASSERT_TRUE(made.ok()) << made.status().to_string();
  struct stat info {};
  ASSERT_EQ(::stat((folder + "/node.sock").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777U, 0600U);  // the folder lets others in, the socket does not
}

TEST_F(Server, NamesTheAddressThatItCannotListenOn) {
  ServerOptions options;
  options.listen = {"unix:" + folder_ + "/no/such/node.sock"};
  const auto missing = NodeServer::start(options);
  ASSERT_EQ(missing.code(), Errc::kIo);
  const std::string text = missing.status().to_string();
  EXPECT_NE(text.find(options.listen[0] + ": its folder"), std::string::npos) << text;
  EXPECT_NE(text.find("mkdir -p " + folder_ + "/no/such"), std::string::npos) << text;
  EXPECT_FALSE(std::filesystem::exists(folder_ + "/no"));

  serve();
  options.listen = {uri()};
  const auto taken = NodeServer::start(options);
  ASSERT_EQ(taken.code(), Errc::kAlreadyExists);
  EXPECT_TRUE(taken.status().text().starts_with(uri() + ": ")) << taken.status().to_string();
}

TEST_F(Server, ManyThreadsOfManySessions) {
  serve();
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  std::vector<std::unique_ptr<session::Link>> links;
  for (int i = 0; i < 2; ++i) links.push_back(open());
  for (uint32_t t = 0; t < 6; ++t) {
    threads.emplace_back([&, t] {
      for (uint64_t i = 1; i <= 60; ++i) {
        const uint64_t id = (static_cast<uint64_t>(t) << 32) + i;
        if (!carry(*links[t % 2], t, id, i % 20 == 0 ? 300'000 : 10 * i)) ++wrong;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
  links.clear();
  EXPECT_TRUE(becomes_empty());
}

TEST_F(Server, SessionsOfOneIdentityShareWhatTheyUpload) {
  serve();
  Node& node = server_->node();
  const auto content_of = [&](std::optional<std::string_view> identity) {
    const auto session = node.open_session(identity);
    EXPECT_TRUE(session.ok());
    const ContentAccess content = (*session)->content();
    node.close_session(*session);
    return content;
  };
  const ContentAccess first = content_of("a");
  EXPECT_NE(first.store, nullptr);
  EXPECT_EQ(content_of("a").identity, first.identity);
  EXPECT_NE(content_of("b").identity, first.identity);
  EXPECT_NE(content_of("").identity, first.identity);
  EXPECT_EQ(content_of(std::nullopt).store, nullptr);
}

class Planes : public Server {
 protected:
  void SetUp() override {
    Server::SetUp();
    if (!datapath::ucx_compiled_in()) GTEST_SKIP() << "this build has one transport only";
  }
  // A session that nobody has connected to, and its token.
  control::OpenAnswer open_only() const {
    auto client = control::ControlClient::make(uri(), "");
    EXPECT_TRUE(client.ok());
    const executor::OperatorSet operators = executor::operator_set();
    control::OpenOrder order;
    order.protocol_version = wire::kProtocolVersion;
    order.torch_version = operators.torch_version;
    order.schema_hash = operators.schema_hash;
    order.operator_count = operators.count;
    auto answer = (*client)->open(order, Deadline::after_ms(60'000));
    EXPECT_TRUE(answer.ok()) << answer.status().to_string();
    return *answer;
  }
};

TEST_F(Planes, ServeSideBySide) {
  serve(10'000, "shm,ucx");
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (uint32_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int round = 0; round < 3; ++round) {
        const auto link = open(t % 2 == 0 ? "shm" : "ucx");
        if (link == nullptr || link->node().transport != (t % 2 == 0 ? "shm" : "ucx")) ++wrong;
        for (uint64_t id = 1; link != nullptr && id <= 20; ++id) {
          if (!carry(*link, t, id, id % 10 == 0 ? 300'000 : 100 * id)) ++wrong;
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_TRUE(becomes_empty());
}

// A session opens once, whichever plane its token comes to, and however often.
TEST_F(Planes, ATokenIsGoodForOneConnection) {
  serve(10'000, "shm,ucx");
  for (int round = 0; round < 5; ++round) {
    const control::OpenAnswer answer = open_only();
    std::atomic<int> welcomed{0};
    std::vector<std::thread> threads;
    for (const control::DataOffer& offer : answer.data) {
      threads.emplace_back([&, offer] {
        auto transport = datapath::make_backend(offer.transport, {});
        ASSERT_TRUE(transport.ok());
        const Deadline deadline = Deadline::after_ms(60'000);
        if (!(*transport)->connect(offer.address, std::as_bytes(std::span(answer.data_token)), deadline)) return;
        while (!deadline.expired()) {
          std::array<datapath::Completion, 1> out;
          if ((*transport)->poll(out) == 0) continue;
          if (out[0].opcode == datapath::Opcode::kReceive) ++welcomed;
          if (out[0].opcode == datapath::Opcode::kDisconnected || out[0].opcode == datapath::Opcode::kReceive) break;
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(welcomed, 1);
  }
  EXPECT_TRUE(becomes_empty());
}

TEST_F(Planes, DrainWithASessionThatNobodyTook) {
  serve(600'000, "shm,ucx");
  const control::OpenAnswer closed = open_only();
  (void)open_only();
  server_->close(closed.session_id);
  const auto across = open("ucx");
  ASSERT_TRUE(carry(*across, 1, 1, 5000));
  EXPECT_TRUE(server_->drain(Deadline::after_ms(60'000)));
  EXPECT_EQ(server_->report().sessions, 0U);
}

TEST_F(Server, ClosingWhileOthersWait) {
  serve();
  for (int round = 0; round < 5; ++round) {
    const auto link = open();
    std::vector<std::thread> threads;
    for (uint32_t t = 0; t < 3; ++t) {
      threads.emplace_back([&, t] {
        // Until the link says that it is closed.
        for (uint64_t i = 1; carry(*link, t, (static_cast<uint64_t>(t) << 32) + i, 2000); ++i) {
        }
      });
    }
    EXPECT_TRUE(carry(*link, 9, 1ULL << 40, 100));
    link->close();
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(link->submit({}).code(), Errc::kCancelled);
  }
  EXPECT_TRUE(becomes_empty());
}

TEST_F(Server, StoppingEndsItsClients) {
  serve();
  const auto link = open();
  std::thread worker([&] {
    for (uint64_t i = 1; carry(*link, 0, i, 2000); ++i) {
    }
  });
  EXPECT_TRUE(carry(*link, 1, 1ULL << 40, 100));
  server_->stop();
  worker.join();
  // The worker may have been told before the hang-up was seen: then the submission goes out, and its wait ends with it.
  const auto ticket = link->submit({});
  const Status ended = ticket.ok() ? link->wait(**ticket) : ticket.status();
  EXPECT_EQ(ended.code(), Errc::kDisconnected) << ended.to_string();
}

TEST_F(Server, ASessionThatNeverConnectsIsDropped) {
  serve(10);
  auto client = control::ControlClient::make(uri(), "");
  ASSERT_TRUE(client.ok());
  const executor::OperatorSet mine = executor::operator_set();
  ASSERT_TRUE((*client)
                  ->open({.protocol_version = wire::kProtocolVersion,
                          .torch_version = mine.torch_version,
                          .schema_hash = mine.schema_hash},
                         Deadline::after_ms(10'000))
                  .ok());
  EXPECT_TRUE(becomes_empty());
}

// The node's part is the 72 KiB of rings and what gRPC keeps until the connection is idle for long; here both sides count,
// the rings twice.
TEST_F(Server, IdleSessionsAreCheap) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "a sanitizer's own memory is many times what is measured here";
#endif
  serve();
  const auto resident_bytes = [] {
    size_t pages = 0;
    size_t resident = 0;
    if (FILE* file = std::fopen("/proc/self/statm", "r")) {
      if (std::fscanf(file, "%zu %zu", &pages, &resident) != 2) resident = 0;
      std::fclose(file);
    }
    return resident * 4096;
  };
  std::vector<std::unique_ptr<session::Link>> links;
  for (int i = 0; i < 10; ++i) links.push_back(open());  // what is made once is there now
  const size_t before = resident_bytes();
  for (int i = 0; i < 50; ++i) links.push_back(open());
  const size_t each = (resident_bytes() - before) / 50;
  std::printf("resident bytes per idle session, client and node together: %zu\n", each);
  RecordProperty("bytes_per_idle_session", std::to_string(each));
  EXPECT_LT(each, 400'000U);
  EXPECT_EQ(server_->report().regions, 0U);
}

// More than descriptors that a process has by default; each of them is served.
TEST_F(Server, AThousandSessionsAtATime) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  constexpr size_t kSessions = 100;
#else
  constexpr size_t kSessions = 1000;
#endif
  constexpr rlim_t kDescriptorsEach = 12;  // both ends are here
  rlimit limit{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &limit), 0);
  if (limit.rlim_max < kSessions * kDescriptorsEach) {
    GTEST_SKIP() << "this system allows a process " << limit.rlim_max << " descriptors (ulimit -Hn)";
  }
  limit.rlim_cur = limit.rlim_max;
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &limit), 0);
  serve();
  std::vector<std::unique_ptr<session::Link>> links;
  while (links.size() < kSessions) {
    links.push_back(open());
    ASSERT_NE(links.back(), nullptr);
  }
  EXPECT_EQ(server_->report().sessions, kSessions);
  for (size_t i = 0; i < kSessions; ++i) ASSERT_TRUE(carry(*links[i], 0, 1, 100 + i)) << i;
  EXPECT_EQ(server_->report().sessions, kSessions);
  links.clear();
  EXPECT_TRUE(becomes_empty());
}

// On both sides: what is named must be there, and what is not named is not needed.
TEST_F(Server, AnRdmaDeviceThatIsNotThereIsNamed) {
  if (!datapath::verbs_compiled_in()) GTEST_SKIP() << "this build has no verbs";
  ServerOptions options;
  options.transport = "verbs";
  options.listen = {uri()};
  options.backend.verbs_devices = "nosuch7:1";
  const auto refused = NodeServer::start(std::move(options));
  EXPECT_EQ(refused.code(), Errc::kConfig) << refused.status().to_string();
  EXPECT_NE(refused.status().text().find("nosuch7"), std::string_view::npos) << refused.status().to_string();

  serve();
  session::LinkOptions wanting;
  wanting.rdma_devices = "nosuch7:1";
  EXPECT_TRUE(session::Link::open(uri(), wanting).ok()) << "shared memory serves both";
  wanting.transport = "verbs";
  const auto link = session::Link::open(uri(), wanting);
  ASSERT_FALSE(link.ok());
  EXPECT_NE(link.status().text().find("verbs"), std::string_view::npos) << link.status().to_string();
}

}  // namespace
}  // namespace genie::node
