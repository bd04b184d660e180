#include "qvl/generate/grounding.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

namespace qvl::generate {
namespace {

using Kind = GroundedItem::Kind;
using Problem = GroundedItem::Problem;

const std::vector<GroundedVisual> kOne = {{.width = 2000, .height = 500}};
const std::vector<GroundedVisual> kTwo = {{.width = 100, .height = 100}, {.width = 640, .height = 480}};

TEST(Grounding, TheSmallModelsForm) {
  const Grounding g = parse_grounding(R"({"bbox_2d": [120, 300, 410, 680], "label": "red circle"})", kOne);
  ASSERT_EQ(g.items.size(), 1u);
  const GroundedItem& item = g.items[0];
  EXPECT_EQ(item.kind, Kind::kBox);
  EXPECT_EQ(item.label, "red circle");
  EXPECT_EQ(item.relative, (std::vector<double>{120, 300, 410, 680}));
  EXPECT_EQ(item.pixels, (std::vector<double>{240, 150, 820, 340}));
  EXPECT_EQ(item.visual, 0);
  EXPECT_TRUE(item.problems.empty());
  EXPECT_TRUE(item.drawable());
  EXPECT_EQ(g.unread, 0);
}

TEST(Grounding, ListsInFencesAmongText) {
  const std::string answer =
      "Here they are:\n```json\n[\n\t{\"bbox_2d\": [0, 0, 1000, 1000], \"label\": \"all\"},\n"
      "\t{\"point_2d\": [500, 250], \"label\": \"middle\"}\n]\n```\nand one more: {\"bbox_2d\":[1.5,2,3,4]}.";
  const Grounding g = parse_grounding(answer, kOne);
  ASSERT_EQ(g.items.size(), 3u);
  EXPECT_EQ(g.items[0].pixels, (std::vector<double>{0, 0, 2000, 500}));
  EXPECT_EQ(g.items[1].kind, Kind::kPoint);
  EXPECT_EQ(g.items[1].pixels, (std::vector<double>{1000, 125}));
  EXPECT_EQ(g.items[1].label, "middle");
  EXPECT_EQ(g.items[2].relative, (std::vector<double>{1.5, 2, 3, 4}));
  EXPECT_EQ(answer.substr(g.items[2].begin, g.items[2].end - g.items[2].begin), R"({"bbox_2d":[1.5,2,3,4]})");
}

TEST(Grounding, NestedObjectsAndOtherLabels) {
  const Grounding g = parse_grounding(
      R"({"page": 1, "lines": [{"bbox_2d": [1,2,3,4], "text_content": "Total \"é\""}, {"cells": [{"text": "9", "bbox_2d": [5,6,7,8]}]}]})", kOne);
  ASSERT_EQ(g.items.size(), 2u);
  EXPECT_EQ(g.items[0].label, "Total \"é\"");
  EXPECT_EQ(g.items[1].label, "9");
}

TEST(Grounding, AListOfBoxesIsThatManyItems) {
  const Grounding g = parse_grounding(R"({"label": "cars", "bbox_2d": [[1,2,3,4],[5,6,7,8],[9]]})", kOne);
  ASSERT_EQ(g.items.size(), 3u);
  EXPECT_EQ(g.items[1].relative, (std::vector<double>{5, 6, 7, 8}));
  EXPECT_EQ(g.items[1].label, "cars");
  EXPECT_TRUE(g.items[2].has(Problem::kMalformed));
}

TEST(Grounding, AnAnswerThatWasCutOffGivesItsWholeObjects) {
  const std::string whole =
      "```json\n[{\"bbox_2d\": [1, 2, 3, 4], \"label\": \"a\"}, {\"bbox_2d\": [5, 6, 7, 8], \"label\": \"b\"}, {\"bbox_2d\": [9, 10";
  const Grounding g = parse_grounding(whole, kOne);
  ASSERT_EQ(g.items.size(), 2u);
  EXPECT_EQ(g.items[1].label, "b");
  EXPECT_EQ(g.unread, 1);
  // Never more than what is whole, wherever the cut is.
  for (size_t n = 0; n <= whole.size(); ++n) {
    const Grounding part = parse_grounding(whole.substr(0, n), kOne);
    const auto closed = static_cast<size_t>(std::count(whole.begin(), whole.begin() + static_cast<long>(n), '}'));
    EXPECT_EQ(part.items.size(), closed) << n;
  }
}

