#include "bench/remote/place.h"

#include <ATen/Parallel.h>

#include <vector>

#include "bench/harness/threads.h"

namespace genie::bench {

const Session& RemotePlace::session() {
  if (session_) return *session_;
  static const std::vector<int> cores = usable_cores();  // before the first place pinned this thread
  at::set_num_threads(kThreads);
  if (transport_ != "embedded") {
    NodeSettings settings{.threads = kThreads, .transport = transport_};
    if (cores_ == Cores::kOwnCores && cores.size() >= 2) {
      pin_this_thread(cores[0]);  // and the session's threads, which it starts
      settings.core = cores[1];
    }
    node_.emplace(settings);
  }
  session_.emplace(Session::connect(node_ ? node_->uri() : "embedded:"));
  return *session_;
}

}  // namespace genie::bench
