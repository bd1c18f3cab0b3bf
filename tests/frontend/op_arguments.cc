#include "tests/frontend/op_arguments.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include <algorithm>
#include <string_view>

namespace genie::test {
namespace {

using c10::TypeKind;
using Ints = std::vector<int64_t>;

bool one_of(std::string_view name, std::initializer_list<std::string_view> names) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

at::Tensor laid_out(const Plan& plan, Values& values) {
  const at::IntArrayRef sizes = plan.sizes;
  switch (plan.layout) {
    case Plan::Layout::kPlain: return values.real(sizes, plan.unit);
    case Plan::Layout::kPositiveDefinite: return values.positive_definite(sizes);
    case Plan::Layout::kTransposed: {
      Ints turned = sizes.vec();
      std::reverse(turned.begin(), turned.end());
      return values.real(turned, plan.unit).permute({1, 0});
    }
    case Plan::Layout::kGaps: {
      Ints wide = sizes.vec();
      wide.back() = wide.back() * 2 + 1;
      return values.real(wide, plan.unit).slice(-1, 1, wide.back(), 2);
    }
    case Plan::Layout::kChannelsLast: return values.real(sizes, plan.unit).contiguous(at::MemoryFormat::ChannelsLast);
    case Plan::Layout::kLazyBit: {
      const at::Tensor plain = values.real(sizes, plan.unit);
      if (plain.is_complex()) return plain.conj();
      return plain.is_floating_point() ? at::_neg_view(plain) : plain;
    }
  }
  return {};
}

// Makes the arguments of one call.
class Maker {
 public:
  Maker(const Plan& plan, bool fill, Values& values) : plan_(plan), fill_(fill), values_(values) {}

  std::optional<c10::IValue> argument(const c10::Argument& argument) {
    const std::string_view name = argument.name();
    const bool writes = argument.alias_info() != nullptr && argument.alias_info()->isWrite();
    if (writes && argument.kwarg_only()) return out_argument(argument);
    if (name == "device") return c10::IValue(c10::Device(at::kCPU));  // factories must not all make CPU tensors
    if (argument.default_value().has_value() && !(fill_ && may_turn(name))) return *argument.default_value();
    const c10::IValue standard = argument.default_value().value_or(c10::IValue());
    return of_type(*argument.type(), *argument.real_type(), argument, standard);
  }

 private:
  // Flags that would lead away from strided tensors or from checked operands, or whose values must fit something else.
  static bool may_turn(std::string_view name) {
    return !one_of(name, {"sparse", "sparse_grad", "unsafe", "pin_memory", "non_blocking", "copy", "implicit", "layout",
                          "dilation", "memory_format", "stride", "scale_grad_by_freq", "dtype", "generator"});
  }

  // out=: the operator gives it its size.
  std::optional<c10::IValue> out_argument(const c10::Argument& argument) const {
    if (argument.type()->kind() != TypeKind::TensorType) return std::nullopt;
    const bool counts = argument.name().find("indices") != std::string::npos;
    return at::empty({0}, at::TensorOptions().dtype(counts ? at::kLong : values_.dtype()));
  }

  std::optional<c10::IValue> of_type(const c10::Type& type, const c10::Type& real, const c10::Argument& argument,
                                     const c10::IValue& standard) {
    const std::string_view name = argument.name();
    switch (type.kind()) {
      case TypeKind::TensorType: return tensor(name);
      case TypeKind::BoolType: return standard.isBool() ? !standard.toBool() : fill_;
      case TypeKind::FloatType: return floating(name);
      case TypeKind::NumberType: return number(name);
      case TypeKind::DeviceObjType: return c10::Device(at::kCPU);
      case TypeKind::GeneratorType: return c10::IValue();
      case TypeKind::StringType: return standard.isString() ? std::optional(standard) : std::nullopt;
      case TypeKind::IntType:
        if (real.kind() == TypeKind::ScalarTypeType) return static_cast<int64_t>(at::kDouble);
        if (real.kind() == TypeKind::MemoryFormatType) return static_cast<int64_t>(at::MemoryFormat::Contiguous);
        if (real.kind() == TypeKind::LayoutType) return static_cast<int64_t>(at::kStrided);
        return integer(name);
      case TypeKind::ListType: return list(*type.expectRef<c10::ListType>().getElementType(), argument);
      case TypeKind::OptionalType: {
        if (!fill_) return c10::IValue();
        const auto& element = *type.expectRef<c10::OptionalType>().getElementType();
        const auto& real_element =
            real.kind() == TypeKind::OptionalType ? *real.expectRef<c10::OptionalType>().getElementType() : real;
        if (element.kind() == TypeKind::StringType) return c10::IValue();
        return of_type(element, real_element, argument, standard);
      }
      default: return std::nullopt;
    }
  }

