#include "src/protocol/invocation_coder.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <random>
#include <vector>

#include "src/protocol/varint.h"
#include "tests/random_seed.h"

namespace genie::wire {
namespace {

using Bytes = std::vector<std::byte>;

void expect_equal(const InvocationNumbers& got, const InvocationNumbers& sent) {
  ASSERT_EQ(got.slots.size(), sent.slots.size());
  for (size_t i = 0; i < got.slots.size(); ++i) {
    EXPECT_EQ(got.slots[i].id, sent.slots[i].id);
    EXPECT_EQ(got.slots[i].version_in, sent.slots[i].version_in);
    EXPECT_EQ(got.slots[i].version_out, sent.slots[i].version_out);
    EXPECT_EQ(got.slots[i].size_bytes, sent.slots[i].size_bytes);
  }
  EXPECT_EQ(got.param_index, sent.param_index);
  EXPECT_EQ(got.param_value, sent.param_value);
}

// Weights that stay, a cache whose tensors are new in each step and longer by one, and numbers that grow.
InvocationNumbers decode_step(uint64_t step) {
  InvocationNumbers made;
  for (uint32_t weight = 0; weight < 150; ++weight) made.slots.push_back({.id = 1 + weight});
  for (uint64_t tensor = 0; tensor < 24; ++tensor) {
    made.slots.push_back({.id = 1000 + step * 30 + tensor, .version_in = 1, .version_out = 1});
    made.slots.push_back({.id = 1030 + step * 30 + tensor, .version_out = 1, .size_bytes = 3072 * (step + 9)});
  }
  for (uint32_t param = 0; param < 200; ++param) {
    made.param_index.push_back(param * 3);
    made.param_value.push_back(static_cast<int64_t>(param % 2 == 0 ? step : step * 64));
  }
  return made;
}

class Both {
 public:
  // Bytes of the message.
  size_t carry(uint64_t template_id, const InvocationNumbers& invocation) {
    Bytes bytes;
    sender_.encode(template_id, invocation, bytes);
    const Result<InvocationNumbers> got = receiver_.decode(template_id, bytes);
    EXPECT_TRUE(got.ok()) << got.status().to_string();
    if (got.ok()) expect_equal(*got, invocation);
    return bytes.size();
  }

