// A process with libtorch and without this library: the peer of idle.cpu_op. For each line read it runs a burst and writes what a
// call took, in nanoseconds; it ends with its input.
#include <ATen/Parallel.h>

#include <iostream>
#include <string>

#include "bench/capture/plain_op.h"

int main() {
  at::set_num_threads(1);
  const genie::bench::PlainOp op;
  for (std::string line; std::getline(std::cin, line);) std::cout << op.run() << std::endl;
}
