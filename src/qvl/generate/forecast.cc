#include "qvl/generate/forecast.h"

#include <algorithm>

#include "qvl/base/error.h"
#include "qvl/base/format.h"
#include "qvl/generate/workload.h"

namespace qvl::generate {
namespace {

// Rows that the native vision stage takes through its MLP at a time.
constexpr int64_t kMlpRows = 1024;
constexpr int64_t kKvBlockTokens = 256;

double as_double(int64_t v) {
  return static_cast<double>(v);
}

// What the vision stage holds for the patches of one picture: input, residual, normed, qkv or a piece of the MLP, rotary
// tables, packed keys and values of a head. Mergers work in what blocks have left.
int64_t vision_activation_bytes(const model::VisionConfig& c, int64_t patches, int64_t element) {
  const int64_t rows = std::min(patches, kMlpRows);
  return patches * (c.patch_width() * 4 + 2 * c.hidden_size * element + 3 * c.head_dim() * 4) +
         std::max(patches * 3 * c.hidden_size, rows * c.intermediate_size) * element + rows * c.patch_width() * element;
}

int64_t feature_bytes(const model::VisionConfig& c, int64_t tokens, int64_t element) {
  return tokens * c.out_hidden_size * (1 + c.deepstack_levels()) * element;
}

int64_t text_activation_bytes(const model::TextConfig& c, int64_t prompt, int64_t chunk, int64_t element) {
  const int64_t rows = std::min(prompt, chunk);
  const int64_t packed = 2 * c.head_dim * 4;  // keys and values of a head
  // Embeddings, residual, normed; then the arena of decoder.cc: heads or the MLP.
  const int64_t heads = c.q_width() + std::max(2 * c.kv_width(), c.q_width());
  const int64_t wide = 3 * c.hidden_size + std::max(heads, c.intermediate_size);
  return prompt * packed + rows * wide * element + c.vocab_size * 6;
}

}  // namespace

Forecast forecast(const model::ModelConfig& config, const SpeedProfile& profile, const MemoryFacts& memory,
                  const Question& question, const image::ImageProcessorConfig& processor) {
  Forecast out;
  int64_t largest_picture = 0;
  for (const image::ImageSize& size : question.pictures) {
    const image::ImageSize resized = image::smart_resize(size.height, size.width, processor.resize_factor_px(),
                                                         processor.min_pixels, processor.max_pixels);
    const image::Grid grid{1, resized.height / processor.patch_size_px, resized.width / processor.patch_size_px};
    const Operations work = vision_operations(config.vision, {&grid, 1});
    out.vision_seconds += profile.vision_linear_s * work.linear + profile.vision_attention_s * work.attention +
                          profile.vision_weight_s * vision_weights(config.vision);
    out.patches += grid.patches();
    out.image_tokens += grid.merged_tokens(config.vision.spatial_merge_size);
    largest_picture = std::max(largest_picture, grid.patches());
    out.resized.push_back(resized);
  }
  if (!question.pictures.empty()) out.vision_seconds += profile.vision_first_s;
  out.prompt_tokens = question.text_tokens + out.image_tokens;

  const model::TextConfig& text = config.text;
  const Operations prefill = prefill_operations(text, out.prompt_tokens);
  const int64_t chunks = (out.prompt_tokens + question.prefill_chunk - 1) / question.prefill_chunk;
  out.prefill_seconds = profile.prefill_first_s + profile.prefill_linear_s * prefill.linear +
                        profile.prefill_attention_s * prefill.attention +
                        profile.prefill_weight_s * (as_double(chunks) * layer_weights(text) +
                                                    as_double(text.vocab_size * text.hidden_size));
  out.first_token_seconds = question.preprocess_seconds + out.vision_seconds + out.prefill_seconds;
  const int64_t middle = out.prompt_tokens + question.answer_tokens / 2;
  const double token_seconds =
      profile.decode_byte_s * decode_bytes(config, profile.decode_weight_bytes, middle, memory.kv_dtype);
  out.tokens_per_second = token_seconds > 0 ? 1 / token_seconds : 0;
  out.answer_seconds =
      out.first_token_seconds + as_double(std::max<int64_t>(0, question.answer_tokens - 1)) * token_seconds;

  const int64_t element = profile.element_bytes;
  const int64_t features = feature_bytes(config.vision, out.image_tokens, element);
  const int64_t pixels = out.patches * config.vision.patch_width() * 4;
  const int64_t positions =
      (out.prompt_tokens + question.answer_tokens + kKvBlockTokens - 1) / kKvBlockTokens * kKvBlockTokens;
  out.kv_bytes = positions * config.kv_bytes_per_token(memory.kv_dtype);
  // Pixels of the pictures that still wait are there while one is encoded.
  const int64_t seeing = question.pictures.empty()
                             ? 0
                             : memory.vision_weight_bytes +
                                   std::min(memory.touched_weight_bytes, memory.text_weight_bytes) + pixels + features +
                                   vision_activation_bytes(config.vision, largest_picture, element) -
                                   largest_picture * config.vision.patch_width() * 4;
  const int64_t saying = memory.text_weight_bytes + features + out.kv_bytes +
                         text_activation_bytes(text, out.prompt_tokens, question.prefill_chunk, element);
  out.peak_bytes = memory.base_bytes + std::max(seeing, saying);
  return out;
}

Plan plan_pictures(const Budget& budget, const image::ImageProcessorConfig& processor,
                   const std::function<Forecast(const image::ImageProcessorConfig&)>& at) {
  const auto bounded = [&](int64_t max_pixels) {
    image::ImageProcessorConfig config = processor;
    config.max_pixels = max_pixels;
    return at(config);
  };
  Plan out{.max_pixels = processor.max_pixels, .full = at(processor)};
  out.chosen = out.full;
  if (budget.fits(out.full)) return out;
  out.reduced = true;
  const int64_t unit = processor.resize_factor_px() * processor.resize_factor_px();
  int64_t low = std::min(processor.min_pixels, processor.max_pixels), high = processor.max_pixels;
  out.max_pixels = low;
  out.chosen = bounded(low);
  if (!budget.fits(out.chosen)) {
    std::string asked, needed;
    if (budget.seconds) {
      asked += fmt::format("{:g} s", *budget.seconds);
      needed += fmt::format("{:.2f} s to the first token", out.chosen.first_token_seconds);
    }
    if (budget.bytes) {
      asked += fmt::format("{}{:.0f} MB", asked.empty() ? "" : " and ", static_cast<double>(*budget.bytes) * 1e-6);
      needed += fmt::format("{}{:.0f} MB", needed.empty() ? "" : " and ", static_cast<double>(out.chosen.peak_bytes) * 1e-6);
    }
    fail(ErrorCode::kLimit, "plan", "budget", asked, needed, "even with the smallest pictures that the model takes");
  }
  // Sides are multiples of the unit's: bounds in between change little.
  while (high - low > unit) {
    const int64_t middle = low + (high - low) / 2;
    const Forecast f = bounded(middle);
    if (budget.fits(f)) {
      low = middle;
      out.max_pixels = middle;
      out.chosen = f;
    } else {
      high = middle;
    }
  }
  return out;
}

}  // namespace qvl::generate
