#include "qvl/serve/openapi.h"

#include "qvl/base/json.h"
#include "qvl/serve/openai_reply.h"

namespace qvl::serve {

extern const std::string_view kOpenApiText;  // cmake/embed_text.cmake makes it from openapi.json

namespace {

Json& field(Json& schemas, const char* schema, const char* name) {
  return schemas.at(schema).at("properties").at(name);
}

}  // namespace

std::string_view openapi_json() {
  return kOpenApiText;
}

std::string openapi_json(const ServerFacts& facts) {
  Json document = parse_json(kOpenApiText, "openapi.json");
  Json& schemas = document.at("components").at("schemas");
  for (const char* request : {"ChatRequest", "CompletionRequest"}) {
    field(schemas, request, "n")["maximum"] = facts.max_choices;
    if (facts.max_answer_tokens > 0) field(schemas, request, "max_tokens")["maximum"] = facts.max_answer_tokens;
    if (!facts.accept_any_model) {
      Json names = facts.model_ids;
      names.push_back("");
      names.push_back(nullptr);
      field(schemas, request, "model") = {{"enum", names}};
    }
  }
  field(schemas, "CompletionRequest", "best_of")["maximum"] = facts.max_choices;
  if (facts.max_answer_tokens > 0) field(schemas, "ChatRequest", "max_completion_tokens")["maximum"] = facts.max_answer_tokens;
  for (const char* holder : {"ChatRequest", "ImageUrlPart", "ImagePart", "VideoPart", "MmProcessorKwargs"}) {
    field(schemas, holder, "min_pixels")["maximum"] = facts.max_pixels;
    field(schemas, holder, "max_pixels")["maximum"] = facts.max_pixels;
  }
  field(schemas, "VideoPart", "video")["maxItems"] = facts.max_frames;
  if (facts.vocabulary > 0) {
    Json& forms = field(schemas, "CompletionRequest", "prompt").at("anyOf");
    forms.at(2).at("items")["maximum"] = facts.vocabulary - 1;
    forms.at(3).at("items").at("items")["maximum"] = facts.vocabulary - 1;
  }
  if (!facts.has_grammar) {
    schemas.at("ResponseFormat").at("properties")["type"] = {{"const", "text"}};
    field(schemas, "Function", "strict") = {{"enum", {false, nullptr}}};
    field(schemas, "AllowedTools", "mode") = {{"const", "auto"}};
    Json& choices = field(schemas, "ChatRequest", "tool_choice").at("anyOf");
    choices.at(1) = {{"enum", {"none", "auto"}}};
    choices.erase(2);  // a named tool
  }
  if (facts.variant != text::TemplateVariant::kThinking) field(schemas, "ChatTemplateKwargs", "enable_thinking") = {{"enum", {false, nullptr}}};
  return dump_json(document);
}

}  // namespace qvl::serve
