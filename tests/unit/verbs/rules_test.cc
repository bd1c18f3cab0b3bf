#include "datapath/verbs/rules.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace genie::datapath::verbs {
namespace {

Gid ipv4(uint8_t a, uint8_t b, uint8_t c, uint8_t d) {
  return Gid{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d};
}
Gid link_local(uint8_t last) { return Gid{0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last}; }
Gid global_ipv6(uint8_t last) { return Gid{0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last}; }

using Pairs = std::vector<std::pair<uint32_t, uint32_t>>;
Pairs pairs_of(const std::vector<RailPair>& rails) {
  Pairs pairs;
  for (const RailPair& rail : rails) pairs.emplace_back(rail.left, rail.right);
  return pairs;
}

TEST(Gids, AreChosenByRule) {
  // As a port of a network card lists them: each address as RoCE v1 and v2.
  const std::vector<GidEntry> table = {
      {0, GidType::kRoceV1, link_local(1)},     {1, GidType::kRoceV2, link_local(1)},
      {2, GidType::kRoceV1, ipv4(10, 0, 0, 1)}, {3, GidType::kRoceV2, ipv4(10, 0, 0, 1)},
      {4, GidType::kRoceV2, global_ipv6(1)},    {5, GidType::kRoceV2, ipv4(10, 1, 0, 1)},
  };
  EXPECT_EQ(choose_gid(table, true)->index, 3U);
  EXPECT_EQ(choose_gid(std::span(table).first(3), true)->index, 1U) << "v2 before v1, whatever the address";
  EXPECT_EQ(choose_gid(std::span(table).first(1), true)->index, 0U);
  const std::vector<GidEntry> six = {{0, GidType::kRoceV2, link_local(1)}, {1, GidType::kRoceV2, global_ipv6(1)}};
  EXPECT_EQ(choose_gid(six, true)->index, 1U);
  EXPECT_EQ(choose_gid({}, true), nullptr);
  const std::vector<GidEntry> infiniband = {{0, GidType::kInfiniBand, link_local(1)},
                                            {1, GidType::kInfiniBand, global_ipv6(1)}};
  EXPECT_EQ(choose_gid(infiniband, false)->index, 0U);
}

TEST(Gids, AreWrittenAsToolsWriteThem) {
  EXPECT_EQ(gid_text(ipv4(10, 77, 0, 1)), "::ffff:10.77.0.1");
  EXPECT_EQ(gid_text(link_local(3)), "fe80::3");
}

TEST(Ports, AreReadFromALine) {
  const Result<std::vector<PortName>> ports = parse_ports("mlx5_0,mlx5_2:2");
  ASSERT_TRUE(ports.ok());
  ASSERT_EQ(ports->size(), 2U);
  EXPECT_EQ((*ports)[0].device, "mlx5_0");
  EXPECT_EQ((*ports)[0].port, 1);
  EXPECT_EQ((*ports)[1].device, "mlx5_2");
  EXPECT_EQ((*ports)[1].port, 2);
  for (const char* wrong : {":1", "mlx5_0:", "mlx5_0:x", "mlx5_0:0", "mlx5_0:1x", "mlx5_0:256", "mlx5_0,,mlx5_1"}) {
    EXPECT_EQ(parse_ports(wrong).code(), Errc::kConfig) << wrong;
  }
}

TEST(Ports, FastOnesComeFirstThenNearOnes) {
  std::vector<PortRank> ports = {{100, 0}, {100, 1}, {200, 0}, {100, -1}, {200, 1}};
  const auto sorted = [&](int thread_node) {
    std::vector<PortRank> made = ports;
    std::stable_sort(made.begin(), made.end(),
                     [&](const PortRank& a, const PortRank& b) { return better_port(a, b, thread_node); });
    std::vector<std::pair<uint64_t, int>> read;
    for (const PortRank& port : made) read.emplace_back(port.megabits, port.numa_node);
    return read;
  };
  using Order = std::vector<std::pair<uint64_t, int>>;
  EXPECT_EQ(sorted(1), (Order{{200, 1}, {200, 0}, {100, 1}, {100, 0}, {100, -1}}));
  EXPECT_EQ(sorted(-1), (Order{{200, 0}, {200, 1}, {100, 0}, {100, 1}, {100, -1}})) << "a thread of any node";
}

// How many of `count` chunks each rail gets when none of them ends meanwhile.
std::vector<int> spread(std::vector<RailLoad> rails, int memory_node, int count) {
  std::vector<int> taken(rails.size());
  for (int i = 0; i < count; ++i) {
    const int rail = quickest_rail(rails, 1000, memory_node);
    if (rail < 0) return {};
    ++taken[static_cast<size_t>(rail)];
    rails[static_cast<size_t>(rail)].bytes_out += 1000;
  }
  return taken;
}

TEST(Rails, ChunksGoWhereTheyWouldBeThroughFirst) {
  const RailLoad near{.up = true, .megabits = 100, .numa_node = 0};
  const RailLoad far{.up = true, .megabits = 100, .numa_node = 1};
  const RailLoad fast{.up = true, .megabits = 300, .numa_node = 0};
  const RailLoad down{.up = false, .megabits = 900, .numa_node = 0};
  const RailLoad nowhere{.up = true, .megabits = 100};
  EXPECT_EQ(spread({near, near}, 0, 10), (std::vector{5, 5}));
  EXPECT_EQ(spread({near, fast}, 0, 12), (std::vector{3, 9}));
  EXPECT_EQ(spread({near, far}, 0, 18), (std::vector{10, 8})) << "the far one helps, a quarter slower";
  EXPECT_EQ(spread({near, far}, 1, 9), (std::vector{4, 5}));
  EXPECT_EQ(spread({near, far}, -1, 10), (std::vector{5, 5})) << "memory of nowhere is near to all";
  EXPECT_EQ(spread({near, nowhere}, 1, 9), (std::vector{4, 5})) << "so is a rail of nowhere";
  EXPECT_EQ(spread({down, near}, 0, 3), (std::vector{0, 3}));
  EXPECT_EQ(quickest_rail(std::vector{down}, 1, 0), -1);
}

TEST(Rails, EndsOfOneNetworkFaceEachOther) {
  // The second host names its ports in another order.
  const std::vector<RailEnd> left = {{ipv4(10, 0, 0, 1)}, {ipv4(10, 0, 1, 1)}};
  const std::vector<RailEnd> right = {{ipv4(10, 0, 1, 2)}, {ipv4(10, 0, 0, 2)}};
  EXPECT_EQ(pairs_of(pair_rails(left, right, 4)), (Pairs{{0, 1}, {1, 0}}));
}

TEST(Rails, APortFacesItself) {
  const std::vector<RailEnd> ends = {{ipv4(10, 0, 0, 1)}, {ipv4(10, 0, 0, 2)}, {ipv4(10, 0, 0, 3)}};
  EXPECT_EQ(pairs_of(pair_rails(ends, ends, 4)), (Pairs{{0, 0}, {1, 1}, {2, 2}}));
}

TEST(Rails, AreAsManyAsBothHaveOfOneKind) {
  const std::vector<RailEnd> left = {{ipv4(10, 0, 0, 1)}, {ipv4(10, 0, 1, 1)}, {link_local(1), false}};
  const std::vector<RailEnd> right = {{link_local(7), false}, {ipv4(10, 9, 1, 2)}};
  EXPECT_EQ(pairs_of(pair_rails(left, right, 4)), (Pairs{{0, 1}, {2, 0}}));
  EXPECT_EQ(pairs_of(pair_rails(left, right, 1)).size(), 1U);
  EXPECT_TRUE(pair_rails(left, {}, 4).empty());
}

TEST(Rails, PortsOfOneInfiniBandSubnetFaceEachOtherInOrder) {
  std::vector<RailEnd> left;
  std::vector<RailEnd> right;
  for (uint8_t i = 0; i < 4; ++i) {
    left.push_back({link_local(static_cast<uint8_t>(0x10 + i)), false});
    right.push_back({link_local(static_cast<uint8_t>(0x13 - i)), false});
  }
  EXPECT_EQ(pairs_of(pair_rails(left, right, 4)), (Pairs{{0, 0}, {1, 1}, {2, 2}, {3, 3}}));
}

}  // namespace
}  // namespace genie::datapath::verbs
