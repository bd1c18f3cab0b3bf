// Plots of a report, for people.
//
// Thread-safety: any thread. Ownership: values.
#pragma once

#include <string>

#include "bench/harness/harness.h"

namespace genie::bench {

// One chart for each group of rows that differ in params.bytes only: ours and each peer over the bytes, both axes
// logarithmic. When no row has bytes: a bar for the ratio of each row to its peer. SVG; empty when there is neither.
std::string plot_svg(const Json& report);

}  // namespace genie::bench
