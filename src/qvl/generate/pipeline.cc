#include "qvl/generate/pipeline.h"

#include <random>
#include <string_view>
#include <unordered_map>

#include "qvl/base/error.h"
#include "qvl/base/format.h"
#include "qvl/base/mapped_file.h"
#include "qvl/base/sha256.h"
#include "qvl/base/stopwatch.h"
#include "qvl/generate/repeated_frames.h"
#include "qvl/generate/stop_strings.h"
#include "qvl/image/decode.h"
#include "qvl/image/preprocess.h"
#include "qvl/text/prompt.h"
#include "qvl/text/stream_decoder.h"

namespace qvl::generate {
namespace {

// Short enough to be read off --verbose and typed again.
uint64_t fresh_seed() {
  return std::random_device()();
}

// Tokens to shown text: whole characters, stop strings taken out.
class TextStream {
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

std::string display_name(const VisualInput& input) {
  return input.name.empty() ? input.path.string() : input.name;
}

const size_t kMaxFileBytes = image::DecodeLimits{}.max_file_bytes;

}  // namespace

ChatMessage user_message(std::vector<std::shared_ptr<Visual>> visuals, std::string text) {
  ChatMessage out;
  out.message.role = text::Role::kUser;
  for (const auto& v : visuals) {
    out.message.parts.push_back(v->info().is_video ? text::ContentPart::video() : text::ContentPart::image());
  }
  if (!text.empty()) out.message.parts.push_back(text::ContentPart::make_text(std::move(text)));
  out.visuals = std::move(visuals);
  return out;
}

ChatMessage text_message(text::Role role, std::string text) {
  ChatMessage out;
  out.message.role = role;
  if (!text.empty()) out.message.parts.push_back(text::ContentPart::make_text(std::move(text)));
  return out;
}

Pipeline::Pipeline(std::shared_ptr<const engine::Engine> engine, std::shared_ptr<const Assets> assets,
                   std::shared_ptr<ImageMemory> memory, int64_t prefill_chunk_tokens,
                   std::shared_ptr<DiskMemory> disk)
    : engine_(engine),
      assets_(std::move(assets)),
      memory_(std::move(memory)),
      disk_(std::move(disk)),
      session_(std::move(engine), prefill_chunk_tokens) {}

std::string Pipeline::content_key(const Visual& visual, const std::string& file_bytes) const {
  const VisualInput& input = visual.input_;
  // A cryptographic hash: a server's users must not be able to craft a file that is answered with another's.
  Sha256 hash;
  auto limit = [](const std::optional<int64_t>& v) { return v ? cat(*v) : std::string("-"); };
  hash.add(cat(input.kind == VisualInput::Kind::kFrameFolder ? "video" : "image", " ",
               limit(visual.overrides_.min_pixels), " ", limit(visual.overrides_.max_pixels), "\n"));
  if (input.kind != VisualInput::Kind::kFrameFolder) {
    hash.add(file_bytes);
    return hash.finish();
  }
  const auto frames = image::list_frames(input.path);
  const double fps = input.native_fps.value_or(image::kDefaultNativeFps);
  hash.add(cat(frames.size(), " frames at ", fps, "\n"));
  for (int64_t i : image::sample_frames(static_cast<int64_t>(frames.size()), fps, assets_->video)) {
    const std::string bytes = read_file(frames[static_cast<size_t>(i)], kMaxFileBytes);
    hash.add(cat("frame ", i, " of ", bytes.size(), " bytes\n"));
    hash.add(bytes);
  }
  return hash.finish();
}

std::optional<VisualInfo> Pipeline::known_info(const std::string& key) {
  if (auto known = memory_->find(key)) return std::move(known->info);
  return disk_ ? disk_->find(key) : std::nullopt;
}

std::shared_ptr<const engine::VisionFeatures> Pipeline::known_features(const VisualInfo& info) {
  if (auto known = memory_->find(info.key)) return known->features;
  auto features = disk_ ? disk_->load(info.key) : nullptr;
  if (features) memory_->put({info, features});
  return features;
}

// Fills info_ and pixels_, or info_ alone when the features are remembered.
void Pipeline::preprocess(Visual& visual, std::span<const std::shared_ptr<Visual>> others) {
  const auto start = Clock::now();
  const VisualInput& input = visual.input_;
  const bool is_video = input.kind == VisualInput::Kind::kFrameFolder;
  std::string file_bytes;
  if (input.kind == VisualInput::Kind::kImageFile) {
    file_bytes = read_file(input.path, kMaxFileBytes);
  } else if (input.kind == VisualInput::Kind::kImageBytes) {
    file_bytes = input.bytes;
  }
  std::string key = content_key(visual, file_bytes);
  if (!visual.info_.key.empty() && key != visual.info_.key) {
    fail(ErrorCode::kMismatch, display_name(input), "contents", "those of the first reading", "other ones",
         "the file changed while the conversation went on");
  }
  VisualInfo info{.is_video = is_video, .key = std::move(key)};
  if (visual.info_.key.empty()) {
    std::optional<VisualInfo> known = known_info(info.key);
    for (const auto& other : others) {
      if (!known && other->info_.key == info.key) known = other->info_;
    }
    if (known) {
      visual.info_ = *std::move(known);
      visual.unreported_preprocess_ms_ += ms_since(start);
      return;
    }
  }
  if (is_video) {
    image::PreprocessedVideo video = image::load_video(input.path, input.native_fps, assets_->video,
                                                       visual.overrides_, {}, &engine_->pool());
    info.grid = video.grid;
    info.width = video.width, info.height = video.height;
    info.resized_width = video.resized_width, info.resized_height = video.resized_height;
    info.timestamps_s = std::move(video.timestamps_s);
    visual.pixels_ = std::move(video.pixel_values);
  } else {
    const image::RgbImage decoded =
        image::decode_image(std::as_bytes(std::span(file_bytes)), {}, display_name(input));
    image::PreprocessedImage image =
        image::preprocess_image(decoded, assets_->image, visual.overrides_, &engine_->pool());
    info.grid = image.grid;
    info.width = image.width, info.height = image.height;
    info.resized_width = image.resized_width, info.resized_height = image.resized_height;
    visual.pixels_ = std::move(image.pixel_values);
  }
  visual.info_ = std::move(info);
  visual.unreported_preprocess_ms_ += ms_since(start);
}

std::shared_ptr<Visual> Pipeline::load(VisualInput input, const image::PixelOverrides& overrides) {
  return load(std::move(input), overrides, {});
}

std::shared_ptr<Visual> Pipeline::load(VisualInput input, const image::PixelOverrides& overrides,
                                       std::span<const std::shared_ptr<Visual>> others) {
  auto visual = std::make_shared<Visual>();
  visual->input_ = std::move(input);
  visual->overrides_ = overrides;
  preprocess(*visual, others);
  return visual;
}

std::vector<std::shared_ptr<Visual>> Pipeline::load(const std::vector<VisualInput>& inputs,
                                                    const image::PixelOverrides& overrides) {
  std::vector<std::shared_ptr<Visual>> visuals;
  for (const VisualInput& input : inputs) visuals.push_back(load(input, overrides, visuals));
  return visuals;
}

const Tensor& Pipeline::pixels(Visual& visual) {
  if (visual.pixels_.empty()) preprocess(visual);
  return visual.pixels_;
}

Pipeline::Encoded Pipeline::encode(Visual& visual, const engine::ProgressFn& progress) {
  const std::span<const float> values = pixels(visual).as<float>();
  const auto start = Clock::now();
  image::Grid grid = visual.info_.grid;
  DistinctFrames frames;
  if (grid.t > 1 && engine_->vision().frames_are_independent()) frames = distinct_frames(values, grid.t);
  const engine::StageHooks hooks{.trace = {}, .progress = progress, .linear_input = {}};
  Encoded out;
  if (frames.repeat()) {
    grid.t = static_cast<int64_t>(frames.first.size());
    out.features = std::make_shared<const engine::VisionFeatures>(repeat_features(
        engine_->vision().encode(distinct_pixels(values, frames), std::span(&grid, 1), hooks), frames));
  } else {
    out.features = std::make_shared<const engine::VisionFeatures>(
        engine_->vision().encode(values, std::span(&grid, 1), hooks));
  }
  out.ms = ms_since(start);
  out.patches = grid.patches();
  visual.pixels_ = Tensor();
  memory_->put({visual.info_, out.features});
  return out;
}

std::vector<int32_t> chat_token_ids(const Assets& assets, const model::VisionConfig& vision,
                                    const std::vector<text::Message>& messages,
                                    const std::vector<VisualInfo>& visuals, text::ChatOptions options) {
  std::vector<int64_t> image_tokens;
  std::vector<text::VideoPlacement> videos;
  for (const VisualInfo& v : visuals) {
    const int64_t tokens = v.grid.merged_tokens(vision.spatial_merge_size);
    if (v.is_video) {
      videos.push_back({.tokens_per_group = tokens / v.grid.t, .timestamps_s = v.timestamps_s});
    } else {
      image_tokens.push_back(tokens);
    }
  }
  options.variant = assets.chat_template.variant;
  return text::encode_prompt(assets.tokenizer, text::render_chat(messages, options), image_tokens, videos)
      .ids;
}

Prompt Pipeline::make_prompt(const std::vector<ChatMessage>& conversation,
                             const AnswerOptions& options) const {
  std::vector<text::Message> messages;
  std::vector<VisualInfo> infos;
  Prompt prompt;
  for (const ChatMessage& m : conversation) {
    messages.push_back(m.message);
    for (const auto& visual : m.visuals) {
      const VisualInfo& info = visual->info();
      infos.push_back(info);
      prompt.visuals.push_back(
          {.is_video = info.is_video, .grid = info.grid, .key = info.key, .features = nullptr});
    }
  }
  text::ChatOptions chat;
  chat.tools = options.tools;
  chat.add_vision_id = options.add_vision_id;
  prompt.ids = chat_token_ids(*assets_, engine_->config().vision, messages, infos, std::move(chat));
  return prompt;
}

Answer Pipeline::answer(const std::vector<ChatMessage>& conversation, const AnswerOptions& options,
                        const AnswerCallbacks& callbacks) {
  const auto start = Clock::now();
  Answer answer;
  answer.seed = options.seed ? *options.seed : fresh_seed();
  auto cancelled = [&] { return callbacks.cancel && callbacks.cancel->load(std::memory_order_relaxed); };
  auto hook = [&](Phase phase, int64_t before, int64_t part, int64_t total) -> engine::ProgressFn {
    return [&, phase, before, part, total](int64_t done, int64_t units) {
      if (callbacks.progress)
        callbacks.progress(phase, before + (units > 0 ? part * done / units : 0), total);
      return !cancelled();
    };
  };
  TextStream stream(assets_->tokenizer, options.stop, callbacks.on_text);

  Prompt prompt = make_prompt(conversation, options);
  session_.check_context(prompt);
  std::vector<Visual*> visuals;
  for (const ChatMessage& m : conversation) {
    for (const auto& v : m.visuals) visuals.push_back(v.get());
  }
  for (Visual* v : visuals) {
    const VisualInfo& info = v->info();
    answer.visuals.push_back({.info = info,
                              .tokens = info.grid.merged_tokens(engine_->config().vision.spatial_merge_size),
                              .cached = true});
    answer.image_tokens += answer.visuals.back().tokens;
  }
  answer.prompt_tokens = static_cast<int64_t>(prompt.ids.size());
  double preprocess_before_ms = 0;
  auto collect_preprocess = [&] {
    double ms = 0;
    for (Visual* v : visuals) ms += std::exchange(v->unreported_preprocess_ms_, 0.0);
    answer.preprocess_ms += ms;
    return ms;
  };
  preprocess_before_ms =
      collect_preprocess();  // loading happened before this call, but the user waited for it

  // After the answer, so that nobody waits for it.
  auto keep_features = [&] {
    if (!disk_) return;
    for (size_t i = 0; i < visuals.size(); ++i) {
      if (prompt.visuals[i].features) disk_->keep(visuals[i]->info(), *prompt.visuals[i].features);
    }
  };

  try {
    const int64_t cached = disk_ ? session_.restore(prompt, *disk_) : session_.cached_prefix(prompt);
    const std::vector<bool> needed = session_.visuals_needed(prompt, cached);
    std::unordered_map<std::string_view, std::shared_ptr<const engine::VisionFeatures>> features;  // null: to encode
    int64_t total_patches = 0;
    for (size_t i = 0; i < visuals.size(); ++i) {
      const VisualInfo& info = visuals[i]->info();
      if (!needed[i]) continue;
      const auto [found, first] = features.try_emplace(info.key);
      if (!first) continue;
      found->second = known_features(info);
      if (!found->second) total_patches += info.grid.patches();
    }
    int64_t done_patches = 0;
    for (size_t i = 0; i < visuals.size(); ++i) {
      if (needed[i]) {
        const VisualInfo& info = visuals[i]->info();
        auto& found = features[info.key];
        if (!found) {
          const int64_t patches = info.grid.patches();
          const Encoded encoded =
              encode(*visuals[i], hook(Phase::kVision, done_patches, patches, total_patches));
          found = encoded.features;
          done_patches += patches;
          answer.visuals[i].cached = false;
          answer.visuals[i].encode_ms = encoded.ms;
          answer.vision_ms += encoded.ms;
          answer.vision_patches += encoded.patches;
        }
        prompt.visuals[i].features = found;
      }
      visuals[i]->pixels_ = Tensor();
    }
    if (answer.vision_patches > 0) engine_->vision().give_back();
    collect_preprocess();
    const PrefillResult prefill = session_.prefill(prompt, [&](int64_t done, int64_t total) {
      if (callbacks.progress) callbacks.progress(Phase::kPrefill, done, total);
      return !cancelled();
    });
    answer.cached_tokens = prefill.cached_tokens;
    answer.prefill_ms = prefill.prefill_ms;
  } catch (const Error& e) {
    if (e.code() != ErrorCode::kCancelled || !cancelled()) throw;
    answer.reason = FinishReason::kCancelled;
    keep_features();
    return answer;
  }

  GenerateOptions generate{.sampling = options.sampling,
                           .seed = answer.seed,
                           .max_tokens = options.max_tokens,
                           .end_ids = options.ignore_eos ? std::vector<int32_t>{} : assets_->end_ids,
                           .id_limit = assets_->tokenizer.vocab_size(),
                           .speculation = options.speculation};
  const double before_ms = preprocess_before_ms + ms_since(start);
  GenerateResult result = session_.generate(
      generate, [&](int32_t id) { return stream.push(id); }, callbacks.cancel);
  stream.finish();
  answer.text = stream.text();
  answer.token_ids = std::move(result.ids);
  answer.reason = result.reason;
  answer.decode_ms = result.decode_ms;
  answer.decode = result.counts;
  answer.kv_bytes = static_cast<int64_t>(session_.cache_bytes());
  if (!answer.token_ids.empty()) answer.ttft_ms = before_ms + result.first_token_ms;
  keep_features();
  if (disk_) session_.keep(prompt, *disk_);
  return answer;
}

}  // namespace qvl::generate
