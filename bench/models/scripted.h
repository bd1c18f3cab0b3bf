// TorchScript models written without Python: the parameters are registered and the code is defined from C++, so that a test can
// save and load real .pt files on a machine that has libtorch only.
#pragma once

#include <torch/script.h>

#include <string>

namespace genie::models {

// ResNet-18 (inference: batch norm uses running statistics). forward(x: [batch, 3, h, w]) -> [batch, classes]
torch::jit::Module scripted_resnet18(int64_t classes = 1000);
// A pre-norm transformer encoder. forward(x: [batch, length, width]) -> same shape
torch::jit::Module scripted_encoder(int64_t layers = 2, int64_t width = 64, int64_t heads = 4);

}  // namespace genie::models
