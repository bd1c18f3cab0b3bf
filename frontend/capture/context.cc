#include "frontend/capture/context.h"

#include <c10/core/impl/LocalDispatchKeySet.h>

#include <algorithm>
#include <vector>

#include "frontend/capture/journal.h"
#include "frontend/capture/registry.h"
#include "frontend/capture/session_core.h"

namespace genie::frontend {
namespace {

struct Context {
  std::vector<std::shared_ptr<CaptureState>> open;
  std::shared_ptr<CaptureState> last;

  ~Context() {
    if (!open.empty()) open.front()->journal->detach_all();
  }
};

// What runs on a thread after its own variables have gone (destructors of static objects, on the main one) finds nothing open.
enum class Stage : uint8_t { kNone, kThere, kGone };
constinit thread_local Stage stage = Stage::kNone;
constinit thread_local Context* mine_or_null = nullptr;

struct Owner {
  Context context;
  Owner() {
    stage = Stage::kThere;
    mine_or_null = &context;
  }
  ~Owner() {
    stage = Stage::kGone;
    mine_or_null = nullptr;
  }
};

// Null once the thread's variables have gone.
Context* context() {
  if (stage == Stage::kNone) [[unlikely]] {
    static thread_local Owner owner;
    (void)owner;
  }
  return mine_or_null;
}

void include_key(bool wanted) { c10::impl::tls_set_dispatch_key_included(c10::DispatchKey::DeferredInit, wanted); }

// Drops what has ended; with the last one the thread is as it was before.
void forget_ended(Context& mine) {
  if (mine.open.empty()) return;
  const std::shared_ptr<Journal> journal = mine.open.front()->journal;
  std::erase_if(mine.open, [](const auto& capture) { return capture->ended.load(std::memory_order_acquire); });
  if (!mine.open.empty()) return;
  include_key(false);
  journal->detach_all();
}

}  // namespace

std::shared_ptr<CaptureState> begin_capture(std::optional<c10::Device> device) {
  if (const Status forked = check_fork(); !forked.ok()) throw Error(forked);
  if (context() == nullptr)
    throw Error({Errc::kCancelled, "genie::Capture: the thread is ending, nothing can be captured"});
  Context& mine = *context();
  forget_ended(mine);
  if (!device.has_value()) {
    device = mine.open.empty()
                 ? c10::Device(c10::DeviceType::PrivateUse1, static_cast<c10::DeviceIndex>(current_device()))
                 : mine.open.back()->device;
  }
  TORCH_CHECK(device->is_privateuseone(), "genie::Capture captures for remote_accelerator, not for ", *device);
  if (!device->has_index()) device->set_index(static_cast<c10::DeviceIndex>(current_device()));
  core_of(device->index());  // opens the default session, or says what is missing
  const bool outermost = mine.open.empty();
  auto journal = outermost ? std::make_shared<Journal>() : mine.open.back()->journal;
  if (outermost) {
    for (Stream* stream : thread_streams()) journal->attach(*stream);
  }
  const size_t first = journal->settle();
  mine.open.push_back(std::make_shared<CaptureState>(std::move(journal), *device, first));
  if (outermost) include_key(true);
  return mine.open.back();
}

void end_capture(const std::shared_ptr<CaptureState>& capture) {
  if (capture->ended.load(std::memory_order_acquire)) return;
  capture->last.store(capture->journal->settle(), std::memory_order_relaxed);
  capture->ended.store(true, std::memory_order_release);
  Context* const mine = context();
  if (mine == nullptr || std::ranges::find(mine->open, capture) == mine->open.end()) return;  // another thread's
  mine->last = capture;
  forget_ended(*mine);
}

void leave_captures_to_parent() noexcept {
  if (Context* const mine = context(); mine != nullptr) {
    for (const auto& capture : mine->open) {
      capture->last.store(capture->first, std::memory_order_relaxed);
      capture->ended.store(true, std::memory_order_release);
    }
    mine->open.clear();
  }
  include_key(false);
}

const CaptureState* current_capture() noexcept {
  Context* const mine = context();
  if (mine == nullptr || mine->open.empty()) return nullptr;
  if (mine->open.back()->ended.load(std::memory_order_acquire)) [[unlikely]]
    forget_ended(*mine);
  return mine->open.empty() ? nullptr : mine->open.back().get();
}

std::shared_ptr<const CaptureState> last_capture() {
  const Context* const mine = context();
  return mine == nullptr ? nullptr : mine->last;
}

std::shared_ptr<Journal> thread_journal() {
  const CaptureState* capture = current_capture();
  return capture == nullptr ? nullptr : capture->journal;
}

Graph CaptureState::graph() const {
  const size_t end = ended.load(std::memory_order_acquire) ? last.load(std::memory_order_relaxed) : journal->settle();
  return journal->graph(first, end);
}

}  // namespace genie::frontend
