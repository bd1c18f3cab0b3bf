// Harness: what every genie-bench subcommand measures with.
//
// Purpose: a row is one measured quantity; ours and its peers are run alternately in the same process, so that a noisy
//   machine disturbs both alike. The harness prints a table for people as rows end, and writes the same rows as JSON.
//
//     harness.row({.name = "queue.spsc", .params = {{"bytes", 8}}, .unit = "Mops/s", .better = Better::kHigher, .target = 1.0})
//         .ours([&] { return push_and_pop(ours); })
//         .peer("boost::lockfree::spsc_queue", [&] { return push_and_pop(boost); })
//         .measure();
//
//   A function is one run. It returns its value in the row's unit, or takes a Samples& and adds many (latencies).
//   Several peers give several rows that share our samples.
// Thread-safety: one thread.
// Ownership: the functions run inside measure() only.
#pragma once

#include <cstdio>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace genie::bench {

using Json = nlohmann::ordered_json;

class Samples {
 public:
  void add(double value) { values_.push_back(value); }
  void reserve(size_t count) { values_.reserve(count); }
  size_t size() const noexcept { return values_.size(); }
  // Nearest rank; `fraction` in [0, 1], 0 for the smallest. Zero when empty.
  double quantile(double fraction) const;
  double median() const { return quantile(0.5); }
  void clear() noexcept { values_.clear(); }

 private:
  std::vector<double> values_;
};

enum class Better : uint8_t { kHigher, kLower };
// What `target` is compared with: the ratio of the medians, ours / peer's, or of the 99th percentiles, the medians' difference, our
// own median, or the best of our own runs.
enum class TargetOf : uint8_t { kRatio, kTailRatio, kDifference, kMedian, kBest };

struct RowSpec {
  std::string name;
  Json params = Json::object();
  std::string unit;
  Better better = Better::kLower;
  std::optional<double> target;
  TargetOf target_of = TargetOf::kRatio;
  // In the row's unit: what ours may be beyond the target's share of the peer ("1.1 of eager and 100 MB"). Of kRatio.
  double allowance = 0;
};

struct Options {
  bool quick = false;
  std::string filter;                   // only rows whose "name params" contains it
  std::vector<std::string> models;      // only rows whose params.model is one of these; none: all rows
  std::vector<std::string> transports;  // none: those that the bench runs by itself
  // Of transfer alone; none: all of them.
  std::vector<std::string> ops;
  std::vector<uint64_t> sizes;
  std::FILE* table = nullptr;  // where rows and notes are printed; null: nowhere
};

class Harness;

class Row {
 public:
  template <class Function>
  Row& ours(Function function) {
    ours_ = adapt(std::move(function));
    return *this;
  }
  template <class Function>
  Row& peer(std::string name, Function function) {
    peers_.push_back({std::move(name), adapt(std::move(function)), {}});
    return *this;
  }
  // Alternated runs to keep; the harness' default is for runs of about 10 ms.
  Row& runs(size_t count) {
    runs_ = count;
    return *this;
  }
  // Runs of each before the first that is kept. Default 1.
  Row& warmup(size_t count) {
    warmup_ = count;
    return *this;
  }
  // Runs everything and reports the row(s). Our median, or nothing when the filter left the row out or a run threw
  // (reported; the harness then counts as failed).
  std::optional<double> measure();

 private:
  friend class Harness;
  using Run = std::function<void(Samples&)>;
  struct Peer {
    std::string name;
    Run run;
    Samples samples;
  };

  Row(Harness* harness, RowSpec spec) : harness_(harness), spec_(std::move(spec)) {}

  template <class Function>
  static Run adapt(Function function) {
    if constexpr (std::is_invocable_v<Function&, Samples&>) {
      return function;
    } else {
      return [function = std::move(function)](Samples& samples) mutable { samples.add(function()); };
    }
  }
  void alternate(size_t rounds);

  Harness* harness_;
  RowSpec spec_;
  size_t runs_ = 0;
  size_t warmup_ = 1;
  Run ours_;
  Samples samples_;
  std::vector<Peer> peers_;
};

class Harness {
 public:
  Harness(std::string bench, Options options);

  bool quick() const noexcept { return options_.quick; }
  const Options& options() const noexcept { return options_; }
  // Those that --transport named, or else these.
  std::vector<std::string> transports_or(std::vector<std::string> otherwise) const {
    return options_.transports.empty() ? std::move(otherwise) : options_.transports;
  }
  // The size of a run, by mode.
  template <class Value>
  Value full_or_quick(Value full, Value quick) const {
    return options_.quick ? quick : full;
  }
  // Whether a row passes --filter and --model: ask before a costly setup.
  bool wants(std::string_view name, const Json& params = Json::object()) const;
  Row row(RowSpec spec) { return Row(this, std::move(spec)); }
  // A line for people: what could not be measured here, and why. Kept in the JSON too.
  void note(std::string text);

  // {"bench", "commit", "machine", "build", "rows", "notes"}.
  Json report() const;
  // Some run threw.
  bool failed() const noexcept { return failed_; }
  size_t row_count() const noexcept { return rows_.size(); }

 private:
  friend class Row;
  void add(const RowSpec& spec, const Samples& ours, size_t runs, const Row::Peer* peer);
  void fail(const RowSpec& spec, std::string_view why);
  void print(const Json& row);

  std::string bench_;
  Options options_;
  Json rows_ = Json::array();
  Json notes_ = Json::array();
  bool failed_ = false;
};

// "bytes=8 op=write": params as people read them.
std::string params_text(const Json& params);

}  // namespace genie::bench
