// Programs in the context style, with a session whose node has one thread.
#pragma once

#include <functional>

#include "tests/frontend/session_fixture.h"

namespace genie::test {

class CaptureTest : public SessionTest {
 protected:
  void SetUp() override {
    torch::set_num_threads(1);
    start({"--threads", "1"});
  }
  // Numbers are made with this seed on either side.
  static void seed() { torch::manual_seed(5); }
  void expect_captured(const std::function<torch::Tensor()>& make) {
    seed();
    const torch::Tensor expected = make();
    seed();
    torch::Tensor made;
    {
      const Capture capture;
      made = make();
    }
    ASSERT_EQ(made.device(), device());
    EXPECT_EQ(made.sizes(), expected.sizes());
    EXPECT_EQ(made.dtype(), expected.dtype());
    EXPECT_TRUE(torch::equal(made.cpu(), expected)) << made.cpu() << expected;
  }
};

}  // namespace genie::test
