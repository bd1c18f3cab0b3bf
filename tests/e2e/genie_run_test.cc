// `genie run` as a user calls it: a process, its exit status, what it prints.
#include <gtest/gtest.h>
#include <torch/headeronly/version.h>
#include <torch/script.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "tests/e2e/node_process.h"
#include "tests/e2e/run_command.h"

namespace {

using Json = nlohmann::json;

using genie::test::NodeProcess;
using genie::test::Ran;

// `environment` stands in front of the command, as in a shell.
Ran run(const std::string& arguments, const std::string& environment = "") {
  return genie::test::run_command(environment + GENIE_PROGRAM " " + arguments);
}

class GenieRun : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (std::filesystem::temp_directory_path() / "genie_run_XXXXXX").string();
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
    torch::manual_seed(1);
    torch::jit::Module model("Affine");
    model.register_parameter("weight", torch::randn({3, 4}), false);
    model.define(R"(
      def forward(self, x):
        y = torch.matmul(x, self.weight)
        return y.sum(), {"rows": y, "best": y.argmax(dim=-1)}
    )");
    model.save(path("affine.pt"));
    torch::jit::Module failing("Failing");
    failing.define(R"(
      def forward(self, x):
        return x.view(7, 11, 13)
    )");
    failing.save(path("failing.pt"));
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  void save(const std::string& name, const torch::IValue& value) const {
    const std::vector<char> bytes = torch::jit::pickle_save(value);
    std::ofstream(path(name), std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  }
  std::string path(const std::string& name) const { return folder_ + "/" + name; }

  std::string folder_;
};

TEST_F(GenieRun, SaysTheSameLocallyAndOnANode) {
  const std::string arguments = "run " + path("affine.pt") + " --random 2x3 --json --seed 5 --repeat 3 --threads 1";
  const Ran local = run(arguments + " --device cpu");
  const Ran remote = run(arguments + " --cluster embedded:");
  ASSERT_EQ(local.status, 0) << local.err;
  ASSERT_EQ(remote.status, 0) << remote.err;
  const Json here = Json::parse(local.out);
  const Json there = Json::parse(remote.out);
  EXPECT_EQ(here["outputs"], there["outputs"]);
  ASSERT_EQ(here["outputs"].size(), 3U);
  for (const Json& output : here["outputs"]) EXPECT_EQ(output["checksum"].get<std::string>().size(), 16U);
  EXPECT_TRUE(here["time_ms"]["median"].is_number());
  EXPECT_FALSE(here.contains("stats"));
  EXPECT_EQ(there["cluster"], "embedded:");
  EXPECT_GT(there["stats"]["captured_ops"].get<uint64_t>(), 0U);
}

TEST_F(GenieRun, TextNamesOutputsAndTimes) {
  const Ran ran = run("run " + path("affine.pt") + " --random 2x3 --device cpu");
  EXPECT_EQ(ran.status, 0);
  for (const char* part : {"1.rows", "1.best", "Float[2,4]", "Long[2]", "checksum", "first call"}) {
    EXPECT_NE(ran.out.find(part), std::string::npos) << part << " in: " << ran.out;
  }
}

TEST_F(GenieRun, ReadsATensorAndATupleOfArguments) {
  const torch::Tensor x = torch::arange(6, torch::kFloat32).view({2, 3});
  save("x.pt", x);
  save("tuple.pt", c10::ivalue::Tuple::create({x}));
  const Ran one = run("run " + path("affine.pt") + " --device cpu --json --input " + path("x.pt"));
  const Ran tuple = run("run " + path("affine.pt") + " --device cpu --json --input " + path("tuple.pt"));
  ASSERT_EQ(one.status, 0) << one.err;
  ASSERT_EQ(tuple.status, 0) << tuple.err;
  EXPECT_EQ(Json::parse(one.out)["outputs"], Json::parse(tuple.out)["outputs"]);
}

// A node that asks for a token lets in who names its file, by flag or by environment, and says to the others what to do.
TEST_F(GenieRun, ATokenOpensANodeThatAsksForOne) {
  std::ofstream(path("token")) << "a secret\n";
  std::ofstream(path("other")) << "another\n";
  NodeProcess node({"--token-file", path("token")});
  ASSERT_TRUE(node.wait_ready()) << node.errors();
  const std::string model = "run " + path("affine.pt") + " --random 2x3 --json --cluster " + node.uri();
  const std::string status = "status --json --cluster " + node.uri();
  for (const std::string& command : {model, status}) {
    const Ran without = run(command);
    EXPECT_EQ(without.status, 4) << without.out;
    EXPECT_NE(without.err.find("wants a token"), std::string::npos) << without.err;
    EXPECT_NE(without.err.find("--token-file"), std::string::npos) << without.err;
    const Ran wrong = run(command + " --token-file " + path("other"));
    EXPECT_EQ(wrong.status, 4) << wrong.out;
    EXPECT_NE(wrong.err.find("another token"), std::string::npos) << wrong.err;
    const Ran unreadable = run(command + " --token-file " + folder_);
    EXPECT_EQ(unreadable.status, 2) << unreadable.out;
    EXPECT_NE(unreadable.err.find(folder_), std::string::npos) << unreadable.err;
    const Ran by_flag = run(command + " --token-file " + path("token"), "GENIE_TOKEN_FILE=" + path("other") + " ");
    EXPECT_EQ(by_flag.status, 0) << by_flag.err;
    const Ran by_environment = run(command, "GENIE_TOKEN_FILE=" + path("token") + " ");
    EXPECT_EQ(by_environment.status, 0) << by_environment.err;
  }
}

TEST_F(GenieRun, StatusSaysWhatTheNodeHasDone) {
  NodeProcess node({"--threads", "1", "--name", "worker"});
  ASSERT_TRUE(node.wait_ready()) << node.errors();
  ASSERT_EQ(run("run " + path("affine.pt") + " --random 2x3 --cluster " + node.uri()).status, 0);
  ASSERT_TRUE(node.becomes_empty());
  const Ran json = run("status --json --cluster " + node.uri());
  ASSERT_EQ(json.status, 0) << json.err;
  const Json report = Json::parse(json.out);
  EXPECT_EQ(report["cluster"], node.uri());
  ASSERT_EQ(report["nodes"].size(), 1U);
  const Json& row = report["nodes"][0];
  EXPECT_EQ(row["name"], "worker");
  EXPECT_EQ(row["health"], "serving");
  EXPECT_EQ(row["torch_version"], TORCH_VERSION);
  EXPECT_EQ(row["transport"], "shm");
  ASSERT_EQ(row["devices"].size(), 1U);
  EXPECT_EQ(row["devices"][0]["kind"], "cpu");
  EXPECT_EQ(row["devices"][0]["threads"], 1);
  EXPECT_EQ(row["sessions"], 0);
  EXPECT_EQ(row["sessions_opened"], 1);
  EXPECT_GT(row["operators_executed"].get<uint64_t>(), 0U);
  EXPECT_EQ(row["storage_bytes"], 0);

  const Ran text = run("status", "GENIE_CLUSTER=" + node.uri() + " ");
  ASSERT_EQ(text.status, 0) << text.err;
  for (const char* part : {"worker", "serving", "0 open, 1 since the start", "cpu: 1 threads"}) {
    EXPECT_NE(text.out.find(part), std::string::npos) << part << " in: " << text.out;
  }
}

struct Wrong {
  const char* name;
  const char* arguments;  // % stands for the folder
  int status;
  const char* says;
};

void PrintTo(const Wrong& wrong, std::ostream* out) { *out << wrong.name; }

class GenieRunWrong : public GenieRun, public testing::WithParamInterface<Wrong> {};

TEST_P(GenieRunWrong, SaysWhatToDo) {
  std::ofstream(path("empty.pt2")) << "x";
  std::ofstream(path("text.pt")) << "not a model";
  std::string arguments = GetParam().arguments;
  for (size_t at; (at = arguments.find('%')) != std::string::npos;) arguments.replace(at, 1, folder_);
  const Ran ran = run(arguments);
  EXPECT_EQ(ran.status, GetParam().status) << ran.err;
  EXPECT_NE((ran.out + ran.err).find(GetParam().says), std::string::npos) << ran.out << ran.err;
}

INSTANTIATE_TEST_SUITE_P(
    , GenieRunWrong,
    testing::Values(
        Wrong{"NoSubcommand", "", 2, "subcommand"}, Wrong{"NoModel", "run", 2, "MODEL"},
        Wrong{"UnknownSubcommand", "bogus", 2, "'bogus' is no subcommand; there are: run, status, doctor"},
        Wrong{"UnknownFlag", "run %/affine.pt --nope", 2, "--nope"},
        Wrong{"Shape", "run %/affine.pt --device cpu --random 2xx3", 2, "is not a shape"},
        Wrong{"NegativeSize", "run %/affine.pt --device cpu --random 2x-3", 2, "is not a shape"},
        Wrong{"HugeShape", "run %/affine.pt --device cpu --random 99999999x99999999x99999999", 2, "is not a shape"},
        Wrong{"Dtype", "run %/affine.pt --device cpu --random 2x3:float8", 2, "float32"},
        Wrong{"Device", "run %/affine.pt --device toaster:0 --random 2x3", 2, "remote_accelerator:N"},
        Wrong{"DeviceNotServed", "run %/affine.pt --cluster embedded: --device remote_accelerator:7 --random 2x3", 2,
              "serves remote_accelerator:0 to 1"},
        Wrong{"Folder", "run % --device cpu", 3, "is a folder"}, Wrong{"StatusOfNobody", "status", 2, "--cluster"},
        Wrong{"StatusOfThisProcess", "status --cluster embedded:", 2, "inside of a program"},
        Wrong{"StatusOfNoNode", "status --cluster unix:%/none.sock", 4, "none.sock"},
        Wrong{"StatusOfNoAddress", "status --cluster gopher:hole", 2, "gopher:hole"},
        Wrong{"RandomAndInput", "run %/affine.pt --random 2x3 --input x.pt", 2, "--input"},
        Wrong{"NoFile", "run %/none.pt --device cpu", 3, "no such file"},
        Wrong{"ExportArchive", "run %/empty.pt2 --device cpu", 3, "torch.jit.script"},
        Wrong{"NotAModel", "run %/text.pt --device cpu", 3, "is not a TorchScript file"},
        Wrong{"NotAnInput", "run %/affine.pt --device cpu --input %/text.pt", 3, "torch.save"},
        Wrong{"ModelFails", "run %/failing.pt --device cpu --random 2x3", 5, "shape '[7, 11, 13]' is invalid"},
        Wrong{"ModelFailsOnNode", "run %/failing.pt --cluster embedded: --random 2x3", 5, "[7, 11, 13]"},
        Wrong{"NoArguments", "run %/affine.pt --device cpu", 5, "missing value for argument 'x'"},
        Wrong{"NoNode", "run %/affine.pt --cluster unix:%/none.sock --random 2x3", 4, "none.sock"},
        Wrong{"Cluster", "run %/affine.pt --cluster gopher:hole --random 2x3", 2, "embedded:"}),
    [](const testing::TestParamInfo<Wrong>& info) { return info.param.name; });

TEST(GenieProgram, RefusesAnotherLibtorch) {
  const Ran ran = run("--version", "ASAN_OPTIONS=verify_asan_link_order=0 LD_PRELOAD=" OTHER_TORCH " ");
  EXPECT_EQ(ran.status, 78) << ran.err;
  EXPECT_NE(ran.err.find("built for libtorch " TORCH_VERSION ", but 2.12.1 is loaded"), std::string::npos) << ran.err;
}

TEST(GenieProgram, HelpListsExitCodes) {
  const Ran help = run("--help");
  EXPECT_EQ(help.status, 0);
  EXPECT_NE(help.out.find("Exit codes: 0 done"), std::string::npos);
  EXPECT_EQ(run("--version").status, 0);
}

}  // namespace
