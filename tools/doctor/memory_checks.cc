// Memory: hugepages, locked memory, limits, shared memory.
#include <fmt/format.h>
#include <sys/statvfs.h>

#include <algorithm>

#include "tools/doctor/doctor.h"

namespace genie::doctor {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;
constexpr uint64_t kGiB = uint64_t{1} << 30;

// The soft limit of "Max locked memory   8388608   8388608   bytes"; UINT64_MAX for unlimited.
std::optional<uint64_t> soft_limit(const Host& host, std::string_view name) {
  for (const std::string& line : host.lines("/proc/self/limits")) {
    if (!line.starts_with(name)) continue;
    const auto columns = words(std::string_view(line).substr(name.size()));
    if (columns.empty()) return std::nullopt;
    return columns[0] == "unlimited" ? std::optional(UINT64_MAX) : leading_number(columns[0]);
  }
  return std::nullopt;
}

std::optional<uint64_t> memory_bytes(const Host& host) {
  const auto text = host.field("/proc/meminfo", "MemTotal");
  const auto kib = text ? leading_number(*text) : std::nullopt;
  return kib ? std::optional(*kib * 1024) : std::nullopt;
}

Line transparent_hugepages(const Host& host) {
  const std::string chosen = host.text("/sys/kernel/mm/transparent_hugepage/enabled").value_or("[none]");
  constexpr const char* kCheck = "hugepages.transparent";
  if (chosen.find("[never]") != std::string::npos) {
    return {kCheck, Level::kWarn, "transparent huge pages are off: fresh memory is made page by page",
            "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled"};
  }
  if (chosen == "[none]") {
    return {kCheck, Level::kWarn, "this kernel has no transparent huge pages: fresh memory is made page by page",
            "use a kernel with CONFIG_TRANSPARENT_HUGEPAGE"};
  }
  return {kCheck, Level::kOk, "transparent huge pages: " + chosen, ""};
}

// "tmpfs /dev/shm tmpfs rw,size=65536k 0 0": its size, or half of the memory where none is said.
std::optional<uint64_t> shm_bytes(const Host& host) {
  for (const std::string& line : host.lines("/proc/mounts")) {
    const auto columns = words(line);
    if (columns.size() < 4 || columns[1] != "/dev/shm") continue;
    const size_t at = columns[3].find("size=");
    if (at == std::string_view::npos) return memory_bytes(host).value_or(0) / 2;
    const std::string_view text = columns[3].substr(at + 5);
    const uint64_t number = leading_number(text).value_or(0);
    const std::string_view rest = text.substr(std::min(text.find_first_not_of("0123456789"), text.size()));
    const char unit = rest.empty() ? ',' : rest[0];
    return number * (unit == 'k' ? 1024 : unit == 'm' ? kMiB : unit == 'g' ? kGiB : 1);
  }
  return std::nullopt;
}

}  // namespace

Lines check_hugepages(const Host& host) {
  const std::string folder = "/sys/kernel/mm/hugepages/hugepages-2048kB/";
  const auto total = host.number(folder + "nr_hugepages");
  const auto free = host.number(folder + "free_hugepages");
  Line line{"hugepages", Level::kOk, "", ""};
  if (!total || !free) {
    line.level = Level::kWarn;
    line.text = "this kernel has no 2 MiB hugepages: memory arenas use ordinary pages";
    line.cure = "use a kernel with CONFIG_HUGETLBFS";
  } else if (*free == 0) {
    line.level = Level::kWarn;
    line.text = *total == 0
                    ? "no 2 MiB hugepages are set aside: memory arenas use ordinary pages"
                    : fmt::format("all {} hugepages of 2 MiB are taken: further arenas use ordinary pages", *total);
    line.cure = fmt::format("sysctl vm.nr_hugepages={} ({} more), and in /etc/sysctl.d to keep it", *total + 1024,
                            bytes_text(2 * kGiB));
  } else {
    line.text = fmt::format("{} of {} hugepages of 2 MiB are free ({})", *free, *total, bytes_text(*free * 2 * kMiB));
  }
  return {line, transparent_hugepages(host)};
}

