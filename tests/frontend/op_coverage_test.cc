// PyTorch's operators on the device against CPU eager, from C++ alone: libtorch without Python lacks the meta kernels of a
// quarter of them. The arguments are made from each operator's schema (op_arguments.h) or stand in op_cases.txt. A call that
// eager accepts is repeated on the device: results, mutated operands, strides and aliases must be the same, numbers to the bit.
// op_coverage.txt freezes which operators were compared and are equal, and names the others with their reason.
//
// Runs on a node inside the process or, with GENIE_TEST_REMOTE=1, on a genie-node process.
// GENIE_TEST_SEED: other values (the forms stay). GENIE_OP=NAME: only this operator, with every call printed.
// GENIE_OP_COVERAGE_OUT=FILE: writes what was found, in the form of op_coverage.txt.
#include <ATen/ATen.h>
#include <ATen/core/enum_tag.h>
#include <signal.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <set>
#include <sstream>

#include "tests/frontend/one_session.h"
#include "tests/frontend/op_arguments.h"
#include "tests/frontend/op_case_file.h"
#include "tests/frontend/op_compare.h"

namespace genie::test {
namespace {

// Base names that must be equal, in-place variants not counted apart.
constexpr size_t kFewest = 770;

constexpr std::array kDtypes = {at::kFloat, at::kLong, at::kBool, at::kComplexFloat, at::kDouble, at::kBFloat16};

// Who dies inside libtorch says where.
char running[512];
void tell_where(int number) {
  (void)!::write(STDERR_FILENO, running, std::strlen(running));
  ::signal(number, SIG_DFL);
  ::raise(number);
}

bool contains_any(const std::string& name, std::initializer_list<const char*> parts) {
  for (const char* part : parts) {
    if (name.find(part) != std::string::npos) return true;
  }
  return false;
}

// Operators whose arguments are made up. Internal ones and gradients trust theirs, so that these are written by hand; layouts
// that are not strided, other devices' operators and files are not the device's.
bool is_made_up(const c10::OperatorHandle& op) {
  const auto& schema = op.schema();
  const std::string name = schema.operator_name().name.substr(std::strlen("aten::"));
  if (name[0] == '_' || name.find("backward") != std::string::npos) return false;
  if (contains_any(name,
                   {"sparse",         "nested",    "quantiz",       "fake_quant",    "qparams",      "mkldnn",
                    "cudnn",          "miopen",    "fbgemm",        "_csr",          "_csc",         "_bsr",
                    "_bsc",           "coalesce",  "sobol",         "from_file",     "cuda",         "lstm_cell_mps",
                    "pin_memory",     "is_pinned", "record_stream", "rename",        "refine_names", "align_",
                    "q_scale",        "q_zero",    "q_per",         "int_repr",      "thnn_",        "slow_conv",
                    "segment_reduce", "sspaddmm",  "hspmm",         "sym_constrain", "set_data",     "retain_grad",
                    "quantile_"})) {
    return false;
  }
  bool touches_tensors = false;
  for (const auto& argument : schema.arguments()) {
    const bool writes = argument.alias_info() != nullptr && argument.alias_info()->isWrite();
    touches_tensors = touches_tensors || writes;
  }
  for (const auto& result : schema.returns()) {
    const auto kind = result.type()->kind();
    touches_tensors = touches_tensors || kind == c10::TypeKind::TensorType || kind == c10::TypeKind::ListType;
  }
  return touches_tensors;
}

bool is_uninitialised(const std::string& name) {
  static const std::set<std::string> names = {"empty",      "empty_like",        "empty_permuted", "empty_strided",
                                              "new_empty",  "new_empty_strided", "resize_",        "resize",
                                              "resize_as_", "resize_as"};
  return names.contains(name);
}

// What became of one base name.
struct Tally {
  size_t compared = 0;
  Finding worst{Verdict::kEqual, {}};
};

class Coverage {
 public:
  Coverage() {
    const char* seed = std::getenv("GENIE_TEST_SEED");
    seed_ = seed != nullptr ? std::strtoull(seed, nullptr, 10) : 1;
    const char* only = std::getenv("GENIE_OP");
    only_ = only != nullptr ? only : "";
    std::printf("seed %llu (GENIE_TEST_SEED gives other values)\n", static_cast<unsigned long long>(seed_));
  }

