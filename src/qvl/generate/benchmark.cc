#include "qvl/generate/benchmark.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <string>

#include "qvl/base/error.h"
#include "qvl/base/format.h"
#include "qvl/base/stopwatch.h"
#include "qvl/generate/parity_cases.h"
#include "qvl/generate/session.h"
#include "qvl/generate/text_timeline.h"
#include "qvl/image/preprocess.h"

namespace qvl::generate {
namespace {

// Counts runs and asks whether to go on.
class Steps {
 public:
  Steps(const BenchProgress& progress, int64_t total) : progress_(progress), total_(total) {}
  void next() {
    if (progress_ && !progress_(done_, total_)) fail(ErrorCode::kCancelled, "bench", "cancelled");
    ++done_;
  }

 private:
  const BenchProgress& progress_;
  int64_t done_ = 0, total_;
};

double largest_value(const Tensor& t) {
  double largest = 0;
  for (const float v : t.as<float>()) {
    if (!std::isfinite(v)) return INFINITY;
    largest = std::max(largest, static_cast<double>(std::abs(v)));
  }
  return largest;
}

void check_finite(const Tensor& t, std::string_view where, std::string_view what) {
  if (std::isfinite(largest_value(t))) return;
  fail(ErrorCode::kMismatch, where, what, "finite numbers", "an infinity or a NaN");
}

// The first rows of `other` against all of `t`.
void check_close(const Tensor& t, const Tensor& other, double limit, std::string_view where, std::string_view what) {
  const auto a = t.as<float>(), b = other.as<float>();
  double difference = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double d = std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i]));
    difference = d >= difference ? d : std::isnan(d) ? INFINITY : difference;
  }
  const double largest = largest_value(t);
  if (difference <= limit * largest) return;
  fail(ErrorCode::kMismatch, where, what,
       limit == 0 ? std::string("the same bits") : fmt::format("a difference up to {:g} of the largest value", limit),
       fmt::format("{:.3g} of it", difference / largest));
}

Series timed(int repeats, Steps& steps, const std::function<void()>& run) {
  Series out;
  for (int i = 0; i < repeats; ++i) {
    steps.next();
    const Clock::time_point start = Clock::now();
    run();
    out.seconds.push_back(seconds_since(start));
  }
  return out;
}

void check_sizes(const model::TextConfig& config, const TextBenchOptions& o) {
  const auto check = [&](int64_t tokens, int64_t more, std::string_view what) {
    if (tokens < 1) fail(ErrorCode::kInvalidArgument, "bench", what, "at least one token", cat(tokens));
    if (tokens + more > config.max_positions) {
      fail(ErrorCode::kLimit, "bench", what, cat("at most ", config.max_positions - more, " tokens"), cat(tokens),
           "the model's context ends there");
    }
  };
  for (const int64_t n : o.prompt_tokens) check(n, 0, "prompt");
  for (const int64_t n : o.contexts) check(n, o.decode_tokens, "context");
  if (o.decode_tokens < 1 || o.chunk_tokens < 1 || o.repeats < 1) {
    fail(ErrorCode::kInvalidArgument, "bench", "tokens to decode, of a chunk, and repeats", "at least 1 each",
         cat(o.decode_tokens, ", ", o.chunk_tokens, ", ", o.repeats));
  }
}

}  // namespace

double Series::median() const {
  std::vector<double> sorted = seconds;
  std::sort(sorted.begin(), sorted.end());
  const size_t n = sorted.size();
  return n % 2 == 1 ? sorted[n / 2] : (sorted[n / 2 - 1] + sorted[n / 2]) / 2;
}
double Series::fastest() const {
  return *std::min_element(seconds.begin(), seconds.end());
}
double Series::slowest() const {
  return *std::max_element(seconds.begin(), seconds.end());
}

void validate_vision(const engine::VisionStage& vision, const model::VisionConfig& config, const TraceInput& input,
                     const ValidationLimits& limits) {
  if (input.image_grids.empty()) fail(ErrorCode::kInvalidArgument, "validation", "images", "at least one", "none");
  const image::Grid grid = input.image_grids[0];
  const auto pixels = input.pixel_values.as<float>().subspan(
      0, static_cast<size_t>(grid.patches() * config.patch_width()));
  // Two rows of merged tokens of the picture, as a picture of its own.
  const image::Grid part{1, std::min<int64_t>(grid.h, 2 * config.spatial_merge_size), grid.w};
  const auto part_pixels = pixels.subspan(0, static_cast<size_t>(part.patches() * config.patch_width()));
  std::vector<float> both(part_pixels.begin(), part_pixels.end());
  both.insert(both.end(), part_pixels.begin(), part_pixels.end());
  const engine::VisionFeatures alone = vision.encode(part_pixels, {&part, 1});
  const image::Grid grids[] = {part, part};
  const engine::VisionFeatures beside = vision.encode(both, grids);
  const auto compare = [&](const Tensor& a, const Tensor& b, const std::string& name) {
    const Tensor x = a.to(DType::kF32), y = b.to(DType::kF32);
    check_finite(x, "vision", name);
    if (largest_value(x) == 0) fail(ErrorCode::kMismatch, "vision", name, "features", "zeros");
    check_close(x, y, limits.chunk_error, "vision", name + " of a picture alone and beside another");
  };
  compare(alone.merged, beside.merged, "features");
  for (size_t j = 0; j < alone.deepstack.size(); ++j)
    compare(alone.deepstack[j], beside.deepstack[j], cat("deepstack features ", j));
}

