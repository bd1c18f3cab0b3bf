// GPU memory that no RDMA device reaches, on real devices (Soft-RoCE in a guest) and with a stand-in for CUDA's driver.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <future>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "datapath/memory/gpu_memory.h"
#include "tests/gpu_driver/gpu_driver.h"
#include "tests/guest/verbs_links.h"

namespace genie::datapath {
namespace {

// A GPU whose memory no device reaches, which its driver copies (tests/gpu_driver).
class GpuBytes {
 public:
  explicit GpuBytes(size_t size)
      : size_(size), data_(test::allocate_gpu_memory(size)), copier_(GpuCopier::make(data_)) {
    if (!copier_.ok()) throw std::runtime_error(copier_.status().to_string());
  }
  GpuBytes(const GpuBytes&) = delete;
  GpuBytes& operator=(const GpuBytes&) = delete;
  ~GpuBytes() {
    test::fail_gpu_copies(0);
    test::free_gpu_memory(data_);
  }
  std::byte* data() const { return data_; }
  std::span<std::byte> all() const { return {data_, size_}; }
  void fill_in(size_t offset, size_t size, size_t seed) const {
    std::vector<std::byte> host(size);
    fill(host.data(), size, seed);
    EXPECT_TRUE(copier_->copy(data_ + offset, host.data(), size).ok());
  }
  bool has(size_t offset, size_t size, size_t seed) const {
    std::vector<std::byte> host(size);
    return copier_->copy(host.data(), data_ + offset, size).ok() && holds(host.data(), size, seed);
  }

 private:
  const size_t size_;
  std::byte* const data_;
  const Result<GpuCopier> copier_;
};

class StagedGpuMemory : public VerbsFabricTest {
 protected:
  void start_staged(const std::string& devices) {
    ASSERT_NO_FATAL_FAILURE(start(devices));
    Result<std::unique_ptr<net::FabricMemory>> registered =
        a_.fabric->register_memory(gpu_.all(), MemoryKind::kCuda, true);
    ASSERT_TRUE(registered.ok()) << registered.status().to_string();
    registered_ = std::move(*registered);
    ASSERT_TRUE(registered_->staged);
  }
  void TearDown() override {
    VerbsFabricTest::TearDown();
    const int before = test::gpu_handles_open();
    registered_.reset();
    EXPECT_EQ(test::gpu_handles_open(), before - 2) << "its context and its stream";
  }

  static constexpr size_t kSize = size_t{8} << 20;
  const GpuBytes gpu_{kSize};
  std::unique_ptr<net::FabricMemory> registered_;
};

TEST_F(StagedGpuMemory, IsWrittenAndReadByWayOfTheHost) {
  ASSERT_NO_FATAL_FAILURE(start_staged("rxe0"));
  const Shared shared = share(kSize);
  uint64_t cookie = 1;
  for (const size_t size : {size_t{1}, size_t{220}, size_t{5000}, size_t{256} << 10}) {
    gpu_.fill_in(40, size, cookie);
    post(kLatency, std::vector{transfer(Op::kWrite, gpu_.data() + 40, size, registered_.get(), shared, 100, cookie)});
    ASSERT_NO_FATAL_FAILURE(expect_done(cookie, cookie));
    EXPECT_TRUE(holds(shared.memory->data + 100, size, cookie));
    fill(shared.memory->data + 100, size, cookie + 50);
    post(kBulk, std::vector{transfer(Op::kRead, gpu_.data() + 9, size, registered_.get(), shared, 100, cookie)});
    ASSERT_NO_FATAL_FAILURE(expect_done(cookie, cookie));
    EXPECT_TRUE(gpu_.has(9, size, cookie + 50));
    ++cookie;
  }
}

// More chunks than there are places to stage them.
TEST_F(StagedGpuMemory, ChunksTakeTurns) {
  ASSERT_NO_FATAL_FAILURE(start_staged("rxe0,rxe1"));
  constexpr size_t kChunk = size_t{256} << 10;
  const Shared shared = share(kSize);
  gpu_.fill_in(0, kSize, 11);
  std::vector<Descriptor> batch;
  for (size_t at = 0; at < kSize; at += kChunk) {
    batch.push_back(transfer(Op::kWrite, gpu_.data() + at, kChunk, registered_.get(), shared, at, at / kChunk));
  }
  post(kBulk, batch);
  ASSERT_NO_FATAL_FAILURE(expect_done(0, kSize / kChunk - 1));
  EXPECT_TRUE(holds(shared.memory->data, kSize, 11));
}

TEST_F(StagedGpuMemory, ACopyThatFailsFailsItsReadAlone) {
  ASSERT_NO_FATAL_FAILURE(start_staged("rxe0"));
  const Shared shared = share(kSize);
  fill(shared.memory->data, 5000, 21);
  test::fail_gpu_copies(1);
  post(kLatency, std::vector{transfer(Op::kRead, gpu_.data(), 5000, registered_.get(), shared, 0, 1)});
  ASSERT_TRUE(until([&] { return !a_.done.empty(); }));
  EXPECT_EQ(a_.done.front(), std::pair(uint64_t{1}, Errc::kIo));
  a_.done.pop_front();
  post(kLatency, std::vector{transfer(Op::kRead, gpu_.data(), 5000, registered_.get(), shared, 0, 2)});
  ASSERT_NO_FATAL_FAILURE(expect_done(2, 2));
  EXPECT_TRUE(gpu_.has(0, 5000, 21));
}

// A message would say that the bytes are there.
TEST_F(StagedGpuMemory, NoMessageFollowsAWriteWhoseCopyFailed) {
  ASSERT_NO_FATAL_FAILURE(start_staged("rxe0"));
  const Shared shared = share(kSize);
  test::fail_gpu_copies(1);
  const std::vector batch{transfer(Op::kWrite, gpu_.data(), 5000, registered_.get(), shared, 0, 1)};
  EXPECT_EQ(a_.fabric->post(*a_.link, kLatency, batch), 1U);
  EXPECT_FALSE(a_.send(kLatency, "it is there"));
  ASSERT_TRUE(until([&] { return a_.closed; }));
  b_.fabric->poll(b_);
  EXPECT_EQ(a_.failure.code(), Errc::kIo) << a_.failure.to_string();
  ASSERT_EQ(a_.done.size(), 1U);
  EXPECT_EQ(a_.done.front(), std::pair(uint64_t{1}, Errc::kIo));
  EXPECT_TRUE(b_.messages.empty());
}

TEST_F(StagedGpuMemory, PeersGetNoKeyOfIt) {
  ASSERT_NO_FATAL_FAILURE(start_staged("rxe0"));
  EXPECT_EQ(a_.fabric->export_memory(*a_.link, *registered_).status().code(), Errc::kUnsupported);
}

// The same through the transport, to a listener that serves in a thread of its own.
class Listener {
 public:
  Listener() : transport_(make()) {
    EXPECT_TRUE(transport_->listen("tcp://10.77.0.1:0").ok());
    address_ = transport_->address();
    thread_ = std::thread([this] { serve(); });
  }
  Listener(const Listener&) = delete;
  Listener& operator=(const Listener&) = delete;
  ~Listener() {
    stop_ = true;
    thread_.join();
  }
  static std::unique_ptr<Transport> make() {
    VerbsOptions options;
    options.devices = "rxe0";
    Result<std::unique_ptr<Transport>> made = make_verbs_transport(options);
    if (!made.ok()) throw std::runtime_error(made.status().to_string());
    return std::move(*made);
  }
  const std::string& address() const { return address_; }
  // Of the first peer, once it has connected.
  Region region() {
    std::future<Region> made = region_.get_future();
    return made.wait_for(std::chrono::seconds(60)) == std::future_status::ready ? made.get() : Region();
  }

