#include "tests/unit/executor/one_call.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/CPUAllocator.h>
#include <sys/mman.h>

#include <bit>
#include <cstring>
#include <memory>
#include <mutex>
#include <unordered_map>

#include "src/executor/executor.h"
#include "src/protocol/program_format.h"
#include "tests/e2e/template_builder.h"

namespace genie::test {
namespace {

using wire::Tag;
using wire::TensorBits;

constexpr size_t kPage = 4096;

struct Mapping {
  void* base = nullptr;
  size_t size = 0;
  std::byte* data = nullptr;

  explicit Mapping(size_t wanted) {
    constexpr size_t kAlignment = 16;  // what the widest element needs
    const size_t rounded = (wanted + kAlignment - 1) / kAlignment * kAlignment;
    size = (rounded + kPage - 1) / kPage * kPage + 2 * kPage;
    base = ::mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) throw std::bad_alloc();
    auto* const start = static_cast<std::byte*>(base);
    ::mprotect(start + kPage, size - 2 * kPage, PROT_READ | PROT_WRITE);
    data = start + size - kPage - rounded;
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping() { ::munmap(base, size); }
};

class GuardedAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t size) override {
    constexpr size_t kMost = size_t{1} << 28;
    if (size > kMost) throw std::bad_alloc();
    auto mapping = std::make_unique<Mapping>(size);
    void* const data = mapping->data;
    const std::lock_guard<std::mutex> lock(mutex());
    mappings().emplace(data, std::move(mapping));
    return {data, data, &release, c10::Device(c10::DeviceType::CPU)};
  }
  // Some kernels allocate without an owner.
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t size) const override { std::memcpy(to, from, size); }

 private:
  static std::mutex& mutex() {
    static auto* const instance = new std::mutex;
    return *instance;
  }
  static std::unordered_map<void*, std::unique_ptr<Mapping>>& mappings() {
    static auto* const instance = new std::unordered_map<void*, std::unique_ptr<Mapping>>;
    return *instance;
  }
  static void release(void* data) {
    const std::lock_guard<std::mutex> lock(mutex());
    mappings().erase(data);
  }
};

class Writer {
 public:
  void argument(const c10::IValue& value, const c10::Type& type) {
    if (type.kind() == c10::TypeKind::OptionalType) {
      if (value.isNone()) return word(Tag::kNone, 0);
      return argument(value, *type.expectRef<c10::OptionalType>().getElementType());
    }
    if (value.isNone()) return word(type.kind() == c10::TypeKind::TensorType ? Tag::kUndefinedTensor : Tag::kNone, 0);
    if (value.isTensor()) return tensor(value.toTensor());
    if (value.isBool()) return word(Tag::kBool, value.toBool() ? 1 : 0);
    if (value.isInt()) return number(value.toInt());
    if (value.isDouble()) {
      word(Tag::kDouble, 0);
      return params.push_back(std::bit_cast<int64_t>(value.toDouble()));
    }
    if (value.isString()) {
      word(Tag::kString, static_cast<uint32_t>(strings.size()));
      return strings.push_back(value.toStringRef());
    }
    list(value, *type.expectRef<c10::ListType>().getElementType());
  }

  // dtype, layout and memory format travel as constants.
  void constant(int64_t value) { word(Tag::kIntConst, static_cast<uint32_t>(value)); }
  void result() { word(Tag::kIgnored, 0); }

  std::vector<uint32_t> code;
  std::vector<int64_t> params;
  std::vector<std::string> strings;
  std::vector<at::Tensor> tensors;

