#include "frontend/capture/user_shapes.h"

#include <ATen/EmptyTensor.h>
#include <c10/util/strides.h>
#include <fmt/format.h>

#include <vector>

#include "frontend/capture/env.h"
#include "frontend/capture/keep.h"

namespace genie {

// What a function says, checked as it says it.
class ShapeAnswer {
 public:
  ShapeAnswer(const frontend::OpInfo& op, c10::ArrayRef<c10::IValue> args, frontend::OutputMeta& out)
      : op_(op), args_(args), out_(out) {}

  bool ask(const ShapeFunction& function) {
    ShapeCall call(*this);
    if (!function(call)) return false;
    finish();
    return true;
  }

  c10::ArrayRef<c10::IValue> args() const { return args_; }
  [[noreturn]] void refuse(const std::string& why) const {
    throw Error(Status(Errc::kInvalidArgument, fmt::format("the shape function of {} {}", op_.name, why)));
  }

  void add(frontend::TensorMeta meta) {
    if (list_left_ > 0) {
      --list_left_;
    } else {
      lengths_.push_back(-1);
    }
    out_.tensors.push_back(std::move(meta));
  }

  void begin_list(size_t count) {
    if (list_left_ > 0) refuse("begins a list within a list");
    lengths_.push_back(static_cast<int32_t>(count));
    list_left_ = count;
  }

 private:
  // One entry per result of the schema, as capture wants it.
  void finish() {
    if (list_left_ > 0) refuse(fmt::format("leaves {} tensors of a list undescribed", list_left_));
    size_t next = 0;
    for (const frontend::ReturnInfo& result : op_.returns) {
      if (result.alias_of >= 0) {
        out_.list_length.push_back(-1);
        continue;
      }
      if (next == lengths_.size()) refuse(fmt::format("describes {} new results, its schema has more", next));
      const bool is_list = result.kind == frontend::ReturnKind::kTensorList;
      if (is_list != (lengths_[next] >= 0)) {
        refuse(
            fmt::format("describes result {} as {}, the schema says otherwise", next, is_list ? "a tensor" : "a list"));
      }
      out_.list_length.push_back(lengths_[next++]);
    }
    if (next != lengths_.size())
      refuse(fmt::format("describes {} new results, its schema has {}", lengths_.size(), next));
  }

  const frontend::OpInfo& op_;
  const c10::ArrayRef<c10::IValue> args_;
  frontend::OutputMeta& out_;
  std::vector<int32_t> lengths_;
  size_t list_left_ = 0;
};

size_t ShapeCall::size() const { return answer_.args().size(); }

const c10::IValue& ShapeCall::operator[](size_t argument) const {
  if (argument >= size()) answer_.refuse(fmt::format("asks for argument {} of {}", argument, size()));
  return answer_.args()[argument];
}

const at::Tensor& ShapeCall::tensor(size_t argument) const {
  const c10::IValue& value = (*this)[argument];
  if (!value.isTensor())
    answer_.refuse(fmt::format("takes argument {} for a tensor, it is {}", argument, value.tagKind()));
  return value.toTensor();
}

void ShapeCall::add(at::IntArrayRef sizes, at::ScalarType dtype, at::IntArrayRef strides) {
  for (const int64_t size : sizes) {
    if (size < 0) answer_.refuse(fmt::format("gives a negative size, {}", size));
  }
  if (strides.empty()) return answer_.add(frontend::dense_meta(sizes, c10::contiguous_strides(sizes), dtype));
  if (strides.size() != sizes.size())
    answer_.refuse(fmt::format("gives {} strides for {} sizes", strides.size(), sizes.size()));
  for (const int64_t stride : strides) {
    if (stride < 0) answer_.refuse(fmt::format("gives a negative stride, {}", stride));
  }
  if (!at::detail::empty_strided_meta(sizes, strides, dtype).is_non_overlapping_and_dense())
    answer_.refuse("gives strides that leave gaps or overlap");
  answer_.add(frontend::dense_meta(sizes, strides, dtype));
}

void ShapeCall::add_like(const at::Tensor& tensor) { answer_.add(frontend::meta_like(tensor)); }

void ShapeCall::add_undefined() { answer_.add(frontend::TensorMeta{.defined = false}); }
void ShapeCall::begin_list(size_t count) { answer_.begin_list(count); }

void register_shape_function(const std::string& op, ShapeFunction function) {
  const size_t dot = op.find('.');
  const std::string overload = dot == std::string::npos ? "" : op.substr(dot + 1);
  const auto handle = c10::Dispatcher::singleton().findSchema({op.substr(0, dot), overload});
  if (!handle.has_value()) {
    throw Error(
        Status(Errc::kNotFound, fmt::format("register_shape_function: this process has no operator '{}'; load the "
                                            "library that defines it first, and name it as namespace::name or "
                                            "namespace::name.overload",
                                            op)));
  }
  frontend::OpInfo& info = frontend::op_info(*handle);
  const auto* kept = function ? frontend::keep_for_good(frontend::UserShapes{std::move(function)}) : nullptr;
  info.user_shapes.store(kept, std::memory_order_release);
  info.shape_epoch.fetch_add(1, std::memory_order_acq_rel);
}

namespace {

std::atomic<bool>& check_flag() {
  static std::atomic<bool> flag{frontend::env_switch("GENIE_CHECK_SHAPES", false)};
  return flag;
}

}  // namespace

void set_check_shapes(bool check) { check_flag().store(check, std::memory_order_relaxed); }
bool is_checking_shapes() { return check_flag().load(std::memory_order_relaxed); }

namespace frontend {

bool run_user_shapes(const UserShapes& user, const OpInfo& op, c10::ArrayRef<c10::IValue> args, OutputMeta& out) {
  return ShapeAnswer(op, args, out).ask(user.function);
}

}  // namespace frontend
}  // namespace genie
