// Encoder: writes the arguments of one call into its words.
//
// Order of use: place() for every argument that may name a device, begin(), then encode() for every argument in order.
// Two callers: the boxed kernel, which hands over IValues, and typed kernels, which hand over C++ arguments as they come from the
// dispatcher. Both write the same words.
// Thread-safety: none; lives on its caller's stack. Errors: throws what PyTorch throws for operands on two devices.
#pragma once

#include <ATen/core/IListRef.h>
#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

#include <algorithm>
#include <bit>
#include <optional>
#include <string_view>

#include "frontend/capture/call.h"
#include "frontend/capture/op_info.h"
#include "frontend/capture/recorder.h"
#include "src/protocol/program_format.h"

namespace genie::frontend {

class Encoder {
 public:
  Encoder(OpInfo& op, Call& call) noexcept : op_(op), call_(call) {}

  // The device of the call is that of its first operand on the remote device, else of its device argument.
  void place(const at::Tensor& value) {
    if (!value.defined()) return;
    const c10::Device device = value.device();
    if (!device.is_privateuseone()) return;
    if (call_.device.index() < 0) {
      call_.device = device;
    } else if (call_.device != device && !op_.mixes_devices) [[unlikely]] {
      refuse_mixed(device);
    }
  }
  void place(const std::optional<at::Tensor>& value) {
    if (value.has_value()) place(*value);
  }
  void place(const at::ITensorListRef& list) {
    for (const at::Tensor& value : list) place(value);
  }
  void place(at::TensorList list) {
    for (const at::Tensor& value : list) place(value);
  }
  void place(const c10::IValue& value);
  template <class T>
  void place(const T&) {}  // names no device

  void begin(size_t argument_count, size_t return_count);

  void encode(const at::Tensor& value, bool write) { tensor(value, write); }
  void encode(const std::optional<at::Tensor>& value, bool write) {
    value.has_value() ? tensor(*value, write) : none();
  }
  void encode(const at::ITensorListRef& list, bool write) {
    word(wire::Tag::kList, static_cast<uint32_t>(list.size()));
    for (const at::Tensor& value : list) tensor(value, write);
  }
  void encode(at::TensorList list, bool write) {
    word(wire::Tag::kList, static_cast<uint32_t>(list.size()));
    for (const at::Tensor& value : list) tensor(value, write);
  }
  void encode(int64_t value, bool) { integer(value); }
  void encode(const c10::SymInt& value, bool) { integer(value.expect_int()); }
  void encode(double value, bool) { floating(value); }
  void encode(bool value, bool) { word(wire::Tag::kBool, value ? 1 : 0); }
  void encode(std::string_view value, bool) { text(value); }
  void encode(const at::Scalar& value, bool) { scalar(value); }
  void encode(at::ScalarType value, bool) { word(wire::Tag::kIntConst, static_cast<uint32_t>(value)); }
  void encode(at::MemoryFormat value, bool) { word(wire::Tag::kIntConst, static_cast<uint32_t>(value)); }
  void encode(at::IntArrayRef value, bool) { integers(value); }
  void encode(c10::SymIntArrayRef value, bool) { integers(c10::asIntArrayRefSlow(value, __FILE__, __LINE__)); }
  void encode(const at::OptionalIntArrayRef& value, bool) { value.has_value() ? integers(*value) : none(); }
  void encode(const at::OptionalSymIntArrayRef& value, bool write) {
    value.has_value() ? encode(*value, write) : none();
  }
  template <size_t N>
  void encode(const std::array<bool, N>& value, bool) {
    booleans(c10::ArrayRef<bool>(value.data(), N));
  }
  template <class T>
  void encode(const std::optional<T>& value, bool write) {
    value.has_value() ? encode(*value, write) : none();
  }
  // By the argument's kind, as the operator's schema has it.
  void encode(const ArgInfo& arg, const c10::IValue& value, bool write);

 private:
  void word(wire::Tag tag, uint32_t payload) {
    const uint32_t head = wire::head(tag, payload);
    call_.code.push_back(head);
    call_.key.push_back(head);
  }
  void none() { word(wire::Tag::kNone, 0); }
  // Of the request's key too where the shape of a result may depend on it.
  void number(int64_t value, bool in_key) {
    call_.params.push_back(value);
    if (in_key) call_.key.push_back(value);
  }
  void integer(int64_t value) {
    word(wire::Tag::kInt, 0);
    number(value, true);
  }
  void floating(double value) {
    word(wire::Tag::kDouble, 0);
    number(std::bit_cast<int64_t>(value), op_.values_shape);
  }
  void integers(at::IntArrayRef values) {
    word(wire::Tag::kIntList, static_cast<uint32_t>(values.size()));
    for (const int64_t value : values) number(value, true);
  }
  void booleans(c10::ArrayRef<bool> values);
  void scalar(const at::Scalar& value);
  void text(std::string_view value);
  void generator(const c10::IValue& value);

  void tensor(const at::Tensor& value, bool write) {
    if (!value.defined()) return word(wire::Tag::kUndefinedTensor, 0);
    if (!value.device().is_privateuseone()) [[unlikely]]
      return foreign(value, write);
    StorageState& state = usable_state(value);
    if (state.session != call_.core) [[unlikely]]
      refuse_other_session(state, value);
    geometry(*value.unsafeGetTensorImpl());
    call_.touched.push_back({&state, write ? Touch::kWrite : Touch::kRead});
  }
  void geometry(const c10::TensorImpl& impl);
  void foreign(const at::Tensor& value, bool write);
  [[noreturn]] void refuse_mixed(c10::Device other) const;
  [[noreturn]] void refuse_other_session(const StorageState& state, const at::Tensor& value) const;

  OpInfo& op_;
  Call& call_;
};

}  // namespace genie::frontend
