#include "qvl/text/pretokenizer.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace qvl::text {
namespace {

std::vector<std::string> pieces(std::string_view text) {
  std::vector<std::string> out;
  PieceScanner scanner(text);
  for (std::string_view p = scanner.next(); !p.empty(); p = scanner.next()) out.emplace_back(p);
  return out;
}

using Pieces = std::vector<std::string>;

TEST(PieceScanner, Words) {
  EXPECT_EQ(pieces(""), Pieces{});
  EXPECT_EQ(pieces("Hello, world!"), (Pieces{"Hello", ",", " world", "!"}));
  EXPECT_EQ(pieces("(a)[b] \tc"), (Pieces{"(a", ")[", "b", "]", " ", "\tc"}));
  EXPECT_EQ(pieces("\u4E2D\u6587\u3002abc\u00E9"), (Pieces{"\u4E2D\u6587", "\u3002abc\u00E9"}));
  EXPECT_EQ(pieces("e\u0301x"), (Pieces{"e", "\u0301x"}));  // a mark is no letter
  EXPECT_EQ(pieces("\n\nfoo"), (Pieces{"\n\n", "foo"}));
  EXPECT_EQ(pieces("\u00A0foo"), (Pieces{"\u00A0foo"}));
}

TEST(PieceScanner, Contractions) {
  EXPECT_EQ(pieces("don't I'LL we'Ve it'\u017F x'y"),
            (Pieces{"don", "'t", " I", "'LL", " we", "'Ve", " it", "'\u017F", " x", "'y"}));
  EXPECT_EQ(pieces("'s'S's"), (Pieces{"'s", "'S", "'s"}));
  EXPECT_EQ(pieces("'stop"), (Pieces{"'s", "top"}));
  EXPECT_EQ(pieces("'rabbit"), (Pieces{"'rabbit"}));
  EXPECT_EQ(pieces(" 's"), (Pieces{" '", "s"}));
  EXPECT_EQ(pieces("a'"), (Pieces{"a", "'"}));
  EXPECT_EQ(pieces("a'l"), (Pieces{"a", "'l"}));
}

TEST(PieceScanner, DigitsStandAlone) {
  EXPECT_EQ(pieces("12 3\u00BD\u0663"), (Pieces{"1", "2", " ", "3", "\u00BD", "\u0663"}));
  EXPECT_EQ(pieces("a1b"), (Pieces{"a", "1", "b"}));
}

TEST(PieceScanner, SymbolsTakeOneBlankBeforeAndNewlinesAfter) {
  EXPECT_EQ(pieces("a += b;\n\n\r\nc"), (Pieces{"a", " +=", " b", ";\n\n\r\n", "c"}));
  EXPECT_EQ(pieces("  ==\n x"), (Pieces{" ", " ==\n", " x"}));
  EXPECT_EQ(pieces("\t=="), (Pieces{"\t", "=="}));
  EXPECT_EQ(pieces("\U0001F468\u200D\U0001F469"), (Pieces{"\U0001F468\u200D\U0001F469"}));
}

TEST(PieceScanner, WhiteSpace) {
  EXPECT_EQ(pieces("a   b"), (Pieces{"a", "  ", " b"}));
  EXPECT_EQ(pieces("a   1"), (Pieces{"a", "  ", " ", "1"}));
  EXPECT_EQ(pieces("a   "), (Pieces{"a", "   "}));
  EXPECT_EQ(pieces("a \n  \n  b"), (Pieces{"a", " \n  \n", " ", " b"}));
  EXPECT_EQ(pieces(" \n"), (Pieces{" \n"}));
  EXPECT_EQ(pieces("\u3000\u3000x"), (Pieces{"\u3000", "\u3000x"}));
  EXPECT_EQ(pieces("x\u2028\u2028"), (Pieces{"x", "\u2028\u2028"}));
  EXPECT_EQ(pieces("\r\n\t\tx"), (Pieces{"\r\n", "\t", "\tx"}));
}

}  // namespace
}  // namespace qvl::text
