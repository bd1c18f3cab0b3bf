// What a NodeConfig means for the server that genie-node runs.
//
// Thread-safety: any thread. Ownership: values.
#pragma once

#include "genie/status.h"
#include "src/node/node_config.h"
#include "src/node/server.h"

namespace genie::node {

// Reads the token file and fills in defaults.
Result<ServerOptions> server_options(const NodeConfig& config);

}  // namespace genie::node
