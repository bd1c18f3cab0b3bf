// Knows Genie only as a library to load: loads it, uses the device, lets go of the library, uses the device again and ends.
#include <dlfcn.h>
#include <torch/torch.h>

#include <cstdio>

int main(int count, char** arguments) {
  if (count != 2) {
    std::fputs("usage: load_program LIBRARY\n", stderr);
    return 2;
  }
  void* library = ::dlopen(arguments[1], RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    std::fprintf(stderr, "%s\n", ::dlerror());
    return 1;
  }
  const torch::Device device("remote_accelerator:0");
  const torch::Tensor before = torch::ones({4}, device);
  if (::dlclose(library) != 0) return 1;
  static torch::Tensor kept = torch::ones({4}, device) + before;
  return kept.sum().item<float>() == 8.0F ? 0 : 1;
}
