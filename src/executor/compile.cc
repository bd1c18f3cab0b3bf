// Verification and decoding of templates. Everything here treats its input as hostile.
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/function_schema.h>
#include <fmt/format.h>
#include <xxhash.h>

#include <cstring>
#include <sstream>

#include "src/executor/guards.h"
#include "src/executor/libraries.h"
#include "src/executor/program.h"
#include "src/executor/schema_hash.h"
#include "template_generated.h"

namespace genie::executor {
namespace {

using wire::SlotKind;
using wire::Tag;
using wire::TensorBits;

constexpr size_t kMaxTemplateBytes = size_t{64} << 20;

Status malformed(std::string_view what) {
  return {Errc::kProtocol, fmt::format("template: {}; the client and the node disagree about the format", what)};
}

// Reads code words once, in order, and checks every one.
class Decoder {
 public:
  Decoder(const wire::Template& source, Program& program, Trust trust)
      : source_(source), program_(program), trust_(trust) {}

  Status run() {
    GENIE_TRY(resolve_ops());
    GENIE_TRY(copy_tables());
    while (position_ < source_.code()->size()) GENIE_TRY(decode_record());
    if (params_used_ != program_.default_params.size()) return malformed("unused parameters");
    if (program_.records.size() != source_.record_count()) return malformed("record count differs from its header");
    find_last_uses();
    return {};
  }

 private:
  Status resolve_ops() {
    auto& dispatcher = c10::Dispatcher::singleton();
    program_.departures_seen.store(departures(), std::memory_order_relaxed);
    for (const auto* declared : *source_.ops()) {
      if (declared == nullptr) return malformed("null operator");
      const std::string name = declared->name()->str();
      const std::string overload = declared->overload() == nullptr ? "" : declared->overload()->str();
      const std::string full = overload.empty() ? name : name + "." + overload;
      auto handle = dispatcher.findSchema({name, overload});
      if (!handle) {
        return {
            Errc::kNotFound,
            fmt::format("operator {} is not known to this node; start genie-node with --load-library and the library "
                        "that defines it",
                        full)};
      }
      if (schema_hash(handle->schema()) != declared->schema_hash()) {
        return {Errc::kVersionMismatch,
                fmt::format("operator {} has another schema on this node; build client and node with the same library",
                            full)};
      }
      if (const std::string_view why = refusal({name, overload}, trust_); !why.empty()) {
        return {Errc::kPermission,
                fmt::format("operator {} does not run on a node: {}; move its operands to the CPU for it", full, why)};
      }
      if (!name.starts_with("aten::") && !name.starts_with("genie::"))
        program_.custom_ops.push_back(
            {static_cast<uint32_t>(program_.ops.size()), {name, overload}, declared->schema_hash()});
      program_.ops.push_back(*handle);
      program_.guards.push_back(guard_of(name));
      program_.op_names.push_back(full);
    }
    return {};
  }

  Status copy_tables() {
    for (uint8_t kind : *source_.slot_kinds()) {
      if (kind > static_cast<uint8_t>(SlotKind::kTransient)) return malformed("unknown slot kind");
      const auto slot = static_cast<uint32_t>(program_.slot_kinds.size());
      program_.slot_kinds.push_back(static_cast<SlotKind>(kind));
      if (static_cast<SlotKind>(kind) != SlotKind::kTransient) program_.bound_slots.push_back(slot);
    }
    program_.slot_written.assign(program_.slot_kinds.size(), false);
    program_.slot_origin.assign(program_.slot_kinds.size(), Origin());
    for (const auto* text : *source_.strings()) {
      if (text == nullptr) return malformed("null string");
      program_.strings.push_back(text->str());
    }
    // The verifier does not promise that numbers of eight bytes are aligned.
    program_.default_params.resize(source_.params()->size());
    if (!program_.default_params.empty())
      std::memcpy(program_.default_params.data(), source_.params()->Data(), source_.params()->size() * sizeof(int64_t));
    return {};
  }

  Status next(uint32_t& word) {
    if (position_ >= source_.code()->size()) return malformed("code ends within a record");
    word = source_.code()->Get(static_cast<uint32_t>(position_++));
    return {};
  }

  Status take_params(Node& node, size_t count) {
    if (count > program_.default_params.size() - params_used_) return malformed("more parameters used than sent");
    node.param = static_cast<uint32_t>(params_used_);
    params_used_ += count;
    return {};
  }

