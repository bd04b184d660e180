#include "qvl/generate/parity_cases.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <functional>
#include <optional>
#include <random>

#include "qvl/base/error.h"
#include "qvl/base/format.h"
#include "qvl/generate/assets.h"
#include "qvl/generate/pipeline.h"
#include "qvl/image/preprocess.h"

namespace qvl::generate {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kFrames = 6;
constexpr double kFramesPerSecond =
    3;  // above the sampling rate of no released model: all frames are used as they are

constexpr const char* kTexts[] = {
    "Hello!",
    "Name three colours of the rainbow and say in one sentence why the sky is blue.",
    "Übersetze: 你好，世界 → English. Then compute 17 * 23 and return {\"answer\": ...} as JSON.",
};
constexpr const char* kPictureText = "Describe this image.";
constexpr const char* kSeveralText = "What differs between these pictures?";
constexpr const char* kVideoText = "What happens in this video?";

struct Drawn {
  VisualInfo info;
  Tensor pixels;
};

Tensor stacked(const std::vector<Drawn>& drawn, bool videos) {
  int64_t rows = 0, width = 0;
  for (const Drawn& d : drawn) {
    if (d.info.is_video == videos) rows += d.pixels.dim(0), width = d.pixels.dim(1);
  }
  if (rows == 0) return {};
  Tensor out(DType::kF32, {rows, width});
  auto* to = static_cast<std::byte*>(out.data());
  for (const Drawn& d : drawn) {
    if (d.info.is_video != videos) continue;
    std::memcpy(to, d.pixels.data(), d.pixels.size_bytes());
    to += d.pixels.size_bytes();
  }
  return out;
}

class TextIds {
 public:
  TextIds(const model::ModelConfig& config, uint32_t seed) : config_(config), random_(seed) {}
  int32_t operator()() {
    const int64_t special[] = {config_.image_token_id, config_.video_token_id, config_.vision_start_token_id,
                               config_.vision_end_token_id};
    for (;;) {
      const auto id = static_cast<int64_t>(random_() % static_cast<uint64_t>(config_.text.vocab_size));
      if (std::find(std::begin(special), std::end(special), id) == std::end(special)) return static_cast<int32_t>(id);
    }
  }

 private:
  const model::ModelConfig& config_;
  std::mt19937 random_;
};

class CaseMaker {
 public:
  CaseMaker(const fs::path& folder, const model::ModelConfig& config, const ParityCaseOptions& options,
            ThreadPool* pool)
      : config_(config), options_(options), pool_(pool) {
    std::error_code ec;
    if (fs::exists(folder / "tokenizer.json", ec)) {
      assets_ = Assets::load(folder, config);
      image_ = assets_->image, video_ = assets_->video;
      return;
    }
    image_ = image::ImageProcessorConfig::load(folder);
    video_ = image::VideoProcessorConfig::load(folder);
    check_patch_geometry(image_, config.vision, folder.string() + ": image processor");
    check_patch_geometry(video_, config.vision, folder.string() + ": video processor");
  }

  Drawn picture(PictureSize size, uint32_t seed) const {
    image::PreprocessedImage p = image::preprocess_image(draw_picture(size, seed), image_, {}, pool_);
    return {{.is_video = false, .key = "", .grid = p.grid}, std::move(p.pixel_values)};
  }

  // One picture after the other as frames, which no real video would be: every frame pair has its own
  // features.
  Drawn video(PictureSize size) const {
    std::vector<image::RgbImage> frames;
    std::vector<int64_t> indexes;
    for (int64_t i = 0; i < kFrames; ++i) {
      frames.push_back(draw_picture(size, static_cast<uint32_t>(100 + i)));
      indexes.push_back(i);
    }
    image::PreprocessedVideo p =
        image::preprocess_video(frames, indexes, kFramesPerSecond, video_, {}, pool_);
    return {{.is_video = true, .key = "", .grid = p.grid, .timestamps_s = std::move(p.timestamps_s)},
            std::move(p.pixel_values)};
  }

  ParityCase make(std::string name, const std::string& text, const std::vector<Drawn>& drawn) const {
    ParityCase out{.name = std::move(name), .input = {}, .greedy_tokens = options_.greedy_tokens};
    std::vector<VisualInfo> visuals;
    for (const Drawn& d : drawn) {
      visuals.push_back(d.info);
      (d.info.is_video ? out.input.video_grids : out.input.image_grids).push_back(d.info.grid);
    }
    out.input.pixel_values = stacked(drawn, false);
    out.input.pixel_values_videos = stacked(drawn, true);
    out.input.ids = assets_ ? chat_ids(text, visuals) : random_ids(text.size(), visuals);
    const auto tokens = static_cast<int64_t>(out.input.ids.size());
    if (tokens > config_.text.max_positions) {
      fail(ErrorCode::kLimit, "parity case '" + out.name + "'", "prompt",
           fmt::format("at most {} tokens", config_.text.max_positions), fmt::format("{}", tokens),
           "choose smaller pictures");
    }
    return out;
  }

 private:
  std::vector<int32_t> chat_ids(const std::string& text, const std::vector<VisualInfo>& visuals) const {
    text::Message user;
    for (const VisualInfo& v : visuals) {
      user.parts.push_back(v.is_video ? text::ContentPart::video() : text::ContentPart::image());
    }
    user.parts.push_back(text::ContentPart::make_text(text));
    return chat_token_ids(*assets_, config_.vision, {user}, visuals);
  }

