// OpContext: what an open capture has to know of an operator, worked out from its schema once.
//
// Thread-safety: any thread; a look-up is one probe in a table of the thread.
// Ownership: entries live until the process ends.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

#include <cstdint>
#include <vector>

namespace genie::frontend {

enum class ContextWay : uint8_t {
  kOpen,    // runs as it is, and what it calls is captured too (backward)
  kStays,   // runs as it is: views, copies, moves between devices, questions
  kTo,      // as kStays; but it may be the end of torch::tensor({...})
  kLifted,  // factories get a device, operands are lifted
};

struct OpContext {
  ContextWay way = ContextWay::kLifted;
  int device = -1;  // arguments by name, -1: none
  int layout = -1;
  int pin_memory = -1;
  int generator = -1;
  int stats_mode = -1;         // of a batch norm: where it is true, the running statistics (3, 4) are written
  bool like = false;           // a factory that takes but the looks of a tensor
  bool lifts_alone = true;     // also when all operands lie on the CPU
  bool takes_numbers = false;  // pointwise: a CPU tensor without dimensions beside remote operands travels by value
  bool fills_tensor = false;   // what torch::tensor({...}) calls between its first and its last operator
  int host = -1;               // what PyTorch reads on the client: lengths of sequences
  std::vector<bool> writes;    // per argument
  std::vector<bool> outs;      // per argument: overwritten, and takes the result's size
};

const OpContext& op_context(const c10::OperatorHandle& op);

}  // namespace genie::frontend
