// A peer that speaks the engine's protocol wrongly, over a real socket, to a listener over real UCX.
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <array>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "datapath/memory/remote_key.h"
#include "datapath/net/control_socket.h"
#include "datapath/ucx/ucx_fabric.h"

namespace genie::datapath {
namespace {

using namespace net;

std::span<const std::byte> as_bytes(std::string_view text) { return std::as_bytes(std::span(text)); }

void put(std::vector<std::byte>& out, std::span<const std::byte> bytes) {
  const auto size = static_cast<uint32_t>(bytes.size());
  const auto* const raw = reinterpret_cast<const std::byte*>(&size);
  out.insert(out.end(), raw, raw + sizeof(size));
  out.insert(out.end(), bytes.begin(), bytes.end());
}

class HostilePeer : public testing::Test {
 protected:
  void SetUp() override {
    if (!ucx_compiled_in()) GTEST_SKIP() << "this build has no UCX";
    UcxOptions options;
    options.tls = "tcp";
    Result<std::unique_ptr<Transport>> made = make_ucx_transport(options);
    ASSERT_TRUE(made.ok()) << made.status().to_string();
    listener_ = std::move(*made);
    ASSERT_TRUE(listener_->listen("tcp://127.0.0.1:0").ok());
    Result<std::unique_ptr<Fabric>> fabric = make_ucx_fabric(options);
    ASSERT_TRUE(fabric.ok()) << fabric.status().to_string();
    fabric_ = std::move(*fabric);
  }

