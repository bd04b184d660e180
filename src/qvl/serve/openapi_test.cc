#include "qvl/serve/openapi.h"

#include <gtest/gtest.h>

#include <cctype>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <set>

#include "qvl/serve/openai_request.h"
#include "qvl/serve/schema_check.h"

namespace qvl::serve {
namespace {

Json document() {
  return Json::parse(openapi_json());
}

TEST(OpenApi, EveryFieldOfTheParserIsDescribedAndTheOtherWayRound) {
  const Json schemas = document().at("components").at("schemas");
  std::set<std::string> parsed;
  for (const ObjectFields& object : known_objects()) {
    const std::string name(object.schema);
    parsed.insert(name);
    ASSERT_TRUE(schemas.contains(name)) << name;
    std::set<std::string> described;
    for (const auto& [key, value] : schemas[name]["properties"].items()) described.insert(key);
    EXPECT_EQ(described, std::set<std::string>(object.fields.begin(), object.fields.end())) << name;
    EXPECT_EQ(object.fields.size(), described.size()) << name << ": a field stands there twice";
    EXPECT_EQ(schemas[name]["additionalProperties"], false) << name;
  }
  // Whatever refuses unknown fields is an object of requests, and known.
  for (const auto& [name, schema] : schemas.items()) {
    if (schema.contains("additionalProperties") && schema["additionalProperties"] == false) {
      EXPECT_TRUE(parsed.contains(name)) << name;
    }
  }
}

TEST(OpenApi, ThePageForPeopleNamesEveryField) {
  std::ifstream in(std::filesystem::path(QVL_SOURCE_DIR) / "docs/server.md");
  const std::string page((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  ASSERT_FALSE(page.empty());
  auto named = [&](const std::string& word) {
    auto part_of_word = [](char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_'; };
    for (size_t at = page.find(word); at != std::string::npos; at = page.find(word, at + 1)) {
      if (!part_of_word(page[at - 1]) && !part_of_word(page[at + word.size()])) return true;
    }
    return false;
  };
  for (const ObjectFields& object : known_objects()) {
    if (object.schema != "ChatRequest" && object.schema != "CompletionRequest" && !object.schema.ends_with("Part") && !object.schema.ends_with("Message") &&
        !object.schema.ends_with("Kwargs") && object.schema != "StreamOptions") {
      continue;
    }
    for (const std::string_view field : object.fields) EXPECT_TRUE(named(std::string(field))) << object.schema << "." << field;
  }
}

TEST(OpenApi, ReferencesLeadSomewhereAndNothingIsLeftOver) {
  const Json doc = document();
  std::set<std::string> used;
  const std::function<void(const Json&)> walk = [&](const Json& v) {
    if (v.is_object() && v.contains("$ref")) {
      const std::string ref = v["$ref"].get<std::string>();
      ASSERT_TRUE(ref.starts_with("#/")) << ref;
      EXPECT_TRUE(doc.contains(Json::json_pointer(ref.substr(1)))) << ref;
      used.insert(ref);
    }
    if (v.is_structured()) {
      for (const Json& inner : v) walk(inner);
    }
  };
  walk(doc);
  for (const auto& [name, schema] : doc["components"]["schemas"].items()) {
    if (name == "ChatCompletionChunk") continue;  // the data of events, which OpenAPI 3.1 has no place for
    EXPECT_TRUE(used.contains("#/components/schemas/" + name)) << name;
  }
  for (const auto& [name, response] : doc["components"]["responses"].items()) EXPECT_TRUE(used.contains("#/components/responses/" + name)) << name;
}

TEST(OpenApi, CoversTheRoutes) {
  const Json doc = document();
  EXPECT_EQ(doc["openapi"], "3.1.0");
  for (const char* path : {"/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/models/{model}", "/health", "/metrics"}) EXPECT_TRUE(doc["paths"].contains(path)) << path;
  for (const char* status : {"200", "400", "401", "404", "408", "413", "415", "429", "500", "503"}) {
    EXPECT_TRUE(doc["paths"]["/v1/chat/completions"]["post"]["responses"].contains(status)) << status;
  }
}

// The file as it stands is that of a server with the defaults.
TEST(OpenApi, TheFilesLimitsAreTheDefaults) {
  ServerFacts facts;
  facts.variant = text::TemplateVariant::kThinking;
  facts.model_ids = {"m"};
  EXPECT_EQ(Json::parse(openapi_json(facts)), document());
}

TEST(OpenApi, FollowsTheServer) {
  ServerFacts facts;
  facts.model_ids = {"m"};
  facts.accept_any_model = false;
  facts.has_grammar = false;
  facts.max_choices = 3;
  facts.max_answer_tokens = 50;
  facts.max_pixels = 1000;
  facts.max_frames = 4;
  facts.vocabulary = 10;
  const testing::SchemaCheck check(Json::parse(openapi_json(facts)));
  auto fits = [&](const char* body, const char* name = "ChatRequest") { return check.check(Json::parse(body), name).empty(); };
  EXPECT_TRUE(fits(R"({"messages":[{"role":"user","content":"a"}],"model":"m","n":3,"max_tokens":50,"max_pixels":1000})"));
  for (const char* more : {R"("n":4)", R"("max_tokens":51)", R"("max_completion_tokens":51)", R"("max_pixels":1001)", R"("model":"x")", R"("response_format":{"type":"json_object"})",
                           R"("tool_choice":"required")", R"("chat_template_kwargs":{"enable_thinking":true})", R"("tools":[{"type":"function","function":{"name":"a","strict":true}}])"}) {
    EXPECT_FALSE(fits((R"({"messages":[{"role":"user","content":"a"}],)" + std::string(more) + "}").c_str())) << more;
  }
  EXPECT_FALSE(fits(R"({"messages":[{"role":"user","content":[{"type":"video","video":["1","2","3","4","5"]}]}]})"));
  EXPECT_TRUE(fits(R"({"prompt":[9]})", "CompletionRequest"));
  EXPECT_FALSE(fits(R"({"prompt":[10]})", "CompletionRequest"));
}

}  // namespace
}  // namespace qvl::serve
