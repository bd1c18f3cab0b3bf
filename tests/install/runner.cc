// What a user of the installed library writes: load a model, move it to the device, call it.
#include <genie/genie.h>
#include <torch/script.h>

#include <iostream>
#include <optional>

namespace {
std::optional<genie::Session> session;  // until after main: what it needs has to be there then
}

int main(int argc, char** argv) {
  session.emplace(genie::Session::connect(argc > 2 ? argv[2] : "embedded:"));
  auto model = torch::jit::load(argv[1]);
  auto tokens = model.run_method("encode", "This License").toTensor();
  auto logits = [&](torch::Device device) {
    model.to(device);
    const auto result = model.forward({tokens.to(device), 0, c10::List<torch::Tensor>()});
    return result.toTupleRef().elements()[0].toTensor().detach().cpu();
  };
  const bool same = torch::equal(logits(torch::kCPU), logits(torch::Device("remote_accelerator:0")));
  std::cout << "node and eager: " << (same ? "same" : "different") << std::endl;
  return same ? 0 : 1;
}
