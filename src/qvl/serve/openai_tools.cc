#include "qvl/serve/openai_tools.h"

#include <algorithm>

#include "qvl/base/format.h"
#include "qvl/serve/openai_fields.h"

namespace qvl::serve {
namespace {

constexpr size_t kMaxTools = 128;
constexpr size_t kMaxNameBytes = 64;
constexpr std::string_view kNoGrammar = "this server was built without a grammar engine.";

// Letters, digits, _ and -, 1 to 64 of them: names of functions and of schemas.
std::string name_value(const FieldReader& fields, std::string_view key) {
  std::string name = fields.required_string(key);
  const bool plain = std::all_of(name.begin(), name.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-';
  });
  if (name.empty() || name.size() > kMaxNameBytes || !plain) {
    throw invalid_value(fields.path(key), cat("expected 1 to ", kMaxNameBytes, " of the characters a-z, A-Z, 0-9, _ and -, but got ", shown(name), "."));
  }
  return name;
}

bool has_tool(const std::vector<ToolSpec>& tools, const std::string& name) {
  return std::any_of(tools.begin(), tools.end(), [&](const ToolSpec& t) { return t.name == name; });
}

ToolSpec parse_tool(const Json& json, const std::string& path) {
  // Other kinds have other fields: the kind is what is wrong with them.
  if (const auto type = json.is_object() ? json.find("type") : json.end(); type != json.end()) {
    const std::string& kind = string_value(*type, join_path(path, "type"));
    if (kind != "function") {
      throw unsupported_value(join_path(path, "type"), cat("expected 'function', but got ", shown(kind), "; other kinds of tools are not offered."));
    }
  }
  const FieldReader tool(json, path, fields_of(ObjectKind::kTool));
  (void)tool.require("type");
  const FieldReader function(tool.require("function"), tool.path("function"), fields_of(ObjectKind::kFunction));
  ToolSpec out;
  out.name = name_value(function, "name");
  out.description = function.string("description").value_or("");
  if (const Json* parameters = function.object("parameters")) out.parameters = *parameters;
  out.strict = function.boolean("strict", false);
  return out;
}

// {"type": "function", "function": {"name"}}: the name, which must be one of the tools'.
std::string parse_named_tool(const Json& json, const std::string& path, const std::vector<ToolSpec>& tools) {
  const FieldReader choice(json, path, fields_of(ObjectKind::kToolChoice));
  (void)choice.required_choice("type", {"function"});
  const FieldReader function(choice.require("function"), choice.path("function"), fields_of(ObjectKind::kToolChoiceFunction));
  std::string name = name_value(function, "name");
  if (!has_tool(tools, name)) throw invalid_value(function.path("name"), cat(shown(name), " is not among 'tools'."));
  return name;
}

ToolChoice::Kind choice_kind(const std::string& word) {
  return word == "required" ? ToolChoice::Kind::kRequired : word == "auto" ? ToolChoice::Kind::kAuto : ToolChoice::Kind::kNone;
}

// Leaves the tools that may be called, in both forms, in the order of "tools".
void keep_allowed(const Json& json, const std::string& path, ChatRequest& request) {
  const FieldReader allowed(json, path, fields_of(ObjectKind::kAllowedTools));
  request.tool_choice.kind = choice_kind(allowed.required_choice("mode", {"auto", "required"}));
  const Json& list = allowed.require("tools");
  if (!list.is_array()) throw invalid_type(allowed.path("tools"), "an array of objects", list);
  if (list.empty()) throw bad_request("empty_array", allowed.path("tools"), cat("Invalid '", allowed.path("tools"), "': empty array. Expected at least one tool."));
  std::vector<std::string> names;
  for (size_t i = 0; i < list.size(); ++i) names.push_back(parse_named_tool(list[i], index_path(allowed.path("tools"), i), request.tools));
  std::vector<ToolSpec> kept;
  Json kept_json = Json::array();
  for (size_t i = 0; i < request.tools.size(); ++i) {
    if (std::find(names.begin(), names.end(), request.tools[i].name) == names.end()) continue;
    kept.push_back(std::move(request.tools[i]));
    kept_json.push_back(std::move(request.tools_json[i]));
  }
  request.tools = std::move(kept);
  request.tools_json = std::move(kept_json);
}

void parse_tool_choice(const Json& choice, const std::string& path, ChatRequest& request) {
  if (choice.is_string()) {
    const std::string& word = choice.get_ref<const std::string&>();
    if (word != "none" && word != "auto" && word != "required") {
      throw bad_request("invalid_value", path, cat("Invalid value for '", path, "': ", shown(word), ". Supported values are: 'none', 'auto', 'required'."));
    }
    // Without tools there is nothing to choose from; only one that must be called is missing.
    if (request.tools.empty() && word == "required") throw invalid_value(path, "'required' needs 'tools'.");
    if (!request.tools.empty()) request.tool_choice.kind = choice_kind(word);
    return;
  }
  if (!choice.is_object()) throw invalid_type(path, "a string or an object", choice);
  const auto type = choice.find("type");
  if (type != choice.end() && *type == "allowed_tools") {
    const FieldReader fields(choice, path, fields_of(ObjectKind::kAllowedToolsChoice));
    keep_allowed(fields.require("allowed_tools"), fields.path("allowed_tools"), request);
    return;
  }
  request.tool_choice.name = parse_named_tool(choice, path, request.tools);
  request.tool_choice.kind = ToolChoice::Kind::kNamed;
}

}  // namespace

