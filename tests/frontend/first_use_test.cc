// What a program that links the library has before it uses the device, and its first operators there. A program of its own: nothing of
// it can be undone.
#include <ATen/core/dispatch/Dispatcher.h>
#include <genie/genie.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <atomic>
#include <string>
#include <thread>
#include <vector>

namespace {

const torch::Device kRemote("remote_accelerator:0");
const torch::Device kNobodys("remote_accelerator:15");

bool has_kernel(const char* name, const char* overload, c10::DispatchKey key) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, overload).hasKernelForDispatchKey(key);
}

// Registering takes tens of milliseconds, which who does not use the device shall not pay.
TEST(FirstUse, RegistersTheKernels) {
  EXPECT_FALSE(has_kernel("aten::mm", "", c10::DispatchKey::PrivateUse1));
  EXPECT_FALSE(has_kernel("aten::linear", "", c10::DispatchKey::AutogradPrivateUse1));
  EXPECT_TRUE(torch::equal(torch::ones({2}) + 1, torch::full({2}, 2.0F))) << "the CPU does not wait for it";
  EXPECT_FALSE(has_kernel("aten::mm", "", c10::DispatchKey::PrivateUse1));

  // Several threads at once, on a device that nobody serves: each is told what is missing.
  constexpr size_t kThreads = 4;
  std::atomic<size_t> ready{0};
  std::vector<std::string> errors(kThreads);
  std::vector<std::thread> threads;
  for (std::string& error : errors) {
    threads.emplace_back([&error, &ready] {
      ++ready;
      while (ready != kThreads) std::this_thread::yield();
      try {
        (void)torch::empty({2}, kNobodys);
      } catch (const std::exception& refused) {
        error = refused.what();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::string& error : errors)
    EXPECT_THAT(error, testing::HasSubstr("no session serves remote_accelerator:15"));
  EXPECT_TRUE(has_kernel("aten::mm", "", c10::DispatchKey::PrivateUse1));
  EXPECT_TRUE(has_kernel("aten::linear", "", c10::DispatchKey::AutogradPrivateUse1));

  const genie::Session session = genie::Session::connect("embedded:");
  const auto a = torch::randn({3, 3});
  EXPECT_TRUE(torch::equal(torch::mm(a.to(kRemote), a.to(kRemote)).cpu(), torch::mm(a, a)));
}

}  // namespace
