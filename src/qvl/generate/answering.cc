// An answer from the conversation to its text, in steps (pipeline.h).
#include <algorithm>
#include <random>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "qvl/base/error.h"
#include "qvl/base/format.h"
#include "qvl/base/stopwatch.h"
#include "qvl/generate/pipeline.h"
#include "qvl/generate/stop_strings.h"
#include "qvl/text/stream_decoder.h"

namespace qvl::generate {
namespace {

// Short enough to be read off --verbose and typed again.
uint64_t fresh_seed() {
  return std::random_device()();
}

}  // namespace

// Tokens to shown text: whole characters, stop strings taken out.
class Answering::TextStream {
 public:
  TextStream(const text::Tokenizer& tokenizer, const std::vector<std::string>& stop,
             const std::function<void(std::string_view)>& on_text)
      : decoder_(tokenizer), stop_(stop), on_text_(on_text) {}

  // False when a stop string is complete.
  bool push(int32_t id) {
    show(stop_.push(decoder_.push(id)));
    return !stop_.stopped();
  }

  void finish() {
    if (stop_.stopped()) return;
    show(stop_.push(decoder_.flush()));
    if (!stop_.stopped()) show(stop_.flush());
  }

  const std::string& text() const { return text_; }
  const std::string& stop_found() const { return stop_.found(); }

 private:
  void show(const std::string& piece) {
    if (piece.empty()) return;
    text_ += piece;
    if (on_text_) on_text_(piece);
  }

