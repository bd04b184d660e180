// Whatever a model prefers: what it may say under a JSON schema parses and satisfies the schema.
#include <gtest/gtest.h>

#include <thread>

#include "qvl/base/error.h"
#include "qvl/grammar/random_walk.h"
#include "qvl/grammar/schema_validator.h"

namespace qvl::grammar {
namespace {

using testing_support::RandomModel;
using testing_support::SchemaValidator;
using testing_support::small_vocabulary;
using testing_support::Vocabulary;
using testing_support::Walk;

const std::vector<std::pair<std::string, std::string>>& schemas() {
  static const std::vector<std::pair<std::string, std::string>> s = {
      {"object", R"({"type":"object","properties":{"name":{"type":"string"},"age":{"type":"integer"}},
        "required":["name","age"],"additionalProperties":false})"},
      {"optional members", R"({"type":"object","properties":{"a":{"type":"boolean"},"b":{"type":"null"},
        "c":{"type":"number"}},"additionalProperties":false})"},
      {"additional members",
       R"({"type":"object","properties":{"id":{"type":"integer","minimum":0}},"required":["id"],
        "additionalProperties":{"type":"string","maxLength":5}})"},
      {"array",
       R"({"type":"array","items":{"type":"integer","minimum":-5,"maximum":120},"minItems":2,"maxItems":6})"},
      {"tuple",
       R"({"type":"array","prefixItems":[{"type":"string"},{"type":"number"}],"items":{"type":"boolean"},
        "minItems":2,"maxItems":4})"},
      {"enum", R"({"enum":["red","green","blue \"quoted\"",3,null,{"a":[1,2]},"日本"]})"},
      {"const",
       R"({"type":"object","properties":{"kind":{"const":"box"},"n":{"const":7}},"required":["kind","n"],
        "additionalProperties":false})"},
      {"anyOf",
       R"({"anyOf":[{"type":"string","maxLength":8},{"type":"array","items":{"type":"null"},"maxItems":3},
        {"type":"object","properties":{"x":{"type":"integer"}},"required":["x"],"additionalProperties":false}]})"},
      {"oneOf", R"({"oneOf":[{"type":"integer"},{"type":"string"},{"type":"null"}]})"},
      {"oneOf of references", R"({"oneOf":[{"$ref":"#/$defs/cat"},{"$ref":"#/$defs/dog"}],"$defs":{
        "cat":{"type":"object","properties":{"kind":{"const":"cat"},"lives":{"type":"integer","minimum":1,"maximum":9}},
               "required":["kind","lives"],"additionalProperties":false},
        "dog":{"type":"object","properties":{"kind":{"const":"dog"},"good":{"type":"boolean"}},
               "required":["kind","good"],"additionalProperties":false}}})"},
      {"references",
       R"({"type":"object","properties":{"from":{"$ref":"#/$defs/point"},"to":{"$ref":"#/$defs/point"}},
        "required":["from","to"],"additionalProperties":false,"$defs":{"point":{"type":"array",
        "items":{"type":"integer","minimum":0,"maximum":1000},"minItems":2,"maxItems":2}}})"},
      {"recursion",
       R"({"$ref":"#/$defs/tree","$defs":{"tree":{"type":"object","properties":{"label":{"type":"string",
        "maxLength":4},"children":{"type":"array","items":{"$ref":"#/$defs/tree"},"maxItems":2}},
        "required":["label"],"additionalProperties":false}}})"},
      {"nested",
       R"({"type":"object","properties":{"boxes":{"type":"array","items":{"type":"object","properties":{
        "bbox_2d":{"type":"array","items":{"type":"integer","minimum":0,"maximum":1000},"minItems":4,"maxItems":4},
        "label":{"type":"string","minLength":1,"maxLength":20}},"required":["bbox_2d","label"],
        "additionalProperties":false},"maxItems":3}},"required":["boxes"],"additionalProperties":false})"},
      {"formats", R"({"type":"object","properties":{"on":{"type":"string","format":"date"},
        "at":{"type":"string","format":"date-time"},"id":{"type":"string","format":"uuid"},
        "host":{"type":"string","format":"ipv4"}},"required":["on","at","id","host"],"additionalProperties":false})"},
      {"numbers", R"({"type":"object","properties":{"p":{"type":"number","minimum":0,"maximum":1},
        "q":{"type":"number","exclusiveMinimum":-2.5,"exclusiveMaximum":17.25},"m":{"type":"integer","multipleOf":7,
        "minimum":0,"maximum":700}},"required":["p","q","m"],"additionalProperties":false})"},
      {"pattern",
       R"({"type":"object","properties":{"plate":{"type":"string","pattern":"^[A-Z]{1,3}-[0-9]{2,4}$"},
        "hex":{"type":"string","pattern":"^#[0-9a-f]{6}$"}},"required":["plate","hex"],"additionalProperties":false})"},
      {"pattern of names", R"({"type":"object","patternProperties":{"^x_[a-z]{1,4}$":{"type":"integer"}},
        "additionalProperties":false})"},
      {"unicode names",
       R"({"type":"object","properties":{"naïve":{"type":"string","maxLength":3},"名前":{"type":"string",
        "maxLength":4},"🙂":{"type":"boolean"},"a\"b\\c":{"type":"null"},"e\u0301":{"const":"e\u0301 u\u0308"}},
        "required":["naïve","名前","🙂","a\"b\\c","e\u0301"],"additionalProperties":false})"},
      {"allOf",
       R"({"allOf":[{"type":"object","properties":{"a":{"type":"integer","minimum":3}},"required":["a"]},
        {"type":"object","properties":{"a":{"type":"integer","maximum":5},"b":{"type":"string","maxLength":2}},
        "required":["b"]}],"type":"object","additionalProperties":true})"},
      {"types", R"({"type":["string","integer","null"],"maxLength":6})"},
  };
  return s;
}

