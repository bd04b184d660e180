#include "qvl/base/checksum.h"

#include <gtest/gtest.h>

#include <string>

namespace qvl {
namespace {

// Of the published implementation, without a seed.
TEST(Checksum, PublishedValues) {
  EXPECT_EQ(checksum(""), 0x2D06800538D394C2U);
  EXPECT_EQ(checksum("a"), 0xE6C632B61E964E1FU);
  EXPECT_EQ(checksum("abc"), 0x78AF5F94892F3950U);
}

TEST(Checksum, PiecesDoNotMatterAndEveryBitDoes) {
  std::string text;
  for (int i = 0; i < 203; ++i) text += static_cast<char>(i * 37);
  const uint64_t whole = checksum(text);
  for (size_t cut = 0; cut <= text.size(); ++cut) {
    Checksum sum;
    sum.add(std::string_view(text).substr(0, cut));
    (void)sum.value();
    sum.add(std::string_view(text).substr(cut));
    EXPECT_EQ(sum.value(), whole) << cut;
  }
  Checksum bytes;
  for (char c : text) bytes.add(std::string_view(&c, 1));
  EXPECT_EQ(bytes.value(), whole);
  for (size_t bit = 0; bit < text.size() * 8; ++bit) {
    std::string other = text;
    other[bit / 8] = static_cast<char>(other[bit / 8] ^ (1 << bit % 8));
    EXPECT_NE(checksum(other), whole) << bit;
  }
}

}  // namespace
}  // namespace qvl
