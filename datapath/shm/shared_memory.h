// Shared memory that stays safe to touch while a peer holds it too.
//
// Purpose: sealed memfds (nobody can truncate them, which would be a SIGBUS for the others), their mappings, and the
//   turn from shared to private memory without a copy.
// Thread-safety: values; each belongs to one thread at a time.
// Ownership: SharedMapping unmaps when it goes.
#pragma once

#include <cstddef>

#include "datapath/base/file_descriptor.h"
#include "datapath/transport.h"
#include "genie/status.h"

namespace genie::datapath {

// A memfd of `size` bytes (rounded up to pages), sealed against shrinking and growing. No page is present yet.
Result<FileDescriptor> make_sealed_memory(size_t size);

// From now on nobody can write that memory but through the writable mappings that there are.
Status seal_for_others(int fd);

// Makes pages [offset, offset + size) present: kOutOfMemory here instead of a signal later.
Status populate(int fd, size_t offset, size_t size);

// Nobody writes the memory any more; fails while anybody maps it writable.
Status seal_against_writing(int fd);

// Maps memory of a peer that it gave away. kProtocol unless it is a memfd that is sealed against resizing and holds `size`
// bytes. It is `final` when it is sealed against writing too. The caller's writes go to copies of the pages.
Result<Taken> take_memory(int fd, size_t size);

class SharedMapping {
 public:
  SharedMapping() noexcept = default;
  SharedMapping(SharedMapping&& other) noexcept { swap(other); }
  SharedMapping& operator=(SharedMapping&& other) noexcept {
    SharedMapping taken(std::move(other));
    swap(taken);
    return *this;
  }
  SharedMapping(const SharedMapping&) = delete;
  SharedMapping& operator=(const SharedMapping&) = delete;
  ~SharedMapping();

  // Maps a descriptor that may come from a peer: kProtocol unless it is a memfd of the right size that is sealed against
  // resizing, kStale when it is sealed against writing (somebody took it). A large one lies at a multiple of 2 MiB and is
  // not present yet: populate_shared() is for whoever writes it first. Memory that seal_for_others() closed is mapped
  // privately: writable, but only for this process to see.
  static Result<SharedMapping> map(int fd, size_t size);

  std::byte* data() const noexcept { return data_; }
  bool is_private() const noexcept { return private_; }

 private:
  void swap(SharedMapping& other) noexcept;

  std::byte* data_ = nullptr;
  size_t mapped_ = 0;
  bool private_ = false;
};

}  // namespace genie::datapath
