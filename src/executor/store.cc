// Replay: runs programs over a session's storages, record by record, on real tensors with true aliasing.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/zeros.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/TensorImpl.h>
#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <optional>
#include <unordered_map>

#include "datapath/base/log.h"
#include "datapath/memory/populate.h"
#include "src/executor/geometry.h"
#include "src/executor/placement.h"
#include "src/executor/program.h"
#include "src/executor/promise.h"
#include "src/executor/sharing.h"

namespace genie::executor {
namespace {

using wire::SlotKind;
using wire::Tag;

constexpr uint64_t kSharedAlignment = 64;  // what kernels find at the beginning of memory that libtorch allocated

// One storage of the session. A poisoned one has no bytes, only the error that every use repeats.
struct Entry {
  c10::Storage storage;
  at::Tensor tensor;  // over it, as records last knew it; perhaps undefined
  uint32_t version = 0;
  bool writable = true;
  std::shared_ptr<Content> content;  // others may hold the memory too; null once this storage has written
  const void* besides = nullptr;     // memory that is counted elsewhere, while it is the storage's
  uint64_t accounted_bytes = 0;      // counted against the quota
  Status poison;
};

c10::Storage storage_over(HostMemory memory) {
  const auto size = static_cast<int64_t>(memory.size);
  return c10::Storage(c10::Storage::use_byte_size_t(), size, pointer_to(std::move(memory)), c10::GetCPUAllocator(),
                      /*resizable=*/true);
}

c10::Storage fresh_storage(size_t size_bytes) {
  return c10::Storage(c10::Storage::use_byte_size_t(), static_cast<int64_t>(size_bytes),
                      c10::GetCPUAllocator()->allocate(size_bytes), c10::GetCPUAllocator(), /*resizable=*/true);
}

// For one copy of everything: a large one is written at memory's speed.
c10::Storage private_storage(size_t size_bytes) {
  if (size_bytes >= datapath::kMappedBlockBytes) {
    if (Result<datapath::Buffer> block = datapath::map_block(size_bytes)) {
      HostMemory memory{.data = block->data(), .size = size_bytes};
      memory.owner = std::make_shared<datapath::Buffer>(std::move(*block));
      return storage_over(std::move(memory));
    }
  }
  return fresh_storage(size_bytes);
}

// Of a fresh result, as the client promised it.
size_t bytes_of(const Node& node, std::span<const int64_t> params) {
  const Geometry geometry(node, params);
  const size_t item_bytes = c10::elementSize(static_cast<c10::ScalarType>(node.dtype));
  return bytes_spanned(geometry.sizes, geometry.strides, 0, item_bytes);
}

class CpuStore final : public Store {
 public:
  explicit CpuStore(StoreOptions options) : options_(options) {}

  Status admit(uint64_t size_bytes) const override { return size_bytes > left() ? over_quota(size_bytes) : Status(); }

  Status adopt(StorageVersion storage, HostMemory memory) override {
    if (!memory.counted_besides) GENIE_TRY(admit(memory.size));
    if (entries_.contains(storage.id)) {
      return {Errc::kAlreadyExists, fmt::format("storage {} exists already", storage.id)};
    }
    GENIE_TRY(check_new(storage.id, 1));
    Entry& entry = entries_[storage.id];
    entry.version = storage.version;
    entry.writable = memory.writable;
    entry.content = std::move(memory.content);
    entry.besides = memory.counted_besides ? memory.data : nullptr;
    entry.storage = storage_over(std::move(memory));
    account(entry);
    return {};
  }

  InvokeOutcome invoke(const Program& program, std::span<const SlotBinding> slots, std::span<const int64_t> params,
                       std::span<const uint64_t> placed, Birthplace* birthplace) override;

  void poison(const Program& program, std::span<const SlotBinding> slots, const Status& why) override {
    if (slots.size() != program.bound_slots.size()) return;
    for (size_t i = 0; i < slots.size(); ++i) {
      if (program.slot_written[program.bound_slots[i]]) poison_entry(slots[i], why);
    }
  }

