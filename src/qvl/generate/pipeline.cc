#include "qvl/generate/pipeline.h"

#include <algorithm>
#include <string_view>
#include <utility>

#include "qvl/base/error.h"
#include "qvl/base/format.h"
#include "qvl/base/mapped_file.h"
#include "qvl/base/sha256.h"
#include "qvl/base/stopwatch.h"
#include "qvl/generate/repeated_frames.h"
#include "qvl/image/decode.h"
#include "qvl/image/preprocess.h"
#include "qvl/text/prompt.h"

namespace qvl::generate {
namespace {

std::string display_name(const VisualInput& input) {
  return input.name.empty() ? input.path.string() : input.name;
}

}  // namespace

std::vector<std::shared_ptr<Visual>> visuals_of(const std::vector<ChatMessage>& conversation) {
  std::vector<std::shared_ptr<Visual>> out;
  for (const ChatMessage& m : conversation) out.insert(out.end(), m.visuals.begin(), m.visuals.end());
  return out;
}

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
  hash.add(cat(input.is_video() ? "video" : "image", " ",
               limit(visual.overrides_.min_pixels), " ", limit(visual.overrides_.max_pixels), "\n"));
  if (!input.is_video()) {
    hash.add(file_bytes);
    return hash.finish();
  }
  // The same frames are the same video, wherever they come from.
  const bool in_memory = input.kind == VisualInput::Kind::kFrameBytes;
  const auto files = in_memory ? std::vector<std::filesystem::path>{} : image::list_frames(input.path);
  const size_t total = in_memory ? input.frames.size() : files.size();
  const double fps = input.native_fps.value_or(image::kDefaultNativeFps);
  hash.add(cat(total, " frames at ", fps, "\n"));
  for (int64_t i : image::sample_frames(static_cast<int64_t>(total), fps, assets_->video)) {
    const auto frame = static_cast<size_t>(i);
    const std::string bytes = in_memory ? input.frames[frame] : read_file(files[frame], input.limits.max_file_bytes);
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
  const bool is_video = input.is_video();
  std::string file_bytes;
  if (input.kind == VisualInput::Kind::kImageFile) {
    file_bytes = read_file(input.path, input.limits.max_file_bytes);
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
      image::check_dimensions(known->width, known->height, input.limits, display_name(input));
      visual.info_ = *std::move(known);
      visual.unreported_preprocess_ms_ += ms_since(start);
      return;
    }
  }
  if (is_video) {
    image::PreprocessedVideo video =
        input.kind == VisualInput::Kind::kFrameBytes
            ? image::load_video(input.frames, input.native_fps, assets_->video, visual.overrides_, input.limits, &engine_->pool(), input.name)
            : image::load_video(input.path, input.native_fps, assets_->video, visual.overrides_, input.limits, &engine_->pool());
    info.grid = video.grid;
    info.width = video.width, info.height = video.height;
    info.resized_width = video.resized_width, info.resized_height = video.resized_height;
    info.timestamps_s = std::move(video.timestamps_s);
    visual.pixels_ = std::move(video.pixel_values);
  } else {
    const image::RgbImage decoded =
        image::decode_image(std::as_bytes(std::span(file_bytes)), input.limits, display_name(input));
    image::PreprocessedImage image =
        image::preprocess_image(decoded, assets_->image, visual.overrides_, &engine_->pool());
    info.grid = image.grid;
    info.width = image.width, info.height = image.height;
    info.resized_width = image.resized_width, info.resized_height = image.resized_height;
    visual.pixels_ = std::move(image.pixel_values);
  }
  // Where the pixels alone were asked for again it stays as it is: others may be reading it, such as another answer of the same
  // request that is being kept on disk.
  if (visual.info_.key.empty()) visual.info_ = std::move(info);
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
  chat.enable_thinking = options.enable_thinking;
  prompt.ids = chat_token_ids(*assets_, engine_->config().vision, messages, infos, std::move(chat));
  return prompt;
}

std::unique_ptr<Answering> Pipeline::begin(const std::vector<ChatMessage>& conversation, const AnswerOptions& options,
                                           AnswerCallbacks callbacks, std::span<const Pipeline* const> donors) {
  std::unique_ptr<Answering> answering(new Answering(*this, options, std::move(callbacks)));
  answering->begin(make_prompt(conversation, options), visuals_of(conversation), options, donors);
  return answering;
}

