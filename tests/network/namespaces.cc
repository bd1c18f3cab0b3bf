#include "tests/network/namespaces.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/ethtool.h>
#include <linux/if_link.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/sockios.h>
#include <linux/veth.h>
#include <net/if.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <string_view>
#include <system_error>
#include <thread>

#include "datapath/base/clock.h"

namespace genie::test {
namespace {

using datapath::FileDescriptor;

constexpr uint64_t kCarrierPatienceMs = 60'000;

void check(bool ok, const std::string& what, int error = errno) {
  if (!ok) throw std::system_error(error, std::generic_category(), what);
}

void write_file(const char* path, const std::string& text) {
  const FileDescriptor file(::open(path, O_WRONLY | O_CLOEXEC));
  check(file.valid() && ::write(file.get(), text.data(), text.size()) == static_cast<ssize_t>(text.size()), path);
}

FileDescriptor any_socket() {
  FileDescriptor fd(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  check(fd.valid(), "socket");
  return fd;
}

ifreq request_for(const std::string& name) {
  ifreq request{};
  check(name.size() < sizeof(request.ifr_name), name, ENAMETOOLONG);
  std::memcpy(request.ifr_name, name.data(), name.size());
  return request;
}

// One request to the kernel's routing socket, made of nested attributes.
class LinkMessage {
 public:
  LinkMessage(uint16_t type, uint16_t flags) {
    nlmsghdr* const header = at<nlmsghdr>(append(sizeof(nlmsghdr)));
    header->nlmsg_type = type;
    header->nlmsg_flags = static_cast<uint16_t>(NLM_F_REQUEST | NLM_F_ACK | flags);
    append(sizeof(ifinfomsg));
  }

  size_t open(uint16_t type) {
    const size_t where = append(sizeof(rtattr));
    at<rtattr>(where)->rta_type = type;
    return where;
  }
  void close(size_t where) { at<rtattr>(where)->rta_len = static_cast<uint16_t>(size_ - where); }
  void add(uint16_t type, const void* value, size_t bytes) {
    const size_t where = open(type);
    std::memcpy(at<char>(append(bytes)), value, bytes);
    at<rtattr>(where)->rta_len = static_cast<uint16_t>(RTA_LENGTH(bytes));
  }
  void add(uint16_t type, const std::string& text) { add(type, text.c_str(), text.size() + 1); }
  size_t append(size_t bytes) {
    const size_t where = size_;
    size_ += NLMSG_ALIGN(bytes);
    check(size_ <= bytes_.size(), "netlink message", EMSGSIZE);
    return where;
  }

  void send(const std::string& what) {
    const FileDescriptor fd(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE));
    check(fd.valid(), "netlink socket");
    at<nlmsghdr>(0)->nlmsg_len = static_cast<uint32_t>(size_);
    check(::send(fd.get(), bytes_.data(), size_, 0) == static_cast<ssize_t>(size_), what);
    check(::recv(fd.get(), bytes_.data(), bytes_.size(), 0) >= static_cast<ssize_t>(NLMSG_LENGTH(sizeof(nlmsgerr))),
          what);
    const int error = -at<nlmsgerr>(NLMSG_HDRLEN)->error;
    check(error == 0, what, error);
  }

 private:
  template <typename T>
  T* at(size_t where) {
    return reinterpret_cast<T*>(bytes_.data() + where);
  }

  alignas(NLMSG_ALIGNTO) std::array<char, 1024> bytes_{};
  size_t size_ = 0;
};

}  // namespace

Visit::Visit(int network) : back_(this_network()) { check(::setns(network, CLONE_NEWNET) == 0, "setns"); }
Visit::~Visit() { (void)::setns(back_.get(), CLONE_NEWNET); }

void leave_networks() {
  constexpr int kOwn = CLONE_NEWNET | CLONE_NEWNS;
  const std::string user = std::to_string(::geteuid());
  const std::string group = std::to_string(::getegid());
  if (::unshare(kOwn) != 0) {
    check(errno == EPERM, "unshare");
    check(::unshare(CLONE_NEWUSER | kOwn) == 0, "neither root nor allowed a user namespace");
    write_file("/proc/self/setgroups", "deny");
    write_file("/proc/self/uid_map", "0 " + user + " 1");
    write_file("/proc/self/gid_map", "0 " + group + " 1");
  }
  check(::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0, "private mounts");
  set_up("lo", true);
  mount_sys();
}

FileDescriptor make_network() {
  const FileDescriptor before = this_network();
  check(::unshare(CLONE_NEWNET) == 0, "a network namespace");
  FileDescriptor made = this_network();
  set_up("lo", true);
  check(::setns(before.get(), CLONE_NEWNET) == 0, "setns");
  return made;
}

FileDescriptor this_network() {
  FileDescriptor fd(::open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC));
  check(fd.valid(), "/proc/thread-self/ns/net");
  return fd;
}

