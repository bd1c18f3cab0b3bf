// genie-bench upload: the weights of a model moved to a node by one session, then by a second one, which finds them there.
//
// Timed: .to(device) of every weight and the round trip behind it. The first session's weights are new to the node in each run;
// it hashes them meanwhile. The second one brings the same weights while the first still has them: it hashes them
// and sends none. The peers are what cannot be saved: memcpy of the same weights to memory that was touched before, and the hash alone, by
// the same function. Weights have the shapes of GPT-2 small, 498 MB.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <c10/core/InferenceMode.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "bench/benches.h"
#include "bench/harness/node_process.h"
#include "bench/remote/place.h"
#include "datapath/base/clock.h"
#include "src/protocol/content.h"

namespace genie::bench {
namespace {

class Weights {
 public:
  explicit Weights(int64_t layers, int64_t words) {
    constexpr int64_t kWidth = 768;
    const auto add = [this](int64_t rows, int64_t columns) {
      const auto seed = static_cast<float>(tensors_.size());
      tensors_.push_back(at::empty({rows, columns}, at::kFloat).fill_(seed));
      copies_.push_back(at::empty({rows, columns}, at::kFloat).fill_(-1));
      bytes_ += tensors_.back().nbytes();
    };
    add(words, kWidth);
    for (int64_t i = 0; i < layers; ++i) {
      add(3 * kWidth, kWidth);
      add(kWidth, kWidth);
      add(4 * kWidth, kWidth);
      add(kWidth, 4 * kWidth);
    }
  }

  uint64_t bytes() const { return bytes_; }
  double mib() const { return static_cast<double>(bytes_) / static_cast<double>(1ULL << 20); }
  // Other weights than ever before.
  void change() {
    ++generation_;
    for (at::Tensor& tensor : tensors_) std::memcpy(tensor.data_ptr(), &generation_, sizeof(generation_));
  }
  std::vector<at::Tensor> to(const Session& session) const {
    std::vector<at::Tensor> moved;
    moved.reserve(tensors_.size());
    for (const at::Tensor& tensor : tensors_) moved.push_back(tensor.to(session.device()));
    session.synchronize();
    return moved;
  }
  void copy() {
    for (size_t i = 0; i < tensors_.size(); ++i) {
      std::memcpy(copies_[i].data_ptr(), tensors_[i].const_data_ptr(), tensors_[i].nbytes());
      asm volatile("" : : "r"(copies_[i].data_ptr()) : "memory");
    }
  }
  void hash() {
    for (const at::Tensor& tensor : tensors_) {
      const auto* const data = static_cast<const std::byte*>(tensor.const_data_ptr());
      sum_ ^= wire::hash_of({data, tensor.nbytes()}).low;
    }
    asm volatile("" : : "r"(sum_));
  }

 private:
  std::vector<at::Tensor> tensors_;
  std::vector<at::Tensor> copies_;
  uint64_t bytes_ = 0;
  uint64_t generation_ = 0;
  uint64_t sum_ = 0;
};

template <typename Function>
double seconds(const Function& function) {
  const uint64_t begin = now_ns();
  function();
  return static_cast<double>(now_ns() - begin) * 1e-9;
}

void measure(Harness& harness, const std::string& transport) {
  constexpr double kFirstTarget = 0.9;
  constexpr double kSecondTarget = 1.1;
  Weights weights(harness.full_or_quick(12, 2), harness.full_or_quick(50257, 5000));
  const Json params = {{"transport", transport}, {"bytes", weights.bytes()}};
  const bool first_wanted = harness.wants("upload.first_session", params);
  const bool second_wanted = harness.wants("upload.second_session", params);
  if (!first_wanted && !second_wanted) return;
  const NodeProcess node({.threads = kThreads, .transport = transport});
  const Session first = Session::connect(node.uri());
  const Session second = Session::connect(node.uri());
  const c10::InferenceMode inference;
  const size_t runs = harness.full_or_quick<size_t>(9, 5);
  if (first_wanted) {
    harness
        .row({.name = "upload.first_session",
              .params = params,
              .unit = "MiB/s",
              .better = Better::kHigher,
              .target = kFirstTarget})
        .runs(runs)
        .ours([&] {
          weights.change();
          std::vector<at::Tensor> moved;
          const double taken = seconds([&] { moved = weights.to(first); });
          moved.clear();
          first.synchronize();
          return weights.mib() / taken;
        })
        .peer("the slower of memcpy and XXH3-128",
              [&] {
                const double copied = seconds([&] { weights.copy(); });
                const double hashed = seconds([&] { weights.hash(); });
                return weights.mib() / std::max(copied, hashed);
              })
        .measure();
  }
  if (!second_wanted) return;
  weights.change();
  const std::vector<at::Tensor> kept = weights.to(first);
  const uint64_t before = second.stats().upload_bytes;
  harness
      .row({.name = "upload.second_session",
            .params = params,
            .unit = "ms",
            .better = Better::kLower,
            .target = kSecondTarget})
      .runs(runs)
      .ours([&] {
        std::vector<at::Tensor> moved;
        const double taken = seconds([&] { moved = weights.to(second); });
        moved.clear();
        second.synchronize();
        return taken * 1e3;
      })
      .peer("XXH3-128", [&] { return seconds([&] { weights.hash(); }) * 1e3; })
      .measure();
  harness.note(fmt::format("upload.second_session over {}: {} bytes were sent, {} were known to the node", transport,
                           second.stats().upload_bytes - before, second.stats().upload_known_bytes));
}

void run_content(Harness& harness) {
  at::set_num_threads(kThreads);
  for (const std::string& transport : harness.transports_or({"shm"})) {
    if (transport != "embedded") measure(harness, transport);  // there nothing is sent
  }
}

const Registration kContent("upload", run_content);

}  // namespace
}  // namespace genie::bench
