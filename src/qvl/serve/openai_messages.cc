#include "qvl/serve/openai_messages.h"

#include <algorithm>
#include <iterator>
#include <optional>
#include <span>

#include "qvl/base/format.h"
#include "qvl/serve/json_fields.h"
#include "qvl/serve/openai_fields.h"

namespace qvl::serve {
namespace {

using text::ContentPart;
using text::Role;

constexpr double kMaxFps = 1000;

struct ParsedMessage {
  text::Message message;
  std::vector<MediaRef> media;
  std::vector<std::string> call_ids;  // of tool_calls
  std::optional<std::string> tool_call_id;  // of a result
  std::optional<std::string> tool_name;     // "name" of a result
  std::string path;
};

std::string detail_of(const FieldReader& fields) {
  return fields.choice("detail", {"auto", "low", "high", "original"}).value_or("auto");
}

std::string url_value(const Json& value, const std::string& path) {
  const std::string& url = string_value(value, path);
  if (url.empty()) throw invalid_value(path, "expected a URL, but got an empty string.");
  return url;
}

bool has_scheme(std::string_view url) {
  for (const std::string_view scheme : {"data:", "http:", "https:", "file:"}) {
    if (url.starts_with(scheme)) return true;
  }
  return false;
}

class MessageReader {
 public:
  MessageReader(const ServerFacts& facts, const image::PixelOverrides& pixels) : facts_(facts), pixels_(pixels) {}

  ParsedMessage read(const Json& json, const std::string& path) {
    if (!json.is_object()) throw invalid_type(path, "an object", json);
    const auto role = json.find("role");
    const std::string role_path = join_path(path, "role");
    if (role == json.end()) throw missing_parameter(role_path);
    const std::string& name = string_value(*role, role_path);
    out_ = {};
    out_.path = path;
    if (name == "system" || name == "developer") {
      read_system(FieldReader(json, path, fields_of(ObjectKind::kSystemMessage)));
    } else if (name == "user") {
      read_user(FieldReader(json, path, fields_of(ObjectKind::kUserMessage)));
    } else if (name == "assistant") {
      read_assistant(FieldReader(json, path, fields_of(ObjectKind::kAssistantMessage)));
    } else if (name == "tool") {
      read_tool(FieldReader(json, path, fields_of(ObjectKind::kToolMessage)));
    } else if (name == "function") {
      throw unsupported_value(role_path, "the deprecated role 'function' is not read here; use 'tool' and 'tool_calls'.");
    } else {
      throw bad_request("invalid_value", role_path,
                        cat("Invalid value for '", role_path, "': ", shown(name),
                            ". Supported values are: 'system', 'developer', 'user', 'assistant', 'tool'."));
    }
    return std::move(out_);
  }

 private:
  enum Allowed { kTextOnly, kTextAndRefusal, kTextAndImages, kTextAndMedia };

  void read_system(const FieldReader& fields) {
    out_.message.role = Role::kSystem;
    (void)fields.string("name");
    read_content(fields, kTextOnly);
  }

  void read_user(const FieldReader& fields) {
    out_.message.role = Role::kUser;
    (void)fields.string("name");
    read_content(fields, kTextAndMedia);
  }

  void read_assistant(const FieldReader& fields) {
    out_.message.role = Role::kAssistant;
    (void)fields.string("name");
    (void)fields.array("annotations");
    fields.refuse("audio", "this server makes no audio.");
    fields.refuse("function_call", "deprecated; use 'tool_calls'.");
    out_.message.reasoning = fields.string("reasoning_content");
    const std::optional<std::string> refusal = fields.string("refusal");
    if (const Json* calls = fields.array("tool_calls")) read_tool_calls(*calls, fields.path("tool_calls"));
    if (fields.find("content") != nullptr) {
      read_content(fields, kTextAndRefusal);
    } else if (fields.has("content") && !refusal) {
      // null: a turn without text. Some clients send what they got beside calls back as a message of its own.
    } else if (refusal) {
      add_text(*refusal);
    } else if (out_.message.tool_calls.empty() && !out_.message.reasoning) {
      throw invalid_value(fields.path("content"), "expected a string or an array of parts in an assistant message without 'tool_calls'.");
    }
  }

  void read_tool(const FieldReader& fields) {
    out_.message.role = Role::kTool;
    out_.tool_name = fields.string("name");
    out_.tool_call_id = fields.string("tool_call_id");
    read_content(fields, kTextAndImages);
  }

  void add_text(const std::string& text) {
    // An empty string is no part: the template asks whether there is content.
    if (!text.empty()) out_.message.parts.push_back(ContentPart::make_text(text));
  }

