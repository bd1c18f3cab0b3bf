// Operators that come from libraries which a node was started with.
#include "src/executor/libraries.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <dlfcn.h>
#include <fmt/format.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <memory>
#include <mutex>
#include <unordered_set>

#include "datapath/base/log.h"
#include "src/executor/executor.h"
#include "src/executor/schema_hash.h"

namespace genie::executor {
namespace {

using Names = std::unordered_set<c10::OperatorName>;

struct Loaded {
  std::mutex mutex;
  Names names;
};

Loaded& loaded() {
  static auto* const instance = new Loaded;  // leaked: a library's destructors may come late
  return *instance;
}

std::atomic<uint32_t> departed{0};

class Watch final : public c10::OpRegistrationListener {
 public:
  void onOperatorRegistered(const c10::OperatorHandle&) override {}
  void onOperatorDeregistered(const c10::OperatorHandle&) override { departed.fetch_add(1, std::memory_order_release); }
};
const c10::RegistrationHandleRAII watcher =
    c10::Dispatcher::singleton().addRegistrationListener(std::make_unique<Watch>());

Names all_names() {
  Names names;
  // PyTorch's own are compared as a whole when a client connects.
  for (const auto& name : c10::Dispatcher::singleton().getAllOpNames()) {
    if (!name.name.starts_with("aten::")) names.insert(name);
  }
  return names;
}

const char* loading = nullptr;

// What a library's initializers throw cannot be caught: the loader's frames are in between. At least it is told.
[[noreturn]] void end_loading() {
  std::string why = "its initializers threw something that is not an exception";
  try {
    if (const auto thrown = std::current_exception()) std::rethrow_exception(thrown);
  } catch (const c10::Error& error) {
    why = error.what_without_backtrace();
  } catch (const std::exception& error) {
    why = error.what();
  } catch (...) {
  }
  std::fprintf(stderr, "%s: cannot be loaded: %s\n", loading, why.c_str());
  std::_Exit(2);
}

}  // namespace

Status load_operator_library(const std::string& path) {
  Loaded& all = loaded();
  const std::lock_guard lock(all.mutex);
  const Names before = all_names();
  loading = path.c_str();
  const std::terminate_handler usual = std::set_terminate(&end_loading);
  // For good: the dispatcher keeps pointers to its kernels.
  void* const library = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  std::set_terminate(usual);
  if (library == nullptr) {
    const char* why = ::dlerror();
    return {Errc::kConfig,
            fmt::format("{}: cannot be loaded: {}; give the path of a shared library that was built against "
                        "libtorch {}",
                        path, why == nullptr ? "no reason given" : why, operator_set().torch_version)};
  }
  size_t added = 0;
  for (const c10::OperatorName& name : all_names()) {
    if (!before.contains(name)) added += all.names.insert(name).second ? 1 : 0;
  }
  if (added == 0) {
    GENIE_LOG_WARN("{}: loaded, but it defines no operators of its own", path);
  } else {
    GENIE_LOG_INFO("{}: loaded, {} operators", path, added);
  }
  return {};
}

uint32_t departures() noexcept { return departed.load(std::memory_order_acquire); }

bool is_library_operator(const c10::OperatorName& name) {
  Loaded& all = loaded();
  const std::lock_guard lock(all.mutex);
  return all.names.contains(name);
}

std::vector<LibraryOperator> library_operators() {
  Loaded& all = loaded();
  const std::lock_guard lock(all.mutex);
  std::vector<LibraryOperator> out;
  for (const c10::OperatorName& name : all.names) {
    const auto op = c10::Dispatcher::singleton().findSchema(name);
    if (op.has_value()) out.push_back({name.name, name.overload_name, schema_hash(op->schema())});
  }
  return out;
}

}  // namespace genie::executor
