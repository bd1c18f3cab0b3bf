#include "bench/e2e/memory_program.h"

#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>
#include <genie/genie.h>
#include <torch/utils.h>

#include <cstdio>
#include <exception>
#include <optional>
#include <stdexcept>
#include <string_view>

#include "bench/models/gpt2.h"
#include "bench/models/registry.h"
#include "bench/remote/place.h"

namespace genie::bench {
namespace {

constexpr std::string_view kDecoding = "gpt2_decode";
constexpr int kForwards = 3;
constexpr int kTokens = 32;

void decode(models::Scale scale, at::Device device) {
  const models::Gpt2Config config = scale == models::Scale::kReal
                                        ? models::Gpt2Config()
                                        : models::Gpt2Config{.vocabulary = 997, .width = 192, .layers = 4};
  models::Gpt2 model(config);
  model->eval();
  model->to(device);
  models::Gpt2Cache cache(models::Gpt2Cache::Style::kCat, config);
  at::Tensor token = torch::arange(1, 17, torch::kLong).unsqueeze(0).to(device);
  for (int i = 0; i < kTokens; ++i) {
    token = model->decode(token, cache).argmax(-1, /*keepdim=*/true);
    (void)token.item<int64_t>();
  }
}

void run_forwards(const models::Entry& entry, models::Scale scale, at::Device device) {
  const models::Model model = entry.make(scale);
  model.module->to(device);
  for (int i = 0; i < kForwards; ++i) {
    models::Tensors inputs = entry.inputs(scale);
    for (at::Tensor& input : inputs) input = input.to(device);
    (void)model.forward(inputs).cpu();
  }
}

void run(const std::string& name, models::Scale scale, const std::string& where) {
  at::set_num_threads(kThreads);
  const c10::InferenceMode inference;
  std::optional<Session> session;
  if (where != "cpu") session.emplace(Session::connect(where));
  const at::Device device = session ? session->device() : at::Device(at::kCPU);
  if (name == kDecoding) return decode(scale, device);
  const models::Entry* entry = models::find(name);
  if (entry == nullptr) throw std::runtime_error("no model is called " + name);
  run_forwards(*entry, scale, device);
}

}  // namespace

std::vector<std::string> memory_models() { return {std::string(kDecoding), "resnet50"}; }

int run_memory_program(int argc, char** argv) {
  if (argc != 3) return 2;
  try {
    run(argv[0], std::string_view(argv[1]) == "real" ? models::Scale::kReal : models::Scale::kReduced, argv[2]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "genie-bench memory-program: %s\n", error.what());
    return 1;
  }
  return 0;
}

}  // namespace genie::bench