Lines check_memlock(const Host& host, const Purpose& purpose) {
  Line line{"memlock", Level::kOk, "", ""};
  const auto limit = soft_limit(host, "Max locked memory");
  if (!limit) {
    line.text = "no limit of locked memory can be read";
    return {line};
  }
  if (*limit == UINT64_MAX || has_capability(host, kCapIpcLock)) {
    line.text = *limit == UINT64_MAX ? "any amount of memory may be locked"
                                     : fmt::format("{} by limit, but this process may lock any amount (CAP_IPC_LOCK)",
                                                   bytes_text(*limit));
    return {line};
  }
  line.text = fmt::format("only {} of memory may be locked; RDMA locks what it registers", bytes_text(*limit));
  line.cure =
      "ulimit -l unlimited; to keep it: '* - memlock unlimited' in /etc/security/limits.d, LimitMEMLOCK=infinity in a "
      "systemd unit, --ulimit memlock=-1 for a container";
  const bool rdma = purpose.wants("verbs") || !host.names("/sys/class/infiniband").empty();
  line.level = rdma && *limit < 64 * kMiB ? Level::kFail : Level::kWarn;
  return {line};
}

Lines check_memory(const Host& host) {
  Line line{"memory", Level::kOk, "", ""};
  const auto total = memory_bytes(host);
  const auto limit = host.number("/sys/fs/cgroup/memory.max");
  const uint64_t have = std::min(total.value_or(UINT64_MAX), limit.value_or(UINT64_MAX));
  if (have == UINT64_MAX) {
    line.text = "the amount of memory cannot be read";
    return {line};
  }
  const bool limited = limit && *limit < total.value_or(UINT64_MAX);
  line.text = bytes_text(have) + (limited ? ", by a limit of the control group" : "");
  if (have < 2 * kGiB) {
    line.level = Level::kWarn;
    line.text += ": libtorch alone takes half a GiB";
    line.cure = limited ? "give the container more (--memory, or memory.max)" : "use a machine with more memory";
  }
  return {line};
}

Lines check_shm(const Host& host) {
  Line line{"shm", Level::kOk, "", ""};
  const auto size = shm_bytes(host);
  const char* cure = "mount -o remount,size=8g /dev/shm; --shm-size=8g for a container";
  if (!size) {
    return {{"shm", Level::kWarn, "/dev/shm is not mounted: UCX within one machine needs it", "mount a tmpfs there"}};
  }
  line.text = "/dev/shm holds " + bytes_text(*size);
  if (*size < kGiB) {
    line.level = Level::kWarn;
    line.text += ": UCX and PyTorch's data loaders within one machine need more";
    line.cure = cure;
  }
  struct statvfs now {};
  if (host.live() && ::statvfs("/dev/shm", &now) == 0) {
    const uint64_t free = uint64_t{now.f_bavail} * now.f_frsize;
    line.text += fmt::format(", {} of it free", bytes_text(free));
    if (line.level == Level::kOk && free < kGiB / 4) {
      line.level = Level::kWarn;
      line.cure = std::string("remove what dead programs left in /dev/shm, or ") + cure;
    }
  }
  return {line};
}

Lines check_fds(const Host& host) {
  Line line{"fds", Level::kOk, "", ""};
  const auto limit = soft_limit(host, "Max open files");
  if (!limit) {
    line.text = "no limit of open files can be read";
    return {line};
  }
  line.text = *limit == UINT64_MAX ? "any number of files may be open" : fmt::format("{} files may be open", *limit);
  if (*limit < 4096) {
    line.level = *limit < 256 ? Level::kFail : Level::kWarn;
    line.text += ": every region of shared memory and every session takes some";
    line.cure = "ulimit -n 65536; LimitNOFILE=65536 in a systemd unit, --ulimit nofile=65536 for a container";
  }
  return {line};
}

}  // namespace genie::doctor