  Result<std::span<const std::byte>> bytes(StorageVersion storage, uint64_t offset, uint64_t size) override {
    auto found = entries_.find(storage.id);
    if (found == entries_.end())
      return Status(Errc::kNotFound, fmt::format("storage {} is not on this node", storage.id));
    const Entry& entry = found->second;
    if (!entry.poison.ok()) return entry.poison;
    if (entry.version != storage.version) {
      return Status(Errc::kStale,
                    fmt::format("storage {} is at version {}, not {}", storage.id, entry.version, storage.version));
    }
    const uint64_t have = entry.storage.nbytes();
    if (offset > have || size > have - offset) {
      return Status(Errc::kOutOfRange,
                    fmt::format("bytes [{}, {}) of storage {}, which has {}", offset, offset + size, storage.id, have));
    }
    return std::span(static_cast<const std::byte*>(entry.storage.data()) + offset, size);
  }

  Result<SharedBytes> share(StorageVersion storage, uint64_t offset, uint64_t size, bool once) override {
    const Result<std::span<const std::byte>> range = bytes(storage, offset, size);
    GENIE_TRY(range.status());
    Entry& entry = entries_.find(storage.id)->second;
    SharedBytes out{.bytes = {const_cast<std::byte*>(range->data()), range->size()}, .holder = nullptr};
    const bool aligned = reinterpret_cast<uintptr_t>(range->data()) % kSharedAlignment == 0;
    const bool available = !once || !is_shared(entry.storage);
    if (size != 0 && aligned && available && entry.writable && size >= entry.storage.nbytes() / 2) {
      out.holder = share_memory(entry.storage);
    }
    return out;
  }

  uint64_t keep(uint64_t id, const std::byte* lent) override {
    const auto found = entries_.find(id);
    if (found == entries_.end()) return 0;
    Entry& entry = found->second;
    if (!entry.storage || entry.storage.data() != lent) return 0;
    const uint64_t size = entry.storage.nbytes();
    try {
      make_private(entry);
      return size;
    } catch (const std::exception& error) {
      drop_memory(entry);
      entry.poison =
          Status(Errc::kOutOfMemory, fmt::format("no memory to keep {} bytes that were lent: {}", size, error.what()));
      account(entry);
      return 0;
    }
  }

  void free(uint64_t id) override {
    if (id >= kGeneratorIds) {
      generators_.erase(static_cast<uint32_t>(id - kGeneratorIds));
      return;
    }
    auto found = entries_.find(id);
    if (found == entries_.end()) return;
    drop_memory(found->second);
    account(found->second);
    entries_.erase(found);
  }

  uint64_t bytes_in_use() const override { return in_use_; }
  size_t storage_count() const override { return entries_.size(); }

 private:
  struct Slot {
    c10::Storage storage;
    bool live = false;
    at::Tensor tensor;  // over it, as the last record knew it
  };

  Status over_quota(uint64_t wanted) const {
    return {
        Errc::kQuotaExceeded,
        fmt::format("{} bytes wanted, {} of {} in use: free tensors, or start the node with a larger --memory-quota",
                    wanted, held(), options_.quota_bytes)};
  }

  uint64_t held() const noexcept {
    const auto* const besides = options_.held_besides_bytes;
    return in_use_ + (besides == nullptr ? 0 : besides->load(std::memory_order_relaxed));
  }

  uint64_t left() const noexcept { return options_.quota_bytes - std::min(options_.quota_bytes, held()); }

  // A storage's size may have changed (resize_): the quota follows.
  void account(Entry& entry) {
    in_use_ -= entry.accounted_bytes;
    if (!entry.storage || entry.storage.data() != entry.besides) entry.besides = nullptr;
    entry.accounted_bytes = entry.storage && entry.besides == nullptr ? entry.storage.nbytes() : 0;
    in_use_ += entry.accounted_bytes;
  }

