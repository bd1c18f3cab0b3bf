#include "frontend/capture/op_context.h"

#include <ATen/core/enum_tag.h>

#include <algorithm>
#include <deque>
#include <memory>
#include <mutex>
#include <string_view>
#include <unordered_map>

#include "frontend/capture/custom_ops.h"
#include "src/executor/guards.h"

namespace genie::frontend {
namespace {

constexpr size_t kSlots = 512;

constexpr std::string_view kStaying[] = {
    // Moves, copies and identity.
    "clone", "_to_copy", "type_as", "data", "set_data", "set_", "copy_", "_foreach_copy_", "_copy_from",
    "_copy_from_and_resize", "resize_", "resize_as_", "_resize_output_", "_unsafe_view", "_lazy_clone", "_to_cpu",
    "_pin_memory", "is_pinned", "record_stream", "from_file",
    // Other layouts.
    "to_dense", "_to_dense", "to_sparse", "_to_sparse", "to_mkldnn", "_empty_affine_quantized", "empty_quantized",
    "_empty_per_channel_affine_quantized",
    // Questions.
    "is_same_size", "is_set_to", "result_type", "_has_same_storage_numel", "_has_compatible_shallow_copy_type",
    "_assert_tensor_metadata", "_version", "is_leaf", "output_nr", "retain_grad", "retains_grad", "requires_grad_"};

// Their results are views of their operands, though their schemas do not say so: among CPU tensors they stay there.
constexpr std::string_view kViewsUnsaid[] = {"broadcast_tensors", "meshgrid", "atleast_1d", "atleast_2d", "atleast_3d"};

constexpr std::string_view kForeign[] = {
    "c10d::", "_c10d_functional::", "_c10d_functional_autograd::", "profiler::", "prim::", "genie::", "symm_mem::"};

template <class List>
bool contains(const List& list, std::string_view name) {
  return std::ranges::find(list, name) != std::end(list);
}

int argument_named(const c10::FunctionSchema& schema, std::string_view name) {
  for (size_t i = 0; i < schema.arguments().size(); ++i) {
    if (schema.arguments()[i].name() == name) return static_cast<int>(i);
  }
  return -1;
}

bool is_view(const c10::FunctionSchema& schema) {
  return std::ranges::any_of(schema.returns(), [](const c10::Argument& result) {
    return result.alias_info() != nullptr && !result.alias_info()->isWrite();
  });
}

bool returns_tensors(const c10::FunctionSchema& schema) {
  return !schema.returns().empty() && std::ranges::all_of(schema.returns(), [](const c10::Argument& result) {
    return result.type()->isSubtypeOf(*c10::TensorType::get()) ||
           result.type()->isSubtypeOf(*c10::ListType::ofTensors());
  });
}

int stats_mode(std::string_view name) {
  return name == "batch_norm" || name == "native_batch_norm" || name == "_batch_norm_impl_index" ||
                 name == "instance_norm"
             ? 5
             : -1;
}

int host_argument(const c10::FunctionSchema& schema, std::string_view full) {
  return argument_named(schema, full == "aten::_pack_padded_sequence" ? "lengths" : "batch_sizes");
}

ContextWay way_of(const c10::FunctionSchema& schema, std::string_view full, std::string_view name) {
  if (full == "aten::_backward") return ContextWay::kOpen;
  if (full == "aten::to" && schema.overload_name() == "dtype_layout") return ContextWay::kTo;
  const bool foreign =
      std::ranges::any_of(kForeign, [full](std::string_view space) { return full.starts_with(space); });
  const bool reads_memory =
      name.starts_with("fbgemm_") || name.starts_with("_sobol_") || name == "_pad_packed_sequence";
  if (foreign || reads_memory || is_view(schema) || contains(kStaying, name) ||
      name.find("sparse_") != std::string_view::npos) {
    return ContextWay::kStays;
  }
  return ContextWay::kLifted;
}

OpContext read(const c10::OperatorHandle& op) {
  const c10::FunctionSchema& schema = op.schema();
  const std::string_view full = schema.name();
  const size_t colons = full.find("::");
  const std::string_view name = colons == std::string_view::npos ? full : full.substr(colons + 2);
  OpContext out;
  out.way = way_of(schema, full, name);
  out.device = argument_named(schema, "device");
  out.layout = argument_named(schema, "layout");
  out.pin_memory = argument_named(schema, "pin_memory");
  out.generator = argument_named(schema, "generator");
  out.host = host_argument(schema, full);
  out.stats_mode = full.starts_with("aten::") ? stats_mode(name) : -1;
  out.like = out.device >= 0 && (name.ends_with("_like") || name.starts_with("new_"));
  bool writes = false;
  for (const c10::Argument& argument : schema.arguments()) {
    out.writes.push_back(argument.alias_info() != nullptr && argument.alias_info()->isWrite());
    out.outs.push_back(argument.is_out());
    writes = writes || out.writes.back();
  }
  // Nodes refuse compositions as a whole; their pieces are what is captured.
  const bool node_runs_it = op.hasKernelForDispatchKey(c10::DispatchKey::CompositeImplicitAutograd) ||
                            executor::refusal(schema.operator_name()).empty();
  out.lifts_alone =
      !writes && full.starts_with("aten::") && returns_tensors(schema) && node_runs_it && !contains(kViewsUnsaid, name);
  out.takes_numbers = op.hasTag(at::Tag::pointwise);
  out.fills_tensor = full == "aten::select" || full == "aten::fill_";
  return out;
}

struct Table {
  std::mutex mutex;
  std::deque<OpContext> entries;
  std::unordered_map<const c10::FunctionSchema*, const OpContext*> by_schema;
  uint32_t generation = 0;  // of by_schema: another operator's schema may lie where that of one that went lay
};

Table& table() {
  static auto* const instance = new Table;  // leaked: kernels may run during static destruction
  return *instance;
}

const OpContext& look_up(const c10::OperatorHandle& op, uint32_t generation) {
  Table& all = table();
  const std::lock_guard<std::mutex> guard(all.mutex);
  if (all.generation != generation) {
    all.by_schema.clear();
    all.generation = generation;
  }
  const OpContext*& entry = all.by_schema[&op.schema()];
  if (entry == nullptr) entry = &all.entries.emplace_back(read(op));
  return *entry;
}

}  // namespace

const OpContext& op_context(const c10::OperatorHandle& op) {
  struct Slot {
    const c10::FunctionSchema* schema;
    const OpContext* entry;
    uint32_t generation;
  };
  // On the heap: the room for what every thread has in place is scarce in a process that loads the library late.
  static thread_local const std::unique_ptr<Slot[]> slots(new Slot[kSlots]{});
  const c10::FunctionSchema* schema = &op.schema();
  Slot& slot = slots[(reinterpret_cast<uintptr_t>(schema) >> 6) % kSlots];
  const uint32_t now = op_generation();
  if (slot.schema != schema || slot.generation != now) slot = {schema, &look_up(op, now), now};
  return *slot.entry;
}

}  // namespace genie::frontend