  text::StreamDecoder decoder_;
  StopStrings stop_;
  const std::function<void(std::string_view)>& on_text_;
  std::string text_;
};

Answering::Answering(Pipeline& pipeline, const AnswerOptions& options, AnswerCallbacks callbacks)
    : pipeline_(pipeline), callbacks_(std::move(callbacks)), start_(Clock::now()) {
  answer_.seed = options.seed ? *options.seed : fresh_seed();
  stream_ = std::make_unique<TextStream>(pipeline_.assets_->tokenizer, options.stop, callbacks_.on_text);
}

Answering::~Answering() = default;

bool Answering::cancelled() const {
  return callbacks_.cancel && callbacks_.cancel->load(std::memory_order_relaxed);
}

void Answering::collect_preprocess_ms() {
  for (const auto& v : visuals_) answer_.preprocess_ms += std::exchange(v->unreported_preprocess_ms_, 0.0);
}

void Answering::begin(Prompt prompt, std::vector<std::shared_ptr<Visual>> visuals, const AnswerOptions& options,
                      std::span<const Pipeline* const> donors) {
  pipeline_.unread_.reset();
  prompt_ = std::move(prompt);
  visuals_ = std::move(visuals);
  if (prompt_.visuals.size() != visuals_.size()) {
    fail(ErrorCode::kMismatch, "pipeline", "pictures", cat(prompt_.visuals.size(), " (those of the prompt)"), cat(visuals_.size()));
  }
  pipeline_.session_.check_context(prompt_);
  const int64_t merge = pipeline_.engine_->config().vision.spatial_merge_size;
  for (const auto& v : visuals_) {
    answer_.visuals.push_back({.info = v->info(), .tokens = v->info().grid.merged_tokens(merge), .cached = true});
    answer_.image_tokens += answer_.visuals.back().tokens;
  }
  answer_.prompt_tokens = static_cast<int64_t>(prompt_.ids.size());
  collect_preprocess_ms();  // loading happened before this call, but the user waited for it
  before_ms_ = answer_.preprocess_ms;
  GenerateOptions generate = generate_options(options);
  try {
    fill_session(donors, needed_logits(*pipeline_.engine_, generate));
  } catch (const Error& e) {
    if (e.code() != ErrorCode::kCancelled || !cancelled()) throw;
    answer_.reason = FinishReason::kCancelled;
    answer_.cause = EndCause::kCancelled;
    return;
  }
  start_generation(std::move(generate));
}

void Answering::fill_session(std::span<const Pipeline* const> donors, engine::TopLogits top) {
  Session& session = pipeline_.session_;
  int64_t cached = session.cached_prefix(prompt_);
  for (const Pipeline* donor : donors) {
    if (donor && donor != &pipeline_) cached = session.share(prompt_, donor->session_);
  }
  if (pipeline_.disk_) cached = session.restore(prompt_, *pipeline_.disk_);
  find_features(cached);
  if (answer_.vision_patches > 0) pipeline_.engine_->vision().give_back();
  collect_preprocess_ms();
  const PrefillResult prefill = session.prefill(prompt_, [&](int64_t done, int64_t total) {
    if (callbacks_.progress) callbacks_.progress(Phase::kPrefill, done, total);
    return !cancelled();
  }, top);
  answer_.cached_tokens = prefill.cached_tokens;
  answer_.prefill_ms = prefill.prefill_ms;
}

void Answering::find_features(int64_t cached) {
  const std::vector<bool> needed = pipeline_.session_.visuals_needed(prompt_, cached);
  std::unordered_map<std::string_view, std::shared_ptr<const engine::VisionFeatures>> features;  // null: to encode
  int64_t total_patches = 0;
  for (size_t i = 0; i < visuals_.size(); ++i) {
    const VisualInfo& info = visuals_[i]->info();
    if (!needed[i]) continue;
    const auto [found, first] = features.try_emplace(info.key);
    if (!first) continue;
    found->second = pipeline_.known_features(info);
    if (!found->second) total_patches += info.grid.patches();
  }
  int64_t done_patches = 0;
  for (size_t i = 0; i < visuals_.size(); ++i) {
    if (needed[i]) {
      const VisualInfo& info = visuals_[i]->info();
      auto& found = features[info.key];
      if (!found) {
        const int64_t patches = info.grid.patches();
        const Pipeline::Encoded encoded = pipeline_.encode(*visuals_[i], [&](int64_t done, int64_t units) {
          if (callbacks_.progress) {
            callbacks_.progress(Phase::kVision, done_patches + (units > 0 ? patches * done / units : 0), total_patches);
          }
          return !cancelled();
        });
        found = encoded.features;
        done_patches += patches;
        answer_.visuals[i].cached = false;
        answer_.visuals[i].encode_ms = encoded.ms;
        answer_.vision_ms += encoded.ms;
        answer_.vision_patches += encoded.patches;
      }
      prompt_.visuals[i].features = found;
    }
    visuals_[i]->pixels_ = Tensor();
  }
}

GenerateOptions Answering::generate_options(const AnswerOptions& options) const {
  const Assets& assets = *pipeline_.assets_;
  return {.sampling = options.sampling,
          .seed = answer_.seed,
          .max_tokens = options.max_tokens,
          .end_ids = options.ignore_eos ? std::vector<int32_t>{} : assets.end_ids,
          .id_limit = assets.tokenizer.vocab_size(),
          .speculation = options.speculation,
          .constraint = options.constraint,
          .logit_bias = options.logit_bias,
          .top_logprobs = options.top_logprobs};
}

void Answering::start_generation(GenerateOptions options) {
  before_ms_ += ms_since(start_);
  generation_ = std::make_unique<Generation>(
      pipeline_.session_, std::move(options),
      [this](const SaidToken& token) {
        const bool wanted = !callbacks_.on_token || callbacks_.on_token(token);
        return stream_->push(token.id) && wanted;
      },
      callbacks_.cancel);
}

Answer Answering::finish() {
  if (generation_) {
    GenerateResult result = generation_->finish();
    stream_->finish();
    answer_.token_ids = std::move(result.ids);
    answer_.logprobs = std::move(result.logprobs);
    answer_.reason = result.reason;
    answer_.cause = result.cause;
    answer_.decode_ms = result.decode_ms;
    answer_.decode = result.counts;
    answer_.kv_bytes = static_cast<int64_t>(pipeline_.session_.cache_bytes());
    if (!answer_.token_ids.empty()) answer_.ttft_ms = before_ms_ + result.first_token_ms;
    if (answer_.reason != FinishReason::kCancelled) leave_unread();
  }
  answer_.text = stream_->text();
  answer_.stop_string = stream_->stop_found();
  if (answer_.cause == EndCause::kCallback && !answer_.stop_string.empty()) answer_.cause = EndCause::kStopString;
  return std::move(answer_);
}

void Answering::leave_unread() {
  if (pipeline_.session_.reuse() != Session::Reuse::kPromptsOnly) return;
  Pipeline::Unread unread{.prompt = prompt_, .known = static_cast<int64_t>(prompt_.ids.size())};
  for (PromptVisual& v : unread.prompt.visuals) v.features.reset();
  unread.prompt.ids.insert(unread.prompt.ids.end(), answer_.token_ids.begin(), answer_.token_ids.end());
  // Where the model itself ended its turn, the next one's marks follow.
  const std::vector<int32_t> marks = pipeline_.turn_marks();
  if (!marks.empty() && !answer_.token_ids.empty() && marks.front() == answer_.token_ids.back())
    unread.prompt.ids.insert(unread.prompt.ids.end(), marks.begin() + 1, marks.end());
  unread.length = static_cast<int64_t>(unread.prompt.ids.size());
  if (unread.prompt.ids.size() < static_cast<size_t>(pipeline_.session_.context_tokens())) pipeline_.unread_ = std::move(unread);
}

void Answering::keep() {
  if (!pipeline_.disk_) return;
  for (size_t i = 0; i < visuals_.size(); ++i) {
    auto features = prompt_.visuals[i].features;
    // Not needed any more where the picture's tokens were read ahead.
    if (!features) {
      if (auto known = pipeline_.memory_->find(visuals_[i]->info().key)) features = std::move(known->features);
    }
    if (features) pipeline_.disk_->keep(visuals_[i]->info(), *features);
  }
  if (generation_) pipeline_.session_.keep(prompt_, *pipeline_.disk_);
}

}  // namespace qvl::generate
