// RemoteSession: what a node knows about a session whose client is another process.
//
// Purpose: turns verified messages into Requests and Responses into messages; owns the windows that it shares with the
//   client, and takes what the client hands over.
// Thread-safety: everything belongs to the server's poller thread, except what says otherwise.
// Ownership: shared by the server's table, the poller and the work in flight. Memory that a worker may still touch is
//   given back only when the worker has let go of it (use counts of the shared pointers).
// Trust: every field of a message may be hostile. A violation ends the session, nothing else.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "datapath/transport.h"
#include "src/node/node.h"
#include "src/node/result_memory.h"
#include "src/protocol/fragments.h"
#include "src/protocol/invocation_coder.h"
#include "src/protocol/session_messages.h"

namespace genie::node {

// Windows shared with clients; for status.
struct SharedMemoryCounters {
  std::atomic<uint64_t> regions{0};
  std::atomic<uint64_t> bytes{0};
};

// Whether [offset, offset + size) lies in [0, within), whatever a client says.
constexpr bool fits(uint64_t offset, uint64_t size, uint64_t within) noexcept {
  return offset <= within && size <= within - offset;
}

struct RemoteSessionOptions {
  std::string id;     // secret, names the session on the control plane
  std::string token;  // presented by the data connection
  uint64_t progress_interval_ms = 5'000;
  uint64_t attach_deadline_ns = 0;
};

class RemoteSession {
 public:
  RemoteSession(RemoteSessionOptions options, std::shared_ptr<SessionState> state, Device& device,
                SharedMemoryCounters& counters);
  RemoteSession(const RemoteSession&) = delete;
  RemoteSession& operator=(const RemoteSession&) = delete;

  // Any thread.
  const RemoteSessionOptions& options() const noexcept { return options_; }
  const std::shared_ptr<SessionState>& state() const noexcept { return state_; }

  // `waiter` brings word of what its questions wait for to answer().
  void attach(datapath::EndpointId endpoint, std::weak_ptr<ContentWaiter> waiter) noexcept {
    endpoint_ = endpoint;
    waiter_ = std::move(waiter);
  }
  void detach() noexcept { endpoint_ = {}; }
  datapath::EndpointId endpoint() const noexcept { return endpoint_; }

  // One piece of a message. An error is a violation: the caller ends the session.
  Status handle(datapath::Transport& transport, uint32_t tag, std::span<const std::byte> piece,
                const std::shared_ptr<ResponseSink>& sink);
  void respond(datapath::Transport& transport, Response response);
  // Of a question that was asked, now or as soon as it can be.
  void answer(uint64_t number);
  // Gives memory for results back that has long been unused.
  void drop_idle_results(uint64_t now_ns);
  // Its client waits for this: the way to the node works, and it is the right node.
  void say_welcome() { send(wire::NodeMessage(wire::Progress{0})); }
  void say_farewell(const Status& why);
  // A sign of life when work is in flight, the device moved on and the client may start to wonder.
  void tick(uint64_t now_ns);

  // Sends, posts and gives back what it can without blocking. True when it moved something.
  bool pump(datapath::Transport& transport);
  // Something is left for pump().
  bool wants_pump() const noexcept {
    return !outbox_.empty() || !backlog_.empty() || !retired_.empty() || !retired_regions_.empty();
  }
  bool flushed() const noexcept { return outbox_.empty() && backlog_.empty() && state_->in_flight() == 0; }

  // Nothing more is accepted or sent; pump() goes on giving memory back.
  void begin_end();
  bool ending() const noexcept { return ending_; }
  // The worker is done with it and all memory is given back.
  bool gone() const noexcept;

 private:
  // A window that the client made: for uploads that are copied out, or, where memory cannot be mapped, for results that are
  // written into it.
  struct Window {
    datapath::RemoteRegion import;
    std::byte* data = nullptr;  // null: not mapped
    uint64_t size = 0;
  };
  // Where a client wants a result written.
  struct Target {
    std::shared_ptr<Window> window;  // null: the result goes another way
    uint64_t offset = 0;
  };
  struct ResultWrite {
    datapath::Buffer bytes;
    Target target;
  };
  // Memory that the node made, for results.
  struct ResultRegion {
    datapath::MemoryKey key;
    uint64_t size = 0;
  };

