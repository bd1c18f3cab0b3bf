// Writes a small TorchScript model for `genie run`: small_model FILE. Large enough that its weights go as memory that is
// handed over, small enough for an emulated processor.
#include <torch/script.h>

#include <cstdio>

int main(int argc, char** argv) {
  if (argc != 2) return std::fprintf(stderr, "usage: small_model FILE\n"), 2;
  torch::manual_seed(1);
  torch::jit::Module model("Small");
  model.register_parameter("kernels", torch::randn({16, 3, 3, 3}), false);
  model.register_parameter("weight", torch::randn({256, 16 * 15 * 15}), false);
  model.register_parameter("bias", torch::randn({256}), false);
  model.define(R"(
    def forward(self, x):
      y = torch.relu(torch.conv2d(x, self.kernels))
      z = torch.addmm(self.bias, torch.flatten(torch.max_pool2d(y, [2, 2]), 1), self.weight.t())
      return torch.softmax(z, 1), z.argmax(1), torch.cat([x, x])
  )");
  model.save(argv[1]);
  return 0;
}
