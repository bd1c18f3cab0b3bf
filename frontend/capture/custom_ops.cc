#include "frontend/capture/custom_ops.h"

#include <dlfcn.h>
#include <execinfo.h>
#include <fmt/format.h>

#include <array>
#include <memory>
#include <mutex>
#include <unordered_map>

#include "frontend/capture/recorder.h"
#include "frontend/capture/registration.h"
#include "frontend/capture/session_core.h"

namespace genie::frontend {
namespace {

std::atomic<uint32_t> generation{1};

// The shared library that a function or an object of this process lies in; empty when unknown.
std::string_view object_of(const void* address) {
  Dl_info info{};
  return ::dladdr(address, &info) != 0 && info.dli_fname != nullptr ? info.dli_fname : std::string_view();
}

// The stack of who registers an operator. Read later: the dispatcher is locked then, and the loader's lock is taken by others
// before the dispatcher's.
struct Frames {
  std::array<void*, 32> at{};
  int count = 0;
};
Frames frames_here() {
  Frames frames;
  frames.count = ::backtrace(frames.at.data(), static_cast<int>(frames.at.size()));
  return frames;
}

// The first library on the stack above libtorch's dispatcher; empty when that is Python.
std::string registering_library(const Frames& frames) {
  const std::string_view dispatcher = object_of(&c10::Dispatcher::realSingleton());
  bool inside = false;
  for (int i = 0; i < frames.count; ++i) {
    const std::string_view object = object_of(frames.at[static_cast<size_t>(i)]);
    if (inside && object != dispatcher) {
      return object.find("libtorch_python") == std::string_view::npos ? std::string(object) : std::string();
    }
    inside = inside || object == dispatcher;
  }
  return {};
}

// Operators may come and go while the process runs: libraries are loaded, Python defines some.
class Watch final : public c10::OpRegistrationListener {
 public:
  void onOperatorRegistered(const c10::OperatorHandle& op) override {
    if (!watching || op.operator_name().name.starts_with("aten::")) return;
    Frames frames = frames_here();
    const std::lock_guard lock(mutex());
    registered().insert_or_assign(op.operator_name(), frames);
  }
  void onOperatorDeregistered(const c10::OperatorHandle& op) override {
    forget_op(op.operator_name());
    generation.fetch_add(1, std::memory_order_release);
  }

  static std::string library_of(const c10::OperatorName& name) {
    Frames frames;
    {
      const std::lock_guard lock(mutex());
      if (const auto found = registered().find(name); found != registered().end()) frames = found->second;
    }
    return registering_library(frames);
  }

  // Off while the dispatcher tells of the operators that are there already.
  static inline bool watching = false;

 private:
  static std::mutex& mutex() {
    static auto* const instance = new std::mutex;
    return *instance;
  }
  static std::unordered_map<c10::OperatorName, Frames>& registered() {
    static auto* const instance = new std::unordered_map<c10::OperatorName, Frames>;
    return *instance;
  }
};

c10::RegistrationHandleRAII watch() {
  (void)frames_here();  // the first time it loads a library itself
  auto handle = c10::Dispatcher::singleton().addRegistrationListener(std::make_unique<Watch>());
  Watch::watching = true;
  return handle;
}

const c10::RegistrationHandleRAII watcher = watch();

struct Known {
  const c10::FunctionSchema* schema = nullptr;
  OpInfo* op = nullptr;
  uint32_t generation = 0;
};

// Without the table's lock for an operator that the thread has called before.
OpInfo& known_op(const c10::OperatorHandle& handle) {
  using Cache = std::array<Known, 64>;
  static thread_local std::unique_ptr<Cache>
      mine;  // not the cache itself: room for a library's thread storage is scarce
  if (mine == nullptr) mine = std::make_unique<Cache>();
  Cache& cache = *mine;
  const c10::FunctionSchema* schema = &handle.schema();
  Known& known = cache[(reinterpret_cast<uintptr_t>(schema) >> 6) % cache.size()];
  const uint32_t now = op_generation();
  if (known.schema != schema || known.generation != now) known = {schema, &op_info(handle), now};
  return *known.op;
}

// Where no kernel of ours stands: operators of other namespaces, and what of PyTorch's own cannot be captured.
void capture_other(const c10::OperatorHandle& handle, c10::DispatchKeySet, torch::jit::Stack* stack) {
  OpInfo& op = known_op(handle);
  TORCH_CHECK_NOT_IMPLEMENTED(
      op.custom, op.name,
      " does not run on remote_accelerator: it has no kernel there. Move its operands to the CPU for it");
  TORCH_CHECK_NOT_IMPLEMENTED(op.obstacle.empty(), op.name, " does not run on remote_accelerator: ", op.obstacle,
                              ". Move its operands to the CPU for it");
  record_call(op, *stack);
}

}  // namespace

void register_custom_ops() {
  add_fallback(c10::DispatchKey::PrivateUse1, c10::KernelFunction::makeFromBoxedFunction<&capture_other>());
}

uint32_t op_generation() noexcept { return generation.load(std::memory_order_acquire); }

void accept_custom(OpInfo& op, const SessionCore& core) {
  const session::NodeInfo& node = core.node();
  if (!node.shares_process) {
    const auto library = [&](const char* otherwise) {
      const std::string known = Watch::library_of(op.handle.operator_name());
      return known.empty() ? otherwise : known;
    };
    const auto found = node.operators.find(op.name);
    TORCH_CHECK_NOT_IMPLEMENTED(found != node.operators.end(), op.name, " is not on node '", node.name,
                                "': start genie-node there with --load-library ",
                                library("and the library that defines it"), " (it is ", op.handle.debug(),
                                "), or move its operands to the CPU");
    TORCH_CHECK_NOT_IMPLEMENTED(found->second == op.schema_hash, op.name, " has another schema on node '", node.name,
                                "' than in this program, where it is ", op.handle.schema(),
                                ": start genie-node there with --load-library and the same build of ",
                                library("the library that defines it"));
  }
  op.accepted_by.store(&core, std::memory_order_relaxed);
}

}  // namespace genie::frontend
