// What a program has of the device before it opens a session: operators answer as they do later, and kernels that the program
// registers itself stand. A program of its own: no session is open until its last tests.
#include <ATen/core/dispatch/Dispatcher.h>
#include <genie/genie.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/library.h>
#include <torch/torch.h>

#include <string>

namespace {

using c10::DispatchKey;
using testing::HasSubstr;

// Whose device no session serves: what is refused is refused without one.
const torch::Device kRemote("remote_accelerator:15");

template <class Call>
std::string refusal(Call call) {
  try {
    (void)call();
  } catch (const c10::NotImplementedError& refused) {
    return refused.what();
  }
  return "it was not refused";
}

torch::Tensor mine(const torch::Tensor& self) { return torch::full_like(self, 42); }

// The program's own, before any session.
TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) { library.impl("sinc", TORCH_FN(mine)); }

torch::Tensor twice(const torch::Tensor& x) { return x + x; }
// An operator that comes after the library.
TORCH_LIBRARY(before_session, library) {
  library.def("twice(Tensor x) -> Tensor");
  library.impl("twice", DispatchKey::CPU, TORCH_FN(twice));
  library.impl("twice", DispatchKey::Meta, TORCH_FN(twice));
  library.def("nowhere(Tensor x) -> Tensor");
}
torch::Tensor call(const char* name, const torch::Tensor& x) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<torch::Tensor(const torch::Tensor&)>().call(x);
}

TEST(BeforeSession, EveryOperatorCanBeCapturedCastAndCalledInACapture) {
  auto& dispatcher = c10::Dispatcher::singleton();
  size_t count = 0;
  for (const c10::OperatorName& name : dispatcher.getAllOpNames()) {
    const auto op = dispatcher.findSchema(name);
    if (!op.has_value()) continue;
    for (const DispatchKey key :
         {DispatchKey::PrivateUse1, DispatchKey::AutocastPrivateUse1, DispatchKey::DeferredInit})
      EXPECT_TRUE(op->hasComputedKernelForDispatchKey(key)) << name << " has nothing for " << key;
    ++count;
  }
  EXPECT_GT(count, 3000U);
  EXPECT_TRUE(dispatcher.findSchemaOrThrow("aten::mm", "").hasKernelForDispatchKey(DispatchKey::AutocastPrivateUse1));
}

TEST(BeforeSession, OtherLayoutsAreRefused) {
  const auto text = HasSubstr("only strided tensors live on remote_accelerator");
  const auto sparse = torch::eye(3).to_sparse();
  const auto quantized = torch::quantize_per_tensor(torch::ones({2, 3}), 0.1, 0, torch::kQInt8);
  EXPECT_THAT(refusal([&] { return torch::empty({2, 3}, torch::device(kRemote).layout(torch::kSparse)); }), text);
  EXPECT_THAT(refusal([&] { return torch::empty({2, 3}, torch::device(kRemote).layout(torch::kSparseCsr)); }), text);
  EXPECT_THAT(refusal([&] { return torch::zeros({2, 3}, torch::device(kRemote).layout(torch::kSparse)); }), text);
  EXPECT_THAT(refusal([&] {
                return torch::sparse_coo_tensor({2, 3}, torch::device(kRemote));
              }),
              HasSubstr("are not strided tensors"));
  EXPECT_THAT(refusal([&] { return torch::empty_like(sparse, torch::device(kRemote)); }), text);
  EXPECT_THAT(refusal([&] { return torch::empty({2, 3}, torch::device(kRemote).dtype(torch::kQInt8)); }), text);
  EXPECT_THAT(refusal([&] { return torch::empty_strided({2}, {1}, torch::device(kRemote).dtype(torch::kQInt8)); }),
              text);
  EXPECT_THAT(refusal([&] { return quantized.to(kRemote); }), text);
  EXPECT_THAT(refusal([&] { return torch::empty_like(quantized, torch::device(kRemote)); }), text);
}

// From here on with a session, which the kernels above came before.

TEST(WithASession, OtherLayoutsBesideARemoteOperandAreRefused) {
  const genie::Session session = genie::Session::connect("embedded:");
  const auto text = HasSubstr("only strided tensors live on remote_accelerator");
  const auto x = torch::ones({3, 3}).to(session.device());
  const auto sparse = torch::eye(3).to_sparse();
  EXPECT_THAT(refusal([&] { return x + sparse; }), text);
  EXPECT_THAT(refusal([&] { return torch::mm(sparse, x); }), text);
  EXPECT_THAT(refusal([&] { return sparse.to(session.device()); }), text);
  EXPECT_THAT(refusal([&] { return torch::mm(torch::eye(3).to_sparse_csr(), x); }), text);
  EXPECT_THAT(refusal([&] { return torch::_nested_tensor_from_tensor_list({torch::ones({2})}).to(session.device()); }),
              text);
}

TEST(WithASession, AProgramsOwnKernelStands) {
  const genie::Session session = genie::Session::connect("embedded:");
  const auto x = torch::linspace(-1, 1, 5);
  EXPECT_TRUE(torch::equal(torch::sinc(x.to(session.device())).cpu(), torch::full({5}, 42.0F)));
  {
    torch::Library later(torch::Library::IMPL, "aten", DispatchKey::PrivateUse1, __FILE__, __LINE__);
    later.impl("erf", TORCH_FN(mine));
    EXPECT_TRUE(torch::equal(torch::erf(x.to(session.device())).cpu(), torch::full({5}, 42.0F)));
  }
  EXPECT_TRUE(torch::equal(torch::erf(x.to(session.device())).cpu(), torch::erf(x))) << "ours is there again";
}

TEST(WithASession, OperatorsThatCameLaterAreCaptured) {
  const genie::Session session = genie::Session::connect("embedded:");
  const auto x = torch::linspace(-1, 1, 5);
  const auto y = call("before_session::twice", x.to(session.device()));
  EXPECT_FALSE(genie::is_materialized(y));
  EXPECT_TRUE(torch::equal(y.cpu(), x + x));
  try {
    call("before_session::nowhere", x.to(session.device())).cpu();
    FAIL() << "an operator without a kernel ran";
  } catch (const std::exception& error) {
    EXPECT_THAT(error.what(), HasSubstr("before_session::nowhere"));
  }
}

}  // namespace