 private:
  void word(Tag tag, uint32_t payload) { code.push_back(wire::head(tag, payload)); }
  void number(int64_t value) {
    word(Tag::kInt, 0);
    params.push_back(value);
  }
  void tensor(const at::Tensor& value) {
    if (!value.defined()) return word(Tag::kUndefinedTensor, 0);
    const auto rank = static_cast<uint32_t>(value.dim());
    word(Tag::kTensor, (static_cast<uint32_t>(value.scalar_type()) << TensorBits::kDtypeShift) |
                           (rank << TensorBits::kRankShift) | TensorBits::kContiguous | TensorBits::kZeroOffset);
    code.push_back(static_cast<uint32_t>(tensors.size()));
    params.insert(params.end(), value.sizes().begin(), value.sizes().end());
    tensors.push_back(value.contiguous());
  }
  void list(const c10::IValue& value, const c10::Type& element) {
    if (value.isIntList()) {
      const auto numbers = value.toIntVector();
      word(Tag::kIntList, static_cast<uint32_t>(numbers.size()));
      params.insert(params.end(), numbers.begin(), numbers.end());
    } else if (value.isDoubleList()) {
      const auto numbers = value.toDoubleVector();
      word(Tag::kDoubleList, static_cast<uint32_t>(numbers.size()));
      for (const double number : numbers) params.push_back(std::bit_cast<int64_t>(number));
    } else if (value.isBoolList()) {
      const auto flags = value.toBoolList();
      word(Tag::kBoolList, static_cast<uint32_t>(flags.size()));
      uint32_t bits = 0;
      for (size_t i = 0; i < flags.size(); ++i) bits |= (flags[i] ? 1U : 0U) << i;
      if (!flags.empty()) code.push_back(bits);
    } else {
      const auto items = value.toListRef();
      word(Tag::kList, static_cast<uint32_t>(items.size()));
      for (const c10::IValue& item : items) argument(item, element);
    }
  }
};

bool is_constant(const c10::Type& real) {
  if (real.kind() == c10::TypeKind::OptionalType) {
    return is_constant(*real.expectRef<c10::OptionalType>().getElementType());
  }
  return real.kind() == c10::TypeKind::ScalarTypeType || real.kind() == c10::TypeKind::LayoutType ||
         real.kind() == c10::TypeKind::MemoryFormatType;
}

}  // namespace

void guard_all_results() {
  static auto* const allocator = new GuardedAllocator;
  constexpr uint8_t kPriority = 100;
  c10::SetCPUAllocator(allocator, kPriority);
}

Status call(const std::string& name, const std::string& overload, const std::vector<c10::IValue>& arguments) {
  const auto op = c10::Dispatcher::singleton().findSchemaOrThrow(name.c_str(), overload.c_str());
  const auto& schema = op.schema();
  Writer writer;
  writer.code = {0U, static_cast<uint32_t>(schema.arguments().size() | (schema.returns().size() << 16))};
  for (size_t i = 0; i < schema.arguments().size(); ++i) {
    const auto& argument = schema.arguments()[i];
    const c10::IValue value = i < arguments.size() ? arguments[i] : argument.default_value().value_or(c10::IValue());
    if (value.isInt() && is_constant(*argument.real_type())) {
      writer.constant(value.toInt());
    } else {
      writer.argument(value, *argument.type());
    }
  }
  for (size_t i = 0; i < schema.returns().size(); ++i) writer.result();

  const std::vector<uint8_t> slots(writer.tensors.size(), static_cast<uint8_t>(wire::SlotKind::kExisting));
  const auto program = executor::compile(
      call_template(name.c_str(), overload.c_str(), slots, writer.strings, writer.code, writer.params));
  if (!program) return program.status();
  const auto store = executor::Store::make({});
  std::vector<executor::SlotBinding> bindings;
  for (const at::Tensor& tensor : writer.tensors) {
    const auto mapping = std::make_shared<Mapping>(tensor.nbytes());
    if (tensor.nbytes() != 0) std::memcpy(mapping->data, tensor.const_data_ptr(), tensor.nbytes());
    const uint64_t id = bindings.size() + 1;
    GENIE_TRY(store->adopt({id, 0}, {mapping->data, tensor.nbytes(), true, mapping}));
    bindings.push_back({id, 0, 1, 0});
  }
  return store->invoke(**program, bindings, writer.params).status;
}

}  // namespace genie::test
