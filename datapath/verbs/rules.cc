#include "datapath/verbs/rules.h"

#include <arpa/inet.h>

#include <algorithm>
#include <bit>
#include <charconv>
#include <tuple>

namespace genie::datapath::verbs {
namespace {

constexpr std::array<uint8_t, 12> kIpv4Prefix = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};

bool is_ipv4(const Gid& gid) noexcept { return std::equal(kIpv4Prefix.begin(), kIpv4Prefix.end(), gid.begin()); }
bool is_link_local(const Gid& gid) noexcept { return gid[0] == 0xfe && (gid[1] & 0xc0) == 0x80; }

// The lower the better.
auto rank(const GidEntry& entry) noexcept {
  const int address = is_ipv4(entry.gid) ? 0 : is_link_local(entry.gid) ? 2 : 1;
  return std::tuple(entry.type == GidType::kRoceV2 ? 0 : 1, address, entry.index);
}

size_t common_bits(const Gid& a, const Gid& b) noexcept {
  for (size_t i = 0; i < a.size(); ++i) {
    const auto difference = static_cast<uint8_t>(a[i] ^ b[i]);
    if (difference != 0) return 8 * i + static_cast<size_t>(std::countl_zero(difference));
  }
  return 8 * a.size();
}

}  // namespace

std::string gid_text(const Gid& gid) {
  std::array<char, INET6_ADDRSTRLEN> text{};
  return ::inet_ntop(AF_INET6, gid.data(), text.data(), text.size()) == nullptr ? std::string() : text.data();
}

const char* gid_type_name(GidType type) noexcept {
  switch (type) {
    case GidType::kInfiniBand: return "InfiniBand";
    case GidType::kRoceV1: return "RoCE v1";
    case GidType::kRoceV2: return "RoCE v2";
  }
  return "unknown";
}

const GidEntry* choose_gid(std::span<const GidEntry> table, bool ethernet) noexcept {
  const auto best = std::min_element(table.begin(), table.end(), [&](const GidEntry& a, const GidEntry& b) {
    return ethernet ? rank(a) < rank(b) : a.index < b.index;
  });
  return best == table.end() ? nullptr : &*best;
}

Result<std::vector<PortName>> parse_ports(std::string_view list) {
  std::vector<PortName> ports;
  while (!list.empty()) {
    const size_t comma = std::min(list.find(','), list.size());
    const std::string_view one = list.substr(0, comma);
    list.remove_prefix(std::min(comma + 1, list.size()));
    const size_t colon = std::min(one.find(':'), one.size());
    PortName port{.device = std::string(one.substr(0, colon))};
    bool understood = colon != 0;
    if (colon < one.size()) {
      const char* end = one.data() + one.size();
      const auto [rest, error] = std::from_chars(one.data() + colon + 1, end, port.port);
      understood = understood && error == std::errc() && rest == end && port.port != 0;
    }
    if (!understood) {
      return Status(Errc::kConfig, "'" + std::string(one) + "' names no RDMA port; write mlx5_0 or mlx5_0:1");
    }
    ports.push_back(std::move(port));
  }
  return ports;
}

bool better_port(const PortRank& a, const PortRank& b, int thread_node) noexcept {
  const auto near = [&](const PortRank& port) { return thread_node >= 0 && port.numa_node == thread_node; };
  return std::tuple(a.megabits, near(a)) > std::tuple(b.megabits, near(b));
}

std::vector<RailPair> pair_rails(std::span<const RailEnd> left, std::span<const RailEnd> right, size_t pairs_max) {
  struct Candidate {
    size_t bits;
    RailPair pair;
  };
  std::vector<Candidate> candidates;
  for (uint32_t l = 0; l < left.size(); ++l) {
    for (uint32_t r = 0; r < right.size(); ++r) {
      if (left[l].ethernet != right[r].ethernet) continue;
      // Ports of InfiniBand reach each other all over the subnet, which the first half of the address names.
      const size_t bits = common_bits(left[l].gid, right[r].gid);
      candidates.push_back({left[l].ethernet ? bits : std::min<size_t>(bits, 64), {l, r}});
    }
  }
  std::stable_sort(candidates.begin(), candidates.end(), [](const Candidate& a, const Candidate& b) {
    return std::tuple(b.bits, a.pair.left, a.pair.right) < std::tuple(a.bits, b.pair.left, b.pair.right);
  });
  std::vector<RailPair> pairs;
  for (const Candidate& candidate : candidates) {
    const bool taken = std::any_of(pairs.begin(), pairs.end(), [&](const RailPair& pair) {
      return pair.left == candidate.pair.left || pair.right == candidate.pair.right;
    });
    if (!taken && pairs.size() < pairs_max) pairs.push_back(candidate.pair);
  }
  // The first rail of the left side carries the messages: its order counts.
  std::sort(pairs.begin(), pairs.end(), [](const RailPair& a, const RailPair& b) { return a.left < b.left; });
  return pairs;
}

int quickest_rail(std::span<const RailLoad> rails, size_t size, int memory_node) noexcept {
  int best = -1;
  size_t best_time = SIZE_MAX;
  for (size_t i = 0; i < rails.size(); ++i) {
    const RailLoad& rail = rails[i];
    if (!rail.up) continue;
    const bool far = rail.numa_node >= 0 && memory_node >= 0 && rail.numa_node != memory_node;
    // In a unit that needs no division by the speed's.
    const size_t time = (rail.bytes_out + size) * (far ? 1280 : 1024) / rail.megabits;
    if (time < best_time) {
      best = static_cast<int>(i);
      best_time = time;
    }
  }
  return best;
}

}  // namespace genie::datapath::verbs
