// genie-bench e2e, TorchScript models: text written by char_gpt, and single forwards, on a node beside
// local eager with the same number of threads.
//
// Both sides run the same compiled module. A forward is timed from the input on this machine to the output on this machine.
#include <c10/core/InferenceMode.h>
#include <torch/script.h>

#include <algorithm>
#include <filesystem>
#include <functional>
#include <string>

#include "bench/benches.h"
#include "bench/models/scripted.h"
#include "bench/remote/place.h"
#include "datapath/base/clock.h"

namespace genie::bench {
namespace {

constexpr int64_t kPrompt = 12;

// Greedy decoding with a cache that grows by cat, as the model's own forward keeps it.
class Writer {
 public:
  Writer(const std::string& path, at::Device device) : model_(torch::jit::load(path, device)), device_(device) {
    model_.eval();
  }
  // Tokens per second, the prompt and the first two tokens apart: templates travel there.
  double tokens_per_s(int64_t tokens) {
    begin();
    next();
    next();
    const uint64_t start = now_ns();
    for (int64_t i = 0; i < tokens; ++i) next();
    return static_cast<double>(tokens) * 1e9 / static_cast<double>(now_ns() - start);
  }
  int64_t context() const { return model_.attr("context").toInt(); }

 private:
  void begin() {
    cache_ = c10::List<at::Tensor>();
    position_ = 0;
    tokens_ = torch::ones({1, kPrompt}, torch::kInt64).to(device_);
  }
  void next() {
    const auto out = model_.forward({tokens_, position_, cache_}).toTuple();
    position_ += tokens_.size(1);
    cache_ = out->elements()[1];
    const int64_t token = out->elements()[0].toTensor().select(1, -1).select(0, 0).cpu().argmax().item<int64_t>();
    tokens_ = torch::full({1, 1}, token, torch::dtype(torch::kInt64).device(device_));
  }

  torch::jit::Module model_;
  const at::Device device_;
  torch::IValue cache_;
  int64_t position_ = 0;
  at::Tensor tokens_;
};

void measure_decode(Harness& harness, RemotePlace& place) {
  const Json params = {{"model", "char_gpt"}, {"transport", place.transport()}, {"kv", "cat"}, {"threads", kThreads}};
  if (!harness.wants("decode.tokens_per_s", params)) return;
  const std::string path = GENIE_BENCH_CHAR_GPT;
  if (!std::filesystem::exists(path)) return harness.note("decode.tokens_per_s: there is no " + path);
  Writer remote(path, place.device());
  Writer local(path, at::kCPU);
  const int64_t tokens = std::min<int64_t>(harness.full_or_quick(200, 60), local.context() - kPrompt - 2);
  harness.row({.name = "decode.tokens_per_s", .params = params, .unit = "tokens/s", .better = Better::kHigher})
      .ours([&] { return remote.tokens_per_s(tokens); })
      .peer("local eager", [&] { return local.tokens_per_s(tokens); })
      .runs(harness.full_or_quick(9, 3))
      .measure();
}

// Milliseconds of one forward.
double forward_ms(torch::jit::Module& model, const at::Tensor& input, at::Device device) {
  const uint64_t start = now_ns();
  const at::Tensor output = model.forward({input.to(device)}).toTensor().cpu();
  return static_cast<double>(now_ns() - start) / 1e6;
}

void measure_forward(Harness& harness, RemotePlace& place, const std::string& name,
                     const std::function<torch::jit::Module()>& make, at::IntArrayRef input_sizes) {
  const Json params = {
      {"model", name}, {"batch", input_sizes[0]}, {"transport", place.transport()}, {"threads", kThreads}};
  if (!harness.wants("forward.latency", params)) return;
  torch::jit::Module local = make();
  torch::jit::Module remote = local.clone();
  const at::Tensor input = torch::randn(input_sizes);
  remote.to(place.device());
  harness.row({.name = "forward.latency", .params = params, .unit = "ms"})
      .ours([&] { return forward_ms(remote, input, place.device()); })
      .peer("local eager", [&] { return forward_ms(local, input, at::kCPU); })
      .warmup(4)  // TorchScript specialises during the first calls
      .runs(harness.full_or_quick(61, 15))
      .measure();
}

void run_scripts(Harness& harness) {
  const c10::InferenceMode inference;
  for (const std::string& transport : harness.transports_or({"shm"})) {
    RemotePlace place(transport);
    torch::manual_seed(1);
    measure_decode(harness, place);
    measure_forward(harness, place, "resnet18", [] { return models::scripted_resnet18(); }, {1, 3, 224, 224});
    measure_forward(harness, place, "encoder", [] { return models::scripted_encoder(); }, {1, 12, 64});
  }
}

const Registration kScripts("e2e", run_scripts);

}  // namespace
}  // namespace genie::bench
