// The prompts that `qvl verify` and `qvl compare` run on two engines: text, pictures of several sizes,
// several pictures, a video. Pictures are drawn here, the same on every machine, and go through the image
// room like any other (spec 3, 4).
#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

#include "qvl/base/thread_pool.h"
#include "qvl/generate/parity.h"
#include "qvl/image/decode.h"
#include "qvl/model/config.h"

namespace qvl::generate {

struct PictureSize {
  int64_t width = 0, height = 0;
  bool operator==(const PictureSize&) const = default;
};

// "640x480"; throws kInvalidArgument naming `where` for anything else and for sides below 1 or above 65536.
PictureSize parse_picture_size(std::string_view text, std::string_view where);

// Shapes, stripes and a gradient, so that no two patches are alike. `seed` moves and colours them.
image::RgbImage draw_picture(PictureSize size, uint32_t seed);

// `count` seeded ids of the vocabulary that are no placeholders of pictures.
std::vector<int32_t> random_text_ids(const model::ModelConfig& config, int64_t count, uint32_t seed);

struct ParityCaseOptions {
  std::vector<PictureSize> sizes = {{64, 64}, {256, 192}, {320, 480}};
  int64_t greedy_tokens = 16;
  int64_t texts = 3;  // prompts without pictures, at most 3
  std::vector<PictureSize> several = {{96, 64}, {160, 224}, {256, 96}};  // in one prompt; empty: no such case
  bool video = true;
};

// Chat prompts when `folder` has a tokenizer, else seeded random ids around the placeholders (synthetic
// checkpoints). One case for each size; `folder` also tells the pixel budgets. `pool` may be null. Throws
// what loading these files throws, kMismatch when they do not fit `config`, kLimit for a prompt beyond the
// model's context.
std::vector<ParityCase> standard_parity_cases(const std::filesystem::path& folder,
                                              const model::ModelConfig& config,
                                              const ParityCaseOptions& options, ThreadPool* pool);

// One picture of that size and the request to describe it; throws likewise.
ParityCase picture_case(const std::filesystem::path& folder, const model::ModelConfig& config, PictureSize size,
                        int64_t greedy_tokens, ThreadPool* pool);

}  // namespace qvl::generate
