// What wire.cc asks the kernel for: namespaces, interfaces between them, addresses, offloads.
//
// Thread-safety: a Visit concerns its thread alone. Errors: std::system_error.
#pragma once

#include <string>

#include "datapath/base/file_descriptor.h"

namespace genie::test {

// The calling thread is in another network namespace while this lives.
class Visit {
 public:
  explicit Visit(int network);
  Visit(const Visit&) = delete;
  Visit& operator=(const Visit&) = delete;
  ~Visit();

 private:
  datapath::FileDescriptor back_;
};

// This process gets mounts and a network of its own, if need be in a user namespace of its own. Before any thread.
void leave_networks();
// A network namespace with nothing but its loopback, which is up.
datapath::FileDescriptor make_network();
// The calling thread's network namespace.
datapath::FileDescriptor this_network();
// /sys shows the interfaces of the namespace that mounted it: once more, for this process and its children.
void mount_sys();

// A veth pair with one end in the calling thread's namespace, the other in `network`.
void make_veth(const std::string& name, const std::string& peer, int network);
void remove_interface(const std::string& name);
void set_address(const std::string& name, const std::string& address);  // of a /24
void set_up(const std::string& name, bool up);
// Until it has a carrier and the kernel says so, which can take a second: before, nobody takes it for a device.
void wait_running(const std::string& name);
// A frame leaves as it would on a cable: with its checksum, and no longer than the interface's MTU.
void turn_offloads_off(const std::string& name);

}  // namespace genie::test
