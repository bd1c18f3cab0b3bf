// Generators of the remote device: the state lives on the node, the client names it.
#pragma once

#include <ATen/core/Generator.h>
#include <ATen/core/ivalue.h>

#include "frontend/capture/storage_state.h"

namespace genie::frontend {

// The default generator of a device index; made on first use.
const at::Generator& default_generator(int device_index);
// A new generator of its own.
at::Generator new_generator(int device_index);

struct GeneratorUse {
  uint32_t number = 0;  // by which the node knows it
  StorageState* state =
      nullptr;  // its identity, held by the generator; null for a device's default one, which never ends
};
// The generator of an argument (none: the device's default one). Records a seed that waited for a session first.
GeneratorUse use_generator(const c10::IValue& value, int device_index);

}  // namespace genie::frontend
