// One timeline: the KV cache, the ids and visual tokens in it, and the loops that extend it: chunked prefill
// and decode (spec 6). A prompt that begins like what is already in the cache costs only its new part, so a
// conversation is fed whole every turn and computed once. Above it sits pipeline.h, which makes prompts and
// text; answers are made by generation.h, one session's alone or those of several together.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "qvl/base/tensor.h"
#include "qvl/engine/engine.h"
#include "qvl/generate/constraint.h"
#include "qvl/generate/logprobs.h"
#include "qvl/generate/prefill_chunk.h"
#include "qvl/generate/sampler.h"
#include "qvl/generate/speculation.h"
#include "qvl/image/grid.h"

namespace qvl::generate {

class DiskMemory;

// An image or a video of a prompt.
struct PromptVisual {
  bool is_video = false;
  image::Grid grid;
  std::string key;  // names the content (a SHA-256): equal keys and grids mean equal features
  // May be null while every visual token is already in the session's cache.
  std::shared_ptr<const engine::VisionFeatures> features;
};

struct Prompt {
  std::vector<int32_t> ids;           // placeholders already expanded
  std::vector<PromptVisual> visuals;  // in the order of their placeholders
};

enum class FinishReason { kStop, kLength, kCancelled };
std::string_view finish_reason_name(FinishReason reason);  // "stop", "length", "cancelled"

// What ended an answer, more exactly.
enum class EndCause {
  kEndToken,    // kStop: one of end_ids
  kStopString,  // kStop: pipeline.h, one of AnswerOptions::stop
  kCallback,    // kStop: on_token returned false
  kConstraint,  // kStop: nothing more may come
  kMaxTokens,   // kLength
  kContext,     // kLength: the model's context is full
  kCancelled,   // kCancelled
};

struct GenerateOptions {
  SamplingParams sampling;
  uint64_t seed = 0;
  int64_t max_tokens = 2048;     // >= 1
  std::vector<int32_t> end_ids;  // empty: only max_tokens and the context end the answer
  int64_t id_limit = 0;          // ids below it have text; 0: the whole vocabulary
  // Changes no token of the answer, only how many steps it takes. kAuto is off where the decoder's rows are not
  // independent.
  Speculation speculation;
  // What may be said; null: everything. Serves one answer: it carries that answer's state.
  std::shared_ptr<TokenConstraint> constraint;
  // Added to the logits before penalties and temperature. Ids of the vocabulary, finite values.
  std::map<int32_t, float> logit_bias;
  // Log-probabilities of every token said and of so many alternatives, 0..kMaxTopLogprobs; absent: none.
  std::optional<int> top_logprobs;
};

struct PrefillResult {
  int64_t prompt_tokens = 0;
  int64_t cached_tokens = 0;  // taken over from the cache
  int64_t visual_tokens = 0;  // of prompt_tokens
  double prefill_ms = 0;
};

// How the tokens after the first came about: without guesses, one step each.
struct DecodeCounts {
  int64_t steps = 0;            // calls of the decoder
  int64_t drafted_tokens = 0;   // guesses that were checked in them
  int64_t accepted_tokens = 0;  // of drafted_tokens, those that were said
};

// One token of an answer, as it is said.
struct SaidToken {
  int32_t id = 0;
  const TokenLogprobs* logprobs = nullptr;  // null unless asked for; valid during the call
};

struct GenerateResult {
  std::vector<int32_t> ids;  // what the model said, an end token included
  std::vector<TokenLogprobs> logprobs;  // one for each of `ids` when asked for, else none
  FinishReason reason = FinishReason::kStop;
  EndCause cause = EndCause::kEndToken;
  double first_token_ms = 0;  // from the call to the first token
  double decode_ms = 0;       // from the first token to the last
  DecodeCounts counts;
};

class Session {
 public:
  // Prompts are computed `prefill_chunk_tokens` at a time (>= 1); the result does not depend on it.
  explicit Session(std::shared_ptr<const engine::Engine> engine, int64_t prefill_chunk_tokens = kPrefillChunkTokens);

  // What later prompts may take over from the cache. Generated tokens have other last bits there than the same tokens of a
  // prompt; without them (kPromptsOnly) a later turn says what a fresh session would, and the last answer is read again.
  enum class Reuse { kEverything, kPromptsOnly };
  void set_reuse(Reuse reuse) { reuse_ = reuse; }
  Reuse reuse() const { return reuse_; }

  // Of the tokens in the cache, those that a prompt which begins with them would take over.
  int64_t reusable_tokens() const { return reuse_ == Reuse::kPromptsOnly ? prefilled_ : length(); }

  // How many leading tokens of the prompt prefill() would take over from the cache: ids equal and, at visual
  // tokens, the same picture. At most ids.size() - 1, because the last one's logits are needed. Throws
  // kMismatch when placeholders and visuals do not fit each other.
  int64_t cached_prefix(const Prompt& prompt) const;
  // Which of the prompt's visuals have a token beyond the first `cached` ones: these need features.
  std::vector<bool> visuals_needed(const Prompt& prompt, int64_t cached) const;
  // Throws kLimit when the prompt and one token of answer exceed the model's context.
  void check_context(const Prompt& prompt) const;

