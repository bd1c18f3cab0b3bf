#include "frontend/capture/recorder.h"

#include <ATen/ops/scalar_tensor.h>
#include <c10/core/DeviceGuard.h>
#include <c10/util/strides.h>
#include <fmt/format.h>

#include <bit>
#include <optional>

#include "frontend/capture/copies.h"
#include "frontend/capture/registry.h"
#include "frontend/capture/shapes.h"
#include "frontend/device/allocator.h"
#include "frontend/device/generator.h"
#include "src/protocol/program_format.h"

namespace genie::frontend {
namespace {

using wire::Tag;
using wire::TensorBits;

struct TouchedState {
  StorageState* state;
  Touch mode;
};

// What a call looks like before it is appended: reused by the thread, so that capture allocates nothing of its own.
struct Scratch {
  std::vector<uint32_t> code;
  std::vector<int64_t> params;
  std::vector<int64_t> key;
  std::vector<TouchedState> touched;
  std::vector<std::pair<uint32_t, std::string>> strings;  // position in code
  std::vector<at::Tensor> lifted;
  std::vector<at::Tensor> results;
  SessionCore* core = nullptr;
  std::optional<c10::Device> device;

  void clear() {
    code.clear();
    params.clear();
    key.clear();
    touched.clear();
    strings.clear();
    lifted.clear();
    results.clear();
    core = nullptr;
    device.reset();
  }
};

// Recording can nest (a lifted operand records a copy): one scratch per depth.
class ScratchLease {
 public:
  ScratchLease() {
    if (pool().depth == pool().items.size()) pool().items.push_back(std::make_unique<Scratch>());
    scratch_ = pool().items[pool().depth++].get();
    scratch_->clear();
  }
  ~ScratchLease() {
    scratch_->clear();
    --pool().depth;
  }
  ScratchLease(const ScratchLease&) = delete;
  ScratchLease& operator=(const ScratchLease&) = delete;
  Scratch& operator*() const { return *scratch_; }

 private:
  struct Pool {
    std::vector<std::unique_ptr<Scratch>> items;
    size_t depth = 0;
  };
  static Pool& pool() {
    thread_local Pool instance;
    return instance;
  }
  Scratch* scratch_;
};

[[noreturn]] void refuse_mixed(const OpInfo& op, c10::Device one, c10::Device other) {
  TORCH_CHECK(false, "Expected all tensors to be on the same device, but found at least two devices, ", one, " and ",
              other, "! (when calling ", op.name, "; move the tensor first: x.to(\"", one, "\"))");
}

// Whether the strides are exactly what a contiguous tensor's would be (libtorch lets those of size-1 dimensions differ).
bool spelled_contiguously(at::IntArrayRef sizes, at::IntArrayRef strides) {
  int64_t expected = 1;
  for (size_t i = sizes.size(); i-- > 0;) {
    if (strides[i] != expected) return false;
    expected *= std::max<int64_t>(sizes[i], 1);
  }
  return true;
}

class Encoder {
 public:
  Encoder(OpInfo& op, c10::ArrayRef<c10::IValue> args, Scratch& out) : op_(op), args_(args), out_(out) {}

  void run() {
    find_device();
    // Promotion of integers to floats goes by it.
    out_.key.push_back(static_cast<int64_t>(c10::get_default_dtype_as_scalartype()));
    out_.code.push_back(op_.index);
    out_.code.push_back(static_cast<uint32_t>(args_.size()) | (static_cast<uint32_t>(op_.returns.size()) << 16));
    for (size_t i = 0; i < args_.size(); ++i) argument(op_.args[i], args_[i], is_write(i));
  }

 private:
  // native_batch_norm moves the running statistics although its schema does not say so.
  bool is_write(size_t i) const {
    if (op_.args[i].is_write) return true;
    return (i == 3 || i == 4) && op_.hidden_running_stats && args_[5].toBool();
  }

  void find_device() {
    for (size_t i = 0; i < args_.size(); ++i) {
      visit_tensors(args_[i], [&](const at::Tensor& tensor) {
        if (!tensor.defined() || !tensor.device().is_privateuseone()) return;
        if (!out_.device) out_.device = tensor.device();
        if (*out_.device != tensor.device() && !op_.mixes_devices) refuse_mixed(op_, *out_.device, tensor.device());
      });
      if (args_[i].isDevice() && !out_.device && args_[i].toDevice().is_privateuseone())
        out_.device = args_[i].toDevice();
      if (args_[i].isGenerator() && !out_.device && args_[i].toGenerator().defined())
        out_.device = args_[i].toGenerator().device();
    }
    int index = out_.device && out_.device->has_index() ? out_.device->index() : current_device();
    out_.device = c10::Device(c10::DeviceType::PrivateUse1, static_cast<c10::DeviceIndex>(index));
    out_.core = &core_of(index);
  }

