// The control plane over real sockets, with a handler that only records.
#include "src/control/control.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <mutex>
#include <vector>

#include "src/control/token.h"

namespace genie::control {
namespace {

class TokenFile : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = ::testing::TempDir() + "genie-token-XXXXXX";
    folder_ = ::mkdtemp(pattern.data());
    ::unsetenv("GENIE_TOKEN_FILE");
  }
  void TearDown() override {
    ::unsetenv("GENIE_TOKEN_FILE");
    std::filesystem::remove_all(folder_);
  }
  std::string write(const std::string& text) const {
    std::ofstream(folder_ + "/token") << text;
    return folder_ + "/token";
  }

  std::string folder_;
};

TEST_F(TokenFile, HoldsOneLine) {
  for (const char* text : {"secret", "secret\n", "secret\r\n"}) {
    const auto token = read_token_file(write(text));
    ASSERT_TRUE(token.ok()) << token.status().to_string();
    EXPECT_EQ(*token, "secret");
  }
  EXPECT_EQ(read_token_file(write(std::string(4096, 'x') + "\n"))->size(), 4096U);
  for (const std::string& text :
       {std::string(), std::string("\n"), std::string("two\nlines\n"), std::string(4097, 'x')}) {
    EXPECT_EQ(read_token_file(write(text)).code(), Errc::kConfig) << text.size();
  }
  EXPECT_EQ(read_token_file(folder_).code(), Errc::kConfig);
  const auto missing = read_token_file(folder_ + "/none");
  EXPECT_EQ(missing.code(), Errc::kConfig);
  EXPECT_NE(missing.status().text().find(folder_ + "/none"), std::string_view::npos);
}

TEST_F(TokenFile, OfTheEnvironmentCountsWhereNoTokenIsGiven) {
  EXPECT_EQ(*token_or_environment(""), "");
  ::setenv("GENIE_TOKEN_FILE", write("secret\n").c_str(), 1);
  EXPECT_EQ(*token_or_environment(""), "secret");
  EXPECT_EQ(*token_or_environment("given"), "given");
  ::setenv("GENIE_TOKEN_FILE", (folder_ + "/none").c_str(), 1);
  const auto missing = token_or_environment("");
  EXPECT_EQ(missing.code(), Errc::kConfig);
  EXPECT_NE(missing.status().text().find("GENIE_TOKEN_FILE"), std::string_view::npos);
  EXPECT_EQ(*token_or_environment("given"), "given");
}

