// Generators of the remote device: the state lives on the node, the client names it.
#pragma once

#include <ATen/core/Generator.h>
#include <ATen/core/ivalue.h>

namespace genie::frontend {

// The default generator of a device index; made on first use.
const at::Generator& default_generator(int device_index);
// A new generator of its own.
at::Generator new_generator(int device_index);
// The number by which the node knows the generator of an argument (none: the device's default one). Records a seed that waited for
// a session first.
uint32_t use_generator(const c10::IValue& value, int device_index);

}  // namespace genie::frontend
