// What a list of UCX's transports (UCX_TLS) allows, without UCX's headers.
//
// Thread-safety, ownership: plain functions of a text.
#pragma once

#include <string_view>

namespace genie::datapath::ucx {

bool may_use_tcp(std::string_view list);
// One between machines, on which UCX can watch over its peers.
bool may_use_network(std::string_view list);
// Nothing but the memory of this machine.
bool is_shared_memory(std::string_view list);

}  // namespace genie::datapath::ucx