  bool partial() const { return !only_.empty(); }
  const std::map<std::string, Tally>& found() const { return found_; }

  void run_made_up(const std::set<std::string>& by_hand_only) {
    for (const auto& name : c10::Dispatcher::singleton().getAllOpNames()) {
      if (!name.name.starts_with("aten::") || !wanted(base(name))) continue;
      if (by_hand_only.contains(base(name))) continue;
      const auto op = c10::Dispatcher::singleton().findSchema(name);
      if (op.has_value() && is_made_up(*op)) run_made_up(*op);
    }
  }

  void run_cases(const std::vector<OpCase>& cases) {
    for (const OpCase& call : cases) {
      if (!wanted(base(call.op.operator_name()))) continue;
      bool accepted = false;
      for (const at::ScalarType dtype : kDtypes) {
        try {
          Values values(seed_, dtype);
          accepted = run(call.op, make_arguments(call, values), call.line + " in " + c10::toString(dtype)) || accepted;
        } catch (const std::exception& error) {
          ADD_FAILURE() << error.what();
        }
      }
      EXPECT_TRUE(accepted) << "op_cases.txt: eager refuses " << call.line;
    }
  }

 private:
  static std::string base(const c10::OperatorName& name) { return name.name.substr(std::strlen("aten::")); }
  bool wanted(const std::string& name) const { return only_.empty() || only_ == name; }

  // Every plan with floats; the other dtypes with those that floats were accepted with.
  void run_made_up(const c10::OperatorHandle& op) {
    constexpr size_t kPlansPerDtype = 4;
    std::vector<std::pair<const Plan*, bool>> accepted;
    for (const Plan& plan : plans()) {
      for (const bool fill : {false, true}) {
        if (run_made_up(op, plan, fill, at::kFloat)) accepted.emplace_back(&plan, fill);
      }
    }
    for (const at::ScalarType dtype : kDtypes) {
      size_t equal = 0;
      if (dtype == at::kFloat) continue;
      for (const Plan& plan : plans()) {
        for (const bool fill : {false, true}) {
          const bool likely = accepted.empty() || std::ranges::find(accepted, std::pair{&plan, fill}) != accepted.end();
          if (likely && equal < kPlansPerDtype && run_made_up(op, plan, fill, dtype)) ++equal;
        }
      }
    }
  }

  bool run_made_up(const c10::OperatorHandle& op, const Plan& plan, bool fill, at::ScalarType dtype) {
    Values values(seed_, dtype);
    const auto arguments = make_arguments(op.schema(), plan, fill, values);
    if (!arguments.has_value()) return false;
    const auto& name = op.operator_name();
    return run(op, *arguments,
               name.name + "." + name.overload_name + " with " + plan.name + (fill ? ", filled" : "") + " in " +
                   c10::toString(dtype));
  }

  // Whether eager accepted it.
  bool run(const c10::OperatorHandle& op, const torch::jit::Stack& arguments, const std::string& call) {
    std::snprintf(running, sizeof(running), "died in %s\n", call.c_str());
    const std::string name = base(op.operator_name());
    Finding finding = compare_on(op, arguments, kRemote, is_uninitialised(name));
    if (partial()) {
      std::printf("%d %s %s\n", static_cast<int>(finding.verdict), call.c_str(), finding.text.c_str());
    }
    if (finding.verdict == Verdict::kRefused) return false;
    Tally& tally = found_[name];
    ++tally.compared;
    if (finding.verdict > tally.worst.verdict) tally.worst = {finding.verdict, call + ": " + finding.text};
    return true;
  }

