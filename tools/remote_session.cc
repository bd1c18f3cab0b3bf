#include "tools/remote_session.h"

#include <cstdlib>

namespace genie::tools {

std::unique_ptr<RemoteSession> RemoteSession::connect(const std::string& uri, const std::string& token) {
  std::string chosen = uri;
  if (chosen.empty()) {
    const char* cluster = std::getenv("GENIE_CLUSTER");
    chosen = cluster != nullptr && *cluster != '\0' ? cluster : "embedded:";
  }
  SessionOptions options;
  options.token = token;
  return std::unique_ptr<RemoteSession>(new RemoteSession(Session::connect(chosen, options), chosen));
}

nlohmann::ordered_json RemoteSession::stats() const {
  const Stats stats = session_.stats();
  return {{"captured_ops", stats.captured_ops},
          {"executed_ops", stats.executed_ops},
          {"pruned_ops", stats.pruned_ops},
          {"client_fallbacks", stats.client_fallbacks},
          {"flushes", stats.flushes},
          {"flush_reasons", stats.flush_reasons},
          {"templates_registered", stats.templates_registered},
          {"submissions", stats.submissions},
          {"message_bytes", stats.message_bytes},
          {"uploads", stats.uploads},
          {"upload_bytes", stats.upload_bytes},
          {"upload_known_bytes", stats.upload_known_bytes},
          {"upload_copied_bytes", stats.upload_copied_bytes},
          {"fetches", stats.fetches},
          {"fetch_bytes", stats.fetch_bytes},
          {"fetch_copied_bytes", stats.fetch_copied_bytes}};
}

}  // namespace genie::tools