  at::Tensor tensor(std::string_view name) {
    const at::IntArrayRef sizes = plan_.sizes;
    const int64_t rank = static_cast<int64_t>(sizes.size());
    const bool first = std::exchange(first_, false);
    if (first) return laid_out(plan_, values_);
    if (one_of(name, {"mask", "condition"})) return values_.mask(sizes);
    if (one_of(name, {"index", "indices", "repeats"})) {
      const int64_t extent = rank == 0 ? 1 : sizes.front();
      return fill_ ? values_.index(sizes, std::max<int64_t>(1, extent))
                   : values_.index({extent}, std::max<int64_t>(1, extent));
    }
    if (one_of(name, {"vec", "vec1", "vec2", "tau"}) && rank > 0) return values_.real(sizes.back(), plan_.unit);
    if (one_of(name, {"weight", "bias", "running_mean", "running_var"}) && rank > 1) {
      return values_.real(sizes[1], true);
    }
    if (plan_.broadcast) return values_.real(sizes.slice(1), plan_.unit);
    return laid_out(plan_, values_);
  }

  static double floating(std::string_view name) {
    if (name == "eps") return 1e-5;
    if (name == "std") return 1.5;
    return 0.5;
  }

  c10::IValue number(std::string_view name) {
    if (name == "end") return 5;
    if (one_of(name, {"min", "min_val", "lower"})) return fill_ ? c10::Scalar(-1) : c10::Scalar(0);
    if (one_of(name, {"max", "max_val", "upper"})) return 2;
    if (one_of(name, {"start", "low", "step"})) return 1;
    if (fill_ && at::isFloatingType(values_.dtype())) return 0.5;
    return 2;
  }

  int64_t integer(std::string_view name) const {
    const bool deep = fill_ && plan_.sizes.size() > 1;
    if (one_of(name, {"dim", "dim0", "axis", "axis0", "start_dim"})) return deep && name == "dim" ? -1 : 0;
    if (one_of(name, {"dim1", "axis1", "end_dim"})) return -1;
    if (one_of(name, {"index", "start", "offset", "diagonal", "storage_offset"})) return 0;
    if (one_of(name, {"chunks", "sections", "num_groups", "upscale_factor", "downscale_factor", "end", "size", "k"}))
      return 2;
    if (one_of(name, {"window_length", "high", "steps", "bins", "n_fft", "n", "to"})) return 6;
    return 1;
  }

  std::optional<c10::IValue> list(const c10::Type& element, const c10::Argument& argument) {
    switch (element.kind()) {
      case TypeKind::TensorType: {
        first_ = false;
        return std::vector<at::Tensor>{laid_out(plan_, values_), laid_out(plan_, values_)};
      }
      case TypeKind::OptionalType: {
        c10::List<std::optional<at::Tensor>> indices;
        const int64_t extent = plan_.sizes.empty() ? 1 : plan_.sizes.front();
        indices.push_back(fill_ ? values_.mask(plan_.sizes) : values_.index({2}, std::max<int64_t>(1, extent)));
        return indices;
      }
      case TypeKind::IntType: return integers(argument);
      case TypeKind::FloatType: return std::vector<double>{0.0, 1.0};
      case TypeKind::BoolType: return std::vector<bool>(static_cast<size_t>(argument.N().value_or(1)), true);
      default: return std::nullopt;
    }
  }

  Ints integers(const c10::Argument& argument) const {
    const std::string_view name = argument.name();
    const auto rank = static_cast<int64_t>(plan_.sizes.size());
    const auto count = static_cast<size_t>(argument.N().value_or(1));
    const Ints sizes(plan_.sizes.begin(), plan_.sizes.end());
    if (one_of(name, {"size", "shape", "sizes"})) return sizes;
    if (one_of(name, {"dim", "dims", "axes"})) {
      if (!fill_ || rank < 2) return count > 1 ? Ints{0, 1} : Ints{0};
      return {rank - 1, 0};
    }
    if (one_of(name, {"repeats", "reps", "kernel_size"})) {
      return Ints(name == "kernel_size" ? count : std::max<size_t>(1, sizes.size()), 2);
    }
    if (name == "output_size") return Ints(count, 3);
    if (name == "normalized_shape") return sizes.empty() ? Ints{} : Ints{sizes.back()};
    if (name == "pad") return {1, 1};
    if (name == "split_sizes") return sizes.empty() ? Ints{0} : Ints{1, sizes.front() - 1};
    if (name == "output_padding") return Ints(count, 0);
    return Ints(count, 1);
  }

