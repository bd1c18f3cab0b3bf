// The codec of session messages: round trips, and bytes that no honest peer sends.
#include "src/protocol/session_messages.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <random>

#include "src/protocol/fragments.h"
#include "tests/random_seed.h"

namespace genie::wire {
namespace {

SubmissionMessage sample_submission() {
  SubmissionMessage message;
  message.ticket = 77;
  message.stream = 3;
  message.epoch = 9;
  message.frees = {1, 2, 3};
  message.uploads = {{.storage = {4, 5}, .offset = 7, .size = 8, .region = 6},
                     {.storage = {9, 1}, .offset = 64, .size = 100, .window = 2}};
  message.template_id = 12;
  message.invocation = {std::byte{1}, std::byte{0}, std::byte{255}};
  message.fetches = {{.storage = {4, 6}, .offset = 1, .size = 2}, {.storage = {5, 6}, .offset = 0, .size = 8}};
  WindowOffer offer{.window = 3, .size = 4096};
  for (size_t i = 0; i < offer.key.size(); ++i) offer.key[i] = std::byte(i * 7);
  message.window_offers = {offer};
  message.regions = {offer.key, {}};
  message.result_releases = {11, UINT64_MAX};
  return message;
}

CompletionMessage sample_completion() {
  CompletionMessage message;
  message.ticket = 5;
  message.status = Status(Errc::kOpFailed, "aten::mm: shapes [2, 3] and [2, 3] do not match");
  message.failed_record = 17;
  message.executed_records = 16;
  message.upload_copied_bytes = 11;
  message.fetch_copied_bytes = 12;
  message.reported = {
      {.defined = true, .dtype = 6, .sizes = {2, 3}, .strides = {3, 1}, .storage_offset = 1, .storage_bytes = 24},
      {.defined = false}};
  message.fetched.resize(3);
  message.fetched[0].bytes = {std::byte{1}, std::byte{2}};
  message.fetched[1].status = Status(Errc::kPoisoned, "lost");
  message.fetched[2].result = UINT64_MAX;
  message.fetched[2].region = 13;
  message.fetched[2].offset = uint64_t{1} << 40;
  message.fetched[2].passing = true;
  return message;
}

// A private, aligned copy of exactly these bytes, so that a sanitizer sees every access outside.
struct Copy {
  explicit Copy(std::span<const std::byte> bytes) : size(bytes.size()), data(new std::byte[size == 0 ? 1 : size]) {
    if (size != 0) std::memcpy(data.get(), bytes.data(), size);
  }
  std::span<std::byte> span() { return {data.get(), size}; }
  size_t size;
  std::unique_ptr<std::byte[]> data;
};

template <typename Message>
std::vector<std::byte> encoded(const Message& message) {
  Encoder encoder;
  const auto bytes = encoder.encode(message);
  EXPECT_TRUE(bytes.ok());
  return {bytes->begin(), bytes->end()};
}

TEST(SessionMessages, SubmissionComesBackAsItWas) {
  const SubmissionMessage sent = sample_submission();
  Copy bytes(encoded(ClientMessage(sent)));
  const auto decoded = decode_client_message(bytes.span());
  ASSERT_TRUE(decoded.ok()) << decoded.status().to_string();
  const auto& got = std::get<SubmissionMessage>(*decoded);
  EXPECT_EQ(got.ticket, sent.ticket);
  EXPECT_EQ(got.stream, sent.stream);
  EXPECT_EQ(got.epoch, sent.epoch);
  EXPECT_EQ(got.frees, sent.frees);
  ASSERT_EQ(got.uploads.size(), 2U);
  EXPECT_EQ(got.uploads[0].storage.id, 4U);
  EXPECT_EQ(got.uploads[0].storage.version, 5U);
  EXPECT_EQ(got.uploads[0].region, 6U);
  EXPECT_EQ(got.uploads[0].offset, 7U);
  EXPECT_EQ(got.uploads[0].size, 8U);
  EXPECT_EQ(got.uploads[0].window, kNoWindow);
  EXPECT_EQ(got.uploads[1].window, 2U);
  EXPECT_EQ(got.template_id, 12U);
  EXPECT_EQ(got.invocation, sent.invocation);
  ASSERT_EQ(got.fetches.size(), 2U);
  EXPECT_EQ(got.fetches[0].offset, 1U);
  EXPECT_EQ(got.fetches[0].size, 2U);
  EXPECT_EQ(got.fetches[0].storage.version, 6U);
  EXPECT_EQ(got.fetches[1].storage.id, 5U);
  ASSERT_EQ(got.window_offers.size(), 1U);
  EXPECT_EQ(got.window_offers[0].key, sent.window_offers[0].key);
  EXPECT_EQ(got.window_offers[0].size, 4096U);
  EXPECT_EQ(got.regions, sent.regions);
  EXPECT_EQ(got.result_releases, sent.result_releases);
}

TEST(SessionMessages, CompletionComesBackAsItWas) {
  const CompletionMessage sent = sample_completion();
  Copy bytes(encoded(NodeMessage(sent)));
  const auto decoded = decode_node_message(bytes.span());
  ASSERT_TRUE(decoded.ok()) << decoded.status().to_string();
  const auto& got = std::get<CompletionMessage>(*decoded);
  EXPECT_EQ(got.ticket, 5U);
  EXPECT_EQ(got.status.code(), Errc::kOpFailed);
  EXPECT_EQ(got.status.text(), sent.status.text());
  EXPECT_EQ(got.failed_record, 17);
  EXPECT_EQ(got.executed_records, 16U);
  EXPECT_EQ(got.upload_copied_bytes, 11U);
  EXPECT_EQ(got.fetch_copied_bytes, 12U);
  ASSERT_EQ(got.reported.size(), 2U);
  EXPECT_EQ(got.reported[0].sizes, sent.reported[0].sizes);
  EXPECT_EQ(got.reported[0].strides, sent.reported[0].strides);
  EXPECT_EQ(got.reported[0].dtype, 6);
  EXPECT_EQ(got.reported[0].storage_bytes, 24U);
  EXPECT_FALSE(got.reported[1].defined);
  ASSERT_EQ(got.fetched.size(), 3U);
  EXPECT_EQ(got.fetched[0].bytes, sent.fetched[0].bytes);
  EXPECT_EQ(got.fetched[1].status.code(), Errc::kPoisoned);
  EXPECT_FALSE(got.fetched[1].passing);
  EXPECT_EQ(got.fetched[2].result, UINT64_MAX);
  EXPECT_EQ(got.fetched[2].region, 13U);
  EXPECT_EQ(got.fetched[2].offset, uint64_t{1} << 40);
  EXPECT_TRUE(got.fetched[2].passing);
}

TEST(SessionMessages, SmallMessagesComeBackAsTheyWere) {
  Copy release(encoded(ClientMessage(ResultRelease{{3, 4}})));
  const auto got_release = decode_client_message(release.span());
  ASSERT_TRUE(got_release.ok());
  EXPECT_EQ(std::get<ResultRelease>(*got_release).results, (std::vector<uint64_t>{3, 4}));

  ResultRegion region{.region = 6, .size = 4096};
  region.key[0] = std::byte{0xEE};
  Copy told(encoded(NodeMessage(region)));
  const auto got_region = decode_node_message(told.span());
  ASSERT_TRUE(got_region.ok());
  EXPECT_EQ(std::get<ResultRegion>(*got_region).region, 6U);
  EXPECT_EQ(std::get<ResultRegion>(*got_region).size, 4096U);
  EXPECT_EQ(std::get<ResultRegion>(*got_region).key, region.key);

  Copy asked(encoded(ClientMessage(Question{.question = 5, .size = 1ULL << 40, .sketch = UINT64_MAX})));
  const auto got_asked = decode_client_message(asked.span());
  ASSERT_TRUE(got_asked.ok());
  EXPECT_EQ(std::get<Question>(*got_asked).question, 5U);
  EXPECT_EQ(std::get<Question>(*got_asked).size, 1ULL << 40);
  EXPECT_EQ(std::get<Question>(*got_asked).sketch, UINT64_MAX);

  Answer answer{.question = 5,
                .blobs = {{.name = 7, .size = 9, .sketch = 10, .hash = {1, UINT64_MAX}}, {.name = 8, .hash = {2, 3}}}};
  Copy answered(encoded(NodeMessage(answer)));
  const auto got_answer = decode_node_message(answered.span());
  ASSERT_TRUE(got_answer.ok());
  EXPECT_EQ(std::get<Answer>(*got_answer).question, 5U);
  ASSERT_EQ(std::get<Answer>(*got_answer).blobs.size(), 2U);
  EXPECT_EQ(std::get<Answer>(*got_answer).blobs[1].name, 8U);
  EXPECT_EQ(std::get<Answer>(*got_answer).blobs[0].size, 9U);
  EXPECT_EQ(std::get<Answer>(*got_answer).blobs[0].sketch, 10U);
  EXPECT_EQ(std::get<Answer>(*got_answer).blobs[0].hash, answer.blobs[0].hash);
  answer.blobs.resize(kMaxBlobs + 1);
  Copy many(encoded(NodeMessage(answer)));
  EXPECT_EQ(decode_node_message(many.span()).code(), Errc::kProtocol);

  Copy progress(encoded(NodeMessage(Progress{99})));
  const auto got_progress = decode_node_message(progress.span());
  ASSERT_TRUE(got_progress.ok());
  EXPECT_EQ(std::get<Progress>(*got_progress).records, 99U);

  Copy farewell(encoded(NodeMessage(Farewell{Status(Errc::kProtocol, "garbage")})));
  const auto got_farewell = decode_node_message(farewell.span());
  ASSERT_TRUE(got_farewell.ok());
  EXPECT_EQ(std::get<Farewell>(*got_farewell).status.text(), "garbage");
}

TEST(SessionMessages, ADecodeStepIsSmall) {
  SubmissionMessage step;
  step.ticket = 1;
  step.template_id = 1;
  step.invocation.resize(100);
  step.fetches.resize(1);
  EXPECT_LE(encoded(ClientMessage(step)).size(), 320U);
}

TEST(SessionMessages, TheOtherSidesMessageIsRefused) {
  Copy bytes(encoded(NodeMessage(sample_completion())));
  EXPECT_EQ(decode_client_message(bytes.span()).code(), Errc::kProtocol);
}

TEST(SessionMessages, TruncatedAtEveryByteIsRefusedOrHarmless) {
  const std::vector<std::byte> whole = encoded(ClientMessage(sample_submission()));
  for (size_t size = 0; size < whole.size(); ++size) {
    Copy bytes({whole.data(), size});
    const auto message = decode_client_message(bytes.span());
    // The last bytes may be there for alignment only.
    if (message.ok()) {
      EXPECT_EQ(encoded(*message), whole) << "at " << size;
    } else {
      EXPECT_EQ(message.code(), Errc::kProtocol) << "at " << size;
    }
  }
  const std::vector<std::byte> completion = encoded(NodeMessage(sample_completion()));
  for (size_t size = 0; size < completion.size(); ++size) {
    Copy bytes({completion.data(), size});
    EXPECT_EQ(decode_node_message(bytes.span()).code(), Errc::kProtocol) << "at " << size;
  }
}

TEST(SessionMessages, RandomMutationsNeverReachOutside) {
  const uint64_t seed = test::random_seed();
  std::mt19937_64 random(seed);
  const std::vector<std::byte> submission = encoded(ClientMessage(sample_submission()));
  const std::vector<std::byte> completion = encoded(NodeMessage(sample_completion()));
  size_t refused = 0;
  size_t accepted = 0;
  for (int round = 0; round < 100'000; ++round) {
    Copy bytes(round % 2 == 0 ? submission : completion);
    const uint64_t changes = 1 + random() % 4;
    for (uint64_t i = 0; i < changes; ++i) bytes.span()[random() % bytes.size] = std::byte(random());
    const Errc code =
        round % 2 == 0 ? decode_client_message(bytes.span()).code() : decode_node_message(bytes.span()).code();
    EXPECT_TRUE(code == Errc::kOk || code == Errc::kProtocol);
    ++(code == Errc::kOk ? accepted : refused);
  }
  EXPECT_GT(refused, 1000U);
  EXPECT_GT(accepted, 1000U);
}

TEST(SessionMessages, ATooLongMessageIsNotEncoded) {
  SubmissionMessage message;
  message.result_releases.resize(kMaxMessageBytes / sizeof(uint64_t));
  Encoder encoder;
  EXPECT_EQ(encoder.encode(ClientMessage(std::move(message))).code(), Errc::kOutOfRange);
  SubmissionMessage freeing;
  freeing.frees.resize(kMaxFrees + 1);
  EXPECT_EQ(encoder.encode(ClientMessage(freeing)).code(), Errc::kOutOfRange);
  freeing.frees.resize(kMaxFrees);
  EXPECT_TRUE(encoder.encode(ClientMessage(freeing)).ok());
}

TEST(SessionMessages, InlineResultsAndRanksAreBounded) {
  CompletionMessage message;
  message.fetched.resize(1);
  message.fetched[0].bytes.resize(kMaxInlineBytes + 1);
  Copy long_result(encoded(NodeMessage(message)));
  EXPECT_EQ(decode_node_message(long_result.span()).code(), Errc::kProtocol);
  message.fetched.clear();
  message.reported.resize(1);
  message.reported[0].strides.resize(65);
  Copy high_rank(encoded(NodeMessage(message)));
  EXPECT_EQ(decode_node_message(high_rank.span()).code(), Errc::kProtocol);
}

TEST(SessionMessages, LongTextsAreCut) {
  CompletionMessage message;
  message.status = Status(Errc::kOpFailed, std::string(100'000, 'x'));
  Copy bytes(encoded(NodeMessage(message)));
  const auto decoded = decode_node_message(bytes.span());
  ASSERT_TRUE(decoded.ok());
  EXPECT_EQ(std::get<CompletionMessage>(*decoded).status.text().size(), kMaxTextBytes);
}

TEST(Fragments, PiecesBecomeTheMessage) {
  std::vector<std::byte> message(1000);
  for (size_t i = 0; i < message.size(); ++i) message[i] = std::byte(i);
  Reassembler reassembler;
  for (int round = 0; round < 2; ++round) {
    std::span<const std::byte> rest = message;
    std::vector<std::byte> got;
    bool first = true;
    while (!rest.empty()) {
      const FragmentTag tag = tag_of(rest.size(), 300, first);
      const auto piece = rest.first(std::min<size_t>(rest.size(), 300));
      const auto fed = reassembler.feed(static_cast<uint32_t>(tag), piece);
      ASSERT_TRUE(fed.ok());
      EXPECT_EQ(fed->empty(), tag == FragmentTag::kMore);
      got.assign(fed->begin(), fed->end());
      rest = rest.subspan(piece.size());
      first = false;
    }
    EXPECT_EQ(got, message);
  }
  EXPECT_EQ(tag_of(10, 300, true), FragmentTag::kWhole);
}

TEST(Fragments, NonsenseIsRefused) {
  const std::vector<std::byte> piece(10);
  EXPECT_EQ(Reassembler().feed(77, piece).code(), Errc::kProtocol);
  EXPECT_EQ(Reassembler().feed(static_cast<uint32_t>(FragmentTag::kMore), {}).code(), Errc::kProtocol);
  Reassembler interrupted;
  ASSERT_TRUE(interrupted.feed(static_cast<uint32_t>(FragmentTag::kMore), piece).ok());
  EXPECT_EQ(interrupted.feed(static_cast<uint32_t>(FragmentTag::kWhole), piece).code(), Errc::kProtocol);
  Reassembler endless;
  const std::vector<std::byte> large(size_t{1} << 20);
  Errc code = Errc::kOk;
  for (int i = 0; i < 20 && code == Errc::kOk; ++i) {
    code = endless.feed(static_cast<uint32_t>(FragmentTag::kMore), large).code();
  }
  EXPECT_EQ(code, Errc::kProtocol);
}

}  // namespace
}  // namespace genie::wire