  template <typename Visit>
  static void visit_tensors(const c10::IValue& value, Visit visit) {
    if (value.isTensor()) {
      visit(value.toTensor());
    } else if (value.isTensorList()) {
      for (const at::Tensor& tensor : value.toTensorList()) visit(tensor);
    } else if (value.isOptionalTensorList()) {
      for (const std::optional<at::Tensor>& tensor : value.toOptionalTensorList()) {
        if (tensor.has_value()) visit(*tensor);
      }
    }
  }

  void word(Tag tag, uint32_t payload) {
    const uint32_t head = wire::head(tag, payload);
    out_.code.push_back(head);
    out_.key.push_back(head);
  }
  void number(int64_t value, bool in_key) {
    out_.params.push_back(value);
    if (in_key) out_.key.push_back(value);
  }

  void argument(const ArgInfo& arg, const c10::IValue& value, bool write) {
    if (value.isNone() && arg.kind != ArgKind::kGenerator) return word(Tag::kNone, 0);
    switch (arg.kind) {
      case ArgKind::kTensor: return tensor(value.toTensor(), write);
      case ArgKind::kTensorList: {
        const auto list = value.toTensorList();
        word(Tag::kList, static_cast<uint32_t>(list.size()));
        for (const at::Tensor& element : list) tensor(element, write);
        return;
      }
      case ArgKind::kOptionalTensorList: return optional_tensors(value, write);
      case ArgKind::kInt: return integer(value.toInt());
      case ArgKind::kIntConst: return word(Tag::kIntConst, static_cast<uint32_t>(value.toInt()));
      case ArgKind::kDouble: return floating(value.toDouble());
      case ArgKind::kBool: return word(Tag::kBool, value.toBool() ? 1 : 0);
      case ArgKind::kString: return text(value.toStringRef());
      case ArgKind::kNumber: return scalar(value.toScalar());
      case ArgKind::kIntList: return integers(value);
      case ArgKind::kDoubleList: return doubles(value);
      case ArgKind::kBoolList: return booleans(value);
      case ArgKind::kNumberList: return scalars(value);
      case ArgKind::kDevice: return word(Tag::kDevice, 0);
      case ArgKind::kGenerator: return generator(value);
      case ArgKind::kUnsupported: break;
    }
    TORCH_CHECK_NOT_IMPLEMENTED(false, op_.name,
                                " takes an argument that cannot travel to a remote device; call it on CPU tensors");
  }

