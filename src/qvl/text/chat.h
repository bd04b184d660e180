// Conversations to prompt text: the two published chat templates of Qwen3-VL (Instruct and Thinking),
// rendered as segments that remember who wrote what (spec 7.4). encode_prompt (prompt.h) turns segments into
// ids.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "qvl/base/json.h"

namespace qvl::text {

enum class Role { kSystem, kUser, kAssistant, kTool };

// "system", "user", "assistant" or "tool"; throws kInvalidArgument for anything else.
Role parse_role(std::string_view name);
std::string_view role_name(Role role);

struct ContentPart {
  enum class Kind { kText, kImage, kVideo };
  Kind kind = Kind::kText;
  std::string text;  // of a text part; pictures and videos are matched to their parts by order

  static ContentPart make_text(std::string text) { return {Kind::kText, std::move(text)}; }
  static ContentPart image() { return {Kind::kImage, {}}; }
  static ContentPart video() { return {Kind::kVideo, {}}; }
};

struct ToolCall {
  std::string name;
  Json arguments;  // a string is rendered verbatim, anything else as JSON
};

struct Message {
  Role role = Role::kUser;
  std::vector<ContentPart> parts;        // an empty content string is no part at all
  std::vector<ToolCall> tool_calls;      // assistant only
  std::optional<std::string> reasoning;  // assistant only ("reasoning_content"); only Thinking renders it
};

enum class TemplateVariant { kInstruct, kThinking };

struct ChatOptions {
  Json tools;  // null or an array of tool schemas; rendered in key order
  bool add_generation_prompt = true;
  bool add_vision_id = false;  // "Picture 1: ", "Video 1: " before each
  TemplateVariant variant = TemplateVariant::kInstruct;
  // The published templates leave no choice (spec 7.4): Thinking always begins an answer with <think>, Instruct never.
  // False under Thinking ends the block where it begins ("<think>\n\n</think>\n\n", as the templates of Qwen3's hybrid
  // models do); true under Instruct is refused.
  std::optional<bool> enable_thinking;
};

struct Segment {
  enum class Kind {
    kTemplate,  // written by the template: control tokens are meant
    kText,      // written by a user, a tool or a model: control tokens are not
    kImage,     // the placeholder triple of one picture
    kVideo,     // the placeholder triple of one video
  };
  Kind kind = Kind::kTemplate;
  std::string text;
};

// Throws kInvalidArgument for an empty conversation or tool calls outside an assistant message, kUnsupported for
// thinking under Instruct. What the
// template leaves out (a later system message under Instruct, pictures in a system or assistant message) is
// logged.
std::vector<Segment> render_chat(const std::vector<Message>& messages, const ChatOptions& options);
// The segments joined: the reference's apply_chat_template(tokenize=False).
std::string render_string(const std::vector<Segment>& segments);

// Messages in the OpenAI / Hugging Face form: content a string, null or a list of parts (text, image,
// image_url, video, video_url, input_image, input_video by "type" or by key), "tool_calls",
// "reasoning_content". Throws kInvalidArgument naming the place ("messages[2].content[0]").
std::vector<Message> messages_from_json(const Json& messages);

struct ChatTemplate {
  TemplateVariant variant = TemplateVariant::kInstruct;
  std::filesystem::path source;  // the file that decided; empty if the checkpoint has no template
  bool recognised = false;       // false: the built-in template stands in for one that we do not know
};

// Looks at chat_template.jinja, chat_template.json, tokenizer_config.json, in this order. A template that is
// not one of Qwen3-VL's, or none, is answered with the built-in one and a logged warning.
ChatTemplate detect_chat_template(const std::filesystem::path& checkpoint_dir);
// The same from the template's text (`source` only for the log).
ChatTemplate classify_chat_template(std::string_view jinja, const std::filesystem::path& source);

}  // namespace qvl::text
