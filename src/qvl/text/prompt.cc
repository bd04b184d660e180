#include "qvl/text/prompt.h"

#include <algorithm>
#include <deque>
#include <optional>

#include "qvl/base/error.h"
#include "qvl/base/timestamp.h"

namespace qvl::text {
namespace {

constexpr const char* kWhere = "prompt";

class PromptEncoder {
 public:
  explicit PromptEncoder(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}

  void text(std::string_view text, bool match_added_tokens) { runs_.push_back({text, match_added_tokens}); }
  void stamp(double seconds) { text(stamps_.emplace_back(format_timestamp(seconds)), true); }

  // Start token, pads, end token. Added tokens part the text, so what came before is encoded now.
  void visual(TokenKind kind, int64_t index, int64_t group, int64_t count) {
    flush();
    if (!start_) {
      start_ = tokenizer_.require_token("<|vision_start|>");
      end_ = tokenizer_.require_token("<|vision_end|>");
    }
    const int32_t pad =
        tokenizer_.require_token(kind == TokenKind::kImage ? "<|image_pad|>" : "<|video_pad|>");
    prompt_.ids.push_back(*start_);
    prompt_.spans.push_back({kind, index, group, static_cast<int64_t>(prompt_.ids.size()), count});
    prompt_.ids.insert(prompt_.ids.end(), count, pad);
    prompt_.ids.push_back(end_);
  }

  EncodedPrompt finish() {
    flush();
    prompt_.kinds.assign(prompt_.ids.size(), TokenKind::kText);
    for (const VisualSpan& s : prompt_.spans) {
      std::fill_n(prompt_.kinds.begin() + s.begin, s.count, s.kind);
    }
    return std::move(prompt_);
  }

 private:
  void flush() {
    tokenizer_.encode_runs(runs_, prompt_.ids);
    runs_.clear();
  }

  const Tokenizer& tokenizer_;
  std::vector<TextRun> runs_;
  std::deque<std::string> stamps_;  // runs_ points here
  EncodedPrompt prompt_;
  std::optional<int32_t> start_;
  int32_t end_ = 0;
};

void check_count(const std::string& what, int64_t count) {
  if (count < 1 || count > int64_t{1} << 31) {
    fail(ErrorCode::kInvalidArgument, kWhere, what, "1 to 2^31 tokens", std::to_string(count));
  }
}

}  // namespace

EncodedPrompt encode_prompt(const Tokenizer& tokenizer, std::span<const Segment> segments,
                            std::span<const int64_t> image_tokens, std::span<const VideoPlacement> videos) {
  size_t images = 0, clips = 0;
  for (const Segment& s : segments) {
    images += s.kind == Segment::Kind::kImage;
    clips += s.kind == Segment::Kind::kVideo;
  }
  if (images != image_tokens.size()) {
    fail(ErrorCode::kMismatch, kWhere, "number of images", std::to_string(images) + " as in the messages",
         std::to_string(image_tokens.size()));
  }
  if (clips != videos.size()) {
    fail(ErrorCode::kMismatch, kWhere, "number of videos", std::to_string(clips) + " as in the messages",
         std::to_string(videos.size()));
  }
  PromptEncoder encoder(tokenizer);
  int64_t image = 0, video = 0;
  for (const Segment& s : segments) {
    switch (s.kind) {
      case Segment::Kind::kTemplate:
        encoder.text(s.text, true);
        break;
      case Segment::Kind::kText:
        encoder.text(s.text, false);
        break;
      case Segment::Kind::kImage:
        check_count("tokens of image " + std::to_string(image), image_tokens[image]);
        encoder.visual(TokenKind::kImage, image, 0, image_tokens[image]);
        ++image;
        break;
      case Segment::Kind::kVideo: {
        const VideoPlacement& v = videos[video];
        check_count("tokens per frame pair of video " + std::to_string(video), v.tokens_per_group);
        if (v.timestamps_s.empty()) {
          fail(ErrorCode::kInvalidArgument, kWhere, "timestamps of video " + std::to_string(video),
               "one per frame pair", "none");
        }
        for (size_t g = 0; g < v.timestamps_s.size(); ++g) {
          encoder.stamp(v.timestamps_s[g]);
          encoder.visual(TokenKind::kVideo, video, static_cast<int64_t>(g), v.tokens_per_group);
        }
        ++video;
        break;
      }
    }
  }
  return encoder.finish();
}

}  // namespace qvl::text
