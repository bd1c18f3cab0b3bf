#include "src/control/host_id.h"

#include <fstream>

namespace genie::control {

const std::string& host_id() {
  static const std::string id = [] {
    std::ifstream file("/proc/sys/kernel/random/boot_id");
    std::string line;
    std::getline(file, line);
    return line;
  }();
  return id;
}

}  // namespace genie::control
