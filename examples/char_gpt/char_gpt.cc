// char_gpt: a small GPT writes text, once on this machine and once on a node, and both must write the same.
//
// An ordinary libtorch program: what makes it run on a node are the session and the device, nothing else.
#include <ATen/Parallel.h>
#include <genie/genie.h>
#include <torch/script.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

namespace {

struct Options {
  std::string model;
  std::string cluster = "embedded:";
  std::string prompt = "This License";
  int tokens = 200;
  double temperature = 0.5;
  uint64_t seed = 1;
  int threads = 1;
};

struct Text {
  std::string written;
  std::vector<int64_t> tokens;
  double first_s = 0;   // the prompt and the first token
  double second_s = 0;  // the second token: templates travel here
  double rest_s = 0;    // all later ones
  double tokens_per_s() const { return static_cast<double>(tokens.size() - 2) / rest_s; }
};

// Draws from softmax(logits / temperature) on this machine; temperature 0 takes the likeliest.
int64_t pick(const torch::Tensor& logits, double temperature, std::mt19937_64& random) {
  if (temperature <= 0) return logits.argmax().item<int64_t>();
  const torch::Tensor weights = torch::softmax(logits.to(torch::kFloat64) / temperature, 0).cumsum(0);
  const double drawn = static_cast<double>(random() >> 11) * 0x1.0p-53;
  const auto sums = weights.accessor<double, 1>();
  for (int64_t i = 0; i + 1 < sums.size(0); ++i) {
    if (drawn < sums[i]) return i;
  }
  return sums.size(0) - 1;
}

// `after_warm_up` is called when two tokens are written and every later step is like the one before.
template <typename AfterWarmUp>
Text write(torch::jit::Module& model, torch::Device device, const Options& options, const AfterWarmUp& after_warm_up) {
  Text text;
  std::mt19937_64 random(options.seed);
  torch::Tensor tokens = model.run_method("encode", options.prompt).toTensor().to(device);
  torch::IValue cache = c10::List<torch::Tensor>();
  int64_t pos = 0;
  auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < options.tokens; ++i) {
    const auto out = model.forward({tokens, pos, cache}).toTuple();
    pos += tokens.size(1);
    cache = out->elements()[1];
    const torch::Tensor logits = out->elements()[0].toTensor().select(1, -1).select(0, 0).cpu();
    const int64_t token = pick(logits, options.temperature, random);
    text.tokens.push_back(token);
    tokens = torch::full({1, 1}, token, torch::dtype(torch::kInt64).device(device));
    if (i <= 1 || i + 1 == options.tokens) {
      const auto now = std::chrono::steady_clock::now();
      (i == 0   ? text.first_s
       : i == 1 ? text.second_s
                : text.rest_s) = std::chrono::duration<double>(now - start).count();
      start = now;
    }
    if (i == 1) after_warm_up();
  }
  text.written = model.run_method("decode", torch::tensor(text.tokens, torch::kInt64)).toStringRef();
  return text;
}

void print_counters(const genie::Stats& before, const genie::Stats& warm, const genie::Stats& after, int tokens) {
  const double steps = tokens - 2;
  const auto all = [&](uint64_t genie::Stats::*field) { return after.*field - before.*field; };
  const auto per_step = [&](uint64_t genie::Stats::*field) {
    return static_cast<double>(after.*field - warm.*field) / steps;
  };
  const auto row = [&](const char* name, uint64_t genie::Stats::*field) {
    std::printf("  %-24s %12llu in all, %10.1f per later token\n", name, static_cast<unsigned long long>(all(field)),
                per_step(field));
  };
  row("operations captured", &genie::Stats::captured_ops);
  row("flushes", &genie::Stats::flushes);
  row("templates registered", &genie::Stats::templates_registered);
  row("bytes of messages", &genie::Stats::message_bytes);
  row("bytes uploaded", &genie::Stats::upload_bytes);
  row("bytes fetched", &genie::Stats::fetch_bytes);
}

int run(const Options& options) {
  at::set_num_threads(options.threads);
  const c10::InferenceMode inference;
  const auto load = [&](torch::Device device) {
    torch::jit::Module model = torch::jit::load(options.model, device);
    model.eval();
    return model;
  };

  torch::jit::Module local = load(torch::kCPU);
  const int64_t context = local.attr("context").toInt();
  const int64_t prompt = local.run_method("encode", options.prompt).toTensor().size(1);
  if (prompt == 0 || prompt + options.tokens > context) {
    std::fprintf(stderr, "char_gpt: the prompt (1 or more) and the tokens must fit into %lld together\n",
                 static_cast<long long>(context));
    return 2;
  }
  const Text here = write(local, torch::kCPU, options, [] {});

  const auto session = genie::Session::connect(options.cluster);
  const torch::Device device("remote_accelerator:0");
  const genie::Stats before = genie::stats();
  torch::jit::Module remote = load(device);
  genie::Stats warm;
  const Text there = write(remote, device, options, [&] { warm = genie::stats(); });
  const genie::Stats after = genie::stats();

  std::printf("--- written on %s\n%s%s\n---\n", options.cluster.c_str(), options.prompt.c_str(), there.written.c_str());
  const bool same = here.tokens == there.tokens;
  std::printf("%d tokens, same as local eager: %s\n", options.tokens, same ? "yes" : "NO");
  std::printf("tokens/s after the second token: local %.1f, remote %.1f\n", here.tokens_per_s(), there.tokens_per_s());
  std::printf("first token: local %.1f ms, remote %.1f ms; second: local %.1f ms, remote %.1f ms\n", 1e3 * here.first_s,
              1e3 * there.first_s, 1e3 * here.second_s, 1e3 * there.second_s);
  print_counters(before, warm, after, options.tokens);
  return same ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app{"A small GPT writes text, on this machine and on a node, and says what that took"};
  app.add_option("MODEL", options.model, "char_gpt.pt")->required()->check(CLI::ExistingFile);
  app.add_option("--cluster", options.cluster, "embedded:, unix:/path.sock or tcp://host:port")->capture_default_str();
  app.add_option("--prompt", options.prompt, "What the text begins with")->capture_default_str();
  app.add_option("--tokens", options.tokens, "How many to write")
      ->check(CLI::Range(3, 1'000'000))
      ->capture_default_str();
  app.add_option("--temperature", options.temperature, "0 takes the likeliest")
      ->check(CLI::Range(0.0, 10.0))
      ->capture_default_str();
  app.add_option("--seed", options.seed, "Of the drawing")->capture_default_str();
  app.add_option("--threads", options.threads, "Intra-op threads here; give the node as many")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  try {
    return run(options);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "char_gpt: %s\n", error.what());
    return 1;
  }
}
