// Replies of OpenAI's API: objects and stream events, from what the scheduler knows about an answer. Beside the
// standard fields stands "qvl": what was done to the pictures, timings, why the answer ended, boxes in pixels.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "qvl/base/json.h"
#include "qvl/generate/grounding.h"
#include "qvl/generate/pipeline.h"
#include "qvl/generate/repetition.h"
#include "qvl/serve/api_error.h"

namespace qvl::serve {

// "chatcmpl-" and 24 random letters and digits; likewise "cmpl-", "call_". Thread-safe.
std::string new_id(std::string_view prefix);

// The same in every chunk of a stream.
struct ReplyHead {
  std::string id;                  // new_id("chatcmpl-")
  int64_t created = 0;             // seconds since 1970
  std::string model;               // that answered: ServerFacts::model_ids[0]
  std::string system_fingerprint;  // changes when answers may: program, weights, precision
};

struct TokenLogprob {
  struct Alternative {
    std::string bytes;
    double logprob = 0;
  };
  std::string bytes;  // of the token, perhaps half a character
  double logprob = 0;
  std::vector<Alternative> top;  // likeliest first
};

struct Usage {
  int64_t prompt_tokens = 0;
  int64_t completion_tokens = 0;  // of all choices, end tokens included
  int64_t cached_tokens = 0;      // of prompt_tokens
  int64_t image_tokens = 0;       // of prompt_tokens, videos included
  int64_t reasoning_tokens = 0;   // of completion_tokens
};
// {"prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details": {"cached_tokens", "image_tokens"},
// "completion_tokens_details": {"reasoning_tokens"}}
Json usage_json(const Usage& usage);

// Why an answer ended.
enum class EndCause {
  kEndToken,    // stop
  kStopString,  // stop
  kConstraint,  // stop: the grammar was fulfilled
  kToolCall,    // tool_calls: the one call that was wanted is whole
  kMaxTokens,   // length
  kContext,     // length: the model's context is full
  kRepetition,  // length: the guard found a loop, the answer is not complete
  kTimeout,     // length: the server's limit on a request's time
};
std::string_view end_cause_name(EndCause cause);  // "end_token", "stop_string", "constraint", "tool_call", ...

struct Ending {
  EndCause cause = EndCause::kEndToken;
  std::string stop_string;                       // kStopString: which
  std::optional<generate::Repetition> repetition;  // kRepetition
  // Code points of the text (reasoning or content) up to the end of the loop's first round; absent: not known.
  std::optional<int64_t> sensible_characters;
};

struct ToolCallOut {
  std::string id;  // new_id("call_")
  std::string name;
  std::string arguments;  // JSON text
};

// "tool_calls" when there are calls and the answer was not cut off, else "stop" or "length".
std::string_view finish_reason(const Ending& ending, bool has_tool_calls);

struct ChatChoice {
  int64_t index = 0;
  std::string content;
  std::string reasoning;  // "reasoning_content", left out when empty
  std::vector<ToolCallOut> tool_calls;
  Ending ending;
  std::optional<std::vector<TokenLogprob>> logprobs;
  std::optional<generate::Grounding> grounding;  // asked for with "grounding": "pixels"
};

// About a request as a whole.
struct RequestFacts {
  std::vector<generate::VisualReport> visuals;  // in the order of the parts
  std::vector<std::string> details;             // "detail" of each as asked for; shorter: "auto"
  Json timings;                                 // generate::timings_json
  Json engine;                                  // generate::engine_info_json; null: left out
  std::string unenforced;                       // of a schema that is not strict: what the answer was not held to; empty: left out
};
// {"images": [{"width", "height", "resized_width", "resized_height", "grid_thw", "patches", "tokens", "encode_ms", "cached",
// "detail"}], "timings": {...}, "engine": {...}, "unenforced": "..."}
Json request_facts_json(const RequestFacts& facts);
// {"finish": {"reason", "stop_string"?, "repetition"?: {...}}, "grounding"?: {...}}: "qvl" of a choice.
Json choice_facts_json(const Ending& ending, const generate::Grounding* grounding);

// "chat.completion". `content` of a choice that only called tools is null.
Json chat_completion(const ReplyHead& head, std::span<const ChatChoice> choices, const Usage& usage,
                     const RequestFacts& facts);

// Chunks of "chat.completion.chunk". Order for each choice: begin, any number of pieces, end; after all choices, usage if
// the client asked for it. Every object before it then carries "usage": null.
class ChatStream {
 public:
  ChatStream(ReplyHead head, bool include_usage) : head_(std::move(head)), include_usage_(include_usage) {}

  Json begin(int64_t choice) const;  // {"role": "assistant", "content": ""}
  Json content(int64_t choice, std::string_view text, const std::vector<TokenLogprob>* logprobs = nullptr) const;
  Json reasoning(int64_t choice, std::string_view text, const std::vector<TokenLogprob>* logprobs = nullptr) const;
  // Call `index` of the choice: id, type, name and the first piece of the arguments ("" if more follow).
  Json tool_call(int64_t choice, int64_t index, const ToolCallOut& call,
                 const std::vector<TokenLogprob>* logprobs = nullptr) const;
  Json tool_arguments(int64_t choice, int64_t index, std::string_view piece) const;
  // `facts`: with the last choice of a stream without usage, else null.
  Json end(int64_t choice, const Ending& ending, bool has_tool_calls, const generate::Grounding* grounding,
           const RequestFacts* facts, const std::vector<TokenLogprob>* logprobs = nullptr) const;
  Json usage(const Usage& usage, const RequestFacts& facts) const;  // "choices": []

 private:
  Json chunk(int64_t choice, Json delta, const std::vector<TokenLogprob>* logprobs) const;
  ReplyHead head_;
  bool include_usage_;
};

struct TextChoice {
  int64_t index = 0;
  std::string text;
  Ending ending;
  std::optional<std::vector<TokenLogprob>> logprobs;
};

// "text_completion". `usage.prompt_tokens` is the sum over prompts.
Json text_completion(const ReplyHead& head, std::span<const TextChoice> choices, const Usage& usage, const RequestFacts& facts);

// Chunks of "text_completion": pieces, end, usage as in ChatStream.
class TextStream {
 public:
  TextStream(ReplyHead head, bool include_usage) : head_(std::move(head)), include_usage_(include_usage) {}

  // `offset`: characters (code points) of this choice's text before the piece, for logprobs.text_offset.
  Json piece(int64_t choice, std::string_view text, const std::vector<TokenLogprob>* logprobs = nullptr,
             int64_t offset = 0) const;
  Json end(int64_t choice, const Ending& ending, const RequestFacts* facts) const;
  Json usage(const Usage& usage, const RequestFacts& facts) const;

 private:
  ReplyHead head_;
  bool include_usage_;
};

// {"object": "list", "data": [{"id", "object": "model", "created", "owned_by": "qvl"}]}
Json model_list(std::span<const std::string> ids, int64_t created);
Json model_object(std::string_view id, int64_t created);

// "data: {...}\n\n". UTF-8 in one line, invalid parts replaced.
std::string sse_event(const Json& object);
// An error after the status line is out: the event, to be followed by the end of the connection (no [DONE]).
std::string sse_error(const ApiError& error);
inline constexpr std::string_view kSseDone = "data: [DONE]\n\n";
// A comment that keeps proxies and clients from giving up during a long prefill.
inline constexpr std::string_view kSseKeepAlive = ": working\n\n";
// How bodies are written: UTF-8, invalid parts replaced.
std::string dump_json(const Json& object);

}  // namespace qvl::serve
