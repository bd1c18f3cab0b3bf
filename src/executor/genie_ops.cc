// Genie's own operators: what the frontend records besides PyTorch's. They run on the node like any other.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

namespace genie::executor {
namespace {

// A new storage of that many bytes, its content undefined: torch::empty came before.
at::Tensor alloc(int64_t size_bytes) { return at::empty({size_bytes}, at::TensorOptions(at::kByte).device(at::kCPU)); }

// Grows a storage in place (resize_): every tensor over it sees the larger one.
void resize_storage(at::Tensor self, int64_t size_bytes) {
  auto* storage = self.storage().unsafeGetStorageImpl();
  const auto old_bytes = static_cast<int64_t>(storage->nbytes());
  at::DataPtr grown = storage->allocator()->allocate(static_cast<size_t>(size_bytes));
  if (old_bytes > 0) std::memcpy(grown.get(), storage->data(), static_cast<size_t>(std::min(old_bytes, size_bytes)));
  storage->set_data_ptr(std::move(grown));
  storage->set_nbytes(static_cast<size_t>(size_bytes));
}

void manual_seed(at::Generator generator, int64_t seed) {
  const std::lock_guard<std::mutex> lock(generator.mutex());
  generator.set_current_seed(static_cast<uint64_t>(seed));
}

at::Tensor generator_state(at::Generator generator) {
  const std::lock_guard<std::mutex> lock(generator.mutex());
  return generator.get_state();
}

void set_generator_state(at::Generator generator, at::Tensor state) {
  const std::lock_guard<std::mutex> lock(generator.mutex());
  generator.set_state(state);
}

TORCH_LIBRARY(genie, library) {
  library.def("alloc(int size_bytes) -> Tensor", TORCH_FN(alloc));
  library.def("resize_storage(Tensor(a!) self, int size_bytes) -> ()");
  library.impl("resize_storage", c10::DispatchKey::CPU, TORCH_FN(resize_storage));
  library.def("manual_seed(Generator? generator, int seed) -> ()", TORCH_FN(manual_seed));
  library.def("generator_state(Generator? generator) -> Tensor", TORCH_FN(generator_state));
  library.def("set_generator_state(Generator? generator, Tensor state) -> ()");
  library.impl("set_generator_state", c10::DispatchKey::CPU, TORCH_FN(set_generator_state));
}

}  // namespace
}  // namespace genie::executor
