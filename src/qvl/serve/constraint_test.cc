// What of a request's schemas an answer is held to, and what is said where it is not.
#include "qvl/serve/constraint.h"

#include <gtest/gtest.h>

#include <limits>
#include <memory>
#include <vector>

#include "qvl/grammar/random_walk.h"
#include "qvl/serve/api_error.h"

namespace qvl::serve {
namespace {

using grammar::testing_support::small_vocabulary;

const std::function<std::shared_ptr<const grammar::GrammarEngine>()> kEngine = [] {
  return std::make_shared<const grammar::GrammarEngine>(small_vocabulary().engine);
};

ChatRequest with_schema(const char* schema, bool strict) {
  ChatRequest request;
  request.response_format = {.kind = ResponseFormat::Kind::kJsonSchema, .name = "it", .schema = Json::parse(schema), .strict = strict};
  return request;
}

ChatRequest with_tool(const char* parameters, bool strict) {
  ChatRequest request;
  request.tools = {{.name = "f", .description = "", .parameters = Json::parse(parameters), .strict = strict}};
  request.tool_choice.kind = ToolChoice::Kind::kAuto;
  return request;
}

constexpr const char* kUnique = R"({"type":"object","properties":{"a":{"type":"array","items":{"type":"integer"},"uniqueItems":true}},"required":["a"],"additionalProperties":false})";
constexpr const char* kPlain = R"({"type":"object","properties":{"a":{"type":"integer"}},"required":["a"],"additionalProperties":false})";

TEST(Constraint, WhatCannotBeEnforcedIsRefusedWhereItIsStrict) {
  QVL_NEED_GRAMMAR_ENGINE();
  for (const auto& [request, param] : {std::pair(with_schema(kUnique, true), "response_format"), std::pair(with_tool(kUnique, true), "tools")}) {
    try {
      const ConstraintFactory factory(kEngine, request);
      ADD_FAILURE() << param;
    } catch (const ApiError& e) {
      EXPECT_EQ(e.status, 400);
      EXPECT_EQ(e.code, "unsupported_value");
      EXPECT_EQ(e.param, param);
      EXPECT_NE(std::string(e.what()).find("uniqueItems"), std::string::npos) << e.what();
    }
  }
}

TEST(Constraint, WhereItIsNotTheRestIsEnforcedAndWhatIsNotIsNamed) {
  QVL_NEED_GRAMMAR_ENGINE();
  EXPECT_NE(ConstraintFactory(kEngine, with_tool(kUnique, false)).unenforced().find("uniqueItems"), std::string::npos);
  const ConstraintFactory factory(kEngine, with_schema(kUnique, false));
  EXPECT_NE(factory.unenforced().find("uniqueItems"), std::string::npos) << factory.unenforced();
  // Still an object with an array: nothing but a brace or a blank may begin the answer.
  const auto& v = small_vocabulary();
  std::vector<float> logits(static_cast<size_t>(v.tokenizer.vocab_size()), 0.0F);
  factory.make()->apply(logits);
  EXPECT_EQ(logits[static_cast<size_t>(v.tokenizer.encode_text("{").at(0))], 0.0F);
  EXPECT_EQ(logits[static_cast<size_t>(v.tokenizer.encode_text("[").at(0))], -std::numeric_limits<float>::infinity());
}

TEST(Constraint, WhatIsEnforcedAltogetherIsNotTalkedAbout) {
  QVL_NEED_GRAMMAR_ENGINE();
  for (const bool strict : {false, true}) {
    EXPECT_EQ(ConstraintFactory(kEngine, with_schema(kPlain, strict)).unenforced(), "");
    EXPECT_EQ(ConstraintFactory(kEngine, with_tool(kPlain, strict)).unenforced(), "");
  }
  const ConstraintFactory none(kEngine, ChatRequest{});
  EXPECT_EQ(none.unenforced(), "");
  EXPECT_EQ(none.make(), nullptr);
}

}  // namespace
}  // namespace qvl::serve
