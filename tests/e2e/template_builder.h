// Small templates for tests, written by hand.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace genie::test {

// `records` times self.add_(other) over float vectors of `elements`; slot 0 is self, slot 1 other, both exist before.
// Parameters per record: elements of self, elements of other, alpha.
std::vector<std::byte> add_template(uint32_t records, int64_t elements);

// Calls an operator that no process has.
std::vector<std::byte> unknown_operator_template();

}  // namespace genie::test
