// What a user of the installed library writes: load a model, move it to the device, call it.
#include <genie/genie.h>
#include <torch/script.h>

#include <iostream>

int main(int, char** argv) {
  auto session = genie::Session::connect("embedded:");
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
