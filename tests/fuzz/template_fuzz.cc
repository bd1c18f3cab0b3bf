// Templates from a client that means harm: compiled or refused, and what compiles answers questions about itself.
#include <cstdlib>
#include <vector>

#include "src/executor/executor.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace genie::executor;
  const auto* bytes = reinterpret_cast<const std::byte*>(data);
  const auto program = compile(std::vector<std::byte>(bytes, bytes + size));  // FlatBuffers wants its bytes aligned
  if (!program.ok()) return 0;
  if (default_params(**program).size() != param_count(**program)) std::abort();
  (void)fingerprint(**program);
  (void)bound_slot_count(**program);
  return 0;
}
