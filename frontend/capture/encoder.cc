#include "frontend/capture/encoder.h"

#include <c10/core/DefaultDtype.h>

#include "frontend/capture/copies.h"
#include "frontend/capture/registry.h"
#include "frontend/device/generator.h"

namespace genie::frontend {

using wire::Tag;
using wire::TensorBits;

void Encoder::place(const c10::IValue& value) {
  if (value.isTensor()) {
    place(value.toTensor());
  } else if (value.isTensorList()) {
    for (const at::Tensor& tensor : value.toTensorList()) place(tensor);
  } else if (value.isOptionalTensorList()) {
    for (const std::optional<at::Tensor>& tensor : value.toOptionalTensorList()) place(tensor);
  } else if (call_.device.index() >= 0) {
    return;
  } else if (value.isDevice() && value.toDevice().is_privateuseone()) {
    call_.device = value.toDevice();
  } else if (value.isGenerator() && value.toGenerator().defined()) {
    call_.device = value.toGenerator().device();
  }
}

void Encoder::begin(size_t argument_count, size_t return_count) {
  const int index = call_.device.index() >= 0 ? call_.device.index() : current_device();
  call_.device = c10::Device(c10::DeviceType::PrivateUse1, static_cast<c10::DeviceIndex>(index));
  call_.core = &core_of(index);
  // Promotion of integers to floats goes by the default type; results are made for the device.
  call_.key.push_back((int64_t{index} << 8) | static_cast<int64_t>(c10::get_default_dtype_as_scalartype()));
  call_.code.push_back(op_.index);
  call_.code.push_back(static_cast<uint32_t>(argument_count) | (static_cast<uint32_t>(return_count) << 16));
}

// Strides travel only where they are not exactly what a contiguous tensor's would be (libtorch lets those of size-1 dimensions
// differ).
void Encoder::geometry(const c10::TensorImpl& impl) {
  const at::IntArrayRef sizes = impl.sizes();
  const at::IntArrayRef strides = impl.strides();
  const size_t rank = sizes.size();
  const int64_t offset = impl.storage_offset();
  const c10::DispatchKeySet keys = impl.key_set();
  call_.key.push_back(0);  // the head, which is known last
  int64_t* const to_params = call_.params.extend(rank);
  int64_t* const to_key = call_.key.extend(rank);
  int64_t other = 0;  // nonzero: strides are not a contiguous tensor's
  int64_t expected = 1;
  for (size_t i = rank; i-- > 0;) {
    const int64_t size = sizes[i];
    to_params[i] = size;
    to_key[i] = size;
    other |= strides[i] ^ expected;
    expected *= std::max<int64_t>(size, 1);
  }
  const bool contiguous = other == 0;
  const uint32_t head = wire::head(
      Tag::kTensor, (static_cast<uint32_t>(c10::typeMetaToScalarType(impl.dtype())) << TensorBits::kDtypeShift) |
                        (static_cast<uint32_t>(rank) << TensorBits::kRankShift) |
                        (contiguous ? TensorBits::kContiguous : 0) | (offset == 0 ? TensorBits::kZeroOffset : 0) |
                        (keys.has(c10::DispatchKey::Conjugate) ? TensorBits::kConj : 0) |
                        (keys.has(c10::DispatchKey::Negative) ? TensorBits::kNeg : 0));
  call_.code.push_back(head);
  to_key[-1] = head;
  if (!contiguous) {
    call_.params.append(strides.data(), rank);
    call_.key.append(strides.data(), rank);
  }
  if (offset != 0) call_.params.push_back(offset);
}

void Encoder::encode(const ArgInfo& arg, const c10::IValue& value, bool write) {
  if (value.isNone() && arg.kind != ArgKind::kGenerator) return none();
  switch (arg.kind) {
    case ArgKind::kTensor: return tensor(value.toTensor(), write);
    case ArgKind::kTensorList: {
      const auto list = value.toTensorList();
      word(Tag::kList, static_cast<uint32_t>(list.size()));
      for (const at::Tensor& element : list) tensor(element, write);
      return;
    }
    case ArgKind::kOptionalTensorList: {
      const auto list = value.toOptionalTensorList();
      word(Tag::kList, static_cast<uint32_t>(list.size()));
      for (const std::optional<at::Tensor>& element : list) encode(element, write);
      return;
    }
    case ArgKind::kInt: return integer(value.toInt());
    case ArgKind::kIntConst: return word(Tag::kIntConst, static_cast<uint32_t>(value.toInt()));
    case ArgKind::kDouble: return floating(value.toDouble());
    case ArgKind::kBool: return word(Tag::kBool, value.toBool() ? 1 : 0);
    case ArgKind::kString: return text(value.toStringRef());
    case ArgKind::kNumber: return scalar(value.toScalar());
    case ArgKind::kIntList: {
      const auto list = value.toIntList();
      word(Tag::kIntList, static_cast<uint32_t>(list.size()));
      for (const int64_t element : list) number(element, true);
      return;
    }
    case ArgKind::kDoubleList: {
      const auto list = value.toDoubleList();
      word(Tag::kDoubleList, static_cast<uint32_t>(list.size()));
      for (const double element : list) number(std::bit_cast<int64_t>(element), true);
      return;
    }
    case ArgKind::kBoolList: {
      const auto list = value.toBoolList();
      c10::SmallVector<bool, 8> plain;
      for (const bool element : list) plain.push_back(element);
      return booleans(plain);
    }
    case ArgKind::kNumberList: {
      const auto list = value.toListRef();
      word(Tag::kList, static_cast<uint32_t>(list.size()));
      for (const c10::IValue& element : list) scalar(element.toScalar());
      return;
    }
    case ArgKind::kDevice: return word(Tag::kDevice, 0);
    case ArgKind::kGenerator: return generator(value);
    case ArgKind::kUnsupported: break;
  }
  TORCH_CHECK_NOT_IMPLEMENTED(false, op_.name,
                              " takes an argument that cannot travel to a remote device; call it on CPU tensors");
}

void Encoder::scalar(const at::Scalar& value) {
  if (value.isComplex()) {
    const auto complex = value.toComplexDouble();
    word(Tag::kComplex, 0);
    number(std::bit_cast<int64_t>(complex.real()), op_.values_shape);
    number(std::bit_cast<int64_t>(complex.imag()), op_.values_shape);
  } else if (value.isFloatingPoint()) {
    floating(value.toDouble());
  } else if (value.isBoolean()) {
    word(Tag::kBool, value.toBool() ? 1 : 0);
  } else {
    word(Tag::kInt, 0);
    number(value.toLong(), op_.values_shape);
  }
}

void Encoder::booleans(c10::ArrayRef<bool> values) {
  word(Tag::kBoolList, static_cast<uint32_t>(values.size()));
  uint32_t bits = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    bits |= (values[i] ? 1U : 0U) << (i % 32);
    if (i % 32 == 31 || i + 1 == values.size()) {
      call_.code.push_back(bits);
      call_.key.push_back(bits);
      bits = 0;
    }
  }
}

