#include "frontend/capture/recorder.h"

#include <ATen/native/Resize.h>

#include <algorithm>
#include <mutex>
#include <optional>
#include <unordered_map>

#include "frontend/capture/custom_ops.h"
#include "frontend/capture/encoder.h"
#include "frontend/capture/source.h"
#include "src/protocol/program_format.h"

namespace genie::frontend {
namespace {

using wire::Tag;
using wire::TensorBits;

uint32_t tensor_bits(const TensorMeta& meta) {
  return (static_cast<uint32_t>(meta.dtype) << TensorBits::kDtypeShift) |
         (static_cast<uint32_t>(meta.sizes.size()) << TensorBits::kRankShift) |
         (meta.contiguous ? TensorBits::kContiguous : 0) | TensorBits::kZeroOffset;
}

// An argument that the operator gives another geometry: the node keeps it to that.
bool encode_resized(const OutputMeta& metas, size_t argument, Call& out) {
  const auto found = std::find_if(metas.resized.begin(), metas.resized.end(),
                                  [&](const auto& resized) { return resized.first == argument; });
  if (found == metas.resized.end()) return false;
  const TensorMeta& meta = found->second;
  out.code.push_back(wire::head(Tag::kResized, static_cast<uint32_t>(argument)));
  out.code.push_back(tensor_bits(meta));
  out.params.append(meta.sizes.data(), meta.sizes.size());
  if (!meta.contiguous) out.params.append(meta.strides.data(), meta.strides.size());
  return true;
}

void encode_fresh(const TensorMeta& meta, Call& out) {
  if (!meta.defined) {
    out.code.push_back(wire::head(Tag::kUndefinedOut, 0));
    out.results.emplace_back();
    return;
  }
  out.code.push_back(wire::head(Tag::kFresh, tensor_bits(meta)));
  out.params.append(meta.sizes.data(), meta.sizes.size());
  if (!meta.contiguous) out.params.append(meta.strides.data(), meta.strides.size());
  StorageState* state = out.core->new_storage(meta.storage_bytes);
  out.results.push_back(make_lazy_like(meta, state, out.device));
  out.touched.push_back({state, Touch::kDefine});
}

// Writes the output words and makes the result tensors that are known already.
void encode_outputs(const OpInfo& op, const OutputMeta* metas, Call& out) {
  size_t next = 0;
  for (size_t i = 0; i < op.returns.size(); ++i) {
    const ReturnInfo& result = op.returns[i];
    if (result.alias_of >= 0) {
      if (metas != nullptr && encode_resized(*metas, static_cast<size_t>(result.alias_of), out)) continue;
      out.code.push_back(wire::head(Tag::kAlias, static_cast<uint32_t>(result.alias_of)));
    } else if (metas == nullptr) {
      TORCH_CHECK_NOT_IMPLEMENTED(
          result.kind == ReturnKind::kTensor, op.name, ": the number of its results is not known before it has run; ",
          op.custom ? "give it a Meta kernel or a genie::register_shape_function, or " : "", "call it on CPU tensors");
      out.code.push_back(wire::head(Tag::kReported, 0));
      StorageState* state = out.core->new_storage(0);
      out.results.push_back(make_lazy_over(state, out.device, {0}, {1}, c10::ScalarType::Byte));
      out.touched.push_back({state, Touch::kDefine});
    } else if (metas->list_length[i] >= 0) {
      out.code.push_back(wire::head(Tag::kListOut, static_cast<uint32_t>(metas->list_length[i])));
      for (int32_t k = 0; k < metas->list_length[i]; ++k) encode_fresh(metas->tensors[next++], out);
    } else {
      encode_fresh(metas->tensors[next++], out);
    }
  }
}

// A storage that nothing has written yet comes to life on the node when it is first touched.
void append_alloc(Stream& stream, uint32_t slot, uint64_t size_bytes) {
  static OpInfo& op = op_info("genie::alloc", "");
  Segment& segment = stream.open;
  segment.records.push_back({&op, static_cast<uint32_t>(segment.code.size()),
                             static_cast<uint32_t>(segment.params.size()),
                             static_cast<uint32_t>(segment.touches.size())});
  segment.code.push_back(op.index);
  segment.code.push_back(1U | (1U << 16));
  segment.code.push_back(wire::head(Tag::kInt, 0));
  segment.params.push_back(static_cast<int64_t>(size_bytes));
  segment.code.push_back(
      wire::head(Tag::kFresh, (static_cast<uint32_t>(c10::ScalarType::Byte) << TensorBits::kDtypeShift) |
                                  (1U << TensorBits::kRankShift) | TensorBits::kContiguous | TensorBits::kZeroOffset));
  segment.params.push_back(static_cast<int64_t>(size_bytes));
  segment.touches.push_back(touch_word(slot, Touch::kDefine));
}

// native_batch_norm moves the running statistics although its schema does not say so.
bool is_write(const OpInfo& op, c10::ArrayRef<c10::IValue> args, size_t i) {
  if (op.args[i].is_write) return true;
  return (i == 3 || i == 4) && op.hidden_running_stats && args[5].toBool();
}

// Only who holds the stream's lock counts; anybody reads.
void count_one(std::atomic<uint64_t>& counter) {
  counter.store(counter.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
}

// Puts the encoded call into the stream. Lock held.
void append(Stream& stream, OpInfo& op, Call& call) {
  Segment& segment = stream.open;
  for (TouchedState& touched : call.touched) {
    StorageState& state = *touched.state;
    touched.slot = stream.slot_of(&state);
    if (!state.defined.load(std::memory_order_relaxed)) {
      if (touched.mode != Touch::kDefine) append_alloc(stream, touched.slot, state.size_bytes);
      state.defined.store(true, std::memory_order_relaxed);
    }
    if (touched.mode != Touch::kRead) {
      state.writer.store(segment.number, std::memory_order_release);
      state.producer = &op;
      state.source = call.source;
    } else if (state.reader.load(std::memory_order_relaxed) != segment.number) {
      // Two threads may read it for the first time at once: whoever comes second says so.
      const uint32_t other = state.reader.exchange(segment.number, std::memory_order_acq_rel);
      if (other != 0 && other != segment.number) state.many_readers.store(true, std::memory_order_release);
    }
  }
  if (call.generator != nullptr) segment.generators.emplace_back(call.generator);
  const auto code_begin = static_cast<uint32_t>(segment.code.size());
  for (auto& [position, text] : call.strings) {
    call.code[position] = wire::head(Tag::kString, static_cast<uint32_t>(segment.strings.size()));
    segment.strings.push_back(std::move(text));
  }
  segment.records.push_back(
      {&op, code_begin, static_cast<uint32_t>(segment.params.size()), static_cast<uint32_t>(segment.touches.size())});
  if (call.source != nullptr) [[unlikely]] {
    segment.sources.resize(segment.records.size());
    segment.sources.back() = call.source;
  }
  segment.code.append(call.code.data(), call.code.size());
  segment.params.append(call.params.data(), call.params.size());
  uint32_t* touch = segment.touches.extend(call.touched.size());
  for (const TouchedState& touched : call.touched) *touch++ = touch_word(touched.slot, touched.mode);
  count_one(stream.captured);
}

// The program learns of a failure here: synchronize() need not say it again.
void raise_if_failed(SessionCore& core, session::Ticket& ticket) {
  if (ticket.outcome().status.ok()) return;
  const Status why = core.failure_of(ticket);
  core.failure_seen(why);
  throw Error(why);
}

// The shapes are unknown: append, flush, and let the node say. In one go, so that no other thread's flush takes the record along
// and the report with it.
void learn_from_node(OpInfo& op, Call& call, Stream& stream) {
  auto ticket = call.core->flush(stream, FlushReason::kShape, {}, [&] { append(stream, op, call); });
  call.core->wait(*ticket);
  raise_if_failed(*call.core, *ticket);
  session::Outcome& outcome = ticket->outcome();
  TORCH_INTERNAL_ASSERT(outcome.reported.size() == call.results.size(), op.name,
                        ": the node reported another number of results");
  OutputMeta learned;
  for (size_t i = 0; i < op.returns.size(); ++i) learned.list_length.push_back(-1);
  for (size_t i = 0; i < call.results.size(); ++i) {
    const session::ReportedTensor& told = outcome.reported[i];
    if (!told.defined) {
      call.results[i] = at::Tensor();
      learned.tensors.push_back(TensorMeta{.defined = false});
      continue;
    }
    const auto dtype = static_cast<c10::ScalarType>(told.dtype);
    learned.tensors.push_back(dense_meta(told.sizes, told.strides, dtype));
    c10::Storage storage = call.results[i].storage();
    StorageState::of(storage.unsafeGetStorageImpl())->size_bytes = told.storage_bytes;
    storage.set_nbytes(told.storage_bytes);
    call.results[i] = tensor_over(std::move(storage), told.sizes, told.strides, dtype);
  }
  remember(op, call.key, std::move(learned));
}

// Debug mode: the operator has run, or its error is raised here.
void run_now(SessionCore& core, Stream& stream) {
  const auto ticket = core.flush(stream, FlushReason::kEager);
  if (ticket == nullptr) return;
  core.wait(*ticket);
  raise_if_failed(core, *ticket);
}

void count_source(CaptureCounters& counters, ShapeSource source) {
  switch (source) {
    case ShapeSource::kCache: return;  // counted by the stream
    case ShapeSource::kOwn: counters.shape_own.fetch_add(1, std::memory_order_relaxed); return;
    case ShapeSource::kMeta: counters.shape_meta.fetch_add(1, std::memory_order_relaxed); return;
    case ShapeSource::kNone: counters.shape_node.fetch_add(1, std::memory_order_relaxed); return;
  }
}

void apply_resizes(const OutputMeta& metas, c10::ArrayRef<c10::IValue> args) {
  for (const auto& [index, meta] : metas.resized) {
    const at::Tensor& tensor = args[index].toTensor();
    auto* storage = tensor.storage().unsafeGetStorageImpl();
    // As the kernel does on the node: the offset stays, the storage grows when it must.
    const int64_t offset = tensor.storage_offset();
    const uint64_t needed = meta.storage_bytes + static_cast<uint64_t>(offset) * tensor.element_size();
    if (needed > storage->nbytes()) {
      storage->set_nbytes(needed);
      StorageState::of(storage)->size_bytes = needed;
    }
    tensor.unsafeGetTensorImpl()->set_sizes_and_strides(meta.sizes, meta.strides, offset);
  }
}

void push_results(const OpInfo& op, const OutputMeta* metas, Call& call, c10::SmallVector<c10::IValue, 4>& out,
                  c10::ArrayRef<c10::IValue> args) {
  size_t next = 0;
  for (size_t i = 0; i < op.returns.size(); ++i) {
    if (op.returns[i].alias_of >= 0) {
      out.push_back(args[static_cast<size_t>(op.returns[i].alias_of)]);
    } else if (metas != nullptr && metas->list_length[i] >= 0) {
      c10::List<at::Tensor> list;
      for (int32_t k = 0; k < metas->list_length[i]; ++k) list.push_back(call.results[next++]);
      out.push_back(std::move(list));
    } else {
      out.push_back(std::move(call.results[next++]));
    }
  }
}

// Whether `stream` may touch the storage at once: no other stream has something pending on it.
bool in_order(const Stream& stream, const StorageState& state, bool write) {
  const uint32_t mine = stream.open_number.load(std::memory_order_relaxed);
  const uint32_t writer = state.writer.load(std::memory_order_acquire);
  const uint32_t reader = state.reader.load(std::memory_order_acquire);
  return (writer == 0 || writer == mine) && (reader == 0 || reader == mine) &&
         (!write || !state.many_readers.load(std::memory_order_acquire));
}

bool makes_the_results_of(const c10::OperatorHandle& candidate, const OpInfo& op, size_t inputs) {
  const auto& theirs = candidate.schema().arguments();
  const auto& ours = op.handle.schema().arguments();
  const auto& results = candidate.schema().returns();
  if (theirs.size() < inputs || results.size() != op.returns.size()) return false;
  for (const auto& result : results) {
    if (result.alias_info() != nullptr) return false;
  }
  for (size_t i = 0; i < inputs; ++i) {
    if (*ours[i].type() != *theirs[i].type() || ours[i].name() != theirs[i].name()) return false;
  }
  // A factory also takes what the out= argument has already.
  return std::all_of(theirs.begin() + static_cast<std::ptrdiff_t>(inputs), theirs.end(),
                     [](const c10::Argument& extra) { return extra.default_value().has_value(); });
}

// "nonzero.out" -> "nonzero", "max.unary_out" -> "max": the variant that makes its results. Looked up once for each operator.
std::optional<c10::OperatorHandle> functional_variant(const OpInfo& op, size_t inputs) {
  static std::mutex mutex;
  // Leaked: kernels may run during static destruction.
  static auto* const known = new std::unordered_map<const OpInfo*, std::optional<c10::OperatorHandle>>;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto [place, fresh] = known->try_emplace(&op);
  if (!fresh) return place->second;
  auto& dispatcher = c10::Dispatcher::singleton();
  for (const auto& name : dispatcher.getAllOpNames()) {
    if (name.name != op.handle.operator_name().name) continue;
    const auto candidate = dispatcher.findSchema(name);
    if (candidate.has_value() && makes_the_results_of(*candidate, op, inputs)) place->second = candidate;
  }
  return place->second;
}

// An out= variant whose size only the node knows: its result is made first, then the argument takes its size and its values.
void record_by_functional(OpInfo& op, torch::jit::Stack& stack) {
  const size_t inputs = op.args.size() - op.returns.size();
  const auto functional = functional_variant(op, inputs);
  TORCH_CHECK_NOT_IMPLEMENTED(
      functional.has_value(), op.name,
      ": the size of its result is only known on the node, so that it cannot go into an out= tensor; call the "
      "variant without out=");
  const auto args = torch::jit::last(stack, op.args.size());
  torch::jit::Stack call(args.slice(0, inputs).vec());
  const auto& wanted = functional->schema().arguments();
  for (size_t i = inputs; i < wanted.size(); ++i) {
    const at::Tensor& out = args[inputs].toTensor();
    if (wanted[i].name() == "dtype") {
      call.emplace_back(out.scalar_type());
    } else if (wanted[i].name() == "device") {
      call.emplace_back(out.device());
    } else {
      call.push_back(*wanted[i].default_value());
    }
  }
  functional->callBoxed(call);
  torch::jit::Stack outs;
  for (size_t i = 0; i < op.returns.size(); ++i) {
    at::Tensor out = args[inputs + i].toTensor();
    const at::Tensor& value = call[i].toTensor();
    TORCH_CHECK(c10::canCast(value.scalar_type(), out.scalar_type()), op.name, ": result type ", value.scalar_type(),
                " can't be cast to the desired output type ", out.scalar_type());
    // Fresh sizes come with the layout that the CPU's kernel chooses; without a kernel of its own eager copies as we do.
    if (at::native::resize_output(out, value.sizes()) && value.is_non_overlapping_and_dense() &&
        op.handle.hasKernelForDispatchKey(c10::DispatchKey::CPU)) {
      out.unsafeGetTensorImpl()->set_sizes_and_strides(value.sizes(), value.strides(), out.storage_offset());
    }
    out.copy_(value);
    outs.emplace_back(std::move(out));
  }
  torch::jit::drop(stack, op.args.size());
  for (c10::IValue& out : outs) stack.push_back(std::move(out));
}

}  // namespace

const OutputMeta* record(OpInfo& op, Call& call, BoxedArguments boxed) {
  SessionCore& core = *call.core;
  end_phase(op, call, Phase::kDispatch);
  ShapeSource source = ShapeSource::kCache;
  const OutputMeta* metas = infer(op, call.key, boxed, source);
  end_phase(op, call, Phase::kShape);
  call.source = current_source();
  encode_outputs(op, metas, call);

  Stream& stream = core.current_stream();
  for (const TouchedState& touched : call.touched) {
    const bool write = touched.mode == Touch::kWrite;
    if (touched.mode != Touch::kDefine && !in_order(stream, *touched.state, write)) [[unlikely]]
      core.order_touch(stream, *touched.state, write);
  }
  if (metas == nullptr && !call.results.empty()) {
    count_source(core.counters(), source);
    end_phase(op, call, Phase::kRecord);
    learn_from_node(op, call, stream);
    end_phase(op, call, Phase::kShape);
  } else {
    bool full = false;
    {
      const std::lock_guard<SpinLock> guard(stream.lock);
      append(stream, op, call);
      if (source == ShapeSource::kCache) count_one(stream.shapes_cached);
      full = stream.open.records.size() >= core.limits().max_records;
    }
    if (source != ShapeSource::kCache) count_source(core.counters(), source);
    end_phase(op, call, Phase::kRecord);
    if (full) core.flush(stream, FlushReason::kLimit);
    if (!is_lazy()) run_now(core, stream);
  }
  if (metas != nullptr && !metas->resized.empty()) apply_resizes(*metas, boxed());
  return metas;
}

void record_call(OpInfo& op, torch::jit::Stack& stack) {
  TORCH_CHECK_NOT_IMPLEMENTED(op.supported, op.name,
                              " cannot be captured for remote_accelerator; call it on CPU tensors");
  const CallLease lease;
  Call& call = *lease;
  const auto args = torch::jit::last(stack, op.args.size());
  Encoder encoder(op, call);
  for (const c10::IValue& arg : args) encoder.place(arg);
  encoder.begin(args.size(), op.returns.size());
  if (op.custom && op.accepted_by.load(std::memory_order_relaxed) != call.core) [[unlikely]]
    accept_custom(op, *call.core);
  for (size_t i = 0; i < args.size(); ++i) encoder.encode(op.args[i], args[i], is_write(op, args, i));
  const auto boxed = [&] { return args; };
  if (op.resizes_out) {
    ShapeSource source;
    if (infer(op, call.key, boxed, source) == nullptr) return record_by_functional(op, stack);
  }
  const OutputMeta* metas = record(op, call, boxed);

  c10::SmallVector<c10::IValue, 4> results;
  push_results(op, metas, call, results, args);
  torch::jit::drop(stack, op.args.size());
  for (c10::IValue& result : results) stack.push_back(std::move(result));
}

}  // namespace genie::frontend
