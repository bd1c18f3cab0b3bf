// In the place of the fabric where its libraries were not found at build time.
#include "datapath/verbs/verbs_fabric.h"

namespace genie::datapath {

Result<std::unique_ptr<net::Fabric>> make_verbs_fabric(const VerbsOptions&) {
  return Status(Errc::kUnsupported,
                "this build has no verbs transport: install libibverbs-dev and librdmacm-dev and build again");
}

}  // namespace genie::datapath
