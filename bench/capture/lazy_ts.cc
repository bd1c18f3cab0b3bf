#include "bench/capture/lazy_ts.h"

#include <torch/csrc/lazy/backend/backend_device.h>
#include <torch/csrc/lazy/core/lazy_graph_executor.h>
#include <torch/csrc/lazy/ts_backend/ts_backend_impl.h>

namespace genie::bench {

void init_lazy_ts() {
  static const bool done = [] {
    torch::lazy::InitTorchScriptBackend();
    return true;
  }();
  (void)done;
}

void sync_lazy_ts() {
  const torch::lazy::BackendDevice device;
  auto* executor = torch::lazy::LazyGraphExecutor::Get();
  executor->SyncLiveTensorsGraph(&device, {}, /*wait=*/true);
  executor->MarkStep(device);
}

}  // namespace genie::bench