void mount_sys() {
  check(::mount("sysfs", "/sys", "sysfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, nullptr) == 0,
        "/sys cannot be mounted");
}

void make_veth(const std::string& name, const std::string& peer, int network) {
  LinkMessage message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL);
  message.add(IFLA_IFNAME, name);
  const size_t info = message.open(IFLA_LINKINFO);
  message.add(IFLA_INFO_KIND, "veth");
  const size_t data = message.open(IFLA_INFO_DATA);
  const size_t other = message.open(VETH_INFO_PEER);
  message.append(sizeof(ifinfomsg));
  message.add(IFLA_IFNAME, peer);
  message.add(IFLA_NET_NS_FD, &network, sizeof(network));
  for (const size_t open : {other, data, info}) message.close(open);
  message.send("a veth pair");
}

void remove_interface(const std::string& name) {
  LinkMessage message(RTM_DELLINK, 0);
  message.add(IFLA_IFNAME, name);
  message.send("removing " + name);
}

void set_address(const std::string& name, const std::string& address) {
  const FileDescriptor fd = any_socket();
  const auto set = [&](unsigned long what, const char* text) {
    ifreq request = request_for(name);
    sockaddr_in internet{};
    internet.sin_family = AF_INET;
    check(::inet_pton(AF_INET, text, &internet.sin_addr) == 1, text, EINVAL);
    std::memcpy(&request.ifr_addr, &internet, sizeof(internet));
    check(::ioctl(fd.get(), what, &request) == 0, "the address of " + name);
  };
  set(SIOCSIFADDR, address.c_str());
  set(SIOCSIFNETMASK, "255.255.255.0");
}

void set_up(const std::string& name, bool up) {
  const FileDescriptor fd = any_socket();
  ifreq request = request_for(name);
  check(::ioctl(fd.get(), SIOCGIFFLAGS, &request) == 0, name);
  constexpr short kUp = IFF_UP;
  request.ifr_flags = static_cast<short>(up ? request.ifr_flags | kUp : request.ifr_flags & ~kUp);
  check(::ioctl(fd.get(), SIOCSIFFLAGS, &request) == 0, name);
}

void wait_running(const std::string& name) {
  const FileDescriptor fd = any_socket();
  const Deadline deadline = Deadline::after_ms(kCarrierPatienceMs);
  for (;;) {
    ifreq request = request_for(name);
    check(::ioctl(fd.get(), SIOCGIFFLAGS, &request) == 0, name);
    if ((request.ifr_flags & IFF_RUNNING) != 0) return;
    check(!deadline.expired(), name + " gets no carrier", ETIMEDOUT);
    std::this_thread::yield();
  }
}

void turn_offloads_off(const std::string& name) {
  const FileDescriptor fd = any_socket();
  for (const uint32_t feature : {ETHTOOL_STSO, ETHTOOL_SGSO, ETHTOOL_SGRO, ETHTOOL_SSG, ETHTOOL_STXCSUM}) {
    ethtool_value off{.cmd = feature, .data = 0};
    ifreq request = request_for(name);
    request.ifr_data = reinterpret_cast<char*>(&off);
    check(::ioctl(fd.get(), SIOCETHTOOL, &request) == 0, "the offloads of " + name);
  }
}

}  // namespace genie::test
