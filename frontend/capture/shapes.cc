#include "frontend/capture/shapes.h"

#include <ATen/EmptyTensor.h>
#include <ATen/ExpandUtils.h>
#include <ATen/core/Generator.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/util/strides.h>
#include <xxhash.h>

#include <algorithm>
#include <deque>
#include <utility>

#include "frontend/capture/user_shapes.h"

namespace genie::frontend {
namespace {

constexpr size_t kMaxCachedShapes = size_t{1} << 16;

struct CacheEntry {
  uint64_t hash = 0;
  const OpInfo* op = nullptr;
  std::vector<int64_t> key;
  OutputMeta outputs;
};

// Open addressing over stable entries: a lookup is one probe and one comparison of the key.
class Cache {
 public:
  const OutputMeta* find(const OpInfo& op, std::span<const int64_t> key, uint64_t hash) const {
    for (size_t at = hash & mask();; at = (at + 1) & mask()) {
      const CacheEntry* entry = table_[at];
      if (entry == nullptr) return nullptr;
      if (entry->hash == hash && entry->op == &op &&
          std::equal(key.begin(), key.end(), entry->key.begin(), entry->key.end())) {
        return &entry->outputs;
      }
    }
  }
  const OutputMeta* add(CacheEntry entry) {
    // A bound, not a policy: programs whose shapes never repeat must not grow without end.
    if (entries_.size() >= kMaxCachedShapes) *this = Cache();
    if (entries_.size() * 2 >= table_.size()) grow();
    return &place(&entries_.emplace_back(std::move(entry)))->outputs;
  }

 private:
  size_t mask() const { return table_.size() - 1; }
  const CacheEntry* place(const CacheEntry* entry) {
    size_t at = entry->hash & mask();
    while (table_[at] != nullptr) at = (at + 1) & mask();
    return table_[at] = entry;
  }
  void grow() {
    table_.assign(table_.size() * 2, nullptr);
    for (const CacheEntry& entry : entries_) place(&entry);
  }

