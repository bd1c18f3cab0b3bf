#include "tests/e2e/template_builder.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/ScalarType.h>

#include "src/executor/schema_hash.h"
#include "src/protocol/program_format.h"
#include "template_generated.h"

namespace genie::test {
namespace {

std::vector<std::byte> serialize(const char* name, const char* overload, uint64_t hash,
                                 const std::vector<uint8_t>& slots, const std::vector<uint32_t>& code,
                                 const std::vector<int64_t>& params, uint32_t records,
                                 const std::vector<std::string>& texts = {}) {
  flatbuffers::FlatBufferBuilder builder;
  const auto op = wire::CreateOpDecl(builder, builder.CreateString(name), builder.CreateString(overload), hash);
  const auto ops = builder.CreateVector(std::vector{op});
  const auto slot_kinds = builder.CreateVector(slots);
  const auto strings = builder.CreateVectorOfStrings(texts);
  const auto words = builder.CreateVector(code);
  const auto numbers = builder.CreateVector(params);
  wire::FinishTemplateBuffer(
      builder, wire::CreateTemplate(builder, wire::kProgramFormat, ops, slot_kinds, strings, words, numbers, records));
  const auto* bytes = reinterpret_cast<const std::byte*>(builder.GetBufferPointer());
  return {bytes, bytes + builder.GetSize()};
}

}  // namespace

std::vector<std::byte> add_template(uint32_t records, int64_t elements) {
  using wire::TensorBits;
  const auto schema = c10::Dispatcher::singleton().findSchemaOrThrow("aten::add_", "Tensor");
  const uint32_t vector_bits = (static_cast<uint32_t>(c10::ScalarType::Float) << TensorBits::kDtypeShift) |
                               (1U << TensorBits::kRankShift) | TensorBits::kContiguous | TensorBits::kZeroOffset;
  std::vector<uint32_t> code;
  std::vector<int64_t> params;
  for (uint32_t i = 0; i < records; ++i) {
    code.insert(code.end(), {0U, 3U | (1U << 16), wire::head(wire::Tag::kTensor, vector_bits), 0U,
                             wire::head(wire::Tag::kTensor, vector_bits), 1U, wire::head(wire::Tag::kInt, 0),
                             wire::head(wire::Tag::kAlias, 0)});
    params.insert(params.end(), {elements, elements, 1});
  }
  const std::vector<uint8_t> slots(2, static_cast<uint8_t>(wire::SlotKind::kExisting));
  return serialize("aten::add_", "Tensor", executor::schema_hash(schema.schema()), slots, code, params, records);
}

std::vector<std::byte> call_template(const char* name, const char* overload, const std::vector<uint8_t>& slots,
                                     const std::vector<std::string>& strings, const std::vector<uint32_t>& code,
                                     const std::vector<int64_t>& params) {
  const auto schema = c10::Dispatcher::singleton().findSchemaOrThrow(name, overload);
  return serialize(name, overload, executor::schema_hash(schema.schema()), slots, code, params, 1, strings);
}

std::vector<std::byte> unknown_operator_template() {
  return serialize("nobody::does_this", "", 1, {}, {0U, 0U}, {}, 1);
}

}  // namespace genie::test
