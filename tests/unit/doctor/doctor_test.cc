// The doctor on trees of other hosts. soft_roce.json was recorded (record_tree.py) in a virtual machine with two Soft-RoCE
// devices; roce_cluster.json, a host with two 100 Gbit/s ports and a GPU, is laid out by hand after the kernel's ABI, for
// no such machine was at hand. Each test changes one thing.
#include "tools/doctor/doctor.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <ostream>

#include "tools/doctor/rdma.h"

namespace genie::doctor {
namespace {

namespace fs = std::filesystem;

// A tree on disk. Made once, and mended after each test that changed it: making one takes a hundred files.
class Tree {
 public:
  explicit Tree(const std::string& name) : base_(Base::of(name)) {}
  ~Tree() {
    for (const std::string& path : changed_) {
      fs::remove_all(base_.root + path);
      for (const auto& [file, content] : base_.files.items()) {
        if (file == path || file.starts_with(path + "/")) base_.put(file, content.get<std::string>());
      }
    }
  }
  Tree(const Tree&) = delete;
  Tree& operator=(const Tree&) = delete;

  const nlohmann::json& files() const { return base_.files; }
  void write(const std::string& path, const std::string& content) {
    changed_.push_back(path);
    base_.put(path, content);
  }
  void remove(const std::string& path) {
    changed_.push_back(path);
    ASSERT_GT(fs::remove_all(base_.root + path), 0U) << path;
  }
  void replace(const std::string& path, const std::string& old_text, const std::string& new_text) {
    std::string text = Host(base_.root).text(path).value();
    const size_t at = text.find(old_text);
    ASSERT_NE(at, std::string::npos) << path << " lacks " << old_text;
    write(path, text.replace(at, old_text.size(), new_text));
  }
  Host host() const { return Host(base_.root); }

 private:
  struct Base {
    static Base& of(const std::string& name) {
      static std::map<std::string, Base> all;
      return all.try_emplace(name, name).first->second;
    }
    explicit Base(const std::string& name) {
      std::string pattern = (fs::temp_directory_path() / "genie_doctor_XXXXXX").string();
      if (::mkdtemp(pattern.data()) == nullptr) std::abort();
      root = pattern;
      std::ifstream file(std::string(GENIE_DOCTOR_TREES) + "/" + name + ".json");
      files = nlohmann::json::parse(file);
      for (const auto& [path, content] : files.items()) put(path, content.get<std::string>());
    }
    ~Base() { fs::remove_all(root); }
    void put(const std::string& path, const std::string& content) const {
      fs::create_directories(fs::path(root + path).parent_path());
      std::ofstream(root + path, std::ios::binary) << content;
    }

    std::string root;
    nlohmann::json files;
  };