// Walks every schema `seeds` times and returns how many answers were valid.
int valid_walks(const Vocabulary& v, int seeds, const JsonOptions& options) {
  int valid = 0;
  for (const auto& [name, text] : schemas()) {
    SCOPED_TRACE(name);
    const Json schema = Json::parse(text);
    const Grammar start = v.engine.json_schema(schema, options);
    for (int seed = 0; seed < seeds; ++seed) {
      Grammar grammar = start.clone();
      const Walk walk = RandomModel(static_cast<uint64_t>(seed)).walk(v, grammar);
      EXPECT_TRUE(walk.ended) << walk.text;
      const Json value = Json::parse(walk.text, nullptr, false);
      EXPECT_FALSE(value.is_discarded()) << walk.text;
      const std::string wrong = value.is_discarded() ? "not JSON" : SchemaValidator(schema).check(value);
      EXPECT_EQ(wrong, "") << walk.text;
      valid += walk.ended && wrong.empty();
      for (const int32_t id : walk.ids) EXPECT_FALSE(v.tokenizer.is_added(id)) << v.tokenizer.token_bytes(id);
    }
  }
  return valid;
}

TEST(JsonWalk, TwoHundredOfTwoHundredAnswersAreValid) {
  QVL_NEED_GRAMMAR_ENGINE();
  ASSERT_EQ(schemas().size(), 20u);
  EXPECT_EQ(valid_walks(small_vocabulary(), 10, {}), 200);
}

TEST(JsonWalk, TwoHundredOfTwoHundredAnswersAreValidInThePublishedVocabulary) {
  QVL_NEED_PUBLISHED_VOCABULARY();
  EXPECT_EQ(valid_walks(*testing_support::published_vocabulary(), 10, {}), 200);
}

TEST(JsonWalk, OtherBlanksAreAsValid) {
  QVL_NEED_GRAMMAR_ENGINE();
  EXPECT_EQ(valid_walks(small_vocabulary(), 2, {.whitespace = Whitespace::kSpaced}), 40);
  EXPECT_EQ(valid_walks(small_vocabulary(), 2, {.whitespace = Whitespace::kCompact}), 40);
}

TEST(JsonWalk, AnObjectOfAnything) {
  QVL_NEED_GRAMMAR_ENGINE();
  const Vocabulary& v = small_vocabulary();
  const Grammar start = v.engine.json_object();
  for (uint64_t seed = 0; seed < 20; ++seed) {
    Grammar grammar = start.clone();
    const Walk walk = RandomModel(seed).walk(v, grammar);
    EXPECT_TRUE(walk.ended);
    EXPECT_TRUE(Json::parse(walk.text).is_object()) << walk.text;
  }
}

