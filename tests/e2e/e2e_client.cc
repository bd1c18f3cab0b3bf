// A client process for tests. To kill: opens a session, says "going", and works until its end. With a number of elements and a
// value: uploads such weights, says what it sent, and ends.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <span>
#include <vector>

#include "src/session/link.h"
#include "tests/e2e/template_builder.h"

namespace {

using namespace genie;

int run(const char* uri) {
  constexpr int64_t kElements = 1 << 20;
  auto link = session::Link::open(uri, {});
  if (!link) {
    std::fprintf(stderr, "%s\n", link.status().to_string().c_str());
    return 1;
  }
  const auto id = (*link)->register_template(test::add_template(200, kElements));
  if (!id) return 1;
  session::Submission first;
  for (uint64_t storage = 1; storage <= 2; ++storage) {
    auto memory = (*link)->begin_upload(kElements * sizeof(float));
    if (!memory) return 1;
    std::memset((*memory)->bytes().data(), 0, kElements * sizeof(float));
    first.uploads.push_back({.storage = {storage, 0}, .memory = std::move(*memory)});
  }
  if (!(*link)->submit(std::move(first))) return 1;
  std::vector<std::unique_ptr<session::Upload>> unused;
  std::vector<std::shared_ptr<session::Ticket>> tickets;
  for (uint32_t step = 0;; ++step) {
    session::Submission submission;
    submission.template_id = *id;
    submission.slots = {{.id = 1, .version_in = step, .version_out = step + 1, .size_bytes = 0},
                        {.id = 2, .version_in = 0, .version_out = 0, .size_bytes = 0}};
    submission.fetches.push_back({.storage = {1, step + 1}, .offset = 0, .size = 100'000});
    auto ticket = (*link)->submit(std::move(submission));
    if (!ticket) return 1;
    tickets.push_back(std::move(*ticket));
    if (step == 3) {
      if (auto memory = (*link)->begin_upload(1 << 20)) unused.push_back(std::move(*memory));
      std::puts("going");
      std::fflush(stdout);
    }
    if (tickets.size() > 8) {
      if (!(*link)->wait(*tickets.front()).ok()) return 1;
      tickets.erase(tickets.begin());
    }
  }
}

// Of the value, and what i % 1000 adds to it.
int share(const char* uri, size_t elements, float value) {
  auto link = session::Link::open(uri, {});
  if (!link) {
    std::fprintf(stderr, "%s\n", link.status().to_string().c_str());
    return 1;
  }
  std::vector<float> weights(elements);
  for (size_t i = 0; i < elements; ++i) weights[i] = value + static_cast<float>(i % 1000);
  const std::span<const std::byte> bytes = std::as_bytes(std::span(weights));
  auto memory =
      (*link)->snapshot(bytes, [&](std::span<std::byte> to) { std::memcpy(to.data(), bytes.data(), bytes.size()); });
  if (!memory) return 1;
  session::Submission submission;
  submission.uploads.push_back({.storage = {1, 0}, .memory = std::move(*memory)});
  submission.fetches.push_back({.storage = {1, 0}, .offset = 0, .size = bytes.size()});
  auto ticket = (*link)->submit(std::move(submission));
  if (!ticket || !(*link)->wait(**ticket).ok() || !(*ticket)->outcome().status.ok()) return 1;
  const std::span<const std::byte> got = (*ticket)->outcome().fetched.at(0)->bytes();
  const session::LinkCounters counters = (*link)->counters();
  std::printf("sent %llu, known %llu, %s\n", static_cast<unsigned long long>(counters.upload_bytes),
              static_cast<unsigned long long>(counters.upload_known_bytes),
              std::ranges::equal(got, bytes) ? "equal" : "different");
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 4) return share(argv[1], std::strtoull(argv[2], nullptr, 10), std::strtof(argv[3], nullptr));
  return argc == 2 ? run(argv[1]) : 2;
}