  Base& base_;
  std::vector<std::string> changed_;
};

// The lines of one check.
Lines of(const Lines& lines, std::string_view check) {
  Lines found;
  for (const Line& line : lines) {
    if (line.check == check) found.push_back(line);
  }
  return found;
}

std::string text_of(const Lines& lines) {
  std::string text;
  for (const Line& line : lines) {
    text += std::string(level_name(line.level)) + " " + line.check + ": " + line.text + " -> " + line.cure + "\n";
  }
  return text;
}

TEST(Doctor, AGoodClusterHostHasNothingToComplainOf) {
  const Tree tree("roce_cluster");
  const Lines lines = examine(tree.host(), {.listen = {"tcp://0.0.0.0:7411"}});
  EXPECT_EQ(worst(lines), Level::kOk) << text_of(lines);
  for (const char* check : {"transport",
                            "hugepages",
                            "hugepages.transparent",
                            "memlock",
                            "memory",
                            "shm",
                            "fds",
                            "cores",
                            "ports.listen",
                            "ports.ephemeral",
                            "rdma.devices",
                            "rdma.link",
                            "rdma.gid",
                            "rdma.mtu",
                            "iommu",
                            "numa",
                            "gpu",
                            "version.kernel",
                            "version.ucx",
                            "version.rdma-core"}) {
    EXPECT_FALSE(of(lines, check).empty()) << check << " is missing";
  }
  const Lines gids = of(lines, "rdma.gid");
  ASSERT_EQ(gids.size(), 2U);
  EXPECT_NE(gids[0].text.find("GID 3 0000:0000:0000:0000:0000:ffff:0a00:0001 (RoCE v2, IPv4, ens1f0np0)"),
            std::string::npos)
      << gids[0].text;
  EXPECT_NE(of(lines, "gpu")[0].text.find("dma-buf"), std::string::npos);
  EXPECT_NE(of(lines, "version.ucx")[0].text.find("1.12.1"), std::string::npos);
  EXPECT_NE(of(lines, "version.rdma-core")[0].text.find("39.0"), std::string::npos);
}

TEST(Doctor, TheRecordedSoftRoceHostIsReadAsItWas) {
  const Tree tree("soft_roce");
  const std::vector<RdmaDevice> devices = rdma_devices(tree.host());
  ASSERT_EQ(devices.size(), 2U);
  EXPECT_EQ(devices[1].name, "rxe1");
  EXPECT_EQ(devices[1].uverbs, "uverbs1");
  ASSERT_EQ(devices[1].ports.size(), 1U);
  EXPECT_TRUE(devices[1].ports[0].active());
  EXPECT_TRUE(devices[1].ports[0].ethernet);
  const Gid* gid = best_gid(devices[1].ports[0]);
  ASSERT_NE(gid, nullptr);
  EXPECT_EQ(gid->index, 1U);
  EXPECT_EQ(gid->address, "0000:0000:0000:0000:0000:ffff:0a4d:0101");
  const Lines lines = examine(tree.host(), {.transport = "auto"});
  EXPECT_EQ(worst(lines), Level::kWarn) << text_of(lines);
  for (const char* check :
       {"rdma.devices", "rdma.link", "rdma.gid", "rdma.mtu", "iommu", "memlock", "version.rdma-core"}) {
    EXPECT_EQ(worst(of(lines, check)), Level::kOk) << text_of(of(lines, check));
  }
  EXPECT_NE(of(lines, "memlock")[0].text.find("CAP_IPC_LOCK"), std::string::npos);
  EXPECT_EQ(of(lines, "fds")[0].level, Level::kWarn) << "1024 open files";
}

// One thing is changed on the good host; one line must say so, and what to do.
struct Case {
  const char* name;
  std::function<void(Tree&)> change;
  const char* check;
  Level level;
  const char* text;
  const char* cure;
  Purpose purpose = {};
};
void PrintTo(const Case& one, std::ostream* out) { *out << one.name; }

class OneThingWrong : public testing::TestWithParam<Case> {};

TEST_P(OneThingWrong, IsSaidWithItsCure) {
  Tree tree("roce_cluster");
  GetParam().change(tree);
  const Lines lines = examine(tree.host(), GetParam().purpose);
  EXPECT_EQ(worst(lines), GetParam().level) << text_of(lines);
  bool said = false;
  for (const Line& line : of(lines, GetParam().check)) {
    if (line.level == Level::kOk) continue;
    said = said || (line.level == GetParam().level && line.text.find(GetParam().text) != std::string::npos &&
                    line.cure.find(GetParam().cure) != std::string::npos);
  }
  EXPECT_TRUE(said) << text_of(lines);
  for (const Line& line : lines) EXPECT_EQ(line.cure.empty(), line.level == Level::kOk) << text_of({line});
}

constexpr const char* kPort0 = "/sys/class/infiniband/mlx5_0/ports/1/";
constexpr const char* kHugepages = "/sys/kernel/mm/hugepages/hugepages-2048kB/";

const auto kNothing = [](Tree&) {};

void limit(Tree& tree, const char* old_text, const char* new_text) {
  tree.replace("/proc/self/limits", old_text, new_text);
}

// The device's second port of call: without other RDMA devices, so that a fault of the first is the host's.
void only_first_device(Tree& tree) {
  tree.remove("/sys/class/infiniband/mlx5_1");
  tree.remove("/sys/class/infiniband_verbs/uverbs1");
}

INSTANTIATE_TEST_SUITE_P(
    Memory, OneThingWrong,
    testing::Values(
        Case{"NoHugepages",
             [](Tree& t) {
               t.write(std::string(kHugepages) + "nr_hugepages", "0\n"),
                   t.write(std::string(kHugepages) + "free_hugepages", "0\n");
             },
             "hugepages", Level::kWarn, "no 2 MiB hugepages", "sysctl vm.nr_hugepages=1024"},
        Case{"HugepagesTaken", [](Tree& t) { t.write(std::string(kHugepages) + "free_hugepages", "0\n"); }, "hugepages",
             Level::kWarn, "all 8192", "vm.nr_hugepages=9216"},
        Case{"NoHugetlb", [](Tree& t) { t.remove("/sys/kernel/mm/hugepages"); }, "hugepages", Level::kWarn,
             "kernel has no", "CONFIG_HUGETLBFS"},
        Case{"ThpNever",
             [](Tree& t) { t.write("/sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]\n"); },
             "hugepages.transparent", Level::kWarn, "off", "echo madvise"},
        Case{"MemlockLow", [](Tree& t) { limit(t, "memory         unlimited", "memory         65536    "); }, "memlock",
             Level::kFail, "64 KiB", "ulimit -l unlimited"},
        Case{"MemlockSome", [](Tree& t) { limit(t, "memory         unlimited", "memory         1073741824"); },
             "memlock", Level::kWarn, "1 GiB", "LimitMEMLOCK"},
        Case{"FewFiles", [](Tree& t) { limit(t, "1048576", "1024   "); }, "fds", Level::kWarn, "1024 files",
             "ulimit -n"},
        Case{"HardlyAnyFiles", [](Tree& t) { limit(t, "1048576", "64     "); }, "fds", Level::kFail, "64 files",
             "ulimit -n"},
        Case{"DockersShm", [](Tree& t) { t.replace("/proc/mounts", "rw,nosuid", "rw,size=65536k,nosuid"); }, "shm",
             Level::kWarn, "holds 64 MiB", "--shm-size"},
        Case{"NoShm", [](Tree& t) { t.write("/proc/mounts", ""); }, "shm", Level::kWarn, "not mounted", "tmpfs"},
        Case{"GroupsMemory", [](Tree& t) { t.write("/sys/fs/cgroup/memory.max", "1073741824\n"); }, "memory",
             Level::kWarn, "1 GiB, by a limit of the control group", "--memory"}),
    [](const auto& info) { return info.param.name; });

void without_rdma(Tree& tree) {
  tree.remove("/sys/class/infiniband");
  for (const char* nic : {"0000:3b:00.0", "0000:3b:00.1"}) tree.remove(std::string("/sys/bus/pci/devices/") + nic);
}

INSTANTIATE_TEST_SUITE_P(
    Rdma, OneThingWrong,
    testing::Values(
        Case{"NoDeviceForVerbs",
             without_rdma,
             "rdma.devices",
             Level::kFail,
             "verbs needs",
             "rdma link add rxe0",
             {.transport = "verbs"}},
        Case{"NoDeviceForAListWithVerbs",
             without_rdma,
             "rdma.devices",
             Level::kFail,
             "verbs needs",
             "rdma link add rxe0",
             {.transport = "shm,verbs"}},
        Case{"AnUnknownTransportInAList",
             [](Tree&) {},
             "transport",
             Level::kFail,
             "pigeon",
             "choose a transport",
             {.transport = "shm,pigeon"}},
        Case{"NoDriver", [](Tree& t) { t.remove("/sys/class/infiniband"); }, "rdma.devices", Level::kWarn,
             "0000:3b:00.0 can do RDMA", "modprobe mlx5_ib"},
        Case{"ContainerWithoutDevice", [](Tree& t) { t.remove("/dev/infiniband/uverbs0"); }, "rdma.devices",
             Level::kFail, "/dev/infiniband/uverbs0 is missing", "--device=/dev/infiniband"},
        Case{"NoUverbs", [](Tree& t) { t.remove("/sys/class/infiniband_verbs"); }, "rdma.devices", Level::kFail,
             "no access", "modprobe ib_uverbs"},
        Case{"NoConnectionManager", [](Tree& t) { t.remove("/dev/infiniband/rdma_cm"); }, "rdma.devices", Level::kWarn,
             "rdma_cm cannot be opened", "modprobe rdma_ucm"},
        Case{"OneLinkDown",
             [](Tree& t) {
               t.write(std::string(kPort0) + "state", "1: DOWN\n"),
                   t.write(std::string(kPort0) + "phys_state", "3: Disabled\n");
             },
             "rdma.link", Level::kWarn, "mlx5_0 port 1: 1: DOWN (physically 3: Disabled)", "ip link set"},
        Case{"EveryLinkDown",
             [](Tree& t) { only_first_device(t), t.write(std::string(kPort0) + "state", "1: DOWN\n"); }, "rdma.link",
             Level::kFail, "1: DOWN", "cable"},
        Case{"NoSubnetManager",
             [](Tree& t) {
               only_first_device(t);
               t.write(std::string(kPort0) + "link_layer", "InfiniBand\n");
               t.write(std::string(kPort0) + "state", "2: INIT\n");
             },
             "rdma.link", Level::kFail, "2: INIT", "opensm"},
        Case{"NoLid", [](Tree& t) { t.write(std::string(kPort0) + "link_layer", "InfiniBand\n"); }, "rdma.gid",
             Level::kFail, "LID 0", "opensm"},
        Case{"NoGid", [](Tree& t) { t.remove(std::string(kPort0) + "gids"); }, "rdma.gid", Level::kFail, "no GID",
             "ip address add"},
        Case{"OnlyLinkLocal",
             [](Tree& t) { t.remove(std::string(kPort0) + "gids/2"), t.remove(std::string(kPort0) + "gids/3"); },
             "rdma.gid", Level::kWarn, "GID 1 fe80:", "ip address add"},
        Case{"OnlyRoceV1",
             [](Tree& t) { t.remove(std::string(kPort0) + "gids/1"), t.remove(std::string(kPort0) + "gids/3"); },
             "rdma.gid", Level::kWarn, "RoCE v1", "RoCE v2"},
        Case{"SmallMtu",
             [](Tree& t) {
               t.write("/sys/class/net/ens1f0np0/mtu", "1500\n"), t.write("/sys/class/net/ens1f1np1/mtu", "1500\n");
             },
             "rdma.mtu", Level::kWarn, "ens1f0np0 has MTU 1500", "mtu 9000"},
        Case{"MtusDiffer", [](Tree& t) { t.write("/sys/class/net/ens1f0np0/mtu", "4200\n"); }, "rdma.mtu", Level::kWarn,
             "differ in MTU (4200 to 9000)", "same MTU"},
        Case{"ShmNeedsNoLink",
             [](Tree& t) { only_first_device(t), t.write(std::string(kPort0) + "state", "1: DOWN\n"); },
             "rdma.link",
             Level::kWarn,
             "1: DOWN",
             "cable",
             {.transport = "shm"}},
        Case{"IommuTranslates",
             [](Tree& t) { t.write("/sys/class/infiniband/mlx5_1/device/iommu_group/type", "DMA-FQ\n"); }, "iommu",
             Level::kWarn, "mlx5_1", "iommu=pt"},
        Case{"FarNode", [](Tree& t) { t.replace("/proc/self/status", "0-63", "32-63"); }, "numa", Level::kWarn,
             "node 0, where this process has no core", "--cpunodebind=0"},
        Case{"UnknownNode", [](Tree& t) { t.write("/sys/class/infiniband/mlx5_0/device/numa_node", "-1\n"); }, "numa",
             Level::kWarn, "mlx5_0: the firmware", "numactl"},
        Case{"NumaBalancing", [](Tree& t) { t.write("/proc/sys/kernel/numa_balancing", "1\n"); }, "numa", Level::kWarn,
             "numa_balancing", "kernel.numa_balancing=0"},
        Case{"NoPeermem",
             [](Tree& t) { t.replace("/proc/driver/nvidia/version", "UNIX Open Kernel", "UNIX x86_64 Kernel"); }, "gpu",
             Level::kWarn, "cannot reach", "modprobe nvidia-peermem"},
        Case{"OldKernelForDmaBuf", [](Tree& t) { t.write("/proc/sys/kernel/osrelease", "5.4.0-150-generic\n"); }, "gpu",
             Level::kWarn, "cannot reach", "5.12"},
        Case{"NoGpuDriver", [](Tree& t) { t.remove("/proc/driver"); }, "gpu", Level::kFail, "no driver",
             "modprobe nvidia"},
        Case{"GpuTranslated", [](Tree& t) { t.write("/sys/bus/pci/devices/0000:17:00.0/iommu_group/type", "DMA\n"); },
             "gpu", Level::kWarn, "0000:17:00.0", "iommu=pt"}),
    [](const auto& info) { return info.param.name; });

constexpr const char* kLibraries = "/usr/lib/x86_64-linux-gnu/";

INSTANTIATE_TEST_SUITE_P(
    Process, OneThingWrong,
    testing::Values(
        Case{"PortTaken",
             [](Tree& t) { t.replace("/proc/net/tcp", "00000000:0016", "00000000:1CF3"); },
             "ports.listen",
             Level::kFail,
             "127.0.0.1:7411 is taken",
             "ss -tlnp",
             {.listen = {"tcp://127.0.0.1:7411"}}},
        Case{"PortTakenByIpv6",
             [](Tree& t) {
               t.write("/proc/net/tcp6",
                       "sl local_address remote_address st\n"
                       "0: 00000000000000000000000000000000:1CF3 00000000000000000000000000000000:0000 0A\n");
             },
             "ports.listen",
             Level::kFail,
             "taken",
             "ss -tlnp",
             {.listen = {"tcp://10.0.0.1:7411"}}},
        Case{"PrivilegedPort",
             kNothing,
             "ports.listen",
             Level::kFail,
             "port 80",
             "1024",
             {.listen = {"tcp://0.0.0.0:80"}}},
        Case{"EphemeralPort",
             kNothing,
             "ports.listen",
             Level::kWarn,
             "outgoing connections",
             "ip_local_reserved_ports=40000",
             {.listen = {"tcp://0.0.0.0:40000"}}},
        Case{"FewEphemeralPorts", [](Tree& t) { t.write("/proc/sys/net/ipv4/ip_local_port_range", "60000\t60999\n"); },
             "ports.ephemeral", Level::kWarn, "1000 ports", "ip_local_port_range"},
        Case{"NoFolderForSocket",
             kNothing,
             "ports.listen",
             Level::kFail,
             "/run/genie does not exist",
             "mkdir -p /run/genie",
             {.listen = {"unix:/run/genie/node.sock"}}},
        Case{"SocketTaken",
             [](Tree& t) {
               t.write("/proc/net/unix",
                       "Num RefCount Protocol Flags Type St Inode Path\n"
                       "0000000000000000: 00000002 00000000 00010000 0001 01 31337 /dev/node.sock\n");
             },
             "ports.listen",
             Level::kFail,
             "/dev/node.sock is taken",
             "ss -xlp",
             {.listen = {"unix:/dev/node.sock"}}},
        Case{"SocketPathTooLong",
             kNothing,
             "ports.listen",
             Level::kFail,
             "longer",
             "107",
             {.listen = {"unix:/" + std::string(120, 'x')}}},
        Case{"NoAddress",
             kNothing,
             "ports.listen",
             Level::kFail,
             "'http://x'",
             "tcp://host:port",
             {.listen = {"http://x"}}},
        Case{"PollerWithoutCore",
             [](Tree& t) { t.replace("/proc/self/status", "0-63", "5"); },
             "cores",
             Level::kWarn,
             "1 core; a poller that never sleeps and its workers want 2",
             "polling: adaptive",
             {.busy_polling = true}},
        Case{"TooManyThreads",
             [](Tree& t) { t.write("/sys/fs/cgroup/cpu.max", "250000 100000\n"); },
             "cores",
             Level::kWarn,
             "leaves 2.5; a poller and its workers want 5",
             "fewer threads",
             {.threads = 4}},
        Case{"UnknownTransport",
             kNothing,
             "transport",
             Level::kFail,
             "'toaster' is no transport",
             "choose a transport",
             {.transport = "toaster"}},
        Case{"ProviderOfAnotherRelease",
             [](Tree& t) {
               t.write(std::string(kLibraries) + "libmlx5.so.1.24.44.0", ""),
                   t.remove(std::string(kLibraries) + "libmlx5.so.1.22.39.0");
             },
             "version.rdma-core", Level::kFail, "libibverbs 39.0, libmlx5 44.0", "--reinstall"},
        Case{"TwoRdmaCores", [](Tree& t) { t.write("/usr/lib64/libibverbs.so.1", ""); }, "version.rdma-core",
             Level::kWarn, "/usr/lib64", "keep one"},
        Case{"NoRdmaCore", [](Tree& t) { t.remove(std::string(kLibraries) + "libibverbs.so.1"); }, "version.rdma-core",
             Level::kWarn, "not installed", "ibverbs-providers"},
        Case{"TwoUcx", [](Tree& t) { t.write("/usr/local/lib/libucp.so.0", ""); }, "version.ucx", Level::kWarn,
             "/usr/local/lib, /usr/lib/x86_64-linux-gnu", "keep one"},
        Case{"UcxWithoutRdma", [](Tree& t) { t.remove(std::string(kLibraries) + "ucx/libuct_ib.so.0"); }, "version.ucx",
             Level::kWarn, "no module for RDMA", "libucx0"},
        Case{"TwoLibtorch",
             [](Tree& t) {
               t.write("/proc/self/maps",
                       "7f00-7f01 r-xp 00000000 fe:00 1 /opt/a/lib/libc10.so\n7f02-7f03 r-xp 00000000 fe:00 2 "
                       "/opt/b/lib/libtorch_cpu.so\n");
             },
             "version.libtorch", Level::kFail, "/opt/a/lib, /opt/b/lib", "LD_LIBRARY_PATH"},
        Case{"OtherLibtorch",
             [](Tree& t) {
               t.write("/proc/self/maps", "7f00-7f01 r-xp 00000000 fe:00 1 /opt/torch/lib/libtorch_cpu.so\n");
               t.write("/opt/torch/version.py", "from typing import Optional\n__version__ = '2.12.1+cpu'\n");
             },
             "version.libtorch",
             Level::kFail,
             "libtorch 2.12.1+cpu in /opt/torch/lib; this build was made for 2.13.0",
             "GENIE_LIBTORCH",
             {.torch_version = "2.13.0"}},
        Case{"OldKernel", [](Tree& t) { t.write("/proc/sys/kernel/osrelease", "5.13.2\n"); }, "version.kernel",
             Level::kWarn, "5.13.2", "newer kernel"}),
    [](const auto& info) { return info.param.name; });

TEST(Doctor, AddressesOfOthersAreNotInTheWay) {
  Tree tree("roce_cluster");
  // 10.0.0.2:7411 listens; 10.0.0.1:7411 is free.
  tree.replace("/proc/net/tcp", "00000000:0016", "0200000A:1CF3");
  EXPECT_EQ(worst(check_ports(tree.host(), {.listen = {"tcp://10.0.0.1:7411"}})), Level::kOk);
  EXPECT_EQ(worst(check_ports(tree.host(), {.listen = {"tcp://10.0.0.2:7411"}})), Level::kFail);
  EXPECT_EQ(worst(check_ports(tree.host(), {.listen = {"tcp://0.0.0.0:7411"}})), Level::kFail);
  EXPECT_EQ(worst(check_ports(tree.host(), {.listen = {"tcp://node-a:7411"}})), Level::kFail);
  // A connection to that port is no listener.
  tree.replace("/proc/net/tcp", " 0A ", " 01 ");
  EXPECT_EQ(worst(check_ports(tree.host(), {.listen = {"tcp://10.0.0.2:7411"}})), Level::kOk);
  tree.write("/proc/sys/net/ipv4/ip_local_reserved_ports", "8080,39990-40010\n");
  EXPECT_EQ(worst(check_ports(tree.host(), {.listen = {"tcp://0.0.0.0:40000"}})), Level::kOk);
}

TEST(Doctor, PeermemServesWhereDmaBufDoesNot) {
  Tree tree("roce_cluster");
  tree.replace("/proc/driver/nvidia/version", "UNIX Open Kernel", "UNIX x86_64 Kernel");
  tree.write("/sys/module/nvidia_peermem/refcnt", "0\n");
  const Lines lines = check_gpu(tree.host());
  EXPECT_EQ(worst(lines), Level::kOk) << text_of(lines);
  EXPECT_NE(lines[0].text.find("nvidia-peermem"), std::string::npos);
}

// A tree without anything in it, and one whose files hold nonsense: lines, and no crash.
TEST(Doctor, NothingAndNonsenseAreSurvived) {
  Tree empty("roce_cluster");
  for (const char* folder : {"/proc", "/sys", "/usr", "/dev"}) empty.remove(folder);
  const Lines lines =
      examine(empty.host(), {.listen = {"tcp://0.0.0.0:7411", "unix:/node.sock", "tcp://:", "tcp://x:99999"}});
  EXPECT_GT(lines.size(), 10U);
  const std::string kNonsense = "\xff\xfe-1 99999999999999999999999 :::,,--- \t\n0: : : :\n=\n";
  for (const char* name : {"roce_cluster", "soft_roce"}) {
    for (const auto& [path, content] : Tree(name).files().items()) {
      Tree tree(name);
      for (const std::string& text : {kNonsense, std::string()}) {
        tree.write(path, text);
        EXPECT_GT(examine(tree.host(), {.listen = {"tcp://0.0.0.0:7411"}}).size(), 10U);
      }
    }
  }
}

}  // namespace
}  // namespace genie::doctor
