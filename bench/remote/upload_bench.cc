// genie-bench upload: a CPU tensor moved to a node until it is there, beside memcpy of the same bytes.
//
// Timed: .to(device), which writes the bytes once into memory that the node reads, and the round trip that hands them over.
// memcpy goes from the same source to a buffer of this process that was touched before. Every upload has other bytes than the
// one before, so that a node that keeps blobs by content never answers "have it".
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <cstring>
#include <string>

#include "bench/benches.h"
#include "bench/remote/place.h"
#include "datapath/base/clock.h"

namespace genie::bench {
namespace {

double mib_per_s(uint64_t bytes, uint64_t begin_ns, uint64_t end_ns) {
  return static_cast<double>(bytes) / static_cast<double>(1ULL << 20) * 1e9 / static_cast<double>(end_ns - begin_ns);
}

void measure(Harness& harness, RemotePlace& place, uint64_t bytes) {
  const Json params = {{"transport", place.transport()}, {"bytes", bytes}};
  if (!harness.wants("upload.bandwidth", params)) return;
  const Session& session = place.session();
  const c10::InferenceMode inference;
  at::Tensor source = at::empty({static_cast<int64_t>(bytes)}, at::kByte).fill_(1);
  at::Tensor target = at::empty({static_cast<int64_t>(bytes)}, at::kByte).fill_(2);
  uint64_t generation = 0;
  // Small ones are many to a run: one is over before the clock has moved much.
  const uint64_t repeats = std::max<uint64_t>(1, std::min<uint64_t>(64, (uint64_t{1} << 20) / bytes));
  harness.row({.name = "upload.bandwidth", .params = params, .unit = "MiB/s", .better = Better::kHigher})
      .ours([&](Samples& samples) {
        for (uint64_t i = 0; i < repeats; ++i) {
          ++generation;
          std::memcpy(source.data_ptr(), &generation, sizeof(generation));
          const uint64_t begin = now_ns();
          at::Tensor remote = source.to(session.device());
          session.synchronize();
          samples.add(mib_per_s(bytes, begin, now_ns()));
          remote.reset();
          session.synchronize();
        }
      })
      .peer("memcpy",
            [&](Samples& samples) {
              for (uint64_t i = 0; i < repeats; ++i) {
                const uint64_t begin = now_ns();
                std::memcpy(target.data_ptr(), source.data_ptr(), bytes);
                asm volatile("" : : "r"(target.data_ptr()) : "memory");
                samples.add(mib_per_s(bytes, begin, now_ns()));
              }
            })
      .measure();
}

void run_upload(Harness& harness) {
  at::set_num_threads(kThreads);
  constexpr uint64_t kKiB = uint64_t{1} << 10;
  constexpr uint64_t kMiB = uint64_t{1} << 20;
  for (const std::string& transport : harness.transports_or({"shm"})) {
    RemotePlace place(transport, Cores::kShared);
    for (const uint64_t bytes :
         {uint64_t{64}, 4 * kKiB, 64 * kKiB, 256 * kKiB, kMiB, 4 * kMiB, 16 * kMiB, 64 * kMiB, 256 * kMiB}) {
      measure(harness, place, bytes);
    }
  }
}

const Registration kUpload("upload", run_upload);

}  // namespace
}  // namespace genie::bench