  // Takes the longest beginning of the prompt that `memory` keeps, where it is longer than what the cache holds, so that
  // the calls above and prefill() find it there. Returns the length of what the cache then holds of the prompt.
  int64_t restore(const Prompt& prompt, DiskMemory& memory);
  // Takes the longest beginning of the prompt that `donor`, a session of the same engine, holds and that came from prompts
  // alone (so that its bits are those of computing it here), where it is longer than what the cache holds: the two then
  // share memory until one of them changes. `donor` may be in the middle of an answer or of a prefill. Returns the length
  // of what the cache then holds of the prompt. Throws kMismatch as cached_prefix() does, kInvalidArgument for another
  // engine's session.
  int64_t share(const Prompt& prompt, const Session& donor);
  // Gives `memory` the beginning that ends behind the last picture of the last prompt filled in, unless tokens in it were
  // generated: those are computed in another way than a prompt's, with other last bits.
  void keep(const Prompt& prompt, DiskMemory& memory) const;

  // Makes the cache hold exactly `prompt`. progress: tokens done and to do; false cancels (kCancelled; what
  // was computed by then stays and is taken over the next time). Throws kInvalidArgument, kMismatch, kLimit;
  // the session stays usable after any of them.
  // `top`: which of its last token's logits the answer will need (needed_logits() in generation.h).
  PrefillResult prefill(const Prompt& prompt, const engine::ProgressFn& progress = {}, engine::TopLogits top = {});
  // Computes what the cache lacks of the first `length` (1..ids.size()) tokens of a prompt that is still to come; where it lacks
  // nothing of them the cache stays as it is. An answer needs prefill() first. progress, errors as of prefill().
  void read_ahead(const Prompt& prompt, int64_t length, const engine::ProgressFn& progress = {});

  // Continues the last prefill: a Generation (generation.h), stepped alone. on_token is called with every token but an end
  // token and returns false to stop (kStop). `cancel` may be null. Afterwards the cache holds the prompt and what was said
  // but its last token. Throws what Generation throws, and what ends its answer.
  GenerateResult generate(const GenerateOptions& options, const std::function<bool(int32_t id)>& on_token,
                          const std::atomic<bool>* cancel = nullptr);

  // Forgets everything.
  void clear();

  int64_t length() const { return static_cast<int64_t>(ids_.size()); }
  size_t cache_bytes() const { return cache_ ? cache_->size_bytes() : 0; }
  int64_t context_tokens() const { return engine_->config().text.max_positions; }

 private:
  friend class Generation;
  friend struct DecodeStep;

  // Which visual of a prompt each token belongs to (-1: text), and which feature row it shows.
  struct Layout {
    std::vector<int32_t> visual;
    std::vector<int32_t> row;
  };
  Layout layout(const Prompt& prompt) const;
  // A beginning of a prompt that ends behind the last token of a visual (and its end marker).
  struct VisualPrefix {
    int64_t length = 0;
    std::vector<const PromptVisual*> visuals;  // shown in it, in the order of their first tokens
  };
  // Longest first; none is the whole prompt.
  std::vector<VisualPrefix> visual_prefixes(const Prompt& prompt, const Layout& where) const;
  // How many of the first `most` tokens of the prompt the cache holds.
  int64_t common_prefix(const Prompt& prompt, const Layout& layout, int64_t most) const;
  // Of all but the last token, whose logits an answer needs.
  int64_t common_prefix(const Prompt& prompt, const Layout& layout) const {
    return common_prefix(prompt, layout, std::max<int64_t>(static_cast<int64_t>(prompt.ids.size()) - 1, 0));
  }
  // Makes the cache hold the first `length` tokens of the prompt, `cached` of which it does; with kLast the logits of the
  // last of them are then known.
  void fill(const Prompt& prompt, const Layout& where, int64_t cached, int64_t length, engine::LogitsMode logits,
            engine::TopLogits top, const engine::ProgressFn& progress);
  void truncate(int64_t length);
  void prefill_chunk(const Prompt& prompt, const Layout& layout, int64_t begin, int64_t end,
                     std::span<const int64_t> const (&positions)[3], engine::LogitsMode logits,
                     engine::TopLogits top, const engine::ProgressFn& progress);
  // Makes `cache`, which holds the first `length` positions of the prompt as a prompt's, this session's.
  void adopt(std::unique_ptr<engine::KvCache> cache, const Prompt& prompt, const Layout& layout, int64_t length);

  std::shared_ptr<const engine::Engine> engine_;
  int64_t prefill_chunk_tokens_;
  std::unique_ptr<engine::KvCache> cache_;
  // What the cache holds, position by position.
  std::vector<int32_t> ids_;
  std::vector<int32_t> visual_of_;
  Reuse reuse_ = Reuse::kEverything;
  int64_t prefilled_ = 0;  // how many of the first of them came from prompts: their bits are those of any other run
  std::vector<PromptVisual> visuals_;  // features not kept
  int64_t delta_ = 0;                  // rotary position minus cache length of the next token (spec 6.2)
  Tensor logits_;                      // of the last position, [1, V]; empty when it is not known
  engine::TopLogits top_;              // which of them are exact
  Drafter drafter_;
  DraftController controller_;
};

}  // namespace qvl::generate