TEST(Grounding, ProblemsAreReportedNotRepairedInSilence) {
  const Grounding g = parse_grounding(
      R"([{"bbox_2d": [900, 400, 100, 600]}, {"bbox_2d": [-5, 0, 1200, 500]}, {"bbox_2d": [10, 10, 10, 50]},
          {"bbox_2d": [1100, 0, 1200, 10]}, {"bbox_2d": [1, 2, 3]}, {"bbox_2d": ["a", 1, 2, 3]}, {"bbox_2d": null},
          {"point_2d": [5, 1001]}, {"point_2d": "here"}])",
      kOne);
  ASSERT_EQ(g.items.size(), 9u);
  EXPECT_EQ(g.items[0].problems, (std::vector<Problem>{Problem::kSwapped}));
  EXPECT_EQ(g.items[0].relative, (std::vector<double>{900, 400, 100, 600}));
  EXPECT_EQ(g.items[0].pixels, (std::vector<double>{200, 200, 1800, 300}));
  EXPECT_EQ(g.items[1].problems, (std::vector<Problem>{Problem::kOutOfRange}));
  EXPECT_EQ(g.items[1].pixels, (std::vector<double>{0, 0, 2000, 250}));
  EXPECT_EQ(g.items[2].problems, (std::vector<Problem>{Problem::kDegenerate}));
  EXPECT_FALSE(g.items[2].drawable());
  EXPECT_EQ(g.items[3].problems, (std::vector<Problem>{Problem::kOutOfRange, Problem::kDegenerate}));
  for (const size_t i : {size_t{4}, size_t{5}, size_t{6}, size_t{8}}) {
    EXPECT_EQ(g.items[i].problems, (std::vector<Problem>{Problem::kMalformed})) << i;
    EXPECT_TRUE(g.items[i].pixels.empty());
    EXPECT_FALSE(g.items[i].drawable());
  }
  EXPECT_EQ(g.items[7].pixels, (std::vector<double>{10, 500}));
  EXPECT_TRUE(g.items[7].drawable());
}

TEST(Grounding, WhichPicture) {
  const Grounding g = parse_grounding(
      R"([{"bbox_2d": [0,0,500,500]}, {"image": 1, "bbox_2d": [0,0,500,500]}, {"image": "Picture 2", "point_2d": [1000,1000]},
          {"image": 3, "bbox_2d": [0,0,1,1]}, {"image": 0, "bbox_2d": [0,0,1,1]}, {"image": "left", "bbox_2d": [0,0,1,1]}])",
      kTwo);
  ASSERT_EQ(g.items.size(), 6u);
  EXPECT_EQ(g.items[0].visual, 1);  // the last one
  EXPECT_EQ(g.items[0].pixels, (std::vector<double>{0, 0, 320, 240}));
  EXPECT_EQ(g.items[1].visual, 0);
  EXPECT_EQ(g.items[1].pixels, (std::vector<double>{0, 0, 50, 50}));
  EXPECT_EQ(g.items[2].visual, 1);
  for (size_t i = 3; i < 6; ++i) {
    EXPECT_EQ(g.items[i].visual, -1) << i;
    EXPECT_EQ(g.items[i].problems, (std::vector<Problem>{Problem::kNoSuchImage})) << i;
    EXPECT_TRUE(g.items[i].pixels.empty());
  }
}

TEST(Grounding, PicturesAreCountedWithoutVideos) {
  const std::vector<GroundedVisual> mixed = {{.width = 10, .height = 10, .is_video = true}, {.width = 20, .height = 20}, {.width = 30, .height = 30, .is_video = true}};
  EXPECT_EQ(parse_grounding(R"({"image": 1, "point_2d": [0, 0]})", mixed).items[0].visual, 1);
  EXPECT_EQ(parse_grounding(R"({"point_2d": [0, 0]})", mixed).items[0].visual, 1);
  const std::vector<GroundedVisual> videos = {mixed[0], mixed[2]};
  EXPECT_EQ(parse_grounding(R"({"point_2d": [0, 0]})", videos).items[0].visual, 1);
  const Grounding none = parse_grounding(R"({"point_2d": [0, 0]})", {});
  EXPECT_EQ(none.items[0].problems, (std::vector<Problem>{Problem::kNoSuchImage}));
}

