// genie-bench fetch: a node's tensor brought back with .cpu(), and looked at.
//
// Two sources. "stored": a tensor that was on the node before, beside memcpy of the same bytes into a tensor of this process that
// was touched before. "computed": x + x fetched by the flush that computes it, beside the same sum by CPU eager. Timed until one
// byte of every page of the result has been read, on either side: memory that is mapped but not present costs its reader.
#include <ATen/Parallel.h>
#include <ATen/ops/add.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <cstring>
#include <string>

#include "bench/benches.h"
#include "bench/remote/place.h"
#include "datapath/base/clock.h"

namespace genie::bench {
namespace {

constexpr uint64_t kPage = 4096;

void look_at(const at::Tensor& tensor) {
  const auto* const bytes = static_cast<const volatile char*>(tensor.const_data_ptr());
  for (uint64_t i = 0; i < tensor.nbytes(); i += kPage) (void)bytes[i];
}

template <typename Make>
void sample(Samples& samples, uint64_t bytes, const Make& make) {
  // Small ones are many to a run: one is over before the clock has moved much.
  const uint64_t repeats = std::clamp<uint64_t>((uint64_t{16} << 20) / bytes, 1, 64);
  for (uint64_t i = 0; i < repeats; ++i) {
    const uint64_t begin = now_ns();
    const at::Tensor value = make();
    look_at(value);
    const double seconds = static_cast<double>(now_ns() - begin) / 1e9;
    samples.add(static_cast<double>(bytes) / static_cast<double>(1ULL << 20) / seconds);
  }
}

void measure(Harness& harness, RemotePlace& place, uint64_t bytes, bool stored) {
  const Json params = {{"transport", place.transport()}, {"source", stored ? "stored" : "computed"}, {"bytes", bytes}};
  if (!harness.wants("fetch.bandwidth", params)) return;
  const Session& session = place.session();
  const c10::InferenceMode inference;
  const at::Tensor local = at::empty({static_cast<int64_t>(bytes / sizeof(float))}).fill_(1);
  at::Tensor target = at::empty_like(local).fill_(2);
  const at::Tensor remote = local.to(session.device());
  session.synchronize();
  harness.row({.name = "fetch.bandwidth", .params = params, .unit = "MiB/s", .better = Better::kHigher})
      .ours([&](Samples& samples) {
        sample(samples, bytes, [&] { return stored ? remote.cpu() : at::add(remote, remote).cpu(); });
      })
      .peer(stored ? "memcpy" : "eager",
            [&](Samples& samples) {
              sample(samples, bytes, [&] {
                if (!stored) return at::add(local, local);
                std::memcpy(target.mutable_data_ptr(), local.const_data_ptr(), bytes);
                return target;
              });
            })
      .measure();
}

void run_fetch(Harness& harness) {
  at::set_num_threads(kThreads);
  constexpr uint64_t kKiB = uint64_t{1} << 10;
  constexpr uint64_t kMiB = uint64_t{1} << 20;
  for (const std::string& transport : harness.transports_or({"shm", "embedded"})) {
    RemotePlace place(transport, Cores::kShared);
    for (const bool stored : {false, true}) {
      for (const uint64_t bytes : {4 * kKiB, 64 * kKiB, kMiB, 4 * kMiB, 16 * kMiB, 64 * kMiB}) {
        measure(harness, place, bytes, stored);
      }
    }
  }
}

const Registration kFetch("fetch", run_fetch);

}  // namespace
}  // namespace genie::bench