void parse_tools(const FieldReader& fields, const ServerFacts& facts, ChatRequest& request) {
  request.parallel_tool_calls = fields.boolean("parallel_tool_calls", true);
  if (const Json* tools = fields.array("tools"); tools != nullptr && !tools->empty()) {
    const std::string path = fields.path("tools");
    if (tools->size() > kMaxTools) {
      throw bad_request("array_above_max_length", path, cat("Invalid '", path, "': array too long. Expected at most ", kMaxTools, " tools, but got ", tools->size(), " instead."));
    }
    for (size_t i = 0; i < tools->size(); ++i) {
      ToolSpec tool = parse_tool((*tools)[i], index_path(path, i));
      if (has_tool(request.tools, tool.name)) {
        throw invalid_value(index_path(path, i) + ".function.name", cat("the name ", shown(tool.name), " stands there twice."));
      }
      if (tool.strict && !facts.has_grammar) throw unsupported_value(index_path(path, i) + ".function.strict", std::string(kNoGrammar));
      request.tools.push_back(std::move(tool));
    }
    request.tools_json = *tools;
    request.tool_choice.kind = ToolChoice::Kind::kAuto;
  }
  const std::string path = fields.path("tool_choice");
  if (const Json* choice = fields.find("tool_choice")) parse_tool_choice(*choice, path, request);
  using Kind = ToolChoice::Kind;
  if (request.tool_choice.kind == Kind::kNone) {
    request.tools.clear();
    request.tools_json = Json();
  }
  const bool must_call = request.tool_choice.kind == Kind::kRequired || request.tool_choice.kind == Kind::kNamed;
  if (must_call && !facts.has_grammar) throw unsupported_value(path, std::string(kNoGrammar));
}

void parse_response_format(const FieldReader& fields, const ServerFacts& facts, ChatRequest& request) {
  const Json* json = fields.find("response_format");
  if (json == nullptr) return;
  const FieldReader format(*json, fields.path("response_format"), fields_of(ObjectKind::kResponseFormat));
  const std::string type = format.required_choice("type", {"text", "json_object", "json_schema"});
  if (type != "json_schema") {
    if (format.find("json_schema") != nullptr) throw invalid_value(format.path("json_schema"), cat("goes with the type 'json_schema', but got ", shown(type), "."));
    if (type == "text") return;
    request.response_format.kind = ResponseFormat::Kind::kJsonObject;
  } else {
    const FieldReader schema(format.require("json_schema"), format.path("json_schema"), fields_of(ObjectKind::kJsonSchemaFormat));
    request.response_format.kind = ResponseFormat::Kind::kJsonSchema;
    request.response_format.name = name_value(schema, "name");
    (void)schema.string("description");
    const Json& body = schema.require("schema");
    if (!body.is_object()) throw invalid_type(schema.path("schema"), "an object", body);
    request.response_format.schema = body;
    request.response_format.strict = schema.boolean("strict", false);
  }
  if (!facts.has_grammar) throw unsupported_value(format.path("type"), std::string(kNoGrammar));
}

}  // namespace qvl::serve
