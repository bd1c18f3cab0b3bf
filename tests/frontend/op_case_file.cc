#include "tests/frontend/op_case_file.h"

#include <ATen/ATen.h>

#include <fstream>
#include <map>
#include <sstream>
#include <stdexcept>

namespace genie::test {
namespace {

using c10::TypeKind;

[[noreturn]] void fail(const std::string& why, const std::string& where) {
  throw std::invalid_argument("op_cases.txt: " + why + ": " + where);
}

// At `separator`, but not inside brackets.
std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::string part;
  int depth = 0;
  for (const char c : text) {
    depth += c == '[' || c == '(' || c == '{' ? 1 : c == ']' || c == ')' || c == '}' ? -1 : 0;
    if (c == separator && depth == 0) {
      if (!part.empty()) parts.push_back(std::exchange(part, {}));
    } else {
      part += c;
    }
  }
  if (!part.empty()) parts.push_back(part);
  return parts;
}

// The items of "[a,b]", "(a,b)" or "{a,b}".
std::vector<std::string> items(const std::string& text) {
  if (text.size() < 2) fail("a list is expected", text);
  return split(text.substr(1, text.size() - 2), ',');
}

int64_t integer(const std::string& text) {
  size_t used = 0;
  int64_t value = 0;
  try {
    value = std::stoll(text, &used);
  } catch (const std::logic_error&) {
    used = 0;
  }
  if (used != text.size() || text.empty()) fail("an integer is expected", text);
  return value;
}

double floating(const std::string& text) {
  size_t used = 0;
  double value = 0;
  try {
    value = std::stod(text, &used);
  } catch (const std::logic_error&) {
    used = 0;
  }
  if (used != text.size() || text.empty()) fail("a number is expected", text);
  return value;
}

std::vector<int64_t> integers(const std::string& text) {
  std::vector<int64_t> out;
  for (const std::string& item : items(text)) out.push_back(integer(item));
  return out;
}

at::ScalarType dtype(const std::string& name) {
  static const std::map<std::string, at::ScalarType> types = {
      {"float32", at::kFloat},     {"float64", at::kDouble},
      {"int64", at::kLong},        {"int32", at::kInt},
      {"uint8", at::kByte},        {"bool", at::kBool},
      {"bfloat16", at::kBFloat16}, {"float16", at::kHalf},
      {"int8", at::kChar},         {"complex64", at::kComplexFloat},
      {"int16", at::kShort}};
  const auto found = types.find(name);
  if (found == types.end()) fail("no such dtype", name);
  return found->second;
}

// f[2,3]:int32.t and so on; see op_cases.txt.
at::Tensor tensor(const std::string& text, Values& values) {
  if (text == "none") return {};
  const size_t begin = text.find_first_of("[{");
  const size_t end = text.find_first_of("]}");
  if (begin == std::string::npos || end == std::string::npos) fail("a tensor is expected", text);
  const std::string kind = text.substr(0, begin);
  const std::string inside = text.substr(begin, end - begin + 1);
  std::string rest = text.substr(end + 1);
  at::Tensor out;
  if (text[begin] == '{') {
    std::vector<double> given;
    for (const std::string& item : items(inside)) given.push_back(floating(item));
    out = at::tensor(given, at::kDouble).to(kind == "i" ? at::kLong : kind == "b" ? at::kBool : values.dtype());
  } else if (kind == "i") {
    if (rest.empty() || rest[0] != '<') fail("an index tensor needs a bound", text);
    size_t used = 0;
    const int64_t below = std::stoll(rest.substr(1), &used);
    rest = rest.substr(1 + used);
    out = values.index(integers(inside), below);
  } else if (kind == "f" || kind == "u") {
    out = values.real(integers(inside), kind == "u");
  } else if (kind == "b") {
    out = values.mask(integers(inside));
  } else if (kind == "spd") {
    out = values.positive_definite(integers(inside));
  } else if (kind == "sorted") {
    out = values.ascending(integers(inside));
  } else {
    fail("no such tensor", text);
  }
  if (!rest.empty() && rest[0] == ':') {
    const size_t stop = rest.find('.');
    out = out.to(dtype(rest.substr(1, stop == std::string::npos ? stop : stop - 1)));
    rest = stop == std::string::npos ? "" : rest.substr(stop);
  }
  if (rest == ".t") return out.mT();
  if (rest == ".cl") return out.contiguous(at::MemoryFormat::ChannelsLast);
  if (!rest.empty()) fail("what is this", text);
  return out;
}

c10::IValue value(const std::string& text, const c10::Type& type, const c10::Type& real, Values& values);

c10::IValue list(const std::string& text, const c10::Type& element, Values& values) {
  switch (element.kind()) {
    case TypeKind::TensorType: {
      std::vector<at::Tensor> out;
      for (const std::string& item : items(text)) out.push_back(tensor(item, values));
      return out;
    }
    case TypeKind::OptionalType: {
      c10::List<std::optional<at::Tensor>> out;
      for (const std::string& item : items(text)) {
        out.push_back(item == "none" ? std::nullopt : std::optional(tensor(item, values)));
      }
      return out;
    }
    case TypeKind::IntType: return integers(text);
    case TypeKind::FloatType: {
      std::vector<double> out;
      for (const std::string& item : items(text)) out.push_back(floating(item));
      return out;
    }
    case TypeKind::BoolType: {
      std::vector<bool> out;
      for (const std::string& item : items(text)) out.push_back(item == "true");
      return out;
    }
    case TypeKind::NumberType: {
      c10::List<c10::Scalar> out;
      for (const std::string& item : items(text)) out.push_back(floating(item));
      return c10::IValue(out);
    }
    default: fail("lists of this type cannot be written", text);
  }
}

c10::Scalar number(const std::string& text) {
  if (text == "true" || text == "false") return text == "true";
  if (text.find_first_of(".e") == std::string::npos) return integer(text);
  return floating(text);
}

c10::IValue value(const std::string& text, const c10::Type& type, const c10::Type& real, Values& values) {
  switch (type.kind()) {
    case TypeKind::OptionalType: {
      if (text == "none") return {};
      const auto& real_element =
          real.kind() == TypeKind::OptionalType ? *real.expectRef<c10::OptionalType>().getElementType() : real;
      return value(text, *type.expectRef<c10::OptionalType>().getElementType(), real_element, values);
    }
    case TypeKind::TensorType: return tensor(text, values);
    case TypeKind::IntType:
      if (real.kind() == TypeKind::ScalarTypeType) return static_cast<int64_t>(dtype(text));
      return integer(text);
    case TypeKind::FloatType: return floating(text);
    case TypeKind::NumberType: return number(text);
    case TypeKind::BoolType:
      if (text != "true" && text != "false") fail("true or false is expected", text);
      return text == "true";
    case TypeKind::StringType: return text;
    case TypeKind::ListType: return list(text, *type.expectRef<c10::ListType>().getElementType(), values);
    default: fail("arguments of this type cannot be written", text);
  }
}

c10::OperatorHandle find_op(const std::string& word, const std::string& line) {
  const size_t dot = word.find('.');
  const auto found = c10::Dispatcher::singleton().findSchema(
      {"aten::" + word.substr(0, dot), dot == std::string::npos ? "" : word.substr(dot + 1)});
  if (!found.has_value()) fail("no such operator", line);
  return *found;
}

}  // namespace

