#include <gtest/gtest.h>

#include "tools/run_model.h"

namespace genie::tools {
namespace {

TEST(RandomInput, ReadsSizesAndDtype) {
  std::string why;
  const auto image = parse_random_input("1x3x224x224", why);
  ASSERT_TRUE(image.has_value()) << why;
  EXPECT_EQ(image->sizes, (std::vector<int64_t>{1, 3, 224, 224}));
  EXPECT_EQ(image->dtype, "float32");
  const auto tokens = parse_random_input("16:int64", why);
  ASSERT_TRUE(tokens.has_value()) << why;
  EXPECT_EQ(tokens->sizes, (std::vector<int64_t>{16}));
  EXPECT_EQ(tokens->dtype, "int64");
}

TEST(RandomInput, KnowsDtypesByTheirOtherNames) {
  std::string why;
  EXPECT_EQ(parse_random_input("2:long", why)->dtype, "int64");
  EXPECT_EQ(parse_random_input("2:half", why)->dtype, "float16");
}

TEST(RandomInput, ScalarHasNoSizesAndZeroIsASize) {
  std::string why;
  EXPECT_TRUE(parse_random_input("scalar:bool", why)->sizes.empty());
  EXPECT_EQ(parse_random_input("0x4", why)->sizes, (std::vector<int64_t>{0, 4}));
}

TEST(RandomInput, SaysWhatIsWrong) {
  for (const char* text : {"", "x", "1x", "x1", "1xx2", "-1", "1x+2", "1 x2", "1x2.5", "a", "9223372036854775808",
                           "1099511627776x2", ":int64"}) {
    std::string why;
    EXPECT_FALSE(parse_random_input(text, why).has_value()) << text;
    EXPECT_NE(why.find("is not a shape"), std::string::npos) << text << ": " << why;
  }
  std::string why;
  EXPECT_FALSE(parse_random_input("1x2:complex", why).has_value());
  EXPECT_NE(why.find("known: float32"), std::string::npos) << why;
}

}  // namespace
}  // namespace genie::tools
