#include "qvl/serve/tool_calls.h"

#include <algorithm>
#include <optional>

#include "qvl/base/json.h"
#include "qvl/generate/json_span.h"

namespace qvl::serve {
namespace {

constexpr std::string_view kThinkOpen = "<think>", kThinkClose = "</think>";
constexpr std::string_view kCallOpen = "<tool_call>", kCallClose = "</tool_call>";
constexpr std::string_view kNewlines = "\n";
constexpr std::string_view kSpace = " \t\r\n";

// How many bytes at the end of `text` are a proper beginning of `tag`.
size_t partial_tag(std::string_view text, std::string_view tag) {
  for (size_t n = std::min(text.size(), tag.size() - 1); n > 0; --n) {
    if (text.substr(text.size() - n) == tag.substr(0, n)) return n;
  }
  return 0;
}

// `text` without what it ends with of `characters`: its length.
size_t trimmed_size(std::string_view text, std::string_view characters) {
  return text.find_last_not_of(characters) + 1;  // npos + 1 is 0
}

struct Call {
  std::string name;
  std::string arguments;
};

// {"name": "...", "arguments": {...}}, in either order and nothing else; arguments may be a string that holds an object.
std::optional<Call> parse_call(std::string_view json) {
  const std::optional<generate::JsonMembers> members = generate::json_members(json);
  if (!members || members->size() != 2) return std::nullopt;
  std::string_view name, arguments;
  for (const auto& [key, value] : *members) {
    if (key == "name") name = value;
    if (key == "arguments") arguments = value;
  }
  if (!name.starts_with('"') || arguments.empty()) return std::nullopt;
  const Json parsed_name = Json::parse(name, nullptr, false);
  if (parsed_name.is_discarded()) return std::nullopt;
  Call call{parsed_name.get<std::string>(), std::string(arguments)};
  if (arguments.starts_with('"')) {
    const Json text = Json::parse(arguments, nullptr, false);
    if (text.is_discarded()) return std::nullopt;
    call.arguments = text.get<std::string>();
  }
  // Also refuses what is JSON by its syntax only (lone surrogates).
  if (!generate::json_members(call.arguments) || !Json::accept(call.arguments)) return std::nullopt;
  return call;
}

}  // namespace

AnswerSplitter::AnswerSplitter(SplitterOptions options) : options_(std::move(options)), state_(State::kContent) {
  if (options_.reasoning == SplitterOptions::Reasoning::kMayBegin) state_ = State::kStart;
  if (options_.reasoning == SplitterOptions::Reasoning::kBegun) {
    state_ = State::kReasoning;
    trim_ = kNewlines;
  }
}

std::vector<AnswerEvent> AnswerSplitter::push(std::string_view text) {
  Events out;
  held_ += text;
  while (!done() && step(out, false)) {
  }
  if (done()) held_.clear();
  return out;
}

std::vector<AnswerEvent> AnswerSplitter::finish() {
  Events out;
  while (!done() && step(out, true)) {
  }
  held_.clear();
  return out;
}

bool AnswerSplitter::step(Events& out, bool last) {
  switch (state_) {
    case State::kStart:
      return step_start(last);
    case State::kReasoning:
      return step_reasoning(out, last);
    case State::kContent:
      return step_content(out, last);
    case State::kCall:
      return step_call(out, last);
  }
  return false;
}

bool AnswerSplitter::step_start(bool last) {
  const size_t begin = held_.find_first_not_of(kSpace);
  const std::string_view text = begin == std::string::npos ? std::string_view() : std::string_view(held_).substr(begin);
  if (text.starts_with(kThinkOpen)) {
    held_.erase(0, begin + kThinkOpen.size());
    state_ = State::kReasoning;
    trim_ = kNewlines;
    return true;
  }
  if (!last && kThinkOpen.starts_with(text)) return false;
  state_ = State::kContent;
  return true;
}

// Moves `bytes` of what is held to the events, without what trim_ says.
void AnswerSplitter::emit(Events& out, AnswerEvent::Kind kind, size_t bytes) {
  std::string_view text = std::string_view(held_).substr(0, bytes);
  if (!trim_.empty() && !text.empty()) {
    const size_t begin = text.find_first_not_of(trim_);
    text = begin == std::string_view::npos ? std::string_view() : text.substr(begin);
    if (!text.empty()) trim_ = {};
  }
  if (!text.empty()) {
    if (!out.empty() && out.back().kind == kind) {
      out.back().text += text;
    } else {
      out.push_back({.kind = kind, .text = std::string(text)});
    }
  }
  held_.erase(0, bytes);
}

bool AnswerSplitter::step_reasoning(Events& out, bool last) {
  const size_t close = held_.find(kThinkClose);
  if (close != std::string::npos) {
    const size_t text = trimmed_size(std::string_view(held_).substr(0, close), kNewlines);
    emit(out, AnswerEvent::Kind::kReasoning, text);
    held_.erase(0, close - text + kThinkClose.size());
    state_ = State::kContent;
    trim_ = kNewlines;
    return true;
  }
  size_t ready = held_.size();
  if (!last) ready = trimmed_size(std::string_view(held_).substr(0, held_.size() - partial_tag(held_, kThinkClose)), kNewlines);
  emit(out, AnswerEvent::Kind::kReasoning, ready);
  return false;
}

bool AnswerSplitter::step_content(Events& out, bool last) {
  if (options_.tools.empty()) {
    emit(out, AnswerEvent::Kind::kContent, held_.size());
    return false;
  }
  const size_t open = held_.find(kCallOpen);
  size_t ready = held_.size();
  if (open != std::string::npos) {
    ready = trimmed_size(std::string_view(held_).substr(0, open), kSpace);
  } else if (!last) {
    ready = trimmed_size(std::string_view(held_).substr(0, held_.size() - partial_tag(held_, kCallOpen)), kSpace);
  }
  emit(out, AnswerEvent::Kind::kContent, ready);
  if (open == std::string::npos) return false;
  state_ = State::kCall;
  searched_ = 0;
  return true;
}

bool AnswerSplitter::step_call(Events& out, bool last) {
  const size_t close = held_.find(kCallClose, searched_);
  if (close == std::string::npos && !last) {
    searched_ = held_.size() - partial_tag(held_, kCallClose);
    return false;
  }
  const size_t json = std::min(held_.find_first_not_of(kSpace, held_.find(kCallOpen) + kCallOpen.size()), held_.size());
  const generate::JsonScan scan = generate::scan_json_value(held_, json);
  // Where what is no call ends: behind the first closing tag, whatever made it look further.
  size_t end = held_.find(kCallClose);
  end = end == std::string::npos ? held_.size() : end + kCallClose.size();
  bool open = scan.state == generate::JsonScan::State::kCutOff;  // the tag may stand inside a string of the arguments
  if (scan.state == generate::JsonScan::State::kWhole) {
    const size_t tag = std::min(held_.find_first_not_of(kSpace, scan.end), held_.size());
    const std::string_view rest = std::string_view(held_).substr(tag);
    const bool closed = rest.starts_with(kCallClose);
    open = !closed && kCallClose.starts_with(rest);
    if ((closed || (last && open)) && emit_call(out, std::string_view(held_).substr(json, scan.end - json))) {
      held_.erase(0, closed ? tag + kCallClose.size() : held_.size());
      state_ = State::kContent;
      trim_ = kSpace;
      return true;
    }
    if (closed) end = tag + kCallClose.size();
  }
  if (open && !last) {
    searched_ = close + kCallClose.size();
    return true;
  }
  if (trim_ == kSpace) trim_ = {};  // between two calls white space is the template's, but this is none
  emit(out, AnswerEvent::Kind::kContent, end);
  state_ = State::kContent;
  return true;
}

bool AnswerSplitter::emit_call(Events& out, std::string_view json) {
  std::optional<Call> call = parse_call(json);
  if (!call || std::find(options_.tools.begin(), options_.tools.end(), call->name) == options_.tools.end()) return false;
  out.push_back({.kind = AnswerEvent::Kind::kToolCall, .text = std::move(call->arguments), .name = std::move(call->name), .index = calls_});
  ++calls_;
  return true;
}

}  // namespace qvl::serve
