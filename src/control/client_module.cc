#include "src/control/client_module.h"

#include <utility>

extern "C" [[gnu::visibility("default")]] void genie_control_client(
    std::string_view uri, std::string token, genie::Result<std::unique_ptr<genie::control::ControlClient>>& made) {
  made = genie::control::ControlClient::make(uri, std::move(token));
}
static_assert(std::is_same_v<decltype(&genie_control_client), genie::control::ClientModuleEntry>);
