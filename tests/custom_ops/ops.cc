// Operators of a library: what tests load into the program, and into nodes.
#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <stdexcept>

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// -- One functional, with a Meta kernel --------------------------------------------------------------------------------------
[[maybe_unused]] at::Tensor scale(const at::Tensor& x, double factor) { return x * factor; }
[[maybe_unused]] at::Tensor scale_meta(const at::Tensor& x, double) {
  TORCH_CHECK(x.is_floating_point(), "scale: wants floating-point numbers, got ", x.scalar_type());
  return at::empty_like(x);
}

// -- Without one ---------------------------------------------------------------------------------------------------------------
at::Tensor repeat_rows(const at::Tensor& x, int64_t times) { return x.repeat({times, 1}); }
// As many rows as the mask says, which no schema and no tag tells.
at::Tensor keep_rows(const at::Tensor& x, const at::Tensor& mask) { return x.index({mask}); }

// -- In place -------------------------------------------------------------------------------------------------------------------
at::Tensor& add_one_(at::Tensor& x) { return x.add_(1); }

// -- With an autograd formula ---------------------------------------------------------------------------------------------------
at::Tensor cube(const at::Tensor& x) { return x * x * x; }
at::Tensor cube_backward(const at::Tensor& grad, const at::Tensor& x) { return grad * x * x * 3; }

at::Tensor call_cube(const at::Tensor& x) {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("genie_test::cube", "").typed<at::Tensor(const at::Tensor&)>();
  return op.call(x);
}
at::Tensor call_cube_backward(const at::Tensor& grad, const at::Tensor& x) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("genie_test::cube_backward", "")
                             .typed<at::Tensor(const at::Tensor&, const at::Tensor&)>();
  return op.call(grad, x);
}

struct Cube : torch::autograd::Function<Cube> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x) {
    const at::AutoDispatchBelowADInplaceOrView below;
    context->save_for_backward({x});
    return call_cube(x);
  }
  static variable_list backward(AutogradContext* context, variable_list grads) {
    return {call_cube_backward(grads[0], context->get_saved_variables()[0])};
  }
};
at::Tensor cube_autograd(const at::Tensor& x) { return Cube::apply(x); }

// -- Several results, a list ----------------------------------------------------------------------------------------------------
// The second is laid out by columns.
std::tuple<at::Tensor, at::Tensor> halves(const at::Tensor& x) {
  const int64_t rows = x.size(0) / 2;
  return {x.slice(0, 0, rows).clone(), x.slice(0, rows).t().contiguous().t()};
}
std::tuple<at::Tensor, at::Tensor> halves_meta(const at::Tensor& x) {
  const int64_t rows = x.size(0) / 2;
  const int64_t rest = x.size(0) - rows;
  return {at::empty({rows, x.size(1)}, x.options()), at::empty_strided({rest, x.size(1)}, {1, rest}, x.options())};
}
std::vector<at::Tensor> rows(const at::Tensor& x) {
  std::vector<at::Tensor> out;
  for (int64_t i = 0; i < x.size(0); ++i) out.push_back(x[i].clone());
  return out;
}
std::vector<at::Tensor> rows_meta(const at::Tensor& x) {
  std::vector<at::Tensor> out;
  for (int64_t i = 0; i < x.size(0); ++i) out.push_back(at::empty({x.size(1)}, x.options()));
  return out;
}

// -- What cannot be captured, or fails --------------------------------------------------------------------------------------------
int64_t count_positive(const at::Tensor& x) { return x.gt(0).sum().item<int64_t>(); }
at::Tensor first_row(const at::Tensor& x) { return x[0]; }
at::Tensor fails(const at::Tensor& x, at::TensorList others) {
  throw std::runtime_error("no luck with " + std::to_string(others.size()) + " others");
}
at::Tensor fails_meta(const at::Tensor& x, at::TensorList) { return at::empty_like(x); }
// Its Meta kernel promises other strides than the kernel gives.
at::Tensor by_columns(const at::Tensor& x) { return x.t().contiguous().t(); }
at::Tensor by_columns_meta(const at::Tensor& x) { return at::empty(x.sizes(), x.options()); }

TORCH_LIBRARY(genie_test, library) {
#ifdef OTHER_SCHEMAS
  library.def("scale(Tensor x, float factor=1.0, int unused=0) -> Tensor");
#else
  library.def("scale(Tensor x, float factor) -> Tensor");
  library.impl("scale", c10::DispatchKey::CPU, TORCH_FN(scale));
  library.impl("scale", c10::DispatchKey::Meta, TORCH_FN(scale_meta));
#endif
  library.def("repeat_rows(Tensor x, int times) -> Tensor");
  library.impl("repeat_rows", c10::DispatchKey::CPU, TORCH_FN(repeat_rows));
  library.def("keep_rows(Tensor x, Tensor mask) -> Tensor");
  library.impl("keep_rows", c10::DispatchKey::CPU, TORCH_FN(keep_rows));
  library.def("add_one_(Tensor(a!) x) -> Tensor(a!)");
  library.impl("add_one_", c10::DispatchKey::CPU, TORCH_FN(add_one_));
  library.def("cube(Tensor x) -> Tensor");
  library.impl("cube", c10::DispatchKey::CPU, TORCH_FN(cube));
  library.impl("cube", c10::DispatchKey::Meta, [](const at::Tensor& x) { return at::empty_like(x); });
  library.impl("cube", c10::DispatchKey::Autograd, TORCH_FN(cube_autograd));
  library.def("cube_backward(Tensor grad, Tensor x) -> Tensor");
  library.impl("cube_backward", c10::DispatchKey::CPU, TORCH_FN(cube_backward));
  library.impl("cube_backward", c10::DispatchKey::Meta,
               [](const at::Tensor&, const at::Tensor& x) { return at::empty_like(x); });
  library.def("halves(Tensor x) -> (Tensor, Tensor)");
  library.impl("halves", c10::DispatchKey::CPU, TORCH_FN(halves));
  library.impl("halves", c10::DispatchKey::Meta, TORCH_FN(halves_meta));
  library.def("rows(Tensor x) -> Tensor[]");
  library.impl("rows", c10::DispatchKey::CPU, TORCH_FN(rows));
  library.impl("rows", c10::DispatchKey::Meta, TORCH_FN(rows_meta));
  library.def("unknown_rows(Tensor x) -> Tensor[]");
  library.impl("unknown_rows", c10::DispatchKey::CPU, TORCH_FN(rows));
  library.def("count_positive(Tensor x) -> int");
  library.impl("count_positive", c10::DispatchKey::CPU, TORCH_FN(count_positive));
  library.def("first_row(Tensor(a) x) -> Tensor(a)");
  library.impl("first_row", c10::DispatchKey::CPU, TORCH_FN(first_row));
  library.def("fails(Tensor x, Tensor[] others) -> Tensor");
  library.impl("fails", c10::DispatchKey::CPU, TORCH_FN(fails));
  library.impl("fails", c10::DispatchKey::Meta, TORCH_FN(fails_meta));
  library.def("by_columns(Tensor x) -> Tensor");
  library.impl("by_columns", c10::DispatchKey::CPU, TORCH_FN(by_columns));
  library.impl("by_columns", c10::DispatchKey::Meta, TORCH_FN(by_columns_meta));
}

}  // namespace