  void read_content(const FieldReader& fields, Allowed allowed) {
    const Json& content = fields.require("content");
    const std::string path = fields.path("content");
    if (content.is_string()) {
      add_text(content.get_ref<const std::string&>());
      return;
    }
    if (!content.is_array()) throw invalid_type(path, "a string or an array of objects", content);
    if (content.empty()) throw bad_request("empty_array", path, cat("Invalid '", path, "': empty array. Expected at least one content part."));
    for (size_t i = 0; i < content.size(); ++i) read_part(content[i], index_path(path, i), allowed);
  }

  void read_part(const Json& part, const std::string& path, Allowed allowed) {
    if (!part.is_object()) throw invalid_type(path, "an object", part);
    const auto type = part.find("type");
    const std::string type_path = join_path(path, "type");
    if (type == part.end()) throw missing_parameter(type_path);
    const std::string& kind = string_value(*type, type_path);
    if (kind == "text") {
      add_text(FieldReader(part, path, fields_of(ObjectKind::kTextPart)).required_string("text"));
    } else if (kind == "refusal" && allowed == kTextAndRefusal) {
      add_text(FieldReader(part, path, fields_of(ObjectKind::kRefusalPart)).required_string("refusal"));
    } else if (kind == "image_url" || kind == "input_image" || kind == "image") {
      if (allowed < kTextAndImages) throw misplaced(type_path, "picture");
      read_image(part, path, kind);
    } else if (kind == "video") {
      if (allowed < kTextAndMedia) throw misplaced(type_path, "video");
      read_video(FieldReader(part, path, fields_of(ObjectKind::kVideoPart)));
    } else if (kind == "input_audio" || kind == "audio") {
      throw unsupported_value(type_path, "the model hears nothing: audio is not read.");
    } else if (kind == "file" || kind == "input_file") {
      throw unsupported_value(type_path, "files are not read; send pages as pictures ('image_url').");
    } else if (kind == "video_url" || kind == "input_video") {
      throw unsupported_value(type_path, "video files are not read; send frames: {\"type\": \"video\", \"video\": [URLs of frames], \"fps\": 2}.");
    } else {
      std::string words = "'text'";
      if (allowed == kTextAndRefusal) words += ", 'refusal'";
      if (allowed >= kTextAndImages) words += ", 'image_url', 'input_image', 'image'";
      if (allowed == kTextAndMedia) words += ", 'video'";
      throw bad_request("invalid_value", type_path,
                        cat("Invalid value for '", type_path, "': ", shown(kind), ". Supported values are: ", words, "."));
    }
  }

  ApiError misplaced(const std::string& path, std::string_view what) const {
    return unsupported_value(path, cat("a ", what, " in a message of role '", text::role_name(out_.message.role),
                                       "': the model's chat template shows it nowhere but in what the user says."));
  }

  MediaRef& add_media(ContentPart part) {
    out_.message.parts.push_back(std::move(part));
    return out_.media.emplace_back();
  }

  void read_image(const Json& part, const std::string& path, const std::string& kind) {
    MediaRef ref;
    ref.pixels = pixels_;
    if (kind == "image") {
      const FieldReader fields(part, path, fields_of(ObjectKind::kImagePart));
      ref.param = fields.path("image");
      ref.url = url_value(fields.require("image"), ref.param);
      if (!has_scheme(ref.url)) ref.url.insert(0, "data:;base64,");
      ref.detail = detail_of(fields);
      override_pixels(fields, ref);
    } else if (kind == "input_image") {
      const FieldReader fields(part, path, fields_of(ObjectKind::kInputImagePart));
      fields.refuse("file_id", "files are not kept here; send the picture in 'image_url'.");
      ref.param = fields.path("image_url");
      ref.url = url_value(fields.require("image_url"), ref.param);
      ref.detail = detail_of(fields);
    } else {
      const FieldReader fields(part, path, fields_of(ObjectKind::kImageUrlPart));
      const Json& url = fields.require("image_url");
      ref.param = fields.path("image_url");
      ref.detail = detail_of(fields);
      if (url.is_string()) {
        ref.url = url_value(url, ref.param);
      } else if (url.is_object()) {
        const FieldReader inner(url, ref.param, fields_of(ObjectKind::kImageUrl));
        inner.refuse("max_dynamic_patch", "this model cuts pictures into no tiles; 'max_pixels' beside 'image_url' bounds their size.");
        ref.param = inner.path("url");
        ref.url = url_value(inner.require("url"), ref.param);
        if (inner.find("detail") != nullptr) ref.detail = detail_of(inner);
      } else {
        throw invalid_type(ref.param, "an object or a string", url);
      }
      override_pixels(fields, ref);
    }
    add_media(ContentPart::image()) = std::move(ref);
  }

