// Shape functions: what the results of an operator look like, for operators that PyTorch cannot say it of.
//
// Purpose: an operator of a library is captured without running when its results' sizes are known: from its Meta kernel, or from a
//   function registered here. Without either the node runs it at once and says. A function registered here goes before
//   everything else, also for PyTorch's own operators.
// Thread-safety: register_shape_function may be called from any thread; the function is called on the thread that calls the
//   operator, on several at once, and its answers are remembered per request (all arguments but the values of tensors).
// Ownership: the function is kept until the process ends. A ShapeCall is valid during the call only.
// Errors: what the function throws is thrown where the program calls the operator. Answers that cannot be are refused there too.
//   With set_check_shapes(true) the node compares each answer with what it made.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <string>

#include "genie/status.h"

namespace c10 {
struct IValue;
}

namespace genie {

class ShapeAnswer;  // internal

// One call of an operator: its arguments, and where its results are described, in the order of the schema. Results that are
// arguments of the call (in place, out=) are left out.
class GENIE_API ShapeCall {
 public:
  ShapeCall(const ShapeCall&) = delete;
  ShapeCall& operator=(const ShapeCall&) = delete;

  size_t size() const;
  const c10::IValue& operator[](size_t argument) const;
  // Its sizes, strides and dtype are there; its values are not.
  const at::Tensor& tensor(size_t argument) const;

  // A result over memory of its own, without gaps; no strides: contiguous.
  void add(at::IntArrayRef sizes, at::ScalarType dtype, at::IntArrayRef strides = {});
  // Laid out as `tensor` is.
  void add_like(const at::Tensor& tensor);
  void add_undefined();
  // The next result is a list: the next `count` calls of add describe its tensors.
  void begin_list(size_t count);

 private:
  friend class ShapeAnswer;
  explicit ShapeCall(ShapeAnswer& answer) : answer_(answer) {}
  ShapeAnswer& answer_;
};

// False: not known for this call. What was added is dropped then.
using ShapeFunction = std::function<bool(ShapeCall&)>;

// For "namespace::name" or "namespace::name.overload". A second function for the same operator replaces the first; an empty one
// takes it away. Throws Error (kNotFound) when the process has no such operator: load its library first.
GENIE_API void register_shape_function(const std::string& op, ShapeFunction function);

// true: the node compares the results of every operator with what the client took them to be (also GENIE_CHECK_SHAPES=1): sizes,
// strides, dtype, whether they are there, and that operators in place leave their argument's geometry as it is. A difference
// is an error that names the operator, what was promised and what is. Without it the node checks sizes and dtypes, and
// re-lays results whose strides differ. Strides count where a step along them leads to another element.
GENIE_API void set_check_shapes(bool check);
GENIE_API bool is_checking_shapes();

}  // namespace genie