  // About as many tokens as the text would have; a video's frames stand apart as its time stamps would set
  // them.
  std::vector<int32_t> random_ids(size_t characters, const std::vector<VisualInfo>& visuals) const {
    TextIds word(config_, static_cast<uint32_t>(characters));
    std::vector<int32_t> ids = {word(), word(), word()};
    for (const VisualInfo& v : visuals) {
      const image::Grid frame{1, v.grid.h, v.grid.w};
      const auto tokens = static_cast<size_t>(frame.merged_tokens(config_.vision.spatial_merge_size));
      for (int64_t t = 0; t < v.grid.t; ++t) {
        if (v.is_video) ids.insert(ids.end(), {word(), word(), word()});
        ids.push_back(config_.vision_start_token_id);
        ids.insert(ids.end(), tokens, v.is_video ? config_.video_token_id : config_.image_token_id);
        ids.push_back(config_.vision_end_token_id);
      }
    }
    for (size_t i = 0; i < 4 + characters / 4; ++i) ids.push_back(word());
    return ids;
  }

  const model::ModelConfig& config_;
  const ParityCaseOptions& options_;
  ThreadPool* pool_;
  std::optional<Assets> assets_;
  image::ImageProcessorConfig image_;
  image::VideoProcessorConfig video_;
};

std::string size_name(PictureSize size) {
  return fmt::format("{}x{}", size.width, size.height);
}

}  // namespace

PictureSize parse_picture_size(std::string_view text, std::string_view where) {
  constexpr int64_t kMostPx = 65536;
  PictureSize size;
  const char* const end = text.data() + text.size();
  const auto width = std::from_chars(text.data(), end, size.width);
  bool ok = width.ec == std::errc() && width.ptr != end && (*width.ptr == 'x' || *width.ptr == 'X');
  if (ok) {
    const auto height = std::from_chars(width.ptr + 1, end, size.height);
    ok = height.ec == std::errc() && height.ptr == end;
  }
  if (ok && size.width >= 1 && size.height >= 1 && size.width <= kMostPx && size.height <= kMostPx)
    return size;
  fail(ErrorCode::kInvalidArgument, where, "picture size",
       fmt::format("WIDTHxHEIGHT in pixels, each 1..{}, such as 640x480", kMostPx), text);
}

std::vector<int32_t> random_text_ids(const model::ModelConfig& config, int64_t count, uint32_t seed) {
  TextIds word(config, seed);
  std::vector<int32_t> ids(static_cast<size_t>(std::max<int64_t>(count, 0)));
  std::ranges::generate(ids, std::ref(word));
  return ids;
}

image::RgbImage draw_picture(PictureSize size, uint32_t seed) {
  image::RgbImage out{.width = size.width, .height = size.height};
  out.rgb.resize(static_cast<size_t>(size.width * size.height * 3));
  std::mt19937 random(seed * 2654435761U + 1);
  struct Shape {
    int64_t x, y, r;  // in 1/1024 of the sides
    bool round;
    uint8_t colour[3];
  };
  std::vector<Shape> shapes(7);
  for (Shape& s : shapes) {
    s.x = random() % 1024, s.y = random() % 1024, s.r = 60 + random() % 160, s.round = random() % 2;
    for (uint8_t& c : s.colour) c = static_cast<uint8_t>(random() % 256);
  }
  const int64_t stripe = 3 + static_cast<int64_t>(random() % 9);
  uint8_t* p = out.rgb.data();
  for (int64_t y = 0; y < size.height; ++y) {
    for (int64_t x = 0; x < size.width; ++x, p += 3) {
      const int64_t u = x * 1024 / size.width, v = y * 1024 / size.height;
      p[0] = static_cast<uint8_t>(u / 4), p[1] = static_cast<uint8_t>(v / 4);
      p[2] = static_cast<uint8_t>((x + y) / stripe % 2 * 90 + (u ^ v) / 8);
      for (const Shape& s : shapes) {
        const int64_t dx = std::abs(u - s.x), dy = std::abs(v - s.y);
        if (s.round ? dx * dx + dy * dy < s.r * s.r : dx < s.r && dy < s.r)
          std::copy(s.colour, s.colour + 3, p);
      }
    }
  }
  return out;
}

std::vector<ParityCase> standard_parity_cases(const fs::path& folder, const model::ModelConfig& config,
                                              const ParityCaseOptions& options, ThreadPool* pool) {
  const CaseMaker maker(folder, config, options, pool);
  std::vector<ParityCase> cases;
  const size_t texts = std::min(std::size(kTexts), static_cast<size_t>(std::max<int64_t>(options.texts, 0)));
  for (size_t i = 0; i < texts; ++i)
    cases.push_back(maker.make(fmt::format("text {}", i + 1), kTexts[i], {}));
  uint32_t seed = 1;
  for (PictureSize size : options.sizes) {
    std::vector<Drawn> drawn;
    drawn.push_back(maker.picture(size, seed++));
    cases.push_back(maker.make("picture " + size_name(size), kPictureText, drawn));
  }
  if (!options.several.empty()) {
    std::vector<Drawn> drawn;
    std::string name = "pictures";
    for (PictureSize size : options.several) {
      drawn.push_back(maker.picture(size, seed++));
      name += " " + size_name(size);
    }
    cases.push_back(maker.make(std::move(name), kSeveralText, drawn));
  }
  if (options.video) {
    std::vector<Drawn> drawn;
    drawn.push_back(maker.video({128, 96}));
    cases.push_back(maker.make(fmt::format("video {}x 128x96", kFrames), kVideoText, drawn));
  }
  return cases;
}

ParityCase picture_case(const fs::path& folder, const model::ModelConfig& config, PictureSize size,
                        int64_t greedy_tokens, ThreadPool* pool) {
  const ParityCaseOptions options{
      .sizes = {size}, .greedy_tokens = greedy_tokens, .texts = 0, .several = {}, .video = false};
  return std::move(standard_parity_cases(folder, config, options, pool)[0]);
}

}  // namespace qvl::generate
