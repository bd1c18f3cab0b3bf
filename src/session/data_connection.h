// How a client's bytes reach a node: the best transport that both ends have.
//
// Purpose: ranks what a node offers (shm within one machine, then verbs, then UCX), tries one after the other, and says which
//   it is and why the better ones are not.
// Thread-safety: any thread. Ownership: values; the connection's transport belongs to the caller.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "datapath/backends.h"
#include "src/control/control.h"
#include "src/session/link.h"

namespace genie::session {

// What was not taken, and why. Loud: it was there, should have worked, and would have been faster.
struct PassedOver {
  std::string transport;
  std::string why;
  bool loud = false;
};

struct TransportPlan {
  std::vector<control::DataOffer> tries;  // best first
  std::vector<PassedOver> passed_over;
};

// `wanted`: "auto" or the name of one. `compiled_in`: what this program has. `same_machine`: memory can be shared.
TransportPlan plan_transports(std::string_view wanted, const control::OpenAnswer& answer,
                              const std::vector<std::string>& compiled_in, bool same_machine);

// Drops what is no better than the one that was chosen.
void keep_better(std::string_view chosen, std::vector<PassedOver>& passed_over);

// "ucx: the best that both ends have (not shm: the node runs on another machine)"
std::string explain(std::string_view chosen, std::string_view wanted, const control::OpenAnswer& answer,
                    const std::vector<PassedOver>& passed_over);

// A session that is open on the control plane, and its connected data endpoint.
struct DataConnection {
  control::OpenAnswer answer;
  std::unique_ptr<datapath::Transport> transport;
  datapath::EndpointId endpoint;
  std::string name;  // of the transport
  std::string why;
};

// Opens the session, and anew for each further transport that is tried: a token is good for one connection.
Result<DataConnection> connect_data(control::ControlClient& control, const control::OpenOrder& order,
                                    std::string_view uri, const LinkOptions& options, Deadline deadline);

}  // namespace genie::session
