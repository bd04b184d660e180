// From rendered segments to model input: token ids with picture and video placeholders expanded (spec 7.5 and
// the prompt part of 4).
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "qvl/text/chat.h"
#include "qvl/text/tokenizer.h"

namespace qvl::text {

enum class TokenKind : uint8_t { kText = 0, kImage = 1, kVideo = 2 };

struct VideoPlacement {
  int64_t tokens_per_group = 0;      // gh * gw / 4 merged tokens of one frame pair
  std::vector<double> timestamps_s;  // one per frame pair: the mean time of the pair, [grid_t]
};

// A stretch of pads that visual features replace.
struct VisualSpan {
  TokenKind kind = TokenKind::kImage;
  int64_t index = 0;  // which image or which video, in order of appearance
  int64_t group = 0;  // frame pair of a video, else 0
  int64_t begin = 0;  // position in ids
  int64_t count = 0;  // pads
};

struct EncodedPrompt {
  std::vector<int32_t> ids;       // [S]
  std::vector<TokenKind> kinds;   // [S]; the reference's mm_token_type_ids
  std::vector<VisualSpan> spans;  // ascending, one per image and one per frame pair
};

// `image_tokens[i]` = merged tokens of image i. Throws kMismatch if the number of images or videos differs
// from the number of placeholders or the vocabulary lacks a vision token, kInvalidArgument for a count
// below 1.
EncodedPrompt encode_prompt(const Tokenizer& tokenizer, std::span<const Segment> segments,
                            std::span<const int64_t> image_tokens,
                            std::span<const VideoPlacement> videos = {});

}  // namespace qvl::text
