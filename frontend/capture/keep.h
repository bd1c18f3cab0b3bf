// Values that are replaced while other threads may be using them.
//
// Thread-safety: any thread. Ownership: kept until the process ends; for what a program replaces a few times.
#pragma once

#include <memory>
#include <mutex>
#include <utility>
#include <vector>

namespace genie::frontend {

template <typename T>
const T* keep_for_good(T value) {
  static std::mutex mutex;
  static auto* const kept = new std::vector<std::unique_ptr<const T>>;  // leak checkers find them there
  const std::lock_guard<std::mutex> guard(mutex);
  return kept->emplace_back(std::make_unique<const T>(std::move(value))).get();
}

}  // namespace genie::frontend
