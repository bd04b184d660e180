// Schemas and grammars that mean harm get an error, soon; none hangs, exhausts memory or the stack.
#include <gtest/gtest.h>

#include <ctime>

#include "qvl/base/error.h"
#include "qvl/grammar/random_walk.h"
#include "qvl/grammar/schema.h"

namespace qvl::grammar {
namespace {

using testing_support::RandomModel;
using testing_support::small_vocabulary;

// Processor time that one grammar may take, compiled and walked a little; several times what the worst of
// these takes.
constexpr double kSoon_s = 8;

double processor_s() {
  timespec t;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
}

struct Outcome {
  bool refused = false;
  ErrorCode code = ErrorCode::kIo;
  std::string message;
};

// Compiles and, where that succeeds, generates a little.
template <typename Compile>
Outcome outcome(const Compile& compile, size_t tokens = 50) {
  const double begin_s = processor_s();
  Outcome o;
  try {
    Grammar grammar = compile();
    for (uint64_t seed = 0; seed < 2; ++seed) {
      Grammar walked = grammar.clone();
      RandomModel(seed).walk(small_vocabulary(), walked, tokens);
    }
  } catch (const Error& e) {
    o = {true, e.code(), e.what()};
  }
  const double took_s = processor_s() - begin_s;
  EXPECT_LT(took_s, kSoon_s) << o.message;
  EXPECT_LT(o.message.size(), 1000u);
  EXPECT_EQ(o.message.find('\n'), std::string::npos) << o.message;
  return o;
}

Outcome of_schema(const Json& schema) {
  return outcome([&] { return small_vocabulary().engine.json_schema(schema); });
}
Outcome of_schema(const char* text) {
  return of_schema(Json::parse(text));
}

void expect_error(const Outcome& o, ErrorCode code, std::string_view part = "") {
  EXPECT_TRUE(o.refused);
  EXPECT_EQ(error_code_name(o.code), error_code_name(code)) << o.message;
  EXPECT_NE(o.message.find(part), std::string::npos) << o.message;
}

TEST(Hostile, TooLargeIsSaidBeforeAnythingElse) {
  QVL_NEED_GRAMMAR_ENGINE();
  Json deep = {{"type", "integer"}};
  for (int level = 0; level < 20'000; ++level) {
    Json outer = Json::object();
    outer["items"] = std::move(deep);
    deep = std::move(outer);
  }
  expect_error(of_schema(deep), ErrorCode::kLimit, "nesting");

  Json wide = {{"type", "object"}, {"properties", Json::object()}};
  wide["properties"]["a"] = {{"type", "string"}, {"description", std::string(300'000, 'x')}};
  expect_error(of_schema(wide), ErrorCode::kLimit, "size");

  Json options = {{"enum", Json::array()}};
  for (int i = 0; i < 10'000; ++i) options["enum"].push_back("option " + std::to_string(i));
  expect_error(of_schema(options), ErrorCode::kLimit, "alternatives");

  Json patterns = {{"anyOf", Json::array()}};
  for (int i = 0; i < 300; ++i) patterns["anyOf"].push_back({{"type", "string"}, {"pattern", "^a+b+$"}});
  expect_error(of_schema(patterns), ErrorCode::kLimit, "patterns");

  for (const char* key :
       {"minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"}) {
    expect_error(of_schema({{key, 1e12}}), ErrorCode::kLimit, key);
    expect_error(of_schema({{key, uint64_t{18446744073709551615u}}}), ErrorCode::kLimit, key);
  }
}

TEST(Hostile, LargestSchemasThatPassTheLimitsAreFinishedSoon) {
  QVL_NEED_GRAMMAR_ENGINE();
  Json nested = {{"type", "integer"}};
  for (int level = 0; level < kMaxSchemaDepth - 4; ++level) {
    Json outer = {{"type", "array"}, {"maxItems", 3}};
    outer["items"] = std::move(nested);
    nested = std::move(outer);
  }
  EXPECT_FALSE(of_schema(nested).refused);

  Json options = {{"enum", Json::array()}};
  for (int i = 0; i < 5000; ++i)
    options["enum"].push_back("a long option, number " + std::to_string(i * 7919));
  EXPECT_FALSE(of_schema(options).refused);

  Json wide = {{"type", "object"}, {"properties", Json::object()}, {"additionalProperties", false}};
  for (int i = 0; i < 3000; ++i) wide["properties"]["property_" + std::to_string(i)] = {{"type", "string"}};
  of_schema(wide);

  Json chain = {{"$ref", "#/$defs/d0"}, {"$defs", Json::object()}};
  for (int i = 0; i < 7000; ++i) {
    chain["$defs"]["d" + std::to_string(i)] = {{"$ref", "#/$defs/d" + std::to_string(i + 1)}};
  }
  chain["$defs"]["d7000"] = {{"type", "null"}};
  of_schema(chain);
  for (int i = 0; i < 4000; ++i) {
    chain["$defs"]["d" + std::to_string(i)] = {
        {"items", {{"items", {{"$ref", "#/$defs/d" + std::to_string(i + 1)}}}}}};
  }
  of_schema(chain);

  Json patterns = {{"anyOf", Json::array()}};
  for (int i = 0; i < 190; ++i) {
    patterns["anyOf"].push_back(
        {{"type", "string"},
         {"minLength", 6 + i},
         {"pattern", R"(^\w+([\.-]?\w+)*@\w+([\.-]?\w+)*(\.\w{2,})+)" + std::to_string(i) + "$"}});
  }
  of_schema(patterns);

  Json names = {{"type", "object"}, {"patternProperties", Json::object()}};
  for (int i = 0; i < 190; ++i)
    names["patternProperties"]["^p" + std::to_string(i) + "_.*$"] = {{"type", "string"}};
  of_schema(names);

  EXPECT_FALSE(
      of_schema({{"type", "array"}, {"items", {{"type", "null"}}}, {"maxItems", 1'000'000}}).refused);
  EXPECT_FALSE(of_schema({{"type", "string"}, {"minLength", 1000}, {"maxLength", 1'000'000}}).refused);
}

TEST(Hostile, CombinationsThatMultiply) {
  QVL_NEED_GRAMMAR_ENGINE();
  Json all = {{"allOf", Json::array()}};
  for (int i = 0; i < 12; ++i) {
    Json any = {{"anyOf", Json::array()}};
    for (int k = 0; k < 12; ++k) {
      any["anyOf"].push_back(
          {{"type", "object"}, {"properties", {{"p" + std::to_string(12 * i + k), {{"const", k}}}}}});
    }
    all["allOf"].push_back(any);
  }
  expect_error(of_schema(all), ErrorCode::kLimit);

  Json doubling = {{"oneOf", Json::array({{{"$ref", "#/$defs/d0"}}, {{"type", "null"}}})},
                   {"$defs", Json::object()}};
  for (int i = 0; i < 40; ++i) {
    const Json next = {{"$ref", "#/$defs/d" + std::to_string(i + 1)}};
    doubling["$defs"]["d" + std::to_string(i)] = {{"oneOf", Json::array({next, next})}};
  }
  doubling["$defs"]["d40"] = {{"type", "integer"}};
  expect_error(of_schema(doubling), ErrorCode::kLimit);
}

// The engine counts remainders, as many as the multiple has units.
TEST(Hostile, Multiples) {
  QVL_NEED_GRAMMAR_ENGINE();
  expect_error(of_schema(R"({"type":"integer","multipleOf":1000003})"), ErrorCode::kLimit, "multipleOf");
  expect_error(of_schema(R"({"type":"number","multipleOf":3.14159265358979})"), ErrorCode::kLimit,
               "multipleOf");
  expect_error(of_schema(R"({"allOf":[{"multipleOf":251},{"multipleOf":241}]})"), ErrorCode::kLimit,
               "multipleOf");
  expect_error(of_schema(R"({"allOf":[{"multipleOf":0.003},{"multipleOf":700}]})"), ErrorCode::kLimit,
               "multipleOf");
  expect_error(of_schema(R"({"type":"integer","multipleOf":1e300})"), ErrorCode::kLimit);
  of_schema(R"({"type":"number","multipleOf":1e-30})");
  for (const char* fine :
       {R"({"type":"integer","multipleOf":49999})", R"({"type":"number","multipleOf":0.01})",
        R"({"type":"integer","multipleOf":50.0})", R"({"type":"number","multipleOf":1e-05})",
        R"({"type":"object","properties":{"a":{"multipleOf":0.25},"b":{"multipleOf":15}}})"}) {
    EXPECT_FALSE(of_schema(fine).refused) << fine;
  }
}

TEST(Hostile, ReferencesThatGoNowhere) {
  QVL_NEED_GRAMMAR_ENGINE();
  EXPECT_TRUE(of_schema(R"({"$ref":"#"})").refused);
  EXPECT_TRUE(of_schema(R"({"$ref":"#/$defs/a","$defs":{"a":{"$ref":"#/$defs/b"},"b":{"$ref":"#/$defs/a"}}})")
                  .refused);
  EXPECT_TRUE(of_schema(R"({"oneOf":[{"$ref":"#"},{"$ref":"#"}]})").refused);
  expect_error(of_schema(R"({"$ref":"#/$defs/missing"})"), ErrorCode::kInvalidArgument, "missing");
  expect_error(of_schema(R"({"$ref":"https://example.com/schema.json"})"), ErrorCode::kUnsupported,
               "example.com");
  // Nothing finite satisfies it: an answer may begin but never ends by itself.
  of_schema(R"({"$ref":"#/$defs/a","$defs":{"a":{"type":"object","properties":{"a":{"$ref":"#/$defs/a"}},
    "required":["a"],"additionalProperties":false}}})");
}

TEST(Hostile, WrongSchemas) {
  QVL_NEED_GRAMMAR_ENGINE();
  for (const char* text : {"7", "\"object\"", "[]", "null"}) {
    expect_error(of_schema(text), ErrorCode::kInvalidArgument, "schema");
  }
  expect_error(of_schema("false"), ErrorCode::kInvalidArgument);
  EXPECT_FALSE(of_schema("true").refused);
  expect_error(of_schema(R"({"type":"strin"})"), ErrorCode::kInvalidArgument, "strin");
  expect_error(of_schema(R"({"type":7})"), ErrorCode::kInvalidArgument);
  expect_error(of_schema(R"({"type":"object","properties":[]})"), ErrorCode::kInvalidArgument, "properties");
  expect_error(of_schema(R"({"enum":[]})"), ErrorCode::kInvalidArgument);
  expect_error(of_schema(R"({"type":"integer","minimum":5,"maximum":4})"), ErrorCode::kInvalidArgument);
  expect_error(of_schema(R"({"type":"string","minLength":5,"maxLength":4})"), ErrorCode::kInvalidArgument);
  expect_error(of_schema(R"({"type":"string","minLength":-1})"), ErrorCode::kInvalidArgument, "minLength");
  expect_error(
      of_schema(
          R"({"type":"array","prefixItems":"日本語の長い文字列がここにあります。日本語の長い文字列がここにあります。"})"),
      ErrorCode::kInvalidArgument);
  expect_error(of_schema(Json{{"const", "\xFF\xFE"}}), ErrorCode::kInvalidArgument, "UTF-8");
  EXPECT_TRUE(of_schema(R"({"type":"number","multipleOf":0})").refused);
  // The engine's own options are ours to set.
  EXPECT_TRUE(of_schema(R"({"uniqueItems":true,"type":"array","x-guidance":{"lenient":true}})").refused);
}

TEST(Hostile, WhatCannotBeEnforcedIsNamed) {
  QVL_NEED_GRAMMAR_ENGINE();
  for (const char* keyword : {"uniqueItems", "not", "if", "contains", "dependentRequired", "propertyNames",
                              "unevaluatedProperties"}) {
    expect_error(of_schema({{"type", "array"}, {keyword, Json::object()}}), ErrorCode::kUnsupported, keyword);
  }
  expect_error(of_schema(R"({"type":"string","format":"telepathy"})"), ErrorCode::kUnsupported, "telepathy");
  expect_error(of_schema(R"({"oneOf":[{"type":"string"},{"type":"string","maxLength":3}]})"),
               ErrorCode::kUnsupported, "oneOf");
  const Json unique = {{"type", "array"}, {"uniqueItems", true}};
  const GrammarEngine& engine = small_vocabulary().engine;
  const Grammar lenient = engine.json_schema(unique, {.strict = false});
  EXPECT_NE(lenient.unenforced().find("uniqueItems"), std::string::npos) << lenient.unenforced();
  EXPECT_EQ(lenient.clone().unenforced(), lenient.unenforced());
  EXPECT_EQ(engine.json_schema({{"type", "array"}}, {.strict = false}).unenforced(), "");
  const std::vector<Tool> tools = {{.name = "f", .parameters = {{"type", "object"}, {"properties", {{"a", unique}}}}, .strict = false}};
  EXPECT_NE(engine.tool_calls(tools).unenforced().find("uniqueItems"), std::string::npos);
}

TEST(Hostile, RegularExpressions) {
  QVL_NEED_GRAMMAR_ENGINE();
  const auto of_regex = [](const std::string& pattern) {
    const Outcome bare = outcome([&] { return small_vocabulary().engine.regex(pattern); });
    const Outcome inside = of_schema({{"type", "string"}, {"pattern", pattern}});
    EXPECT_EQ(bare.refused && inside.refused, bare.refused || inside.refused)
        << bare.message << inside.message;
    return bare;
  };
  expect_error(of_regex("["), ErrorCode::kInvalidArgument);
  expect_error(of_regex("a(b"), ErrorCode::kInvalidArgument);
  EXPECT_TRUE(of_regex("(?=x)y").refused);
  EXPECT_TRUE(of_regex("(a)\\1").refused);
  of_regex("(.*a){30}");
  of_regex("((((a{1,50}){1,50}){1,50}){1,50}){1,50}");
  of_regex("(a|aa|aaa|aaaa)*b(.{0,200}c){0,200}");
  outcome([&] { return small_vocabulary().engine.regex(std::string(8000, '(') + std::string(8000, ')')); });
  outcome([&] { return small_vocabulary().engine.regex("a{4000000000}"); });
  expect_error(outcome([&] { return small_vocabulary().engine.regex(std::string(100'000, 'a')); }),
               ErrorCode::kLimit);
  expect_error(outcome([&] { return small_vocabulary().engine.regex(std::string("a\0b", 3)); }),
               ErrorCode::kInvalidArgument, "NUL");
}

TEST(Hostile, LarkGrammars) {
  QVL_NEED_GRAMMAR_ENGINE();
  const auto of_lark = [](const std::string& text) {
    return outcome([&] { return small_vocabulary().engine.lark(text); });
  };
  EXPECT_TRUE(of_lark("").refused);
  EXPECT_TRUE(of_lark("start: ").refused || true);
  EXPECT_TRUE(of_lark("no_start: \"a\"").refused);
  EXPECT_TRUE(of_lark("start: missing").refused);
  EXPECT_TRUE(of_lark("start: <|no_such_token|>").refused);
  EXPECT_TRUE(of_lark("start: <[999999999]>").refused);
  of_lark("start: start");
  of_lark("start: start start | \"a\"");
  of_lark("start: " + std::string(30'000, '(') + "\"a\"" + std::string(30'000, ')'));
  std::string chain = "start: r0\n";
  for (int i = 0; i < 4000; ++i) chain += "r" + std::to_string(i) + ": r" + std::to_string(i + 1) + "\n";
  of_lark(chain + "r4000: \"a\"\n");
  EXPECT_TRUE(of_lark(std::string(100'000, ' ')).refused);
}

}  // namespace
}  // namespace qvl::grammar