  void integer(int64_t value) {
    word(Tag::kInt, 0);
    number(value, true);
  }
  void floating(double value) {
    word(Tag::kDouble, 0);
    number(std::bit_cast<int64_t>(value), op_.values_shape);
  }
  void scalar(const at::Scalar& value) {
    if (value.isComplex()) {
      const auto complex = value.toComplexDouble();
      word(Tag::kComplex, 0);
      number(std::bit_cast<int64_t>(complex.real()), false);
      number(std::bit_cast<int64_t>(complex.imag()), false);
    } else if (value.isFloatingPoint()) {
      floating(value.toDouble());
    } else if (value.isBoolean()) {
      word(Tag::kBool, value.toBool() ? 1 : 0);
    } else {
      word(Tag::kInt, 0);
      number(value.toLong(), op_.values_shape);
    }
  }
  void integers(const c10::IValue& value) {
    const auto list = value.toIntList();
    word(Tag::kIntList, static_cast<uint32_t>(list.size()));
    for (const int64_t element : list) number(element, true);
  }
  void doubles(const c10::IValue& value) {
    const auto list = value.toDoubleList();
    word(Tag::kDoubleList, static_cast<uint32_t>(list.size()));
    for (const double element : list) number(std::bit_cast<int64_t>(element), true);
  }
  void booleans(const c10::IValue& value) {
    const auto list = value.toBoolList();
    word(Tag::kBoolList, static_cast<uint32_t>(list.size()));
    uint32_t bits = 0;
    for (size_t i = 0; i < list.size(); ++i) {
      bits |= (list[i] ? 1U : 0U) << (i % 32);
      if (i % 32 == 31 || i + 1 == list.size()) {
        out_.code.push_back(bits);
        out_.key.push_back(bits);
        bits = 0;
      }
    }
  }
  void scalars(const c10::IValue& value) {
    const auto list = value.toListRef();
    word(Tag::kList, static_cast<uint32_t>(list.size()));
    for (const c10::IValue& element : list) scalar(element.toScalar());
  }
  void text(const std::string& value) {
    out_.strings.emplace_back(static_cast<uint32_t>(out_.code.size()), value);
    word(Tag::kString, 0);
    for (const char c : value) out_.key.push_back(c);
  }
  void generator(const c10::IValue& value) {
    TORCH_CHECK(value.isNone() || !value.toGenerator().defined() || value.toGenerator().device().is_privateuseone(),
                op_.name, ": expected a generator on ", *out_.device, ", found one on ",
                value.isNone() ? c10::Device("cpu") : value.toGenerator().device());
    word(Tag::kGenerator, use_generator(value, out_.device->index()));
  }
  void optional_tensors(const c10::IValue& value, bool write) {
    const auto list = value.toOptionalTensorList();
    word(Tag::kList, static_cast<uint32_t>(list.size()));
    for (const std::optional<at::Tensor>& element : list) {
      if (element.has_value()) {
        tensor(*element, write);
      } else {
        word(Tag::kNone, 0);
      }
    }
  }

  void tensor(const at::Tensor& value, bool write) {
    if (!value.defined()) return word(Tag::kUndefinedTensor, 0);
    if (!value.device().is_privateuseone()) return foreign(value, write);
    StorageState& state = usable_state(value);
    if (state.session != out_.core) [[unlikely]]
      refuse_other_session(state, value);
    const auto* impl = value.unsafeGetTensorImpl();
    const auto sizes = impl->sizes();
    const bool contiguous = spelled_contiguously(sizes, impl->strides());
    const int64_t offset = impl->storage_offset();
    word(Tag::kTensor, (static_cast<uint32_t>(value.scalar_type()) << TensorBits::kDtypeShift) |
                           (static_cast<uint32_t>(sizes.size()) << TensorBits::kRankShift) |
                           (contiguous ? TensorBits::kContiguous : 0) | (offset == 0 ? TensorBits::kZeroOffset : 0) |
                           (value.is_conj() ? TensorBits::kConj : 0) | (value.is_neg() ? TensorBits::kNeg : 0));
    for (const int64_t size : sizes) number(size, true);
    if (!contiguous) {
      for (const int64_t stride : impl->strides()) number(stride, true);
    }
    if (offset != 0) number(offset, false);
    out_.touched.push_back({&state, write ? Touch::kWrite : Touch::kRead});
  }

  // An index can pass from a closed session to a new one; two open sessions never share one.
  [[noreturn]] void refuse_other_session(const StorageState& state, const at::Tensor& value) const {
    if (!state.session->closed()) refuse_mixed(op_, *out_.device, value.device());
    throw Error(
        Status(Errc::kDisconnected, "the session of an operand was closed: open one and send the tensor again"));
  }

  // A CPU operand: numbers travel by value; where PyTorch allows index tensors on the CPU, they are sent.
  void foreign(const at::Tensor& value, bool write) {
    if (value.device().is_cpu() && value.dim() == 0 && !write && value.layout() == at::kStrided) {
      const auto type = value.scalar_type();
      word(Tag::kScalarTensor,
           static_cast<uint32_t>(type) | (value.unsafeGetTensorImpl()->is_wrapped_number() ? wire::kWrapped : 0));
      const at::Scalar number_value = value.item();
      if (number_value.isComplex()) {
        number(std::bit_cast<int64_t>(number_value.toComplexDouble().real()), false);
        number(std::bit_cast<int64_t>(number_value.toComplexDouble().imag()), false);
      } else if (number_value.isFloatingPoint()) {
        number(std::bit_cast<int64_t>(number_value.toDouble()), false);
      } else {
        number(number_value.isBoolean() ? number_value.toBool() : number_value.toLong(), false);
      }
      return;
    }
    if (!value.device().is_cpu() || write || !op_.lifts_cpu_operands) refuse_mixed(op_, *out_.device, value.device());
    out_.lifted.push_back(upload_copy(*out_.core, *out_.device, value));
    tensor(at::Tensor(out_.lifted.back()), false);
  }