  static void make_private(Entry& entry) {
    c10::Storage copy = private_storage(entry.storage.nbytes());
    std::memcpy(copy.mutable_data(), entry.storage.data(), entry.storage.nbytes());
    entry.tensor.reset();
    entry.storage = std::move(copy);
    entry.content.reset();
    entry.writable = true;
  }

  static void drop_memory(Entry& entry) {
    entry.tensor.reset();
    entry.storage = {};
    entry.content.reset();
  }

  // Nobody else has the memory, and from now on nobody comes to have it by its content.
  static bool claim(Entry& entry) {
    if (!entry.writable || is_shared(entry.storage)) return false;
    if (entry.content != nullptr && !entry.content->claim()) return false;
    entry.content.reset();
    return true;
  }

  // Whether `count` more storages may be, of which one would have that id.
  Status check_new(uint64_t id, size_t count) const {
    if (id >= kGeneratorIds) return {Errc::kInvalidArgument, fmt::format("storage {}: no storage has such an id", id)};
    if (count <= options_.storages_max - std::min(options_.storages_max, entries_.size())) return {};
    return {Errc::kQuotaExceeded,
            fmt::format("the session has {} storages, the node allows no more: free tensors", entries_.size())};
  }

  // Without room, later uses hear only that the storage is not there.
  void poison_entry(const SlotBinding& binding, const Status& why) {
    if (!entries_.contains(binding.id) && !check_new(binding.id, 1).ok()) return;
    Entry& entry = entries_[binding.id];
    drop_memory(entry);
    account(entry);
    entry.version = binding.version_out;
    entry.poison = why;
  }

  Status bind(const Program& program, std::span<const SlotBinding> slots, InvokeOutcome& outcome);
  void plan_births(const Program& program, std::span<const SlotBinding> slots, std::span<const uint64_t> placed);
  void settle(const Program& program, std::span<const SlotBinding> slots, const Status& status, size_t failed);
  void mark_touched_by(const Program& program, const Record& record, std::vector<bool>& touched) const;
  void run_record(const Program& program, const Record& record, std::span<const int64_t> params,
                  InvokeOutcome& outcome);
  c10::IValue argument(const Program& program, const Node& node, const c10::Type& type,
                       std::span<const int64_t> params);
  c10::IValue list_argument(const Program& program, const Node& node, const c10::Type& element,
                            std::span<const int64_t> params);
  at::Tensor operand(const Node& node, std::span<const int64_t> params);
  std::string operands_of(const Program& program, const Record& record, std::span<const int64_t> params);
  void take_output(const Program& program, const Record& record, const Node& node, const c10::IValue& value,
                   std::span<const int64_t> params, InvokeOutcome& outcome);
  void take_tensor(const Node& node, at::Tensor tensor, std::span<const int64_t> params, bool check,
                   InvokeOutcome& outcome);
  at::Generator generator(uint32_t number) {
    if (generators_.size() >= options_.generators_max && !generators_.contains(number)) {
      throw ReplayError(Errc::kQuotaExceeded,
                        fmt::format("the session has {} generators, the node allows no more: drop some, or reuse them",
                                    generators_.size()));
    }
    auto& made = generators_[number];
    if (!made.defined()) made = at::detail::createCPUGenerator();
    return made;
  }

