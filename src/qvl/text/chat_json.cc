// Conversations in the OpenAI / Hugging Face JSON form.
#include "qvl/base/error.h"
#include "qvl/text/chat.h"

namespace qvl::text {
namespace {

[[noreturn]] void bad(const std::string& where, std::string_view expected, const Json& got) {
  std::string text = got.dump(-1, ' ', false, Json::error_handler_t::replace);
  if (text.size() > 120) text = text.substr(0, 120) + "...";
  fail(ErrorCode::kInvalidArgument, "chat", where, expected, text);
}

const Json* find(const Json& object, const char* key) {
  const auto it = object.find(key);
  return it == object.end() || it->is_null() ? nullptr : &*it;
}

ContentPart parse_part(const Json& part, const std::string& where) {
  if (!part.is_object()) bad(where, "an object", part);
  std::string type;
  if (const Json* t = find(part, "type")) {
    if (!t->is_string()) bad(where + ".type", "a string", *t);
    type = t->get<std::string>();
  }
  if (type == "image" || type == "input_image" || part.contains("image") || part.contains("image_url"))
    return ContentPart::image();
  if (type == "video" || type == "input_video" || part.contains("video") || part.contains("video_url"))
    return ContentPart::video();
  const Json* text = find(part, "text");
  if (text == nullptr) bad(where, "a text, image or video part", part);
  if (!text->is_string()) bad(where + ".text", "a string", *text);
  return ContentPart::make_text(text->get<std::string>());
}

ToolCall parse_tool_call(const Json& json, const std::string& where) {
  if (!json.is_object()) bad(where, "an object", json);
  const Json* inner = find(json, "function");
  const Json& call = inner != nullptr ? *inner : json;
  if (!call.is_object()) bad(where + ".function", "an object", call);
  const Json* name = find(call, "name");
  if (name == nullptr || !name->is_string())
    bad(where + ".name", "a string", name != nullptr ? *name : Json());
  if (!call.contains("arguments")) bad(where, "arguments", call);
  return {name->get<std::string>(), call["arguments"]};
}

Message parse_message(const Json& json, const std::string& where) {
  if (!json.is_object()) bad(where, "an object", json);
  Message m;
  const Json* role = find(json, "role");
  if (role == nullptr || !role->is_string())
    bad(where + ".role", "a string", role != nullptr ? *role : Json());
  m.role = parse_role(role->get_ref<const std::string&>());
  const Json* content = find(json, "content");
  if (content == nullptr) {
    // An assistant that only called tools has no content.
    if (m.role != Role::kAssistant) bad(where + ".content", "a string or a list of parts", Json());
  } else if (content->is_string()) {
    if (!content->get_ref<const std::string&>().empty())
      m.parts.push_back(ContentPart::make_text(content->get<std::string>()));
  } else if (content->is_array()) {
    for (size_t i = 0; i < content->size(); ++i) {
      m.parts.push_back(parse_part((*content)[i], where + ".content[" + std::to_string(i) + "]"));
    }
  } else {
    bad(where + ".content", "a string or a list of parts", *content);
  }
  if (const Json* calls = find(json, "tool_calls")) {
    if (!calls->is_array()) bad(where + ".tool_calls", "an array", *calls);
    for (size_t i = 0; i < calls->size(); ++i) {
      m.tool_calls.push_back(parse_tool_call((*calls)[i], where + ".tool_calls[" + std::to_string(i) + "]"));
    }
  }
  if (const Json* reasoning = find(json, "reasoning_content")) {
    if (!reasoning->is_string()) bad(where + ".reasoning_content", "a string", *reasoning);
    m.reasoning = reasoning->get<std::string>();
  }
  return m;
}

}  // namespace

std::vector<Message> messages_from_json(const Json& messages) {
  if (!messages.is_array()) bad("messages", "an array", messages);
  std::vector<Message> out;
  for (size_t i = 0; i < messages.size(); ++i) {
    out.push_back(parse_message(messages[i], "messages[" + std::to_string(i) + "]"));
  }
  return out;
}

}  // namespace qvl::text