  OpInfo& op_;
  c10::ArrayRef<c10::IValue> args_;
  Scratch& out_;
};

at::Tensor tensor_over(c10::Storage storage, at::IntArrayRef sizes, at::IntArrayRef strides, c10::ScalarType dtype) {
  auto tensor = at::detail::make_tensor_base<c10::TensorImpl>(
      std::move(storage), c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), c10::scalarTypeToTypeMeta(dtype));
  auto* impl = tensor.unsafeGetTensorImpl();
  if (sizes.size() != 1 || sizes[0] != 0) impl->set_sizes_and_strides(sizes, strides);
  return at::Tensor(std::move(tensor));
}

uint32_t tensor_bits(const TensorMeta& meta) {
  return (static_cast<uint32_t>(meta.dtype) << TensorBits::kDtypeShift) |
         (static_cast<uint32_t>(meta.sizes.size()) << TensorBits::kRankShift) |
         (meta.contiguous ? TensorBits::kContiguous : 0) | TensorBits::kZeroOffset;
}

void encode_fresh(const TensorMeta& meta, Scratch& out) {
  if (!meta.defined) {
    out.code.push_back(wire::head(Tag::kUndefinedOut, 0));
    out.results.emplace_back();
    return;
  }
  out.code.push_back(wire::head(Tag::kFresh, tensor_bits(meta)));
  out.params.insert(out.params.end(), meta.sizes.begin(), meta.sizes.end());
  if (!meta.contiguous) out.params.insert(out.params.end(), meta.strides.begin(), meta.strides.end());
  StorageState* state = out.core->new_storage(meta.storage_bytes);
  out.results.push_back(make_lazy_over(state, *out.device, meta.sizes, meta.strides, meta.dtype));
  out.touched.push_back({state, Touch::kDefine});
}

// Writes the output words and makes the result tensors that are known already.
void encode_outputs(const OpInfo& op, const OutputMeta* metas, Scratch& out) {
  size_t next = 0;
  for (size_t i = 0; i < op.returns.size(); ++i) {
    const ReturnInfo& result = op.returns[i];
    if (result.alias_of >= 0) {
      out.code.push_back(wire::head(Tag::kAlias, static_cast<uint32_t>(result.alias_of)));
    } else if (metas == nullptr) {
      TORCH_CHECK_NOT_IMPLEMENTED(result.kind == ReturnKind::kTensor, op.name,
                                  ": the number of results depends on values; call it on CPU tensors");
      out.code.push_back(wire::head(Tag::kReported, 0));
      StorageState* state = out.core->new_storage(0);
      out.results.push_back(make_lazy_over(state, *out.device, {0}, {1}, c10::ScalarType::Byte));
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

// Puts the encoded call into the stream. Lock held.
void append(Stream& stream, OpInfo& op, Scratch& call) {
  Segment& segment = stream.open;
  c10::SmallVector<uint32_t, 16> touches;
  for (const TouchedState& touched : call.touched) {
    StorageState& state = *touched.state;
    const uint32_t slot = stream.slot_of(&state);
    if (!state.defined && touched.mode != Touch::kDefine) append_alloc(stream, slot, state.size_bytes);
    state.defined = true;
    if (touched.mode == Touch::kRead) {
      // Two threads may read it for the first time at once: whoever comes second says so.
      const uint32_t other = state.reader.exchange(segment.number, std::memory_order_acq_rel);
      if (other != 0 && other != segment.number) state.many_readers.store(true, std::memory_order_release);
    } else {
      state.writer.store(segment.number, std::memory_order_release);
      state.producer = &op;
    }
    touches.push_back(touch_word(slot, touched.mode));
  }
  const auto code_begin = static_cast<uint32_t>(segment.code.size());
  for (auto& [position, text] : call.strings) {
    call.code[position] = wire::head(Tag::kString, static_cast<uint32_t>(segment.strings.size()));
    segment.strings.push_back(std::move(text));
  }
  segment.records.push_back(
      {&op, code_begin, static_cast<uint32_t>(segment.params.size()), static_cast<uint32_t>(segment.touches.size())});
  segment.code.insert(segment.code.end(), call.code.begin(), call.code.end());
  segment.params.insert(segment.params.end(), call.params.begin(), call.params.end());
  segment.touches.insert(segment.touches.end(), touches.begin(), touches.end());
}

// The shapes are unknown: append, flush, and let the node say. In one go, so that no other thread's flush takes the record along
// and the report with it.
void learn_from_node(OpInfo& op, Scratch& call, Stream& stream) {
  auto ticket = call.core->flush(stream, FlushReason::kShape, {}, [&] { append(stream, op, call); });
  call.core->wait(*ticket);
  session::Outcome& outcome = ticket->outcome();
  if (!outcome.status.ok()) throw Error(outcome.status);
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
  if (!ticket->outcome().status.ok()) throw Error(ticket->outcome().status);
}

void count_source(CaptureCounters& counters, ShapeSource source) {
  switch (source) {
    case ShapeSource::kCache: counters.shape_cache.fetch_add(1, std::memory_order_relaxed); return;
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

void push_results(const OpInfo& op, const OutputMeta* metas, Scratch& call, c10::SmallVector<c10::IValue, 4>& out,
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

}  // namespace

StorageState& usable_state(const at::Tensor& tensor) {
  TORCH_CHECK(tensor.layout() == at::kStrided && tensor.has_storage(),
              "only strided tensors live on remote_accelerator; convert with .to_dense() first");
  StorageState* state = StorageState::of(tensor.storage().unsafeGetStorageImpl());
  if (state->poisoned.load(std::memory_order_acquire)) [[unlikely]] {
    state->session->failure_seen();
    throw Error(*state->error);
  }
  return *state;
}

at::Tensor make_lazy_over(StorageState* state, c10::Device device, at::IntArrayRef sizes, at::IntArrayRef strides,
                          c10::ScalarType dtype) {
  c10::Storage storage(c10::Storage::use_byte_size_t(), static_cast<int64_t>(state->size_bytes),
                       lazy_data_ptr(state, device), remote_allocator(), /*resizable=*/true);
  storage.unsafeGetStorageImpl()->set_materializer(refuse_data_access);
  return tensor_over(std::move(storage), sizes, strides, dtype);
}

at::Tensor make_lazy(SessionCore& core, c10::Device device, at::IntArrayRef sizes, at::IntArrayRef strides,
                     c10::ScalarType dtype) {
  const uint64_t bytes = at::detail::computeStorageNbytes(sizes, strides, c10::elementSize(dtype));
  return make_lazy_over(core.new_storage(bytes), device, sizes, strides, dtype);
}

void record_call(OpInfo& op, torch::jit::Stack& stack) {
  TORCH_CHECK_NOT_IMPLEMENTED(op.supported, op.name,
                              " cannot be captured for remote_accelerator; call it on CPU tensors");
  const ScratchLease lease;
  Scratch& call = *lease;
  const auto args = torch::jit::last(stack, op.args.size());
  Encoder(op, args, call).run();
  SessionCore& core = *call.core;

  ShapeSource source = ShapeSource::kCache;
  const OutputMeta* metas = infer(op, args, call.key, source);
  count_source(core.counters(), source);
  TORCH_CHECK_NOT_IMPLEMENTED(
      metas != nullptr || !op.resizes_out, op.name,
      ": the size of its result is only known on the node, so that it cannot go into an out= tensor; call the "
      "variant without out=");
  encode_outputs(op, metas, call);

  Stream& stream = core.current_stream();
  for (const TouchedState& touched : call.touched) {
    if (touched.mode != Touch::kDefine) core.order_touch(stream, *touched.state, touched.mode == Touch::kWrite);
  }
  op.captured.fetch_add(1, std::memory_order_relaxed);
  core.counters().captured.fetch_add(1, std::memory_order_relaxed);
  if (metas == nullptr && !call.results.empty()) {
    learn_from_node(op, call, stream);
  } else {
    bool full = false;
    {
      const std::lock_guard<SpinLock> guard(stream.lock);
      append(stream, op, call);
      full = stream.open.records.size() >= core.limits().max_records;
    }
    if (full) core.flush(stream, FlushReason::kLimit);
    if (!is_lazy()) run_now(core, stream);
  }
  if (metas != nullptr && !metas->resized.empty()) apply_resizes(*metas, args);

  c10::SmallVector<c10::IValue, 4> results;
  push_results(op, metas, call, results, args);
  torch::jit::drop(stack, op.args.size());
  for (c10::IValue& result : results) stack.push_back(std::move(result));
}

}  // namespace genie::frontend
