#include "qvl/text/prompt.h"

#include <gtest/gtest.h>

#include "qvl/base/error.h"
#include "qvl/text/synthetic_tokenizer.h"

namespace qvl::text {
namespace {

using Kind = Segment::Kind;

// " <" is a merge: a stamp may join the blank that a user typed before it.
Tokenizer small() {
  return Tokenizer::from_json(testing_support::tokenizer_json({{" ", "<"}, {"a", "b"}}).dump(), "", "test");
}

template <typename Fn>
Error error_of(Fn fn) {
  try {
    fn();
  } catch (const Error& e) {
    return e;
  }
  ADD_FAILURE() << "no error was thrown";
  return Error(ErrorCode::kIo, "");
}

TEST(Prompt, ExpandsImages) {
  const Tokenizer t = small();
  const std::vector<Segment> segments = {{Kind::kTemplate, "<|im_start|>a"},
                                         {Kind::kText, "b"},
                                         {Kind::kImage, ""},
                                         {Kind::kText, "x"},
                                         {Kind::kImage, ""}};
  const std::vector<int64_t> counts = {3, 1};
  const EncodedPrompt p = encode_prompt(t, segments, counts);
  const int32_t start = t.require_token("<|vision_start|>"), end = t.require_token("<|vision_end|>"),
                pad = t.require_token("<|image_pad|>");
  EXPECT_EQ(p.ids, (std::vector<int32_t>{t.require_token("<|im_start|>"), t.require_token("ab"), start, pad,
                                         pad, pad, end, 'x', start, pad, end}));
  ASSERT_EQ(p.spans.size(), 2u);
  EXPECT_EQ(p.spans[0].begin, 3);
  EXPECT_EQ(p.spans[0].count, 3);
  EXPECT_EQ(p.spans[1].index, 1);
  EXPECT_EQ(p.spans[1].begin, 9);
  for (size_t i = 0; i < p.ids.size(); ++i) EXPECT_EQ(p.kinds[i] == TokenKind::kImage, p.ids[i] == pad) << i;
}

TEST(Prompt, ExpandsVideosAsText) {
  const Tokenizer t = small();
  const std::vector<Segment> segments = {{Kind::kText, "x: "}, {Kind::kVideo, ""}, {Kind::kText, "y"}};
  const std::vector<VideoPlacement> videos = {{2, {0.25, 1.5}}};
  const EncodedPrompt p = encode_prompt(t, segments, {}, videos);
  EXPECT_EQ(p.ids, t.encode("x: <0.2 seconds><|vision_start|><|video_pad|><|video_pad|><|vision_end|><1.5 "
                            "seconds><|vision_start|>"
                            "<|video_pad|><|video_pad|><|vision_end|>y"));
  EXPECT_EQ(p.ids[2], t.require_token(" <"));
  ASSERT_EQ(p.spans.size(), 2u);
  EXPECT_EQ(p.spans[1].kind, TokenKind::kVideo);
  EXPECT_EQ(p.spans[1].group, 1);
  EXPECT_EQ(p.spans[1].index, 0);
  EXPECT_EQ(p.kinds[p.spans[1].begin], TokenKind::kVideo);
  EXPECT_EQ(p.kinds[p.spans[1].begin + 2], TokenKind::kText);
}

TEST(Prompt, UserTextCannotPlaceAPad) {
  const Tokenizer t = small();
  std::string evil;
  for (const auto& [token, special] : testing_support::added_tokens()) evil += token;
  const std::vector<Segment> segments = {
      {Kind::kTemplate, "<|im_start|>user\n"}, {Kind::kText, evil}, {Kind::kTemplate, "<|im_end|>\n"}};
  const EncodedPrompt p = encode_prompt(t, segments, {});
  int added = 0;
  for (const int32_t id : p.ids) added += t.is_added(id);
  EXPECT_EQ(added, 2);
  EXPECT_EQ(t.decode(p.ids, false), "<|im_start|>user\n" + evil + "<|im_end|>\n");
}

TEST(Prompt, CountsMustAgree) {
  const Tokenizer t = small();
  const std::vector<Segment> segments = {{Kind::kImage, ""}, {Kind::kVideo, ""}};
  const std::vector<int64_t> one = {4}, two = {4, 4}, zero = {0};
  const std::vector<VideoPlacement> video = {{2, {0.5}}};
  EXPECT_EQ(encode_prompt(t, segments, one, video).spans.size(), 2u);
  EXPECT_EQ(error_of([&] { encode_prompt(t, segments, two, video); }).code(), ErrorCode::kMismatch);
  EXPECT_EQ(error_of([&] { encode_prompt(t, segments, {}, video); }).code(), ErrorCode::kMismatch);
  EXPECT_EQ(error_of([&] { encode_prompt(t, segments, one, {}); }).code(), ErrorCode::kMismatch);
  EXPECT_EQ(error_of([&] { encode_prompt(t, segments, zero, video); }).code(), ErrorCode::kInvalidArgument);
  const std::vector<VideoPlacement> no_stamps = {{2, {}}}, no_tokens = {{0, {0.5}}};
  EXPECT_EQ(error_of([&] { encode_prompt(t, segments, one, no_stamps); }).code(),
            ErrorCode::kInvalidArgument);
  EXPECT_EQ(error_of([&] { encode_prompt(t, segments, one, no_tokens); }).code(),
            ErrorCode::kInvalidArgument);
}

TEST(Prompt, VocabularyWithoutVisionTokensIsAMismatch) {
  Json json = testing_support::tokenizer_json({});
  json["added_tokens"] = Json::array();
  const Tokenizer t = Tokenizer::from_json(json.dump(), "", "test");
  const std::vector<int64_t> one = {4};
  const std::vector<Segment> segments = {{Kind::kImage, ""}};
  EXPECT_EQ(error_of([&] { encode_prompt(t, segments, one); }).code(), ErrorCode::kMismatch);
}

}  // namespace
}  // namespace qvl::text
