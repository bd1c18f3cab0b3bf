// A client that speaks the control protocol by hand and does what no honest one would: the listener refuses it with the
// right code, and another client of the same listener does not notice.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <deque>
#include <filesystem>
#include <functional>
#include <random>
#include <thread>
#include <vector>

#include "datapath/shm/control.h"
#include "datapath/shm/endpoint.h"
#include "datapath/shm/shared_memory.h"
#include "datapath/shm/shm_transport.h"

namespace genie::datapath::shm {
namespace {

std::string fresh_path() {
  static std::atomic<int> count{0};
  const std::string name = "genie-hostile-" + std::to_string(::getpid()) + "-" + std::to_string(count++) + ".sock";
  return (std::filesystem::temp_directory_path() / name).string();
}

size_t open_descriptors() {
  const std::filesystem::directory_iterator entries("/proc/self/fd");
  return static_cast<size_t>(std::distance(begin(entries), end(entries)));
}

class HostilePeerTest : public testing::Test {
 protected:
  void SetUp() override {
    path_ = fresh_path();
    ASSERT_TRUE(listener_->listen("unix:" + path_).ok());
    honest_end_ = EndpointId();
    std::thread connecting([&] {
      Result<EndpointId> made = honest_->connect("unix:" + path_, {}, Deadline::after_ms(20'000));
      if (made.ok()) honest_end_ = *made;
    });
    honest_at_listener_ = await(Opcode::kConnected).endpoint;
    connecting.join();
    ASSERT_TRUE(honest_end_.valid());
  }

  // Whatever was done to the listener: the other client's messages still arrive.
  void TearDown() override {
    std::vector<std::byte> bytes(100, std::byte{7});
    Buffer message = Buffer::borrow(bytes);
    ASSERT_TRUE(honest_->send(honest_end_, message, 4711, {}).ok());
    const Completion received = await([&](const Completion& completion) {
      return completion.opcode == Opcode::kReceive && completion.endpoint == honest_at_listener_;
    });
    EXPECT_EQ(received.immediate, 4711U);
    std::filesystem::remove(path_);
  }

  Completion await(const std::function<bool(const Completion&)>& wanted) {
    const Deadline deadline = Deadline::after_ms(20'000);
    std::array<Completion, 16> out;
    while (!deadline.expired()) {
      const auto at = std::find_if(inbox_.begin(), inbox_.end(), wanted);
      if (at != inbox_.end()) {
        Completion found = std::move(*at);
        inbox_.erase(at);
        return found;
      }
      const size_t count = listener_->poll(out);
      for (size_t i = 0; i < count; ++i) inbox_.push_back(std::move(out[i]));
    }
    ADD_FAILURE() << "no such completion within 20 s";
    return {};
  }
  Completion await(Opcode opcode) {
    return await([opcode](const Completion& completion) { return completion.opcode == opcode; });
  }

  // The listener's next message, polling it meanwhile.
  Incoming::Kind answer(ControlChannel& channel, Incoming& incoming) {
    const Deadline deadline = Deadline::after_ms(20'000);
    std::array<Completion, 16> out;
    do {
      channel.receive(incoming);
      const size_t count = listener_->poll(out);
      for (size_t i = 0; i < count; ++i) inbox_.push_back(std::move(out[i]));
    } while ((incoming.kind == Incoming::Kind::kNothing || incoming.kind == Incoming::Kind::kBell) &&
             !deadline.expired());
    return incoming.kind;
  }

  ControlChannel dial() {
    Result<FileDescriptor> fd = connect_unix(path_, Deadline::after_ms(20'000));
    EXPECT_TRUE(fd.ok()) << fd.status().to_string();
    return ControlChannel(std::move(*fd));
  }

  // A hostile client after a proper handshake.
  struct Client {
    ControlChannel channel;
    FileDescriptor ring_fd;
    SharedMapping mapping;
    EndpointMemory* memory = nullptr;
    EndpointId at_listener;
  };
  Client shake_hands() {
    Client client{dial(), FileDescriptor(), SharedMapping(), nullptr, EndpointId()};
    EXPECT_TRUE(client.channel.send(ControlMessage{.type = ControlType::kHello}).ok());
    Incoming incoming;
    EXPECT_EQ(answer(client.channel, incoming), Incoming::Kind::kMessage);
    client.ring_fd = std::move(incoming.fd);
    client.mapping = std::move(*SharedMapping::map(client.ring_fd.get(), sizeof(EndpointMemory)));
    client.memory = reinterpret_cast<EndpointMemory*>(client.mapping.data());
    client.at_listener = await(Opcode::kConnected).endpoint;
    return client;
  }

  Incoming request(Client& client, ControlMessage message) {
    EXPECT_TRUE(client.channel.send(message).ok());
    Incoming incoming;
    EXPECT_EQ(answer(client.channel, incoming), Incoming::Kind::kMessage);
    return incoming;
  }

  void expect_thrown_out(const Client& client, Errc code) {
    const Completion ended = await([&](const Completion& completion) {
      return completion.opcode == Opcode::kDisconnected && completion.endpoint == client.at_listener;
    });
    EXPECT_EQ(ended.result, code) << errc_name(ended.result);
  }

  MessageSender<> sender(Client& client) {
    return MessageSender<>(queue::SpscRing<RingUnit>::at(&client.memory->to_listener.control, kRingUnits));
  }

  static ShmOptions options() {
    ShmOptions limits;
    limits.max_bytes_per_endpoint = size_t{16} << 20;
    limits.control_timeout_ms = 300;
    return limits;
  }

  std::string path_;
  std::unique_ptr<Transport> listener_ = make_shm_transport(options());
  std::unique_ptr<Transport> honest_ = make_shm_transport();
  EndpointId honest_end_;
  EndpointId honest_at_listener_;
  std::deque<Completion> inbox_;
};

TEST_F(HostilePeerTest, SharedMemoryCannotBeTruncated) {
  Client client = shake_hands();
  Incoming region = request(client, ControlMessage{.type = ControlType::kAllocate, .request = 1, .size = 100'000});
  ASSERT_EQ(region.message.status, 0U);
  for (const int fd : {client.ring_fd.get(), region.fd.get()}) {
    EXPECT_NE(::ftruncate(fd, 0), 0);
    EXPECT_EQ(errno, EPERM);
    EXPECT_NE(::ftruncate(fd, 1 << 30), 0);
    EXPECT_EQ(errno, EPERM);
  }
  Result<RemoteRegion> imported = listener_->import_region(client.at_listener, region.message.key);
  ASSERT_TRUE(imported.ok());
  EXPECT_EQ(::fallocate(region.fd.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 100'000), 0);
  std::memset(imported->mapped, 1, imported->size);
}

TEST_F(HostilePeerTest, AnImpossibleIndexEndsTheEndpoint) {
  Client client = shake_hands();
  client.memory->to_listener.control.tail.store(uint64_t{1} << 60);
  expect_thrown_out(client, Errc::kProtocol);
}

TEST_F(HostilePeerTest, AnImplausibleHeaderEndsTheEndpoint) {
  Client client = shake_hands();
  const MessageHeader header{UINT32_MAX, MessageKind::kMessage, 0, 0};
  client.memory->to_listener.units[0] = std::bit_cast<RingUnit>(header);
  client.memory->to_listener.control.tail.store(1);
  expect_thrown_out(client, Errc::kProtocol);
}

TEST_F(HostilePeerTest, AnImpossibleReadIndexEndsTheEndpointAndReturnsWhatWasPosted) {
  Client client = shake_hands();
  client.memory->to_client.control.head.store(uint64_t{1} << 50);
  std::vector<std::byte> bytes(kMaxMessageBytes);
  int posted = 0;
  for (; posted < 10; ++posted) {
    Buffer message = Buffer::borrow(bytes);
    if (!listener_->send(client.at_listener, message, 0, {}).ok()) break;
  }
  for (int i = 0; i < posted; ++i) await(Opcode::kSend);
  expect_thrown_out(client, Errc::kProtocol);
}

TEST_F(HostilePeerTest, AMessageRewrittenAfterItWasSentIsAsItWas) {
  Client client = shake_hands();
  std::vector<std::byte> bytes(5000, std::byte{1});
  MessageSender<> ring = sender(client);
  ASSERT_TRUE(ring.try_send(MessageKind::kMessage, 5, bytes));
  const Completion received = await(Opcode::kReceive);
  std::memset(static_cast<void*>(client.memory->to_listener.units), 0xee, sizeof(client.memory->to_listener.units));
  ASSERT_EQ(received.buffer.size(), 5000U);
  EXPECT_EQ(std::memcmp(received.buffer.data(), bytes.data(), bytes.size()), 0);
}

// A thread that scribbles over all shared memory while the listener reads, sends and sleeps.
TEST_F(HostilePeerTest, NoiseInSharedMemoryIsSurvived) {
  for (unsigned seed = 1; seed <= 30; ++seed) {
    Client client = shake_hands();
    std::atomic<bool> stop{false};
    std::thread scribbler([&] {
      std::mt19937_64 random(seed);
      auto* words = reinterpret_cast<std::atomic<uint64_t>*>(client.memory);
      Direction& ring = client.memory->to_listener;
      while (!stop.load(std::memory_order_relaxed)) {
        words[random() % (sizeof(EndpointMemory) / 8)].store(random() >> (random() % 64), std::memory_order_relaxed);
        const MessageHeader header{static_cast<uint32_t>(random() % 2000), MessageKind::kMessage, 0, 0};
        ring.units[random() % kRingUnits] = std::bit_cast<RingUnit>(header);
        if (random() % 8 == 0) ring.control.tail.fetch_add(random() % 8, std::memory_order_relaxed);
      }
    });
    std::vector<std::byte> bytes(1000);
    std::array<Completion, 16> out;
    const Deadline enough = Deadline::after_ms(20'000);
    bool ended = false;
    while (!ended && !enough.expired()) {
      Buffer message = Buffer::borrow(bytes);
      if (!listener_->send(client.at_listener, message, 0, {}).ok()) message = Buffer();
      const size_t count = listener_->poll(out);
      for (size_t i = 0; i < count; ++i) {
        ended = ended || (out[i].opcode == Opcode::kDisconnected && out[i].endpoint == client.at_listener);
      }
      listener_->wait(1'000);
    }
    EXPECT_TRUE(ended);
    stop.store(true);
    scribbler.join();
  }
}

TEST_F(HostilePeerTest, AnotherVersionIsToldSo) {
  ControlChannel channel = dial();
  ASSERT_TRUE(channel.send(ControlMessage{.version = 99}).ok());
  Incoming incoming;
  ASSERT_EQ(answer(channel, incoming), Incoming::Kind::kMessage);
  EXPECT_EQ(static_cast<Errc>(incoming.message.status), Errc::kVersionMismatch);
  EXPECT_EQ(answer(channel, incoming), Incoming::Kind::kHangup);
}

TEST_F(HostilePeerTest, MalformedControlMessagesEndTheConnection) {
  const std::vector<std::function<void(int)>> attacks = {
      [](int fd) { ::send(fd, "hello", 5, 0); },
      [](int fd) {
        ControlMessage message;
        message.magic = 7;
        ::send(fd, &message, sizeof(message), 0);
      },
      [](int fd) {
        ControlMessage message;
        message.token_size = UINT32_MAX;
        ::send(fd, &message, sizeof(message), 0);
      },
      [](int fd) {
        const std::vector<char> large(100'000, 'x');
        ::send(fd, large.data(), large.size(), 0);
      },
      [](int fd) {
        ControlMessage message;
        message.type = static_cast<ControlType>(999);
        ::send(fd, &message, sizeof(message), 0);
      },
      [](int fd) {
        const ControlMessage message{.type = ControlType::kHelloReply};
        ::send(fd, &message, sizeof(message), 0);
      },
  };
  for (const auto& attack : attacks) {
    ControlChannel before = dial();
    attack(before.fd());
    Incoming incoming;
    while (answer(before, incoming) == Incoming::Kind::kMessage) {
      EXPECT_EQ(static_cast<Errc>(incoming.message.status), Errc::kProtocol);
    }
    EXPECT_EQ(incoming.kind, Incoming::Kind::kHangup);
    Client after = shake_hands();
    attack(after.channel.fd());
    expect_thrown_out(after, Errc::kProtocol);
  }
}

TEST_F(HostilePeerTest, DescriptorsThatNobodyAskedForAreClosed) {
  Client client = shake_hands();
  const size_t before = open_descriptors();
  for (int i = 0; i < 20; ++i) {
    ASSERT_TRUE(
        client.channel.send(ControlMessage{.type = ControlType::kImport, .request = 1}, client.ring_fd.get()).ok());
    Incoming incoming;
    ASSERT_EQ(answer(client.channel, incoming), Incoming::Kind::kMessage);
    EXPECT_EQ(static_cast<Errc>(incoming.message.status), Errc::kPermission);
  }
  EXPECT_EQ(open_descriptors(), before);
}

TEST_F(HostilePeerTest, AClientThatSaysNothingIsDropped) {
  ControlChannel silent = dial();
  Incoming incoming;
  EXPECT_EQ(answer(silent, incoming), Incoming::Kind::kHangup);
}

TEST_F(HostilePeerTest, ReleasingTheListenersRegionIsRefused) {
  Client client = shake_hands();
  Result<Region> region = listener_->allocate(client.at_listener, 4096, Deadline::after_ms(20'000));
  ASSERT_TRUE(region.ok());
  ASSERT_TRUE(client.channel.send(ControlMessage{.type = ControlType::kRelease, .key = region->remote}).ok());
  expect_thrown_out(client, Errc::kProtocol);
  region->data[0] = std::byte{1};
  EXPECT_TRUE(listener_->release(region->key).ok());
}

TEST_F(HostilePeerTest, WhatAClientHandsOverIsLookedAt) {
  Client client = shake_hands();
  const auto hand_over = [&](uint32_t number, uint64_t size, int fd) {
    const RemoteKey key = pack_key({.index = number, .size = size});
    EXPECT_TRUE(client.channel.send(ControlMessage{.type = ControlType::kHandOver, .size = size, .key = key}, fd).ok());
    return key;
  };
  const FileDescriptor good = std::move(*make_sealed_memory(4096));
  EXPECT_FALSE(listener_->take(client.at_listener, hand_over(1, 4096, good.get()))->final) << "it can still write";
  EXPECT_EQ(listener_->take(client.at_listener, hand_over(2, 8192, good.get())).code(), Errc::kProtocol);
  EXPECT_EQ(listener_->take(client.at_listener, hand_over(3, 0, good.get())).code(), Errc::kInvalidArgument);
  EXPECT_EQ(listener_->take(client.at_listener, hand_over(4, UINT64_MAX, good.get())).code(), Errc::kQuotaExceeded);
  EXPECT_EQ(listener_->take(client.at_listener, hand_over(5, 4096, -1)).code(), Errc::kQuotaExceeded);
  const FileDescriptor loose(::memfd_create("loose", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  ASSERT_EQ(::ftruncate(loose.get(), 4096), 0);
  EXPECT_EQ(listener_->take(client.at_listener, hand_over(6, 4096, loose.get())).code(), Errc::kProtocol);
  ASSERT_TRUE(seal_against_writing(good.get()).ok());
  const RemoteKey sealed = hand_over(7, 4096, good.get());
  EXPECT_EQ(listener_->take(client.at_listener, pack_key({.index = 7, .size = 100})).code(), Errc::kNotFound);
  EXPECT_TRUE(listener_->take(client.at_listener, sealed)->final);
}

// Huge pages of the pool without the seal: a hole would be a signal in whoever reads it.
TEST_F(HostilePeerTest, UnsealedPagesOfThePoolAreRefused) {
  const FileDescriptor pool(::memfd_create("pool", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_HUGETLB));
  if (!pool.valid()) GTEST_SKIP() << "no huge pages of 2 MiB";
  constexpr size_t kSize = size_t{2} << 20;
  ASSERT_EQ(::ftruncate(pool.get(), kSize), 0);
  ASSERT_EQ(::fcntl(pool.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW), 0);
  EXPECT_EQ(take_memory(pool.get(), kSize).code(), Errc::kProtocol);
}

TEST_F(HostilePeerTest, MemoryThatIsNeverTakenHitsItsQuotaAndGoesWithTheClient) {
  const size_t before = open_descriptors();
  {
    Client client = shake_hands();
    const FileDescriptor memory = std::move(*make_sealed_memory(4096));
    std::array<Completion, 16> out;
    bool thrown_out = false;
    for (uint32_t i = 0; i < 20'000 && !thrown_out; ++i) {
      const ControlMessage flood{
          .type = ControlType::kHandOver, .size = 4096, .key = pack_key({.index = i, .size = 4096})};
      (void)client.channel.send(flood, memory.get());
      const size_t count = listener_->poll(out);
      for (size_t k = 0; k < count; ++k) thrown_out |= out[k].opcode == Opcode::kDisconnected;
    }
    EXPECT_TRUE(thrown_out);
  }
  EXPECT_LE(open_descriptors(), before);
}

TEST_F(HostilePeerTest, AClientThatSealsItsRegionMakesItStale) {
  Client client = shake_hands();
  Incoming region = request(client, ControlMessage{.type = ControlType::kAllocate, .request = 1, .size = 4096});
  ASSERT_EQ(::fcntl(region.fd.get(), F_ADD_SEALS, F_SEAL_WRITE), 0);
  EXPECT_EQ(listener_->import_region(client.at_listener, region.message.key).code(), Errc::kStale);
}

// Requests for memory, one after the other, without reading a single answer.
TEST_F(HostilePeerTest, AFloodOfRequestsHitsItsQuotaAndLeavesNothingBehind) {
  const size_t before = open_descriptors();
  {
    Client client = shake_hands();
    const ControlMessage flood{.type = ControlType::kAllocate, .request = 1, .size = 4096};
    std::array<Completion, 16> out;
    for (int i = 0; i < 20'000; ++i) {
      ::send(client.channel.fd(), &flood, sizeof(flood), MSG_DONTWAIT | MSG_NOSIGNAL);
      listener_->poll(out);
    }
    const size_t quota = (size_t{16} << 20) / 4096;
    EXPECT_LE(open_descriptors(), before + 2 * quota + 10) << "regions, and the copies for the answers on their way";
  }
  await(Opcode::kDisconnected);
  EXPECT_LE(open_descriptors(), before);
}

TEST_F(HostilePeerTest, OneClientCannotTakeAllDescriptors) {
  rlimit saved{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &saved), 0);
  rlimit small = saved;
  small.rlim_cur = 400;
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &small), 0);
  const auto listener = make_shm_transport();
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &saved), 0);
  const std::string path = fresh_path();
  ASSERT_TRUE(listener->listen("unix:" + path).ok());
  const auto client = make_shm_transport();
  std::atomic<bool> done{false};
  std::array<Completion, 16> out;
  std::thread serving([&] {
    while (!done.load()) {
      listener->poll(out);
      listener->wait(1'000'000);
    }
  });
  const EndpointId end = *client->connect("unix:" + path, {}, Deadline::after_ms(20'000));
  size_t regions = 0;
  Errc code = Errc::kOk;
  for (; code == Errc::kOk && regions < 400; ++regions) {
    code = client->allocate(end, 1, Deadline::after_ms(20'000)).code();
  }
  done.store(true);
  listener->wake();
  serving.join();
  EXPECT_EQ(code, Errc::kQuotaExceeded);
  EXPECT_LE(regions, 200U);
}

class SocketFileTest : public testing::Test {
 protected:
  void TearDown() override { std::filesystem::remove(path_); }
  std::string path_ = fresh_path();
  std::unique_ptr<Transport> transport_ = make_shm_transport();
};

TEST_F(SocketFileTest, AFileLeftByAKilledProcessIsReplaced) {
  { const FileDescriptor left_over = std::move(*listen_unix(path_, false)); }
  ASSERT_TRUE(std::filesystem::exists(path_));
  EXPECT_TRUE(transport_->listen("unix:" + path_).ok());
  EXPECT_EQ(transport_->address(), "unix:" + path_);
}

TEST_F(SocketFileTest, AnythingElseThereIsLeftAlone) {
  ASSERT_GE(FileDescriptor(::open(path_.c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0600)).get(), 0);
  EXPECT_EQ(transport_->listen("unix:" + path_).code(), Errc::kAlreadyExists);
  EXPECT_TRUE(std::filesystem::exists(path_));
}

TEST_F(SocketFileTest, TheFileIsForItsOwnerAndGoesWithTheTransport) {
  ASSERT_TRUE(transport_->listen("unix:" + path_).ok());
  EXPECT_EQ(std::filesystem::status(path_).permissions(),
            std::filesystem::perms::owner_read | std::filesystem::perms::owner_write);
  transport_.reset();
  EXPECT_FALSE(std::filesystem::exists(path_));
}

TEST_F(SocketFileTest, AnotherUserIsRefusedUnlessAllowed) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root, to become another user";
  for (const bool allowed : {false, true}) {
    ShmOptions options;
    options.allow_other_users = allowed;
    const auto listener = make_shm_transport(options);
    ASSERT_TRUE(listener->listen("unix:" + path_).ok());
    ASSERT_EQ(::chmod(path_.c_str(), 0666), 0);
    const pid_t child = ::fork();
    if (child == 0) {
      if (::setuid(65534) != 0) ::_exit(1);
      ::_exit(static_cast<int>(make_shm_transport()->connect("unix:" + path_, {}, Deadline::after_ms(20'000)).code()));
    }
    int status = 0;
    std::array<Completion, 4> out;
    while (::waitpid(child, &status, WNOHANG) == 0) {
      listener->poll(out);
      listener->wait(1'000'000);
    }
    EXPECT_EQ(static_cast<Errc>(WEXITSTATUS(status)), allowed ? Errc::kOk : Errc::kPermission);
  }
}

TEST_F(SocketFileTest, AFolderThatIsNotThereIsSaid) {
  const Status status = transport_->listen("unix:/no/such/folder/node.sock");
  EXPECT_EQ(status.code(), Errc::kIo);
  EXPECT_NE(status.text().find("/no/such/folder/node.sock"), std::string_view::npos);
}

TEST_F(SocketFileTest, AListenerThatNeverAnswersTimesOut) {
  const FileDescriptor deaf = std::move(*listen_unix(path_, false));
  EXPECT_EQ(transport_->connect("unix:" + path_, {}, Deadline::after_ms(100)).code(), Errc::kTimedOut);
}

TEST_F(SocketFileTest, AStrangerIsNotMistakenForANode) {
  const FileDescriptor stranger = std::move(*listen_unix(path_, false));
  std::thread answering([&] {
    pollfd entry{stranger.get(), POLLIN, 0};
    ::poll(&entry, 1, 20'000);
    const FileDescriptor accepted(::accept(stranger.get(), nullptr, nullptr));
    ::send(accepted.get(), "who are you?", 12, MSG_NOSIGNAL);
    std::array<char, 1024> hello;
    static_cast<void>(::recv(accepted.get(), hello.data(), hello.size(), 0));
  });
  EXPECT_EQ(transport_->connect("unix:" + path_, {}, Deadline::after_ms(20'000)).code(), Errc::kProtocol);
  answering.join();
}

}  // namespace
}  // namespace genie::datapath::shm
