#include "frontend/capture/source.h"

#include <fmt/format.h>
#include <torch/csrc/jit/runtime/interpreter.h>

#include <atomic>
#include <map>
#include <mutex>

#include "frontend/capture/env.h"
#include "frontend/capture/keep.h"

namespace genie {
namespace {

std::atomic<const SourceFinder*> finder{nullptr};

// The innermost line of a running TorchScript function, and the path of its module.
SourceLine line_of_script() {
  SourceLine out;
  for (const auto& entry : torch::jit::currentCallstack()) {
    const auto place = entry.range.file_line_col();
    if (!place.has_value()) continue;
    out.line = fmt::format("{}:{}", std::get<0>(*place), std::get<1>(*place));
    break;
  }
  for (const std::string& module : torch::jit::currentModuleHierarchy())
    out.module += (out.module.empty() ? "" : ".") + module;
  return out;
}

}  // namespace

void set_trace_lines(bool trace) { frontend::tracing.store(trace, std::memory_order_relaxed); }
bool is_tracing_lines() { return frontend::tracing.load(std::memory_order_relaxed); }

void set_source_finder(SourceFinder wanted) {
  finder.store(wanted ? frontend::keep_for_good(std::move(wanted)) : nullptr, std::memory_order_release);
}

namespace frontend {

std::atomic<bool> tracing{env_switch("GENIE_TRACE_LINES", false)};

const SourceLine* find_source() {
  SourceLine found = line_of_script();
  if (const SourceFinder* ask = finder.load(std::memory_order_acquire); ask != nullptr) {
    const SourceLine told = (*ask)();
    if (found.line.empty()) found.line = told.line;
    if (found.module.empty()) found.module = told.module;
  }
  if (found.line.empty() && found.module.empty()) return nullptr;
  static std::mutex mutex;
  static auto* const known = new std::map<std::pair<std::string, std::string>, SourceLine>;
  const std::lock_guard lock(mutex);
  return &known->try_emplace({found.line, found.module}, found).first->second;
}

std::string to_text(const SourceLine& source) {
  return fmt::format(" (captured{}{}{}{})", source.line.empty() ? "" : " at ", source.line,
                     source.module.empty() ? "" : " in ", source.module);
}

}  // namespace frontend
}  // namespace genie