  const StoreOptions options_;
  std::unordered_map<uint64_t, Entry> entries_;
  std::unordered_map<uint32_t, at::Generator> generators_;
  uint64_t in_use_ = 0;            // storages in the table
  uint64_t invocation_bytes_ = 0;  // results of the running invocation
  // Scratch of the running invocation, kept to spare allocations.
  std::vector<Slot> slots_;
  std::vector<c10::IValue> stack_;
  struct Birth {
    Origin origin;
    uint64_t storage = 0;
  };
  std::vector<Birth> births_;  // by record, at most one of each
};

// Looks every bound slot up before anything runs: a stale version or a poisoned input changes nothing.
Status CpuStore::bind(const Program& program, std::span<const SlotBinding> slots, InvokeOutcome& outcome) {
  slots_.assign(program.slot_kinds.size(), Slot{});
  invocation_bytes_ = 0;
  size_t created = 0;
  for (size_t i = 0; i < slots.size(); ++i) {
    const uint32_t slot = program.bound_slots[i];
    auto found = entries_.find(slots[i].id);
    if (program.slot_kinds[slot] == SlotKind::kCreated) {
      if (found != entries_.end()) return {Errc::kAlreadyExists, fmt::format("storage {} exists already", slots[i].id)};
      GENIE_TRY(check_new(slots[i].id, ++created));
      continue;
    }
    if (found == entries_.end()) {
      return {Errc::kNotFound,
              fmt::format("storage {} is not on this node: it was freed, or never came to life", slots[i].id)};
    }
    Entry& entry = found->second;
    if (!entry.poison.ok()) return entry.poison;
    if (entry.version != slots[i].version_in) {
      return {Errc::kStale, fmt::format("storage {} is at version {}, the invocation expects {}", slots[i].id,
                                        entry.version, slots[i].version_in)};
    }
    if (program.slot_written[slot] && !claim(entry)) {
      const bool fetched = entry.writable && is_shared(entry.storage);
      (fetched ? outcome.unshared_bytes : outcome.claimed_bytes) += entry.storage.nbytes();
      make_private(entry);
    }
    slots_[slot] = Slot{entry.storage, true, std::move(entry.tensor)};
  }
  return {};
}

void CpuStore::plan_births(const Program& program, std::span<const SlotBinding> slots,
                           std::span<const uint64_t> placed) {
  births_.clear();
  if (placed.empty()) return;
  for (size_t i = 0; i < slots.size(); ++i) {
    const uint32_t slot = program.bound_slots[i];
    const Origin origin = program.slot_origin[slot];
    if (program.slot_kinds[slot] != SlotKind::kCreated || origin.record == Origin::kNone) continue;
    if (std::ranges::find(placed, slots[i].id) != placed.end()) births_.push_back({origin, slots[i].id});
  }
  const auto record = [](const Birth& birth) { return birth.origin.record; };
  std::ranges::sort(births_, {}, record);
  births_.erase(std::unique(births_.begin(), births_.end(),
                            [](const Birth& a, const Birth& b) { return a.origin.record == b.origin.record; }),
                births_.end());
}

void CpuStore::mark_touched_by(const Program& program, const Record& record, std::vector<bool>& touched) const {
  auto mark = [&](auto&& self, const Node& node) -> void {
    if (node.tag == Tag::kFresh || node.tag == Tag::kReported) touched[node.slot] = true;
    if (node.tag == Tag::kTensor && program.slot_written[node.slot]) touched[node.slot] = true;
    if (node.tag == Tag::kList || node.tag == Tag::kListOut) {
      for (uint32_t i = 0; i < node.count; ++i) self(self, program.nodes[node.first_child + i]);
    }
  };
  for (uint32_t i = 0; i < record.argument_count; ++i) {
    if (writes_argument(program, record, i)) mark(mark, program.nodes[record.first_argument + i]);
  }
  for (uint32_t i = 0; i < record.output_count; ++i) mark(mark, program.nodes[record.first_output + i]);
}

// Writes the slots back: versions move on, new storages enter the table, and what records from `failed` on would have written
// is poisoned. Storages that only earlier records wrote keep what these wrote.
void CpuStore::settle(const Program& program, std::span<const SlotBinding> slots, const Status& status, size_t failed) {
  std::vector<bool> lost(program.slot_kinds.size(), false);
  for (size_t i = failed; i < program.records.size(); ++i) mark_touched_by(program, program.records[i], lost);
  for (size_t i = 0; i < slots.size(); ++i) {
    const uint32_t slot = program.bound_slots[i];
    if (lost[slot]) {
      poison_entry(slots[i], status);
      continue;
    }
    if (program.slot_kinds[slot] == SlotKind::kCreated) {
      if (!slots_[slot].live) continue;
      entries_[slots[i].id].storage = std::move(slots_[slot].storage);
    }
    Entry& entry = entries_[slots[i].id];
    // A library's kernel may have put another storage under it.
    if (lies_over(slots_[slot].tensor, entry.storage)) entry.tensor = std::move(slots_[slot].tensor);
    entry.version = slots[i].version_out;
    account(entry);
  }
  slots_.clear();
}

InvokeOutcome CpuStore::invoke(const Program& program, std::span<const SlotBinding> slots,
                               std::span<const int64_t> params, std::span<const uint64_t> placed,
                               Birthplace* birthplace) {
  InvokeOutcome outcome;
  if (slots.size() != program.bound_slots.size() || params.size() != program.default_params.size()) {
    outcome.status =
        Status(Errc::kProtocol, "invocation brings another number of storages or parameters than its template");
    return outcome;
  }
  if (at::get_num_threads() != options_.threads) at::set_num_threads(options_.threads);
  Status bound = check_still_there(program);
  if (bound.ok()) bound = bind(program, slots, outcome);
  if (!bound.ok()) {
    outcome.status = bound;  // no record's: it may be what an earlier one raised, whose result this was to read
    poison(program, slots, bound);
    slots_.clear();
    return outcome;
  }
  const c10::InferenceMode below_autograd;
  plan_births(program, slots, birthplace != nullptr ? placed : std::span<const uint64_t>());
  auto birth = births_.cbegin();
  AllocationLimit limit(0);  // set for each record
  size_t index = 0;
  Errc code = Errc::kOpFailed;
  std::string why;
  for (; index < program.records.size(); ++index) {
    try {
      std::optional<PlacementScope> scope;
      if (birth != births_.cend() && birth->origin.record == index) [[unlikely]] {
        const Node& node = program.nodes[birth->origin.node];
        scope.emplace(*birthplace, birth->storage, bytes_of(node, params));
        ++birth;
      }
      const uint64_t left_now = left();
      limit.set(left_now - std::min(left_now, invocation_bytes_));
      run_record(program, program.records[index], params, outcome);
    } catch (const ReplayError& error) {
      code = error.code;
      why = error.what();
      break;
    } catch (const c10::Error& error) {
      why = error.what_without_backtrace();
      break;
    } catch (const std::bad_alloc&) {
      const uint64_t refused = limit.refused_bytes();
      code = refused != 0 ? Errc::kQuotaExceeded : Errc::kOutOfMemory;
      why = refused != 0 ? std::string(over_quota(refused).text()) : "the node is out of memory";
      break;
    } catch (const std::exception& error) {
      why = error.what();
      break;
    }
    ++outcome.executed_records;
    if (options_.progress != nullptr) options_.progress->fetch_add(1, std::memory_order_relaxed);
  }
  stack_.clear();
  if (index < program.records.size()) {
    outcome.failed_record = static_cast<int64_t>(index);
    outcome.status = Status(code, fmt::format("{} {}", program.op_names[program.records[index].op_index], why));
  }
  settle(program, slots, outcome.status, index);
  return outcome;
}

at::Tensor CpuStore::operand(const Node& node, std::span<const int64_t> params) {
  Slot& slot = slots_[node.slot];
  if (!slot.live) throw ReplayError(Errc::kProtocol, "a record reads a storage that does not exist yet");
  if (is_operand(slot.tensor, slot.storage, node, params)) return slot.tensor;
  const Geometry geometry(node, params);
  const auto type = c10::scalarTypeToTypeMeta(static_cast<c10::ScalarType>(node.dtype));
  if (bytes_spanned(geometry.sizes, geometry.strides, geometry.offset, type.itemsize()) > slot.storage.nbytes()) {
    throw ReplayError(Errc::kOutOfRange, "an operand reaches beyond its storage");
  }
  auto tensor = at::detail::make_tensor<c10::TensorImpl>(c10::Storage(slot.storage),
                                                         c10::DispatchKeySet(c10::DispatchKey::CPU), type);
  auto* impl = tensor.unsafeGetTensorImpl();
  impl->set_sizes_and_strides(geometry.sizes, geometry.strides, geometry.offset);
  if (node.conj) impl->_set_conj(true);
  if (node.neg) impl->_set_neg(true);
  if (!lies_over(slot.tensor, slot.storage)) slot.tensor = tensor;
  return tensor;
}

at::Tensor scalar_operand(const Node& node, std::span<const int64_t> params) {
  const auto type = static_cast<c10::ScalarType>(node.dtype);
  at::Scalar value;
  if (c10::isComplexType(type)) {
    value =
        c10::complex<double>(std::bit_cast<double>(params[node.param]), std::bit_cast<double>(params[node.param + 1]));
  } else if (c10::isFloatingType(type)) {
    value = std::bit_cast<double>(params[node.param]);
  } else if (type == c10::ScalarType::Bool) {
    value = params[node.param] != 0;
  } else {
    value = params[node.param];
  }
  at::Tensor tensor = at::scalar_tensor(value, at::TensorOptions(type).device(at::kCPU));
  if (node.wrapped) tensor.unsafeGetTensorImpl()->set_wrapped_number(true);
  return tensor;
}

c10::IValue CpuStore::argument(const Program& program, const Node& node, const c10::Type& type,
                               std::span<const int64_t> params) {
  switch (node.tag) {
    case Tag::kTensor: return operand(node, params);
    case Tag::kUndefinedTensor: return at::Tensor();
    case Tag::kScalarTensor: return scalar_operand(node, params);
    case Tag::kInt: return params[node.param];
    case Tag::kIntConst: return static_cast<int64_t>(node.count);
    case Tag::kDouble: return std::bit_cast<double>(params[node.param]);
    case Tag::kComplex:
      return c10::complex<double>(std::bit_cast<double>(params[node.param]),
                                  std::bit_cast<double>(params[node.param + 1]));
    case Tag::kBool: return node.count != 0;
    case Tag::kString: return program.strings[node.count];
    case Tag::kDevice: return at::Device(at::kCPU);
    case Tag::kGenerator: return generator(node.count);
    case Tag::kIntList:
    case Tag::kDoubleList:
    case Tag::kBoolList:
    case Tag::kList: {
      const c10::Type* list = &type;
      if (type.kind() == c10::TypeKind::OptionalType) list = type.expectRef<c10::OptionalType>().getElementType().get();
      return list_argument(program, node, *list->expectRef<c10::ListType>().getElementType(), params);
    }
    default: return {};
  }
}

c10::IValue CpuStore::list_argument(const Program& program, const Node& node, const c10::Type& element,
                                    std::span<const int64_t> params) {
  if (node.tag == Tag::kIntList) {
    return c10::List<int64_t>(at::IntArrayRef(params.data() + node.param, node.count));
  }
  if (node.tag == Tag::kDoubleList) {
    c10::List<double> list;
    list.reserve(node.count);
    for (uint32_t i = 0; i < node.count; ++i) list.push_back(std::bit_cast<double>(params[node.param + i]));
    return list;
  }
  if (node.tag == Tag::kBoolList) {
    c10::List<bool> list;
    list.reserve(node.count);
    for (uint32_t i = 0; i < node.count; ++i) {
      list.push_back(((program.bool_words[node.first_child + i / 32] >> (i % 32)) & 1U) != 0);
    }
    return list;
  }
  auto child = [&](uint32_t i) -> const Node& { return program.nodes[node.first_child + i]; };
  if (element.kind() == c10::TypeKind::TensorType) {
    c10::List<at::Tensor> list;
    list.reserve(node.count);
    for (uint32_t i = 0; i < node.count; ++i) list.push_back(argument(program, child(i), element, params).toTensor());
    return list;
  }
  if (element.kind() == c10::TypeKind::OptionalType) {
    c10::List<std::optional<at::Tensor>> list;
    list.reserve(node.count);
    for (uint32_t i = 0; i < node.count; ++i) {
      c10::IValue value = argument(program, child(i), element, params);
      list.push_back(value.isNone() ? std::optional<at::Tensor>() : std::optional<at::Tensor>(value.toTensor()));
    }
    return list;
  }
  c10::impl::GenericList list(c10::NumberType::get());
  for (uint32_t i = 0; i < node.count; ++i) list.push_back(argument(program, child(i), element, params));
  return list;
}

// "self=Float[2, 3], tensors=[Float[4], Long[2, 2]]"
std::string CpuStore::operands_of(const Program& program, const Record& record, std::span<const int64_t> params) {
  constexpr uint32_t kShown = 8;  // elements of a list
  const auto& arguments = record.op->schema().arguments();
  std::string out;
  for (uint32_t i = 0; i < record.argument_count; ++i) {
    const Node& node = program.nodes[record.first_argument + i];
    std::string text;
    if (node.tag == Tag::kTensor) {
      text = describe(operand(node, params));
    } else if (node.tag == Tag::kScalarTensor) {
      text = describe(scalar_operand(node, params));
    } else if (node.tag == Tag::kList) {
      for (uint32_t k = 0; k < std::min(node.count, kShown); ++k) {
        const Node& child = program.nodes[node.first_child + k];
        if (child.tag != Tag::kTensor) continue;
        text += (text.empty() ? "" : ", ") + describe(operand(child, params));
      }
      if (text.empty()) continue;
      text = node.count > kShown ? fmt::format("[{}, ... {} in all]", text, node.count) : "[" + text + "]";
    } else {
      continue;
    }
    out += (out.empty() ? "" : ", ") + arguments[i].name() + "=" + text;
  }
  return out;
}

void CpuStore::run_record(const Program& program, const Record& record, std::span<const int64_t> params,
                          InvokeOutcome& outcome) {
  const auto& schema = record.op->schema();
  stack_.clear();
  // The stack is half consumed then: rebuilt is what the user needs to see.
  const auto fail = [&](std::string_view why) {
    throw ReplayError(Errc::kOpFailed, fmt::format("({}): {}", operands_of(program, record, params), why));
  };
  try {
    for (uint32_t i = 0; i < record.argument_count; ++i) {
      stack_.push_back(
          argument(program, program.nodes[record.first_argument + i], *schema.arguments()[i].type(), params));
    }
    if (record.guard != nullptr) record.guard(stack_);
    record.op->callBoxed(&stack_);
  } catch (const c10::Error& error) {
    fail(error.what_without_backtrace());
  } catch (const ReplayError&) {
    throw;
  } catch (const std::bad_alloc&) {
    throw;
  } catch (const std::exception& error) {
    fail(error.what());
  } catch (...) {
    fail("its kernel threw something that is not an exception");  // a library's: PyTorch's do not
  }
  for (uint32_t i = 0; i < record.output_count; ++i) {
    take_output(program, record, program.nodes[record.first_output + i], stack_[i], params, outcome);
  }
  for (uint32_t i = 0; i < record.dead_count; ++i) {
    Slot& dead = slots_[program.dead_slots[record.first_dead + i]];
    if (dead.live) invocation_bytes_ -= std::min<uint64_t>(invocation_bytes_, dead.storage.nbytes());
    dead = Slot{};
  }
}

void CpuStore::take_output(const Program& program, const Record& record, const Node& node, const c10::IValue& value,
                           std::span<const int64_t> params, InvokeOutcome& outcome) {
  const bool check = program.check_shapes;
  switch (node.tag) {
    case Tag::kFresh:
    case Tag::kReported: take_tensor(node, value.toTensor(), params, check, outcome); return;
    case Tag::kListOut: {
      const auto tensors = value.toTensorVector();
      if (tensors.size() != node.count)
        throw broken_promise(fmt::format("a list of {} tensors", tensors.size()), fmt::to_string(node.count));
      for (uint32_t i = 0; i < node.count; ++i) {
        const Node& child = program.nodes[node.first_child + i];
        if (child.tag == Tag::kFresh || child.tag == Tag::kReported)
          take_tensor(child, tensors[i], params, check, outcome);
      }
      return;
    }
    case Tag::kUndefinedOut:
      if (check && value.isTensor() && value.toTensor().defined())
        throw broken_promise(layout_text(value.toTensor()), "nothing");
      return;
    case Tag::kResized:
      if (!value.isTensor()) return;
      if (check) check_promise(node, params, value.toTensor());
      keep_form(node, params, value.toTensor());
      return;
    case Tag::kAlias: {
      const Node& argument = program.nodes[record.first_argument + node.count];
      if (!value.isTensor() || argument.tag != Tag::kTensor) return;
      if (check) check_promise(argument, params, value.toTensor());
      if (node.may_be_laid_anew) keep_form(argument, params, value.toTensor());
      return;
    }
    default: return;
  }
}

// A fresh result becomes its slot's storage. The client's strides are a promise: where the kernel chose others, re-lay.
void CpuStore::take_tensor(const Node& node, at::Tensor tensor, std::span<const int64_t> params, bool check,
                           InvokeOutcome& outcome) {
  Slot& slot = slots_[node.slot];
  const bool reported = node.tag == Tag::kReported;
  if (!tensor.defined()) {
    if (!reported) throw broken_promise("an undefined tensor", "one");
    outcome.reported.push_back(ReportedTensor{.defined = false});
    slot = Slot{fresh_storage(0), true};
    return;
  }
  if (tensor.layout() != at::kStrided) {
    throw ReplayError(Errc::kUnsupported,
                      "the result is not a strided tensor; move the operands to CPU for this operation");
  }
  if (tensor._is_zerotensor()) tensor = at::zeros(tensor.sizes(), tensor.options());  // it has no bytes of its own
  // A kernel may hand back an input, or one storage twice: results are private.
  const bool shared =
      tensor.storage().use_count() > 1 || tensor.storage_offset() != 0 || tensor.is_conj() || tensor.is_neg();
  if (reported) {
    if (shared) tensor = tensor.clone();
    outcome.reported.push_back(ReportedTensor{true, static_cast<int32_t>(tensor.scalar_type()), tensor.sizes().vec(),
                                              tensor.strides().vec(), tensor.storage_offset(),
                                              tensor.storage().nbytes()});
  } else {
    const Geometry promised(node, params);
    const auto dtype = static_cast<c10::ScalarType>(node.dtype);
    if (tensor.sizes() != at::IntArrayRef(promised.sizes) || tensor.scalar_type() != dtype ||
        (check && !keeps_promise(promised, dtype, tensor))) {
      throw broken_promise(layout_text(tensor), layout_text(dtype, promised.sizes, promised.strides));
    }
    if (shared || tensor.strides() != at::IntArrayRef(promised.strides)) {
      at::Tensor laid = at::empty_strided(promised.sizes, promised.strides, tensor.options());
      laid.copy_(tensor);
      tensor = std::move(laid);
    }
  }
  if (!admit(tensor.storage().nbytes() + invocation_bytes_).ok()) {
    throw ReplayError(Errc::kQuotaExceeded, std::string(over_quota(tensor.storage().nbytes()).text()));
  }
  slot = Slot{tensor.storage(), true, tensor};
  invocation_bytes_ += tensor.storage().nbytes();
}

}  // namespace

std::unique_ptr<Store> Store::make(StoreOptions options) { return std::make_unique<CpuStore>(options); }

}  // namespace genie::executor
