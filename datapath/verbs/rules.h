// The choices that the verbs fabric makes by rule: which ports, which address of a port, which ports face each other, which rail
// takes a transfer.
//
// Purpose: plain functions of what was read from the devices, so that tests need none.
// Thread-safety, ownership: values.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "genie/status.h"

namespace genie::datapath::verbs {

using Gid = std::array<uint8_t, 16>;

enum class GidType : uint8_t { kInfiniBand, kRoceV1, kRoceV2 };

struct GidEntry {
  uint32_t index = 0;
  GidType type = GidType::kRoceV2;
  Gid gid{};
};

// "::ffff:10.0.0.2", as rdma tools print it.
std::string gid_text(const Gid& gid);
const char* gid_type_name(GidType type) noexcept;

// Ethernet: RoCE v2 before v1, which no router forwards; then an IPv4 address, a global IPv6 address, a link-local one;
// then the lowest index. InfiniBand: the lowest index. Null when the table is empty.
const GidEntry* choose_gid(std::span<const GidEntry> table, bool ethernet) noexcept;

struct PortName {
  std::string device;
  uint8_t port = 1;
};
// "mlx5_0,mlx5_2:1". kConfig for what cannot be understood.
Result<std::vector<PortName>> parse_ports(std::string_view list);

// Among more ports than rails: the fastest; of equal ones those on the NUMA node of the thread that uses them (-1: any).
struct PortRank {
  uint64_t megabits = 0;
  int numa_node = -1;
};
bool better_port(const PortRank& a, const PortRank& b, int thread_node) noexcept;

// One side's ends of the rails of a link, in its own order.
struct RailEnd {
  Gid gid{};
  bool ethernet = true;
};
struct RailPair {
  uint32_t left = 0;
  uint32_t right = 0;
};

// Who faces whom: ends of one kind, those first whose addresses agree in the most leading bits (they are in one network),
// then in order. Both sides get the same pairs in the same order when they agree on who is left.
std::vector<RailPair> pair_rails(std::span<const RailEnd> left, std::span<const RailEnd> right, size_t pairs_max);

// A rail, as a transfer finds it.
struct RailLoad {
  bool up = false;
  uint64_t megabits = 1;
  size_t bytes_out = 0;
  int numa_node = -1;
};
// The rail that would be through first with `size` bytes of memory on `memory_node` (-1: unknown). Across the bus between NUMA nodes
// a rail counts as taking a quarter longer: it helps when the near ones are busy. -1 when none is up.
int quickest_rail(std::span<const RailLoad> rails, size_t size, int memory_node) noexcept;

}  // namespace genie::datapath::verbs
