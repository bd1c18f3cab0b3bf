// Request and Response: one submission as the node sees it, and what came of it.
//
// Purpose: the form between a link (embedded, or the wire's server) and a device's worker, free of any wire format.
// Thread-safety: values; a Request is handed to the worker as a whole, a Response back to the sink.
// Ownership: `owner` members keep the memory that a request points to alive until the request is dropped.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "datapath/memory/buffer.h"
#include "genie/status.h"
#include "src/executor/executor.h"
#include "src/node/content_store.h"
#include "src/node/result_memory.h"
#include "src/node/upload_region.h"

namespace genie::node {

struct UploadOrder {
  executor::StorageVersion storage;
  executor::HostMemory memory;
  // The memory is a window that its writer reuses: the worker copies it before anything reads it.
  bool copy = false;
  // The client's own bytes, which are the node's to read until the request has been carried out.
  const std::byte* lent = nullptr;
  // Nobody will name the storage after this request.
  bool transient = false;
  // What the memory lies in, if the client handed it over, or another did with the same bytes.
  std::shared_ptr<UploadRegion> region;
  std::shared_ptr<ContentHold> content;  // then: the session's hold on these bytes
};

struct FetchOrder {
  executor::StorageVersion storage;
  uint64_t offset = 0;
  uint64_t size = 0;
  // The response may carry the storage's own bytes, where the store shares them.
  bool share = false;
  // For a client in another process: where the result is born or copied to. Null: a fresh block that the response carries.
  std::shared_ptr<ResultSpan> place;
  Status refused;  // why there is no place
};

struct FetchResult {
  Status status;
  executor::SharedBytes shared;  // with a holder: the storage's own bytes, or a copy in the place
  datapath::Buffer block;        // otherwise
};

struct Response {
  uint64_t ticket = 0;
  Status status;
  int64_t failed_record = -1;
  uint64_t executed_records = 0;
  std::vector<executor::ReportedTensor> reported;
  std::vector<FetchResult> fetched;
  uint64_t upload_copied_bytes = 0;
  uint64_t fetch_copied_bytes = 0;
};

class ResponseSink {
 public:
  virtual ~ResponseSink() = default;
  // Called once per request, on the worker's thread. Must not block for long.
  virtual void deliver(Response response) noexcept = 0;
};

struct Request {
  uint64_t ticket = 0;
  uint32_t stream = 0;
  uint32_t epoch = 0;
  std::vector<uint64_t> frees;
  std::vector<UploadOrder> uploads;
  uint64_t template_id = 0;
  std::vector<executor::SlotBinding> slots;
  std::vector<uint32_t> param_index;
  std::vector<int64_t> param_value;
  std::vector<FetchOrder> fetches;
  std::shared_ptr<ResponseSink> sink;
};

}  // namespace genie::node