TEST(Grounding, Markers) {
  const std::string answer =
      "The <|object_ref_start|>cat<|object_ref_end|><|box_start|>(100, 200),(300,400)<|box_end|> and "
      "<|box_start|>(0,0),(10,10)<|box_end|> and <|box_start|>(1,2)<|box_end|> <|box_start|>(5,";
  const Grounding g = parse_grounding(answer, kOne);
  ASSERT_EQ(g.items.size(), 3u);
  EXPECT_EQ(g.items[0].label, "cat");
  EXPECT_EQ(g.items[0].pixels, (std::vector<double>{200, 100, 600, 200}));
  EXPECT_EQ(answer.substr(g.items[0].begin, 20), "<|object_ref_start|>");
  EXPECT_EQ(g.items[1].label, "");
  EXPECT_TRUE(g.items[2].has(Problem::kMalformed));
}

TEST(Grounding, OrdinaryTextHasNone) {
  for (const char* text : {"", "No boxes here.", "(1,2),(3,4)", "{\"a\": 1} [1,2,3,4]", "{{{{[[[[\"\"\"", "bbox_2d: [1,2,3,4]", "{'bbox_2d': [1,2,3,4]}"}) {
    const Grounding g = parse_grounding(text, kOne);
    EXPECT_TRUE(g.items.empty()) << text;
    EXPECT_EQ(g.unread, 0) << text;
  }
  EXPECT_EQ(parse_grounding("{\"bbox_2d\": [1,2,3,4], }", kOne).unread, 1);  // broken JSON is counted
  EXPECT_EQ(parse_grounding("{\"bbox_2d\": [1,2,3,4], \"label\": \"\xff\"}", kOne).unread, 1);
}

TEST(Grounding, Json) {
  const Json j = parse_grounding(R"({"bbox_2d": [900, 0, 100, 1000], "label": "x"} {"point_2d": []})", kOne).to_json();
  EXPECT_EQ(j["items"][0].dump(),
            R"({"kind":"box","label":"x","relative":[900.0,0.0,100.0,1000.0],"pixels":[200.0,0.0,1800.0,500.0],"image":0,"problems":["swapped"]})");
  EXPECT_EQ(j["items"][1].dump(), R"({"kind":"point","label":"","relative":null,"pixels":null,"image":0,"problems":["malformed"]})");
  EXPECT_EQ(j["unread"], 0);
}

TEST(Grounding, AnyTextIsTaken) {
  const std::string seed =
      "[{\"bbox_2d\": [1, 2, 3, 4], \"label\": \"a\"}, {\"point_2d\": [5e1, -6]}] <|object_ref_start|>q<|object_ref_end|><|box_start|>(1,2),(3,4)<|box_end|>";
  std::mt19937 rng(7);
  for (int round = 0; round < 3000; ++round) {
    std::string text = seed;
    for (int k = 0; k < 4; ++k) {
      const size_t at = rng() % text.size();
      switch (rng() % 3) {
        case 0:
          text[at] = static_cast<char>(rng());
          break;
        case 1:
          text.erase(at, rng() % 8);
          break;
        default:
          text.insert(at, text.substr(rng() % text.size(), rng() % 12));
      }
      if (text.empty()) text = "{";
    }
    for (const GroundedItem& item : parse_grounding(text, kTwo).items) {
      ASSERT_LE(item.end, text.size());
      ASSERT_LT(item.begin, item.end);
      if (item.pixels.empty()) continue;
      const GroundedVisual& v = kTwo[static_cast<size_t>(item.visual)];
      for (size_t i = 0; i < item.pixels.size(); ++i) {
        ASSERT_GE(item.pixels[i], 0);
        ASSERT_LE(item.pixels[i], i % 2 == 0 ? v.width : v.height);
      }
      if (item.kind == Kind::kBox) {
        ASSERT_TRUE(item.pixels[0] <= item.pixels[2] && item.pixels[1] <= item.pixels[3]);
      }
    }
  }
}

TEST(Grounding, LongTextsTakeLinearTime) {
  // Would take minutes if every bracket were scanned to the end.
  std::string text;
  for (int i = 0; i < 20000; ++i) text += "[{\"a\":[";
  EXPECT_TRUE(parse_grounding(text, kOne).items.empty());
  std::string list = "[";
  for (int i = 0; i < 20000; ++i) list += "{\"bbox_2d\": [1, 2, 3, 4]}, ";
  EXPECT_EQ(parse_grounding(list, kOne).items.size(), 20000u);
}

}  // namespace
}  // namespace qvl::generate
