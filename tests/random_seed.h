// The seed of a random test.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>

namespace genie::test {

// Said, so that a failure can be had again: GENIE_TEST_SEED repeats it.
inline uint64_t random_seed() {
  const char* const given = std::getenv("GENIE_TEST_SEED");
  const uint64_t seed = given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device{}();
  std::printf("seed %llu (GENIE_TEST_SEED repeats it)\n", static_cast<unsigned long long>(seed));
  return seed;
}

}  // namespace genie::test
