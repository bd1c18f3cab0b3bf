#include "frontend/capture/registration.h"

#include <torch/library.h>

#include <deque>
#include <memory>
#include <utility>

namespace genie::frontend {
namespace {

// In the dispatcher's own messages; short, as each kernel keeps a copy.
constexpr const char* kSource = "by libgenie";

// Taken back when the process exits.
std::deque<torch::Library> libraries;
std::deque<c10::RegistrationHandleRAII> kernels;

class Collector final : public c10::OpRegistrationListener {
 public:
  explicit Collector(std::vector<c10::OperatorHandle>& operators) : operators_(operators) {}
  void onOperatorRegistered(const c10::OperatorHandle& op) override { operators_.push_back(op); }
  void onOperatorDeregistered(const c10::OperatorHandle&) override {}

 private:
  std::vector<c10::OperatorHandle>& operators_;
};

[[maybe_unused]] const bool registered = [] {
  register_autocast();
  register_context_kernels();
  register_custom_ops();
  register_layer_norm();
  register_linear();
  register_recurrent();
  register_typed_kernels();
  register_views();
  register_kernels();
  register_layouts();
  return true;
}();

}  // namespace

torch::Library& aten_library(c10::DispatchKey key, std::source_location where) {
  return libraries.emplace_back(torch::Library::IMPL, "aten", key, where.file_name(), where.line());
}

void add_fallback(c10::DispatchKey key, c10::KernelFunction kernel) {
  static auto* const for_good = new std::vector<c10::RegistrationHandleRAII>;
  for_good->push_back(c10::Dispatcher::singleton().registerFallback(key, std::move(kernel), kSource));
}

void add_kernel(const c10::OperatorName& name, c10::DispatchKey key, c10::KernelFunction kernel,
                std::optional<c10::impl::CppSignature> signature) {
  kernels.push_back(
      c10::Dispatcher::singleton().registerImpl(name, key, std::move(kernel), std::move(signature), nullptr, kSource));
}

std::vector<c10::OperatorHandle> defined_operators() {
  std::vector<c10::OperatorHandle> operators;
  operators.reserve(4096);
  const auto listening = c10::Dispatcher::singleton().addRegistrationListener(std::make_unique<Collector>(operators));
  return operators;
}

}  // namespace genie::frontend
