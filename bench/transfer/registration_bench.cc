// genie-bench transfer: what finding the registration of a buffer costs.
//
// Registered ranges of 64 KiB with gaps between them, asked for a random sub-range of a random one: the shortcut for the
// last answer helps as rarely as it can. The peer is what one writes first, std::map from a range's end.
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <stdexcept>
#include <vector>

#include "bench/benches.h"
#include "bench/harness/threads.h"
#include "datapath/base/clock.h"
#include "datapath/memory/registration_cache.h"

namespace genie::bench {
namespace {

using datapath::MemoryKind;

constexpr size_t kRange = size_t{64} << 10;
constexpr size_t kStride = size_t{96} << 10;
constexpr size_t kLength = 4096;
// More than the branch predictor remembers.
constexpr size_t kQuestions = size_t{1} << 16;

// Never touched: only addresses are looked at.
std::byte* range(size_t index) { return reinterpret_cast<std::byte*>((size_t{1} << 40) + index * kStride); }

template <class Find>
double ns_per_find(const std::vector<std::byte*>& questions, const Find& find) {
  size_t found = 0;
  const std::function<void()> ask = [&] {
    for (const std::byte* question : questions) found += find(question);
  };
  const uint64_t took_ns = run_on_cores({&ask, 1});
  if (found != questions.size()) throw std::runtime_error("a registered range was not found");
  return static_cast<double>(took_ns) / static_cast<double>(questions.size());
}

void run_registration(Harness& harness) {
  for (const size_t count : {size_t{1}, size_t{64}, size_t{1024}, size_t{16384}}) {
    datapath::RegistrationCache cache;
    std::map<const std::byte*, const std::byte*> map;
    for (size_t i = 0; i < count; ++i) {
      if (!cache.add(range(i), kRange, MemoryKind::kHost, nullptr)) throw std::runtime_error("add");
      map.emplace(range(i) + kRange, range(i));
    }
    std::mt19937 random(1);
    std::vector<std::byte*> questions(kQuestions);
    for (std::byte*& question : questions) question = range(random() % count) + random() % (kRange - kLength);
    harness
        .row({.name = "registration.lookup",
              .params = {{"registrations", count}},
              .unit = "ns",
              .better = Better::kLower,
              .target = 50,
              .target_of = TargetOf::kMedian})
        .ours([&] {
          return ns_per_find(questions, [&](const std::byte* data) { return cache.find(data, kLength) != nullptr; });
        })
        .peer("std::map",
              [&] {
                return ns_per_find(questions, [&](const std::byte* data) {
                  const auto at = map.upper_bound(data);
                  return at != map.end() && at->second <= data && data + kLength <= at->first;
                });
              })
        .measure();
  }
}

const Registration kRegistration("transfer", run_registration);

}  // namespace
}  // namespace genie::bench
