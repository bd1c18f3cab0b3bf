// What only the shared-memory transport does: leaving idle endpoints to their peers' bells, and requests that block.
#include "datapath/shm/shm_transport.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <filesystem>
#include <set>
#include <string>
#include <thread>
#include <vector>

namespace genie::datapath {
namespace {

constexpr size_t kQuota = size_t{4} << 20;

class ShmTransportTest : public testing::Test {
 protected:
  void SetUp() override {
    const std::string name = "genie-shm-" + std::to_string(::getpid()) + ".sock";
    const std::string path = (std::filesystem::temp_directory_path() / name).string();
    ShmOptions options;
    options.max_bytes_per_endpoint = kQuota;
    listener_ = make_shm_transport(options);
    ASSERT_TRUE(listener_->listen("unix:" + path).ok());
  }

  // Runs a blocking call of the client while the listener is polled.
  template <typename Call>
  auto served(Call&& call) {
    std::atomic<bool> done{false};
    std::thread serving([&] {
      std::array<Completion, 16> out;
      while (!done.load()) {
        listener_->poll(out);
        listener_->wait(1'000'000);
      }
    });
    auto result = call();
    done.store(true);
    listener_->wake();
    serving.join();
    return result;
  }

  EndpointId connect() {
    return *served([&] { return client_->connect(listener_->address(), {}, Deadline::after_ms(20'000)); });
  }

  void poll_often(Transport& side, int times) {
    std::array<Completion, 16> out;
    for (int i = 0; i < times; ++i) side.poll(out);
  }

  std::unique_ptr<Transport> listener_;
  std::unique_ptr<Transport> client_ = make_shm_transport();
};

TEST_F(ShmTransportTest, IdleEndpointsAreHeardAgain) {
  std::vector<EndpointId> ends;
  for (int i = 0; i < 20; ++i) ends.push_back(connect());
  for (const bool sleeps : {false, true}) {
    poll_often(*listener_, 20'000);
    std::vector<std::byte> bytes(10);
    for (uint32_t i = 0; i < ends.size(); ++i) {
      Buffer message = Buffer::borrow(bytes);
      ASSERT_TRUE(client_->send(ends[i], message, i, {}).ok());
    }
    std::set<uint32_t> heard;
    std::array<Completion, 4> out;
    const Deadline deadline = Deadline::after_ms(20'000);
    while (heard.size() < ends.size() && !deadline.expired()) {
      const size_t count = listener_->poll(out);
      for (size_t i = 0; i < count; ++i) {
        if (out[i].opcode == Opcode::kReceive) heard.insert(out[i].immediate);
      }
      if (sleeps && count == 0) listener_->wait(20'000'000'000);
    }
    EXPECT_EQ(heard.size(), ends.size());
  }
}

TEST_F(ShmTransportTest, AnIdleEndpointThatEndsIsNoticed) {
  std::vector<EndpointId> ends;
  for (int i = 0; i < 20; ++i) ends.push_back(connect());
  poll_often(*listener_, 20'000);
  client_.reset();
  size_t ended = 0;
  std::array<Completion, 4> out;
  const Deadline deadline = Deadline::after_ms(20'000);
  while (ended < ends.size() && !deadline.expired()) {
    const size_t count = listener_->poll(out);
    for (size_t i = 0; i < count; ++i) ended += out[i].opcode == Opcode::kDisconnected ? 1 : 0;
    if (count == 0) listener_->wait(20'000'000'000);
  }
  EXPECT_EQ(ended, ends.size());
}

TEST_F(ShmTransportTest, ARequestThatNobodyServesTimesOutAndItsLateAnswerIsGivenBack) {
  const EndpointId end = connect();
  EXPECT_EQ(client_->allocate(end, kQuota, Deadline::after_ms(20)).code(), Errc::kTimedOut);
  // The listener serves it now; the client learns of memory that nobody wants, and gives it back.
  Result<Region> region = Errc::kQuotaExceeded;
  const Deadline deadline = Deadline::after_ms(20'000);
  while (region.code() == Errc::kQuotaExceeded && !deadline.expired()) {
    poll_often(*listener_, 100);
    poll_often(*client_, 100);
    region = served([&] { return client_->allocate(end, kQuota, Deadline::after_ms(20'000)); });
  }
  EXPECT_TRUE(region.ok()) << region.status().to_string();
}

TEST_F(ShmTransportTest, AListenerThatEndsDuringARequestIsADisconnect) {
  const EndpointId end = connect();
  std::thread ending([&] { listener_.reset(); });
  EXPECT_EQ(client_->allocate(end, 4096, Deadline::after_ms(20'000)).code(), Errc::kDisconnected);
  ending.join();
}

// More revocations than a socket holds: the listener keeps the rest and does not block.
TEST_F(ShmTransportTest, ManyReleasesDoNotNeedAClientThatListens) {
  std::array<Completion, 4> out;
  EndpointId here;
  std::thread connecting([&] {
    Result<EndpointId> made = client_->connect(listener_->address(), {}, Deadline::after_ms(20'000));
    EXPECT_TRUE(made.ok());
  });
  const Deadline deadline = Deadline::after_ms(20'000);
  while (!here.valid() && !deadline.expired()) {
    if (listener_->poll(out) != 0) here = out[0].endpoint;
  }
  connecting.join();
  for (int i = 0; i < 2'000; ++i) {
    Result<Region> region = listener_->allocate(here, 1, Deadline::after_ms(20'000));
    ASSERT_TRUE(region.ok()) << region.status().to_string();
    ASSERT_TRUE(listener_->release(region->key).ok());
  }
  std::vector<std::byte> bytes(10);
  Buffer message = Buffer::borrow(bytes);
  ASSERT_TRUE(listener_->send(here, message, 7, {}).ok());
  size_t received = 0;
  while (received == 0 && !deadline.expired()) {
    received = client_->poll(out);
    listener_->poll(std::span(out).subspan(2));
  }
  ASSERT_EQ(received, 1U);
  EXPECT_EQ(out[0].immediate, 7U);
  poll_often(*client_, 20'000);
  poll_often(*listener_, 1'000);
}

}  // namespace
}  // namespace genie::datapath
