#include "frontend/capture/registry.h"

#include <fmt/format.h>

#include <array>
#include <atomic>
#include <cstdlib>
#include <mutex>
#include <vector>

#include "datapath/base/log.h"
#include "frontend/capture/session_core.h"

namespace genie::frontend {
namespace {

struct Registry {
  std::array<std::atomic<SessionCore*>, kMaxDevices> by_index{};
  std::mutex mutex;
  std::vector<std::shared_ptr<SessionCore>> cores;
};

Registry& registry() {
  static auto* const instance = new Registry;  // leaked: storages outlive static destruction
  return *instance;
}

thread_local int tls_device = 0;

// Indices that no open session serves, in a row; -1 when there are none. Those of closed sessions are used again, and of those
// whose node has gone: a program that connects again goes on with the indices that it had.
int free_range(const Registry& all, int count) {
  for (int first = 0; first + count <= kMaxDevices; ++first) {
    int free = 0;
    while (free < count) {
      const SessionCore* core = all.by_index[static_cast<size_t>(first + free)].load(std::memory_order_acquire);
      if (core != nullptr && !core->closed() && !core->lost()) break;
      ++free;
    }
    if (free == count) return first;
  }
  return -1;
}

Result<std::shared_ptr<SessionCore>> connect_locked(Registry& all, std::string_view uri,
                                                    const session::LinkOptions& options) {
  auto made = SessionCore::connect(uri, options);
  if (!made.ok()) return made;
  const int count = 1 + static_cast<int>((*made)->node().devices.size());
  const int first = free_range(all, count);
  if (first < 0) {
    return Status(
        Errc::kQuotaExceeded,
        fmt::format(
            "'{}' needs {} device indices in a row and the {} of this process are taken: close sessions that you "
            "no longer need",
            uri, count, kMaxDevices));
  }
  (*made)->set_devices(first, count);
  all.cores.push_back(*made);
  for (int i = first; i < first + count; ++i) {
    SessionCore* before = all.by_index[static_cast<size_t>(i)].exchange(made->get(), std::memory_order_acq_rel);
    if (before != nullptr) before->close();
  }
  return made;
}

}  // namespace

SessionCore* find_core(int device_index) noexcept {
  if (device_index < 0 || device_index >= kMaxDevices) return nullptr;
  return registry().by_index[static_cast<size_t>(device_index)].load(std::memory_order_acquire);
}

SessionCore& core_of(int device_index) {
  if (SessionCore* core = find_core(device_index)) return *core;
  Registry& all = registry();
  const std::lock_guard<std::mutex> guard(all.mutex);
  if (SessionCore* core = find_core(device_index)) return *core;
  if (all.cores.empty()) {
    const char* cluster = std::getenv("GENIE_CLUSTER");
    const std::string uri = cluster == nullptr || *cluster == '\0' ? "embedded:" : cluster;
    GENIE_LOG_WARN("no session was opened: connecting to {} ({})", uri,
                   cluster == nullptr ? "GENIE_CLUSTER is not set" : "from GENIE_CLUSTER");
    if (auto made = connect_locked(all, uri, {}); !made.ok()) throw Error(made.status());
    if (SessionCore* core = find_core(device_index)) return *core;
  }
  throw Error(Status(
      Errc::kNotFound,
      fmt::format(
          "no session serves remote_accelerator:{}: open one with genie::Session::connect(), genie.connect() in Python",
          device_index)));
}

Result<std::shared_ptr<SessionCore>> connect_session(std::string_view uri, const session::LinkOptions& options) {
  Registry& all = registry();
  const std::lock_guard<std::mutex> guard(all.mutex);
  return connect_locked(all, uri, options);
}

std::vector<std::shared_ptr<SessionCore>> open_sessions() {
  Registry& all = registry();
  const std::lock_guard<std::mutex> guard(all.mutex);
  std::vector<std::shared_ptr<SessionCore>> out;
  for (const auto& core : all.cores) {
    if (!core->closed()) out.push_back(core);
  }
  return out;
}

int current_device() noexcept { return tls_device; }
void set_current_device(int index) noexcept { tls_device = index; }

}  // namespace genie::frontend