  Status on_submission(datapath::Transport& transport, const wire::SubmissionMessage& message,
                       const std::shared_ptr<ResponseSink>& sink);
  Status read_invocation(const wire::SubmissionMessage& message, Request& request);
  Status accept_windows(datapath::Transport& transport, const wire::SubmissionMessage& message);
  Status order_uploads(datapath::Transport& transport, const wire::SubmissionMessage& message, Request& request);
  Result<UploadOrder> order_from_window(const wire::UploadEntry& entry) const;

  // -- remote_content.cc
  Status on_question(const wire::Question& question);
  std::shared_ptr<UploadRegion> stake_in(const std::shared_ptr<const RegionMemory>& memory);
  void remember_stake(const std::shared_ptr<UploadRegion>& stake);
  Result<UploadOrder> order_known(const wire::UploadEntry& entry);
  void end_content();

  // -- remote_results.cc
  Status order_fetches(datapath::Transport& transport, const wire::SubmissionMessage& message, Request& request);
  void order_fetch(datapath::Transport& transport, const wire::FetchEntry& entry, Request& request);
  Result<Target> target_of(const wire::FetchEntry& entry) const;
  static ResultWrite write_of(FetchResult& result, Target target);
  Result<std::shared_ptr<ResultSpan>> reserve_result(datapath::Transport& transport, size_t size);
  Status add_result_region(datapath::Transport& transport, size_t size);
  void enter_result(datapath::Transport& transport, FetchResult& result, wire::CompletionMessage& message);
  Status release_results(std::span<const uint64_t> results);
  bool give_regions_back(datapath::Transport& transport);
  void end_results();

  void post(std::unique_ptr<Work> work);
  bool post_backlog();
  bool send_outbox(datapath::Transport& transport);
  bool give_back(datapath::Transport& transport);
  void retire(std::shared_ptr<Window> window) { retired_.push_back(std::move(window)); }
  void send(const wire::NodeMessage& message, std::vector<ResultWrite> writes = {});
  Status post_writes(datapath::Transport& transport);

  const RemoteSessionOptions options_;
  const std::shared_ptr<SessionState> state_;
  Device& device_;
  SharedMemoryCounters& counters_;

  datapath::EndpointId endpoint_;
  wire::Reassembler incoming_;
  wire::Encoder encoder_;
  wire::InvocationCoder invocations_;
  struct Outgoing {
    std::vector<ResultWrite> writes;  // that come before it
    size_t written = 0;
    std::vector<std::byte> bytes;
    size_t sent = 0;
  };
  std::deque<Outgoing> outbox_;
  std::deque<std::unique_ptr<Work>> backlog_;

  std::unordered_map<uint32_t, std::shared_ptr<Window>> windows_;
  std::vector<std::shared_ptr<Window>> retired_;

  // Of submissions in flight whose results are written into windows, for each of their fetches.
  std::unordered_map<uint64_t, std::vector<Target>> targets_;

  std::shared_ptr<ResultMemory> results_;
  std::unordered_map<uint32_t, std::shared_ptr<ResultRegion>> result_regions_;
  std::vector<std::shared_ptr<ResultRegion>> retired_regions_;
  // What the client holds: results by their names. See ResultMemory's invariant.
  std::unordered_map<uint64_t, std::shared_ptr<const void>> held_results_;
  uint32_t next_result_region_ = 0;
  uint64_t next_result_ = 1;

  // A blob that the client was told of and has neither uploaded nor released.
  struct HeldBlob {
    std::shared_ptr<ContentHold> hold;
    std::shared_ptr<UploadRegion> stake;
  };
  std::weak_ptr<ContentWaiter> waiter_;
  std::unordered_map<uint64_t, wire::Question> questions_;  // without an answer
  std::unordered_map<uint64_t, HeldBlob> held_blobs_;       // by their names
  // In regions that lived when this was last swept.
  std::unordered_map<const RegionMemory*, std::weak_ptr<UploadRegion>> stakes_;
  size_t stakes_to_sweep_ = 0;

  uint64_t next_tick_ns_ = 0;
  uint64_t told_progress_ = 0;
  bool ending_ = false;
};

}  // namespace genie::node
