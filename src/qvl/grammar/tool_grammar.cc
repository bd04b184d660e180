#include "qvl/grammar/tool_grammar.h"

#include <algorithm>
#include <set>

#include "qvl/base/error.h"
#include "qvl/grammar/schema.h"

namespace qvl::grammar {
namespace {

constexpr size_t kMaxTools = 128;
constexpr size_t kMaxNameBytes = 64;

void check_name(const std::string& name) {
  const auto allowed = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-';
  };
  if (name.empty() || name.size() > kMaxNameBytes || !std::all_of(name.begin(), name.end(), allowed)) {
    fail(ErrorCode::kInvalidArgument, "tools", "name of a function", "1 to 64 of a-z A-Z 0-9 _ -",
         "\"" + name.substr(0, 2 * kMaxNameBytes) + "\"");
  }
}

// Arguments are always an object.
Json arguments_schema(const Tool& tool, const std::string& where) {
  if (tool.parameters.is_null()) {
    return {{"type", "object"}, {"properties", Json::object()}, {"additionalProperties", false}};
  }
  if (!tool.parameters.is_object()) {
    fail(ErrorCode::kInvalidArgument, where, "parameters", "a JSON schema", tool.parameters.type_name());
  }
  Json schema = tool.parameters;
  const auto type = schema.find("type");
  if (type == schema.end()) {
    schema["type"] = "object";
  } else if (*type != "object") {
    fail(ErrorCode::kInvalidArgument, where, "type of the parameters", "\"object\"",
         type->is_string() ? "\"" + type->get<std::string>() + "\"" : type->type_name());
  }
  return schema;
}

}  // namespace

std::string tool_call_grammar(std::span<const Tool> tools, const ToolChoice& choice, int32_t close_id) {
  if (tools.empty()) fail(ErrorCode::kInvalidArgument, "tools", "functions", "at least one", "none");
  if (tools.size() > kMaxTools) {
    fail(ErrorCode::kLimit, "tools", "functions", "at most " + std::to_string(kMaxTools),
         std::to_string(tools.size()));
  }
  std::set<std::string> names;
  std::string alternatives, rules;
  for (const Tool& tool : tools) {
    check_name(tool.name);
    if (!names.insert(tool.name).second) {
      fail(ErrorCode::kInvalidArgument, "tools", "the function \"" + tool.name + "\" is there twice");
    }
    if (choice.kind == ToolChoice::Kind::kNamed && tool.name != choice.name) continue;
    const std::string where = "tools: " + tool.name;
    const JsonOptions options = {.whitespace = Whitespace::kSpaced, .strict = tool.strict};
    const std::string rule = "call_" + std::to_string(names.size());
    alternatives += (alternatives.empty() ? "" : " | ") + rule;
    rules += rule + R"(: "{\"name\": \")" + tool.name + R"(\", \"arguments\": " arguments_)" +
             std::to_string(names.size()) + " \"}\"\narguments_" + std::to_string(names.size()) + ": %json " +
             prepare_schema(arguments_schema(tool, where), options, where) + "\n";
    if (rules.size() > kMaxSchemaBytes) {
      fail(ErrorCode::kLimit, "tools", "schemas of all functions",
           "at most " + std::to_string(kMaxSchemaBytes) + " bytes", "more");
    }
  }
  if (choice.kind == ToolChoice::Kind::kNamed && !names.contains(choice.name)) {
    fail(ErrorCode::kInvalidArgument, "tool_choice",
         "the function \"" + choice.name + "\" is none of the tools");
  }
  return R"(start: "\n" call "\n" <[)" + std::to_string(close_id) + "]>\ncall: " + alternatives + "\n" +
         rules;
}

}  // namespace qvl::grammar
