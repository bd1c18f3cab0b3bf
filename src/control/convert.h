// Between our Status and structs and gRPC's. Internal to src/control.
#pragma once

#include <grpcpp/grpcpp.h>

#include <string>
#include <string_view>

#include "src/control/control.h"

namespace genie::control {

// Trailing metadata that carries our own code: gRPC's codes are fewer.
inline constexpr const char* kErrcKey = "genie-errc";
inline constexpr const char* kTokenKey = "authorization";

grpc::Status to_grpc(const Status& status, grpc::ServerContext& context);
// `what` names the call and the node, for errors that do not come from the node itself.
Status from_grpc(const grpc::Status& status, const grpc::ClientContext& context, std::string_view what);

// Keeps gRPC alive until the process ends. Its shutdown with the last object may block for its backup poller's 10 s.
void keep_grpc();

// "unix:/path" and "tcp://host:port" as gRPC writes them.
Result<std::string> grpc_address(std::string_view uri);

template <typename Proto>
void fill_devices(const std::vector<DeviceEntry>& devices, Proto& message) {
  for (const DeviceEntry& device : devices) {
    auto* const entry = message.add_devices();
    entry->set_kind(device.kind);
    entry->set_threads(device.threads);
    entry->set_memory_bytes(device.memory_bytes);
  }
}

template <typename Proto>
std::vector<DeviceEntry> read_devices(const Proto& message) {
  std::vector<DeviceEntry> devices;
  for (const auto& entry : message.devices()) {
    devices.push_back({.kind = entry.kind(), .threads = entry.threads(), .memory_bytes = entry.memory_bytes()});
  }
  return devices;
}

}  // namespace genie::control
