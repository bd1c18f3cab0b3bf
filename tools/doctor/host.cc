#include "tools/doctor/host.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>

namespace genie::doctor {

namespace fs = std::filesystem;

Host::Host(std::string root) : root_(std::move(root)) {
  while (root_.ends_with('/')) root_.pop_back();
}

std::string Host::at(std::string_view path) const { return root_ + std::string(path); }

bool Host::has(std::string_view path) const {
  std::error_code ignored;
  return fs::exists(at(path), ignored);
}

bool Host::usable(std::string_view path) const { return ::access(at(path).c_str(), R_OK | W_OK) == 0; }

std::optional<std::string> Host::text(std::string_view path) const {
  std::ifstream file(at(path), std::ios::binary);
  if (!file) return std::nullopt;
  std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (file.bad()) return std::nullopt;
  while (!text.empty() && std::isspace(static_cast<unsigned char>(text.back())) != 0) text.pop_back();
  return text;
}

std::vector<std::string> Host::lines(std::string_view path) const {
  std::istringstream all(text(path).value_or(""));
  std::vector<std::string> lines;
  for (std::string line; std::getline(all, line);) lines.push_back(line);
  return lines;
}

std::optional<uint64_t> Host::number(std::string_view path) const {
  const std::optional<std::string> found = text(path);
  return found ? leading_number(*found) : std::nullopt;
}

std::optional<std::string> Host::field(std::string_view path, std::string_view name) const {
  for (const std::string& line : lines(path)) {
    if (!line.starts_with(name) || line.size() <= name.size() || line[name.size()] != ':') continue;
    const size_t begin = line.find_first_not_of(" \t", name.size() + 1);
    return begin == std::string::npos ? "" : line.substr(begin);
  }
  return std::nullopt;
}

std::vector<std::string> Host::names(std::string_view folder) const {
  std::vector<std::string> names;
  std::error_code failed;
  for (fs::directory_iterator entry(at(folder), failed), end; !failed && entry != end; entry.increment(failed)) {
    names.push_back(entry->path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

std::string Host::resolved(std::string_view path) const {
  std::error_code failed;
  const std::string full = fs::canonical(at(path), failed).string();
  if (failed) return {};
  const std::string base = live() ? "" : fs::canonical(root_, failed).string();
  return full.starts_with(base) ? full.substr(base.size()) : full;
}

std::optional<uint64_t> leading_number(std::string_view text) {
  uint64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc()) return std::nullopt;
  return number;
}

std::vector<std::string_view> words(std::string_view text) {
  std::vector<std::string_view> found;
  for (size_t at = 0; (at = text.find_first_not_of(" \t\n", at)) != std::string_view::npos;) {
    const size_t end = std::min(text.find_first_of(" \t\n", at), text.size());
    found.push_back(text.substr(at, end - at));
    at = end;
  }
  return found;
}

std::string bytes_text(uint64_t bytes) {
  constexpr std::array<const char*, 5> kUnits = {"bytes", "KiB", "MiB", "GiB", "TiB"};
  auto value = static_cast<double>(bytes);
  size_t unit = 0;
  for (; value >= 1024 && unit + 1 < kUnits.size(); ++unit) value /= 1024;
  const bool whole = value == static_cast<double>(static_cast<uint64_t>(value));
  return whole ? fmt::format("{:.0f} {}", value, kUnits[unit]) : fmt::format("{:.1f} {}", value, kUnits[unit]);
}

std::vector<uint32_t> cpu_list(std::string_view text) {
  constexpr uint64_t kMost = 1U << 16;
  std::vector<uint32_t> cpus;
  while (!text.empty()) {
    const size_t comma = std::min(text.find(','), text.size());
    const std::string_view part = text.substr(0, comma);
    text.remove_prefix(std::min(comma + 1, text.size()));
    const size_t dash = part.find('-');
    const std::optional<uint64_t> first = leading_number(part);
    const std::optional<uint64_t> last = dash == std::string_view::npos ? first : leading_number(part.substr(dash + 1));
    if (!first || !last || *last >= kMost) continue;
    for (uint64_t cpu = *first; cpu <= *last; ++cpu) cpus.push_back(static_cast<uint32_t>(cpu));
  }
  return cpus;
}

}  // namespace genie::doctor