  Status take_slot(Node& node) {
    GENIE_TRY(next(node.slot));
    return node.slot < program_.slot_kinds.size() ? Status() : malformed("slot out of range");
  }

  Status decode_geometry(Node& node, uint32_t bits) {
    node.dtype = static_cast<uint8_t>(bits >> TensorBits::kDtypeShift);
    node.rank = static_cast<uint8_t>(bits >> TensorBits::kRankShift);
    node.contiguous = (bits & TensorBits::kContiguous) != 0;
    node.zero_offset = (bits & TensorBits::kZeroOffset) != 0;
    node.conj = (bits & TensorBits::kConj) != 0;
    node.neg = (bits & TensorBits::kNeg) != 0;
    if (node.rank > wire::kMaxRank) return malformed("tensor rank too large");
    GENIE_TRY(check_dtype(node));
    return take_params(node, node.rank * (node.contiguous ? 1U : 2U) + (node.zero_offset ? 0U : 1U));
  }

  Status decode_tensor(Node& node, uint32_t bits) {
    GENIE_TRY(decode_geometry(node, bits));
    return take_slot(node);
  }

  Status decode_resized(Node& node) {
    uint32_t bits = 0;
    GENIE_TRY(next(bits));
    return decode_geometry(node, (bits | TensorBits::kZeroOffset) & ~(TensorBits::kConj | TensorBits::kNeg));
  }

  static Status check_dtype(const Node& node) {
    const auto type = static_cast<c10::ScalarType>(node.dtype);
    using enum c10::ScalarType;
    switch (type) {
      case Byte:
      case Char:
      case Short:
      case Int:
      case Long:
      case Half:
      case Float:
      case Double:
      case ComplexHalf:
      case ComplexFloat:
      case ComplexDouble:
      case Bool:
      case BFloat16:
      case Float8_e5m2:
      case Float8_e4m3fn:
      case Float8_e5m2fnuz:
      case Float8_e4m3fnuz:
      case UInt16:
      case UInt32:
      case UInt64: return {};
      default: return malformed(fmt::format("dtype {} is not supported", node.dtype));
    }
  }

  // Decodes one argument or output into `node`; children go to program_.nodes.
  Status decode_node(Node& node, uint32_t depth) {
    if (depth > wire::kMaxNesting) return malformed("lists nested too deeply");
    uint32_t word = 0;
    GENIE_TRY(next(word));
    node.tag = wire::tag_of(word);
    const uint32_t payload = wire::payload_of(word);
    node.count = payload;
    switch (node.tag) {
      case Tag::kNone:
      case Tag::kUndefinedTensor:
      case Tag::kBool:
      case Tag::kIntConst:
      case Tag::kDevice:
      case Tag::kGenerator:
      case Tag::kUndefinedOut:
      case Tag::kIgnored:
      case Tag::kAlias: return {};
      case Tag::kResized: return decode_resized(node);
      case Tag::kTensor: return decode_tensor(node, payload);
      case Tag::kFresh: return decode_tensor(node, payload | TensorBits::kZeroOffset);
      case Tag::kReported: return take_slot(node);
      case Tag::kScalarTensor:
        node.dtype = static_cast<uint8_t>(payload);
        node.wrapped = (payload & wire::kWrapped) != 0;
        GENIE_TRY(check_dtype(node));
        return take_params(node, c10::isComplexType(static_cast<c10::ScalarType>(node.dtype)) ? 2 : 1);
      case Tag::kInt:
      case Tag::kDouble: return take_params(node, 1);
      case Tag::kComplex: return take_params(node, 2);
      case Tag::kString: return payload < program_.strings.size() ? Status() : malformed("string out of range");
      case Tag::kIntList:
      case Tag::kDoubleList: return take_params(node, payload);
      case Tag::kBoolList: return decode_bools(node);
      case Tag::kList:
      case Tag::kListOut: return decode_children(node, depth);
    }
    return malformed(fmt::format("unknown tag {}", static_cast<int>(node.tag)));
  }

  Status decode_bools(Node& node) {
    if (node.count > wire::kMaxListLength) return malformed("list too long");
    node.first_child = static_cast<uint32_t>(program_.bool_words.size());
    for (uint32_t read = 0; read < node.count; read += 32) {
      uint32_t word = 0;
      GENIE_TRY(next(word));
      program_.bool_words.push_back(word);
    }
    return {};
  }