  ControlSocket knock() {
    Result<FileDescriptor> fd = connect_tcp(listener_->address(), Deadline::after_ms(20'000));
    EXPECT_TRUE(fd.ok()) << fd.status().to_string();
    return ControlSocket(std::move(*fd));
  }

  std::vector<std::byte> hello(std::string_view fabric, std::span<const std::byte> address) {
    std::vector<std::byte> payload;
    put(payload, as_bytes(fabric));
    put(payload, as_bytes("token"));
    put(payload, address);
    return payload;
  }

  // The next frame for the peer, or its hang-up, while the listener polls.
  ControlSocket::Event answer(ControlSocket& socket, Frame& frame) {
    const Deadline deadline = Deadline::after_ms(20'000);
    std::span<const std::byte> payload;
    while (!deadline.expired()) {
      poll();
      const ControlSocket::Event event = socket.receive(frame, payload);
      if (event != ControlSocket::Event::kNothing) return event;
    }
    ADD_FAILURE() << "no answer within 20 s";
    return ControlSocket::Event::kNothing;
  }

  void poll() {
    std::array<Completion, 16> completions;
    const size_t count = listener_->poll(completions);
    for (size_t i = 0; i < count; ++i) {
      if (completions[i].opcode == Opcode::kConnected) ++connected_;
      if (completions[i].opcode == Opcode::kDisconnected) ended_.push_back(completions[i].result);
    }
  }

  // A peer whose handshake is as it should be.
  ControlSocket admitted() {
    ControlSocket socket = knock();
    Result<std::unique_ptr<FabricLink>> link = fabric_->open_link("127.0.0.1");
    EXPECT_TRUE(link.ok());
    links_.push_back(std::move(*link));
    const Result<std::vector<std::byte>> address = fabric_->address(*links_.back());
    EXPECT_TRUE(socket.send(Frame{.type = FrameType::kHello}, hello("ucx", *address)).ok());
    Frame frame;
    EXPECT_EQ(answer(socket, frame), ControlSocket::Event::kFrame);
    EXPECT_EQ(frame.type, FrameType::kHelloReply);
    EXPECT_EQ(frame.status, 0U);
    return socket;
  }

  Errc refused(const Frame& frame, std::span<const std::byte> payload) {
    ControlSocket socket = knock();
    EXPECT_TRUE(socket.send(frame, payload).ok());
    Frame reply;
    if (answer(socket, reply) != ControlSocket::Event::kFrame) return Errc::kDisconnected;
    EXPECT_EQ(reply.type, FrameType::kHelloReply);
    return static_cast<Errc>(reply.status);
  }

  std::unique_ptr<Transport> listener_;
  std::unique_ptr<Fabric> fabric_;
  std::vector<std::unique_ptr<FabricLink>> links_;
  int connected_ = 0;
  std::vector<Errc> ended_;
};

TEST_F(HostilePeer, NonsenseInsteadOfAHelloIsHungUpOn) {
  for (const std::string& text :
       {std::string(200, 'x'), std::string("GET / HTTP/1.1\r\nHost: a\r\n\r\n") + std::string(99, ' ')}) {
    ControlSocket socket = knock();
    ASSERT_EQ(::send(socket.fd(), text.data(), text.size(), MSG_NOSIGNAL), static_cast<ssize_t>(text.size()));
    Frame frame;
    EXPECT_NE(answer(socket, frame), ControlSocket::Event::kFrame);
  }
  EXPECT_EQ(connected_, 0);
}

TEST_F(HostilePeer, AHelloThatDoesNotFitIsRefusedWithTheReason) {
  const std::vector<std::byte> address(100, std::byte{7});
  EXPECT_EQ(refused(Frame{.version = 77, .type = FrameType::kHello}, hello("ucx", address)), Errc::kVersionMismatch);
  EXPECT_EQ(refused(Frame{.type = FrameType::kHello}, hello("carrier-pigeon", address)), Errc::kUnsupported);
  EXPECT_EQ(refused(Frame{.type = FrameType::kHello}, hello("ucx", {})), Errc::kProtocol);
  EXPECT_EQ(refused(Frame{.type = FrameType::kHello}, hello("ucx", address)), Errc::kProtocol) << "no address of UCX";
  EXPECT_EQ(refused(Frame{.type = FrameType::kHello}, {}), Errc::kProtocol);
  EXPECT_EQ(refused(Frame{.type = FrameType::kHello}, std::vector<std::byte>(16, std::byte{0xff})), Errc::kProtocol);
  EXPECT_EQ(refused(Frame{.type = FrameType::kAnnounce}, {}), Errc::kProtocol);
  EXPECT_EQ(connected_, 0);
}

TEST_F(HostilePeer, FramesThatBreakTheProtocolEndTheirEndpointAlone) {
  ControlSocket good = admitted();
  const RemoteKey key = pack_key(KeyFields{.index = 3, .generation = 0, .size = 1 << 20});
  const std::vector<std::byte> few(8);
  const std::vector<std::byte> many(kMaxPackedKeyBytes + 1);
  struct Case {
    const char* what;
    Frame frame;
    std::span<const std::byte> payload;
  };
  const std::vector<Case> cases = {
      {"an unknown type", {.type = static_cast<FrameType>(999)}, {}},
      {"an answer to nothing", {.type = FrameType::kReply}, {}},
      {"a listener's answer", {.type = FrameType::kHelloReply}, {}},
      {"gives back what it never had", {.type = FrameType::kUnreserve, .size = 4096}, {}},
      {"a region of no bytes", {.type = FrameType::kAnnounce}, few},
      {"a key that is too long", {.type = FrameType::kAnnounce, .key = key}, many},
      {"other bytes than said", {.type = FrameType::kHandOver, .size = 1 << 20, .key = key}, few},
      {"another size than its key's", {.type = FrameType::kHandOver, .size = 5, .address = 4096, .key = key}, few},
      {"no key to memory handed over",
       {.type = FrameType::kHandOver, .size = 1 << 20, .address = 4096, .key = key},
       {}},
      {"a goodbye without its counts", {.type = FrameType::kGoodbye}, few},
  };
  for (const Case& broken : cases) {
    ControlSocket socket = admitted();
    ASSERT_TRUE(socket.send(broken.frame, broken.payload).ok());
    ended_.clear();
    Frame frame;
    EXPECT_EQ(answer(socket, frame), ControlSocket::Event::kHangup) << broken.what;
    const Deadline deadline = Deadline::after_ms(20'000);
    while (ended_.empty() && !deadline.expired()) poll();
    EXPECT_EQ(ended_, std::vector<Errc>{Errc::kProtocol}) << broken.what;
  }
  Frame frame;
  ASSERT_TRUE(good.send(Frame{.type = FrameType::kPing}).ok());
  EXPECT_EQ(answer(good, frame), ControlSocket::Event::kFrame);
  EXPECT_EQ(frame.type, FrameType::kPong);
}

TEST_F(HostilePeer, WhoConnectsAndHangsUpLeavesNothingBehind) {
  for (int i = 0; i < 50; ++i) {
    ControlSocket socket = knock();
    if (i % 2 == 0) continue;
    const Frame half{.type = FrameType::kHello, .payload_bytes = 1000};
    (void)::send(socket.fd(), &half, sizeof(half), MSG_NOSIGNAL);
  }
  ControlSocket socket = admitted();
  EXPECT_EQ(connected_, 1);
}

}  // namespace
}  // namespace genie::datapath
