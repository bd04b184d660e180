// From a conversation with pictures to an answer: decode, preprocess, encode, prompt, prefill, decode loop,
// text. Commands and the server call this; the session below it only knows tokens.
#pragma once

#include <atomic>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "qvl/base/tensor.h"
#include "qvl/engine/engine.h"
#include "qvl/generate/assets.h"
#include "qvl/generate/disk_memory.h"
#include "qvl/generate/image_memory.h"
#include "qvl/generate/session.h"
#include "qvl/text/chat.h"

namespace qvl::generate {

// Where a picture comes from.
struct VisualInput {
  enum class Kind { kImageFile, kImageBytes, kFrameFolder };
  Kind kind = Kind::kImageFile;
  std::filesystem::path path;        // file or folder
  std::string bytes;                 // kImageBytes: an image file in memory
  std::string name;                  // for messages; the path if empty
  std::optional<double> native_fps;  // kFrameFolder: recorded at (24 if unknown)
};

// A picture that a conversation refers to. Made by Pipeline::load; keeps what later turns need, so the file
// may change or go away once it was answered about.
class Visual {
 public:
  const VisualInfo& info() const { return info_; }

 private:
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
};

enum class Phase { kVision, kPrefill };

struct AnswerCallbacks {
  std::function<void(std::string_view text)> on_text;                      // pieces of the answer
  std::function<void(Phase phase, int64_t done, int64_t total)> progress;  // patches, prompt tokens
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
  FinishReason reason = FinishReason::kStop;
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

class Pipeline {
 public:
  // `memory` and `disk`, which may be null, may be shared by pipelines of the same engine and assets.
  Pipeline(std::shared_ptr<const engine::Engine> engine, std::shared_ptr<const Assets> assets,
           std::shared_ptr<ImageMemory> memory, int64_t prefill_chunk_tokens = 512,
           std::shared_ptr<DiskMemory> disk = nullptr);

  // Reads and preprocesses a picture unless its features are remembered. Throws what the image room throws.
  std::shared_ptr<Visual> load(VisualInput input, const image::PixelOverrides& overrides = {});
  // Likewise all of them, in their order.
  std::vector<std::shared_ptr<Visual>> load(const std::vector<VisualInput>& inputs,
                                            const image::PixelOverrides& overrides = {});

  // Answers the last message. The conversation is given whole every time; what the session's cache already
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

  void reset() { session_.clear(); }
  const Session& session() const { return session_; }
  const Assets& assets() const { return *assets_; }
  const engine::Engine& engine() const { return *engine_; }

 private:
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
};

// About 13000 visual tokens of the 4B model in float32 (41 KB each), twice as many in bf16.
inline constexpr size_t kDefaultImageMemoryBytes = size_t{512} << 20;

}  // namespace qvl::generate
