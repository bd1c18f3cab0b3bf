// A session per test: on a node inside the process or, with GENIE_TEST_REMOTE=1, on a genie-node process over shared memory.
#pragma once

#include <genie/genie.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cstdlib>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "tests/e2e/node_process.h"

namespace genie::test {

inline bool remote_mode() { return std::getenv("GENIE_TEST_REMOTE") != nullptr; }

// Every test opens a session of its own; a process has a bounded number of device indices, so they are counted.
class SessionTest : public ::testing::Test {
 protected:
  void SetUp() override { start({}); }
  void start(std::vector<std::string> flags) {
    session.reset();
    node.reset();
    if (remote_mode()) {
      node.emplace(std::move(flags));
      ASSERT_TRUE(node->wait_ready()) << node->errors();
    }
    session.emplace(Session::connect(node ? node->uri() : "embedded:"));
  }
  void TearDown() override {
    session.reset();
    node.reset();
  }
  torch::Device device() const { return session->device(0); }

  std::optional<NodeProcess> node;
  std::optional<Session> session;
};

}  // namespace genie::test
