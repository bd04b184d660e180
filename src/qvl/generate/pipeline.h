// From a conversation with pictures to an answer: decode, preprocess, encode, prompt, prefill, decode loop,
// text. Commands and the server call this; the session below it only knows tokens.
#pragma once

#include <atomic>
#include <chrono>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "qvl/base/tensor.h"
#include "qvl/engine/engine.h"
#include "qvl/generate/assets.h"
#include "qvl/generate/disk_memory.h"
#include "qvl/generate/generation.h"
#include "qvl/generate/image_memory.h"
#include "qvl/generate/prefill_chunk.h"
#include "qvl/generate/session.h"
#include "qvl/image/decode.h"
#include "qvl/text/chat.h"

namespace qvl::generate {

// Where a picture comes from.
struct VisualInput {
  enum class Kind { kImageFile, kImageBytes, kFrameFolder, kFrameBytes };
  Kind kind = Kind::kImageFile;
  std::filesystem::path path;        // file or folder
  std::string bytes;                 // kImageBytes: an image file in memory
  std::vector<std::string> frames;   // kFrameBytes: image files in memory, in the order of the video
  std::string name;                  // for messages; the path if empty
  std::optional<double> native_fps;  // of frames: recorded at (24 if unknown)
  image::DecodeLimits limits;        // of each file, also where its features are remembered

  bool is_video() const { return kind == Kind::kFrameFolder || kind == Kind::kFrameBytes; }
};

// A picture that a conversation refers to. Made by Pipeline::load; keeps what later turns need, so the file
// may change or go away once it was answered about.
class Visual {
 public:
  const VisualInfo& info() const { return info_; }
  // Its pixels are there, waiting to be encoded: no memory knows it.
  bool is_preprocessed() const { return !pixels_.empty(); }

 private:
  friend class Answering;
  friend class Pipeline;
  VisualInput input_;
  image::PixelOverrides overrides_;
  VisualInfo info_;
  Tensor pixels_;  // until encoded
  double unreported_preprocess_ms_ = 0;
};

struct ChatMessage {
  text::Message message;
  std::vector<std::shared_ptr<Visual>> visuals;  // one per picture part, in order
};

// All of a conversation, in the order of their parts.
std::vector<std::shared_ptr<Visual>> visuals_of(const std::vector<ChatMessage>& conversation);
// A user message: pictures first, in the given order, then the text.
ChatMessage user_message(std::vector<std::shared_ptr<Visual>> visuals, std::string text);
// A message of text alone.
ChatMessage text_message(text::Role role, std::string text);

struct AnswerOptions {
  SamplingParams sampling;
  std::optional<uint64_t> seed;  // absent: a new one every time
  int64_t max_tokens = kDefaultMaxTokens;
  std::vector<std::string> stop;  // stop strings; they end the answer and are not part of it
  bool ignore_eos = false;
  Speculation speculation;  // changes how many steps an answer takes, not the answer
  Json tools;  // null or an array of schemas
  bool add_vision_id = false;
  // Whether the model may think before it answers; absent: as its template does (text/chat.h).
  std::optional<bool> enable_thinking;
  std::shared_ptr<TokenConstraint> constraint;  // as in GenerateOptions, these three
  std::map<int32_t, float> logit_bias;
  std::optional<int> top_logprobs;
};

enum class Phase { kVision, kPrefill };

struct AnswerCallbacks {
  // Every token but an end token, before the text that it completes; false ends the answer (EndCause::kCallback; the
  // token's text is still part of it).
  SaidTokenFn on_token;
  std::function<void(std::string_view text)> on_text;                      // pieces of the answer
  // Patches, prompt tokens. Called between pieces of work as engine::ProgressFn says, many times for a long one: answers of
  // other pipelines may be stepped from inside it (decode_step). What it throws ends this answer.
  std::function<void(Phase phase, int64_t done, int64_t total)> progress;
  const std::atomic<bool>* cancel = nullptr;                               // set: the answer ends where it is
};

struct VisualReport {
  VisualInfo info;
  int64_t tokens = 0;
  double encode_ms = 0;
  bool cached = false;  // features or KV were there already
};

struct Answer {
  std::string text;
  std::vector<int32_t> token_ids;  // an end token included
  std::vector<TokenLogprobs> logprobs;  // one for each of token_ids when asked for, else none
  FinishReason reason = FinishReason::kStop;
  EndCause cause = EndCause::kEndToken;
  std::string stop_string;  // kStopString: which one
  uint64_t seed = 0;
  int64_t prompt_tokens = 0;
  int64_t image_tokens = 0;  // of prompt_tokens, videos included
  int64_t cached_tokens = 0;
  std::vector<VisualReport> visuals;
  double preprocess_ms = 0;
  double vision_ms = 0;
  int64_t vision_patches = 0;  // encoded now
  double prefill_ms = 0;
  double ttft_ms = 0;    // preprocessing to first token; 0 when none came
  double decode_ms = 0;  // first token to last
  int64_t kv_bytes = 0;  // of the session's keys and values afterwards
  DecodeCounts decode;
};

// The token ids of a conversation, placeholders expanded for the given visuals (in the order of their parts).
// The template's variant comes from the assets.
std::vector<int32_t> chat_token_ids(const Assets& assets, const model::VisionConfig& vision,
                                    const std::vector<text::Message>& messages,
                                    const std::vector<VisualInfo>& visuals, text::ChatOptions options = {});

class Pipeline;

// An answer in the making: made by Pipeline::begin(), stepped by decode_step() on its generation, alone or together with
// those of other pipelines, until it is done. Used by one thread at a time. Its pipeline outlives it and does
// nothing else meanwhile; a pipeline makes one answer at a time.
class Answering {
 public:
  ~Answering();  // without finish(): the answer is dropped, the pipeline stays usable
  Answering(const Answering&) = delete;
  Answering& operator=(const Answering&) = delete;

