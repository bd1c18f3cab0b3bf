// Regions: keys, imports, privacy, quotas.
#include <algorithm>
#include <cstring>

#include "tests/conformance/world.h"

namespace genie::datapath::conformance {
namespace {

class Memory : public ConformanceTest {
 protected:
  Result<Region> allocate(Side& side, size_t size) {
    return blocking(side, [&] { return side->allocate(endpoint(side), size, world_->after_ms(patience_ms())); });
  }
  Result<RemoteRegion> import(Side& side, const RemoteKey& key) {
    return blocking(side, [&] { return side->import_region(endpoint(side), key); });
  }
  // Takes what the client has handed over to the listener, as the contract wants it: after a later message.
  Result<Taken> take_after_message(const RemoteKey& key) {
    Buffer word = make_buffer(8, 1);
    EXPECT_TRUE(client()->send(client_end_, word, 0, options()).ok());
    await(listener(), Opcode::kReceive);
    return listener()->take(listener_end_, key);
  }
};

bool all_zero(std::span<const std::byte> bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](std::byte byte) { return byte == std::byte{0}; });
}

TEST_P(Memory, RegionsAreZeroedAndWritable) {
  for (Side* side : {&listener(), &client()}) {
    for (const size_t size : {size_t{1}, size_t{4096}, size_t{5000}, size_t{3} << 20}) {
      Result<Region> region = allocate(*side, size);
      ASSERT_TRUE(region.ok()) << region.status().to_string();
      EXPECT_EQ(region->size, size);
      EXPECT_TRUE(all_zero({region->data, region->size}));
      std::memset(region->data, 0xff, region->size);
      EXPECT_TRUE(side->transport().release(region->key).ok());
    }
  }
}

TEST_P(Memory, EmptyRegionsAreRefused) {
  EXPECT_EQ(allocate(client(), 0).code(), Errc::kInvalidArgument);
  EXPECT_EQ(allocate(listener(), 0).code(), Errc::kInvalidArgument);
}

