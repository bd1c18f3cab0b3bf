// A process with libtorch and without this library (or, compiled with GENIE_BENCH_LINKED, with it): the peer of idle.cpu_op and
// idle.start. For each line read it runs a burst and writes what a call took, in nanoseconds; it ends with its input.
#include <ATen/Parallel.h>

#include <iostream>
#include <string>

#include "bench/capture/plain_op.h"

#ifdef GENIE_BENCH_LINKED
#include <genie/genie.h>
// Named and not called: the linker drops libraries of which nothing is named.
[[gnu::used]] static auto* const named = &genie::stats;
#endif

int main() {
  at::set_num_threads(1);
  const genie::bench::PlainOp op;
  for (std::string line; std::getline(std::cin, line);) std::cout << op.run() << std::endl;
}
