// Versions that do not go together: several copies of a library, or parts of different releases of one.
#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <set>
#include <sstream>

#include "tools/doctor/doctor.h"
#include "tools/doctor/rdma.h"

namespace genie::doctor {
namespace {

// Where the dynamic linker looks, without the folders that are another one's symbolic link.
std::vector<std::string> library_folders(const Host& host) {
  std::vector<std::string> folders;
  const auto add = [&](const std::string& folder) {
    const std::string real = host.resolved(folder);
    if (!real.empty() && std::find(folders.begin(), folders.end(), real) == folders.end()) folders.push_back(real);
  };
  if (const char* path = host.live() ? std::getenv("LD_LIBRARY_PATH") : nullptr; path != nullptr) {
    std::istringstream all(path);
    for (std::string folder; std::getline(all, folder, ':');) {
      if (folder.starts_with('/')) add(folder);
    }
  }
  for (const char* folder :
       {"/usr/local/lib", "/usr/local/lib64", "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64",
        "/usr/lib", "/lib/x86_64-linux-gnu", "/lib64"}) {
    add(folder);
  }
  return folders;
}

std::vector<std::string> folders_with(const Host& host, const std::string& file) {
  std::vector<std::string> found;
  for (const std::string& folder : library_folders(host)) {
    if (host.has(folder + "/" + file)) found.push_back(folder);
  }
  return found;
}

std::string joined(const std::vector<std::string>& parts, const char* between) {
  std::string text;
  for (const std::string& part : parts) text += (text.empty() ? "" : between) + part;
  return text;
}

// rdma-core's libraries carry its version behind their own: libmlx5.so.1.24.44.0 is of rdma-core 44.0. Empty for other
// names.
std::string rdma_core_version(const std::string& file, const std::string& library) {
  const std::string begin = library + ".so.";
  if (!file.starts_with(begin)) return {};
  std::vector<std::string> numbers;
  std::istringstream all(file.substr(begin.size()));
  for (std::string number; std::getline(all, number, '.');) numbers.push_back(number);
  return numbers.size() == 4 ? numbers[2] + "." + numbers[3] : "";
}

Lines check_rdma_core(const Host& host) {
  constexpr const char* kCheck = "version.rdma-core";
  const std::vector<std::string> folders = folders_with(host, "libibverbs.so.1");
  if (folders.empty()) {
    const bool devices = !rdma_devices(host).empty();
    return {{kCheck, devices ? Level::kWarn : Level::kOk, "libibverbs is not installed",
             devices ? "apt-get install libibverbs1 ibverbs-providers librdmacm1" : ""}};
  }
  Lines lines;
  if (folders.size() > 1) {
    lines.push_back({kCheck, Level::kWarn, "libibverbs lies in several folders: " + joined(folders, ", "),
                     "keep one (the distribution's rdma-core, or the vendor's); programs may mix them otherwise"});
  }
  std::map<std::string, std::string> found;  // library -> version
  for (const std::string& name : host.names(folders.front())) {
    for (const char* library : {"libibverbs", "librdmacm", "libmlx4", "libmlx5", "libefa"}) {
      if (const std::string version = rdma_core_version(name, library); !version.empty()) found[library] = version;
    }
  }
  std::set<std::string> versions;
  std::string text;
  for (const auto& [library, version] : found) {
    versions.insert(version);
    text += (text.empty() ? "" : ", ") + library + " " + version;
  }
  if (versions.size() > 1) {
    lines.push_back(
        {kCheck, Level::kFail, "libraries of different releases of rdma-core: " + text,
         "install all of one release (apt-get install --reinstall libibverbs1 ibverbs-providers librdmacm1): "
         "libibverbs silently leaves out drivers of another"});
  } else {
    lines.push_back(
        {kCheck, Level::kOk, "rdma-core " + (versions.empty() ? "of unknown version" : *versions.begin()), ""});
  }
  return lines;
}

Lines check_ucx(const Host& host) {
  constexpr const char* kCheck = "version.ucx";
  const std::vector<std::string> folders = folders_with(host, "libucp.so.0");
  if (folders.empty()) return {{kCheck, Level::kOk, "UCX is not installed", ""}};
  Lines lines;
  if (folders.size() > 1) {
    lines.push_back({kCheck, Level::kWarn, "UCX lies in several folders: " + joined(folders, ", "),
                     "keep one, or let LD_LIBRARY_PATH begin with the one that is meant: parts of two do not fit"});
  }
  const std::string folder = folders.front();
  const auto version = host.field(folder + "/pkgconfig/ucx.pc", "Version");
  lines.push_back({kCheck, Level::kOk, "UCX " + version.value_or("of unknown version") + " in " + folder, ""});
  if (!rdma_devices(host).empty() && !host.has(folder + "/ucx/libuct_ib.so.0")) {
    lines.push_back({kCheck, Level::kWarn, "UCX has no module for RDMA (ucx/libuct_ib.so.0): it would use TCP",
                     "install UCX's RDMA module (Debian: in libucx0; elsewhere ucx-ib), or build UCX --with-verbs"});
  }
  return lines;
}

// "2.13.0+cpu" of the wheel's version.py, or of the file that an unpacked libtorch brings.
std::string torch_version(const Host& host, const std::string& lib_folder) {
  const std::string parent = std::filesystem::path(lib_folder).parent_path().string();
  for (const std::string& line : host.lines(parent + "/version.py")) {
    const size_t begin = line.find('\'');
    const size_t end = line.rfind('\'');
    if (line.starts_with("__version__") && begin < end) return line.substr(begin + 1, end - begin - 1);
  }
  return host.text(parent + "/build-version").value_or("");
}

// What this process has loaded: `genie` is linked with libtorch.
Lines check_libtorch(const Host& host, const Purpose& purpose) {
  constexpr const char* kCheck = "version.libtorch";
  std::set<std::string> folders;
  for (const std::string& line : host.lines("/proc/self/maps")) {
    const size_t slash = line.find('/');
    if (slash == std::string::npos) continue;
    const std::filesystem::path path = line.substr(slash);
    for (const char* library : {"libtorch_cpu.so", "libc10.so", "libtorch.so"}) {
      if (path.filename() == library) folders.insert(path.parent_path().string());
    }
  }
  if (folders.empty()) return {};
  if (folders.size() > 1) {
    return {{kCheck, Level::kFail,
             "libraries of several libtorch are loaded: " + joined({folders.begin(), folders.end()}, ", "),
             "take the others out of LD_LIBRARY_PATH and LD_PRELOAD"}};
  }
  const std::string version = torch_version(host, *folders.begin());
  const std::string release = version.substr(0, version.find('+'));
  if (!version.empty() && !purpose.torch_version.empty() && release != purpose.torch_version) {
    return {
        {kCheck, Level::kFail,
         fmt::format("libtorch {} in {}; this build was made for {}", version, *folders.begin(), purpose.torch_version),
         "install torch " + purpose.torch_version + ", or build Genie with the other one (GENIE_LIBTORCH)"}};
  }
  return {{kCheck, Level::kOk,
           fmt::format("libtorch {} in {}", version.empty() ? "of unknown version" : version, *folders.begin()), ""}};
}

Line kernel_line(const Host& host) {
  const std::string release = host.text("/proc/sys/kernel/osrelease").value_or("");
  Line line{"version.kernel", Level::kOk, "Linux " + release, ""};
  const auto major = leading_number(release);
  const size_t dot = release.find('.');
  const auto minor =
      dot == std::string::npos ? std::nullopt : leading_number(std::string_view(release).substr(dot + 1));
  if (major && minor && (*major < 5 || (*major == 5 && *minor < 14))) {
    line.level = Level::kWarn;
    line.text += ": memory cannot be made present in one call (from 5.14 on)";
    line.cure = "a newer kernel; everything works, but large uploads begin more slowly";
  }
  return line;
}

}  // namespace

Lines check_versions(const Host& host, const Purpose& purpose) {
  Lines all{kernel_line(host)};
  for (const Lines& lines : {check_libtorch(host, purpose), check_ucx(host), check_rdma_core(host)}) {
    all.insert(all.end(), lines.begin(), lines.end());
  }
  return all;
}

}  // namespace genie::doctor
