#include "src/session/data_connection.h"

#include <algorithm>
#include <array>
#include <utility>

#include "datapath/base/log.h"
#include "datapath/base/tcp_address.h"
#include "src/control/host_id.h"

namespace genie::session {
namespace {

constexpr uint64_t kCloseMs = 1'000;
constexpr uint64_t kLeastCloseMs = 50;
constexpr uint64_t kSliceNs = 10'000'000;

// A node that listens on all its addresses does not know by which one this side reaches it: by that of its control plane.
std::string reachable(const std::string& data_address, std::string_view uri) {
  Result<datapath::TcpAddress> data = datapath::parse_tcp_address(data_address);
  const Result<datapath::TcpAddress> control = datapath::parse_tcp_address(uri);
  if (!data || !control || !data->is_any()) return data_address;
  data->host = control->host;
  return data->to_string();
}

std::string offered(const control::OpenAnswer& answer) {
  std::string names;
  for (const control::DataOffer& offer : answer.data) names += (names.empty() ? "" : ", ") + offer.transport;
  return names;
}

struct Attempt {
  Status status;
  bool was_there = false;  // this side has what it takes: a failure is worth a warning
  bool reached = false;    // somebody has taken the token
  std::unique_ptr<datapath::Transport> transport;
  datapath::EndpointId endpoint;
};

// The first message of the node's: bytes come through, and they are those of the node that opened the session.
Status await_welcome(datapath::Transport& transport, Deadline deadline) {
  std::array<datapath::Completion, 4> completions;
  while (!deadline.expired()) {
    const size_t count = transport.poll(completions);
    for (datapath::Completion& completion : std::span(completions).first(count)) {
      if (completion.opcode == datapath::Opcode::kReceive) return {};
      if (completion.opcode == datapath::Opcode::kDisconnected) return {Errc::kDisconnected, "it hung up"};
      completion = {};
    }
    if (count == 0) transport.wait(std::min(deadline.left_ns(), kSliceNs));
  }
  return {Errc::kTimedOut, "it took the connection, and no byte came"};
}

// For people: what may be wrong with this transport.
std::string cure(std::string_view transport) {
  if (transport == "shm") return "shm works within one machine, between processes that see the same files";
  return "see the node's --data-listen, and what stands between the two machines";
}

Attempt attempt(const control::DataOffer& offer, const control::OpenAnswer& answer, std::string_view uri,
                const LinkOptions& options, Deadline deadline) {
  Attempt out;
  datapath::BackendOptions backend;
  backend.control_timeout_ms = options.progress_timeout_ms;
  backend.liveness_ms = options.peer_timeout_ms;
  backend.verbs_devices = options.rdma_devices;
  const std::string address = reachable(offer.address, uri);
  backend.towards = address;
  Result<std::unique_ptr<datapath::Transport>> transport = datapath::make_backend(offer.transport, backend);
  if (!transport) {
    out.was_there = transport.code() != Errc::kUnsupported;
    out.status = Status(transport.code(), std::string(transport.status().text()));
    return out;
  }
  out.was_there = true;
  const Result<datapath::EndpointId> endpoint =
      (*transport)->connect(address, std::as_bytes(std::span(answer.data_token)), deadline);
  out.reached = endpoint.ok();
  const Status connected = endpoint ? await_welcome(**transport, deadline) : endpoint.status();
  if (!connected.ok()) {
    out.status = Status(connected.code(), "its data endpoint " + offer.address + " does not answer (" +
                                              connected.to_string() + "): " + cure(offer.transport));
    return out;
  }
  out.transport = std::move(*transport);
  out.endpoint = *endpoint;
  return out;
}

}  // namespace

TransportPlan plan_transports(std::string_view wanted, const control::OpenAnswer& answer,
                              const std::vector<std::string>& compiled_in, bool same_machine) {
  TransportPlan plan;
  const auto offer_of = [&](const std::string& name) {
    return std::ranges::find(answer.data, name, &control::DataOffer::transport);
  };
  for (const std::string_view ranked : datapath::kBackendRanks) {
    const std::string name(ranked);
    const auto offer = offer_of(name);
    if (offer == answer.data.end() || (wanted != "auto" && wanted != name)) continue;
    if (std::ranges::find(compiled_in, name) == compiled_in.end()) {
      plan.passed_over.push_back({name, "this program is built without it", true});
    } else if (name == "shm" && !same_machine && wanted == "auto") {
      plan.passed_over.push_back({name, "the node runs on another machine", false});
    } else {
      plan.tries.push_back(*offer);
    }
  }
  return plan;
}

void keep_better(std::string_view chosen, std::vector<PassedOver>& passed_over) {
  const auto rank = [](std::string_view name) { return std::ranges::find(datapath::kBackendRanks, name); };
  std::erase_if(passed_over, [&](const PassedOver& passed) { return rank(passed.transport) > rank(chosen); });
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

namespace {

bool is_same_machine(std::string_view uri, const control::OpenAnswer& answer) {
  return uri.starts_with("unix:") || (!control::host_id().empty() && control::host_id() == answer.host_id);
}

// What was tried and failed, behind an error that ended the trying.
Status with_reasons(const Status& status, const std::vector<PassedOver>& passed_over) {
  std::string text(status.text());
  for (const PassedOver& passed : passed_over) {
    if (text.find(passed.why) == std::string::npos) text += "; not " + passed.transport + ": " + passed.why;
  }
  return {status.code(), std::move(text)};
}

void close_session(control::ControlClient& control, const control::OpenAnswer& answer, Deadline deadline) {
  const uint64_t left_ms = deadline.left_ns() / 1'000'000;
  (void)control.close(answer.session_id, Deadline::after_ms(std::clamp(left_ms, kLeastCloseMs, kCloseMs)));
}

}  // namespace

Result<DataConnection> connect_data(control::ControlClient& control, const control::OpenOrder& order,
                                    std::string_view uri, const LinkOptions& options, Deadline deadline) {
  DataConnection out;
  Result<control::OpenAnswer> answer = control.open(order, deadline);
  GENIE_TRY(answer.status());
  const std::string place = "node '" + answer->node_name + "' at " + std::string(uri);
  TransportPlan plan =
      plan_transports(options.transport, *answer, datapath::compiled_backends(), is_same_machine(uri, *answer));
  Status last(Errc::kUnsupported, "it offers " + offered(*answer) + ", and none of these works here");
  bool spent = false;  // the token
  for (size_t i = 0; i < plan.tries.size() && out.transport == nullptr; ++i) {
    if (spent) {
      close_session(control, *answer, deadline);
      answer = control.open(order, deadline);
      if (!answer) return with_reasons(answer.status(), plan.passed_over);
    }
    // What is still to be tried gets its share of the time.
    const size_t left = plan.tries.size() - i;
    const Deadline share = left == 1 ? deadline : Deadline::after_ms(deadline.left_ns() / 1'000'000 / left);
    Attempt tried = attempt(plan.tries[i], *answer, uri, options, share);
    spent = tried.reached;
    if (tried.status.ok()) {
      out.name = plan.tries[i].transport;
      out.transport = std::move(tried.transport);
      out.endpoint = tried.endpoint;
    } else {
      last = tried.status;
      plan.passed_over.push_back({plan.tries[i].transport, std::string(last.text()), tried.was_there});
    }
  }
  if (out.transport == nullptr) {
    close_session(control, *answer, deadline);
    return with_reasons(Status(last.code(), place + ": " + std::string(last.text())), plan.passed_over);
  }
  keep_better(out.name, plan.passed_over);
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
