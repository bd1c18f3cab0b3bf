#include "datapath/base/tcp_address.h"

#include <gtest/gtest.h>

namespace genie::datapath {
namespace {

TEST(TcpAddress, IsCutInTwoAndPutTogether) {
  for (const char* text : {"tcp://host:7000", "tcp://10.0.0.1:0", "tcp://[::1]:65535", "tcp://*:1", "tcp://h:http"}) {
    const Result<TcpAddress> address = parse_tcp_address(text);
    ASSERT_TRUE(address.ok()) << text;
    EXPECT_EQ(address->to_string(), text);
  }
  EXPECT_EQ(parse_tcp_address("tcp://[fe80::1%eth0]:7000")->host, "fe80::1%eth0");
  EXPECT_EQ(parse_tcp_address("tcp://:7000")->host, "");
  for (const char* text : {"", "host:7000", "tcp://host", "tcp://host:", "unix:/a:1"}) {
    EXPECT_EQ(parse_tcp_address(text).code(), Errc::kInvalidArgument) << text;
  }
}

TEST(TcpAddress, KnowsItsPort) {
  EXPECT_EQ(parse_tcp_address("tcp://h:7000")->port_number(), 7000);
  EXPECT_EQ(parse_tcp_address("tcp://h:0")->port_number(), 0);
  for (const char* text : {"tcp://h:http", "tcp://h:65536", "tcp://h:-1", "tcp://h:1x"}) {
    EXPECT_FALSE(parse_tcp_address(text)->port_number().has_value()) << text;
  }
}

TEST(TcpAddress, KnowsWhomItReaches) {
  for (const char* any : {"tcp://:1", "tcp://*:1", "tcp://0.0.0.0:1", "tcp://[::]:1"}) {
    EXPECT_TRUE(parse_tcp_address(any)->is_any()) << any;
    EXPECT_FALSE(parse_tcp_address(any)->is_loopback()) << any;
  }
  for (const char* here : {"tcp://127.0.0.1:1", "tcp://127.9.9.9:1", "tcp://[::1]:1", "tcp://localhost:1"}) {
    EXPECT_TRUE(parse_tcp_address(here)->is_loopback()) << here;
    EXPECT_FALSE(parse_tcp_address(here)->is_any()) << here;
  }
  EXPECT_FALSE(parse_tcp_address("tcp://10.0.0.1:1")->is_loopback());
}

}  // namespace
}  // namespace genie::datapath
