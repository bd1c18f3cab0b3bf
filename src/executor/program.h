// Program: a template after verification, resolved against this process's operators. Internal to the executor.
//
// Thread-safety: immutable once made.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "src/executor/executor.h"
#include "src/executor/guards.h"
#include "src/protocol/program_format.h"

namespace genie::executor {

// One argument or output, decoded. Lists keep their elements as a run of nodes elsewhere in Program::nodes.
struct Node {
  wire::Tag tag = wire::Tag::kNone;
  uint8_t dtype = 0;
  uint8_t rank = 0;
  bool contiguous = false;
  bool conj = false;
  bool neg = false;
  bool zero_offset = false;
  bool wrapped = false;
  bool may_be_laid_anew = false;  // kAlias: of an out= argument
  uint32_t slot = 0;              // kTensor, kFresh, kReported
  uint32_t param = 0;             // first parameter
  uint32_t count = 0;             // list length, alias's argument, constant, string index, bool
  uint32_t first_child = 0;       // kList, kListOut: in Program::nodes; kBoolList: in Program::bool_words
};

struct Record {
  const c10::OperatorHandle* op = nullptr;
  Guard guard = nullptr;
  uint32_t op_index = 0;
  uint32_t first_argument = 0;
  uint32_t argument_count = 0;
  uint32_t first_output = 0;
  uint32_t output_count = 0;
  uint32_t first_dead = 0;  // transient slots that nobody touches later, in Program::dead_slots
  uint32_t dead_count = 0;
};

// Which record's fresh output, of known geometry, a slot is.
struct Origin {
  static constexpr uint32_t kNone = UINT32_MAX;
  uint32_t record = kNone;
  uint32_t node = 0;  // in Program::nodes
};

class Program {
 public:
  std::vector<c10::OperatorHandle> ops;
  std::vector<Guard> guards;  // one per operator, null where its kernel checks for itself
  std::vector<std::string> op_names;
  std::vector<Record> records;
  std::vector<Node> nodes;
  std::vector<uint32_t> bool_words;
  std::vector<uint32_t> dead_slots;
  std::vector<std::string> strings;
  std::vector<wire::SlotKind> slot_kinds;
  std::vector<bool> slot_written;  // by an in-place, out= or fresh output
  std::vector<Origin> slot_origin;
  std::vector<uint32_t> bound_slots;  // slots that an invocation binds, in order
  std::vector<int64_t> default_params;
  uint64_t fingerprint = 0;
  bool check_shapes = false;
  // Operators of libraries, which may go from a process: their place in `ops`, their schemas, and what departures() said when
  // they were last seen to be there.
  struct CustomOp {
    uint32_t op = 0;
    c10::OperatorName name;
    uint64_t schema_hash = 0;
  };
  std::vector<CustomOp> custom_ops;
  mutable std::atomic<uint32_t> departures_seen{0};
};

// kNotFound when one of its operators has gone since it was compiled.
Status check_still_there(const Program& program);

// Whether the operator changes that argument in place.
bool writes_argument(const Program& program, const Record& record, uint32_t argument);

}  // namespace genie::executor
