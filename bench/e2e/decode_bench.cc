// genie-bench e2e, decoding: text written by GPT-2 small with random weights, token by token, on a node beside local eager with
// the same number of threads. Greedy: a step's token is the next one's input, on the device, and comes to this machine as a
// number. Both sides write the same text, which is compared after each pair of runs.
#include <c10/core/InferenceMode.h>
#include <torch/utils.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "bench/benches.h"
#include "bench/models/gpt2.h"
#include "bench/remote/place.h"
#include "datapath/base/clock.h"

namespace genie::bench {
namespace {

using Style = models::Gpt2Cache::Style;

constexpr uint64_t kSeed = 7;
constexpr int64_t kPrompt = 16;
constexpr const char* kOtherText = "the node wrote another text than local eager";

class Writer {
 public:
  Writer(const models::Gpt2Config& config, at::Device device) : config_(config), device_(device) {
    torch::manual_seed(kSeed);
    model_ = models::Gpt2(config);
    model_->eval();
    model_->to(device);
  }

  // The prompt and two more apart: templates travel there.
  double tokens_per_s(int64_t tokens, Style style) {
    models::Gpt2Cache cache(style, config_);
    text_.clear();
    at::Tensor next = torch::arange(1, kPrompt + 1, torch::kLong).unsqueeze(0).to(device_);
    for (int i = 0; i < 3; ++i) next = step(next, cache);
    const uint64_t start = now_ns();
    for (int64_t i = 0; i < tokens; ++i) next = step(next, cache);
    return static_cast<double>(tokens) * 1e9 / static_cast<double>(now_ns() - start);
  }
  const std::vector<int64_t>& text() const noexcept { return text_; }

 private:
  at::Tensor step(const at::Tensor& tokens, models::Gpt2Cache& cache) {
    at::Tensor next = model_->decode(tokens, cache).argmax(-1, /*keepdim=*/true);
    text_.push_back(next.item<int64_t>());
    return next;
  }

  const models::Gpt2Config config_;
  const at::Device device_;
  models::Gpt2 model_{nullptr};
  std::vector<int64_t> text_;
};

struct Writers {
  Writers(const models::Gpt2Config& config, const std::string& transport)
      : place(transport), remote(config, place.device()), local(config, at::kCPU) {}
  RemotePlace place;
  Writer remote, local;
};

void run_decoding(Harness& harness) {
  const c10::InferenceMode inference;
  const models::Gpt2Config config =
      harness.full_or_quick(models::Gpt2Config(), models::Gpt2Config{.vocabulary = 997, .width = 192, .layers = 4});
  const int64_t tokens = harness.full_or_quick<int64_t>(128, 32);
  for (const std::string& transport : harness.transports_or({"shm"})) {
    std::optional<Writers> writers;
    for (const Style style : {Style::kCat, Style::kInPlace}) {
      const Json params = {{"model", "gpt2"},
                           {"size", harness.full_or_quick("real", "reduced")},
                           {"transport", transport},
                           {"kv", style == Style::kCat ? "cat" : "in_place"},
                           {"threads", kThreads}};
      if (!harness.wants("decode.tokens_per_s", params)) continue;
      const auto begin = [&] {
        if (!writers) writers.emplace(config, transport);
      };
      harness
          .row({.name = "decode.tokens_per_s",
                .params = params,
                .unit = "tokens/s",
                .better = Better::kHigher,
                .target = transport == "shm" ? 0.97 : 0.95})
          .ours([&] {
            begin();
            return writers->remote.tokens_per_s(tokens, style);
          })
          .peer("local eager",
                [&] {
                  begin();
                  const double rate = writers->local.tokens_per_s(tokens, style);
                  if (writers->remote.text() != writers->local.text()) throw std::runtime_error(kOtherText);
                  return rate;
                })
          .runs(harness.full_or_quick(7, 5))
          .measure();
    }
  }
}

const Registration kDecoding("e2e", run_decoding);

}  // namespace
}  // namespace genie::bench
