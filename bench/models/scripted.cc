#include "bench/models/scripted.h"

#include <cmath>

namespace genie::models {
namespace {

// Collects a module's parameters and its code, line by line.
class Writer {
 public:
  explicit Writer(const std::string& name) : module_(name) {}

  std::string parameter(torch::Tensor value) {
    const std::string name = "p" + std::to_string(count_++);
    module_.register_parameter(name, std::move(value), /*is_buffer=*/false);
    return "self." + name;
  }
  std::string buffer(torch::Tensor value) {
    const std::string name = "b" + std::to_string(count_++);
    module_.register_buffer(name, std::move(value));
    return "self." + name;
  }
  void line(const std::string& text) { code_ += "    " + text + "\n"; }
  torch::jit::Module finish() {
    module_.define("def forward(self, x: Tensor) -> Tensor:\n" + code_ + "    return x\n");
    module_.eval();
    return module_;
  }

 private:
  torch::jit::Module module_;
  std::string code_;
  int count_ = 0;
};

void conv_bn(Writer& out, const std::string& to, const std::string& from, int64_t in_channels, int64_t out_channels,
             int64_t kernel, int64_t stride) {
  const double scale = std::sqrt(2.0 / static_cast<double>(in_channels * kernel * kernel));
  const auto weight = out.parameter(torch::randn({out_channels, in_channels, kernel, kernel}) * scale);
  const auto s = std::to_string(stride);
  const auto p = std::to_string(kernel / 2);
  out.line(to + " = torch.conv2d(" + from + ", " + weight + ", None, [" + s + ", " + s + "], [" + p + ", " + p +
           "], [1, 1], 1)");
  out.line(to + " = torch.batch_norm(" + to + ", " + out.parameter(torch::rand({out_channels}) + 0.5) + ", " +
           out.parameter(torch::randn({out_channels}) * 0.1) + ", " + out.buffer(torch::randn({out_channels}) * 0.1) +
           ", " + out.buffer(torch::rand({out_channels}) + 0.5) + ", False, 0.1, 1e-05, False)");
}

std::string linear(Writer& out, int64_t in_features, int64_t out_features, const std::string& from) {
  const auto weight =
      out.parameter(torch::randn({out_features, in_features}) / std::sqrt(static_cast<double>(in_features)));
  const auto bias = out.parameter(torch::randn({out_features}) * 0.01);
  return "torch.linear(" + from + ", " + weight + ", " + bias + ")";
}

std::string layer_norm(Writer& out, int64_t width, const std::string& from) {
  return "torch.layer_norm(" + from + ", [" + std::to_string(width) + "], " + out.parameter(torch::ones({width})) +
         ", " + out.parameter(torch::zeros({width})) + ", 1e-05)";
}

}  // namespace

torch::jit::Module scripted_resnet18(int64_t classes) {
  Writer out("ResNet18");
  conv_bn(out, "x", "x", 3, 64, 7, 2);
  out.line("x = torch.max_pool2d(torch.relu(x), [3, 3], [2, 2], [1, 1], [1, 1], False)");
  int64_t channels = 64;
  for (int64_t stage = 0; stage < 4; ++stage) {
    for (int64_t block = 0; block < 2; ++block) {
      const int64_t out_channels = int64_t{64} << stage;
      const int64_t stride = stage > 0 && block == 0 ? 2 : 1;
      conv_bn(out, "y", "x", channels, out_channels, 3, stride);
      out.line("y = torch.relu(y)");
      conv_bn(out, "y", "y", out_channels, out_channels, 3, 1);
      if (stride != 1 || channels != out_channels) conv_bn(out, "x", "x", channels, out_channels, 1, stride);
      out.line("x = torch.relu(x + y)");
      channels = out_channels;
    }
  }
  out.line("x = torch.flatten(torch.adaptive_avg_pool2d(x, [1, 1]), 1)");
  out.line("x = " + linear(out, channels, classes, "x"));
  return out.finish();
}

torch::jit::Module scripted_encoder(int64_t layers, int64_t width, int64_t heads) {
  Writer out("Encoder");
  const auto w = std::to_string(width);
  const auto h = std::to_string(heads);
  const auto d = std::to_string(width / heads);
  for (int64_t layer = 0; layer < layers; ++layer) {
    out.line("n = " + layer_norm(out, width, "x"));
    out.line("batch, length = x.size(0), x.size(1)");
    for (const char* name : {"q", "k", "v"}) {
      out.line(std::string(name) + " = " + linear(out, width, width, "n") + ".view(batch, length, " + h + ", " + d +
               ").transpose(1, 2)");
    }
    out.line("a = torch.scaled_dot_product_attention(q, k, v)");
    out.line("a = a.transpose(1, 2).reshape(batch, length, " + w + ")");
    out.line("x = x + " + linear(out, width, width, "a"));
    out.line("n = " + layer_norm(out, width, "x"));
    out.line("m = torch.gelu(" + linear(out, width, 4 * width, "n") + ")");
    out.line("x = x + " + linear(out, 4 * width, width, "m"));
  }
  return out.finish();
}

}  // namespace genie::models
