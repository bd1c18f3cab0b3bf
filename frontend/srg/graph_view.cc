#include "frontend/srg/graph_view.h"

#include <c10/core/ScalarType.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <set>

#include "src/protocol/program_format.h"

namespace genie::frontend {
namespace {

using wire::Tag;
using wire::TensorBits;

// Who touched a storage last: the versions that edges follow.
struct Version {
  int64_t writer = -1;
  std::vector<uint32_t> readers;
};

class Reader {
 public:
  Reader(const Segment& segment, size_t storage_count)
      : segment_(segment), versions_(storage_count), numbers_(storage_count, -1) {}

  Graph run(size_t first, size_t last) {
    for (size_t i = first; i < last; ++i) {
      if (!segment_.records[i].op->bookkeeping) read_record(static_cast<uint32_t>(i));
    }
    return std::move(graph_);
  }

 private:
  void read_record(uint32_t record) {
    const RecordEntry& entry = segment_.records[record];
    GraphNode node;
    node.id = static_cast<uint32_t>(graph_.nodes.size());
    node.op = entry.op->name;
    std::set<uint32_t> before;
    size_t params = entry.params;
    uint32_t touch = entry.touches;
    for (uint32_t at = entry.code + 2; at < segment_.code_end(record); ++at) {
      const uint32_t word = segment_.code[at];
      const uint32_t payload = wire::payload_of(word);
      switch (wire::tag_of(word)) {
        case Tag::kTensor:
          node.inputs.push_back(value(payload, params, touch));
          note_touch(node.id, segment_.touches[touch++], before);
          params += count_params(payload);
          break;
        case Tag::kFresh:
          node.outputs.push_back(value(payload, params, touch));
          note_touch(node.id, segment_.touches[touch++], before);
          params += count_params(payload);
          break;
        case Tag::kReported: note_touch(node.id, segment_.touches[touch++], before); break;
        case Tag::kScalarTensor:
          params += c10::isComplexType(static_cast<c10::ScalarType>(payload & 0xFFU)) ? 2 : 1;
          break;
        case Tag::kInt:
        case Tag::kDouble: params += 1; break;
        case Tag::kComplex: params += 2; break;
        case Tag::kIntList:
        case Tag::kDoubleList: params += payload; break;
        case Tag::kResized: params += count_params(segment_.code[++at]); break;
        case Tag::kBoolList: at += (payload + 31) / 32; break;
        default: break;
      }
    }
    node.depends_on.assign(before.begin(), before.end());
    graph_.nodes.push_back(std::move(node));
  }

  static size_t count_params(uint32_t bits) {
    const size_t rank = (bits >> TensorBits::kRankShift) & 0xFFU;
    return rank * ((bits & TensorBits::kContiguous) != 0 ? 1 : 2) + ((bits & TensorBits::kZeroOffset) != 0 ? 0 : 1);
  }

  GraphValue value(uint32_t bits, size_t params, uint32_t touch) {
    GraphValue out;
    out.dtype = c10::toString(static_cast<c10::ScalarType>(bits & 0xFFU));
    const size_t rank = (bits >> TensorBits::kRankShift) & 0xFFU;
    const auto first = segment_.params.begin() + static_cast<std::ptrdiff_t>(params);
    out.sizes.assign(first, first + static_cast<std::ptrdiff_t>(rank));
    int64_t& number = numbers_[touch_slot(segment_.touches[touch])];
    if (number < 0) number = storages_++;
    out.storage = static_cast<uint32_t>(number);
    return out;
  }

  void note_touch(uint32_t node, uint32_t touched, std::set<uint32_t>& before) {
    Version& version = versions_[touch_slot(touched)];
    if (version.writer >= 0 && version.writer != node) before.insert(static_cast<uint32_t>(version.writer));
    if (touch_mode(touched) == Touch::kRead) {
      version.readers.push_back(node);
      return;
    }
    for (const uint32_t reader : version.readers) {
      if (reader != node) before.insert(reader);
    }
    version.readers.clear();
    version.writer = node;
  }

  const Segment& segment_;
  std::vector<Version> versions_;
  std::vector<int64_t> numbers_;  // of storages in the graph, in the order in which they appear
  int64_t storages_ = 0;
  Graph graph_;
};

}  // namespace

Graph graph_of(const Segment& segment, size_t first, size_t last, size_t storage_count) {
  return Reader(segment, storage_count).run(first, last);
}

}  // namespace genie::frontend

namespace genie {
namespace {

std::string spell(const std::vector<GraphValue>& values) {
  std::string out;
  for (const GraphValue& value : values) {
    out +=
        fmt::format("{}%{}:{}[{}]", out.empty() ? "" : ", ", value.storage, value.dtype, fmt::join(value.sizes, ", "));
  }
  return out;
}

}  // namespace

std::string Graph::to_string() const {
  std::string out;
  for (const GraphNode& node : nodes) {
    out += fmt::format("#{} {}({}) -> ({}) after [{}]\n", node.id, node.op, spell(node.inputs), spell(node.outputs),
                       fmt::join(node.depends_on, ", "));
  }
  return out;
}

std::string Graph::to_dot() const {
  std::string out = "digraph genie {\n  node [shape=box];\n";
  for (const GraphNode& node : nodes) {
    out += fmt::format("  n{} [label=\"{}\\n{}\"];\n", node.id, node.op, spell(node.outputs));
    for (const uint32_t before : node.depends_on) out += fmt::format("  n{} -> n{};\n", before, node.id);
  }
  return out + "}\n";
}

}  // namespace genie
