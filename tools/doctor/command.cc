#include "tools/doctor/command.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "src/node/node_config.h"
#include "tools/doctor/doctor.h"

namespace genie::doctor {
namespace {

using Json = nlohmann::ordered_json;

std::array<size_t, 3> counts(const Lines& lines) {
  std::array<size_t, 3> counts{};
  for (const Line& line : lines) ++counts[static_cast<size_t>(line.level)];
  return counts;
}

void print_json(const Lines& lines) {
  const auto [ok, warn, fail] = counts(lines);
  Json all = Json::array();
  for (const Line& line : lines) {
    all.push_back({{"check", line.check}, {"level", level_name(line.level)}, {"text", line.text}, {"cure", line.cure}});
  }
  const Json report = {
      {"level", level_name(worst(lines))}, {"ok", ok}, {"warn", warn}, {"fail", fail}, {"lines", std::move(all)}};
  // What the kernel says need not be UTF-8.
  std::printf("%s\n", report.dump(2, ' ', false, Json::error_handler_t::replace).c_str());
}

void print_text(const Lines& lines) {
  size_t widest = 0;
  for (const Line& line : lines) widest = std::max(widest, line.check.size());
  for (const Line& line : lines) {
    std::printf("%-5s %-*s  %s\n", level_name(line.level), static_cast<int>(widest), line.check.c_str(),
                line.text.c_str());
    if (!line.cure.empty()) std::printf("%-*s  -> %s\n", static_cast<int>(widest + 6), "", line.cure.c_str());
  }
  const auto [ok, warn, fail] = counts(lines);
  std::printf("%s: %zu ok, %zu warn, %zu fail\n", level_name(worst(lines)), ok, warn, fail);
}

Status read_purpose(const CommandOptions& options, Purpose& purpose) {
  node::NodeConfig config;
  // Looked at later, so that one that is not compiled in becomes a line.
  if (!options.config.empty()) GENIE_TRY(node::read_config_file(options.config, config));
  if (!options.listen.empty()) config.listen.clear();
  for (const std::string& uri : options.listen) GENIE_TRY(node::set_config("listen", uri, "--listen: ", config));
  purpose.listen = config.listen;
  purpose.transport = options.transport.empty() ? config.transport : options.transport;
  purpose.busy_polling = config.polling == "busy";
  purpose.threads = static_cast<uint32_t>(config.threads);
  purpose.torch_version = options.torch_version;
  return {};
}

}  // namespace

int run_doctor(const CommandOptions& options) {
  Purpose purpose;
  if (const Status status = read_purpose(options, purpose); !status.ok()) {
    std::fprintf(stderr, "genie doctor: %s\n", status.to_string().c_str());
    return kExitUsage;
  }
  const Lines lines = examine(Host(options.root), purpose);
  options.json ? print_json(lines) : print_text(lines);
  switch (worst(lines)) {
    case Level::kOk: return kExitOk;
    case Level::kWarn: return kExitWarn;
    case Level::kFail: break;
  }
  return kExitFail;
}

}  // namespace genie::doctor