  void read_video(const FieldReader& fields) {
    MediaRef ref;
    ref.is_video = true;
    ref.pixels = pixels_;
    ref.param = fields.path("video");
    const Json& frames = fields.require("video");
    if (frames.is_string()) {
      throw unsupported_value(ref.param, "video files are not read; send an array with the URLs of the frames.");
    }
    if (!frames.is_array()) throw invalid_type(ref.param, "an array of strings", frames);
    if (frames.empty()) throw bad_request("empty_array", ref.param, cat("Invalid '", ref.param, "': empty array. Expected at least one frame."));
    if (static_cast<int64_t>(frames.size()) > facts_.max_frames) {
      throw bad_request("array_above_max_length", ref.param,
                        cat("Invalid '", ref.param, "': array too long. Expected at most ", facts_.max_frames, " frames, but got ", frames.size(), " instead."));
    }
    for (size_t i = 0; i < frames.size(); ++i) ref.frames.push_back(url_value(frames[i], index_path(ref.param, i)));
    ref.fps = fields.number("fps", 0, kMaxFps);
    if (ref.fps && *ref.fps == 0) throw invalid_value(fields.path("fps"), "expected more than 0 frames a second, but got 0.");
    override_pixels(fields, ref);
    add_media(ContentPart::video()) = std::move(ref);
  }

  void override_pixels(const FieldReader& fields, MediaRef& ref) const {
    const image::PixelOverrides own = parse_pixels(fields, facts_);
    // One bound said here beside the other one said for the whole request would be a budget that nobody asked for.
    if (own.min_pixels || own.max_pixels) ref.pixels = own;
  }

  void read_tool_calls(const Json& calls, const std::string& path) {
    if (calls.empty()) throw bad_request("empty_array", path, cat("Invalid '", path, "': empty array. Expected at least one call."));
    for (size_t i = 0; i < calls.size(); ++i) {
      const FieldReader call(calls[i], index_path(path, i), fields_of(ObjectKind::kToolCall));
      const std::string id = call.required_string("id");
      if (std::find(out_.call_ids.begin(), out_.call_ids.end(), id) != out_.call_ids.end()) {
        throw invalid_value(call.path("id"), cat("the id ", shown(id), " stands there twice."));
      }
      (void)call.required_choice("type", {"function"});
      (void)call.integer("index", 0, INT32_MAX);
      const FieldReader function(call.require("function"), call.path("function"), fields_of(ObjectKind::kFunctionCall));
      const Json& arguments = function.require("arguments");
      if (!arguments.is_string() && !arguments.is_object()) throw invalid_type(function.path("arguments"), "a string", arguments);
      out_.call_ids.push_back(id);
      out_.message.tool_calls.push_back({function.required_string("name"), arguments});
    }
  }

