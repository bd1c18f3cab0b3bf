// What tests of every transport do with a node process.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <utility>

#include "tests/e2e/node_process.h"
#include "tests/link_steps.h"

namespace genie::test {

// The node and the link go; what was fetched is read and written all the same.
inline void expect_results_outlive(std::unique_ptr<NodeProcess> node) {
  constexpr size_t kBytes = size_t{1} << 20;
  ASSERT_TRUE(node->wait_ready()) << node->errors();
  auto link = session::open_link(node->uri());
  session::Submission submission;
  submission.uploads.push_back(session::filled(*link, 1, kBytes));
  submission.fetches.push_back({.storage = {1, 0}, .offset = 0, .size = kBytes});
  auto ticket = session::submit(*link, std::move(submission));
  const std::unique_ptr<session::Fetched> result = std::move(ticket->outcome().fetched[0]);
  ticket.reset();
  link.reset();
  node.reset();
  EXPECT_TRUE(session::holds(result->bytes(), 1));
  std::memset(result->bytes().data(), 0, kBytes);
}

}  // namespace genie::test