void validate_text(const engine::EmbedStage& embed, const engine::DecoderStage& decoder,
                   const model::ModelConfig& config, const ValidationLimits& limits) {
  constexpr int64_t kTokens = 40, kShort = 30, kChunk = 7;
  const std::vector<int32_t> ids = random_text_ids(config, kTokens, 1);
  const std::span<const int32_t> all(ids);
  TextTimeline whole(embed, decoder), parts(embed, decoder);
  const Tensor expected = whole.prefill(all, kTokens);
  check_finite(expected, "decoder", "logits");
  check_close(expected, parts.prefill(all, kChunk), limits.chunk_error, "decoder",
              "logits of a prompt whole and in chunks");
  TextTimeline shorter(embed, decoder);
  const Tensor before = shorter.prefill(all.first(kTokens - 1), kTokens);
  if (std::ranges::equal(before.as<float>(), expected.as<float>())) {
    fail(ErrorCode::kMismatch, "decoder", "logits of two prompts", "different ones", "the same");
  }
  check_close(expected, shorter.decode(ids.back()), limits.decode_error, "decoder",
              "logits of a token decoded and as part of the prompt");
  whole.truncate(kShort);
  check_close(expected, whole.prefill(all.subspan(kShort), kTokens), limits.chunk_error, "decoder",
              "logits after the cache was cut and filled again");
}

Series time_vision(const engine::VisionStage& vision, const TraceInput& input, int repeats,
                   const BenchProgress& progress) {
  Steps steps(progress, 1 + repeats);
  const auto encode = [&] { vision.encode(input.pixel_values.as<float>(), input.image_grids); };
  steps.next();
  encode();
  return timed(repeats, steps, encode);
}

TextSeries time_text(const engine::EmbedStage& embed, const engine::DecoderStage& decoder,
                     const model::ModelConfig& config, const TextBenchOptions& o, const BenchProgress& progress,
                     const std::function<double()>& read_rate) {
  check_sizes(config.text, o);
  const auto prompts = static_cast<int64_t>(o.prompt_tokens.size()), contexts = static_cast<int64_t>(o.contexts.size());
  Steps steps(progress, 1 + o.repeats * (prompts + contexts) + (contexts > 0 ? 1 : 0));
  int64_t longest = 1;
  for (const auto* sizes : {&o.prompt_tokens, &o.contexts})
    for (const int64_t n : *sizes) longest = std::max(longest, n);
  const std::vector<int32_t> ids = random_text_ids(config, longest, 2);
  const auto first = [&](int64_t n) { return std::span(ids).first(static_cast<size_t>(n)); };

  steps.next();
  {  // pages of the weights, buffers
    TextTimeline warm(embed, decoder);
    int32_t next = likeliest(warm.prefill(first(std::min<int64_t>(longest, 32)), o.chunk_tokens));
    for (int i = 0; i < 2; ++i) next = likeliest(warm.decode(next, {.count = 1}));
  }
  TextSeries out;
  for (const int64_t n : o.prompt_tokens) {
    out.prefill.push_back({n, timed(o.repeats, steps, [&] {
                             TextTimeline(embed, decoder).prefill(first(n), o.chunk_tokens);
                           })});
  }
  if (o.contexts.empty()) return out;
  // From long to short, on one cache.
  std::vector<size_t> order(o.contexts.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return o.contexts[a] > o.contexts[b]; });
  out.decode.resize(o.contexts.size());
  TextTimeline timeline(embed, decoder);
  steps.next();
  timeline.prefill(first(o.contexts[order[0]]), o.chunk_tokens);
  for (const size_t i : order) {
    const int64_t context = o.contexts[i];
    const int32_t start = ids[static_cast<size_t>(context - 1)];
    out.decode[i] = {context, o.decode_tokens, {}, {}};
    double before = read_rate ? read_rate() : 0;
    for (int repeat = 0; repeat < o.repeats; ++repeat) {
      timeline.truncate(context);
      const Series one = timed(1, steps, [&] {
        int32_t next = start;
        for (int64_t t = 0; t < o.decode_tokens; ++t) next = likeliest(timeline.decode(next, {.count = 1}));
      });
      out.decode[i].seconds.seconds.push_back(one.seconds[0]);
      if (!read_rate) continue;
      const double after = read_rate();
      out.decode[i].read_bytes_per_second.push_back((before + after) / 2);
      before = after;
    }
    timeline.truncate(context);
  }
  return out;
}

Series time_to_first_token(std::shared_ptr<const engine::Engine> engine, const image::RgbImage& picture,
                           const image::ImageProcessorConfig& processor, const TraceInput& input,
                           int64_t chunk_tokens, int repeats, const BenchProgress& progress) {
  Steps steps(progress, 1 + repeats);
  const auto answer = [&] {
    const image::PreprocessedImage p = image::preprocess_image(picture, processor, {}, &engine->pool());
    Prompt prompt{.ids = input.ids, .visuals = {}};
    prompt.visuals.push_back({.is_video = false,
                              .grid = p.grid,
                              .key = "bench",
                              .features = std::make_shared<const engine::VisionFeatures>(engine->vision().encode(
                                  p.pixel_values.as<float>(), {&p.grid, 1}))});
    engine->vision().give_back();
    Session session(engine, chunk_tokens);
    session.prefill(prompt);
    session.generate({.sampling = {.greedy = true}, .seed = 1, .max_tokens = 1}, [](int32_t) { return true; });
  };
  steps.next();
  answer();
  return timed(repeats, steps, answer);
}

}  // namespace qvl::generate