  static constexpr size_t kSize = size_t{1} << 20;

 private:
  void serve() {
    while (!stop_) {
      std::array<Completion, 4> out;
      const size_t count = transport_->poll(out);
      for (size_t i = 0; i < count; ++i) {
        if (out[i].opcode != Opcode::kConnected || std::exchange(connected_, true)) continue;
        const Result<Region> made = transport_->allocate(out[i].endpoint, kSize, Deadline::after_ms(60'000));
        region_.set_value(made.ok() ? *made : Region());
      }
    }
  }

  const std::unique_ptr<Transport> transport_;
  std::string address_;
  std::promise<Region> region_;
  bool connected_ = false;
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

TEST(StagedRegion, IsForWritesAndReadsOfItsOwnSide) {
  const GpuBytes gpu(Listener::kSize);
  Listener listener;
  const std::unique_ptr<Transport> transport = Listener::make();
  const Result<EndpointId> endpoint = transport->connect(listener.address(), {}, Deadline::after_ms(60'000));
  ASSERT_TRUE(endpoint.ok()) << endpoint.status().to_string();
  const Region there = listener.region();
  const Result<RemoteRegion> theirs = transport->import_region(*endpoint, there.remote);
  ASSERT_TRUE(theirs.ok()) << theirs.status().to_string();

  const Result<Region> region = transport->register_memory(gpu.all(), MemoryKind::kCuda);
  ASSERT_TRUE(region.ok()) << region.status().to_string();
  EXPECT_EQ(region->remote.bytes, RemoteKey().bytes) << "there is nothing to tell a peer";

  const PostOptions options{.deadline = Deadline::after_ms(60'000)};
  Buffer message = Buffer::borrow(gpu.all().first(64), region->key);
  EXPECT_EQ(transport->send(*endpoint, message, 0, options).code(), Errc::kInvalidArgument);

  const auto finish = [&] {
    std::array<Completion, 4> out;
    for (const Deadline deadline = Deadline::after_ms(60'000); !deadline.expired();) {
      if (transport->poll(out) != 0) return out[0].result;
    }
    return Errc::kTimedOut;
  };
  gpu.fill_in(0, Listener::kSize, 3);
  const Transport::Counters before = transport->counters();
  Buffer out = Buffer::borrow(gpu.all(), region->key);
  ASSERT_TRUE(transport->write(*endpoint, out, *theirs, 0, options).ok());
  EXPECT_EQ(finish(), Errc::kOk);
  EXPECT_TRUE(holds(there.data, Listener::kSize, 3));
  EXPECT_EQ(transport->counters().bytes_copied_tx - before.bytes_copied_tx, Listener::kSize);

  gpu.fill_in(0, Listener::kSize, 4);
  Buffer back = Buffer::borrow(gpu.all(), region->key);
  ASSERT_TRUE(transport->read(*endpoint, back, *theirs, 0, options).ok());
  EXPECT_EQ(finish(), Errc::kOk);
  EXPECT_TRUE(gpu.has(0, Listener::kSize, 3));
  EXPECT_EQ(transport->counters().bytes_copied_rx - before.bytes_copied_rx, Listener::kSize);
  ASSERT_TRUE(transport->release(region->key).ok());
}

}  // namespace
}  // namespace genie::datapath
