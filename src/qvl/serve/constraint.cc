#include "qvl/serve/constraint.h"

#include <utility>
#include <vector>

#include "qvl/base/error.h"
#include "qvl/base/format.h"
#include "qvl/base/log.h"
#include "qvl/serve/api_error.h"

namespace qvl::serve {
namespace {

class GrammarConstraint : public generate::TokenConstraint {
 public:
  explicit GrammarConstraint(grammar::Grammar grammar) : grammar_(std::move(grammar)) {}
  void apply(std::span<float> logits) override { grammar_.mask(logits); }
  void accept(int32_t id) override { grammar_.accept(id); }
  bool finished() const override { return grammar_.finished(); }

 private:
  grammar::Grammar grammar_;
};

grammar::Grammar format_grammar(const grammar::GrammarEngine& engine, const ResponseFormat& format) {
  if (format.kind == ResponseFormat::Kind::kJsonObject) return engine.json_object();
  return engine.json_schema(format.schema, {.strict = format.strict}, "response_format.json_schema.schema");
}

grammar::Grammar tool_grammar(const grammar::GrammarEngine& engine, const ChatRequest& request) {
  std::vector<grammar::Tool> tools;
  for (const ToolSpec& t : request.tools) tools.push_back({.name = t.name, .parameters = t.parameters, .strict = t.strict});
  grammar::ToolChoice choice{.kind = grammar::ToolChoice::Kind::kAuto, .name = {}, .parallel = request.parallel_tool_calls};
  if (request.tool_choice.kind == ToolChoice::Kind::kRequired) choice.kind = grammar::ToolChoice::Kind::kRequired;
  if (request.tool_choice.kind == ToolChoice::Kind::kNamed) {
    choice.kind = grammar::ToolChoice::Kind::kNamed;
    choice.name = request.tool_choice.name;
  }
  return engine.tool_calls(tools, choice);
}

}  // namespace

ConstraintFactory::ConstraintFactory(const std::function<std::shared_ptr<const grammar::GrammarEngine>()>& get_engine,
                                     const ChatRequest& request) {
  const bool format = request.response_format.kind != ResponseFormat::Kind::kText;
  const bool tools = !request.tools.empty() && request.tool_choice.kind != ToolChoice::Kind::kNone;
  if (!format && !tools) return;
  const std::shared_ptr<const grammar::GrammarEngine> engine = get_engine();
  // Without the engine tools that may be called still are; the parser lets through what needs it only where it is there.
  if (!engine && tools && request.tool_choice.kind == ToolChoice::Kind::kAuto && !format) return;
  if (!engine) throw bad_request("unsupported_value", format ? "response_format" : "tool_choice", "this server was built without the grammar engine");
  if (format && tools && request.tool_choice.kind == ToolChoice::Kind::kAuto)
    throw bad_request("unsupported_value", "response_format", "response_format: expected text where tools may be called, got a JSON format (use tool_choice \"none\" or \"required\")");
  const std::string param = tools ? "tools" : "response_format";
  try {
    grammar_ = tools ? tool_grammar(*engine, request) : format_grammar(*engine, request.response_format);
    if (request.thinking) grammar_->allow_reasoning();
    if (!unenforced().empty()) log_message(LogLevel::kWarning, cat("[serve] ", param, ": not enforced: ", unenforced()));
  } catch (const Error& e) {
    throw e.code() == ErrorCode::kUnsupported ? bad_request("unsupported_value", param, e.what()) : bad_request("invalid_value", param, e.what());
  }
}

const std::string& ConstraintFactory::unenforced() const {
  static const std::string kNothing;
  return grammar_ ? grammar_->unenforced() : kNothing;
}

std::shared_ptr<generate::TokenConstraint> ConstraintFactory::make() const {
  if (!grammar_) return nullptr;
  return std::make_shared<GrammarConstraint>(grammar_->clone());
}

}  // namespace qvl::serve
