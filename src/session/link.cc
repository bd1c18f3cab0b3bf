#include "src/session/link.h"

#include "src/session/embedded_link.h"
#include "src/session/remote_link.h"

namespace genie::session {

Result<std::unique_ptr<Link>> Link::open(std::string_view uri, const LinkOptions& options) {
  if (uri == "embedded:") {
    Result<std::shared_ptr<node::Node>> node = process_node();
    GENIE_TRY(node.status());
    return open_embedded(*node, options);
  }
  if (uri.starts_with("unix:") || uri.starts_with("tcp://")) return open_remote(uri, options);
  return Status(Errc::kInvalidArgument, "cannot open a session with '" + std::string(uri) +
                                            "': use embedded:, unix:/path.sock or tcp://host:port");
}

}  // namespace genie::session