  const Plan& plan_;
  const bool fill_;
  Values& values_;
  bool first_ = true;  // the first tensor has the plan's layout whatever its name
};

at::Tensor replica(const at::Tensor& tensor, c10::Device device) {
  if (!tensor.defined()) return {};
  if (tensor.is_non_overlapping_and_dense() && tensor.storage_offset() == 0 && !tensor.is_conj() && !tensor.is_neg()) {
    return tensor.clone().to(device);
  }
  at::Tensor whole = at::empty({0}, tensor.options());
  whole.set_(tensor.storage(), 0, {static_cast<int64_t>(tensor.storage().nbytes() / tensor.itemsize())}, {1});
  at::Tensor copy = whole.clone().to(device).as_strided(tensor.sizes(), tensor.strides(), tensor.storage_offset());
  if (tensor.is_conj()) copy = copy.conj();
  return tensor.is_neg() ? at::_neg_view(copy) : copy;
}

}  // namespace

Values::Values(uint64_t seed, at::ScalarType dtype)
    : generator_(at::make_generator<at::CPUGeneratorImpl>(seed)), dtype_(dtype) {}

at::Tensor Values::real(at::IntArrayRef sizes, bool unit) {
  const auto options = at::TensorOptions().dtype(at::kDouble);
  if (dtype_ == at::kBool) return mask(sizes);
  if (at::isIntegralType(dtype_, false)) {
    const int64_t low = unit || dtype_ == at::kByte ? 1 : -3;
    return at::randint(low, 5, sizes, generator_, at::TensorOptions().dtype(at::kLong)).to(dtype_);
  }
  if (at::isComplexType(dtype_)) return at::randn(sizes, generator_, options.dtype(at::kComplexDouble)).to(dtype_);
  if (unit) return at::rand(sizes, generator_, options).mul(0.9).add(0.05).to(dtype_);
  return at::randn(sizes, generator_, options).to(dtype_);
}

at::Tensor Values::index(at::IntArrayRef sizes, int64_t below) {
  return at::randint(0, below, sizes, generator_, at::TensorOptions().dtype(at::kLong));
}

at::Tensor Values::mask(at::IntArrayRef sizes) { return index(sizes, 2).to(at::kBool); }

at::Tensor Values::ascending(at::IntArrayRef sizes) {
  return std::get<0>(at::randn(sizes, generator_, at::TensorOptions().dtype(at::kDouble)).sort()).to(dtype_);
}

at::Tensor Values::positive_definite(at::IntArrayRef sizes) {
  const at::Tensor root = real(sizes);
  if (!root.is_floating_point() && !root.is_complex()) return root;
  const int64_t size = sizes.back();
  const at::Tensor wide = root.to(root.is_complex() ? at::kComplexDouble : at::kDouble);
  return wide.matmul(wide.mH()).add(at::eye(size, wide.options())).to(dtype_);
}

c10::ArrayRef<Plan> plans() {
  using Layout = Plan::Layout;
  static const std::vector<Plan> all = {
      {"matrix", {2, 3}},
      {"unit matrix", {2, 3}, Layout::kPlain, true},
      {"positive definite", {3, 3}, Layout::kPositiveDefinite},
      {"vector", {4}},
      {"cube", {2, 3, 4}},
      {"pictures", {2, 4, 6, 6}},
      {"volumes", {1, 2, 4, 4, 4}},
      {"0-dim", {}},
      {"empty", {0, 3}},
      {"transposed", {2, 3}, Layout::kTransposed},
      {"gaps", {2, 3}, Layout::kGaps},
      {"channels last", {2, 4, 6, 6}, Layout::kChannelsLast},
      {"conj or neg", {2, 3}, Layout::kLazyBit},
      {"broadcast", {2, 3}, Layout::kPlain, false, true},
  };
  return all;
}

std::optional<torch::jit::Stack> make_arguments(const c10::FunctionSchema& schema, const Plan& plan, bool fill,
                                                Values& values) {
  Maker maker(plan, fill, values);
  torch::jit::Stack stack;
  for (const c10::Argument& argument : schema.arguments()) {
    auto value = maker.argument(argument);
    if (!value.has_value()) return std::nullopt;
    stack.push_back(std::move(*value));
  }
  return stack;
}

torch::jit::Stack replica(const torch::jit::Stack& arguments, c10::Device device) {
  torch::jit::Stack out;
  for (const c10::IValue& value : arguments) {
    if (value.isTensor()) {
      out.emplace_back(replica(value.toTensor(), device));
    } else if (value.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor& tensor : value.toTensorVector()) list.push_back(replica(tensor, device));
      out.emplace_back(std::move(list));
    } else if (value.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> list;
      for (const auto& tensor : value.toOptionalTensorVector()) {
        list.push_back(tensor.has_value() ? std::optional(replica(*tensor, device)) : std::nullopt);
      }
      out.emplace_back(std::move(list));
    } else if (value.isDevice()) {
      out.emplace_back(device);
    } else {
      out.push_back(value);
    }
  }
  return out;
}

}  // namespace genie::test