// A model that only wants blanks runs out of them, wherever it is.
TEST(JsonWalk, BlanksAreBounded) {
  QVL_NEED_GRAMMAR_ENGINE();
  const Vocabulary& v = small_vocabulary();
  Grammar grammar = v.engine.json_schema(Json::parse(schemas()[0].second));
  size_t blanks = 0, longest = 0;
  std::string text;
  for (size_t n = 0; n < 2000 && !grammar.finished(); ++n) {
    const std::vector<int32_t> allowed = testing_support::allowed_ids(v, grammar);
    int32_t chosen = allowed.front();
    bool blank = false;
    for (const int32_t id : allowed) {
      const std::string_view bytes = v.tokenizer.token_bytes(id);
      if (bytes.find_first_not_of(" \t\r\n") != std::string_view::npos) continue;
      chosen = id;
      blank = true;
      break;
    }
    // Inside a string blanks are text, and a model may have as many as it likes.
    if (blank && text.size() > 1 && std::count(text.begin(), text.end(), '"') % 2 == 1) {
      chosen = v.id("\"");
      blank = false;
    }
    blanks = blank ? blanks + v.tokenizer.token_bytes(chosen).size() : 0;
    longest = std::max(longest, blanks);
    text += v.tokenizer.token_bytes(chosen);
    grammar.accept(chosen);
  }
  EXPECT_TRUE(grammar.finished()) << text;
  EXPECT_GT(longest, 0u);
  EXPECT_LE(longest, 34u) << text;  // a line break of two bytes, 32 of indentation
}

// Names and constants that are not in NFC survive, though the tokenizer would normalise them.
TEST(JsonWalk, ForcedTextKeepsItsBytes) {
  QVL_NEED_PUBLISHED_VOCABULARY();
  const Vocabulary& v = *testing_support::published_vocabulary();
  const std::string decomposed = "e\xCC\x81 caf\xC3\xA9 \xE3\x81\x8B\xE3\x82\x99 <tool_call> <|im_end|>";
  Grammar grammar = v.engine.json_schema({{"const", decomposed}});
  const Walk walk = RandomModel(1).walk(v, grammar);
  EXPECT_TRUE(walk.ended);
  EXPECT_EQ(Json::parse(walk.text), Json(decomposed));
  for (const int32_t id : walk.ids) EXPECT_FALSE(v.tokenizer.is_added(id));
}

TEST(JsonWalk, StringsAreCharactersNotEscapes) {
  QVL_NEED_PUBLISHED_VOCABULARY();
  const Vocabulary& v = *testing_support::published_vocabulary();
  const Grammar start = v.engine.json_schema({{"type", "string"}});
  for (const std::string_view text : {"日本語", "ü", "🙂 ok"}) {
    Grammar grammar = start.clone();
    for (const int32_t id : v.tokenizer.encode_text("\"" + std::string(text) + "\"")) grammar.accept(id);
    EXPECT_TRUE(grammar.may_end()) << text;
  }
  Grammar escaped = start.clone();
  EXPECT_THROW(for (const int32_t id : v.tokenizer.encode_text("\"\\u65e5\"")) escaped.accept(id), Error);
}

TEST(JsonWalk, GrammarsOfSeveralThreadsDoNotMeet) {
  QVL_NEED_GRAMMAR_ENGINE();
  const Vocabulary& v = small_vocabulary();
  std::vector<std::string> alone, together(schemas().size());
  const auto answer = [&](size_t i) {
    Grammar grammar = v.engine.json_schema(Json::parse(schemas()[i].second));
    return RandomModel(i).walk(v, grammar).text;
  };
  for (size_t i = 0; i < schemas().size(); ++i) alone.push_back(answer(i));
  std::vector<std::thread> threads;
  for (size_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (size_t i = t; i < schemas().size(); i += 4) together[i] = answer(i);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(together, alone);
}

}  // namespace
}  // namespace qvl::grammar
