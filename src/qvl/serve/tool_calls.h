// The text of a model, while it is generated, into what a reply keeps apart: reasoning (<think>...</think>), content, and
// calls of tools (<tool_call>\n{"name": ..., "arguments": ...}\n</tool_call>, spec 7.4). Sits behind StreamDecoder and
// StopStrings.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace qvl::serve {

struct AnswerEvent {
  enum class Kind {
    kReasoning,  // text: a piece of reasoning
    kContent,    // text: a piece of the answer
    kToolCall,   // a whole call: name, text = its arguments, JSON as the model wrote it
  };
  Kind kind = Kind::kContent;
  std::string text;   // never empty
  std::string name;   // kToolCall
  int64_t index = 0;  // kToolCall: 0, 1, ...
};

struct SplitterOptions {
  enum class Reasoning {
    kNone,      // <think> is text: answers in JSON, and whatever does not think
    kMayBegin,  // an answer that begins with <think> is reasoning up to </think>
    kBegun,     // the prompt opened the block
  };
  Reasoning reasoning = Reasoning::kNone;
  // Names that may be called; empty: <tool_call> is text.
  std::vector<std::string> tools;
  int64_t max_calls = 128;  // 1 without parallel calls
};

// One answer. Everything pushed comes out again, in order, but the tags of blocks that were recognised, the white space
// that the template puts around them, and what follows the last call that is allowed (done()). A call comes out when it is whole, so that one that is malformed (not JSON, other
// keys than name and arguments, arguments that are no object, an unknown name) can come back as content, tags and all.
// No tag is ever shown in part: text that may be the beginning of one waits.
class AnswerSplitter {
 public:
  explicit AnswerSplitter(SplitterOptions options);

  std::vector<AnswerEvent> push(std::string_view text);
  // The end of the answer: what was held back. A call whose JSON is whole but whose closing tag is missing counts.
  std::vector<AnswerEvent> finish();

  // Between <think> and </think>. A grammar for the answer starts to hold when this becomes false.
  bool in_reasoning() const { return state_ == State::kReasoning; }
  // max_calls calls are out: what follows is dropped, so generation can stop.
  bool done() const { return calls_ >= options_.max_calls; }
  int64_t calls() const { return calls_; }

 private:
  enum class State { kStart, kReasoning, kContent, kCall };
  using Events = std::vector<AnswerEvent>;
  // One step with what is held; false when more text is needed. `last`: none will come.
  bool step(Events& out, bool last);
  bool step_start(bool last);
  bool step_reasoning(Events& out, bool last);
  bool step_content(Events& out, bool last);
  bool step_call(Events& out, bool last);
  void emit(Events& out, AnswerEvent::Kind kind, size_t bytes);
  bool emit_call(Events& out, std::string_view json);

  SplitterOptions options_;
  State state_;
  std::string held_;        // kCall: white space, <tool_call> and what follows
  std::string_view trim_;   // characters that are dropped if they come next
  size_t searched_ = 0;     // kCall: bytes of held_ without an unseen closing tag
  int64_t calls_ = 0;
};

}  // namespace qvl::serve
