// Stats: counters of capture, execution and transfer. Snapshots; never reset.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "genie/status.h"

namespace genie {

// Where the client's time for an operator went; summed over its calls.
struct OpTime {
  uint64_t calls = 0;
  uint64_t dispatch_ns =
      0;  // from the entry of Genie's kernel until the arguments are recorded; what PyTorch does before is its own
  uint64_t shape_ns = 0;   // what the results look like; with the flush and the wait for the node where only it knows
  uint64_t record_ns = 0;  // the results made, the call appended
  uint64_t plan_ns =
      0;  // its share of the flushes that sent it: pruned, matched with a template or registered as one, submitted
  uint64_t total_ns() const noexcept { return dispatch_ns + shape_ns + record_ns + plan_ns; }
};

struct GENIE_API Stats {
  // Operators.
  uint64_t captured_ops = 0;
  uint64_t executed_ops = 0;  // reported by nodes
  uint64_t pruned_ops = 0;    // dead before they were sent
  uint64_t client_fallbacks = 0;
  std::map<std::string, uint64_t> captured_by_op;
  std::map<std::string, uint64_t> executed_by_op;  // sent for execution
  std::map<std::string, OpTime> time_by_op;        // of what was captured while is_timing()

  // Flushes, and why: "value", "shape", "limit", "conflict", "synchronize", "eager".
  uint64_t flushes = 0;
  std::map<std::string, uint64_t> flush_reasons;

  // Templates.
  uint64_t templates_registered = 0;
  uint64_t template_hits = 0;
  uint64_t template_misses = 0;
  uint64_t templates_forgotten = 0;  // by the node, at our wish, to make room for others

  // Shape inference: where answers came from.
  uint64_t shapes_cached = 0;
  uint64_t shapes_own = 0;
  uint64_t shapes_meta = 0;
  uint64_t shapes_from_node = 0;

  // Bytes.
  uint64_t submissions = 0;
  uint64_t message_bytes = 0;
  uint64_t uploads = 0;
  uint64_t upload_bytes = 0;         // that were sent and became storages
  uint64_t upload_known_bytes = 0;   // that were not sent, because the node had them
  uint64_t snapshot_bytes = 0;       // written once into network-ready memory: the one pass
  uint64_t upload_copied_bytes = 0;  // copied by a CPU after the snapshot
  uint64_t fetches = 0;
  uint64_t fetch_bytes = 0;
  uint64_t fetch_copied_bytes = 0;  // copied by a CPU on the way back, or later when one side wrote what both had
  uint64_t user_copied_bytes = 0;   // copied again into a tensor that the program brought

  std::vector<std::string> last_failures;

  std::string to_string() const;
};

// Fills Stats::time_by_op from now on (also GENIE_TIME_OPS=1): four looks at the clock per operator, some 100 ns in all, a part of
// which every phase holds. Any thread.
GENIE_API void set_timing(bool timing);
GENIE_API bool is_timing();

}  // namespace genie
