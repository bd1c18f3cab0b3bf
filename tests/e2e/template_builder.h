// Small templates for tests, written by hand.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace genie::test {

// `records` times self.add_(other) over float vectors of `elements`; slot 0 is self, slot 1 other, both exist before.
// Parameters per record: elements of self, elements of other, alpha.
std::vector<std::byte> add_template(uint32_t records, int64_t elements);

// One record that calls `name.overload`: the words of its arguments and results, and what they refer to.
std::vector<std::byte> call_template(const char* name, const char* overload, const std::vector<uint8_t>& slots,
                                     const std::vector<std::string>& strings, const std::vector<uint32_t>& code,
                                     const std::vector<int64_t>& params);

// Calls an operator that no process has.
std::vector<std::byte> unknown_operator_template();

}  // namespace genie::test