  Status decode_children(Node& node, uint32_t depth) {
    // Every element takes at least one word, so a length beyond the code's end is a lie.
    if (node.count > source_.code()->size() - position_) return malformed("list longer than the code");
    std::vector<Node> children(node.count);
    for (Node& child : children) GENIE_TRY(decode_node(child, depth + 1));
    node.first_child = static_cast<uint32_t>(program_.nodes.size());
    program_.nodes.insert(program_.nodes.end(), children.begin(), children.end());
    return {};
  }

  Status decode_run(uint32_t count, uint32_t& first) {
    if (count > source_.code()->size() - position_) return malformed("record longer than the code");
    std::vector<Node> run(count);
    for (Node& node : run) GENIE_TRY(decode_node(node, 0));
    first = static_cast<uint32_t>(program_.nodes.size());
    program_.nodes.insert(program_.nodes.end(), run.begin(), run.end());
    return {};
  }

  Status decode_record() {
    uint32_t op_word = 0;
    uint32_t counts = 0;
    GENIE_TRY(next(op_word));
    GENIE_TRY(next(counts));
    Record record;
    record.op_index = op_word & 0xFFFFFFU;
    if (record.op_index >= program_.ops.size()) return malformed("operator out of range");
    record.op = &program_.ops[record.op_index];
    record.guard = program_.guards[record.op_index];
    record.argument_count = counts & 0xFFFFU;
    record.output_count = counts >> 16;
    const auto& schema = record.op->schema();
    if (record.argument_count != schema.arguments().size() || record.output_count != schema.returns().size()) {
      return malformed(
          fmt::format("{}: argument or result count differs from its schema", program_.op_names[record.op_index]));
    }
    GENIE_TRY(decode_run(record.argument_count, record.first_argument));
    GENIE_TRY(decode_run(record.output_count, record.first_output));
    GENIE_TRY(check_record(record, schema));
    program_.records.push_back(record);
    return {};
  }

  Status check_record(const Record& record, const c10::FunctionSchema& schema) {
    const std::string& name = program_.op_names[record.op_index];
    for (uint32_t i = 0; i < record.argument_count; ++i) {
      const Node& node = program_.nodes[record.first_argument + i];
      const auto& argument = schema.arguments()[i];
      if (!accepts(*argument.type(), node) || !is_known_constant(*argument.real_type(), node)) {
        return malformed(fmt::format("{}: argument '{}' has another type than its schema says", name, argument.name()));
      }
      if (writes_argument(program_, record, i)) mark_written(node);
    }
    for (uint32_t i = 0; i < record.output_count; ++i) {
      Node& node = program_.nodes[record.first_output + i];
      const auto* alias = schema.returns()[i].alias_info();
      if (alias != nullptr && !alias->isWrite()) {
        // Views are geometry and stay on the client; some view kernels do not check their bounds.
        return {Errc::kPermission, fmt::format("operator {} makes a view: it has no place in a template", name)};
      }
      GENIE_TRY(check_output(record, node, *schema.returns()[i].type(), name));
      if (node.tag == Tag::kAlias) node.may_be_laid_anew = schema.arguments()[node.count].is_out();
      if (node.tag == Tag::kFresh) {
        program_.slot_origin[node.slot] = {static_cast<uint32_t>(program_.records.size()), record.first_output + i};
      }
    }
    return {};
  }

  // dtype, layout and memory format travel as integers, and kernels index tables with them.
  static bool is_known_constant(const c10::Type& real, const Node& node) {
    if (real.kind() == c10::TypeKind::OptionalType) {
      return is_known_constant(*real.expectRef<c10::OptionalType>().getElementType(), node);
    }
    if (node.tag == Tag::kNone) return true;
    const bool constant = node.tag == Tag::kIntConst;
    switch (real.kind()) {
      case c10::TypeKind::ScalarTypeType: {
        Node dtype;
        dtype.dtype = static_cast<uint8_t>(node.count);
        return constant && node.count <= UINT8_MAX && check_dtype(dtype).ok();
      }
      case c10::TypeKind::LayoutType: return constant && node.count == static_cast<uint32_t>(c10::Layout::Strided);
      case c10::TypeKind::MemoryFormatType:
        return constant && node.count <= static_cast<uint32_t>(c10::MemoryFormat::ChannelsLast3d);
      default: return true;
    }
  }