std::unique_ptr<Answering> Pipeline::begin(Prompt prompt, std::vector<std::shared_ptr<Visual>> visuals,
                                           const AnswerOptions& options, AnswerCallbacks callbacks,
                                           std::span<const Pipeline* const> donors) {
  std::unique_ptr<Answering> answering(new Answering(*this, options, std::move(callbacks)));
  answering->begin(std::move(prompt), std::move(visuals), options, donors);
  return answering;
}

void Pipeline::reset() {
  session_.clear();
  unread_.reset();
}

Pipeline::Unread Pipeline::before_question(std::vector<ChatMessage> conversation, const AnswerOptions& options,
                                           const std::vector<std::shared_ptr<Visual>>& visuals) const {
  // Up to where two questions that have nothing in common make different tokens.
  conversation.push_back(user_message(visuals, "a"));
  Unread out{.prompt = make_prompt(conversation, options)};
  conversation.back() = user_message(visuals, "1");
  const std::vector<int32_t> other = make_prompt(conversation, options).ids;
  const std::vector<int32_t>& ids = out.prompt.ids;
  out.length = std::mismatch(ids.begin(), ids.end(), other.begin(), other.end()).first - ids.begin();
  return out;
}

std::vector<int32_t> Pipeline::turn_marks() const {
  const std::string answer = "a";
  std::vector<ChatMessage> talk = {user_message({}, "a")};
  std::vector<int32_t> before = make_prompt(talk, {}).ids;
  const std::vector<int32_t> said = assets_->tokenizer.encode_text(answer);
  before.insert(before.end(), said.begin(), said.end());
  talk.push_back(text_message(text::Role::kAssistant, answer));
  const Unread next = before_question(std::move(talk), {});
  const std::span<const int32_t> ids = std::span(next.prompt.ids).first(static_cast<size_t>(next.length));
  if (ids.size() < before.size() || !std::equal(before.begin(), before.end(), ids.begin())) return {};
  return {ids.begin() + static_cast<ptrdiff_t>(before.size()), ids.end()};
}

std::shared_ptr<Visual> Pipeline::expect_turn(const std::vector<ChatMessage>& conversation, const AnswerOptions& options,
                                              const std::vector<std::shared_ptr<Visual>>& visuals) {
  unread_.reset();
  Unread unread = before_question(conversation, options, visuals);
  if (static_cast<int64_t>(unread.prompt.ids.size()) >= session_.context_tokens()) return nullptr;
  unread.known = disk_ && !visuals.empty() ? session_.restore(unread.prompt, *disk_) : session_.cached_prefix(unread.prompt);
  const std::vector<bool> needed = session_.visuals_needed(unread.prompt, unread.known);
  const size_t before = needed.size() - visuals.size();  // pictures of the conversation
  for (size_t i = 0; i < needed.size(); ++i) {
    if (!needed[i]) continue;
    if (i < before) return nullptr;
    unread.prompt.visuals[i].features = known_features(visuals[i - before]->info());
    if (!unread.prompt.visuals[i].features) return visuals[i - before];
  }
  if (unread.known < unread.length && engine_->decoder().decode_rows_are_independent()) unread_ = std::move(unread);
  return nullptr;
}

void Pipeline::read_ahead(int64_t tokens, const engine::ProgressFn& progress) {
  if (tokens < 1) fail(ErrorCode::kInvalidArgument, "pipeline", "tokens to read ahead", "1 or more", cat(tokens));
  if (!unread_) return;
  Unread work = *std::exchange(unread_, std::nullopt);
  const int64_t cached = session_.cached_prefix(work.prompt);
  // Something else is in the session by now, or pictures would have to be encoded.
  if (cached < work.known) return;
  const int64_t end = std::min(work.length, cached + tokens);
  try {
    session_.read_ahead(work.prompt, end, progress);
  } catch (const Error& e) {
    if (e.code() == ErrorCode::kCancelled) unread_ = std::move(work);
    throw;
  }
  if (end < work.length) unread_ = std::move(work);
}

Answer Pipeline::answer(const std::vector<ChatMessage>& conversation, const AnswerOptions& options,
                        const AnswerCallbacks& callbacks) {
  const std::unique_ptr<Answering> answering = begin(conversation, options, callbacks);
  if (!answering->done()) run_alone(*engine_, *answering->generation(), callbacks.cancel);
  Answer answer = answering->finish();
  answering->keep();
  return answer;
}

}  // namespace qvl::generate
