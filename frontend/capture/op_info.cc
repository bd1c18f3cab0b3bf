#include "frontend/capture/op_info.h"

#include <ATen/core/enum_tag.h>

#include <deque>
#include <mutex>
#include <unordered_map>

#include "frontend/capture/shapes.h"
#include "src/executor/schema_hash.h"

namespace genie::frontend {
namespace {

ArgKind kind_of(const c10::Type& type, const c10::Type& real) {
  switch (type.kind()) {
    case c10::TypeKind::OptionalType: {
      const auto& real_inner =
          real.kind() == c10::TypeKind::OptionalType ? *real.expectRef<c10::OptionalType>().getElementType() : real;
      return kind_of(*type.expectRef<c10::OptionalType>().getElementType(), real_inner);
    }
    case c10::TypeKind::TensorType: return ArgKind::kTensor;
    case c10::TypeKind::IntType: {
      const bool constant = real.kind() == c10::TypeKind::ScalarTypeType || real.kind() == c10::TypeKind::LayoutType ||
                            real.kind() == c10::TypeKind::MemoryFormatType;
      return constant ? ArgKind::kIntConst : ArgKind::kInt;
    }
    case c10::TypeKind::FloatType: return ArgKind::kDouble;
    case c10::TypeKind::BoolType: return ArgKind::kBool;
    case c10::TypeKind::StringType: return ArgKind::kString;
    case c10::TypeKind::NumberType: return ArgKind::kNumber;
    case c10::TypeKind::DeviceObjType: return ArgKind::kDevice;
    case c10::TypeKind::GeneratorType: return ArgKind::kGenerator;
    case c10::TypeKind::ListType: {
      const auto& element = *type.expectRef<c10::ListType>().getElementType();
      switch (element.kind()) {
        case c10::TypeKind::TensorType: return ArgKind::kTensorList;
        case c10::TypeKind::OptionalType: return ArgKind::kOptionalTensorList;
        case c10::TypeKind::IntType: return ArgKind::kIntList;
        case c10::TypeKind::FloatType: return ArgKind::kDoubleList;
        case c10::TypeKind::BoolType: return ArgKind::kBoolList;
        case c10::TypeKind::NumberType: return ArgKind::kNumberList;
        default: return ArgKind::kUnsupported;
      }
    }
    default: return ArgKind::kUnsupported;
  }
}

void describe_arguments(OpInfo& info, const c10::FunctionSchema& schema) {
  for (const auto& argument : schema.arguments()) {
    ArgInfo arg;
    arg.kind = kind_of(*argument.type(), *argument.real_type());
    arg.is_write = argument.alias_info() != nullptr && argument.alias_info()->isWrite();
    info.supported = info.supported && arg.kind != ArgKind::kUnsupported;
    info.side_effect = info.side_effect || arg.kind == ArgKind::kGenerator;
    info.args.push_back(arg);
  }
}

void describe_returns(OpInfo& info, const c10::FunctionSchema& schema) {
  for (const auto& result : schema.returns()) {
    ReturnInfo out;
    if (result.type()->kind() == c10::TypeKind::TensorType) {
      out.kind = ReturnKind::kTensor;
    } else if (result.type()->kind() == c10::TypeKind::ListType &&
               result.type()->expectRef<c10::ListType>().getElementType()->kind() == c10::TypeKind::TensorType) {
      out.kind = ReturnKind::kTensorList;
    } else {
      out.kind = ReturnKind::kOther;
    }
    if (result.alias_info() != nullptr && result.alias_info()->isWrite()) {
      for (size_t i = 0; i < schema.arguments().size(); ++i) {
        const auto* alias = schema.arguments()[i].alias_info();
        if (alias != nullptr && alias->isWrite() && alias->beforeSets() == result.alias_info()->beforeSets()) {
          out.alias_of = static_cast<int>(i);
        }
      }
    }
    info.writes_only = info.writes_only && out.alias_of >= 0;
    info.returns.push_back(out);
  }
}

// Why an operator that somebody else defines cannot travel.
std::string find_obstacle(const OpInfo& info, const c10::FunctionSchema& schema) {
  for (const auto& result : schema.returns()) {
    if (result.alias_info() != nullptr && !result.alias_info()->isWrite())
      return "it makes a view, and only operators that this process runs can do that";
  }
  for (size_t i = 0; i < info.returns.size(); ++i) {
    if (info.returns[i].kind == ReturnKind::kOther) {
      return "it returns " + schema.returns()[i].type()->str() + ", and only tensors come back from a node";
    }
  }
  for (size_t i = 0; i < info.args.size(); ++i) {
    const auto& argument = schema.arguments()[i];
    if (info.args[i].kind == ArgKind::kUnsupported) {
      return "its argument '" + argument.name() + "' is of type " + argument.type()->str() + ", which does not travel";
    }
  }
  return {};
}

// A library's operator: nothing is known of it but its schema.
void fill_custom(OpInfo& info) {
  info.custom = true;
  info.schema_hash = executor::schema_hash(info.handle.schema());
  info.obstacle = find_obstacle(info, info.handle.schema());
  info.values_shape = true;
}

struct Table {
  std::mutex mutex;
  std::deque<OpInfo> infos;
  std::unordered_map<c10::OperatorName, const UserShapes*>
      shapes_of_gone;  // they count again when the operator is back
  std::unordered_map<c10::OperatorName, OpInfo*> by_name;
};

Table& table() {
  static auto* const instance = new Table;  // leaked: kernels may run during static destruction
  return *instance;
}

void fill(OpInfo& info) {
  const auto& schema = info.handle.schema();
  const auto& op_name = schema.operator_name();
  info.name = op_name.overload_name.empty() ? op_name.name : op_name.name + "." + op_name.overload_name;
  describe_arguments(info, schema);
  describe_returns(info, schema);
  for (const at::Tag tag : info.handle.getTags()) {
    info.data_dependent =
        info.data_dependent || tag == at::Tag::dynamic_output_shape || tag == at::Tag::data_dependent_output;
    info.side_effect = info.side_effect || tag == at::Tag::nondeterministic_seeded;
  }
  const std::string_view name = op_name.name;
  info.indexes = name == "aten::index";
  // Operators without results and without written arguments exist for their effect (asserts, seeds).
  bool writes = false;
  for (const auto& arg : info.args) writes = writes || arg.is_write;
  info.side_effect = info.side_effect || (info.returns.empty() && !writes);
  info.values_shape = name == "aten::arange" || name == "aten::range" || name == "aten::linspace" ||
                      name == "aten::logspace" || name.find("upsample") != std::string_view::npos;
  info.lifts_cpu_operands = name == "aten::index" || name == "aten::index_put" || name == "aten::index_put_" ||
                            name == "aten::_index_put_impl_" || name == "aten::_index_put_impl" ||
                            name == "genie::set_generator_state";
  info.mixes_devices = name == "aten::copy_";
  info.bookkeeping = name == "genie::alloc";
  info.hidden_running_stats = name == "aten::native_batch_norm";
  info.has_meta = info.handle.hasKernelForDispatchKey(c10::DispatchKey::Meta) ||
                  info.handle.hasKernelForDispatchKey(c10::DispatchKey::CompositeExplicitAutograd) ||
                  info.handle.hasKernelForDispatchKey(c10::DispatchKey::CompositeExplicitAutogradNonFunctional);
  info.meta_is_stand_in = !info.handle.hasKernelForDispatchKey(c10::DispatchKey::Meta) &&
                          info.handle.hasKernelForDispatchKey(c10::DispatchKey::CPU);
  info.keeps_format = name == "aten::reflection_pad3d" || name == "aten::replication_pad2d" ||
                      name == "aten::replication_pad3d" || name == "aten::pixel_unshuffle";
  // Their meta kernels promise sizes, or strides, that the CPU's kernels do not give: the node says.
  for (const std::string_view misled :
       {"aten::_embedding_bag", "aten::_embedding_bag_forward_only", "aten::_linalg_svd", "aten::linalg_eig",
        "aten::_fft_r2c", "aten::_fft_c2r", "aten::isin.Scalar_Tensor_out"}) {
    if (name == misled || info.name == misled) info.has_meta = false;
  }
  // Own shape functions know functional results only: an out= variant also resizes its argument.
  bool returns_argument = false;
  for (const auto& result : info.returns) returns_argument = returns_argument || result.alias_of >= 0;
  info.shape = find_shape_function(info.name);
  if (info.shape == nullptr && !returns_argument) info.shape = find_shape_function(name);
  size_t outs = 0;
  for (const auto& argument : schema.arguments()) {
    outs += argument.kwarg_only() && argument.alias_info() != nullptr && argument.alias_info()->isWrite() ? 1 : 0;
  }
  info.resizes_out = returns_argument && outs == info.returns.size();
  if (!name.starts_with("aten::") && !name.starts_with("genie::")) fill_custom(info);
}

}  // namespace

OpInfo& op_info(const c10::OperatorHandle& handle) {
  Table& all = table();
  const std::lock_guard<std::mutex> lock(all.mutex);
  auto [place, fresh] = all.by_name.try_emplace(handle.operator_name(), nullptr);
  if (fresh) {
    OpInfo& info = all.infos.emplace_back(handle);
    info.index = static_cast<uint32_t>(all.infos.size() - 1);
    fill(info);
    if (const auto kept = all.shapes_of_gone.find(handle.operator_name()); kept != all.shapes_of_gone.end())
      info.user_shapes.store(kept->second, std::memory_order_release);
    place->second = &info;
  }
  return *place->second;
}

OpInfo& op_info(const char* name, const char* overload) {
  return op_info(c10::Dispatcher::singleton().findSchemaOrThrow(name, overload));
}

void forget_op(const c10::OperatorName& name) {
  Table& all = table();
  const std::lock_guard<std::mutex> lock(all.mutex);
  const auto found = all.by_name.find(name);
  if (found == all.by_name.end()) return;
  if (const UserShapes* shapes = found->second->user_shapes.load(std::memory_order_acquire); shapes != nullptr)
    all.shapes_of_gone.insert_or_assign(name, shapes);
  else
    all.shapes_of_gone.erase(name);
  all.by_name.erase(found);
}

std::vector<const OpInfo*> all_op_infos() {
  Table& all = table();
  const std::lock_guard<std::mutex> lock(all.mutex);
  std::vector<const OpInfo*> out;
  for (const OpInfo& info : all.infos) out.push_back(&info);
  return out;
}

}  // namespace genie::frontend
