// Every form a strided tensor can have, equal to CPU eager: dtypes, numbers, 0-dim and empty tensors, huge strides, lazy
// conjugation and negation, memory formats. And what is not a strided tensor of this device is refused by name.
#include <torch/torch.h>

#include <functional>
#include <limits>

#include "tests/frontend/one_session.h"

namespace {

using genie::test::kRemote;
using torch::Tensor;

::testing::AssertionResult same(const Tensor& remote, const Tensor& local) {
  if (remote.sizes() != local.sizes() || remote.scalar_type() != local.scalar_type()) {
    return ::testing::AssertionFailure() << remote.toString() << remote.sizes() << " is not " << local.toString()
                                         << local.sizes();
  }
  if (remote.strides() != local.strides()) {
    return ::testing::AssertionFailure() << "strides " << remote.strides() << ", not " << local.strides();
  }
  if (!torch::equal(remote.cpu(), local)) return ::testing::AssertionFailure() << remote.cpu() << " is not " << local;
  return ::testing::AssertionSuccess();
}

// What `refused` says, or nothing when it says nothing.
std::string error_of(const std::function<void()>& refused) {
  try {
    refused();
  } catch (const std::exception& error) {
    const std::string text = error.what();
    return text.substr(0, text.find("\nException raised"));
  }
  return "";
}

// The error names the operator and the way out.
void expect_refused(const std::string& op, const std::string& way_out, const std::function<void()>& refused) {
  const std::string text = error_of(refused);
  EXPECT_NE(text.find(op), std::string::npos) << op << " is not named: " << text;
  EXPECT_NE(text.find(way_out), std::string::npos) << "no way out of " << op << ": " << text;
}

TEST(Forms, EveryDtypeThereAndBack) {
  for (const auto dtype :
       {torch::kBool, torch::kByte, torch::kChar, torch::kShort, torch::kInt, torch::kLong, torch::kUInt16,
        torch::kUInt32, torch::kUInt64, torch::kHalf, torch::kBFloat16, torch::kFloat, torch::kDouble,
        torch::kComplexHalf, torch::kComplexFloat, torch::kComplexDouble, torch::kFloat8_e4m3fn, torch::kFloat8_e5m2}) {
    const Tensor local = torch::arange(12).view({3, 4}).to(dtype);
    const Tensor remote = local.to(kRemote);
    // float8 has no equal() on the CPU: its bytes have.
    const auto bytes = [](const Tensor& t) { return t.contiguous().view(torch::kByte); };
    EXPECT_EQ(remote.scalar_type(), dtype);
    EXPECT_TRUE(torch::equal(bytes(remote.cpu()), bytes(local))) << dtype;
    EXPECT_TRUE(torch::equal(bytes(remote.t().cpu()), bytes(local.t()))) << dtype;
    EXPECT_TRUE(torch::equal(remote.to(torch::kFloat).cpu(), local.to(torch::kFloat))) << dtype;
    EXPECT_TRUE(torch::equal(bytes(torch::zeros({3}, torch::TensorOptions(kRemote).dtype(dtype)).cpu()),
                             bytes(torch::zeros({3}, dtype))))
        << dtype;
  }
}

TEST(Forms, NumbersKeepTheirValueAndType) {
  const Tensor whole = torch::arange(4).to(kRemote);
  const Tensor real = torch::ones({2}, kRemote);
  EXPECT_EQ((whole + 1).scalar_type(), torch::kLong);
  EXPECT_EQ((whole + 1.5).scalar_type(), torch::kFloat);
  EXPECT_EQ((whole == 2).scalar_type(), torch::kBool);
  EXPECT_EQ((real * c10::complex<double>(0, 1)).scalar_type(), torch::kComplexFloat);
  EXPECT_EQ((whole + std::numeric_limits<int64_t>::max() - 3).cpu()[3].item<int64_t>(),
            std::numeric_limits<int64_t>::max());
  EXPECT_EQ((real.to(torch::kDouble) * 1e-300).cpu()[0].item<double>(), 1e-300);
  EXPECT_TRUE(std::isnan((real * std::numeric_limits<double>::quiet_NaN())[0].item<float>()));
  EXPECT_EQ((real / 0)[0].item<float>(), std::numeric_limits<float>::infinity());
  EXPECT_EQ(torch::scalar_tensor(7, kRemote).item<int>(), 7);
  EXPECT_TRUE(torch::full({}, true, kRemote).item<bool>());
  EXPECT_EQ(torch::full({}, c10::complex<double>(1, -2), torch::TensorOptions(kRemote).dtype(torch::kComplexDouble))
                .item<c10::complex<double>>(),
            (c10::complex<double>(1, -2)));
}

TEST(Forms, TensorsWithoutDimensions) {
  const Tensor local = torch::tensor(2.5F);
  const Tensor remote = local.to(kRemote);
  const Tensor row = torch::randn({3});
  EXPECT_TRUE(same(remote + remote, local + local));
  EXPECT_TRUE(same(row.to(kRemote) * remote, row * local));
  EXPECT_TRUE(same(row.to(kRemote) * local, row * local)) << "a number on the CPU mixes";
  EXPECT_TRUE(same(local * row.to(kRemote), local * row));
  EXPECT_TRUE(same(remote.sum(), local.sum()));
  EXPECT_TRUE(same(remote.unsqueeze(0), local.unsqueeze(0)));
  EXPECT_TRUE(same(remote.expand({2, 3}).contiguous(), local.expand({2, 3}).contiguous()));
  EXPECT_TRUE(same(std::get<0>(remote.sort()), local));
  EXPECT_TRUE(same(torch::stack({remote, remote}), torch::stack({local, local})));
  EXPECT_TRUE(same(remote.softmax(0), local.softmax(0)));
  Tensor into = row.to(kRemote);
  into[1] = remote;
  EXPECT_EQ(into[1].item<float>(), 2.5F);
  EXPECT_FALSE(error_of([&] { (void)row.to(kRemote).item(); }).empty()) << "three numbers are not one";
}

TEST(Forms, EmptyTensors) {
  const Tensor local = torch::empty({0, 3});
  const Tensor remote = torch::empty({0, 3}, kRemote);
  EXPECT_TRUE(same(remote + 1, local + 1));
  EXPECT_TRUE(same(remote.sum(0), local.sum(0)));
  EXPECT_TRUE(same(remote.sum(1), local.sum(1)));
  EXPECT_TRUE(same(remote.prod(), local.prod()));
  EXPECT_TRUE(same(torch::cat({remote, torch::ones({2, 3}, kRemote)}), torch::ones({2, 3})));
  EXPECT_TRUE(same(remote.t().mm(remote), local.t().mm(local))) << "a sum over nothing is zero";
  EXPECT_TRUE(same(remote.mm(torch::ones({3, 4}, kRemote)), local.mm(torch::ones({3, 4}))));
  EXPECT_TRUE(same(remote.nonzero(), local.nonzero()));
  EXPECT_TRUE(same(remote.to(torch::kLong), local.to(torch::kLong)));
  EXPECT_TRUE(same(remote.view({3, 0}), local.view({3, 0})));
  EXPECT_TRUE(same(torch::ones({4, 3}, kRemote).slice(0, 2, 2), torch::ones({4, 3}).slice(0, 2, 2)));
  EXPECT_TRUE(same(torch::conv2d(torch::empty({0, 3, 8, 8}, kRemote), torch::ones({4, 3, 3, 3}, kRemote)),
                   torch::conv2d(torch::empty({0, 3, 8, 8}), torch::ones({4, 3, 3, 3}))));
  // As a mixture of experts does for an expert that no token chose.
  const Tensor nobody = torch::empty({0}, torch::kLong);
  EXPECT_TRUE(same(torch::zeros({4, 3}, kRemote).index_add(0, nobody.to(kRemote), remote), torch::zeros({4, 3})));
  EXPECT_TRUE(same(torch::zeros({4, 3}, kRemote).index_add_(0, nobody.to(kRemote), remote), torch::zeros({4, 3})));
  EXPECT_TRUE(same(torch::ones({4, 3}, kRemote).index_select(0, nobody.to(kRemote)), local));
  EXPECT_NE(error_of([&] { (void)remote.max().cpu(); }), "");
  EXPECT_NE(error_of([&] { (void)local.max(); }), "");
}

TEST(Forms, HugeStrides) {
  constexpr int64_t kFar = int64_t{1} << 20;
  const Tensor local = torch::randn({2 * kFar + 4});
  const Tensor remote = local.to(kRemote);
  const auto sparse_grid = [](const Tensor& t) { return t.as_strided({2, 2, 3}, {kFar, kFar / 2, 1}, 1); };
  EXPECT_EQ(sparse_grid(remote).strides(), sparse_grid(local).strides());
  EXPECT_TRUE(torch::equal(sparse_grid(remote).cpu(), sparse_grid(local)));
  EXPECT_TRUE(same(sparse_grid(remote) * 2, sparse_grid(local) * 2));
  sparse_grid(remote).mul_(3);
  sparse_grid(local).mul_(3);
  EXPECT_TRUE(torch::equal(remote.cpu(), local));
  // Strides of dimensions of size 1 say nothing and may be anything.
  const Tensor odd = torch::empty_strided({1, 2}, {int64_t{1} << 40, 1}, torch::TensorOptions(kRemote)).fill_(4);
  EXPECT_TRUE(torch::equal((odd + 1).cpu(), torch::full({1, 2}, 5.0F)));
  // A dimension that repeats one number costs nothing, however long it is.
  const Tensor endless = torch::ones({1}, kRemote).expand({int64_t{1} << 40});
  EXPECT_EQ(endless.numel(), int64_t{1} << 40);
  EXPECT_EQ(endless.slice(0, 7, 10).sum().item<float>(), 3.0F);
}

TEST(Forms, LazyConjugationAndNegation) {
  const Tensor local = torch::randn({3, 4}, torch::kComplexFloat);
  const Tensor remote = local.to(kRemote);
  EXPECT_TRUE(remote.conj().is_conj());
  EXPECT_TRUE(torch::equal(remote.conj().cpu(), local.conj()));
  EXPECT_TRUE(torch::equal((remote.conj() * remote).cpu(), local.conj() * local));
  EXPECT_TRUE(torch::equal(remote.mH().mm(remote).cpu(), local.mH().mm(local)));
  EXPECT_TRUE(torch::equal(remote.conj().resolve_conj().cpu(), local.conj()));
  const Tensor negative = torch::imag(remote.conj());
  EXPECT_TRUE(negative.is_neg());
  EXPECT_TRUE(torch::equal(negative.cpu(), torch::imag(local.conj())));
  EXPECT_TRUE(torch::equal((negative + 1).cpu(), torch::imag(local.conj()) + 1));
  // Written through the view, read in the base.
  const auto write = [](Tensor base) {
    torch::imag(base.conj()).select(0, 1).fill_(5);
    base.conj().select(1, 2).mul_(c10::complex<float>(0, 2));
    return base;
  };
  EXPECT_TRUE(torch::equal(write(remote).cpu(), write(local)));
  EXPECT_TRUE(torch::equal(torch::view_as_real(remote).cpu(), torch::view_as_real(local)));
}

TEST(Forms, NegativeSteps) {
  const Tensor local = torch::arange(24, torch::kFloat).view({2, 3, 4});
  const Tensor remote = local.to(kRemote);
  EXPECT_TRUE(same(remote.flip({0, 2}), local.flip({0, 2})));
  EXPECT_TRUE(same(remote.transpose(0, 2).flip({1}), local.transpose(0, 2).flip({1})));
  EXPECT_TRUE(same(remote.fliplr(), local.fliplr()));
  EXPECT_TRUE(same(remote.roll({-1, -2}, {0, 2}), local.roll({-1, -2}, {0, 2})));
  EXPECT_TRUE(same(remote.rot90(-1, {1, 2}), local.rot90(-1, {1, 2})));
  EXPECT_TRUE(same(remote.index({-1, torch::indexing::Slice(-2)}), local.index({-1, torch::indexing::Slice(-2)})));
  EXPECT_TRUE(same(torch::arange(5, 0, -2, kRemote), torch::arange(5, 0, -2)));
  for (const Tensor& tensor : {remote, local}) {
    EXPECT_NE(error_of([&] { (void)tensor.slice(0, 2, 0, -1); }).find("positive"), std::string::npos);
    EXPECT_NE(error_of([&] { (void)tensor.as_strided({2}, {-1}, 3); }).find("egative"), std::string::npos);
  }
}

TEST(Forms, MemoryFormatsAreKept) {
  torch::manual_seed(4);
  const auto last = torch::MemoryFormat::ChannelsLast;
  const Tensor local = torch::randn({2, 4, 6, 6}).contiguous(last);
  const Tensor weight = torch::randn({4, 4, 3, 3}).contiguous(last);
  const std::vector<std::pair<const char*, std::function<Tensor(Tensor, Tensor)>>> programs = {
      {"conv2d", [](Tensor x, Tensor w) { return torch::conv2d(x, w, {}, 1, 1); }},
      {"relu", [](Tensor x, Tensor) { return x.relu(); }},
      {"add", [](Tensor x, Tensor) { return x + x; }},
      {"add a row", [](Tensor x, Tensor) { return x + x.select(0, 0); }},
      {"max_pool2d", [](Tensor x, Tensor) { return torch::max_pool2d(x, 2); }},
      {"avg_pool2d", [](Tensor x, Tensor) { return torch::avg_pool2d(x, 2); }},
      {"upsample",
       [](Tensor x, Tensor) {
         return torch::upsample_nearest2d(x, torch::IntArrayRef({12, 12}));
       }},
      {"batch_norm",
       [](Tensor x, Tensor w) {
         return torch::batch_norm(x, w.sum({1, 2, 3}), {}, {}, {}, true, 0.1, 1e-5, false);
       }},
      {"group_norm", [](Tensor x, Tensor) { return torch::group_norm(x, 2); }},
      {"replication_pad2d",
       [](Tensor x, Tensor) {
         return torch::replication_pad2d(x, {1, 1, 1, 1});
       }},
      {"clone", [](Tensor x, Tensor) { return x.clone(); }},
      {"empty_like", [](Tensor x, Tensor) { return torch::empty_like(x).fill_(1); }},
      {"to double", [](Tensor x, Tensor) { return x.to(torch::kDouble); }},
      {"contiguous", [](Tensor x, Tensor) { return x.contiguous(); }},
      {"back", [last](Tensor x, Tensor) { return x.contiguous().to(torch::kFloat, false, false, last); }},
  };
  for (const auto& [name, program] : programs) {
    EXPECT_TRUE(same(program(local.to(kRemote), weight.to(kRemote)), program(local, weight))) << name;
  }
  const Tensor volume = torch::randn({1, 2, 3, 4, 5}).contiguous(torch::MemoryFormat::ChannelsLast3d);
  EXPECT_TRUE(same(volume.to(kRemote).exp(), volume.exp()));
  EXPECT_TRUE(volume.to(kRemote).is_contiguous(torch::MemoryFormat::ChannelsLast3d));
}

TEST(Forms, OperandsOfOtherDevicesAreNamed) {
  const Tensor remote = torch::ones({2, 2}, kRemote);
  const Tensor local = torch::ones({2, 2});
  const std::vector<std::pair<const char*, std::function<void()>>> calls = {
      {"aten::add", [&] { (void)(remote + local); }},
      {"aten::add", [&] { (void)(local + remote); }},
      {"aten::mm", [&] { (void)remote.mm(local); }},
      {"aten::cat",
       [&] {
         (void)torch::cat({remote, local});
       }},
      {"aten::gather", [&] { (void)remote.gather(0, local.to(torch::kLong)); }},
      {"aten::where", [&] { (void)torch::where(local > 0, remote, remote); }},
      {"aten::convolution",
       [&] {
         (void)torch::conv2d(torch::ones({1, 1, 3, 3}, kRemote), torch::ones({1, 1, 2, 2}));
       }},
      {"aten::add_", [&] { (void)remote.add_(local); }},
  };
  for (const auto& [op, call] : calls) {
    expect_refused(op, "move the tensor", call);
    EXPECT_NE(error_of(call).find("remote_accelerator:0"), std::string::npos) << op;
  }
  EXPECT_NE(error_of([&] { local.add_(remote); }), "") << "a tensor on the CPU takes no remote operand";
  EXPECT_TRUE(torch::equal(local, torch::ones({2, 2}))) << "nothing was written";
  EXPECT_EQ(remote.sum().item<float>(), 4.0F) << "refused calls leave no trace";
}

TEST(Forms, OtherLayoutsAreNamed) {
  const Tensor remote = torch::ones({2, 2}, kRemote);
  const Tensor places = torch::zeros({2, 1}, torch::TensorOptions(kRemote).dtype(torch::kLong));
  const std::string way = "CPU";
  expect_refused("to_sparse", way, [&] { (void)remote.to_sparse(); });
  expect_refused("to_sparse_csr", way, [&] { (void)remote.to_sparse_csr(); });
  expect_refused("sparse", way, [&] { (void)torch::sparse_coo_tensor(places, torch::ones({1}, kRemote), {2, 2}); });
  expect_refused("to_mkldnn", way, [&] { (void)remote.to_mkldnn(); });
  expect_refused("quantize_per_tensor", way, [&] { (void)torch::quantize_per_tensor(remote, 0.1, 0, torch::kQInt8); });
  expect_refused("nested", way, [&] { (void)torch::_nested_tensor_from_tensor_list({remote, remote}); });
  expect_refused("aten::empty", way,
                 [&] { (void)torch::empty({2}, torch::TensorOptions(kRemote).layout(torch::kSparse)); });
  expect_refused("mkldnn", "remote_accelerator", [&] { (void)torch::ones({2, 2}).to_mkldnn().to(kRemote); });
  expect_refused("_sparse_coo_tensor", way, [&] { (void)torch::ones({2, 2}).to_sparse().to(kRemote); });
  EXPECT_EQ(remote.sum().item<float>(), 4.0F);
}

}  // namespace
