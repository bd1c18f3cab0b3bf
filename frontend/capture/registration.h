// Registration: what PyTorch's dispatcher gets from this library when it is loaded, in one place and one order.
//
// Purpose: a program that links the library and does not use the device pays for this and little else.
//   - A fallback costs as much as a thousand kernels, since the dispatcher works out every operator's table for it. There are three,
//     and they are not taken back when the process exits: nobody needs that of a library that is never unmapped (-z nodelete).
//   - Kernels are taken back then, as by TORCH_LIBRARY_IMPL. Left behind they would keep their operators alive, all of whose tables
//     PyTorch then works out again for each fallback of its own that it takes back.
//   - Kernels in numbers go by their operator's name as it is: torch::Library parses one text and formats another for each.
// Thread-safety: none; the loader runs it once.
// Ownership: the dispatcher's, until the process exits.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

#include <optional>
#include <source_location>
#include <vector>

namespace torch {
class Library;
}

namespace genie::frontend {

// What TORCH_LIBRARY_IMPL(aten, key, library) hands to its body.
torch::Library& aten_library(c10::DispatchKey key, std::source_location where = std::source_location::current());

// For every operator that has no other kernel for the key.
void add_fallback(c10::DispatchKey key, c10::KernelFunction kernel);

// A kernel of an operator. `signature`: of an unboxed one; the dispatcher compares it with that of PyTorch's kernels.
void add_kernel(const c10::OperatorName& name, c10::DispatchKey key, c10::KernelFunction kernel,
                std::optional<c10::impl::CppSignature> signature = std::nullopt);

// Operators that are defined at this moment.
std::vector<c10::OperatorHandle> defined_operators();

// Each in the source file that it is named after.
void register_autocast();
void register_context_kernels();
void register_custom_ops();
void register_layer_norm();
void register_linear();
void register_recurrent();
void register_typed_kernels();
void register_views();
void register_kernels();  // what has no kernel by then gets the boxed one
void register_layouts();

}  // namespace genie::frontend
