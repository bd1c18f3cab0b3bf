#include "bench/harness/plot.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>
#include <utility>
#include <vector>

namespace genie::bench {
namespace {

constexpr double kWidth = 420;
constexpr double kHeight = 260;
constexpr double kLeft = 64;
constexpr double kRight = 12;
constexpr double kTop = 34;
constexpr double kBottom = 40;
constexpr size_t kColumns = 3;
constexpr const char* kColors[] = {"#1b6ca8", "#d1495b", "#66a182", "#edae49"};

using Points = std::vector<std::pair<double, double>>;

struct Chart {
  std::string unit;
  std::vector<std::pair<std::string, Points>> lines;

  Points& line(const std::string& name) {
    for (auto& [known, points] : lines) {
      if (known == name) return points;
    }
    return lines.emplace_back(name, Points()).second;
  }
};

// By title, in the order of the rows.
std::vector<std::pair<std::string, Chart>> charts_of(const Json& report) {
  std::vector<std::pair<std::string, Chart>> charts;
  for (const Json& row : report["rows"]) {
    Json params = row["params"];
    if (!params.contains("bytes") || !params["bytes"].is_number()) continue;
    const double bytes = params["bytes"].get<double>();
    params.erase("bytes");
    const std::string title = row["name"].get<std::string>() + ' ' + params_text(params);
    auto at = std::find_if(charts.begin(), charts.end(), [&](const auto& chart) { return chart.first == title; });
    if (at == charts.end()) at = charts.insert(at, {title, Chart{.unit = row["unit"], .lines = {}}});
    const auto add = [&](const std::string& name, const Json& value) {
      if (!value.is_number() || value.get<double>() <= 0) return;
      Points& points = at->second.line(name);
      // A row has one entry for each peer.
      if (points.empty() || points.back().first != bytes) points.emplace_back(bytes, value.get<double>());
    };
    add("ours", row["median"]);
    if (row["peer"].is_string()) add(row["peer"], row["peer_median"]);
  }
  return charts;
}

std::string format(const char* how, double a, double b = 0, double c = 0, double d = 0) {
  char text[256];
  std::snprintf(text, sizeof(text), how, a, b, c, d);
  return text;
}

std::string escaped(const std::string& text) {
  std::string made;
  for (const char letter : text) {
    if (letter == '<') {
      made += "&lt;";
    } else if (letter == '&') {
      made += "&amp;";
    } else {
      made += letter;
    }
  }
  return made;
}

std::string label(double x, double y, const char* anchor, const std::string& text) {
  return format("<text x=\"%.1f\" y=\"%.1f\" ", x, y) + "text-anchor=\"" + anchor + "\">" + escaped(text) + "</text>\n";
}

std::string bytes_label(double bytes) {
  constexpr const char* kUnits[] = {"", "K", "M", "G"};
  size_t unit = 0;
  for (; bytes >= 1024 && unit < 3; ++unit) bytes /= 1024;
  return format("%.0f", bytes) + kUnits[unit];
}

// One decade or octave more on either side where all values are one.
struct Axis {
  double first = 1e300;
  double last = -1e300;
  void take(double value) { first = std::min(first, value), last = std::max(last, value); }
  void widen(double least) {
    if (last - first < least) first -= least / 2, last += least / 2;
  }
  double at(double value) const { return (value - first) / (last - first); }
};

std::string draw(const std::string& title, const Chart& chart) {
  Axis x, y;
  for (const auto& [name, points] : chart.lines) {
    for (const auto& [bytes, value] : points) x.take(std::log2(bytes)), y.take(std::log10(value));
  }
  y.first = std::floor(y.first), y.last = std::ceil(y.last);
  x.widen(1), y.widen(1);
  const auto to_x = [&](double bytes) { return kLeft + x.at(std::log2(bytes)) * (kWidth - kLeft - kRight); };
  const auto to_y = [&](double value) {
    return kHeight - kBottom - y.at(std::log10(value)) * (kHeight - kTop - kBottom);
  };
  std::string svg = label(kLeft, 14, "start", title + ", " + chart.unit);
  for (double decade = y.first; decade <= y.last + 0.5; ++decade) {
    const double height = to_y(std::pow(10, decade));
    svg += format("<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"#ddd\"/>\n", kLeft, height,
                  kWidth - kRight, height);
    svg += label(kLeft - 6, height + 4, "end", format("%g", std::pow(10, decade)));
  }
  std::vector<double> ticks;
  double legend = kLeft;
  size_t color = 0;
  for (const auto& [name, points] : chart.lines) {
    const std::string paint = kColors[color++ % std::size(kColors)];
    std::string line;
    for (const auto& [bytes, value] : points) {
      line += format("%.1f,%.1f ", to_x(bytes), to_y(value));
      svg +=
          format("<circle cx=\"%.1f\" cy=\"%.1f\" r=\"2.5\" ", to_x(bytes), to_y(value)) + "fill=\"" + paint + "\"/>\n";
      ticks.push_back(bytes);
    }
    svg += "<polyline fill=\"none\" stroke=\"" + paint + "\" points=\"" + line + "\"/>\n";
    svg += "<g fill=\"" + paint + "\">" + label(legend, 28, "start", name) + "</g>\n";
    legend += 12 + 7.0 * static_cast<double>(name.size());
  }
  std::sort(ticks.begin(), ticks.end());
  ticks.erase(std::unique(ticks.begin(), ticks.end()), ticks.end());
  for (const double bytes : ticks) svg += label(to_x(bytes), kHeight - kBottom + 16, "middle", bytes_label(bytes));
  return svg + label(kWidth - kRight, kHeight - 6, "end", "bytes");
}

std::string page(double width, double height) {
  return format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%.0f\" height=\"%.0f\" font-family=\"sans-serif\" "
      "font-size=\"10\">\n<rect width=\"100%%\" height=\"100%%\" fill=\"white\"/>\n",
      width, height);
}

std::string origin(const Json& report, double y) {
  return label(8, y, "start",
               "genie-bench " + report["bench"].get<std::string>() + ", commit " + report["commit"].get<std::string>() +
                   ", " + report["machine"]["cpu"].get<std::string>());
}

// A bar for the ratio of each row, and a line where the two sides are equal.
std::string bars_svg(const Json& report) {
  constexpr double kBar = 22;
  constexpr double kNames = 460;
  constexpr double kMost = 2.0;  // longer bars are cut, and say so by their number
  constexpr double kBars = 320;
  const auto length = [](double ratio) { return (ratio < kMost ? ratio : kMost) / kMost * kBars; };
  std::string bars;
  double y = kTop;
  for (const Json& row : report["rows"]) {
    if (!row["ratio"].is_number()) continue;
    const double ratio = row["ratio"].get<double>();
    const std::string name = row["name"].get<std::string>() + ' ' + params_text(row["params"]);
    bars += label(kNames - 8, y + 13, "end", name + " / " + row["peer"].get<std::string>());
    bars += format("<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"14\" ", kNames, y + 2, length(ratio)) +
            "fill=\"" + kColors[0] + "\"/>\n";
    bars += label(kNames + length(ratio) + 4, y + 13, "start", format("%.2f", ratio));
    y += kBar;
  }
  if (bars.empty()) return {};
  bars += format("<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"#d1495b\"/>\n", kNames + length(1),
                 kTop - 4, kNames + length(1), y);
  return page(kNames + kBars + 60, y + 24) + label(kNames, 20, "start", "ours / the peer's, median") + bars +
         origin(report, y + 16) + "</svg>\n";
}

}  // namespace

std::string plot_svg(const Json& report) {
  const auto charts = charts_of(report);
  if (charts.empty()) return bars_svg(report);
  const size_t rows = (charts.size() + kColumns - 1) / kColumns;
  const size_t columns = std::min(charts.size(), kColumns);
  std::string svg = page(kWidth * static_cast<double>(columns), kHeight * static_cast<double>(rows) + 20);
  for (size_t i = 0; i < charts.size(); ++i) {
    svg += format("<g transform=\"translate(%.0f,%.0f)\">\n", kWidth * static_cast<double>(i % kColumns),
                  kHeight * static_cast<double>(i / kColumns));
    svg += draw(charts[i].first, charts[i].second) + "</g>\n";
  }
  return svg + origin(report, kHeight * static_cast<double>(rows) + 12) + "</svg>\n";
}

}  // namespace genie::bench
