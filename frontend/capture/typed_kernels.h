// Typed kernels: capture without boxing, for the operators that programs issue most.
//
// Purpose: the boxed kernel serves every operator, but to reach it the dispatcher puts each argument into an IValue on a vector of
//   its own. These take the arguments as they come and write the same words.
// Thread-safety: any thread.
#pragma once

#include <array>
#include <tuple>
#include <type_traits>
#include <utility>

#include "frontend/capture/encoder.h"
#include "frontend/capture/recorder.h"

namespace genie::frontend::typed {

inline c10::IValue box(const c10::SymInt& value) { return value.expect_int(); }
inline c10::IValue box(c10::SymIntArrayRef value) { return c10::asIntArrayRefSlow(value, __FILE__, __LINE__); }
inline c10::IValue box(const at::ITensorListRef& list) {
  c10::List<at::Tensor> boxed;
  for (const at::Tensor& tensor : list) boxed.push_back(tensor);
  return boxed;
}
inline c10::IValue box(const at::OptionalIntArrayRef& value) {
  return value.has_value() ? c10::IValue(*value) : c10::IValue();
}
inline c10::IValue box(const at::OptionalSymIntArrayRef& value) {
  return value.has_value() ? box(*value) : c10::IValue();
}
inline c10::IValue box(std::string_view value) { return std::string(value); }
template <class T>
c10::IValue box(const T& value) {
  return c10::IValue(value);
}
template <class T>
c10::IValue box(const std::optional<T>& value) {
  return value.has_value() ? box(*value) : c10::IValue();
}

template <class R>
struct IsTuple : std::false_type {};
template <class... T>
struct IsTuple<std::tuple<T...>> : std::true_type {};

template <class Tuple, size_t... I>
Tuple take_results(Call& call, std::index_sequence<I...>) {
  return Tuple{std::move(call.results[I])...};
}

template <class Op, class Schema = typename Op::schema>
struct Kernel;

template <class Op, class R, class... A>
struct Kernel<Op, R(A...)> {
  static R call(A... args) {
    static OpInfo& op = op_info(Op::name, Op::overload_name);
    const CallLease lease;
    Call& call = *lease;
    Encoder encoder(op, call);
    (encoder.place(args), ...);
    encoder.begin(sizeof...(A), op.returns.size());
    size_t next = 0;
    ((encoder.encode(args, op.args[next].is_write), ++next), ...);
    c10::SmallVector<c10::IValue, sizeof...(A)> boxed;
    record(op, call, [&]() -> c10::ArrayRef<c10::IValue> {
      if (boxed.empty()) (boxed.push_back(box(args)), ...);
      return boxed;
    });
    if constexpr (std::is_reference_v<R>) {
      return std::get<0>(std::tie(args...));  // in-place: the first argument is the result
    } else if constexpr (IsTuple<R>::value) {
      return take_results<R>(call, std::make_index_sequence<std::tuple_size_v<R>>());
    } else {
      return std::move(call.results[0]);
    }
  }
};

}  // namespace genie::frontend::typed
