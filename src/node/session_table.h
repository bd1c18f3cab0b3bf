// SessionTable: the sessions that a node's control plane opened, and which data plane has each.
//
// Purpose: a session waits here, unclaimed, until its client connects to one of the node's data planes with the session's
//   token; from then on it belongs to that plane's poller.
// Thread-safety: any thread.
// Ownership: shares the sessions. The planes that claimed them outlive clear().
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "src/node/remote_session.h"

namespace genie::node {

class DataPlane;

class SessionTable {
 public:
  struct Entry {
    std::shared_ptr<RemoteSession> session;  // null: there is none
    DataPlane* plane = nullptr;              // null: unclaimed
  };

  void add(std::shared_ptr<RemoteSession> session);
  Entry find(std::string_view id) const;
  // The unclaimed session with this token, now the plane's; null when there is none.
  std::shared_ptr<RemoteSession> claim(std::string_view token, DataPlane& plane);
  // By the plane that claimed it.
  void remove(const std::string& id);

  // Takes out those that are unclaimed and whose time to connect is over, or all of them.
  std::vector<std::shared_ptr<RemoteSession>> take_late(uint64_t now_ns, bool all);
  void clear();
  // Takes it out if it is unclaimed; null otherwise.
  std::shared_ptr<RemoteSession> take_unclaimed(std::string_view id);

 private:
  mutable std::mutex mutex_;
  std::unordered_map<std::string, Entry> entries_;  // by id
  size_t unclaimed_ = 0;
};

}  // namespace genie::node
