#include "bench/harness/harness.h"

#include <algorithm>
#include <cmath>
#include <exception>

#include "bench/harness/machine.h"

namespace genie::bench {
namespace {

constexpr size_t kFullRuns = 31;
constexpr size_t kQuickRuns = 9;

Json number_or_null(const std::optional<double>& value) { return value ? Json(*value) : Json(nullptr); }

// Short and readable at any magnitude.
std::string number_text(const Json& value) {
  if (!value.is_number()) return "-";
  const double number = value.get<double>();
  char text[32];
  const int decimals = std::abs(number) >= 1000 ? 0 : std::abs(number) >= 10 ? 1 : 3;
  std::snprintf(text, sizeof(text), "%.*f", decimals, number);
  return text;
}

constexpr double kTail = 0.99;

// What the target is compared with; nothing without the peer that it takes.
std::optional<double> judge(const RowSpec& spec, const Samples& ours, const Samples* peer) {
  const TargetOf what = spec.target_of;
  if (what == TargetOf::kMedian) return ours.median();
  if (what == TargetOf::kBest) return ours.quantile(spec.better == Better::kHigher ? 1 : 0);
  if (peer == nullptr) return std::nullopt;
  if (what == TargetOf::kDifference) return ours.median() - peer->median();
  const double fraction = what == TargetOf::kTailRatio ? kTail : 0.5;
  const double theirs = peer->quantile(fraction);
  return theirs != 0 ? std::optional((ours.quantile(fraction) - spec.allowance) / theirs) : std::nullopt;
}

const char* name_of(TargetOf what) {
  switch (what) {
    case TargetOf::kRatio: return "ratio";
    case TargetOf::kTailRatio: return "p99 ratio";
    case TargetOf::kDifference: return "difference";
    case TargetOf::kMedian: return "median";
    case TargetOf::kBest: return "best";
  }
  return "";
}

}  // namespace

double Samples::quantile(double fraction) const {
  if (values_.empty()) return 0;
  std::vector<double> sorted = values_;
  const auto rank = static_cast<size_t>(std::ceil(fraction * static_cast<double>(sorted.size())));
  const auto nth = sorted.begin() + static_cast<std::ptrdiff_t>(std::clamp<size_t>(rank, 1, sorted.size()) - 1);
  std::nth_element(sorted.begin(), nth, sorted.end());
  return *nth;
}

std::string params_text(const Json& params) {
  std::string text;
  for (const auto& [key, value] : params.items()) {
    if (!text.empty()) text += ' ';
    text += key + '=' + (value.is_string() ? value.get<std::string>() : value.dump());
  }
  return text;
}

// Every second round runs in the opposite order, so that nobody always runs on caches that the same other one left.
void Row::alternate(size_t rounds) {
  const size_t count = peers_.size() + 1;
  for (size_t round = 0; round < rounds; ++round) {
    for (size_t i = 0; i < count; ++i) {
      const size_t who = round % 2 == 0 ? i : count - 1 - i;
      if (who == 0) {
        ours_(samples_);
      } else {
        peers_[who - 1].run(peers_[who - 1].samples);
      }
    }
  }
}

std::optional<double> Row::measure() {
  if (!harness_->wants(spec_.name, spec_.params)) return std::nullopt;
  if (runs_ == 0) runs_ = harness_->full_or_quick(kFullRuns, kQuickRuns);
  try {
    alternate(warmup_);
    samples_.clear();
    for (Peer& peer : peers_) peer.samples.clear();
    alternate(runs_);
  } catch (const std::exception& error) {
    harness_->fail(spec_, error.what());
    return std::nullopt;
  }
  if (peers_.empty()) harness_->add(spec_, samples_, runs_, nullptr);
  for (const Peer& peer : peers_) harness_->add(spec_, samples_, runs_, &peer);
  return samples_.median();
}

Harness::Harness(std::string bench, Options options) : bench_(std::move(bench)), options_(std::move(options)) {}

bool Harness::wants(std::string_view name, const Json& params) const {
  const auto& models = options_.models;
  if (!models.empty() && std::find(models.begin(), models.end(), params.value("model", "")) == models.end())
    return false;
  const std::string text = std::string(name) + ' ' + params_text(params);
  return text.find(options_.filter) != std::string::npos;
}

void Harness::note(std::string text) {
  if (options_.table != nullptr) std::fprintf(options_.table, "note: %s\n", text.c_str());
  notes_.push_back(std::move(text));
}

void Harness::fail(const RowSpec& spec, std::string_view why) {
  failed_ = true;
  note(spec.name + ' ' + params_text(spec.params) + " FAILED: " + std::string(why));
}

void Harness::add(const RowSpec& spec, const Samples& ours, size_t runs, const Row::Peer* peer) {
  const double median = ours.median();
  std::optional<double> peer_median;
  std::optional<double> ratio;
  if (peer != nullptr) {
    peer_median = peer->samples.median();
    if (*peer_median != 0) ratio = median / *peer_median;
  }
  Json met = nullptr;
  const std::optional<double> judged = judge(spec, ours, peer != nullptr ? &peer->samples : nullptr);
  if (spec.target && judged) met = spec.better == Better::kHigher ? *judged >= *spec.target : *judged <= *spec.target;

  Json row = {{"name", spec.name},
              {"params", spec.params},
              {"unit", spec.unit},
              {"median", median},
              {"best", ours.quantile(spec.better == Better::kHigher ? 1 : 0)},
              {"p99", ours.quantile(kTail)},
              {"p999", ours.quantile(0.999)},
              {"runs", runs},
              {"samples", ours.size()},
              {"peer", peer != nullptr ? Json(peer->name) : Json(nullptr)},
              {"peer_median", number_or_null(peer_median)},
              {"peer_p99", peer != nullptr ? Json(peer->samples.quantile(kTail)) : Json(nullptr)},
              {"ratio", number_or_null(ratio)},
              {"better", spec.better == Better::kHigher ? "higher" : "lower"},
              {"target", number_or_null(spec.target)},
              {"target_of", name_of(spec.target_of)},
              {"allowance", spec.allowance},
              {"met", met}};
  print(row);
  rows_.push_back(std::move(row));
}

void Harness::print(const Json& row) {
  if (options_.table == nullptr) return;
  constexpr const char* kFormat = "%-24s %-36s %9s %11s %11s %11s  %-28s %11s %8s %7s %4s\n";
  if (rows_.empty()) {
    std::fprintf(options_.table, kFormat, "row", "params", "unit", "median", "p99", "p99.9", "peer", "its median",
                 "ratio", "target", "met");
  }
  const Json& met = row["met"];
  std::fprintf(
      options_.table, kFormat, row["name"].get<std::string>().c_str(), params_text(row["params"]).c_str(),
      row["unit"].get<std::string>().c_str(), number_text(row["median"]).c_str(), number_text(row["p99"]).c_str(),
      number_text(row["p999"]).c_str(), row["peer"].is_null() ? "-" : row["peer"].get<std::string>().c_str(),
      number_text(row["peer_median"]).c_str(), number_text(row["ratio"]).c_str(), number_text(row["target"]).c_str(),
      met.is_null()     ? "-"
      : met.get<bool>() ? "yes"
                        : "NO");
  std::fflush(options_.table);
}

Json Harness::report() const {
  return {{"bench", bench_},
          {"commit", build_commit()},
          {"machine", machine_description()},
          {"build", build_description()},
          {"quick", options_.quick},
          {"rows", rows_},
          {"notes", notes_}};
}

}  // namespace genie::bench
