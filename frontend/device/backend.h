// What the device's kernels share with its hooks.
#pragma once

#include <c10/core/Storage.h>

namespace genie::frontend {

// Changes a remote storage's size; its bytes up to the smaller size are kept.
void resize_storage(const c10::Storage& storage, size_t new_bytes);

}  // namespace genie::frontend