 private:
  InvocationCoder sender_, receiver_;
};

TEST(Varint, CarriesEveryNumber) {
  std::vector<uint64_t> numbers{0, 1, 127, 128, 16383, 16384, UINT32_MAX, UINT64_MAX / 2, UINT64_MAX - 1, UINT64_MAX};
  Bytes bytes;
  for (const uint64_t number : numbers) put_varint(bytes, number);
  for (const uint64_t from : numbers) {
    for (const uint64_t to : numbers) put_difference(bytes, from, to);
  }
  VarintReader reader(bytes);
  for (const uint64_t number : numbers) EXPECT_EQ(reader.number(), number);
  for (const uint64_t from : numbers) {
    for (const uint64_t to : numbers) EXPECT_EQ(reader.difference_from(from), to);
  }
  EXPECT_TRUE(reader.ok());
  EXPECT_TRUE(reader.at_end());
  EXPECT_EQ(reader.number(), 0U);
  EXPECT_FALSE(reader.ok());
}

TEST(Varint, RefusesMoreThan64Bits) {
  const Bytes most(9, std::byte{0xFF});
  for (const int last : {1, 2, 0x7F, 0x81}) {
    Bytes bytes = most;
    bytes.push_back(static_cast<std::byte>(last));
    VarintReader reader(bytes);
    (void)reader.number();
    EXPECT_EQ(reader.ok(), last == 1) << last;
  }
}

TEST(InvocationCoder, AStepThatRepeatsIsSmall) {
  Both both;
  const size_t first = both.carry(7, decode_step(0));
  EXPECT_LT(first, 4096U);
  EXPECT_LT(both.carry(7, decode_step(1)), 800U);
  for (uint64_t step = 2; step < 20; ++step) EXPECT_LT(both.carry(7, decode_step(step)), 8U) << step;
  // One that leaves the line, and the next one, which goes on from there.
  const InvocationNumbers other = decode_step(30);
  EXPECT_LT(both.carry(7, other), 800U);
  EXPECT_LT(both.carry(7, other), 800U);
  EXPECT_LT(both.carry(7, other), 8U);
}

// Numbers are taken modulo 2^64, so that a line may leave their range.
TEST(InvocationCoder, LinesGoOnBeyondTheEnds) {
  Both both;
  const auto made = [](int64_t value) {
    InvocationNumbers numbers;
    numbers.slots.push_back({.id = static_cast<uint64_t>(value), .version_in = UINT32_MAX, .version_out = 0});
    numbers.param_index.push_back(3);
    numbers.param_value.push_back(value);
    return numbers;
  };
  for (const int64_t value : {INT64_MAX - 2, INT64_MAX, INT64_MIN + 1, int64_t{0}, INT64_MIN, INT64_MAX, int64_t{-1}}) {
    both.carry(7, made(value));
  }
}

TEST(InvocationCoder, TemplatesAndFormsAreKeptApart) {
  Both both;
  const InvocationNumbers none;
  InvocationNumbers shorter = decode_step(3);
  shorter.slots.resize(10);
  shorter.param_index.resize(5);
  shorter.param_value.resize(5);
  for (uint64_t step = 0; step < 5; ++step) {
    both.carry(1, decode_step(step));
    both.carry(2, decode_step(100 - step));
    both.carry(1, shorter);
    both.carry(3, none);
  }
}

TEST(InvocationCoder, BothSidesForgetTheSame) {
  const uint64_t seed = test::random_seed();
  std::mt19937_64 random(seed);
  Both both;
  const auto made = [&](size_t slots, size_t params) {
    InvocationNumbers numbers;
    for (size_t i = 0; i < slots; ++i) {
      numbers.slots.push_back({.id = random(),
                               .version_in = static_cast<uint32_t>(random()),
                               .version_out = static_cast<uint32_t>(random() % 2),
                               .size_bytes = random() % 3});
    }
    for (size_t i = 0; i < params; ++i) {
      numbers.param_index.push_back(static_cast<uint32_t>(random()));
      numbers.param_value.push_back(static_cast<int64_t>(random()));
    }
    return numbers;
  };
  // 120 templates, most of nearly the largest remembered size, hold several times what is remembered; one in eight is too large.
  for (int i = 0; i < 240; ++i) {
    const uint64_t id = random() % 120;
    const bool too_large = id % 8 == 0;
    const size_t slots = too_large ? 5'000 : 3'500 + id;
    const InvocationNumbers numbers = made(slots, id);
    both.carry(id, numbers);
    both.carry(id, numbers);  // on the line that the one before the first had begun, if that is remembered
    EXPECT_EQ(both.carry(id, numbers) < 100, !too_large) << "template " << id;
  }
}

// Large ones that are not remembered, small ones of ever new templates, and such as have no numbers at all.
TEST(InvocationCoder, HoldsWhatItRemembersAndLittleMore) {
  constexpr size_t kSmall = size_t{1} << 12;
  InvocationCoder sender(kSmall);
  InvocationCoder receiver(kSmall);
  size_t most = 0;
  for (uint64_t i = 0; i < 5'000; ++i) {
    InvocationNumbers numbers;
    numbers.slots.resize(std::array<size_t, 4>{1000, 0, 16, 1}[i % 4]);
    Bytes bytes;
    sender.encode(i % 4 == 0 ? 7 : 1000 + i, numbers, bytes);
    ASSERT_TRUE(receiver.decode(i % 4 == 0 ? 7 : 1000 + i, bytes).ok());
    most = std::max({most, sender.bytes_held(), receiver.bytes_held()});
  }
  EXPECT_LE(most, 3 * kSmall * sizeof(uint64_t));
}

TEST(InvocationCoder, ALostOrRepeatedOneIsNoticed) {
  InvocationCoder sender;
  std::vector<Bytes> sent(3);
  for (uint64_t step = 0; step < 3; ++step) sender.encode(1, decode_step(step), sent[step]);
  InvocationCoder receiver;
  EXPECT_TRUE(receiver.decode(1, sent[0]).ok());
  EXPECT_EQ(receiver.decode(1, sent[2]).code(), Errc::kProtocol);
  EXPECT_EQ(receiver.decode(1, sent[0]).code(), Errc::kProtocol);
  EXPECT_TRUE(receiver.decode(1, sent[1]).ok());
}

TEST(InvocationCoder, BytesThatNoEncoderMadeAreRefused) {
  const InvocationNumbers first = decode_step(0);
  const InvocationNumbers second = decode_step(1);
  InvocationCoder sender;
  Bytes alone;
  Bytes after;
  sender.encode(1, first, alone);
  sender.encode(1, second, after);
  const auto decode = [&](std::span<const std::byte> bytes, bool remembers) {
    InvocationCoder receiver;
    if (remembers) {
      EXPECT_TRUE(receiver.decode(1, alone).ok());
    }
    return receiver.decode(1, bytes).code();
  };
  EXPECT_EQ(decode(alone, false), Errc::kOk);
  EXPECT_EQ(decode(after, true), Errc::kOk);
  for (size_t size = 0; size < alone.size(); ++size) {
    EXPECT_EQ(decode(std::span(alone).first(size), false), Errc::kProtocol) << size;
  }
  for (size_t size = 0; size < after.size(); ++size) {
    EXPECT_EQ(decode(std::span(after).first(size), true), Errc::kProtocol) << size;
  }
  for (Bytes bytes : {alone, after}) {
    bytes.push_back(std::byte{0});
    EXPECT_EQ(decode(bytes, bytes.size() == after.size() + 1), Errc::kProtocol) << "something behind it";
  }
  // Few bytes that claim to be many numbers.
  Bytes many;
  put_varint(many, 0);
  put_varint(many, 400'000);
  put_varint(many, 0);
  many.resize(many.size() + 64);
  EXPECT_EQ(decode(many, false), Errc::kProtocol);
  Bytes endless;
  put_varint(endless, 0);
  put_varint(endless, UINT64_MAX);
  put_varint(endless, UINT64_MAX);
  EXPECT_EQ(decode(endless, false), Errc::kProtocol);
  // Versions and indices beyond 32 bits.
  Bytes wide;
  for (const uint64_t number : {0, 1, 0}) put_varint(wide, number);
  for (const uint64_t difference : {uint64_t{5}, uint64_t{1} << 40, uint64_t{0}, uint64_t{0}}) {
    put_difference(wide, 0, difference);
  }
  EXPECT_EQ(decode(wide, false), Errc::kProtocol);
}

}  // namespace
}  // namespace genie::wire