void Encoder::text(std::string_view value) {
  call_.strings.emplace_back(static_cast<uint32_t>(call_.code.size()), value);
  word(Tag::kString, 0);
  for (const char c : value) call_.key.push_back(c);
}

void Encoder::generator(const c10::IValue& value) {
  TORCH_CHECK(value.isNone() || !value.toGenerator().defined() || value.toGenerator().device().is_privateuseone(),
              op_.name, ": expected a generator on ", call_.device, ", found one on ",
              value.isNone() ? c10::Device("cpu") : value.toGenerator().device());
  const GeneratorUse use = use_generator(value, call_.device.index());
  word(Tag::kGenerator, use.number);
  call_.generator = use.state;
}

// A CPU operand: numbers travel by value; where PyTorch allows index tensors on the CPU, they are sent.
void Encoder::foreign(const at::Tensor& value, bool write) {
  if (value.device().is_cpu() && value.dim() == 0 && !write && value.layout() == at::kStrided) {
    const auto type = value.scalar_type();
    word(Tag::kScalarTensor,
         static_cast<uint32_t>(type) | (value.unsafeGetTensorImpl()->is_wrapped_number() ? wire::kWrapped : 0));
    const at::Scalar number_value = value.item();
    const bool in_key = op_.custom;  // a meta kernel sees it
    if (number_value.isComplex()) {
      number(std::bit_cast<int64_t>(number_value.toComplexDouble().real()), in_key);
      number(std::bit_cast<int64_t>(number_value.toComplexDouble().imag()), in_key);
    } else if (number_value.isFloatingPoint()) {
      number(std::bit_cast<int64_t>(number_value.toDouble()), in_key);
    } else {
      number(number_value.isBoolean() ? number_value.toBool() : number_value.toLong(), in_key);
    }
    return;
  }
  if (!value.device().is_cpu() || write || !op_.lifts_cpu_operands) refuse_mixed(value.device());
  call_.lifted.push_back(upload_copy(*call_.core, call_.device, value));
  tensor(at::Tensor(call_.lifted.back()), false);
}

void Encoder::refuse_mixed(c10::Device other) const {
  TORCH_CHECK(false, "Expected all tensors to be on the same device, but found at least two devices, ", call_.device,
              " and ", other, "! (when calling ", op_.name, "; move the tensor first: x.to(\"", call_.device, "\"))");
}

// An index can pass from a closed session to a new one; two open sessions never share one.
void Encoder::refuse_other_session(const StorageState& state, const at::Tensor& value) const {
  if (!state.session->closed()) refuse_mixed(value.device());
  throw Error(Status(Errc::kDisconnected, "the session of an operand was closed: open one and send the tensor again"));
}

}  // namespace genie::frontend
