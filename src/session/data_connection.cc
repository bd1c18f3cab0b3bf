#include "src/session/data_connection.h"

#include <algorithm>
#include <utility>

#include "datapath/base/log.h"
#include "src/control/host_id.h"

namespace genie::session {
namespace {

constexpr uint64_t kCloseMs = 1'000;

// A node that listens on all its addresses does not know by which one this side reaches it: by that of its control plane.
std::string reachable(const std::string& data_address, std::string_view uri) {
  constexpr std::string_view kScheme = "tcp://";
  const auto host_of = [&](std::string_view address) {
    return address.substr(kScheme.size(), address.rfind(':') - kScheme.size());
  };
  if (!data_address.starts_with(kScheme) || !uri.starts_with(kScheme)) return data_address;
  const std::string_view host = host_of(data_address);
  if (host != "0.0.0.0" && host != "*" && host != "[::]" && !host.empty()) return data_address;
  return std::string(kScheme) + std::string(host_of(uri)) + data_address.substr(data_address.rfind(':'));
}

std::string offered(const control::OpenAnswer& answer) {
  std::string names;
  for (const control::DataOffer& offer : answer.data) names += (names.empty() ? "" : ", ") + offer.transport;
  return names;
}

struct Attempt {
  Status status;
  bool was_there = false;  // this side has what it takes: a failure is worth a warning
  std::unique_ptr<datapath::Transport> transport;
  datapath::EndpointId endpoint;
};

Attempt attempt(const control::DataOffer& offer, const control::OpenAnswer& answer, std::string_view uri,
                const LinkOptions& options, Deadline deadline) {
  Attempt out;
  datapath::BackendOptions backend;
  backend.control_timeout_ms = options.progress_timeout_ms;
  backend.liveness_ms = options.peer_timeout_ms;
  backend.verbs_devices = options.rdma_devices;
  Result<std::unique_ptr<datapath::Transport>> transport = datapath::make_backend(offer.transport, backend);
  if (!transport) {
    out.was_there = transport.code() != Errc::kUnsupported;
    out.status = Status(transport.code(), std::string(transport.status().text()));
    return out;
  }
  out.was_there = true;
  const Result<datapath::EndpointId> endpoint =
      (*transport)->connect(reachable(offer.address, uri), std::as_bytes(std::span(answer.data_token)), deadline);
  if (!endpoint) {
    out.status = Status(endpoint.code(), "its data endpoint " + offer.address + " does not answer (" +
                                             endpoint.status().to_string() + ")");
    return out;
  }
  out.transport = std::move(*transport);
  out.endpoint = *endpoint;
  return out;
}

}  // namespace

TransportPlan plan_transports(std::string_view wanted, const control::OpenAnswer& answer,
                              const std::vector<std::string>& compiled_in, std::string_view host_id) {
  TransportPlan plan;
  const auto offer_of = [&](const std::string& name) {
    return std::ranges::find(answer.data, name, &control::DataOffer::transport);
  };
  for (const std::string_view ranked : datapath::kBackendRanks) {
    const std::string name(ranked);
    const auto offer = offer_of(name);
    if (offer == answer.data.end() || (wanted != "auto" && wanted != name)) continue;
    const bool elsewhere = name == "shm" && (host_id.empty() || answer.host_id != host_id);
    if (std::ranges::find(compiled_in, name) == compiled_in.end()) {
      plan.passed_over.push_back({name, "this program is built without it", true});
    } else if (elsewhere && wanted == "auto") {
      plan.passed_over.push_back({name, "the node runs on another machine", false});
    } else {
      plan.tries.push_back(*offer);
    }
  }
  return plan;
}

std::string explain(std::string_view chosen, std::string_view wanted, const control::OpenAnswer& answer,
                    const std::vector<PassedOver>& passed_over) {
  std::string text(chosen);
  if (wanted == chosen) return text + ": asked for";
  text += answer.data.size() == 1 ? ": all that the node offers" : ": the best that both ends have";
  std::string rest;
  for (const PassedOver& passed : passed_over) {
    rest.append(rest.empty() ? " (" : "; ").append("not ").append(passed.transport).append(": ").append(passed.why);
  }
  return rest.empty() ? text : text + rest + ")";
}

Result<DataConnection> connect_data(control::ControlClient& control, const control::OpenOrder& order,
                                    std::string_view uri, const LinkOptions& options, Deadline deadline) {
  DataConnection out;
  Result<control::OpenAnswer> answer = control.open(order, deadline);
  GENIE_TRY(answer.status());
  const std::string place = "node '" + answer->node_name + "' at " + std::string(uri);
  TransportPlan plan = plan_transports(options.transport, *answer, datapath::compiled_backends(), control::host_id());
  Status last(Errc::kUnsupported, "it offers " + offered(*answer) + ", of which none works here");
  for (size_t i = 0; i < plan.tries.size(); ++i) {
    if (answer->session_id.empty()) {
      answer = control.open(order, deadline);
      GENIE_TRY(answer.status());
    }
    // What is still to be tried gets its share of the time.
    const size_t left = plan.tries.size() - i;
    const Deadline share = left == 1 ? deadline : Deadline::after_ms(deadline.left_ns() / 1'000'000 / left);
    Attempt tried = attempt(plan.tries[i], *answer, uri, options, share);
    if (tried.status.ok()) {
      out.name = plan.tries[i].transport;
      out.transport = std::move(tried.transport);
      out.endpoint = tried.endpoint;
      break;
    }
    last = tried.status;
    plan.passed_over.push_back({plan.tries[i].transport, std::string(tried.status.text()), tried.was_there});
    (void)control.close(answer->session_id, Deadline::after_ms(kCloseMs));
    answer->session_id.clear();
  }
  if (out.transport == nullptr) {
    if (!answer->session_id.empty()) (void)control.close(answer->session_id, Deadline::after_ms(kCloseMs));
    std::string text = place + ": " + std::string(last.text());
    for (const PassedOver& passed : plan.passed_over) {
      if (passed.why != last.text()) text += "; not " + passed.transport + ": " + passed.why;
    }
    return Status(last.code(),
                  text + "; see the node's --transport and --data-listen, and what stands between the two");
  }
  for (const PassedOver& passed : plan.passed_over) {
    if (passed.loud) {
      GENIE_LOG_WARN("{}: {} was there and would be faster than {}, but cannot be used: {}", place, passed.transport,
                     out.name, passed.why);
    }
  }
  out.why = explain(out.name, options.transport, *answer, plan.passed_over);
  GENIE_LOG_INFO("{}: transport {}", place, out.why);
  out.answer = std::move(*answer);
  return out;
}

}  // namespace genie::session
