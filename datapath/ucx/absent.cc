// What stands for UCX in a build without it.
#include "datapath/ucx/ucx_fabric.h"

namespace genie::datapath {
namespace {

Status absent() {
  return {Errc::kConfig, "this build has no UCX: install libucx-dev and build again, or use another transport"};
}

}  // namespace

bool ucx_compiled_in() noexcept { return false; }
Result<std::unique_ptr<net::Fabric>> make_ucx_fabric(const UcxOptions&) { return absent(); }
Result<std::unique_ptr<Transport>> make_ucx_transport(const UcxOptions&) { return absent(); }

}  // namespace genie::datapath
