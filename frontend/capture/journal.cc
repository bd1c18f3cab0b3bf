#include "frontend/capture/journal.h"

#include <algorithm>

#include "frontend/srg/graph_view.h"

namespace genie::frontend {

void Journal::attach(Stream& stream) {
  const std::lock_guard<SpinLock> guard(stream.lock);
  stream.journal = shared_from_this();
  stream.journaled = static_cast<uint32_t>(stream.open.records.size());
  const std::lock_guard<std::mutex> mine(mutex_);
  streams_.push_back(&stream);
}

void Journal::detach_all() {
  for (Stream* stream : streams()) {
    const std::lock_guard<SpinLock> guard(stream->lock);
    if (stream->journal.get() == this) stream->journal.reset();
  }
}

std::vector<Stream*> Journal::streams() const {
  const std::lock_guard<std::mutex> guard(mutex_);
  return streams_;
}

uint32_t Journal::number_of(const StorageState& state) {
  return numbers_.try_emplace({state.session, state.id}, static_cast<uint32_t>(numbers_.size())).first->second;
}

void Journal::collect(Stream& stream) {
  const Segment& from = stream.open;
  const std::lock_guard<std::mutex> guard(mutex_);
  for (size_t i = stream.journaled; i < from.records.size(); ++i) {
    const RecordEntry& entry = from.records[i];
    if (entry.op->bookkeeping || ++count_ > kMaxRecords) continue;
    kept_.records.push_back({entry.op, static_cast<uint32_t>(kept_.code.size()),
                             static_cast<uint32_t>(kept_.params.size()), static_cast<uint32_t>(kept_.touches.size())});
    kept_.code.append(from.code.data() + entry.code, from.code_end(i) - entry.code);
    kept_.params.append(from.params.data() + entry.params, from.params_end(i) - entry.params);
    for (uint32_t touch = entry.touches; touch < from.touches_end(i); ++touch) {
      const uint32_t word = from.touches[touch];
      kept_.touches.push_back(touch_word(number_of(*from.slots[touch_slot(word)].state), touch_mode(word)));
    }
  }
  stream.journaled = static_cast<uint32_t>(from.records.size());
}

size_t Journal::settle() {
  for (Stream* stream : streams()) {
    const std::lock_guard<SpinLock> guard(stream->lock);
    if (stream->journal.get() == this) collect(*stream);
  }
  const std::lock_guard<std::mutex> guard(mutex_);
  return count_;
}

Graph Journal::graph(size_t first, size_t last) const {
  const std::lock_guard<std::mutex> guard(mutex_);
  const size_t kept = kept_.records.size();
  Graph out = graph_of(kept_, std::min(first, kept), std::min(last, kept), numbers_.size());
  out.omitted = (last - first) - out.nodes.size();
  return out;
}

}  // namespace genie::frontend