  void mark_written(const Node& node) {
    if (node.tag == Tag::kTensor) program_.slot_written[node.slot] = true;
    if (node.tag == Tag::kList) {
      for (uint32_t i = 0; i < node.count; ++i) mark_written(program_.nodes[node.first_child + i]);
    }
  }

  Status check_output(const Record& record, const Node& node, const c10::Type& type, const std::string& name) {
    switch (node.tag) {
      case Tag::kFresh:
      case Tag::kReported:
        if (type.kind() != c10::TypeKind::TensorType) return malformed(fmt::format("{}: result is not a tensor", name));
        if (program_.slot_kinds[node.slot] == SlotKind::kExisting || program_.slot_written[node.slot]) {
          return malformed(fmt::format("{}: result goes to a slot that exists", name));
        }
        program_.slot_written[node.slot] = true;
        return {};
      case Tag::kAlias:
      case Tag::kResized:
        return node.count < record.argument_count ? Status() : malformed(fmt::format("{}: alias out of range", name));
      case Tag::kUndefinedOut:
        return type.kind() == c10::TypeKind::TensorType ? Status()
                                                        : malformed(fmt::format("{}: result is not a tensor", name));
      case Tag::kListOut: {
        const auto* list = type.castRaw<c10::ListType>();
        if (list == nullptr) return malformed(fmt::format("{}: result is not a list", name));
        for (uint32_t i = 0; i < node.count; ++i) {
          const Node& child = program_.nodes[node.first_child + i];
          if (child.tag == Tag::kListOut) return malformed(fmt::format("{}: nested result list", name));
          GENIE_TRY(check_output(record, child, *list->getElementType(), name));
        }
        return {};
      }
      case Tag::kIgnored: return {};
      default: return malformed(fmt::format("{}: an argument tag stands for a result", name));
    }
  }

  bool accepts(const c10::Type& type, const Node& node) const {
    switch (type.kind()) {
      case c10::TypeKind::OptionalType:
        return node.tag == Tag::kNone || accepts(*type.expectRef<c10::OptionalType>().getElementType(), node);
      case c10::TypeKind::TensorType:
        return node.tag == Tag::kTensor || node.tag == Tag::kUndefinedTensor || node.tag == Tag::kScalarTensor;
      case c10::TypeKind::IntType: return node.tag == Tag::kInt || node.tag == Tag::kIntConst;
      case c10::TypeKind::FloatType: return node.tag == Tag::kDouble;
      case c10::TypeKind::BoolType: return node.tag == Tag::kBool;
      case c10::TypeKind::NumberType:
        return node.tag == Tag::kInt || node.tag == Tag::kDouble || node.tag == Tag::kComplex || node.tag == Tag::kBool;
      case c10::TypeKind::StringType: return node.tag == Tag::kString;
      case c10::TypeKind::DeviceObjType: return node.tag == Tag::kDevice;
      case c10::TypeKind::GeneratorType: return node.tag == Tag::kGenerator;
      case c10::TypeKind::ListType: return accepts_list(*type.expectRef<c10::ListType>().getElementType(), node);
      default: return false;
    }
  }

  bool accepts_list(const c10::Type& element, const Node& node) const {
    if (element.kind() == c10::TypeKind::IntType && node.tag == Tag::kIntList) return true;
    if (element.kind() == c10::TypeKind::FloatType && node.tag == Tag::kDoubleList) return true;
    if (element.kind() == c10::TypeKind::BoolType && node.tag == Tag::kBoolList) return true;
    const bool of_nodes = element.kind() == c10::TypeKind::TensorType ||
                          element.kind() == c10::TypeKind::OptionalType || element.kind() == c10::TypeKind::NumberType;
    if (!of_nodes || node.tag != Tag::kList) return false;
    for (uint32_t i = 0; i < node.count; ++i) {
      if (!accepts(element, program_.nodes[node.first_child + i])) return false;
    }
    return true;
  }

  void visit_slots(const Node& node, std::vector<uint32_t>& out) const {
    if (node.tag == Tag::kTensor || node.tag == Tag::kFresh || node.tag == Tag::kReported) out.push_back(node.slot);
    if (node.tag == Tag::kList || node.tag == Tag::kListOut) {
      for (uint32_t i = 0; i < node.count; ++i) visit_slots(program_.nodes[node.first_child + i], out);
    }
  }

