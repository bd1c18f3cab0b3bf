// Shape inference: what an operator's results look like, without running it.
//
// Order: a cache on the exact request -> a function that the program registered -> an own shape function -> libtorch's meta kernel
// -> none (the caller flushes and the node reports). Values of floating-point arguments are not part of the request unless the operator says they matter.
// Thread-safety: infer() may be called from any thread; the cache is per thread.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/stack.h>
#include <c10/util/FunctionRef.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "frontend/capture/op_info.h"

namespace genie::frontend {

struct TensorMeta {
  bool defined = true;
  bool contiguous = true;
  c10::ScalarType dtype = c10::ScalarType::Float;
  c10::SmallVector<int64_t, 5> sizes;
  c10::SmallVector<int64_t, 5> strides;
  uint64_t storage_bytes = 0;  // dense, from offset 0
  // A tensor without storage that looks so; made with the first result.
  mutable c10::intrusive_ptr<c10::TensorImpl> prototype;
};

// One entry per tensor result, lists flattened; `list_length` says how many belong to a list result (-1: not a list).
struct OutputMeta {
  std::vector<TensorMeta> tensors;
  std::vector<int32_t> list_length;
  // out= arguments that the operator resizes: argument index and its new layout.
  std::vector<std::pair<size_t, TensorMeta>> resized;
};

struct ShapeRequest {
  const OpInfo& op;
  c10::ArrayRef<c10::IValue> args;
  OutputMeta& out;

  const at::Tensor& tensor(size_t i) const { return args[i].toTensor(); }
  bool has_tensor(size_t i) const { return args[i].isTensor() && args[i].toTensor().defined(); }
  // Adds a dense, contiguous result.
  void add(at::IntArrayRef sizes, c10::ScalarType dtype);
  // Adds a result laid out like `like` (its memory format).
  void add_like(const at::Tensor& like);
  void add_format(at::IntArrayRef sizes, c10::ScalarType dtype, c10::MemoryFormat format);
  void add_undefined();
};

OwnShapes find_shape_function(std::string_view name);

// Where the answer came from, for stats.
enum class ShapeSource { kCache, kOwn, kMeta, kNone };

// `key` is the request as words (structure and integers). Null when nobody on the client knows. Throws what the meta kernel
// throws for a request that the operator refuses. The answer is valid until the thread's next call.
const OutputMeta* infer(const OpInfo& op, std::span<const int64_t> key,
                        c10::function_ref<c10::ArrayRef<c10::IValue>()> boxed, ShapeSource& source);
// Remembers what a node reported.
void remember(const OpInfo& op, std::span<const int64_t> key, OutputMeta meta);

// Metadata of a dense tensor.
TensorMeta dense_meta(at::IntArrayRef sizes, at::IntArrayRef strides, c10::ScalarType dtype);
// Of a fresh tensor like this one (perhaps undefined). What is expanded or has gaps cannot be promised: the node lays it out densely.
TensorMeta meta_like(const at::Tensor& tensor);

}  // namespace genie::frontend
