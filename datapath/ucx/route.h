// Which network device leads to a host: UCX takes any of a machine's, also one that does not.
//
// Thread-safety: any thread.
#pragma once

#include <string>
#include <string_view>

namespace genie::datapath::ucx {

// "eth0": the device by which `address` ("tcp://host:port", of a peer or of this machine) is reached. Empty where that cannot be
// said (a host name that is unknown, all addresses of this machine), and where there are RDMA devices, among which UCX chooses
// better.
std::string device_towards(std::string_view address);

}  // namespace genie::datapath::ucx