  // Null when the answer was cancelled before its first token: it is then done.
  Generation* generation() { return generation_.get(); }
  bool done() const { return generation_ == nullptr || generation_->done(); }
  // The answer, or what was said by now; the last text is handed to on_text here. Called once. Throws what ended the answer
  // (Generation::finish); the pipeline stays usable.
  Answer finish();
  // Keeps on disk what later processes can use of the pictures and the prompt, where the pipeline has a disk memory. Called
  // once, after finish(), when nobody waits any more; may run on another thread while other pipelines compute.
  void keep();

 private:
  friend class Pipeline;
  class TextStream;
  Answering(Pipeline& pipeline, const AnswerOptions& options, AnswerCallbacks callbacks);

  bool cancelled() const;
  // Up to the first token.
  void begin(Prompt prompt, std::vector<std::shared_ptr<Visual>> visuals, const AnswerOptions& options,
             std::span<const Pipeline* const> donors);
  // Takes over what is known of the prompt, encodes and computes the rest.
  void fill_session(std::span<const Pipeline* const> donors, engine::TopLogits top);
  // Gives the pictures that the session lacks behind its first `cached` tokens their features.
  void find_features(int64_t cached);
  GenerateOptions generate_options(const AnswerOptions& options) const;
  void start_generation(GenerateOptions options);
  // For Pipeline::read_ahead().
  void leave_unread();
  // What loading and preprocessing took and no answer has reported yet.
  void collect_preprocess_ms();

  Pipeline& pipeline_;
  AnswerCallbacks callbacks_;
  std::chrono::steady_clock::time_point start_;
  double before_ms_ = 0;  // until the generation began, loading of pictures included
  Prompt prompt_;
  std::vector<std::shared_ptr<Visual>> visuals_;
  Answer answer_;
  std::unique_ptr<TextStream> stream_;
  std::unique_ptr<Generation> generation_;
};

class Pipeline {
 public:
  // `memory` and `disk`, which may be null, may be shared by pipelines of the same engine and assets.
  Pipeline(std::shared_ptr<const engine::Engine> engine, std::shared_ptr<const Assets> assets,
           std::shared_ptr<ImageMemory> memory, int64_t prefill_chunk_tokens = kPrefillChunkTokens,
           std::shared_ptr<DiskMemory> disk = nullptr);

  // Reads and preprocesses a picture unless its features are remembered. Throws what the image room throws.
  std::shared_ptr<Visual> load(VisualInput input, const image::PixelOverrides& overrides = {});
  // Likewise all of them, in their order.
  std::vector<std::shared_ptr<Visual>> load(const std::vector<VisualInput>& inputs,
                                            const image::PixelOverrides& overrides = {});

  // Begins the answer to the last message: reads the pictures that are not known yet, fills the session, says the first
  // token. `donors`, pipelines of the same engine (this one and null are passed over), are looked through for a longer
  // beginning of the prompt than this session holds (Session::share). Cancelled by callbacks.cancel, the answer is done
  // without a token. The conversation's pictures and callbacks.cancel stay alive until finish(). Throws as answer().
  std::unique_ptr<Answering> begin(const std::vector<ChatMessage>& conversation, const AnswerOptions& options,
                                   AnswerCallbacks callbacks = {}, std::span<const Pipeline* const> donors = {});
  // Likewise continues a prompt that is made already, by make_prompt() or of text as it is. `visuals`: those of the
  // prompt, in its order.
  std::unique_ptr<Answering> begin(Prompt prompt, std::vector<std::shared_ptr<Visual>> visuals, const AnswerOptions& options,
                                   AnswerCallbacks callbacks = {}, std::span<const Pipeline* const> donors = {});
  // Answers the last message: begin(), steps alone, finish(). The conversation is given whole every time; what the session's cache already
  // holds is not computed again. When cancelled the answer holds what was said by then. Throws
  // kInvalidArgument, kMismatch, kLimit and what the stages throw; the pipeline stays usable.
  Answer answer(const std::vector<ChatMessage>& conversation, const AnswerOptions& options,
                const AnswerCallbacks& callbacks = {});

