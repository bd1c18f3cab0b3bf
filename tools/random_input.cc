#include <algorithm>
#include <array>
#include <charconv>
#include <string_view>
#include <utility>

#include "tools/run_model.h"

namespace genie::tools {
namespace {

constexpr std::array<std::string_view, 8> kDtypes = {"float32", "float64", "float16", "bfloat16",
                                                     "int64",   "int32",   "uint8",   "bool"};
// As PyTorch calls them, too.
constexpr std::array<std::pair<std::string_view, std::string_view>, 5> kAliases = {
    {{"float", "float32"}, {"double", "float64"}, {"half", "float16"}, {"long", "int64"}, {"int", "int32"}}};
// Beyond this a mistyped shape would only end in an allocation failure.
constexpr int64_t kMaxElements = int64_t{1} << 40;

std::string known_dtypes() {
  std::string out;
  for (std::string_view name : kDtypes) out.append(out.empty() ? "" : ", ").append(name);
  return out;
}

bool parse_sizes(std::string_view text, std::vector<int64_t>& sizes) {
  int64_t elements = 1;
  while (true) {
    const size_t end = std::min(text.find('x'), text.size());
    int64_t size = 0;
    const auto [stop, error] = std::from_chars(text.data(), text.data() + end, size);
    if (end == 0 || error != std::errc() || stop != text.data() + end || size < 0) return false;
    if (size > 0 && elements > kMaxElements / size) return false;
    elements *= std::max<int64_t>(size, 1);
    sizes.push_back(size);
    if (end == text.size()) return true;
    text.remove_prefix(end + 1);
  }
}

}  // namespace

std::optional<RandomInput> parse_random_input(const std::string& text, std::string& why) {
  RandomInput input;
  std::string_view shape = text;
  if (const size_t colon = shape.find(':'); colon != std::string_view::npos) {
    input.dtype = std::string(shape.substr(colon + 1));
    shape = shape.substr(0, colon);
  }
  for (const auto& [alias, name] : kAliases) {
    if (input.dtype == alias) input.dtype = name;
  }
  if (std::find(kDtypes.begin(), kDtypes.end(), input.dtype) == kDtypes.end()) {
    why = "\"" + input.dtype + "\" is not a dtype that can be drawn; known: " + known_dtypes();
    return std::nullopt;
  }
  if (shape != "scalar" && !parse_sizes(shape, input.sizes)) {
    why = "\"" + text + "\" is not a shape: write sizes with an x between them, as in 1x3x224x224 or 1x16:int64";
    return std::nullopt;
  }
  return input;
}

}  // namespace genie::tools
