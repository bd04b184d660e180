#include "qvl/text/chat.h"

#include <algorithm>

#include "qvl/base/error.h"
#include "qvl/base/log.h"
#include "qvl/text/python_json.h"

namespace qvl::text {
namespace {

using Segments = std::vector<Segment>;

constexpr std::string_view kToolsHeader =
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>";
constexpr std::string_view kToolsFooter =
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    "<tool_call></tool_call> XML tags:\n<tool_call>\n{\"name\": <function-name>, \"arguments\": "
    "<args-json-object>}\n</tool_call><|im_end|>\n";
constexpr std::string_view kImageTriple = "<|vision_start|><|image_pad|><|vision_end|>";
constexpr std::string_view kVideoTriple = "<|vision_start|><|video_pad|><|vision_end|>";

std::string flatten(const Segments& segments) {
  std::string out;
  for (const Segment& s : segments) out += s.text;
  return out;
}

void add(Segments& out, Segment::Kind kind, std::string_view text) {
  if (text.empty()) return;
  const bool joins = kind == Segment::Kind::kTemplate || kind == Segment::Kind::kText;
  if (joins && !out.empty() && out.back().kind == kind) {
    out.back().text.append(text);
  } else {
    out.push_back({kind, std::string(text)});
  }
}

void add_all(Segments& out, const Segments& more) {
  for (const Segment& s : more) add(out, s.kind, s.text);
}

// The part of `segments` that covers bytes [begin, end) of their joined text. A placeholder is never cut: the
// places where the template cuts are newlines and think tags, which no placeholder contains.
Segments slice(const Segments& segments, size_t begin, size_t end) {
  Segments out;
  size_t at = 0;
  for (const Segment& s : segments) {
    const size_t from = std::clamp(begin, at, at + s.text.size()) - at;
    const size_t to = std::clamp(end, at, at + s.text.size()) - at;
    if (to > from) add(out, s.kind, std::string_view(s.text).substr(from, to - from));
    at += s.text.size();
  }
  return out;
}

Segments strip_newlines(const Segments& segments, bool left, bool right) {
  const std::string text = flatten(segments);
  size_t begin = 0, end = text.size();
  if (left) begin = std::min(text.find_first_not_of('\n'), text.size());
  if (right) end = text.find_last_not_of('\n') + 1;
  return slice(segments, begin, std::max(begin, end));
}

class Renderer {
 public:
  Renderer(const std::vector<Message>& messages, const ChatOptions& options)
      : messages_(messages), options_(options) {}

  Segments render() {
    check();
    render_head();
    const size_t last_query = thinking() ? last_query_index() : 0;
    for (size_t i = 0; i < messages_.size(); ++i) {
      const Message& m = messages_[i];
      switch (m.role) {
        case Role::kSystem:
          render_system(i);
          break;
        case Role::kUser:
          control("<|im_start|>user\n");
          add_all(out_, content(m, true));
          control("<|im_end|>\n");
          break;
        case Role::kAssistant:
          render_assistant(i, last_query);
          break;
        case Role::kTool:
          render_tool_result(i);
          break;
      }
    }
    if (options_.add_generation_prompt) {
      control(thinking() ? "<|im_start|>assistant\n<think>\n" : "<|im_start|>assistant\n");
      if (thinking() && !options_.enable_thinking.value_or(true)) control("\n</think>\n\n");
    }
    return std::move(out_);
  }

 private:
  bool thinking() const { return options_.variant == TemplateVariant::kThinking; }
  void control(std::string_view text) { add(out_, Segment::Kind::kTemplate, text); }
  void foreign(std::string_view text) { add(out_, Segment::Kind::kText, text); }

  void check() const {
    if (messages_.empty()) fail(ErrorCode::kInvalidArgument, "chat", "messages", "at least one", "none");
    if (options_.enable_thinking.value_or(false) && !thinking()) {
      fail(ErrorCode::kUnsupported, "chat", "enable_thinking", "false: the template of an Instruct model never lets it think",
           "true");
    }
    if (!options_.tools.is_null() && !options_.tools.is_array()) {
      fail(ErrorCode::kInvalidArgument, "chat", "tools", "an array", options_.tools.type_name());
    }
    for (size_t i = 0; i < messages_.size(); ++i) {
      if (!messages_[i].tool_calls.empty() && messages_[i].role != Role::kAssistant) {
        fail(ErrorCode::kInvalidArgument, "chat", "messages[" + std::to_string(i) + "].tool_calls",
             "an assistant message", role_name(messages_[i].role));
      }
    }
  }

  // The text of a message and its pictures. `count` numbers the pictures for add_vision_id. Under Instruct,
  // system and assistant messages show no pictures.
  Segments content(const Message& m, bool count) {
    const bool media = thinking() || m.role == Role::kUser || m.role == Role::kTool;
    Segments out;
    for (const ContentPart& part : m.parts) {
      if (part.kind == ContentPart::Kind::kText) {
        add(out, Segment::Kind::kText, part.text);
        continue;
      }
      if (!media) {
        log_message(LogLevel::kWarning, "[chat] a picture or video in a message of role " +
                                            std::string(role_name(m.role)) +
                                            " is left out, as the chat template does");
        continue;
      }
      const bool image = part.kind == ContentPart::Kind::kImage;
      int& number = image ? images_ : videos_;
      if (count) ++number;
      if (options_.add_vision_id) {
        add(out, Segment::Kind::kTemplate, (image ? "Picture " : "Video ") + std::to_string(number) + ": ");
      }
      add(out, image ? Segment::Kind::kImage : Segment::Kind::kVideo, image ? kImageTriple : kVideoTriple);
    }
    return out;
  }

