#include "tests/frontend/op_compare.h"

#include <ATen/ATen.h>
#include <ATen/core/enum_tag.h>

#include <algorithm>
#include <cstring>
#include <sstream>

#include "tests/frontend/op_arguments.h"

namespace genie::test {
namespace {

using Tensors = std::vector<at::Tensor>;

Tensors tensors_of(const torch::jit::Stack& values) {
  Tensors out;
  for (const c10::IValue& value : values) {
    if (value.isTensor()) out.push_back(value.toTensor());
    if (value.isTensorList()) {
      for (const at::Tensor& tensor : value.toTensorVector()) out.push_back(tensor);
    }
    if (value.isOptionalTensorList()) {
      for (const auto& tensor : value.toOptionalTensorVector()) out.push_back(tensor.value_or(at::Tensor()));
    }
  }
  return out;
}

// Real numbers, one after the other.
at::Tensor plain(const at::Tensor& tensor) {
  const at::Tensor value = tensor.resolve_conj().resolve_neg();
  return (value.is_complex() ? at::view_as_real(value) : value).contiguous();
}

bool same_bytes(const at::Tensor& a, const at::Tensor& b) {
  return a.nbytes() == 0 || std::memcmp(a.const_data_ptr(), b.const_data_ptr(), a.nbytes()) == 0;
}

// Bit for bit; one NaN is as good as another.
bool same_bits(const at::Tensor& a, const at::Tensor& b) {
  if (same_bytes(a, b)) return true;
  if (!a.is_floating_point()) return false;
  const at::Tensor nan = a.isnan();
  return same_bytes(nan, b.isnan()) && same_bytes(a.masked_fill(nan, 0), b.masked_fill(nan, 0));
}

bool nearly_same(const at::Tensor& a, const at::Tensor& b) {
  if (!a.is_floating_point()) return false;
  double rtol = 1.3e-6;
  double atol = 1e-5;
  if (a.scalar_type() == at::kDouble) rtol = atol = 1e-7;
  if (a.scalar_type() == at::kBFloat16) rtol = 1.6e-2;
  if (a.scalar_type() == at::kHalf) rtol = 1e-3;
  return at::allclose(b.to(at::kDouble), a.to(at::kDouble), rtol, atol, true);
}

// Strides where they mean something.
bool same_strides(const at::Tensor& a, const at::Tensor& b) {
  if (a.numel() == 0) return true;
  for (int64_t i = 0; i < a.dim(); ++i) {
    if (a.size(i) != 1 && a.stride(i) != b.stride(i)) return false;
  }
  return true;
}

std::string form(const at::Tensor& tensor) {
  std::ostringstream text;
  if (!tensor.defined()) return "undefined";
  text << tensor.scalar_type() << tensor.sizes();
  return text.str();
}

std::string shortened(const at::Tensor& tensor) {
  std::ostringstream text;
  text << tensor.flatten().slice(0, 0, 6);
  std::string line = text.str();
  std::replace(line.begin(), line.end(), '\n', ' ');
  return line;
}

void worsen(Finding& finding, Verdict verdict, const std::string& text) {
  if (verdict > finding.verdict) finding = {verdict, text};
}

void compare_tensor(const at::Tensor& expected, const at::Tensor& got, const std::string& what, bool form_only,
                    Finding& finding) {
  if (!expected.defined() && !got.defined()) return;
  const auto differs = [&](const std::string& mine, const std::string& theirs) {
    worsen(finding, Verdict::kDiffers, what + ": " + mine + " on the CPU, " + theirs + " on the device");
  };
  if (form(expected) != form(got)) return differs(form(expected), form(got));
  if (expected.is_conj() != got.is_conj() || expected.is_neg() != got.is_neg()) {
    worsen(finding, Verdict::kLayout, what + ": another lazy conjugation or negation");
  }
  if (!same_strides(expected, got)) {
    std::ostringstream text;
    text << what << ": strides " << expected.strides() << " on the CPU, " << got.strides() << " on the device for "
         << form(expected);
    worsen(finding, Verdict::kLayout, text.str());
  }
  if (form_only) return;
  const at::Tensor mine = plain(expected);
  const at::Tensor theirs = plain(got.cpu());
  if (same_bits(mine, theirs)) return;
  if (nearly_same(mine, theirs)) return worsen(finding, Verdict::kClose, what + " is only close");
  differs(shortened(mine), shortened(theirs));
}

// Which operand or earlier result each result shares its memory with, whether it is that very tensor, and where it begins.
std::string aliases(const torch::jit::Stack& arguments, const torch::jit::Stack& results) {
  Tensors known = tensors_of(arguments);
  std::ostringstream text;
  for (const at::Tensor& result : tensors_of(results)) {
    const auto found = std::find_if(known.begin(), known.end(), [&](const at::Tensor& other) {
      return result.defined() && other.defined() && result.is_alias_of(other);
    });
    if (found != known.end()) {
      text << " " << found - known.begin() << (found->is_same(result) ? "=" : "~") << result.storage_offset();
    } else {
      text << " new";
    }
    known.push_back(result);
  }
  return text.str();
}

std::string plain_text(const c10::IValue& value) {
  std::ostringstream text;
  text << value;
  return text.str();
}

void compare_results(const torch::jit::Stack& expected, const torch::jit::Stack& got, bool form_only,
                     Finding& finding) {
  const Tensors mine = tensors_of(expected);
  const Tensors theirs = tensors_of(got);
  if (mine.size() != theirs.size() || expected.size() != got.size()) {
    return worsen(finding, Verdict::kDiffers, "another number of results");
  }
  for (size_t i = 0; i < mine.size(); ++i) {
    compare_tensor(mine[i], theirs[i], "result " + std::to_string(i), form_only, finding);
  }
  for (size_t i = 0; i < expected.size(); ++i) {
    if (expected[i].isTensor() || expected[i].isTensorList()) continue;
    if (plain_text(expected[i]) != plain_text(got[i])) {
      worsen(finding, Verdict::kDiffers, "result " + std::to_string(i) + ": " + plain_text(got[i]));
    }
  }
}

// PyTorch wants these on the CPU whatever the device.
void stay_on_cpu(const c10::FunctionSchema& schema, const torch::jit::Stack& here, torch::jit::Stack& there) {
  for (size_t i = 0; i < here.size(); ++i) {
    const std::string& name = schema.arguments()[i].name();
    const bool stays = name == "tensor_indices_or_sections" || (name == "high" && here[i].isTensor()) ||
                       (name == "lengths" && schema.name() == "aten::_pack_padded_sequence");
    if (stays) there[i] = here[i].toTensor().clone();
  }
}

std::string first_line(const char* text) {
  const std::string whole = text;
  return whole.substr(0, std::min(whole.find('\n'), size_t{400}));
}

}  // namespace

Finding compare_on(const c10::OperatorHandle& op, const torch::jit::Stack& arguments, c10::Device device,
                   bool form_only) {
  constexpr uint64_t kRandomSeed = 5;
  const bool random = op.hasTag(at::Tag::nondeterministic_seeded);
  torch::jit::Stack here = replica(arguments, at::kCPU);
  torch::jit::Stack results = here;
  at::Tensor next;  // what the generator gives afterwards
  try {
    at::manual_seed(kRandomSeed);
    op.callBoxed(results);
    if (random) next = at::rand({4});
  } catch (const std::exception&) {
    return {};
  }
  Finding finding{Verdict::kEqual, {}};
  try {
    torch::jit::Stack there = replica(arguments, device);
    stay_on_cpu(op.schema(), here, there);
    torch::jit::Stack got = there;
    at::manual_seed(kRandomSeed);
    op.callBoxed(got);
    if (random && !at::equal(next, at::rand({4}, at::TensorOptions(device)).cpu())) {
      worsen(finding, Verdict::kDiffers, "the generator moved otherwise");
    }
    if (const auto mine = aliases(here, results), theirs = aliases(there, got); mine != theirs) {
      worsen(finding, Verdict::kDiffers, "shares memory as" + mine + " on the CPU, as" + theirs + " on the device");
    }
    compare_results(results, got, form_only, finding);
    const Tensors mine = tensors_of(here);
    const Tensors theirs = tensors_of(there);
    for (size_t i = 0; i < mine.size(); ++i) {
      compare_tensor(mine[i], theirs[i], "operand " + std::to_string(i), form_only, finding);
    }
  } catch (const std::exception& error) {
    return {Verdict::kDiffers, "the device refuses: " + first_line(error.what())};
  }
  return finding;
}

}  // namespace genie::test
