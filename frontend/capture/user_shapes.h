// Shape functions that the program registered: the inside of include/genie/shapes.h.
#pragma once

#include "frontend/capture/shapes.h"
#include "genie/shapes.h"

namespace genie::frontend {

struct UserShapes {
  ShapeFunction function;  // of genie/shapes.h
};

// False: it does not know. Throws what the function throws, and genie::Error for an answer that cannot be.
bool run_user_shapes(const UserShapes& user, const OpInfo& op, c10::ArrayRef<c10::IValue> args, OutputMeta& out);

}  // namespace genie::frontend
