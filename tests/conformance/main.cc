#include <gtest/gtest.h>

#include <string_view>

#include "tests/conformance/peer.h"
#include "tests/conformance/world.h"

namespace genie::datapath::conformance {

const std::vector<Backend>& backends() {
  static const std::vector<Backend> all = [] {
    std::vector<Backend> made = {shm_backend(), fake_backend(), fake_unruly_backend()};
    for (Backend& backend : ucx_backends()) made.push_back(std::move(backend));
    for (Backend& backend : verbs_backends()) made.push_back(std::move(backend));
    return made;
  }();
  return all;
}

}  // namespace genie::datapath::conformance

int main(int argc, char** argv) {
  if (argc == 5 && std::string_view(argv[1]) == "peer") return genie::datapath::conformance::peer_main(argc, argv);
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
