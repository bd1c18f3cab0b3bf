// Populate: makes fresh memory present in the best way that this machine has.
//
// Purpose: a page fault for every 4 KiB holds fresh memory to a tenth of what memcpy does; a page of 2 MiB costs one. One
//   place knows the ways to such pages. Shared memory: transparent huge pages by advice where the administrator allows
//   them for shmem, else one byte of each 2 MiB touched and the range collapsed (MADV_COLLAPSE, Linux 6.1), else ordinary
//   pages. The way is chosen once per process by trying it, and said once in the log; a range for which it fails later gets
//   ordinary pages.
// Thread-safety: every function may be called from any thread. Populating keeps what the memory holds.
// Ownership: a Buffer from map_block() unmaps when dropped; reserve_aligned() gives the address range to the caller.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "datapath/memory/buffer.h"
#include "datapath/memory/pages.h"
#include "genie/status.h"

namespace genie::datapath {

enum class PageMethod : uint8_t { kAdvice, kCollapse, kPlain };
const char* page_method_name(PageMethod method) noexcept;

// How shared memory is populated from now on.
PageMethod shared_page_method() noexcept;
// Overrides the choice: for tests.
void set_shared_page_method(PageMethod method) noexcept;

// An address range of at least `size` bytes (a multiple of the page size) without memory behind it, to be mapped over.
// Aligned to 2 MiB where it is that large. Null when the process has none left.
std::byte* reserve_aligned(size_t size) noexcept;

// Makes every page of a writable shared mapping present: 2 MiB at a time where it covers them whole. kOutOfMemory here
// instead of a signal later.
Status populate_shared(std::span<std::byte> memory) noexcept;

// From here on a block is better mapped by map_block(): malloc's fresh memory costs a page fault for every 4 KiB. Below,
// malloc has memory that was used before, which costs none.
inline constexpr size_t kMappedBlockBytes = size_t{8} << 20;

// Private memory for one large block, not present yet, in 2 MiB pages where the machine has them. Nothing is rounded up
// beyond a page: a tail gets ordinary pages.
Result<Buffer> map_block(size_t size);

// Of this process, never reset.
struct PopulateCounters {
  uint64_t huge_bytes = 0;   // shared memory made present 2 MiB at a time
  uint64_t plain_bytes = 0;  // and page by page
  uint64_t fallbacks = 0;    // ranges for which the chosen way failed
};
PopulateCounters populate_counters() noexcept;

}  // namespace genie::datapath