  // The prompt as the model gets it, visuals without features.
  Prompt make_prompt(const std::vector<ChatMessage>& conversation, const AnswerOptions& options) const;
  // A visual's features, by encoding it now; frames that repeat are encoded once where the stage allows it.
  struct Encoded {
    std::shared_ptr<const engine::VisionFeatures> features;
    double ms = 0;
    int64_t patches = 0;  // encoded
  };
  Encoded encode(Visual& visual, const engine::ProgressFn& progress);
  // Preprocessed pixels [P, 1536] of a visual; read again if they were given up.
  const Tensor& pixels(Visual& visual);

  void reset();
  void set_reuse(Session::Reuse reuse) { session_.set_reuse(reuse); }

  // Some of the next turn's prompt is certain before it is asked, and can be read while nobody waits. With
  // Session::Reuse::kPromptsOnly that is the last answer, taken with finish() and not cancelled, which a turn computes anew as
  // part of its prompt, and what follows it up to a question's text; else what expect_turn() finds.
  // Whether something of that is still to be read.
  bool has_unread() const { return unread_.has_value(); }
  // The next turn will be a user's behind this conversation, which the session holds but for its end, with these pictures
  // before its text: what is certain of the prompt, up to the question's text, is to be read. Nothing is where that would take
  // pictures to be encoded, where the context is full, or where the decoder's rows depend on which are computed together (an
  // answer must not depend on the time that a user takes). Returns the first of `visuals` that has to be encoded before;
  // expect the turn again behind that. Throws as make_prompt().
  std::shared_ptr<Visual> expect_turn(const std::vector<ChatMessage>& conversation, const AnswerOptions& options,
                                      const std::vector<std::shared_ptr<Visual>>& visuals = {});
  // Reads up to `tokens` (>= 1) of it. progress as of Session::prefill: false stops with kCancelled and leaves the rest for
  // another time. Whatever else is thrown: there is nothing left to read, and the pipeline stays usable.
  void read_ahead(int64_t tokens, const engine::ProgressFn& progress = {});
  const Session& session() const { return session_; }
  const Assets& assets() const { return *assets_; }
  const engine::Engine& engine() const { return *engine_; }

 private:
  friend class Answering;

  // A prompt to come, features left out.
  struct Unread {
    Prompt prompt;
    int64_t length = 0;  // so many of its first tokens are to be read
    int64_t known = 0;   // what the session holds of them, if nothing happened to it since
  };
  // The prompt of a conversation behind which a user shows these and says something; `length` ends before the first token that
  // depends on what is said. Found by rendering it with two texts.
  Unread before_question(std::vector<ChatMessage> conversation, const AnswerOptions& options,
                         const std::vector<std::shared_ptr<Visual>>& visuals = {}) const;
  // What a next turn's prompt has from the end of an answer's text up to a question's text: both turns' marks. Empty where
  // prompts do not simply go on behind an answer (Thinking).
  std::vector<int32_t> turn_marks() const;
  // `others` are loaded together with it: a picture that is there twice is preprocessed once.
  void preprocess(Visual& visual, std::span<const std::shared_ptr<Visual>> others = {});
  std::shared_ptr<Visual> load(VisualInput input, const image::PixelOverrides& overrides,
                               std::span<const std::shared_ptr<Visual>> others);
  // What memory or disk know of a key.
  std::optional<VisualInfo> known_info(const std::string& key);
  std::shared_ptr<const engine::VisionFeatures> known_features(const VisualInfo& info);
  std::string content_key(const Visual& visual, const std::string& file_bytes) const;

  std::shared_ptr<const engine::Engine> engine_;
  std::shared_ptr<const Assets> assets_;
  std::shared_ptr<ImageMemory> memory_;
  std::shared_ptr<DiskMemory> disk_;
  Session session_;
  std::optional<Unread> unread_;
};

// What is read ahead at a time: as much as an interruption loses at most, and enough rows to be computed well.
inline constexpr int64_t kReadAheadTokens = 64;

// About 13000 visual tokens of the 4B model in float32 (41 KB each), twice as many in bf16.
inline constexpr size_t kDefaultImageMemoryBytes = size_t{512} << 20;

}  // namespace qvl::generate
