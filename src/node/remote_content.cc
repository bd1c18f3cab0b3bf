// Weights that a RemoteSession's client need not send, because the node has them: its questions, and what it holds meanwhile.
#include <algorithm>
#include <utility>

#include "src/node/remote_session.h"

namespace genie::node {
namespace {

static_assert(ContentStore::kMaxFound == wire::kMaxBlobs);
constexpr size_t kMaxHeldBlobs = 4096;
constexpr size_t kMinStakesToSweep = 64;

}  // namespace

Status RemoteSession::on_question(const wire::Question& question) {
  if (questions_.size() >= wire::kMaxQuestions) return {Errc::kProtocol, "too many questions without an answer"};
  if (!questions_.emplace(question.question, question).second) return {Errc::kProtocol, "a question was asked twice"};
  answer(question.question);
  return {};
}

void RemoteSession::answer(uint64_t number) {
  const auto asked = questions_.find(number);
  if (ending_ || asked == questions_.end()) return;
  wire::Answer message{.question = number};
  const wire::Question& question = asked->second;
  if (state_->content().store != nullptr && held_blobs_.size() < kMaxHeldBlobs) {
    ContentStore::Found found = state_->content().find(question.size, question.sketch, waiter_, number);
    if (!found.settled) return;  // until on_settled()
    for (std::shared_ptr<ContentHold>& hold : found.holds) {
      std::shared_ptr<UploadRegion> stake = stake_in(hold->memory());
      if (stake == nullptr || held_blobs_.size() >= kMaxHeldBlobs) continue;
      const uint64_t name = next_result_++;
      message.blobs.push_back(
          {.name = name, .size = hold->key().size, .sketch = hold->key().sketch, .hash = hold->hash()});
      held_blobs_.emplace(name, HeldBlob{std::move(hold), std::move(stake)});
    }
  }
  questions_.erase(asked);
  send(wire::NodeMessage(std::move(message)));
}

// This session's share in memory that another one brought, if its quota has room for that. It counts from now on.
std::shared_ptr<UploadRegion> RemoteSession::stake_in(const std::shared_ptr<const RegionMemory>& memory) {
  if (const auto known = stakes_.find(memory.get()); known != stakes_.end()) {
    if (std::shared_ptr<UploadRegion> stake = known->second.lock()) return stake;
  }
  const uint64_t quota = state_->limits().memory_bytes;
  const uint64_t used = state_->bytes_in_use();
  const bool fits_in = used <= quota && memory->taken().resident_bytes <= quota - used;
  const auto& account = state_->regions();
  if (!fits_in || account->count.load(std::memory_order_relaxed) >= UploadRegion::kMaxKeptBySession) return nullptr;
  auto stake = std::make_shared<UploadRegion>(Status(), memory, account);
  stake->charge();
  remember_stake(stake);
  return stake;
}

void RemoteSession::remember_stake(const std::shared_ptr<UploadRegion>& stake) {
  if (stakes_.size() >= std::max(stakes_to_sweep_, kMinStakesToSweep)) {
    std::erase_if(stakes_, [](const auto& entry) { return entry.second.expired(); });
    stakes_to_sweep_ = 2 * stakes_.size();
  }
  stakes_[stake->memory().get()] = stake;
}

Result<UploadOrder> RemoteSession::order_known(const wire::UploadEntry& entry) {
  const auto held = held_blobs_.find(entry.offset);
  if (held == held_blobs_.end() || held->second.hold->bytes().size() != entry.size) {
    return Status(Errc::kProtocol, "an upload of a blob that the session does not hold");
  }
  HeldBlob blob = std::move(held->second);
  held_blobs_.erase(held);
  state_->content().store->count_known(entry.size);
  UploadOrder order{.storage = entry.storage, .region = std::move(blob.stake)};
  order.memory = {.data = blob.hold->bytes().data(),
                  .size = entry.size,
                  .writable = order.region->taken().writable,
                  .counted_besides = true};
  order.content = std::move(blob.hold);
  return order;
}

void RemoteSession::end_content() {
  questions_.clear();
  held_blobs_.clear();
  stakes_.clear();
}

}  // namespace genie::node
