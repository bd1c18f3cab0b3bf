// RemoteLink: a session with a node in another process: gRPC for control, a Transport for everything else.
//
// Thread-safety: as Link. Ownership: results share the link's core and may outlive the link and the node.
#pragma once

#include <memory>
#include <string_view>

#include "src/session/link.h"

namespace genie::session {

Result<std::unique_ptr<Link>> open_remote(std::string_view uri, const LinkOptions& options);

}  // namespace genie::session
