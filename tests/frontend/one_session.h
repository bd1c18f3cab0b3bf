// One node and one session for all tests of a program: on a node inside the process or, with GENIE_TEST_REMOTE=1, on a genie-node
// process over shared memory. The same number of intra-op threads on both sides, so that numbers can be compared bit by bit.
//
// Include it in exactly one source of a program: it registers itself with GoogleTest.
#pragma once

#include <genie/genie.h>
#include <gtest/gtest.h>
#include <torch/utils.h>

#include <cstdlib>
#include <optional>
#include <string>
#include <vector>

#include "tests/e2e/node_process.h"

namespace genie::test {

inline const torch::Device kRemote("remote_accelerator:0");

class OneSession : public ::testing::Environment {
 public:
  void SetUp() override {
    if (std::getenv("GENIE_TEST_REMOTE") != nullptr) {
      node_.emplace(std::vector<std::string>{"--threads", "1"});
      ASSERT_TRUE(node_->wait_ready()) << node_->errors();
    }
    session_.emplace(Session::connect(node_ ? node_->uri() : "embedded:"));
    EXPECT_EQ(session_->transport(), node_ ? "shm" : "embedded");
    torch::set_num_threads(session_->node_threads());
  }
  void TearDown() override {
    session_.reset();
    node_.reset();
  }

 private:
  std::optional<NodeProcess> node_;
  std::optional<Session> session_;
};

inline const auto* const kOneSession = ::testing::AddGlobalTestEnvironment(new OneSession);

}  // namespace genie::test