  // Transient slots are dropped right after the last record that touches them: activations' memory is reused.
  void find_last_uses() {
    std::vector<bool> seen(program_.slot_kinds.size(), false);
    std::vector<std::vector<uint32_t>> dying(program_.records.size());
    std::vector<uint32_t> touched;
    for (size_t i = program_.records.size(); i-- > 0;) {
      const Record& record = program_.records[i];
      touched.clear();
      for (uint32_t k = 0; k < record.argument_count; ++k)
        visit_slots(program_.nodes[record.first_argument + k], touched);
      for (uint32_t k = 0; k < record.output_count; ++k) visit_slots(program_.nodes[record.first_output + k], touched);
      for (uint32_t slot : touched) {
        if (program_.slot_kinds[slot] != SlotKind::kTransient || seen[slot]) continue;
        seen[slot] = true;
        dying[i].push_back(slot);
      }
    }
    for (size_t i = 0; i < dying.size(); ++i) {
      program_.records[i].first_dead = static_cast<uint32_t>(program_.dead_slots.size());
      program_.records[i].dead_count = static_cast<uint32_t>(dying[i].size());
      program_.dead_slots.insert(program_.dead_slots.end(), dying[i].begin(), dying[i].end());
    }
  }

  const wire::Template& source_;
  Program& program_;
  const Trust trust_;
  size_t position_ = 0;
  size_t params_used_ = 0;
};

}  // namespace

bool writes_argument(const Program& program, const Record& record, uint32_t argument) {
  const auto* alias = record.op->schema().arguments()[argument].alias_info();
  if (alias != nullptr && alias->isWrite()) return true;
  // In training, native_batch_norm moves the running statistics although its schema does not say so.
  return (argument == 3 || argument == 4) && program.op_names[record.op_index] == "aten::native_batch_norm" &&
         program.nodes[record.first_argument + 5].count != 0;
}

Status check_still_there(const Program& program) {
  const uint32_t now = departures();
  if (program.custom_ops.empty() || program.departures_seen.load(std::memory_order_relaxed) == now) return {};
  for (const auto& [op, name, hash] : program.custom_ops) {
    const auto handle = c10::Dispatcher::singleton().findSchema(name);
    // The handle of one that came back may be another: clients register their templates again for it.
    if (handle.has_value() && *handle == program.ops[op] && schema_hash(handle->schema()) == hash) continue;
    return {Errc::kNotFound,
            fmt::format("operator {} has gone from this node, or is another one now: its library was unloaded "
                        "while work with it was on the way",
                        program.op_names[op])};
  }
  program.departures_seen.store(now, std::memory_order_relaxed);
  return {};
}

uint64_t schema_hash(const c10::FunctionSchema& schema) {
  std::ostringstream text;
  text << schema;
  const std::string spelled = text.str();
  return XXH3_64bits(spelled.data(), spelled.size());
}

Result<std::shared_ptr<const Program>> compile(std::span<const std::byte> serialized, Trust trust) {
  if (serialized.size() > kMaxTemplateBytes) return Status(Errc::kProtocol, "template: larger than 64 MiB");
  const auto* bytes = reinterpret_cast<const uint8_t*>(serialized.data());
  flatbuffers::Verifier verifier(bytes, serialized.size());
  if (!verifier.VerifyBuffer<wire::Template>("GNTP")) return malformed("not a valid FlatBuffer");
  const auto* source = flatbuffers::GetRoot<wire::Template>(bytes);
  if (source->format() != wire::kProgramFormat) {
    return Status(Errc::kVersionMismatch,
                  fmt::format("template: format {}, this node speaks {}; use the same version of Genie on both sides",
                              source->format(), wire::kProgramFormat));
  }
  auto program = std::make_shared<Program>();
  program->ops.reserve(source->ops()->size());  // records keep pointers into it
  GENIE_TRY(Decoder(*source, *program, trust).run());
  program->check_shapes = source->check_shapes();
  program->fingerprint = XXH3_64bits(bytes, serialized.size());
  return std::shared_ptr<const Program>(std::move(program));
}

uint64_t fingerprint(const Program& program) { return program.fingerprint; }
size_t param_count(const Program& program) { return program.default_params.size(); }
size_t bound_slot_count(const Program& program) { return program.bound_slots.size(); }
std::span<const int64_t> default_params(const Program& program) { return program.default_params; }

}  // namespace genie::executor
