// What UCX says goes to Genie's log.
//
// Purpose: a peer that dies is an everyday event here, of which UCX tells in several lines of errors: they become lines of
//   level info. What the user asks for with $UCX_LOG_LEVEL (info and finer) UCX prints itself.
// Thread-safety: any thread. Ownership: for the life of the process.
#pragma once

namespace genie::datapath::ucx {

void take_over_ucx_log();

// While it lives, this thread's UCX says nothing above debug.
class QuietUcx {
 public:
  QuietUcx() noexcept;
  ~QuietUcx();
  QuietUcx(const QuietUcx&) = delete;
  QuietUcx& operator=(const QuietUcx&) = delete;
};

}  // namespace genie::datapath::ucx
