#include "src/control/convert.h"

#include <grpc/grpc.h>

#include <charconv>

#include "src/protocol/session_messages.h"

namespace genie::control {
namespace {

// HTTP/2 carries an error's text in a header, whose size is limited.
constexpr size_t kMaxErrorText = 4096;

grpc::StatusCode nearest(Errc code) {
  switch (code) {
    case Errc::kInvalidArgument:
    case Errc::kProtocol: return grpc::StatusCode::INVALID_ARGUMENT;
    case Errc::kNotFound: return grpc::StatusCode::NOT_FOUND;
    case Errc::kQuotaExceeded:
    case Errc::kOutOfMemory: return grpc::StatusCode::RESOURCE_EXHAUSTED;
    case Errc::kVersionMismatch: return grpc::StatusCode::FAILED_PRECONDITION;
    case Errc::kUnauthenticated: return grpc::StatusCode::UNAUTHENTICATED;
    case Errc::kPermission: return grpc::StatusCode::PERMISSION_DENIED;
    case Errc::kUnsupported: return grpc::StatusCode::UNIMPLEMENTED;
    case Errc::kBusy: return grpc::StatusCode::UNAVAILABLE;
    case Errc::kTimedOut: return grpc::StatusCode::DEADLINE_EXCEEDED;
    case Errc::kCancelled: return grpc::StatusCode::CANCELLED;
    default: return grpc::StatusCode::INTERNAL;
  }
}

Errc nearest(grpc::StatusCode code) {
  switch (code) {
    case grpc::StatusCode::UNAVAILABLE: return Errc::kUnreachable;
    case grpc::StatusCode::DEADLINE_EXCEEDED: return Errc::kTimedOut;
    case grpc::StatusCode::UNAUTHENTICATED: return Errc::kUnauthenticated;
    case grpc::StatusCode::RESOURCE_EXHAUSTED: return Errc::kQuotaExceeded;
    case grpc::StatusCode::UNIMPLEMENTED: return Errc::kVersionMismatch;
    case grpc::StatusCode::CANCELLED: return Errc::kCancelled;
    default: return Errc::kProtocol;
  }
}

}  // namespace

void keep_grpc() {
  static const bool once = [] {
    grpc_init();
    return true;
  }();
  (void)once;
}

grpc::Status to_grpc(const Status& status, grpc::ServerContext& context) {
  if (status.ok()) return grpc::Status::OK;
  context.AddTrailingMetadata(kErrcKey, std::to_string(static_cast<unsigned>(status.code())));
  const std::string_view text = status.text().empty() ? errc_name(status.code()) : status.text();
  return {nearest(status.code()), std::string(text.substr(0, kMaxErrorText))};
}

Status from_grpc(const grpc::Status& status, const grpc::ClientContext& context, std::string_view what) {
  if (status.ok()) return {};
  const auto& trailing = context.GetServerTrailingMetadata();
  if (const auto found = trailing.find(kErrcKey); found != trailing.end()) {
    unsigned code = 0;
    const grpc::string_ref text = found->second;
    std::from_chars(text.data(), text.data() + text.size(), code);
    Errc errc = wire::errc_from_wire(code);
    if (errc == Errc::kOk) errc = Errc::kProtocol;
    return {errc, status.error_message()};
  }
  std::string text(what);
  switch (status.error_code()) {
    case grpc::StatusCode::UNAVAILABLE:
      text += ": no node answers (" + status.error_message() + "): start genie-node there, or correct the address";
      break;
    case grpc::StatusCode::DEADLINE_EXCEEDED:
      text += ": the node did not answer in time: is it stopped or overloaded?";
      break;
    case grpc::StatusCode::UNIMPLEMENTED: text += ": whatever answers there is no genie-node of this version"; break;
    default: text += ": " + status.error_message(); break;
  }
  return {nearest(status.error_code()), std::move(text)};
}

Result<std::string> grpc_address(std::string_view uri) {
  constexpr std::string_view kTcp = "tcp://";
  constexpr std::string_view kUnix = "unix:";
  constexpr size_t kMaxUnixPath = 107;  // of sockaddr_un
  if (uri.starts_with(kTcp) && uri.find(':', kTcp.size()) != std::string_view::npos && uri.size() > kTcp.size()) {
    return std::string(uri.substr(kTcp.size()));
  }
  if (uri.starts_with(kUnix) && uri.size() > kUnix.size()) {
    if (uri.size() - kUnix.size() > kMaxUnixPath) {
      return Status(Errc::kInvalidArgument, "the path in '" + std::string(uri) +
                                                "' is longer than a socket's may be (" + std::to_string(kMaxUnixPath) +
                                                " bytes)");
    }
    return std::string(uri);
  }
  return Status(Errc::kInvalidArgument,
                "'" + std::string(uri) + "' is no address of a node: use unix:/path.sock or tcp://host:port");
}

}  // namespace genie::control
