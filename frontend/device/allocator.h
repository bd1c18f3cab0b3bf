// The allocator of remote storages: they have a size and an identity, and no address.
#pragma once

#include <c10/core/Allocator.h>
#include <c10/core/StorageImpl.h>

#include "frontend/capture/storage_state.h"

namespace genie::frontend {

c10::Allocator* remote_allocator();

// A null pointer whose context is the state; dropping it drops the tensors' reference. Takes over one reference.
c10::DataPtr lazy_data_ptr(StorageState* state, c10::Device device);

// Throws a clear error: the bytes are on another machine.
void refuse_data_access(c10::StorageImpl* storage);

}  // namespace genie::frontend
