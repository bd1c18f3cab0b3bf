// The tables of guards, one per family. Internal to the guards.
#pragma once

#include <span>
#include <string_view>

#include "src/executor/guards.h"

namespace genie::executor {

struct GuardEntry {
  std::string_view name;
  Guard guard;
};

std::span<const GuardEntry> shape_guards();  // results of a forward pass that come back in backward; weights of a layer
std::span<const GuardEntry> index_guards();  // indices, offsets, lengths, pivots
std::span<const GuardEntry> number_guards();  // integers that kernels compute with

}  // namespace genie::executor
