// Whole prompts against the reference: rendered conversations and expanded placeholders give the reference's
// ids.
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <string>

#include "parity_data.h"
#include "qvl/text/prompt.h"
#include "qvl/text/unicode.h"

namespace qvl::text {
namespace {

using parity::golden;
using parity::vocabulary_dir;
using Ids = std::vector<int32_t>;

const Tokenizer& published() {
  static const Tokenizer t = Tokenizer::load(vocabulary_dir());
  return t;
}

ChatOptions options_of(const Json& options, TemplateVariant variant) {
  ChatOptions o;
  o.variant = variant;
  o.add_generation_prompt = options.value("gen", true);
  o.add_vision_id = options.value("vision_id", false);
  if (options.contains("tools")) o.tools = options["tools"];
  return o;
}

bool mentions_added_token(const std::string& text) {
  const Ids ids = published().encode(text);
  return std::any_of(ids.begin(), ids.end(), [](int32_t id) { return published().is_added(id); });
}

// Conversations with one pad per image. Videos are expanded with stamps, so they are compared in another
// test.
void compare_fixture(const char* name, TemplateVariant variant, int at_least) {
  int compared = 0;
  const Json cases = golden(name);
  for (const auto& [key, c] : cases.items()) {
    const auto segments = render_chat(messages_from_json(c["messages"]), options_of(c["options"], variant));
    const Ids reference = c["ids"].get<Ids>();
    EXPECT_EQ(published().encode(render_string(segments)), reference) << key;
    const auto count = [&](Segment::Kind kind) {
      return std::count_if(segments.begin(), segments.end(),
                           [&](const Segment& s) { return s.kind == kind; });
    };
    if (count(Segment::Kind::kVideo) > 0) continue;
    const std::vector<int64_t> ones(count(Segment::Kind::kImage), 1);
    const EncodedPrompt p = encode_prompt(published(), segments, ones);
    const bool typed_a_token = std::any_of(segments.begin(), segments.end(), [](const Segment& s) {
      return s.kind == Segment::Kind::kText && mentions_added_token(s.text);
    });
    if (typed_a_token) {
      // The reference would take the typed tag for the token; the text is the same all the same.
      EXPECT_NE(p.ids, reference) << key;
      EXPECT_EQ(published().decode(p.ids, false), c["text"].get<std::string>()) << key;
    } else {
      EXPECT_EQ(p.ids, reference) << key;
      ++compared;
    }
  }
  EXPECT_GE(compared, at_least);
}

TEST(ChatParity, InstructConversations) {
  QVL_NEED_FETCHED(vocabulary_dir() / "tokenizer.json");
  compare_fixture("chat.json", TemplateVariant::kInstruct, 10);
  compare_fixture("chat_instruct.json", TemplateVariant::kInstruct, 22);
}

TEST(ChatParity, ThinkingConversations) {
  QVL_NEED_FETCHED(vocabulary_dir() / "tokenizer.json");
  compare_fixture("chat_thinking.json", TemplateVariant::kThinking, 28);
}

// Prompts as the reference processor expands them, images and videos.
TEST(ChatParity, GoldenProcessor) {
  QVL_NEED_FETCHED(vocabulary_dir() / "tokenizer.json");
  const Json cases = golden("processor.json");
  ASSERT_EQ(cases.size(), 2u);
  const auto expect = [&](const char* name, const std::vector<Message>& messages,
                          const std::vector<int64_t>& images, const std::vector<VideoPlacement>& videos) {
    const Json& c = cases[name];
    const auto segments = render_chat(messages, {});
    EXPECT_EQ(render_string(segments), c["prompt"].get<std::string>());
    const EncodedPrompt p = encode_prompt(published(), segments, images, videos);
    EXPECT_EQ(p.ids, c["ids"].get<Ids>());
    std::vector<int> kinds;
    for (const TokenKind k : p.kinds) kinds.push_back(static_cast<int>(k));
    EXPECT_EQ(kinds, c["types"].get<std::vector<int>>());
  };
  using P = ContentPart;
  expect("two_images",
         {{Role::kUser,
           {P::make_text("A: "), P::image(), P::make_text(" B: "), P::image(), P::make_text(" Differences?")},
           {},
           {}}},
         {6, 4}, {});
  expect("video", {{Role::kUser, {P::video(), P::make_text("What happens?")}, {}, {}}}, {},
         {{6, {0.3, 1.5, 2.7}}});
}

// encode_prompt joins foreign and template text before it encodes, so for text without control tokens it must
// equal the reference's way: expand in the string, encode the whole.
TEST(ChatParity, AnyTextAroundPicturesEqualsEncodingTheWholeString) {
  const auto path = vocabulary_dir() / "strings.jsonl";
  QVL_NEED_FETCHED(path);
  std::vector<std::string> texts;
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  while (std::getline(file, line)) {
    const Json row = parse_json(line, path.string());
    if (!row.contains("hex")) continue;
    std::string text;
    const std::string hex = row["hex"];
    for (size_t i = 0; i + 1 < hex.size(); i += 2)
      text.push_back(static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16)));
    if (text.size() < 300 && !mentions_added_token(text)) texts.push_back(std::move(text));
  }
  ASSERT_GT(texts.size(), 10000u);
  using P = ContentPart;
  int merged = 0;
  for (size_t i = 0; i + 4 < texts.size(); i += 4) {
    ChatOptions options;
    options.add_vision_id = i % 8 == 0;
    options.variant = i % 3 == 0 ? TemplateVariant::kThinking : TemplateVariant::kInstruct;
    const auto segments = render_chat(
        {{Role::kSystem, {P::make_text(texts[i])}, {}, {}},
         {Role::kUser,
          {P::make_text(texts[i + 1]), P::image(), P::make_text(texts[i + 2]), P::video()},
          {},
          {}},
         {Role::kAssistant, {P::make_text(texts[i + 3])}, {{"f", Json{{"k", texts[i].size()}}}}, {}},
         {Role::kUser, {P::make_text(texts[i + 3]), P::make_text(texts[i])}, {}, {}}},
        options);
    const std::vector<int64_t> images = {3};
    const std::vector<VideoPlacement> videos = {{2, {0.25, 12.75}}};
    std::string whole;
    Ids one_by_one;
    for (const Segment& s : segments) {
      std::string text;
      if (s.kind == Segment::Kind::kImage) {
        text = "<|vision_start|><|image_pad|><|image_pad|><|image_pad|><|vision_end|>";
      } else if (s.kind == Segment::Kind::kVideo) {
        for (const char* stamp : {"<0.2 seconds>", "<12.8 seconds>"})
          text += std::string(stamp) + "<|vision_start|><|video_pad|><|video_pad|><|vision_end|>";
      } else {
        append_sanitized(s.text, text);  // each string is repaired by itself
      }
      whole += text;
      const Ids alone = published().encode(text);
      one_by_one.insert(one_by_one.end(), alone.begin(), alone.end());
    }
    const EncodedPrompt p = encode_prompt(published(), segments, images, videos);
    ASSERT_EQ(p.ids, published().encode(whole)) << whole;
    merged += p.ids != one_by_one;
  }
  // The property has teeth: often enough, encoding the segments one by one would give other ids.
  EXPECT_GT(merged, 100);
}

// The built-in templates stand for the published ones; the vocabulary's own (text-only) template is not one
// of them.
TEST(ChatParity, TextOnlyTemplateOfTheVocabularyIsNotTakenForQwen3Vl) {
  QVL_NEED_FETCHED(vocabulary_dir() / "tokenizer_config.json");
  EXPECT_FALSE(detect_chat_template(vocabulary_dir()).recognised);
}

}  // namespace
}  // namespace qvl::text
