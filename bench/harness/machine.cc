#include "bench/harness/machine.h"

#include <sys/utsname.h>
#include <unistd.h>

#include <fstream>
#include <thread>

#include "bench/harness/build_info.h"

namespace genie::bench {
namespace {

std::string cpu_model() {
  std::ifstream file("/proc/cpuinfo");
  std::string line;
  while (std::getline(file, line)) {
    if (!line.starts_with("model name")) continue;
    const size_t colon = line.find(": ");
    if (colon != std::string::npos) return line.substr(colon + 2);
  }
  return "unknown";
}

}  // namespace

std::string build_commit() { return GENIE_BENCH_COMMIT; }

nlohmann::ordered_json build_description() {
  return {
    {"type", GENIE_BENCH_BUILDTYPE}, {"compiler", __VERSION__}, {"flags", GENIE_BENCH_FLAGS},
#if defined(__OPTIMIZE__)
        {"optimized", true}
#else
    {
      "optimized", false
    }
#endif
  };
}

nlohmann::ordered_json machine_description() {
  utsname system{};
  const bool named = uname(&system) == 0;
  const double memory_bytes = static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGESIZE));
  return {{"cpu", cpu_model()},
          {"cores", std::thread::hardware_concurrency()},
          {"memory_gib", static_cast<int64_t>(memory_bytes / (1 << 30) + 0.5)},
          {"kernel", named ? system.release : "unknown"}};
}

}  // namespace genie::bench
