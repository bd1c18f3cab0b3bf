// Reads a segment of the trace as a graph of values and dependencies.
#pragma once

#include "frontend/capture/stream.h"
#include "genie/graph.h"

namespace genie::frontend {

Graph graph_of(const Segment& segment);

}  // namespace genie::frontend
