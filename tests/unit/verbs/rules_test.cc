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
