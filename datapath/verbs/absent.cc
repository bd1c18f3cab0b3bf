// What stands for verbs in a build without it.
#include "datapath/verbs/verbs_fabric.h"

namespace genie::datapath {
namespace {

Status absent() {
  return {
      Errc::kConfig,
      "this build has no verbs: install libibverbs-dev and librdmacm-dev and build again, or use another transport"};
}

}  // namespace

bool verbs_compiled_in() noexcept { return false; }
bool verbs_usable(const VerbsOptions&) { return false; }
Result<std::unique_ptr<net::Fabric>> make_verbs_fabric(const VerbsOptions&) { return absent(); }
Result<std::unique_ptr<Transport>> make_verbs_transport(const VerbsOptions&) { return absent(); }

}  // namespace genie::datapath
