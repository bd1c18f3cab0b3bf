// Graph: the captured operations as a DAG to look at.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "genie/status.h"

namespace genie {

struct GENIE_API GraphValue {
  std::string dtype;
  std::vector<int64_t> sizes;
  uint32_t storage = 0;  // storages of the graph are numbered; two values over one storage alias
};

struct GENIE_API GraphNode {
  uint32_t id = 0;
  std::string op;                    // "aten::addmm"
  std::vector<GraphValue> inputs;    // tensors only
  std::vector<GraphValue> outputs;   // new tensors; in-place results are among the inputs
  std::vector<uint32_t> depends_on;  // nodes that must come before, by storage versions (RAW, WAR, WAW)
};

struct GENIE_API Graph {
  std::vector<GraphNode> nodes;  // in program order
  uint64_t omitted = 0;          // operators after the first 1,048,576 of a capture: counted, not kept
  // One line per node.
  std::string to_string() const;
  // For graphviz.
  std::string to_dot() const;
};

}  // namespace genie