TEST_P(Memory, AMappedRegionIsTheSameMemory) {
  if (!client()->capabilities().maps_remote_memory) GTEST_SKIP() << GetParam().name << " does not map remote memory";
  for (Side* owner : {&listener(), &client()}) {
    const SharedPair pair = share(*owner, 10'000);
    ASSERT_NE(pair.remote.mapped, nullptr);
    EXPECT_EQ(pair.remote.size, 10'000U);
    pair.remote.mapped[9'999] = std::byte{0x11};
    EXPECT_EQ(pair.region.data[9'999], std::byte{0x11});
  }
}

TEST_P(Memory, PublishedMemoryIsReadAndNeverWritten) {
  if (!listener()->capabilities().publishes_memory) {
    EXPECT_EQ(listener()->publish(listener_end_, 4096).code(), Errc::kUnsupported);
    GTEST_SKIP() << GetParam().name << " publishes no memory";
  }
  EXPECT_EQ(client()->publish(client_end_, 4096).code(), Errc::kUnsupported) << "only the listening side publishes";
  EXPECT_EQ(listener()->publish(listener_end_, 0).code(), Errc::kInvalidArgument);
  for (const size_t size : {size_t{1}, size_t{10'000}, size_t{5} << 20}) {
    Result<Region> region = listener()->publish(listener_end_, size);
    ASSERT_TRUE(region.ok()) << region.status().to_string();
    EXPECT_TRUE(all_zero({region->data, size}));
    region->data[size - 1] = std::byte{1};
    Result<RemoteRegion> remote = import(client(), region->remote);
    ASSERT_TRUE(remote.ok()) << remote.status().to_string();
    ASSERT_EQ(remote->size, size);
    EXPECT_EQ(remote->mapped[size - 1], std::byte{1});
    region->data[size - 1] = std::byte{2};
    EXPECT_EQ(remote->mapped[size - 1], std::byte{2}) << "the import follows";
    remote->mapped[size - 1] = std::byte{3};
    EXPECT_EQ(region->data[size - 1], std::byte{2}) << "what the peer writes stays its own";
    Buffer bytes = make_buffer(1, 7);
    EXPECT_EQ(client()->write(client_end_, bytes, *remote, 0, options()).code(), Errc::kPermission);
    ASSERT_TRUE(listener()->release(region->key).ok());
    EXPECT_EQ(remote->mapped[size - 1], std::byte{3}) << "an import outlives the region";
    EXPECT_TRUE(client()->drop_import(*remote).ok());
  }
}

TEST_P(Memory, ForgedKeysAreRefused) {
  for (Side* owner : {&listener(), &client()}) {
    Result<Region> region = allocate(*owner, 4096);
    ASSERT_TRUE(region.ok());
    for (size_t at = 0; at < sizeof(RemoteKey); ++at) {
      RemoteKey forged = region->remote;
      forged.bytes[at] ^= std::byte{0x40};
      const Errc code = import(other(*owner), forged).code();
      EXPECT_TRUE(code == Errc::kPermission || code == Errc::kStale) << at << " " << errc_name(code);
    }
    EXPECT_EQ(import(other(*owner), RemoteKey()).code(), Errc::kPermission);
    EXPECT_TRUE(import(other(*owner), region->remote).ok());
  }
}

TEST_P(Memory, AKeyOpensNothingOnAnotherEndpoint) {
  for (Side* owner : {&listener(), &client()}) {
    Result<Region> region = allocate(*owner, 4096);
    ASSERT_TRUE(region.ok());
    EndpointId second_client;
    EndpointId second_listener;
    ASSERT_TRUE(connect(client(), second_client, second_listener, "second").ok());
    Side& importer = other(*owner);
    const EndpointId second = owner == &listener() ? second_client : second_listener;
    EXPECT_EQ(blocking(importer, [&] { return importer->import_region(second, region->remote); }).code(),
              Errc::kPermission);
  }
}

TEST_P(Memory, ReleasedKeysAreStale) {
  for (Side* owner : {&listener(), &client()}) {
    Result<Region> region = allocate(*owner, 4096);
    ASSERT_TRUE(region.ok());
    ASSERT_TRUE(owner->transport().release(region->key).ok());
    EXPECT_EQ(owner->transport().release(region->key).code(), Errc::kStale);
    // Word of a release takes its time on a wire.
    EXPECT_TRUE(run_until([&] {
      const Result<RemoteRegion> imported = import(other(*owner), region->remote);
      if (imported.ok()) (void)other(*owner)->drop_import(*imported);
      return imported.code() == Errc::kStale;
    }));
    Result<Region> again = allocate(*owner, 4096);
    ASSERT_TRUE(again.ok());
    EXPECT_EQ(import(other(*owner), region->remote).code(), Errc::kStale);
  }
}

TEST_P(Memory, AnImportOfAReleasedRegionTurnsStale) {
  for (Side* owner : {&listener(), &client()}) {
    const SharedPair pair = share(*owner, 4096);
    ASSERT_TRUE(owner->transport().release(pair.region.key).ok());
    Side& writer = other(*owner);
    Status status;
    run_until([&] {
      Buffer bytes = make_buffer(16, 1);
      status = writer->write(endpoint(writer), bytes, pair.remote, 0, options());
      return !status.ok() && status.code() != Errc::kAgain;
    });
    EXPECT_EQ(status.code(), Errc::kStale);
    // Writes that were posted before may be on their way.
    EXPECT_TRUE(run_until([&] { return writer->drop_import(pair.remote).ok(); }));
    EXPECT_EQ(writer->drop_import(pair.remote).code(), Errc::kStale);
  }
}

TEST_P(Memory, TransfersStayInside) {
  const SharedPair pair = share(client(), 1000);
  Buffer bytes = make_buffer(100, 1);
  for (const size_t offset : {size_t{901}, size_t{1000}, size_t{1001}, SIZE_MAX, SIZE_MAX - 99}) {
    EXPECT_EQ(listener()->write(listener_end_, bytes, pair.remote, offset, options()).code(), Errc::kOutOfRange);
    EXPECT_EQ(listener()->read(listener_end_, bytes, pair.remote, offset, options()).code(), Errc::kOutOfRange);
    EXPECT_EQ(listener()->write_with_notify(listener_end_, bytes, pair.remote, offset, 1, options()).code(),
              Errc::kOutOfRange);
  }
  EXPECT_TRUE(bytes);
  EXPECT_TRUE(listener()->write(listener_end_, bytes, pair.remote, 900, options()).ok());
}

TEST_P(Memory, ARegionOfAnotherEndpointIsRefused) {
  const SharedPair pair = share(client(), 1000);
  EndpointId second_client;
  EndpointId second_listener;
  ASSERT_TRUE(connect(client(), second_client, second_listener, "second").ok());
  Buffer bytes = make_buffer(100, 1);
  EXPECT_EQ(listener()->write(second_listener, bytes, pair.remote, 0, options()).code(), Errc::kInvalidArgument);
  EXPECT_EQ(listener()->write(listener_end_, bytes, RemoteRegion{4711, 0, 1000, nullptr}, 0, options()).code(),
            Errc::kNotFound);
}

TEST_P(Memory, HandedOverMemoryIsTheTakersAlone) {
  for (Side* giver : {&client(), &listener()}) {
    Side& taker = other(*giver);
    for (const size_t size : {size_t{1}, size_t{5000}, size_t{5} << 20}) {
      Result<Region> region = giver->transport().prepare(endpoint(*giver), size_t{8} << 20);
      ASSERT_TRUE(region.ok()) << region.status().to_string();
      EXPECT_TRUE(all_zero({region->data, size}));
      std::memset(region->data, 0x5a, size);
      Result<RemoteKey> key = giver->transport().hand_over(region->key, size, world_->after_ms(patience_ms()));
      ASSERT_TRUE(key.ok()) << key.status().to_string();
      EXPECT_EQ(giver->transport().hand_over(region->key, size, world_->after_ms(patience_ms())).code(), Errc::kStale);
      EXPECT_EQ(giver->transport().release(region->key).code(), Errc::kStale);
      Buffer word = make_buffer(8, 1);
      ASSERT_TRUE((*giver)->send(endpoint(*giver), word, 0, options()).ok());
      await(taker, Opcode::kReceive);
      Result<Taken> taken = taker->take(endpoint(taker), *key);
      ASSERT_TRUE(taken.ok()) << taken.status().to_string();
      EXPECT_TRUE(taken->final);
      EXPECT_EQ(taken->memory.size(), size);
      EXPECT_GE(taken->resident_bytes, size);
      EXPECT_TRUE(std::ranges::all_of(taken->memory.bytes(), [](std::byte byte) { return byte == std::byte{0x5a}; }));
      taken->memory.data()[size - 1] = std::byte{1};
      EXPECT_EQ(taken->memory.data()[size - 1], std::byte{1});
      EXPECT_EQ(taker->take(endpoint(taker), *key).code(), Errc::kNotFound) << "a key is good once";
    }
  }
}

TEST_P(Memory, OnlyPreparedMemoryIsHandedOver) {
  Result<Region> shared = allocate(client(), 4096);
  ASSERT_TRUE(shared.ok());
  EXPECT_EQ(client()->hand_over(shared->key, 4096, world_->after_ms(patience_ms())).code(), Errc::kInvalidArgument);
  Result<Region> region = client()->prepare(client_end_, 4096);
  ASSERT_TRUE(region.ok());
  EXPECT_EQ(client()->hand_over(region->key, 0, world_->after_ms(patience_ms())).code(), Errc::kInvalidArgument);
  EXPECT_EQ(client()->hand_over(region->key, 4097, world_->after_ms(patience_ms())).code(), Errc::kInvalidArgument);
  EXPECT_TRUE(client()->release(region->key).ok());
  EXPECT_EQ(client()->prepare(client_end_, 0).code(), Errc::kInvalidArgument);
  EXPECT_EQ(client()->prepare(client_end_, SIZE_MAX).code(), Errc::kInvalidArgument);
}

TEST_P(Memory, MemoryThatWasNotHandedOverCannotBeTaken) {
  EXPECT_EQ(listener()->take(listener_end_, RemoteKey()).code(), Errc::kNotFound);
  Result<Region> shared = allocate(client(), 4096);
  ASSERT_TRUE(shared.ok());
  EXPECT_EQ(listener()->take(listener_end_, shared->remote).code(), Errc::kNotFound);
}

TEST_P(Memory, HandingOverBeyondTheQuotaIsSaidToTheTaker) {
  Result<Region> region = client()->prepare(client_end_, kQuotaBytes + 4096);
  ASSERT_TRUE(region.ok()) << region.status().to_string();
  Result<RemoteKey> key = client()->hand_over(region->key, kQuotaBytes + 4096, world_->after_ms(patience_ms()));
  ASSERT_TRUE(key.ok());
  EXPECT_EQ(take_after_message(*key).code(), Errc::kQuotaExceeded);
  // What was taken counts no more.
  for (int i = 0; i < 3; ++i) {
    Result<Region> most = client()->prepare(client_end_, kQuotaBytes);
    ASSERT_TRUE(most.ok());
    key = client()->hand_over(most->key, kQuotaBytes, world_->after_ms(patience_ms()));
    ASSERT_TRUE(key.ok());
    EXPECT_TRUE(take_after_message(*key).ok()) << i;
  }
}

TEST_P(Memory, TakenMemoryOutlivesEverything) {
  Buffer kept;
  {
    Result<Region> region = client()->prepare(client_end_, 5000);
    ASSERT_TRUE(region.ok());
    std::memset(region->data, 0x33, region->size);
    Result<RemoteKey> key = client()->hand_over(region->key, 5000, world_->after_ms(patience_ms()));
    ASSERT_TRUE(key.ok());
    Result<Taken> taken = take_after_message(*key);
    ASSERT_TRUE(taken.ok()) << taken.status().to_string();
    kept = std::move(taken->memory);
  }
  world_.reset();
  EXPECT_EQ(kept.size(), 5000U);
  EXPECT_EQ(kept.data()[4999], std::byte{0x33});
  kept.data()[0] = std::byte{1};
}

TEST_P(Memory, RegionsSurviveTheirEndpointUntilReleased) {
  const SharedPair pair = share(client(), 5000);
  ASSERT_TRUE(listener()->close(listener_end_).ok());
  await(client(), Opcode::kDisconnected);
  std::memset(pair.region.data, 0x44, pair.region.size);
  EXPECT_EQ(pair.region.data[4999], std::byte{0x44});
  ASSERT_TRUE(listener()->drop_import(pair.remote).ok());
  EXPECT_TRUE(client()->release(pair.region.key).ok());
}

TEST_P(Memory, BytesBeyondTheQuotaAreRefusedAndComeBackWithARelease) {
  for (Side* side : {&client(), &listener()}) {
    Result<Region> most = allocate(*side, kQuotaBytes - 4096);
    // The other side's last release may still be on its way.
    ASSERT_TRUE(run_until([&] { return most.ok() || (most = allocate(*side, kQuotaBytes - 4096)).ok(); }));
    EXPECT_EQ(allocate(*side, 8192).code(), Errc::kQuotaExceeded);
    EXPECT_EQ(allocate(*side, SIZE_MAX).code(), Errc::kQuotaExceeded);
    Result<Region> small = allocate(*side, 100);
    ASSERT_TRUE(small.ok()) << small.status().to_string();
    ASSERT_TRUE(side->transport().release(small->key).ok());
    ASSERT_TRUE(side->transport().release(most->key).ok());
    Result<Region> again = allocate(*side, kQuotaBytes / 2);
    ASSERT_TRUE(again.ok()) << again.status().to_string();
    ASSERT_TRUE(side->transport().release(again->key).ok());
  }
}

TEST_P(Memory, RegionsBeyondTheQuotaAreRefused) {
  std::vector<MemoryKey> keys;
  Errc code = Errc::kOk;
  while (code == Errc::kOk && keys.size() <= kQuotaRegions) {
    Result<Region> region = allocate(client(), 1);
    code = region.code();
    if (region.ok()) keys.push_back(region->key);
  }
  EXPECT_EQ(code, Errc::kQuotaExceeded);
  EXPECT_EQ(keys.size(), kQuotaRegions);
  ASSERT_TRUE(client()->release(keys.back()).ok());
  EXPECT_TRUE(allocate(client(), 1).ok());
}

TEST_P(Memory, RegisteringOrdinaryMemory) {
  std::vector<std::byte> memory(8192);
  Result<Region> region = client()->register_memory(memory, MemoryKind::kHost);
  if (!client()->capabilities().registers_any_memory) {
    EXPECT_EQ(region.code(), Errc::kUnsupported);
    return;
  }
  ASSERT_TRUE(region.ok());
  EXPECT_TRUE(client()->release(region->key).ok());
  EXPECT_EQ(client()->release(region->key).code(), Errc::kStale);
}

INSTANTIATE_TEST_SUITE_P(Transports, Memory, testing::ValuesIn(backends()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace genie::datapath::conformance
