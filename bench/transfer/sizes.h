// Sizes as genie-bench's flags name them.
//
// Thread-safety: any thread. Ownership: values.
#pragma once

#include <charconv>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

namespace genie::bench {

// "4096", "64K", "1M", "1G"; nothing for anything else, zero included.
inline std::optional<uint64_t> parse_size(std::string_view text) {
  uint64_t number = 0;
  const char* last = text.data() + text.size();
  const auto [end, error] = std::from_chars(text.data(), last, number);
  if (error != std::errc() || number == 0 || last - end > 1) return std::nullopt;
  unsigned shift = 0;
  if (end != last) {
    switch (*end) {
      case 'K': shift = 10; break;
      case 'M': shift = 20; break;
      case 'G': shift = 30; break;
      default: return std::nullopt;
    }
  }
  if (number > UINT64_MAX >> shift) return std::nullopt;
  return number << shift;
}

// "8..1G": from the first to the last, each eight times the one before; "64,4K,1M": these. Empty when it is neither.
inline std::vector<uint64_t> parse_sizes(std::string_view text) {
  std::vector<uint64_t> sizes;
  if (const size_t dots = text.find(".."); dots != std::string_view::npos) {
    const auto first = parse_size(text.substr(0, dots));
    const auto last = parse_size(text.substr(dots + 2));
    if (!first || !last || *first > *last) return {};
    for (uint64_t size = *first; size<*last; size = size> UINT64_MAX / 8 ? *last : size * 8) sizes.push_back(size);
    sizes.push_back(*last);
    return sizes;
  }
  for (;;) {
    const size_t comma = text.find(',');
    const auto size = parse_size(text.substr(0, comma));
    if (!size) return {};
    sizes.push_back(*size);
    if (comma == std::string_view::npos) return sizes;
    text.remove_prefix(comma + 1);
  }
}

}  // namespace genie::bench
