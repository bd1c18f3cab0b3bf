// Reads a segment of the trace as a graph of values and dependencies.
#pragma once

#include "frontend/capture/stream.h"
#include "genie/graph.h"

namespace genie::frontend {

// Records [first, last), which touch storages below `storage_count`. What keeps the node's books is left out.
Graph graph_of(const Segment& segment, size_t first, size_t last, size_t storage_count);
inline Graph graph_of(const Segment& segment) {
  return graph_of(segment, 0, segment.records.size(), segment.slots.size());
}

}  // namespace genie::frontend
