// EmbeddedLink: a session with a node inside this process. No wire: the worker computes on the caller's own bytes.
//
// Thread-safety: as Link. Ownership: the link shares its node; blocks that were fetched outlive both.
#pragma once

#include <memory>

#include "src/node/node.h"
#include "src/session/link.h"

namespace genie::session {

// The node that all links to "embedded:" share. Made on first use and never destroyed: static objects may hold links
// until the very end. Its workers are stopped when the process exits.
Result<std::shared_ptr<node::Node>> process_node();

Result<std::unique_ptr<Link>> open_embedded(std::shared_ptr<node::Node> node, const LinkOptions& options);

}  // namespace genie::session
