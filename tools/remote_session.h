// The session that `genie run` works in, and its counters as JSON.
//
// Thread-safety: one thread. Ownership: the session ends with the object.
#pragma once

#include <genie/genie.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

namespace genie::tools {

class RemoteSession {
 public:
  // An empty uri means $GENIE_CLUSTER, then embedded:; an empty token the one of $GENIE_TOKEN_FILE. Throws genie::Error.
  static std::unique_ptr<RemoteSession> connect(const std::string& uri, const std::string& token);

  const std::string& uri() const { return uri_; }
  nlohmann::ordered_json stats() const;
  std::string node_name() const { return session_.node_name(); }
  const Session& session() const { return session_; }

 private:
  RemoteSession(Session session, std::string uri) : session_(std::move(session)), uri_(std::move(uri)) {}

  Session session_;
  std::string uri_;
};

}  // namespace genie::tools
