// `genie doctor` as a user calls it, on this machine: what it says is compared with what the test itself knows or has
// arranged.
#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/socket.h>
#include <torch/headeronly/version.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "datapath/base/file_descriptor.h"
#include "tests/e2e/run_command.h"

namespace {

using Json = nlohmann::json;
using genie::datapath::FileDescriptor;
using genie::test::Ran;

Ran doctor(const std::string& arguments, const std::string& before = "") {
  return genie::test::run_command("(" + before + GENIE_PROGRAM " doctor " + arguments + ")");
}

Json report_of(const Ran& ran) {
  Json report = Json::parse(ran.out, nullptr, false);
  EXPECT_FALSE(report.is_discarded()) << ran.out << ran.err;
  return report;
}

// The lines of one check.
std::vector<Json> of(const Json& report, const std::string& check) {
  std::vector<Json> found;
  for (const Json& line : report["lines"]) {
    if (line["check"] == check) found.push_back(line);
  }
  return found;
}

Json only(const Json& report, const std::string& check) {
  const std::vector<Json> lines = of(report, check);
  EXPECT_EQ(lines.size(), 1U) << check << " in " << report.dump(1);
  return lines.empty() ? Json::object() : lines[0];
}

int exit_of(const std::string& level) { return level == "ok" ? 0 : level == "warn" ? 6 : 7; }

TEST(GenieDoctor, ExitsByTheWorstLineAndSaysWhatToDo) {
  const Ran ran = doctor("--json");
  const Json report = report_of(ran);
  std::string worst = "ok";
  for (const Json& line : report["lines"]) {
    const std::string level = line["level"];
    EXPECT_EQ(level == "ok", line["cure"] == "") << line;
    EXPECT_NE(line["text"], "") << line;
    if (level == "fail" || (level == "warn" && worst == "ok")) worst = level;
  }
  EXPECT_EQ(report["level"], worst);
  EXPECT_EQ(ran.status, exit_of(worst)) << ran.out;
  for (const char* check :
       {"hugepages", "memlock", "memory", "shm", "fds", "cores", "ports.listen", "ports.ephemeral", "rdma.devices",
        "iommu", "numa", "gpu", "version.kernel", "version.libtorch", "version.ucx", "version.rdma-core"}) {
    EXPECT_FALSE(of(report, check).empty()) << check;
  }
  // The same for people.
  const Ran text = doctor("");
  EXPECT_EQ(text.status, ran.status);
  for (const Json& line : report["lines"]) {
    EXPECT_NE(text.out.find(line["check"].get<std::string>()), std::string::npos) << line;
  }
  EXPECT_NE(text.out.find("\n" + worst + ": "), std::string::npos) << text.out;
}

TEST(GenieDoctor, SeesThisMachine) {
  const Json report = report_of(doctor("--json"));
  EXPECT_NE(only(report, "version.libtorch")["text"].get<std::string>().find("libtorch " TORCH_VERSION),
            std::string::npos);
  EXPECT_EQ(only(report, "version.libtorch")["level"], "ok");
  std::string release;
  std::ifstream("/proc/sys/kernel/osrelease") >> release;
  EXPECT_NE(only(report, "version.kernel")["text"].get<std::string>().find(release), std::string::npos);
  if (!std::filesystem::exists("/sys/class/infiniband")) {
    EXPECT_EQ(only(report, "rdma.devices")["text"].get<std::string>().find("no RDMA device"), 0U);
  }
  const std::string cores = only(report, "cores")["text"];
  cpu_set_t set;
  ASSERT_EQ(::sched_getaffinity(0, sizeof(set), &set), 0);
  EXPECT_EQ(cores.find(std::to_string(CPU_COUNT(&set)) + " core"), 0U) << cores;
}

TEST(GenieDoctor, SeesTheLimitsOfItsProcess) {
  const Ran few = doctor("--json", "ulimit -n 200; ");
  EXPECT_EQ(few.status, 7);
  const Json line = only(report_of(few), "fds");
  EXPECT_EQ(line["level"], "fail") << line;
  EXPECT_EQ(line["text"].get<std::string>().find("200 files"), 0U) << line;
  const Json one_core = report_of(doctor("--json", "taskset -c $(taskset -cp $$ | sed 's/.*: \\([0-9]*\\).*/\\1/') "));
  EXPECT_EQ(only(one_core, "cores")["level"], "warn") << one_core;
}

TEST(GenieDoctor, SeesWhoListens) {
  FileDescriptor listener(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = ::htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  ASSERT_EQ(::bind(listener.get(), reinterpret_cast<const sockaddr*>(&address), size), 0);
  ASSERT_EQ(::listen(listener.get(), 1), 0);
  ASSERT_EQ(::getsockname(listener.get(), reinterpret_cast<sockaddr*>(&address), &size), 0);
  const std::string uri = "tcp://127.0.0.1:" + std::to_string(::ntohs(address.sin_port));

  const Ran taken = doctor("--json --listen " + uri);
  EXPECT_EQ(taken.status, 7);
  const Json line = only(report_of(taken), "ports.listen");
  EXPECT_EQ(line["level"], "fail") << line;
  EXPECT_NE(line["text"].get<std::string>().find("is taken"), std::string::npos) << line;
  listener = FileDescriptor();
  // The system chose it among the ports of outgoing connections, which is worth a warning.
  EXPECT_EQ(only(report_of(doctor("--json --listen " + uri)), "ports.listen")["level"], "warn");
}

TEST(GenieDoctor, ReadsTheNodesConfiguration) {
  std::string folder = (std::filesystem::temp_directory_path() / "genie_doctor_XXXXXX").string();
  ASSERT_NE(::mkdtemp(folder.data()), nullptr);
  std::ofstream(folder + "/node.yaml") << "listen: [\"unix:" << folder << "/none/node.sock\", \"unix:" << folder
                                       << "/node.sock\"]\npolling: busy\nthreads: 4000\n";
  const Ran ran = doctor("--json --config " + folder + "/node.yaml");
  EXPECT_EQ(ran.status, 7);
  const Json report = report_of(ran);
  const std::vector<Json> listen = of(report, "ports.listen");
  ASSERT_EQ(listen.size(), 2U);
  EXPECT_EQ(listen[0]["cure"], "mkdir -p " + folder + "/none");
  EXPECT_EQ(listen[1]["level"], "ok") << listen[1];
  EXPECT_NE(only(report, "cores")["text"].get<std::string>().find("never sleeps and its workers want 4001"),
            std::string::npos);

  std::ofstream(folder + "/node.yaml") << "polling: sometimes\n";
  const Ran wrong = doctor("--config " + folder + "/node.yaml");
  EXPECT_EQ(wrong.status, 2);
  EXPECT_NE(wrong.err.find("node.yaml:1: polling"), std::string::npos) << wrong.err;
  std::filesystem::remove_all(folder);
}

TEST(GenieDoctor, WrongFlagsAreSaid) {
  EXPECT_EQ(doctor("--listen gopher:hole").status, 2);
  EXPECT_EQ(doctor("--root /no/such/folder").status, 2);
  EXPECT_EQ(doctor("--config /no/such/file.yaml").status, 2);
  const Ran transport = doctor("--transport toaster --json");
  EXPECT_EQ(transport.status, 7);
  EXPECT_EQ(only(report_of(transport), "transport")["level"], "fail");
  const Ran help = doctor("--help");
  EXPECT_EQ(help.status, 0);
  EXPECT_NE(help.out.find("6 the worst line is a warning; 7 the worst line is a failure"), std::string::npos)
      << help.out;
}

}  // namespace
