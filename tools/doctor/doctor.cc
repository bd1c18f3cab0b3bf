#include "tools/doctor/doctor.h"

#include <algorithm>
#include <charconv>
#include <iterator>

#include "datapath/backends.h"

namespace genie::doctor {

const char* level_name(Level level) noexcept {
  switch (level) {
    case Level::kOk: return "ok";
    case Level::kWarn: return "warn";
    case Level::kFail: break;
  }
  return "fail";
}

Level worst(const Lines& lines) noexcept {
  Level worst = Level::kOk;
  for (const Line& line : lines) worst = std::max(worst, line.level);
  return worst;
}

bool has_capability(const Host& host, unsigned capability) {
  const std::string text = host.field("/proc/self/status", "CapEff").value_or("0");
  uint64_t set = 0;
  std::from_chars(text.data(), text.data() + text.size(), set, 16);
  return (set >> capability & 1U) != 0;
}

Lines check_transport(const Purpose& purpose) {
  const Result<std::vector<std::string>> named = datapath::parse_backends(purpose.transport);
  if (!named) {
    return {{"transport", Level::kFail, std::string(named.status().text()),
             "choose a transport that this build has, or install the library's development package and build again"}};
  }
  return {{"transport", Level::kOk, "'" + purpose.transport + "' is compiled in", ""}};
}

Lines examine(const Host& host, const Purpose& purpose) {
  Lines all;
  const auto take = [&all](Lines lines) {
    all.insert(all.end(), std::make_move_iterator(lines.begin()), std::make_move_iterator(lines.end()));
  };
  take(check_transport(purpose));
  take(check_hugepages(host));
  take(check_memlock(host, purpose));
  take(check_memory(host));
  take(check_shm(host));
  take(check_fds(host));
  take(check_cores(host, purpose));
  take(check_ports(host, purpose));
  take(check_rdma(host, purpose));
  take(check_gpu(host));
  take(check_versions(host, purpose));
  return all;
}

}  // namespace genie::doctor