  std::deque<CacheEntry> entries_;
  std::vector<const CacheEntry*> table_ = std::vector<const CacheEntry*>(1024, nullptr);
};

// A plain pointer in the thread's static block: reading it costs one instruction, also from a shared library.
[[gnu::tls_model("initial-exec")]] thread_local Cache* thread_cache = nullptr;

struct Cleanup {
  ~Cleanup() { delete std::exchange(thread_cache, nullptr); }
};

Cache& make_cache() {
  static thread_local Cleanup cleanup;
  (void)cleanup;
  thread_cache = new Cache;
  return *thread_cache;
}

Cache& cache() { return thread_cache != nullptr ? *thread_cache : make_cache(); }

uint64_t hash_of(const OpInfo& op, std::span<const int64_t> key) {
  const uint64_t epoch = op.shape_epoch.load(std::memory_order_acquire);
  return XXH3_64bits_withSeed(key.data(), key.size_bytes(), op.index | (epoch << 32));
}

const OutputMeta* store(const OpInfo& op, std::span<const int64_t> key, uint64_t hash, OutputMeta outputs) {
  return cache().add(CacheEntry{hash, &op, {key.begin(), key.end()}, std::move(outputs)});
}

at::Tensor to_meta(const at::Tensor& tensor) {
  if (!tensor.defined() || tensor.device().is_cpu()) return tensor;
  at::Tensor meta = at::detail::empty_strided_meta(tensor.sizes(), tensor.strides(), tensor.scalar_type());
  if (tensor.is_conj()) meta._set_conj(true);
  if (tensor.is_neg()) meta._set_neg(true);
  if (tensor.unsafeGetTensorImpl()->is_wrapped_number()) meta.unsafeGetTensorImpl()->set_wrapped_number(true);
  return meta;
}

c10::IValue to_meta(const c10::IValue& value) {
  if (value.isTensor()) return to_meta(value.toTensor());
  if (value.isTensorList()) {
    c10::List<at::Tensor> list;
    for (const at::Tensor& tensor : value.toTensorVector()) list.push_back(to_meta(tensor));
    return list;
  }
  if (value.isOptionalTensorList()) {
    c10::List<std::optional<at::Tensor>> list;
    for (const std::optional<at::Tensor>& tensor : value.toOptionalTensorVector()) {
      list.push_back(tensor.has_value() ? std::optional<at::Tensor>(to_meta(*tensor)) : std::nullopt);
    }
    return list;
  }
  if (value.isDevice()) return at::Device(at::kMeta);
  if (value.isGenerator()) return {};
  return value;
}

bool depends_on_values(const OpInfo& op, c10::ArrayRef<c10::IValue> args) {
  if (!op.indexes) return op.data_dependent;
  for (const std::optional<at::Tensor>& index : args[1].toOptionalTensorVector()) {
    if (!index.has_value() || !index->defined()) continue;
    if (index->scalar_type() == at::kBool || index->scalar_type() == at::kByte) return true;
  }
  return false;
}

bool blames_meta(std::string_view text) {
  return text.find("meta") != std::string_view::npos || text.find("Meta") != std::string_view::npos;
}

TensorMeta formatted_meta(at::IntArrayRef sizes, c10::ScalarType dtype, c10::MemoryFormat format) {
  switch (format) {
    case c10::MemoryFormat::ChannelsLast: return dense_meta(sizes, c10::get_channels_last_strides_2d(sizes), dtype);
    case c10::MemoryFormat::ChannelsLast3d: return dense_meta(sizes, c10::get_channels_last_strides_3d(sizes), dtype);
    default: return dense_meta(sizes, c10::contiguous_strides(sizes), dtype);
  }
}

// Runs the operator on meta tensors; false when libtorch has no meta kernel for it.
bool run_meta(const OpInfo& op, c10::ArrayRef<c10::IValue> args, OutputMeta& out) {
  // A library's Meta kernel may come later than its operator.
  const bool has_meta = op.custom ? op.handle.hasKernelForDispatchKey(c10::DispatchKey::Meta) : op.has_meta;
  if (!has_meta || depends_on_values(op, args)) return false;
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  torch::jit::Stack stack;
  stack.reserve(args.size());
  for (const c10::IValue& arg : args) stack.push_back(to_meta(arg));
  std::vector<std::pair<size_t, at::Tensor>> written;
  for (size_t i = 0; i < args.size(); ++i) {
    if (op.args[i].is_write && stack[i].isTensor()) written.emplace_back(i, stack[i].toTensor());
  }
  try {
    op.handle.callBoxed(stack);
  } catch (const c10::NotImplementedError&) {
    return false;
  } catch (const c10::Error& error) {
    // A composition that stands in for the CPU's kernel may refuse what that kernel takes.
    if (op.meta_is_stand_in) return false;
    // Kernels that look at values fail on meta tensors for a reason that is not the user's.
    if (blames_meta(error.what_without_backtrace())) return false;
    throw;
  } catch (const std::exception& error) {
    // A library's kernel, perhaps in Python.
    if (blames_meta(error.what())) return false;
    throw;
  }
  for (size_t i = 0; i < op.returns.size(); ++i) {
    if (op.returns[i].kind == ReturnKind::kOther) return false;
    if (op.returns[i].alias_of >= 0) {
      out.list_length.push_back(-1);
      continue;
    }
    if (op.returns[i].kind == ReturnKind::kTensor) {
      out.list_length.push_back(-1);
      out.tensors.push_back(meta_like(stack[i].toTensor()));
      continue;
    }
    const auto tensors = stack[i].toTensorVector();
    out.list_length.push_back(static_cast<int32_t>(tensors.size()));
    for (const at::Tensor& tensor : tensors) out.tensors.push_back(meta_like(tensor));
  }
  for (const auto& [index, tensor] : written) {
    if (tensor.sizes() == args[index].toTensor().sizes()) continue;
    out.resized.emplace_back(index, dense_meta(tensor.sizes(), tensor.strides(), tensor.scalar_type()));
  }
  if (op.keeps_format) {
    const auto format = args[0].toTensor().suggest_memory_format();
    const auto keep = [&](TensorMeta& result) { result = formatted_meta(result.sizes, result.dtype, format); };
    for (TensorMeta& result : out.tensors) keep(result);
    if (op.handle.hasKernelForDispatchKey(c10::DispatchKey::CPU)) {
      for (auto& [index, result] : out.resized) keep(result);
    }
  }
  return true;
}

}  // namespace

TensorMeta dense_meta(at::IntArrayRef sizes, at::IntArrayRef strides, c10::ScalarType dtype) {
  TensorMeta meta;
  meta.dtype = dtype;
  meta.sizes.assign(sizes.begin(), sizes.end());
  meta.strides.assign(strides.begin(), strides.end());
  int64_t count = 1;
  for (size_t i = sizes.size(); i-- > 0;) {
    if (sizes[i] != 1 && strides[i] != count) meta.contiguous = false;
    count *= sizes[i];
  }
  // libtorch calls a tensor contiguous whatever the strides of its dimensions of size 1: spell them the usual way only
  // where that is what they are.
  if (meta.contiguous) {
    int64_t expected = 1;
    for (size_t i = sizes.size(); i-- > 0;) {
      if (strides[i] != expected) meta.contiguous = false;
      expected *= std::max<int64_t>(sizes[i], 1);
    }
  }
  meta.storage_bytes = static_cast<uint64_t>(count) * c10::elementSize(dtype);
  return meta;
}

TensorMeta meta_like(const at::Tensor& tensor) {
  if (!tensor.defined()) return TensorMeta{.defined = false};
  if (tensor.is_non_overlapping_and_dense()) return dense_meta(tensor.sizes(), tensor.strides(), tensor.scalar_type());
  return dense_meta(tensor.sizes(), at::infer_dense_strides(tensor.sizes(), tensor.strides()), tensor.scalar_type());
}

void ShapeRequest::add(at::IntArrayRef sizes, c10::ScalarType dtype) {
  add_format(sizes, dtype, c10::MemoryFormat::Contiguous);
}

void ShapeRequest::add_format(at::IntArrayRef sizes, c10::ScalarType dtype, c10::MemoryFormat format) {
  out.list_length.push_back(-1);
  out.tensors.push_back(formatted_meta(sizes, dtype, format));
}

void ShapeRequest::add_like(const at::Tensor& like) {
  out.list_length.push_back(-1);
  out.tensors.push_back(meta_like(like));
}

void ShapeRequest::add_undefined() {
  out.list_length.push_back(-1);
  out.tensors.push_back(TensorMeta{.defined = false});
}

namespace {

// kNone: nobody on the client knows.
ShapeSource derive(const OpInfo& op, c10::ArrayRef<c10::IValue> args, OutputMeta& outputs) {
  if (const UserShapes* user = op.user_shapes.load(std::memory_order_acquire)) {
    if (run_user_shapes(*user, op, args, outputs)) return ShapeSource::kOwn;
    outputs = {};
  }
  if (op.shape != nullptr) {
    ShapeRequest request{op, args, outputs};
    if (op.shape(request)) return ShapeSource::kOwn;
    outputs = {};
  }
  return run_meta(op, args, outputs) ? ShapeSource::kMeta : ShapeSource::kNone;
}

bool is_same(const TensorMeta& a, const TensorMeta& b) {
  return a.defined == b.defined && (!a.defined || (a.dtype == b.dtype && a.sizes == b.sizes && a.strides == b.strides &&
                                                   a.storage_bytes == b.storage_bytes));
}

bool is_same(const OutputMeta& a, const OutputMeta& b) {
  const auto same_resized = [](const auto& x, const auto& y) {
    return x.first == y.first && is_same(x.second, y.second);
  };
  return a.list_length == b.list_length &&
         std::ranges::equal(a.tensors, b.tensors,
                            [](const TensorMeta& x, const TensorMeta& y) { return is_same(x, y); }) &&
         std::ranges::equal(a.resized, b.resized, same_resized);
}

// The debug mode that trusts nothing that was remembered. What only the node knows it compares itself.
[[gnu::cold, gnu::noinline]] void check_known(const OpInfo& op, const OutputMeta& known,
                                              c10::ArrayRef<c10::IValue> args) {
  OutputMeta derived;
  if (derive(op, args, derived) == ShapeSource::kNone) return;
  TORCH_INTERNAL_ASSERT(is_same(derived, known), op.name,
                        ": the remembered sizes of its results are not those that are derived now");
}

}  // namespace

const OutputMeta* infer(const OpInfo& op, std::span<const int64_t> key,
                        c10::function_ref<c10::ArrayRef<c10::IValue>()> boxed, ShapeSource& source) {
  const uint64_t hash = hash_of(op, key);
  if (const OutputMeta* known = cache().find(op, key, hash)) {
    if (is_checking_shapes()) [[unlikely]]
      check_known(op, *known, boxed());
    source = ShapeSource::kCache;
    return known;
  }
  OutputMeta outputs;
  source = derive(op, boxed(), outputs);
  return source == ShapeSource::kNone ? nullptr : store(op, key, hash, std::move(outputs));
}

void remember(const OpInfo& op, std::span<const int64_t> key, OutputMeta meta) {
  // Whether the shape of an unknown operator's result depends on values is as unknown.
  if (!op.data_dependent && !op.custom) store(op, key, hash_of(op, key), std::move(meta));
}

}  // namespace genie::frontend
