#include "tools/cluster_status.h"

#include <fmt/format.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>

#include "datapath/base/clock.h"
#include "src/control/control.h"
#include "src/control/token.h"
#include "tools/exit_codes.h"

namespace genie::tools {
namespace {

using Json = nlohmann::ordered_json;

constexpr uint64_t kPatienceMs = 10'000;

struct NodeState {
  control::NodeReport report;
  std::string_view health;  // "serving", "draining", "not serving"
};

Result<NodeState> ask(const std::string& uri, std::string token) {
  Result<std::unique_ptr<control::ControlClient>> client = control::ControlClient::make(uri, std::move(token));
  GENIE_TRY(client.status());
  const Deadline deadline = Deadline::after_ms(kPatienceMs);
  Result<control::NodeReport> report = (*client)->report(deadline);
  GENIE_TRY(report.status());
  const Result<bool> healthy = (*client)->healthy(deadline);
  GENIE_TRY(healthy.status());
  const std::string_view health = report->draining ? "draining" : *healthy ? "serving" : "not serving";
  return NodeState{std::move(*report), health};
}

std::string bytes_text(uint64_t bytes) {
  constexpr std::array<const char*, 5> kUnits{"bytes", "KiB", "MiB", "GiB", "TiB"};
  auto value = static_cast<double>(bytes);
  size_t unit = 0;
  for (; value >= 1024 && unit + 1 < kUnits.size(); ++unit) value /= 1024;
  return unit == 0 ? fmt::format("{} bytes", bytes) : fmt::format("{:.1f} {}", value, kUnits[unit]);
}

void print_json(const std::string& uri, const NodeState& node) {
  const control::NodeReport& report = node.report;
  Json devices = Json::array();
  for (const control::DeviceEntry& device : report.devices) {
    devices.push_back({{"kind", device.kind}, {"threads", device.threads}, {"memory_bytes", device.memory_bytes}});
  }
  const Json row = {{"name", report.node_name},
                    {"address", uri},
                    {"health", node.health},
                    {"genie_version", report.genie_version},
                    {"torch_version", report.torch_version},
                    {"transport", report.transport},
                    {"devices", std::move(devices)},
                    {"sessions", report.sessions},
                    {"sessions_opened", report.sessions_opened},
                    {"in_flight", report.in_flight},
                    {"templates", report.templates},
                    {"storages", report.storages},
                    {"storage_bytes", report.storage_bytes},
                    {"regions", report.regions},
                    {"region_bytes", report.region_bytes},
                    {"blobs", report.blobs},
                    {"blob_bytes", report.blob_bytes},
                    {"blob_known_bytes", report.blob_known_bytes},
                    {"operators_executed", report.records_executed}};
  const Json all = {{"cluster", uri}, {"nodes", Json::array({row})}};
  // What a node says need not be UTF-8.
  std::printf("%s\n", all.dump(2, ' ', false, Json::error_handler_t::replace).c_str());
}

void print_text(const std::string& uri, const NodeState& node) {
  const control::NodeReport& report = node.report;
  std::string out = fmt::format("node       {} at {}: {}\n", report.node_name, uri, node.health);
  out += fmt::format("versions   Genie {}, libtorch {}\n", report.genie_version, report.torch_version);
  out += fmt::format("transport  {}\n", report.transport);
  for (const control::DeviceEntry& device : report.devices) {
    out += fmt::format("device     {}: {} threads, {}\n", device.kind, device.threads, bytes_text(device.memory_bytes));
  }
  out += fmt::format("sessions   {} open, {} since the start\n", report.sessions, report.sessions_opened);
  out += fmt::format("work       {} submissions in flight, {} templates, {} operators executed\n", report.in_flight,
                     report.templates, report.records_executed);
  out +=
      fmt::format("memory     {} in {} storages, {} in {} regions that no storage has yet\n",
                  bytes_text(report.storage_bytes), report.storages, bytes_text(report.region_bytes), report.regions);
  out += fmt::format("content    {} in {} blobs that sessions share, {} not sent again\n",
                     bytes_text(report.blob_bytes), report.blobs, bytes_text(report.blob_known_bytes));
  std::fputs(out.c_str(), stdout);
}

Result<std::string> choose_cluster(const std::string& given) {
  const char* const cluster = std::getenv("GENIE_CLUSTER");
  std::string uri = !given.empty() || cluster == nullptr ? given : cluster;
  if (uri.empty()) {
    return Status(Errc::kInvalidArgument, "whose? Give --cluster unix:/path.sock or tcp://host:port");
  }
  if (uri == "embedded:") {
    return Status(Errc::kInvalidArgument,
                  "'embedded:' is a node inside of a program, which only that program can ask: use its stats()");
  }
  return uri;
}

Status show(const StatusOptions& options) {
  const Result<std::string> uri = choose_cluster(options.cluster);
  GENIE_TRY(uri.status());
  Result<std::string> token =
      options.token_file.empty() ? control::token_or_environment({}) : control::read_token_file(options.token_file);
  GENIE_TRY(token.status());
  const Result<NodeState> node = ask(*uri, std::move(*token));
  GENIE_TRY(node.status());
  options.json ? print_json(*uri, *node) : print_text(*uri, *node);
  return {};
}

}  // namespace

int show_status(const StatusOptions& options) {
  const Status status = show(options);
  if (status.ok()) return kExitOk;
  std::fprintf(stderr, "genie status: %s\n", status.to_string().c_str());
  const bool misspelt = status.code() == Errc::kInvalidArgument || status.code() == Errc::kConfig;
  return misspelt ? kExitUsage : kExitUnreachable;
}

}  // namespace genie::tools
