// Uploads of a RemoteCore that need not travel: the node has the same bytes, of this session or of another one of its identity.
//
// Asking takes a round trip, hashing a pass over the bytes, and for most uploads the answer is no. So nobody waits for an answer
// before there is something to do meanwhile: what the last answer was is what the next one is expected to be. Expecting no, the
// bytes are written while the node answers; expecting yes, they are hashed. Either way the answer decides. An answer tells of what
// came behind the blob too: these *offers* spare the questions for the rest of a model. Those that nobody took are let go of with the
// next submission.
#include <algorithm>
#include <utility>

#include "datapath/base/log.h"
#include "src/session/remote_core.h"

namespace genie::session {

Result<std::unique_ptr<Upload>> RemoteCore::snapshot(std::span<const std::byte> source, const SnapshotWriter& write) {
  std::unique_ptr<Upload> upload;
  const auto send = [&]() -> Status {
    Result<std::unique_ptr<Upload>> begun = begin_upload(source.size());
    GENIE_TRY(begun.status());
    upload = std::move(*begun);
    write(upload->bytes());
    return {};
  };
  if (source.size() < wire::kMinContentBytes) {
    GENIE_TRY(send());
    return upload;
  }
  const uint64_t sketch = wire::sketch_of(source);
  std::optional<wire::ContentHash> hash;
  if (is_offered(source.size(), sketch)) {
    hash = wire::hash_of(source);
    if (const uint64_t blob = take_offer(source.size(), *hash)) return known(blob, source.size());
  }
  const Expectation expected = expectation_.load(std::memory_order_relaxed);
  const std::shared_ptr<Inquiry> inquiry = ask(source.size(), sketch);
  if (inquiry == nullptr || expected == Expectation::kAbsent) GENIE_TRY(send());
  if (inquiry != nullptr) {
    if (!hash && expected == Expectation::kPresent) hash = hash_meanwhile(source, *inquiry);
    if (await(inquiry)) {
      if (!hash) hash = wire::hash_of(source);
      if (const uint64_t blob = take_offer(source.size(), *hash)) return known(blob, source.size());
    }
  }
  if (upload == nullptr) GENIE_TRY(send());
  return upload;
}

std::unique_ptr<Upload> RemoteCore::known(uint64_t blob, size_t size) {
  return std::make_unique<RemoteUpload>(shared_from_this(), blob, size);
}

// Null: this is no time to ask.
std::shared_ptr<RemoteCore::Inquiry> RemoteCore::ask(size_t size, uint64_t sketch) {
  if (impatient_.load(std::memory_order_relaxed)) return nullptr;
  wire::Question question{.size = size, .sketch = sketch};
  auto inquiry = std::make_shared<Inquiry>();
  {
    const Guard guard(*this);
    if (!failure_.ok() || inquiries_.size() >= wire::kMaxQuestions) return nullptr;
    question.question = next_question_++;
    inquiries_.emplace(question.question, inquiry);
    if (const Status sent = send_locked(wire::ClientMessage(question), false); !sent.ok()) {
      end_locked(sent);
      return nullptr;
    }
  }
  call_attendant();
  return inquiry;
}

// Nothing, as soon as there is nothing to compare with.
std::optional<wire::ContentHash> RemoteCore::hash_meanwhile(std::span<const std::byte> source, const Inquiry& inquiry) {
  wire::ContentHasher hasher;
  while (!source.empty()) {
    poll();
    if (inquiry.answered.load(std::memory_order_acquire) && !inquiry.found) return std::nullopt;
    const size_t size = std::min(source.size(), wire::ContentHasher::kPieceBytes);
    hasher.add(source.first(size));
    source = source.subspan(size);
  }
  return hasher.hash();
}

// Whether the node told of anything.
bool RemoteCore::await(const std::shared_ptr<Inquiry>& inquiry) {
  wait_for_answer(*inquiry, Deadline::after_ms(options_.progress_timeout_ms));
  const Guard guard(*this);
  if (inquiry->answered.load(std::memory_order_acquire)) return inquiry->found;
  if (failure_.ok() && !impatient_.exchange(true)) {
    GENIE_LOG_WARN("{} did not say within {} ms what it has: from now on this session sends it everything", place_,
                   options_.progress_timeout_ms);
  }
  return false;
}

Status RemoteCore::on_answer_locked(const wire::Answer& answer) {
  const auto asked = inquiries_.find(answer.question);
  if (asked == inquiries_.end()) return {Errc::kProtocol, "answered a question that was never asked"};
  const std::shared_ptr<Inquiry> inquiry = std::move(asked->second);
  inquiries_.erase(asked);
  inquiry->found = !answer.blobs.empty();
  expectation_.store(inquiry->found ? Expectation::kPresent : Expectation::kAbsent, std::memory_order_relaxed);
  {
    const std::lock_guard lock(memory_mutex_);
    offers_.insert(offers_.end(), answer.blobs.begin(), answer.blobs.end());
  }
  inquiry->answered.store(true, std::memory_order_release);
  notify_waiters();
  return {};
}

bool RemoteCore::is_offered(size_t size, uint64_t sketch) {
  const std::lock_guard lock(memory_mutex_);
  return std::ranges::any_of(
      offers_, [&](const wire::Answer::Blob& offer) { return offer.size == size && offer.sketch == sketch; });
}

// The name of a blob that is the caller's from now on; 0: none has these bytes.
uint64_t RemoteCore::take_offer(size_t size, const wire::ContentHash& hash) {
  const std::lock_guard lock(memory_mutex_);
  const auto found = std::ranges::find_if(
      offers_, [&](const wire::Answer::Blob& offer) { return offer.size == size && offer.hash == hash; });
  if (found == offers_.end()) return 0;
  const uint64_t name = found->name;
  offers_.erase(found);
  return name;
}

void RemoteCore::release_offers() {
  const std::lock_guard lock(memory_mutex_);
  for (const wire::Answer::Blob& offer : offers_) result_releases_.push_back(offer.name);
  offers_.clear();
}

// Rides along with the next submission.
void RemoteCore::release_blob(uint64_t name) noexcept {
  const std::lock_guard lock(memory_mutex_);
  result_releases_.push_back(name);
}

}  // namespace genie::session
