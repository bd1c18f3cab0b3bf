// What the peers' programs print. The first text is what ucx_perftest 1.13 wrote here; the others follow perftest 4.5.
#include "bench/transfer/outside_peers.h"

#include <gtest/gtest.h>

namespace genie::bench {
namespace {

TEST(OutsidePeers, UcxPerftestIsRead) {
  const std::string output =
      "iterations,50.0_percentile_lat,avg_lat,overall_lat,avg_bw,overall_bw,avg_mr,overall_mr\n"
      " 500,183.709,205.414,205.414,4868.22,4868.20,4868,4860\n";
  EXPECT_DOUBLE_EQ(parse_ucx_perftest(output, Figure::kLatency).value(), 183.709);
  EXPECT_DOUBLE_EQ(parse_ucx_perftest(output, Figure::kBandwidth).value(), 4868.20 * 1048576 / 1e9);
  EXPECT_DOUBLE_EQ(parse_ucx_perftest(output, Figure::kMessageRate).value(), 4860 / 1e6);
}

TEST(OutsidePeers, PerftestIsRead) {
  const std::string bandwidth =
      "                    RDMA_Write BW Test\n Mtu             : 4096[B]\n"
      " #bytes     #iterations    BW peak[MB/sec]    BW average[MB/sec]   MsgRate[Mpps]\n"
      " 65536      1000             52.13              47.25\t\t     0.000756\n"
      "---------------------------------------------------------------------------------------\n";
  EXPECT_DOUBLE_EQ(parse_perftest(bandwidth, Figure::kBandwidth).value(), 47.25 * 1048576 / 1e9);
  EXPECT_DOUBLE_EQ(parse_perftest(bandwidth, Figure::kMessageRate).value(), 0.000756);
  const std::string latency =
      " #bytes #iterations    t_min[usec]    t_max[usec]  t_typical[usec]    t_avg[usec]    t_stdev[usec]   "
      "99% percentile[usec]   99.9% percentile[usec]\n"
      " 2       1000          12.04          95.70        14.11              14.96          3.10            "
      "27.32                  95.70\n";
  EXPECT_DOUBLE_EQ(parse_perftest(latency, Figure::kLatency).value(), 14.11);
}

TEST(OutsidePeers, OtherWordsAreNoFigure) {
  for (const char* said :
       {"", "Couldn't connect to 127.0.0.1:18515\n", "1 2 3\n", "[1795291143.7] ERROR 1 2 3 4 5\n"}) {
    EXPECT_FALSE(parse_ucx_perftest(said, Figure::kLatency)) << said;
    EXPECT_FALSE(parse_perftest(said, Figure::kBandwidth)) << said;
  }
}

}  // namespace
}  // namespace genie::bench
