// Which of the two built-in chat templates a checkpoint means (spec 7.4). Jinja is not interpreted: the
// published templates are known, anything else is answered with the nearest one and a warning.
#include <system_error>

#include "qvl/base/error.h"
#include "qvl/base/log.h"
#include "qvl/base/mapped_file.h"
#include "qvl/text/chat.h"

namespace qvl::text {
namespace {

constexpr size_t kMaxTemplateBytes = size_t{16} << 20;

bool file_exists(const std::filesystem::path& path) {
  std::error_code ec;
  return std::filesystem::exists(path, ec);
}

// The template inside a JSON file: a string, or a list of {name, template} of which "default" counts.
std::optional<std::string> template_in_json(const std::filesystem::path& path) {
  if (!file_exists(path)) return std::nullopt;
  const Json json = parse_json_file(path);
  if (!json.is_object()) fail(ErrorCode::kFormat, path.string(), "top level", "an object", json.type_name());
  const auto it = json.find("chat_template");
  if (it == json.end() || it->is_null()) return std::nullopt;
  if (it->is_string()) return it->get<std::string>();
  if (it->is_array()) {
    for (const Json& entry : *it) {
      if (entry.is_object() && entry.value("name", "") == "default" && entry.contains("template") &&
          entry["template"].is_string()) {
        return entry["template"].get<std::string>();
      }
    }
  }
  fail(ErrorCode::kFormat, path.string(), "chat_template", "a string or a list with an entry \"default\"",
       it->type_name());
}

}  // namespace

ChatTemplate classify_chat_template(std::string_view jinja, const std::filesystem::path& source) {
  const auto has = [](std::string_view text, std::string_view part) {
    return text.find(part) != std::string_view::npos;
  };
  ChatTemplate found;
  found.source = source;
  const size_t generation = jinja.rfind("add_generation_prompt");
  const std::string_view tail =
      generation == std::string_view::npos ? std::string_view() : jinja.substr(generation);
  const bool opens_thinking = has(tail, "<think>") && !has(tail, "</think>");
  found.variant = opens_thinking ? TemplateVariant::kThinking : TemplateVariant::kInstruct;

  bool known = !tail.empty() && has(jinja, "<|im_start|>") &&
               has(jinja, "<|vision_start|><|image_pad|><|vision_end|>") &&
               has(jinja, "<|vision_start|><|video_pad|><|vision_end|>") && has(jinja, "<tool_response>");
  // What other templates of the family do and these two do not: a default system prompt, a thinking switch,
  // trimmed content, refusals.
  for (const std::string_view foreign :
       {"You are a helpful assistant", "enable_thinking", "raise_exception", "trim", "developer"}) {
    known = known && !has(jinja, foreign);
  }
  known =
      known && has(jinja, "last_query_index") == opens_thinking && has(jinja, "<think>") == opens_thinking;
  found.recognised = known;
  if (!known) {
    log_message(LogLevel::kWarning,
                "[" + source.string() + "] chat template is not one of Qwen3-VL's; the built-in " +
                    (opens_thinking ? "Thinking" : "Instruct") + " template is used instead");
  }
  return found;
}

ChatTemplate detect_chat_template(const std::filesystem::path& checkpoint_dir) {
  const std::filesystem::path jinja = checkpoint_dir / "chat_template.jinja";
  if (file_exists(jinja)) return classify_chat_template(read_file(jinja, kMaxTemplateBytes), jinja);
  for (const char* name : {"chat_template.json", "tokenizer_config.json"}) {
    const std::filesystem::path path = checkpoint_dir / name;
    if (const auto text = template_in_json(path)) return classify_chat_template(*text, path);
  }
  log_message(LogLevel::kWarning,
              "[" + checkpoint_dir.string() +
                  "] has no chat template; the built-in Instruct template of Qwen3-VL is used");
  return {};
}

}  // namespace qvl::text