  const ServerFacts& facts_;
  const image::PixelOverrides& pixels_;
  ParsedMessage out_;
};

// Which call of `caller` each of its results answers, by the ids; throws for one that is none's or answered already.
std::vector<size_t> calls_by_id(const ParsedMessage& caller, std::span<const ParsedMessage> results) {
  std::vector<size_t> out;
  for (const ParsedMessage& result : results) {
    const std::string path = join_path(result.path, "tool_call_id");
    if (!result.tool_call_id) throw missing_parameter(path);
    const auto id = std::find(caller.call_ids.begin(), caller.call_ids.end(), *result.tool_call_id);
    if (id == caller.call_ids.end()) {
      throw invalid_value(path, cat(shown(*result.tool_call_id), " is no id of the 'tool_calls' of the preceding assistant message."));
    }
    const auto call = static_cast<size_t>(id - caller.call_ids.begin());
    if (std::find(out.begin(), out.end(), call) != out.end()) throw invalid_value(path, cat("the call ", shown(*id), " was answered already."));
    out.push_back(call);
  }
  return out;
}

// The same where none has an id: they stand in the order of the calls, and a name must be that of the call.
std::vector<size_t> calls_by_order(const ParsedMessage& caller, std::span<const ParsedMessage> results) {
  std::vector<size_t> out;
  for (const ParsedMessage& result : results) {
    const size_t call = out.size();
    if (call == caller.call_ids.size()) {
      throw invalid_value(result.path, cat("a result without 'tool_call_id', but the ", call, " 'tool_calls' of the preceding assistant message are answered already."));
    }
    const std::string& called = caller.message.tool_calls[call].name;
    if (result.tool_name && *result.tool_name != called) {
      throw invalid_value(join_path(result.path, "name"),
                          cat("results without 'tool_call_id' must stand in the order of the calls; expected one of ", shown(called), ", but got ", shown(*result.tool_name), "."));
    }
    out.push_back(call);
  }
  return out;
}

// Results of tools follow the message that called them, one for each call. The template shows no ids, so they are put in
// the order of the calls.
void match_tool_results(std::vector<ParsedMessage>& messages) {
  for (size_t i = 0; i < messages.size();) {
    const ParsedMessage& caller = messages[i];
    if (caller.message.role == Role::kTool) {
      throw invalid_value(caller.path, "a message of role 'tool' must be a response to a preceding message with 'tool_calls'.");
    }
    const size_t first = ++i;
    if (caller.call_ids.empty()) continue;
    while (i < messages.size() && messages[i].message.role == Role::kTool) ++i;
    const std::span<ParsedMessage> results(messages.begin() + static_cast<std::ptrdiff_t>(first), i - first);
    const bool without_ids = std::none_of(results.begin(), results.end(), [](const ParsedMessage& m) { return m.tool_call_id.has_value(); });
    const std::vector<size_t> calls = without_ids ? calls_by_order(caller, results) : calls_by_id(caller, results);
    std::string open;
    for (size_t k = 0; k < caller.call_ids.size(); ++k) {
      if (std::find(calls.begin(), calls.end(), k) == calls.end()) open += cat(open.empty() ? "" : ", ", shown(caller.call_ids[k]));
    }
    if (!open.empty()) {
      throw invalid_value(join_path(caller.path, "tool_calls"),
                          cat("an assistant message with 'tool_calls' must be followed by messages of role 'tool' responding to each 'tool_call_id'. These "
                              "did not have response messages: ", open, "."));
    }
    std::vector<ParsedMessage> ordered(results.size());
    for (size_t k = 0; k < results.size(); ++k) ordered[calls[k]] = std::move(results[k]);
    std::move(ordered.begin(), ordered.end(), results.begin());
  }
}

// The Instruct template shows one system message, the first: those that lead become one, later ones are refused.
void join_system_messages(std::vector<ParsedMessage>& messages) {
  size_t leading = 0;
  while (leading < messages.size() && messages[leading].message.role == Role::kSystem) ++leading;
  for (size_t i = leading; i < messages.size(); ++i) {
    if (messages[i].message.role == Role::kSystem) {
      throw unsupported_value(join_path(messages[i].path, "role"),
                              "a system message must stand first: the model's chat template has no place for one later.");
    }
  }
  if (leading < 2) return;
  std::vector<ContentPart>& first = messages[0].message.parts;
  for (size_t i = 1; i < leading; ++i) {
    std::vector<ContentPart>& more = messages[i].message.parts;
    if (more.empty()) continue;
    if (!first.empty()) first.push_back(ContentPart::make_text("\n\n"));
    first.insert(first.end(), std::make_move_iterator(more.begin()), std::make_move_iterator(more.end()));
  }
  messages.erase(messages.begin() + 1, messages.begin() + static_cast<std::ptrdiff_t>(leading));
}

}  // namespace

image::PixelOverrides parse_pixels(const FieldReader& fields, const ServerFacts& facts) {
  image::PixelOverrides out;
  out.min_pixels = fields.integer("min_pixels", 1, facts.max_pixels);
  out.max_pixels = fields.integer("max_pixels", 1, facts.max_pixels);
  if (out.min_pixels && out.max_pixels && *out.min_pixels > *out.max_pixels) {
    throw invalid_value(fields.path("min_pixels"), cat("expected at most 'max_pixels', ", *out.max_pixels, ", but got ", *out.min_pixels, "."));
  }
  return out;
}

Conversation parse_messages(const Json& messages, const std::string& path, const ServerFacts& facts,
                            const image::PixelOverrides& pixels) {
  if (!messages.is_array()) throw invalid_type(path, "an array of objects", messages);
  if (messages.empty()) throw bad_request("empty_array", path, cat("Invalid '", path, "': empty array. Expected at least one message."));
  MessageReader reader(facts, pixels);
  std::vector<ParsedMessage> parsed;
  for (size_t i = 0; i < messages.size(); ++i) parsed.push_back(reader.read(messages[i], index_path(path, i)));
  match_tool_results(parsed);
  if (facts.variant == text::TemplateVariant::kInstruct) join_system_messages(parsed);
  Conversation out;
  for (ParsedMessage& m : parsed) {
    for (MediaRef& ref : m.media) {
      ref.message = out.messages.size();
      out.media.push_back(std::move(ref));
    }
    out.messages.push_back(std::move(m.message));
  }
  if (static_cast<int64_t>(out.media.size()) > facts.max_media) {
    const std::string& where = out.media[static_cast<size_t>(facts.max_media)].param;
    throw bad_request("too_many_media", where,
                      cat("Too many pictures and videos: this server takes at most ", facts.max_media, " in a request, but got ", out.media.size(), "."));
  }
  return out;
}

}  // namespace qvl::serve
