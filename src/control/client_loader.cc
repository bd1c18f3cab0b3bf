// ControlClient::make of the installed library: the module's.
#include <dlfcn.h>

#include <utility>

#include "src/control/client_module.h"

namespace genie::control {

Result<std::unique_ptr<ControlClient>> ControlClient::make(std::string_view uri, std::string token) {
  // Found beside the library, by its run path. Opened again it is the same.
  void* const module = ::dlopen(kClientModule, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
  void* const entry = module == nullptr ? nullptr : ::dlsym(module, kClientModuleEntry);
  if (entry == nullptr) {
    const char* const why = ::dlerror();
    return Status(Errc::kUnsupported, std::string(uri) + ": what connects to other processes cannot be loaded (" +
                                          (why == nullptr ? kClientModule : why) +
                                          "). It belongs beside libgenie.so: install Genie anew");
  }
  Result<std::unique_ptr<ControlClient>> made(Errc::kInternal);
  reinterpret_cast<ClientModuleEntry>(entry)(uri, std::move(token), made);
  return made;
}

}  // namespace genie::control