OpCases read_cases(const std::string& path) {
  std::ifstream file(path);
  if (!file) fail("cannot be read", path);
  OpCases out;
  for (std::string line; std::getline(file, line);) {
    if (line.empty() || line[0] == '#') continue;
    std::vector<std::string> words = split(line, ' ');
    const std::string first = words[0];
    words.erase(words.begin());
    if (first == "by-hand-only") {
      out.by_hand_only.insert(words.begin(), words.end());
      continue;
    }
    const c10::OperatorHandle op = find_op(first, line);
    out.calls.push_back({op, std::move(words), line});
  }
  return out;
}

torch::jit::Stack make_arguments(const OpCase& call, Values& values) {
  std::map<std::string, std::string> named;
  std::vector<std::string> positional;
  for (const std::string& word : call.words) {
    const size_t equals = word.find('=');
    if (equals == std::string::npos) {
      positional.push_back(word);
    } else {
      named[word.substr(0, equals)] = word.substr(equals + 1);
    }
  }
  torch::jit::Stack stack;
  for (const c10::Argument& argument : call.op.schema().arguments()) {
    const auto by_name = named.find(argument.name());
    if (stack.size() < positional.size()) {
      stack.push_back(value(positional[stack.size()], *argument.type(), *argument.real_type(), values));
    } else if (by_name != named.end()) {
      stack.push_back(value(by_name->second, *argument.type(), *argument.real_type(), values));
      named.erase(by_name);
    } else if (argument.name() == "device") {
      stack.emplace_back(c10::Device(at::kCPU));
    } else if (argument.default_value().has_value()) {
      stack.push_back(*argument.default_value());
    } else if (argument.type()->kind() == TypeKind::OptionalType) {
      stack.emplace_back();
    } else {
      fail("argument " + argument.name() + " is missing", call.line);
    }
  }
  if (!named.empty()) fail("no argument is called " + named.begin()->first, call.line);
  return stack;
}

}  // namespace genie::test
