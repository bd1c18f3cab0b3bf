// Bytes in and out, limits, sessions and failures. Runs on a node inside the process or, with GENIE_TEST_REMOTE=1, on a genie-node
// process over shared memory.
#include <atomic>
#include <fstream>
#include <string>
#include <thread>

#include "tests/frontend/session_fixture.h"

namespace {

using genie::test::remote_mode;
using genie::test::SessionTest;

TEST_F(SessionTest, CopiesAreCounted) {
  constexpr int64_t kBytes = int64_t{4} << 20;
  auto source = torch::randn({kBytes / 4});
  const auto expected = source.clone();
  const auto before = session->stats();
  auto remote = source.to(device());
  source.zero_();
  auto value = remote.cpu();
  const auto after = session->stats();
  EXPECT_TRUE(torch::equal(value, expected));
  EXPECT_EQ(after.snapshot_bytes - before.snapshot_bytes, static_cast<uint64_t>(kBytes))
      << "the snapshot is the one pass";
  EXPECT_EQ(after.upload_copied_bytes, before.upload_copied_bytes) << "nothing copies a large upload again";
  EXPECT_EQ(after.user_copied_bytes, before.user_copied_bytes);

  auto brought = torch::empty_like(expected);
  brought.copy_(remote);
  EXPECT_TRUE(torch::equal(brought, expected));
  EXPECT_EQ(session->stats().user_copied_bytes - after.user_copied_bytes, static_cast<uint64_t>(kBytes));
}

// A page fault for every 4 KiB would bound them at a tenth of memory's speed.
TEST_F(SessionTest, LargeResultsLieInHugePages) {
  if (!remote_mode()) GTEST_SKIP() << "an embedded node allocates as the program does";
  std::ifstream choice("/sys/kernel/mm/transparent_hugepage/enabled");
  std::string ways;
  std::getline(choice, ways);
  if (ways.empty() || ways.find("[never]") != std::string::npos) GTEST_SKIP() << "no transparent huge pages here";
  // A malloc that fills what it gives out makes the pages present before anybody can ask for huge ones.
  ::unsetenv("MALLOC_PERTURB_");
  start({});
  const torch::NoGradGuard no_grad;
  const auto x = torch::ones({int64_t{8} << 20}).to(device());
  const auto result = x + x;
  session->synchronize();
  std::ifstream maps("/proc/" + std::to_string(node->pid()) + "/smaps");
  size_t huge_kb = 0;
  for (std::string line; std::getline(maps, line);) {
    if (line.starts_with("AnonHugePages:")) huge_kb += std::stoul(line.substr(line.find(':') + 1));
  }
  EXPECT_GE(huge_kb, size_t{16} << 10) << "of the 32 MiB result, and of whatever else";
}

TEST_F(SessionTest, TheSeedMayComeBeforeTheSession) {
  session.reset();
  torch::manual_seed(99);
  const auto expected = torch::randn({4});
  torch::manual_seed(99);
  start({});
  EXPECT_TRUE(torch::equal(torch::randn({4}, device()).cpu(), expected));
  EXPECT_FALSE(torch::equal(torch::randn({4}, device()).cpu(), expected)) << "the seed is applied once";
}

TEST_F(SessionTest, RandomNumbersAreThoseOfCpuEager) {
  const auto run = [](torch::Device where) {
    torch::manual_seed(3);
    std::vector<torch::Tensor> out{torch::rand({5}, where), torch::randint(0, 100, {7}, where),
                                   torch::randperm(9, where)};
    out.push_back(torch::randn_like(out[0]));
    out.push_back(torch::dropout(torch::ones({4, 6}, where), 0.3, true));
    out.push_back(torch::bernoulli(torch::full({10}, 0.5, where)));
    out.push_back(torch::empty({6}, where).uniform_(-1, 1));
    for (auto& tensor : out) tensor = tensor.cpu();
    return out;
  };
  const auto local = run(torch::kCPU);
  torch::rand({3});  // the process's own generator goes on: it is not the device's
  const auto remote = run(device());
  for (size_t i = 0; i < local.size(); ++i) EXPECT_TRUE(torch::equal(local[i], remote[i])) << "tensor " << i;
}

TEST_F(SessionTest, ShapesFromTheNodeSurviveOtherThreadsFlushes) {
  const auto x = torch::tensor({0.0F, 1.0F, 2.0F}).to(device());
  std::atomic<bool> stop{false};
  std::thread other([&] {
    while (!stop) session->synchronize();
  });
  for (int i = 0; i < 200; ++i) EXPECT_EQ(x.nonzero().size(0), 2);
  stop = true;
  other.join();
}

TEST_F(SessionTest, UsingATensorOfAClosedSessionIsAnError) {
  const auto tensor = torch::ones({4}).to(device());
  session->close();
  EXPECT_THROW((void)tensor.cpu(), genie::Error);
}

TEST_F(SessionTest, LongTracesAreCutAtTheLimit) {
  auto x = torch::zeros({4}).to(device());
  constexpr int kOps = 20'000;
  for (int i = 0; i < kOps; ++i) x.add_(1);
  EXPECT_EQ(x[0].item<float>(), static_cast<float>(kOps));
  const auto stats = session->stats();
  EXPECT_EQ(stats.flush_reasons.at("limit"), 2U);
  EXPECT_EQ(stats.executed_ops, static_cast<uint64_t>(kOps));
}

TEST_F(SessionTest, SmallUploadsAndManyStoragesWork) {
  std::vector<torch::Tensor> local;
  std::vector<torch::Tensor> remote;
  for (int i = 0; i < 300; ++i) {
    local.push_back(torch::full({1 + i % 7, 3}, i));
    remote.push_back(local.back().to(device()));
  }
  for (int i = 0; i < 300; ++i)
    EXPECT_TRUE(torch::equal(remote[static_cast<size_t>(i)].cpu(), local[static_cast<size_t>(i)]));
}

TEST_F(SessionTest, ThreadsOrderTheirTouchesOfOneTensor) {
  auto shared = torch::zeros({8}).to(device());
  for (int round = 0; round < 20; ++round) {
    std::thread([&] { shared.add_(1); }).join();
    shared.mul_(2);
  }
  auto expected = torch::zeros({8});
  for (int round = 0; round < 20; ++round) expected.add_(1).mul_(2);
  EXPECT_TRUE(torch::equal(shared.cpu(), expected));
  EXPECT_GE(session->stats().flush_reasons.at("conflict"), 20U);
}

TEST_F(SessionTest, ASharedModelIsReadByThreadsWithoutCutting) {
  const torch::NoGradGuard no_grad;
  const auto weight = torch::randn({16, 16});
  const auto remote_weight = weight.to(device());
  (void)remote_weight.sum().item<float>();
  auto run = [&] {
    const torch::NoGradGuard in_thread;
    const auto x = torch::ones({2, 16});
    for (int i = 0; i < 30; ++i) EXPECT_TRUE(torch::equal(x.to(device()).mm(remote_weight).cpu(), x.mm(weight)));
  };
  const auto before = session->stats();
  std::thread first(run);
  std::thread second(run);
  first.join();
  second.join();
  EXPECT_EQ(session->stats().flushes - before.flushes, 60U);
}

TEST_F(SessionTest, EagerModeRaisesAtTheLine) {
  genie::set_lazy(false);
  const auto table = torch::ones({3, 2}).to(device());
  const auto index = torch::tensor({7}).to(device());
  EXPECT_THROW((void)torch::embedding(table, index), genie::Error);
  EXPECT_EQ((table + 1).sum().item<float>(), 12.0F);
  genie::set_lazy(true);
}

TEST_F(SessionTest, AnErrorThatWasSeenIsNotToldAgain) {
  const auto table = torch::ones({3, 2}).to(device());
  const auto far = torch::tensor({7}).to(device());
  EXPECT_THROW((void)torch::embedding(table, far).cpu(), genie::Error) << "a value";
  session->synchronize();
  EXPECT_THROW((void)torch::embedding(table, far).nonzero(), genie::Error) << "a shape";
  session->synchronize();
  genie::set_lazy(false);
  EXPECT_THROW((void)torch::embedding(table, far), genie::Error) << "an operator that ran at once";
  genie::set_lazy(true);
  session->synchronize();
  const auto unseen = torch::embedding(table, far);
  EXPECT_THROW(session->synchronize(), genie::Error);
  session->synchronize();
}

TEST_F(SessionTest, MixedDevicesAreRefusedAsPyTorchDoes) {
  const auto remote = torch::ones({3}).to(device());
  const auto local = torch::ones({3});
  try {
    (void)(remote + local);
    FAIL();
  } catch (const c10::Error& error) {
    EXPECT_NE(std::string(error.what()).find("Expected all tensors to be on the same device"), std::string::npos);
  }
  EXPECT_EQ((remote + torch::tensor(2.0F)).sum().item<float>(), 9.0F) << "0-dim CPU tensors mix";
}

TEST_F(SessionTest, TooManySessionsIsAClearError) {
  std::vector<genie::Session> many;
  try {
    for (int i = 0; i < 20; ++i) many.push_back(genie::Session::connect("embedded:"));
    FAIL() << "a process has 16 indices";
  } catch (const genie::Error& error) {
    EXPECT_EQ(error.status().code(), genie::Errc::kQuotaExceeded);
  }
  EXPECT_EQ(torch::ones({3}).to(device()).sum().item<float>(), 3.0F);
}

TEST_F(SessionTest, ANodeThatIsNotThereIsNamed) {
  genie::SessionOptions options;
  options.connect_timeout_ms = 2'000;
  const auto missing = genie::Session::try_connect("unix:/nonexistent/genie.sock", options);
  ASSERT_FALSE(missing.ok());
  EXPECT_NE(missing.status().to_string().find("/nonexistent/genie.sock"), std::string::npos)
      << missing.status().to_string();
  EXPECT_FALSE(genie::Session::try_connect("carrier-pigeon:home", options).ok());
}

TEST_F(SessionTest, MemoryQuotaIsAnErrorThatSaysWhatToDo) {
  if (!remote_mode()) GTEST_SKIP() << "an embedded node has no memory quota";
  start({"--memory-quota", "4MiB"});
  const auto fits = torch::ones({1000}).to(device());
  const auto big = torch::zeros({int64_t{4} << 20}, device());
  try {
    (void)big.sum().item<float>();
    FAIL() << "16 MiB do not fit into 4 MiB";
  } catch (const genie::Error& error) {
    EXPECT_NE(std::string(error.what()).find("--memory-quota"), std::string::npos) << error.what();
  }
  // More than any machine has: refused by the quota before it is asked of the machine, which would say something else.
  const auto huge = torch::zeros({int64_t{1} << 42}, device());
  try {
    (void)huge.sum().item<float>();
    FAIL() << "16 TiB do not fit into 4 MiB";
  } catch (const genie::Error& error) {
    EXPECT_EQ(error.status().code(), genie::Errc::kQuotaExceeded) << error.what();
    EXPECT_NE(std::string(error.what()).find("--memory-quota"), std::string::npos) << error.what();
  }
  EXPECT_EQ(fits.sum().item<float>(), 1000.0F);
}

TEST_F(SessionTest, AFailureThatWasToldHidesNoOther) {
  std::thread other([&] {
    const auto done = torch::ones({2}).to(device()).mul(2);
    at::_assert_async(torch::zeros({1}).to(device()), "the first failure");
    genie::materialize(done);
  });
  other.join();
  const auto beyond = torch::full({1}, 9, torch::kLong).to(device());
  EXPECT_THROW((void)torch::ones({2}).to(device()).index_select(0, beyond).cpu(), genie::Error);
  try {
    session->synchronize();
    FAIL() << "nobody was told of the first failure";
  } catch (const genie::Error& error) {
    EXPECT_NE(std::string(error.what()).find("the first failure"), std::string::npos) << error.what();
  }
  session->synchronize();
}

// An operator's results count while they come to be: many that fit one by one do not add up to more than the quota.
TEST_F(SessionTest, MemoryQuotaHoldsWithinAnOperator) {
  if (!remote_mode()) GTEST_SKIP() << "an embedded node has no memory quota";
  start({"--memory-quota", "16MiB"});
  const auto one = torch::ones({1}).to(device());
  const auto slices = at::unbind_copy(one.expand({4096, int64_t{1} << 18}), 0);  // 4 GiB, 1 MiB each
  try {
    (void)slices.front().sum().item<float>();
    FAIL() << "4 GiB do not fit into 16 MiB";
  } catch (const genie::Error& error) {
    EXPECT_EQ(error.status().code(), genie::Errc::kQuotaExceeded) << error.what();
  }
  std::ifstream status("/proc/" + std::to_string(node->pid()) + "/status");
  std::string word;
  uint64_t peak_kib = 0;
  while (status >> word) {
    if (word == "VmHWM:") status >> peak_kib;
  }
  EXPECT_GT(peak_kib, 0U);
  EXPECT_LT(peak_kib, uint64_t{2} << 20) << "it had all of it before it was refused";
  EXPECT_EQ(one.sum().item<float>(), 1.0F);
}

TEST_F(SessionTest, AKilledNodeEndsPendingWork) {
  if (!remote_mode()) GTEST_SKIP() << "an embedded node ends with this process";
  auto x = torch::randn({64, 64}).to(device());
  (void)x.sum().item<float>();
  for (int i = 0; i < 100; ++i) x = x.mm(x).tanh();
  node->signal(SIGKILL);
  try {
    (void)x.cpu();
    FAIL() << "the node is gone";
  } catch (const genie::Error& error) {
    EXPECT_NE(std::string(error.what()).find("node"), std::string::npos) << error.what();
  }
  EXPECT_THROW((void)(x + 1).cpu(), genie::Error);

  // Who follows the error finds the device where it was, although the old session has not been closed.
  const genie::Session old = *session;
  const torch::Device lost = device();
  start({});
  EXPECT_EQ(device(), lost);
  EXPECT_EQ((torch::ones({3}, lost) * 2).sum().item<float>(), 6.0F);
  EXPECT_THROW((void)(x + 1).cpu(), genie::Error);
  EXPECT_THROW(old.synchronize(), genie::Error);
}

}  // namespace