class Recorder final : public ControlHandler {
 public:
  Result<OpenAnswer> open(const OpenOrder& order, std::string_view identity) override {
    if (order.torch_version != "2.13.0") {
      return Status(Errc::kVersionMismatch, "node 'n' runs libtorch 2.13.0, this program " + order.torch_version);
    }
    if (order.client_name == "throws") throw std::runtime_error("thrown by the handler");
    identities.emplace_back(identity);
    OpenAnswer answer;
    answer.session_id = std::string("\0id\xFF", 4);
    answer.node_name = "n";
    answer.devices = {{.kind = "cpu", .threads = 3, .memory_bytes = 5}};
    answer.data = {{"shm", "unix:/somewhere"}, {"ucx", "tcp://10.0.0.1:7"}};
    answer.host_id = "a host";
    answer.data_token = "secret";
    answer.in_flight_max = 9;
    answer.templates_max = 10;
    answer.template_bytes_max = 11;
    return answer;
  }
  void close(std::string_view session_id) override { closed.emplace_back(session_id); }
  Result<uint64_t> register_template(std::string_view, std::span<const std::byte> serialized,
                                     std::span<const uint64_t> forget) override {
    forgotten.assign(forget.begin(), forget.end());
    if (serialized.empty()) return Status(Errc::kNotFound, std::string(100'000, 'x'));
    return serialized.size();
  }
  NodeReport report() override { return {.node_name = "n", .draining = true, .sessions = 4, .records_executed = 7}; }

  std::vector<std::string> closed;
  std::vector<std::string> identities;
  std::vector<uint64_t> forgotten;
};

class Control : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = ::testing::TempDir() + "genie-control-XXXXXX";
    folder_ = ::mkdtemp(pattern.data());
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::unique_ptr<ControlServer> serve(const std::string& uri, const std::string& token = "") {
    Result<std::unique_ptr<ControlServer>> server = ControlServer::start({.listen = {uri}, .token = token}, handler_);
    EXPECT_TRUE(server.ok()) << server.status().to_string();
    return std::move(*server);
  }
  static std::unique_ptr<ControlClient> client(const std::string& uri, const std::string& token = "") {
    Result<std::unique_ptr<ControlClient>> client = ControlClient::make(uri, token);
    EXPECT_TRUE(client.ok()) << client.status().to_string();
    return std::move(*client);
  }
  static Deadline soon() { return Deadline::after_ms(20'000); }

  std::string folder_;
  Recorder handler_;
};

TEST_F(Control, CallsTravelOverAUnixSocket) {
  const std::string path = folder_ + "/node.sock";
  const auto server = serve("unix:" + path);
  struct stat info {};
  ASSERT_EQ(::stat(path.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777U, 0600U);

  const auto peer = client("unix:" + path);
  const auto answer = peer->open({.torch_version = "2.13.0"}, soon());
  ASSERT_TRUE(answer.ok()) << answer.status().to_string();
  EXPECT_EQ(answer->session_id, std::string("\0id\xFF", 4));
  EXPECT_EQ(answer->devices.at(0).threads, 3U);
  EXPECT_EQ(answer->in_flight_max, 9U);
  EXPECT_EQ(answer->templates_max, 10U);
  EXPECT_EQ(answer->template_bytes_max, 11U);
  EXPECT_EQ(answer->data_token, "secret");
  ASSERT_EQ(answer->data.size(), 2U);
  EXPECT_EQ(answer->data[1].transport, "ucx");
  EXPECT_EQ(answer->data[1].address, "tcp://10.0.0.1:7");
  EXPECT_EQ(answer->host_id, "a host");
  const std::vector<std::byte> bytes(size_t{5} << 20);
  EXPECT_EQ(peer->register_template("id", bytes, std::vector<uint64_t>{5, 6}, soon()).value(), bytes.size());
  EXPECT_EQ(handler_.identities.at(0), "") << "nobody had to prove anything";
  EXPECT_EQ(handler_.forgotten, (std::vector<uint64_t>{5, 6}));
  EXPECT_TRUE(peer->close("id", soon()).ok());
  EXPECT_EQ(handler_.closed, std::vector<std::string>{"id"});
  const auto report = peer->report(soon());
  ASSERT_TRUE(report.ok());
  EXPECT_EQ(report->sessions, 4U);
  EXPECT_TRUE(report->draining);
  EXPECT_EQ(report->records_executed, 7U);
}

TEST_F(Control, CallsTravelOverTcp) {
  const auto server = serve("tcp://127.0.0.1:0");
  ASSERT_EQ(server->addresses().size(), 1U);
  EXPECT_NE(server->addresses()[0], "tcp://127.0.0.1:0");
  EXPECT_TRUE(client(server->addresses()[0])->report(soon()).ok());
}

TEST_F(Control, ErrorsKeepTheirCodeAndText) {
  const auto server = serve("unix:" + folder_ + "/node.sock");
  const auto peer = client("unix:" + folder_ + "/node.sock");
  const auto answer = peer->open({.torch_version = "1.0"}, soon());
  EXPECT_EQ(answer.code(), Errc::kVersionMismatch);
  EXPECT_EQ(answer.status().text(), "node 'n' runs libtorch 2.13.0, this program 1.0");
  const auto thrown = peer->open({.torch_version = "2.13.0", .client_name = "throws"}, soon());
  EXPECT_EQ(thrown.code(), Errc::kInternal);
  const auto long_text = peer->register_template("id", {}, {}, soon());
  EXPECT_EQ(long_text.code(), Errc::kNotFound);
  EXPECT_GT(long_text.status().text().size(), 1000U);
  const std::vector<std::byte> huge(kMaxTemplateBytes + 1);
  EXPECT_EQ(peer->register_template("id", huge, {}, soon()).code(), Errc::kQuotaExceeded);
}

TEST_F(Control, WantsItsToken) {
  const std::string uri = "unix:" + folder_ + "/node.sock";
  const auto server = serve(uri, "sesame");
  EXPECT_EQ(client(uri)->report(soon()).code(), Errc::kUnauthenticated);
  EXPECT_EQ(client(uri, "sesam")->report(soon()).code(), Errc::kUnauthenticated);
  EXPECT_EQ(client(uri, "sesamee")->report(soon()).code(), Errc::kUnauthenticated);
  EXPECT_TRUE(client(uri, "sesame")->report(soon()).ok());
  // Load balancers ask for the health without one.
  EXPECT_TRUE(client(uri)->healthy(soon()).value());
}

TEST_F(Control, HealthFollowsServing) {
  const std::string uri = "unix:" + folder_ + "/node.sock";
  const auto server = serve(uri);
  EXPECT_TRUE(client(uri)->healthy(soon()).value());
  server->set_serving(false);
  EXPECT_FALSE(client(uri)->healthy(soon()).value());
}

TEST_F(Control, NobodyThereIsSaidSoon) {
  const auto answer = client("unix:" + folder_ + "/nobody.sock")->report(soon());
  EXPECT_EQ(answer.code(), Errc::kUnreachable);
  EXPECT_NE(answer.status().text().find("start genie-node"), std::string_view::npos) << answer.status().to_string();
  EXPECT_EQ(ControlClient::make("http://x", "").code(), Errc::kInvalidArgument);
  EXPECT_EQ(ControlClient::make("unix:" + std::string(200, 'x'), "").code(), Errc::kInvalidArgument);
}

TEST_F(Control, DoesNotTakeALiveNodesSocket) {
  const std::string uri = "unix:" + folder_ + "/node.sock";
  const auto server = serve(uri);
  EXPECT_EQ(ControlServer::start({.listen = {uri}}, handler_).code(), Errc::kAlreadyExists);
  EXPECT_TRUE(client(uri)->report(soon()).ok());
  EXPECT_EQ(ControlServer::start({.listen = {"unix:" + folder_ + "/missing/node.sock"}}, handler_).code(), Errc::kIo);
  EXPECT_EQ(ControlServer::start({.listen = {}}, handler_).code(), Errc::kConfig);
}

}  // namespace
}  // namespace genie::control