  uint64_t seed_;
  std::string only_;
  std::map<std::string, Tally> found_;
};

const char* kind_of(Verdict verdict) {
  switch (verdict) {
    case Verdict::kClose: return "close";
    case Verdict::kLayout: return "layout";
    case Verdict::kDiffers: return "differs";
    default: return "equal";
  }
}

// name -> "equal", or the kind of its exception.
std::map<std::string, std::string> read_frozen(const std::string& path) {
  std::ifstream file(path);
  EXPECT_TRUE(file.is_open()) << path;
  std::map<std::string, std::string> out;
  for (std::string line; std::getline(file, line);) {
    if (line.empty() || line[0] == '#') continue;
    std::istringstream words(line);
    std::string name;
    std::string kind;
    std::string reason;
    words >> name >> kind >> reason;
    EXPECT_TRUE(kind.empty() || (!reason.empty() && kind.ends_with(':'))) << "name kind: reason, not " << line;
    out[name] = kind.empty() ? "equal" : kind.substr(0, kind.size() - 1);
  }
  return out;
}

// Names whose every call was equal, or close; add and add_ are one.
std::set<std::string> good_names(const std::map<std::string, Tally>& found) {
  std::set<std::string> out;
  for (const auto& [name, tally] : found) {
    if (tally.worst.verdict > Verdict::kClose) continue;
    const bool in_place = name.ends_with('_') && !name.ends_with("__");
    out.insert(in_place && found.contains(name.substr(0, name.size() - 1)) ? name.substr(0, name.size() - 1) : name);
  }
  return out;
}

// What is close is equal at times, and what nobody has written is anything.
bool is_as_frozen(const std::string& known, const std::string& found) {
  return known == found || known == "unwritten" || (known == "close" && found == "equal");
}

void write_found(const Coverage& coverage) {
  const char* path = std::getenv("GENIE_OP_COVERAGE_OUT");
  if (path == nullptr) return;
  std::ofstream file(path);
  for (const auto& [name, tally] : coverage.found()) {
    file << name;
    if (tally.worst.verdict != Verdict::kEqual) file << ' ' << kind_of(tally.worst.verdict) << ": " << tally.worst.text;
    file << '\n';
  }
}

TEST(OpCoverage, EqualsEager) {
  const at::NoGradGuard no_grad;
  for (const int number : {SIGSEGV, SIGFPE, SIGBUS, SIGABRT}) ::signal(number, tell_where);
  Coverage coverage;
  const OpCases cases = read_cases(GENIE_TEST_FOLDER "/op_cases.txt");
  coverage.run_cases(cases.calls);
  coverage.run_made_up(cases.by_hand_only);
  for (const int number : {SIGSEGV, SIGFPE, SIGBUS, SIGABRT}) ::signal(number, SIG_DFL);
  write_found(coverage);

  const auto frozen = read_frozen(GENIE_TEST_FOLDER "/op_coverage.txt");
  size_t calls = 0;
  for (const auto& [name, tally] : coverage.found()) {
    calls += tally.compared;
    const std::string found = kind_of(tally.worst.verdict);
    const auto known = frozen.find(name);
    if (known == frozen.end()) {
      EXPECT_EQ(found, "equal") << name << " is new and not equal: " << tally.worst.text;
      std::printf("op_coverage.txt does not name %s yet\n", name.c_str());
    } else if (!is_as_frozen(known->second, found)) {
      ADD_FAILURE() << "aten::" << name << " was " << known->second << " and is " << found << ": " << tally.worst.text;
    }
  }
  if (coverage.partial()) return;
  for (const auto& [name, kind] : frozen) {
    EXPECT_TRUE(coverage.found().contains(name)) << "aten::" << name << " was compared and no longer is";
  }
  const size_t names = good_names(coverage.found()).size();
  const Stats stats = genie::stats();
  std::printf("%zu operators are eager's (in-place variants not counted apart), of %zu names in %zu calls\n", names,
              coverage.found().size(), calls);
  std::printf("shapes by own functions %llu, by libtorch %llu, by the node %llu\n",
              static_cast<unsigned long long>(stats.shapes_own), static_cast<unsigned long long>(stats.shapes_meta),
              static_cast<unsigned long long>(stats.shapes_from_node));
  EXPECT_GE(names, kFewest);
  EXPECT_EQ(stats.client_fallbacks, 0U) << "an operator ran on the client";
}

}  // namespace
}  // namespace genie::test
