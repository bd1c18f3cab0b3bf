// The public interface over the frontend.
#include "genie/genie.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <sstream>
#include <string_view>
#include <utility>
#include <vector>

#include "frontend/capture/context.h"
#include "frontend/capture/lift.h"
#include "frontend/capture/recorder.h"
#include "frontend/capture/registry.h"
#include "frontend/capture/session_core.h"
#include "frontend/capture/timing.h"
#include "frontend/srg/graph_view.h"

namespace genie {

using frontend::FlushReason;
using frontend::Phase;
using frontend::SessionCore;
using frontend::StorageState;

struct Session::Impl {
  explicit Impl(std::shared_ptr<SessionCore> core) : core(std::move(core)) {}
  ~Impl() { core->close(); }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;
  std::shared_ptr<SessionCore> core;
};

namespace {

constexpr auto kRemote = c10::DeviceType::PrivateUse1;

StorageState& state_of(const at::Tensor& tensor) {
  if (!is_remote(tensor)) {
    throw Error(Status(Errc::kInvalidArgument,
                       "the tensor is not on remote_accelerator; move it with .to(\"remote_accelerator:0\")"));
  }
  return *StorageState::of(tensor.storage().unsafeGetStorageImpl());
}

void add(Stats& out, SessionCore& core) {
  auto& counters = core.counters();
  const auto link = core.link().counters();
  for (frontend::Stream* stream : core.streams()) {
    out.captured_ops += stream->captured.load(std::memory_order_relaxed);
    out.shapes_cached += stream->shapes_cached.load(std::memory_order_relaxed);
    const std::lock_guard<frontend::SpinLock> guard(stream->lock);
    for (const frontend::RecordEntry& record : stream->open.records) {
      if (!record.op->bookkeeping) ++out.captured_by_op[record.op->name];
    }
  }
  out.executed_ops += counters.executed;
  out.pruned_ops += counters.pruned;
  out.client_fallbacks += counters.client_fallbacks;
  for (size_t i = 0; i < static_cast<size_t>(FlushReason::kCount); ++i) {
    const uint64_t count = counters.flushes[i];
    out.flushes += count;
    if (count > 0) out.flush_reasons[frontend::flush_reason_name(static_cast<FlushReason>(i))] += count;
  }
  out.templates_registered += link.templates_registered;
  out.template_hits += counters.template_hits;
  out.template_misses += counters.template_misses;
  out.templates_forgotten += counters.templates_forgotten;
  out.shapes_own += counters.shape_own;
  out.shapes_meta += counters.shape_meta;
  out.shapes_from_node += counters.shape_node;
  out.submissions += link.submissions;
  out.message_bytes += link.message_bytes;
  out.uploads += link.uploads;
  out.upload_bytes += link.upload_bytes;
  out.upload_known_bytes += link.upload_known_bytes;
  out.upload_copied_bytes += link.upload_copied_bytes;
  out.fetches += link.fetches;
  out.fetch_bytes += link.fetch_bytes;
  out.fetch_copied_bytes += link.fetch_copied_bytes;
  out.snapshot_bytes += counters.snapshot_bytes;
  out.user_copied_bytes += counters.user_copied_bytes;
  for (std::string& failure : core.last_failures()) out.last_failures.push_back(std::move(failure));
}

// Operators are counted per process.
void add_operators(Stats& out) {
  for (const auto* op : frontend::all_op_infos()) {
    if (const uint64_t captured = op->captured) out.captured_by_op[op->name] += captured;  // and what is open, above
    if (const uint64_t executed = op->executed) out.executed_by_op[op->name] = executed;
    const frontend::OpTimes& times = op->times;
    if (const uint64_t calls = times.calls) {
      OpTime& sum = out.time_by_op[op->name];
      sum.calls += calls;
      sum.dispatch_ns += times.of(Phase::kDispatch);
      sum.shape_ns += times.of(Phase::kShape);
      sum.record_ns += times.of(Phase::kRecord);
      sum.plan_ns += times.of(Phase::kPlan);
    }
  }
}

}  // namespace

Session::Session(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}

Result<Session> Session::try_connect(const std::string& uri, const SessionOptions& options) {
  session::LinkOptions link;
  link.connect_timeout_ms = options.connect_timeout_ms;
  link.progress_timeout_ms = options.progress_timeout_ms;
  link.busy_polling = options.busy_polling;
  link.transport = options.transport;
  link.token = options.token;
  link.peer_timeout_ms = options.peer_timeout_ms;
  link.rdma_devices = options.rdma_devices;
  auto core = frontend::connect_session(uri, link);
  if (!core.ok()) return core.status();
  return Session(std::make_shared<Impl>(std::move(*core)));
}

Session Session::connect(const std::string& uri, const SessionOptions& options) {
  auto made = try_connect(uri, options);
  if (!made.ok()) throw Error(made.status());
  return std::move(*made);
}

c10::Device Session::device(int index) const {
  if (index < 0 || index >= impl_->core->device_count()) {
    throw Error(Status(Errc::kOutOfRange,
                       fmt::format("device {} of a session that has {}", index, impl_->core->device_count())));
  }
  return {kRemote, static_cast<c10::DeviceIndex>(impl_->core->first_device() + index)};
}

int Session::device_count() const { return impl_->core->device_count(); }
std::string Session::node_name() const { return impl_->core->node().name; }
std::string Session::transport() const { return impl_->core->node().transport; }
int Session::node_threads() const {
  const auto& devices = impl_->core->node().devices;
  return devices.empty() ? 0 : devices.front().threads;
}
void Session::synchronize() const { impl_->core->synchronize(); }
void Session::close() { impl_->core->close(); }

Stats Session::stats() const {
  Stats out;
  impl_->core->collect();
  add(out, *impl_->core);
  add_operators(out);
  return out;
}

bool is_remote(const at::Tensor& tensor) {
  return tensor.defined() && tensor.device().type() == kRemote && tensor.has_storage();
}

bool is_materialized(const at::Tensor& tensor) {
  const StorageState& state = state_of(tensor);
  return state.on_node && state.writer.load(std::memory_order_acquire) == 0;
}

Description describe(const at::Tensor& tensor) {
  const StorageState& state = state_of(tensor);
  Description out;
  out.op = state.producer != nullptr ? state.producer->op_name.name : state.defined ? "upload" : "empty";
  std::ostringstream shape;
  shape << tensor.sizes();
  out.shape = shape.str();
  out.dtype = c10::toString(tensor.scalar_type());
  out.device = tensor.device().str();
  if (state.source != nullptr) out.module = state.source->module;
  out.state = state.poisoned                                      ? "poisoned"
              : !state.defined                                    ? "undefined"
              : state.writer.load(std::memory_order_acquire) != 0 ? "captured"
                                                                  : "sent";
  return out;
}

std::string Description::to_string() const {
  return fmt::format("{} {}{} on {} ({}{}{})", op, dtype, shape, device, state, module.empty() ? "" : ", in ", module);
}

void materialize(const at::Tensor& tensor) {
  StorageState& state = frontend::usable_state(tensor);
  SessionCore& core = *state.session;
  core.order_touch(core.current_stream(), state, false);
  if (state.writer.load(std::memory_order_acquire) != 0) core.flush(core.current_stream(), FlushReason::kValue);
  core.drain();
  frontend::usable_state(tensor);
}

void synchronize() {
  frontend::forget_dead_copies();
  for (const auto& core : frontend::open_sessions()) core->synchronize();
}

void set_timing(bool timing) { frontend::timing_flag.store(timing, std::memory_order_relaxed); }
bool is_timing() { return frontend::is_timing(); }
void set_lazy(bool lazy) { frontend::set_lazy(lazy); }
bool is_lazy() { return frontend::is_lazy(); }

Stats stats() {
  Stats out;
  frontend::forget_dead_copies();
  for (const auto& core : frontend::open_sessions()) {
    core->collect();
    add(out, *core);
  }
  add_operators(out);
  return out;
}

Graph graph() {
  if (const auto capture = frontend::last_capture()) return capture->graph();
  for (const auto& core : frontend::open_sessions()) {
    frontend::Stream& stream = core->current_stream();
    const std::lock_guard<frontend::SpinLock> guard(stream.lock);
    const auto& segment = stream.open.records.empty() ? stream.last : stream.open;
    if (!segment.records.empty()) return frontend::graph_of(segment);
  }
  return {};
}

namespace {

// The operators that took most, a line each.
std::string time_table(const std::map<std::string, OpTime>& times) {
  constexpr size_t kLines = 20;
  std::vector<std::pair<std::string_view, const OpTime*>> rows;
  for (const auto& [name, time] : times) rows.emplace_back(name, &time);
  std::ranges::sort(rows, std::ranges::greater(), [](const auto& row) { return row.second->total_ns(); });
  std::string out = fmt::format("\nus per call:{:>9}{:>10}{:>8}{:>8}{:>8}{:>10}", "calls", "dispatch", "shape",
                                "record", "plan", "sum ms");
  for (size_t i = 0; i < std::min(rows.size(), kLines); ++i) {
    const OpTime& time = *rows[i].second;
    const auto us = [&](uint64_t ns) { return static_cast<double>(ns) * 1e-3 / static_cast<double>(time.calls); };
    out += fmt::format("\n{:<12}{:>9}{:>10.2f}{:>8.2f}{:>8.2f}{:>8.2f}{:>10.2f}  {}", "", time.calls,
                       us(time.dispatch_ns), us(time.shape_ns), us(time.record_ns), us(time.plan_ns),
                       static_cast<double>(time.total_ns()) * 1e-6, rows[i].first);
  }
  if (rows.size() > kLines) out += fmt::format("\n             and {} more operators", rows.size() - kLines);
  return out;
}

}  // namespace

std::string Stats::to_string() const {
  std::string out = fmt::format("operators: {} captured, {} executed, {} pruned, {} fall-backs\nflushes: {}",
                                captured_ops, executed_ops, pruned_ops, client_fallbacks, flushes);
  for (const auto& [reason, count] : flush_reasons) out += fmt::format(" {}={}", reason, count);
  out += fmt::format(
      "\ntemplates: {} registered, {} forgotten, {} hits\nshapes: {} cached, {} own, {} meta, {} from the node",
      templates_registered, templates_forgotten, template_hits, shapes_cached, shapes_own, shapes_meta,
      shapes_from_node);
  out += fmt::format(
      "\nmessages: {} of {} bytes\nuploads: {} of {} bytes, {} known to the node, {} copied again\nfetches: {} of {} "
      "bytes, {} copied",
      submissions, message_bytes, uploads, upload_bytes, upload_known_bytes, upload_copied_bytes, fetches, fetch_bytes,
      fetch_copied_bytes);
  if (!time_by_op.empty()) out += time_table(time_by_op);
  for (const std::string& failure : last_failures) out += "\nfailed: " + failure;
  return out + "\n";
}

}  // namespace genie
