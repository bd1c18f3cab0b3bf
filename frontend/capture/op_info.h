// OpInfo: what capture has to know of an operator, worked out once, when it is first used.
//
// Thread-safety: immutable once made, except the counters, which are relaxed atomics.
// Ownership: the table lives until the process ends.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

#include <atomic>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "frontend/capture/timing.h"

namespace genie::frontend {

enum class ArgKind : uint8_t {
  kTensor,
  kTensorList,
  kOptionalTensorList,
  kInt,
  kIntConst,  // dtype, layout, memory format
  kDouble,
  kBool,
  kString,
  kNumber,
  kIntList,
  kDoubleList,
  kBoolList,
  kNumberList,
  kDevice,
  kGenerator,
  kUnsupported,
};

struct ArgInfo {
  ArgKind kind = ArgKind::kUnsupported;
  bool is_write = false;
};

enum class ReturnKind : uint8_t { kTensor, kTensorList, kOther };

struct ReturnInfo {
  ReturnKind kind = ReturnKind::kTensor;
  int alias_of = -1;  // argument that is returned (in-place, out=)
};

class SessionCore;
struct UserShapes;
struct ShapeRequest;
// Own shape functions: fill the request's outputs, or answer false to say "ask libtorch".
using OwnShapes = bool (*)(ShapeRequest& request);

struct OpInfo {
  explicit OpInfo(c10::OperatorHandle handle) : handle(handle), op_name(handle.operator_name()) {}

  c10::OperatorHandle handle;
  uint32_t index = 0;  // in the table
  c10::OperatorName op_name;
  std::string name;  // "aten::add.Tensor"
  std::vector<ArgInfo> args;
  std::vector<ReturnInfo> returns;
  bool supported = true;        // all argument kinds can travel
  bool side_effect = false;     // random operators, asserts: never dead
  bool data_dependent = false;  // the result's shape depends on values: never cached
  bool indexes = false;         // of these, only where an index is a mask
  bool writes_only = true;      // every tensor result is one of its arguments
  bool values_shape = false;    // floating-point arguments decide the shape (arange)
  bool lifts_cpu_operands = false;
  bool mixes_devices = false;         // copy_ between two devices of a session
  bool hidden_running_stats = false;  // native_batch_norm writes arguments 3 and 4 in training
  bool resizes_out = false;           // an out= variant
  bool has_meta = false;
  bool meta_is_stand_in = false;  // a composition, while the CPU has a kernel of its own
  bool keeps_format = false;      // the CPU's kernel keeps its input's memory format, the meta kernel does not
  bool bookkeeping = false;       // ours, not the program's: genie::alloc
  OwnShapes shape = nullptr;
  std::atomic<const UserShapes*> user_shapes{nullptr};  // what the program registered
  std::atomic<uint32_t> shape_epoch{0};                 // answers of an earlier one do not count any more
  // Of operators that libraries define:
  bool custom = false;
  std::string obstacle;      // why it cannot be captured at all
  uint64_t schema_hash = 0;  // the library, and the handle with it, may go while a record waits
  std::atomic<const SessionCore*> accepted_by{nullptr};  // whose node is known to have it
  std::atomic<uint64_t> captured{0};                     // in segments that were flushed
  std::atomic<uint64_t> executed{0};
  OpTimes times;
};

// The entry of an operator; made on first use.
OpInfo& op_info(const c10::OperatorHandle& handle);
// By name, "aten::copy_" / "": throws if there is none.
OpInfo& op_info(const char* name, const char* overload);
// The operator is gone from the process: one that comes with its name is another one. Its entry stays, for those who hold it.
void forget_op(const c10::OperatorName& name);
// All operators seen so far.
std::vector<const OpInfo*> all_op_infos();

}  // namespace genie::frontend
