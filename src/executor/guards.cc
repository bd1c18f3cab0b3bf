#include "src/executor/guards.h"

#include <ATen/core/dispatch/Dispatcher.h>

#include <algorithm>
#include <array>

#include "src/executor/guard_tables.h"
#include "src/executor/libraries.h"

namespace genie::executor {
namespace {

constexpr std::string_view kOutside = "it reaches outside the session";
constexpr std::string_view kTrusting = "its kernel trusts operands that a node cannot check";
constexpr std::string_view kComposition = "it is a composition: clients send its parts";
constexpr std::string_view kLayout = "its operands or results are not strided tensors";

struct Refused {
  std::string_view name;
  std::string_view why;
};

// Files, raw storages, other processes' memory, this process's output, geometry without bounds, pointers in tensors.
constexpr Refused kNames[] = {
    {"aten::from_file", kOutside},
    {"aten::set_", kOutside},
    {"aten::set", kOutside},
    {"aten::set_data", kOutside},
    {"aten::pin_memory", kOutside},
    {"aten::_pin_memory", kOutside},
    {"aten::record_stream", kOutside},
    {"aten::_print", kOutside},
    {"aten::_reshape_alias_copy", kTrusting},
    {"aten::_cholesky_solve_helper", kTrusting},
    {"aten::_stack", kTrusting},
    {"aten::_logcumsumexp", kTrusting},
    {"aten::_new_zeros_with_same_feature_meta", kTrusting},
    {"aten::_compute_linear_combination", kTrusting},
    {"aten::_cummax_helper", kTrusting},
    {"aten::_cummin_helper", kTrusting},
    {"aten::_sobol_engine_draw", kTrusting},
    {"aten::_sobol_engine_ff_", kTrusting},
    {"aten::_sobol_engine_scramble_", kTrusting},
    {"aten::_sobol_engine_initialize_state_", kTrusting},
    {"aten::_convert_indices_from_coo_to_csr", kTrusting},
    {"aten::_convert_indices_from_csr_to_coo", kTrusting},
    {"aten::_choose_qparams_per_tensor", kTrusting},
    {"aten::choose_qparams_optimized", kTrusting},
    {"aten::_fused_moving_avg_obs_fq_helper", kTrusting},
    {"aten::_fused_moving_avg_obs_fq_helper_functional", kTrusting},
    {"aten::_jagged_to_padded_dense_forward", kTrusting},
    {"aten::_padded_dense_to_jagged_forward", kTrusting},
    {"aten::_convert_weight_to_int4pack", kTrusting},
    {"aten::_convert_weight_to_int4pack_for_cpu", kTrusting},
    {"aten::_weight_int4pack_mm", kTrusting},
    {"aten::_weight_int4pack_mm_for_cpu", kTrusting},
    {"aten::_weight_int8pack_mm", kTrusting},
    {"aten::_dyn_quant_pack_4bit_weight", kTrusting},
    {"aten::_dyn_quant_matmul_4bit", kTrusting},
};

// Families, by a part of the name.
constexpr Refused kParts[] = {
    {"mkldnn", kTrusting},
    {"slow_conv", kTrusting},
    {"_scaled_mm", kTrusting},
    {"_scaled_grouped_mm", kTrusting},
    {"fbgemm", kTrusting},
    {"nnpack", kTrusting},
    {"nested", kLayout},
    {"sparse", kLayout},
    {"coalesce", kLayout},
    {"_csr", kLayout},
    {"_csc", kLayout},
    {"_bsr", kLayout},
    {"_bsc", kLayout},
    {"_cslt", kLayout},
    {"quantize_per_tensor", kLayout},
    {"quantized", kLayout},
    {"_empty_affine", kLayout},
    {"_empty_per_channel", kLayout},
};

bool is_composition(const c10::OperatorName& name) {
  const auto op = c10::Dispatcher::singleton().findSchema(name);
  return op.has_value() && op->hasKernelForDispatchKey(c10::DispatchKey::CompositeImplicitAutograd) &&
         !op->hasKernelForDispatchKey(c10::DispatchKey::CPU);
}

// What a library's kernels trust is for whoever loads it to know.
std::string_view custom_refusal(const c10::OperatorName& name, Trust trust) {
  if (trust == Trust::kLibraries && !is_library_operator(name))
    return "no library that the node was started with (--load-library) defines it";
  return is_composition(name) ? kComposition : std::string_view();
}

}  // namespace

std::string_view refusal(const c10::OperatorName& name, Trust trust) {
  if (name.name.starts_with("genie::")) return {};
  if (!name.name.starts_with("aten::")) return custom_refusal(name, trust);
  for (const Refused& refused : kNames) {
    if (name.name == refused.name) return refused.why;
  }
  for (const Refused& refused : kParts) {
    if (name.name.find(refused.name) != std::string::npos) return refused.why;
  }
  // Clients send its parts, of which each is looked at; whole it would run them unseen. Two check all that their parts need.
  if (name.name != "aten::linear" && name.name != "aten::layer_norm" && is_composition(name)) return kComposition;
  return {};
}

Guard guard_of(std::string_view name) {
  for (const auto table : {shape_guards(), index_guards(), number_guards()}) {
    const auto found = std::ranges::find(table, name, &GuardEntry::name);
    if (found != table.end()) return found->guard;
  }
  return nullptr;
}

}  // namespace genie::executor