  void render_head() {
    const bool has_system = messages_[0].role == Role::kSystem;
    const bool has_tools = options_.tools.is_array() && !options_.tools.empty();
    if (!has_system && !has_tools) return;
    control("<|im_start|>system\n");
    // Under Thinking the first system message is counted later, with all others.
    if (has_system) add_all(out_, content(messages_[0], false));
    if (!has_tools) {
      control("<|im_end|>\n");
      return;
    }
    if (has_system) control("\n\n");
    control(kToolsHeader);
    for (const Json& tool : options_.tools) {
      control("\n");
      foreign(dump_python_json(tool));
    }
    control(kToolsFooter);
  }

  void render_system(size_t i) {
    if (!thinking()) {
      if (i > 0) {
        log_message(LogLevel::kWarning,
                    "[chat] messages[" + std::to_string(i) +
                        "]: a system message that is not the first is left out, as the chat template does");
      }
      return;
    }
    const Segments text = content(messages_[i], true);
    if (i == 0) return;
    control("<|im_start|>system\n");
    add_all(out_, text);
    control("<|im_end|>\n");
  }

  // The last user message that is not a tool result in disguise; reasoning is kept only after it.
  size_t last_query_index() {
    for (size_t i = messages_.size(); i-- > 0;) {
      if (messages_[i].role != Role::kUser) continue;
      const std::string text = flatten(content(messages_[i], false));
      if (!(text.starts_with("<tool_response>") && text.ends_with("</tool_response>"))) return i;
    }
    return messages_.size() - 1;
  }

  void render_assistant(size_t i, size_t last_query) {
    const Message& m = messages_[i];
    Segments text = content(m, true);
    bool has_content = !m.parts.empty();
    control("<|im_start|>assistant\n");
    if (thinking()) {
      Segments reasoning;
      if (m.reasoning) {
        add(reasoning, Segment::Kind::kText, *m.reasoning);
      } else {
        split_reasoning(text, reasoning);
      }
      has_content = !text.empty();
      const bool last = i + 1 == messages_.size();
      if (i > last_query && (last || !reasoning.empty())) {
        control("<think>\n");
        add_all(out_, strip_newlines(reasoning, true, true));
        control("\n</think>\n\n");
        add_all(out_, strip_newlines(text, true, false));
      } else {
        add_all(out_, text);
      }
    } else {
      add_all(out_, text);
    }
    for (size_t k = 0; k < m.tool_calls.size(); ++k) {
      const ToolCall& call = m.tool_calls[k];
      if (k > 0 || has_content) control("\n");
      control("<tool_call>\n{\"name\": \"");
      foreign(call.name);
      control("\", \"arguments\": ");
      foreign(call.arguments.is_string() ? call.arguments.get_ref<const std::string&>()
                                         : dump_python_json(call.arguments));
      control("}\n</tool_call>");
    }
    control("<|im_end|>\n");
  }

  // Splits an answer that carries its reasoning in the text: what stands between the last <think> and the
  // first
  // </think>, and what follows the last </think>.
  static void split_reasoning(Segments& text, Segments& reasoning) {
    constexpr std::string_view kOpen = "<think>", kClose = "</think>";
    const std::string all = flatten(text);
    const size_t first_close = all.find(kClose);
    if (first_close == std::string::npos) return;
    size_t end = first_close;
    while (end > 0 && all[end - 1] == '\n') --end;
    const std::string_view head = std::string_view(all).substr(0, end);
    const size_t open = head.rfind(kOpen);
    reasoning = strip_newlines(slice(text, open == std::string_view::npos ? 0 : open + kOpen.size(), end),
                               true, false);
    text = strip_newlines(slice(text, all.rfind(kClose) + kClose.size(), all.size()), true, false);
  }

  void render_tool_result(size_t i) {
    if (i == 0 || messages_[i - 1].role != Role::kTool) control("<|im_start|>user");
    control("\n<tool_response>\n");
    add_all(out_, content(messages_[i], true));
    control("\n</tool_response>");
    if (i + 1 == messages_.size() || messages_[i + 1].role != Role::kTool) control("<|im_end|>\n");
  }

  const std::vector<Message>& messages_;
  const ChatOptions& options_;
  Segments out_;
  int images_ = 0, videos_ = 0;
};

}  // namespace

Role parse_role(std::string_view name) {
  for (const Role role : {Role::kSystem, Role::kUser, Role::kAssistant, Role::kTool}) {
    if (role_name(role) == name) return role;
  }
  fail(ErrorCode::kInvalidArgument, "chat", "role", "system, user, assistant or tool",
       "\"" + std::string(name) + "\"");
}

std::string_view role_name(Role role) {
  switch (role) {
    case Role::kSystem:
      return "system";
    case Role::kUser:
      return "user";
    case Role::kAssistant:
      return "assistant";
    case Role::kTool:
      return "tool";
  }
  return "unknown";
}

std::vector<Segment> render_chat(const std::vector<Message>& messages, const ChatOptions& options) {
  return Renderer(messages, options).render();
}

std::string render_string(const std::vector<Segment>& segments) {
  return flatten(segments);
}

}  // namespace qvl::text
