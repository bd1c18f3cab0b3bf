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
  int next_index = 0;
};

Registry& registry() {
  static auto* const instance = new Registry;  // leaked: storages outlive static destruction
  return *instance;
}

thread_local int tls_device = 0;

Result<std::shared_ptr<SessionCore>> connect_locked(Registry& all, std::string_view uri, const session::LinkOptions& options) {
  auto made = SessionCore::connect(uri, options);
  if (!made.ok()) return made;
  const int count = 1 + static_cast<int>((*made)->node().devices.size());
  if (all.next_index + count > kMaxDevices) {
    return Status(Errc::kQuotaExceeded,
                  fmt::format("this process has {} device indices, {} are taken and '{}' needs {}: close what you no longer need "
                              "in another process, or use fewer sessions",
                              kMaxDevices, all.next_index, uri, count));
  }
  (*made)->set_devices(all.next_index, count);
  all.cores.push_back(*made);
  for (int i = 0; i < count; ++i) {
    all.by_index[static_cast<size_t>(all.next_index + i)].store(made->get(), std::memory_order_release);
  }
  all.next_index += count;
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
  if (all.next_index == 0) {
    const char* cluster = std::getenv("GENIE_CLUSTER");
    const std::string uri = cluster == nullptr || *cluster == '\0' ? "embedded:" : cluster;
    GENIE_LOG_WARN("no session was opened: connecting to {} ({})", uri,
                   cluster == nullptr ? "GENIE_CLUSTER is not set" : "from GENIE_CLUSTER");
    if (auto made = connect_locked(all, uri, {}); !made.ok()) throw Error(made.status());
    if (SessionCore* core = find_core(device_index)) return *core;
  }
  throw Error(Status(Errc::kNotFound, fmt::format("no session serves remote_accelerator:{} ({} indices are in use): open one with "
                                                  "genie::Session::connect()",
                                                  device_index, all.next_index)));
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
