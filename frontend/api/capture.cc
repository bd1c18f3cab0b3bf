// genie::Capture over the frontend's captures.
#include "genie/capture.h"

#include "frontend/capture/context.h"
#include "frontend/capture/lift.h"

namespace genie {

struct Capture::Impl {
  std::shared_ptr<frontend::CaptureState> state;
};

Capture::Capture() : impl_(std::make_unique<Impl>(frontend::begin_capture(std::nullopt))) {}
Capture::Capture(c10::Device device) : impl_(std::make_unique<Impl>(frontend::begin_capture(device))) {}
Capture::~Capture() { end(); }

void Capture::end() {
  frontend::end_capture(impl_->state);
  frontend::forget_dead_copies();
}

c10::Device Capture::device() const { return impl_->state->device; }
Graph Capture::graph() const { return impl_->state->graph(); }

bool is_capturing() noexcept { return frontend::current_capture() != nullptr; }

}  // namespace genie
