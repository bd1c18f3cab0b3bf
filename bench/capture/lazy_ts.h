// libtorch's own lazy TorchScript backend: the peer of capture.op.
//
// Thread-safety: one thread.
#pragma once

namespace genie::bench {

// Registers the device "lazy:0". Idempotent.
void init_lazy_ts();
// Compiles and runs what was traced, and waits, so that no trace grows from sample to sample.
void sync_lazy_ts();

}  // namespace genie::bench
