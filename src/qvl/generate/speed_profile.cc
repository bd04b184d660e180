#include "qvl/generate/speed_profile.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <initializer_list>
#include <memory>
#include <optional>
#include <vector>

#include "qvl/base/error.h"
#include "qvl/base/format.h"
#include "qvl/base/stopwatch.h"
#include "qvl/generate/parity_cases.h"
#include "qvl/generate/text_timeline.h"
#include "qvl/generate/workload.h"

namespace qvl::generate {
namespace {

constexpr struct {
  const char* key;
  double SpeedProfile::*value;
} kRates[] = {{"vision_linear_s", &SpeedProfile::vision_linear_s},
              {"vision_attention_s", &SpeedProfile::vision_attention_s},
              {"vision_weight_s", &SpeedProfile::vision_weight_s},
              {"prefill_linear_s", &SpeedProfile::prefill_linear_s},
              {"prefill_attention_s", &SpeedProfile::prefill_attention_s},
              {"prefill_weight_s", &SpeedProfile::prefill_weight_s},
              {"vision_first_s", &SpeedProfile::vision_first_s},
              {"prefill_first_s", &SpeedProfile::prefill_first_s},
              {"decode_byte_s", &SpeedProfile::decode_byte_s},
              {"decode_part_s", &SpeedProfile::decode_part_s}};

using Rates = std::array<double, 3>;  // linear, attention, weights

// Of the rates whose bits are set in `chosen` those with the smallest sum of (row * rates - 1)^2, the others 0. None where the rows
// do not tell them apart.
std::optional<Rates> least_squares(std::span<const Rates> rows, unsigned chosen) {
  std::array<size_t, 3> at{};
  size_t n = 0;
  for (size_t i = 0; i < 3; ++i)
    if (chosen >> i & 1) at[n++] = i;
  Rates unit{};  // the largest of each column, so that pivots can be judged
  for (const Rates& row : rows)
    for (size_t i = 0; i < 3; ++i) unit[i] = std::max(unit[i], row[i]);
  std::array<std::array<double, 4>, 3> m{};  // normal equations
  for (const Rates& row : rows) {
    for (size_t i = 0; i < n; ++i) {
      if (!(unit[at[i]] > 0)) return std::nullopt;
      const double x = row[at[i]] / unit[at[i]];
      for (size_t j = 0; j < n; ++j) m[i][j] += x * row[at[j]] / unit[at[j]];
      m[i][3] += x;
    }
  }
  for (size_t i = 0; i < n; ++i) {  // positive semidefinite: no need to exchange rows
    if (!(m[i][i] > 1e-9)) return std::nullopt;
    for (size_t r = 0; r < n; ++r) {
      if (r == i) continue;
      const double f = m[r][i] / m[i][i];
      for (size_t c = 0; c < 4; ++c) m[r][c] -= f * m[i][c];
    }
  }
  Rates out{};
  for (size_t i = 0; i < n; ++i) out[at[i]] = m[i][3] / m[i][i] / unit[at[i]];
  return out;
}

// Stages tell when they begin a block or a layer. Where these are slow, a few of them say as much as all.
class UnitClock {
 public:
  static constexpr int kUnits = 4;  // of a slow stage

  UnitClock(const std::function<void()>& check) : check_(check) {}

  // Runs `call` with a hook; true when it was stopped early.
  bool run(const std::function<void(const engine::StageHooks&)>& call) {
    begun_.clear();
    stopped_ = false;
    engine::StageHooks hooks;
    int64_t units = -1;  // the hook is called within them too
    hooks.progress = [this, units](int64_t done, int64_t) mutable {
      check_();
      if (done == units) return true;
      units = done;
      begun_.push_back(Clock::now());
      stopped_ = begun_.size() > static_cast<size_t>(kUnits) && seconds_between(begun_.front(), begun_.back()) > kEnoughSeconds;
      return !stopped_;
    };
    start_ = Clock::now();
    try {
      call(hooks);
    } catch (const Error& e) {
      if (e.code() != ErrorCode::kCancelled || !stopped_) throw;
    }
    end_ = Clock::now();
    return stopped_;
  }
  double call_seconds() const { return seconds_between(start_, end_); }
  // Of the units but the first, which meets cold memory, and those that `skip` names.
  double unit_seconds(const std::vector<int64_t>& skip) const {
    double sum = 0;
    int count = 0;
    for (size_t i = 1; i + 1 < begun_.size(); ++i) {
      if (std::ranges::find(skip, static_cast<int64_t>(i)) != skip.end()) continue;
      sum += seconds_between(begun_[i], begun_[i + 1]);
      ++count;
    }
    return count > 0 ? sum / count : seconds_between(begun_[0], begun_[1]);
  }

 private:
  static constexpr double kEnoughSeconds = 0.4;
  const std::function<void()>& check_;
  std::vector<Clock::time_point> begun_;
  Clock::time_point start_, end_;
  bool stopped_ = false;
};

ProfileSample sample_vision(const engine::Engine& engine, int64_t side, UnitClock& clock) {
  const model::VisionConfig& config = engine.config().vision;
  const image::Grid grid{1, side, side};
  std::vector<float> pixels(static_cast<size_t>(grid.patches() * config.patch_width()));
  for (size_t i = 0; i < pixels.size(); ++i) pixels[i] = static_cast<float>(i * 37 % 255) / 127.5F - 1;
  const bool stopped =
      clock.run([&](const engine::StageHooks& hooks) { engine.vision().encode(pixels, {&grid, 1}, hooks); });
  if (!stopped) {
    const Operations work = vision_operations(config, {&grid, 1});
    return {.linear = work.linear,
            .attention = work.attention,
            .weights = vision_weights(config),
            .seconds = clock.call_seconds(),
            .whole = true};
  }
  model::VisionConfig one = config, none = config;
  one.depth = 1, none.depth = 0;
  const Operations with = vision_operations(one, {&grid, 1}), without = vision_operations(none, {&grid, 1});
  return {.linear = with.linear - without.linear,
          .attention = with.attention - without.attention,
          .weights = vision_weights(one) - vision_weights(none),
          .seconds = clock.unit_seconds(config.deepstack_indexes)};
}

double median(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  return v[v.size() / 2];
}

// The sample again and again while that costs little: a short one may have met a busy moment.
ProfileSample steady_sample(const std::function<ProfileSample()>& take) {
  constexpr double kSeconds = 1;
  const Clock::time_point start = Clock::now();
  ProfileSample out = take();
  std::vector<double> seconds = {out.seconds};
  while (seconds_since(start) < kSeconds && seconds.size() < 25) seconds.push_back(take().seconds);
  out.seconds = median(std::move(seconds));
  return out;
}

// The first of `sizes`, largest first, whose sample should take a few seconds at most, or else the last. `known` is a sample of
// `size`; work grows with the size to the power of `power` or somewhat faster.
int64_t affordable(const ProfileSample& known, int64_t size, std::initializer_list<int64_t> sizes, int power) {
  constexpr double kSeconds = 5;
  const double calls = known.whole ? 1 : UnitClock::kUnits;
  for (const int64_t s : sizes) {
    if (calls * known.seconds * std::pow(static_cast<double>(s) / static_cast<double>(size), power) <= kSeconds) return s;
  }
  return *(sizes.end() - 1);
}

// What the first call took beyond the second, which did the same; 0 where either was stopped early.
double first_call_seconds(const ProfileSample& first, const ProfileSample& second) {
  return first.whole && second.whole ? std::max(0.0, first.seconds - second.seconds) : 0;
}

class TextSampler {
 public:
  TextSampler(const engine::Engine& engine, UnitClock& clock) : engine_(engine), clock_(clock) {}

  ProfileSample prefill(int64_t tokens) {
    const model::TextConfig& config = engine_.config().text;
    timeline_.emplace(engine_.embed(), engine_.decoder());
    const bool stopped = clock_.run([&](const engine::StageHooks& hooks) {
      timeline_->prefill(random_text_ids(engine_.config(), tokens, 3), tokens, hooks);
    });
    ProfileSample out;
    if (!stopped) {
      const Operations work = prefill_operations(config, tokens);
      out = {.linear = work.linear, .attention = work.attention, .seconds = clock_.call_seconds(), .whole = true};
      out.weights = layer_weights(config) + static_cast<double>(config.vocab_size * config.hidden_size);
      return out;
    }
    const double rows = static_cast<double>(tokens);
    out.weights = layer_weights(config) / static_cast<double>(config.num_layers);
    out.linear = 2 * rows * out.weights;
    out.attention = 4 * static_cast<double>(config.q_width()) * rows * (rows + 1) / 2;
    out.seconds = clock_.unit_seconds({});
    return out;
  }

  int64_t length() const { return timeline_->length(); }
  // Seconds of one token more.
  double decode() {
    const Clock::time_point start = Clock::now();
    timeline_->decode(5, {.count = 1});
    return seconds_since(start);
  }

 private:
  const engine::Engine& engine_;
  UnitClock& clock_;
  std::optional<TextTimeline> timeline_;
};

// The first layers of a decode step, again and again.
class DecodePart {
 public:
  DecodePart(const engine::Engine& engine, int64_t decode_weight_bytes)
      : timeline_(engine.embed(), engine.decoder()) {
    // Several times what last caches hold: the next sample finds nothing there.
    constexpr double kPartBytes = 256e6;
    const double layers = static_cast<double>(engine.config().text.num_layers) * kPartBytes /
                          static_cast<double>(std::max<int64_t>(1, decode_weight_bytes));
    hooks_.progress = [this, layers](int64_t done, int64_t total) {
      stopped_ = done < total && static_cast<double>(done) >= layers;
      return !stopped_;
    };
  }
  DecodePart(const DecodePart&) = delete;
  DecodePart& operator=(const DecodePart&) = delete;

  double run() {
    stopped_ = false;
    const Clock::time_point start = Clock::now();
    try {
      timeline_.decode(5, {.count = 1}, hooks_);
    } catch (const Error& e) {
      if (e.code() != ErrorCode::kCancelled || !stopped_) throw;
    }
    const double seconds = seconds_since(start);
    timeline_.truncate(0);
    return seconds;
  }

 private:
  TextTimeline timeline_;
  engine::StageHooks hooks_;
  bool stopped_ = false;
};

}  // namespace

Json SpeedProfile::to_json() const {
  Json out;
  for (const auto& [key, value] : kRates) out[key] = this->*value;
  out["decode_weight_bytes"] = decode_weight_bytes;
  out["element_bytes"] = element_bytes;
  return out;
}

SpeedProfile SpeedProfile::from_json(const Json& json, std::string_view where) {
  const auto get = [&](const char* key) {
    if (!json.is_object() || !json.contains(key) || !json[key].is_number() || !std::isfinite(json[key].get<double>()) ||
        json[key].get<double>() < 0) {
      fail(ErrorCode::kFormat, where, cat("key '", key, "'"), "a number from 0",
           json.is_object() && json.contains(key) ? json[key].dump() : std::string("none"));
    }
    return json[key].get<double>();
  };
  SpeedProfile out;
  for (const auto& [key, value] : kRates) out.*value = get(key);
  out.decode_weight_bytes = static_cast<int64_t>(get("decode_weight_bytes"));
  out.element_bytes = static_cast<int64_t>(get("element_bytes"));
  return out;
}

double vision_weights(const model::VisionConfig& c) {
  const double width = static_cast<double>(c.hidden_size), merged = static_cast<double>(c.merged_width());
  return static_cast<double>(c.patch_width()) * width +
         static_cast<double>(c.depth) * width * (4 * width + 2 * static_cast<double>(c.intermediate_size)) +
         static_cast<double>(1 + c.deepstack_levels()) * merged * (merged + static_cast<double>(c.out_hidden_size));
}

double layer_weights(const model::TextConfig& c) {
  return static_cast<double>(c.num_layers * c.hidden_size) *
         static_cast<double>(2 * c.q_width() + 2 * c.kv_width() + 3 * c.intermediate_size);
}

WorkRates fit_rates(std::span<const ProfileSample> samples) {
  std::vector<Rates> rows;  // work a second: rates should make it 1
  for (const ProfileSample& s : samples) {
    if (s.seconds > 0 && s.linear > 0) rows.push_back({s.linear / s.seconds, s.attention / s.seconds, s.weights / s.seconds});
  }
  if (rows.empty() || rows.size() < samples.size()) {
    fail(ErrorCode::kInvalidArgument, "profile", "samples", "work and time in each", "none");
  }
  constexpr unsigned kLinear = 1, kAttention = 2, kWeights = 4;
  constexpr double kBetter = 1e-12;  // what fewer rates explain as well they explain
  Rates best{};
  double least = INFINITY;
  for (const unsigned chosen : {kLinear, kLinear | kWeights, kLinear | kAttention, kLinear | kAttention | kWeights, kAttention,
                                kWeights, kAttention | kWeights}) {
    const std::optional<Rates> rates = least_squares(rows, chosen);
    if (!rates || std::ranges::any_of(*rates, [](double r) { return r < 0; })) continue;
    double error = 0;
    for (const Rates& row : rows) {
      const double e = row[0] * (*rates)[0] + row[1] * (*rates)[1] + row[2] * (*rates)[2] - 1;
      error += e * e;
    }
    if (error + kBetter < least) least = error, best = *rates;
  }
  return {best[0], best[1], best[2]};
}

SpeedProfile measure_speed_profile(const engine::Engine& engine, int64_t decode_weight_bytes,
                                   const engine::ProgressFn& progress) {
  constexpr int64_t kFewTokens = 32, kManyTokens = 256;
  int64_t step = 0;
  const std::function<void()> check = [&] {
    if (progress && !progress(step, 8)) fail(ErrorCode::kCancelled, "plan", "cancelled");
  };
  UnitClock clock(check);
  SpeedProfile out;
  out.decode_weight_bytes = decode_weight_bytes;

  const auto vision = [&](int64_t side) { return sample_vision(engine, side, clock); };
  const ProfileSample v0 = vision(16);  // brings the weights into memory
  ++step;
  const ProfileSample v1 = steady_sample([&] { return vision(16); });
  ++step;
  const ProfileSample v2 = steady_sample([&] { return vision(32); });
  ++step;
  // Attention grows with the square, so that four times the patches tell it from the rest.
  const int64_t side = affordable(v2, 32, {64, 48}, 2);
  const ProfileSample v3 = steady_sample([&] { return vision(side); });
  out.vision_first_s = first_call_seconds(v0, v1);
  const WorkRates seeing = fit_rates(std::array{v1, v2, v3});
  out.vision_linear_s = seeing.linear;
  out.vision_attention_s = seeing.attention;
  out.vision_weight_s = seeing.weights;
  engine.vision().give_back();
  ++step;

  TextSampler text(engine, clock);
  const int64_t most = engine.config().text.max_positions, many = std::min(kManyTokens, most);
  const ProfileSample t0 = text.prefill(std::min(kFewTokens, many));
  ++step;
  std::vector<ProfileSample> samples = {steady_sample([&] { return text.prefill(many); })};
  ++step;
  const int64_t long_tokens = std::min(most, affordable(samples[0], many, {2048, 1024, 512}, 1));
  if (long_tokens > many) {
    try {
      samples.push_back(steady_sample([&] { return text.prefill(long_tokens); }));
    } catch (const Error& e) {
      // A package with fixed sizes has less room than its model says; attention is little of any prompt there.
      if (e.code() != ErrorCode::kLimit) throw;
    }
  }
  ++step;
  samples.push_back(steady_sample([&] { return text.prefill(std::min(kFewTokens, many)); }));
  out.prefill_first_s = first_call_seconds(t0, samples.back());
  const WorkRates reading = fit_rates(samples);
  out.prefill_linear_s = reading.linear;
  out.prefill_attention_s = reading.attention;
  out.prefill_weight_s = reading.weights;
  ++step;
  const int32_t some_id = 0;
  out.element_bytes = static_cast<int64_t>(dtype_size_bytes(engine.embed().embed({&some_id, 1}).dtype()));
  check();
  const int64_t context = text.length();  // none where the layers were stopped early
  // In turns, so that memory that changes its speed meanwhile changes both.
  DecodePart part(engine, decode_weight_bytes);
  text.decode(), part.run();
  std::vector<double> steps, parts;
  double spent = 0;
  while (steps.size() < 5 || (spent < 1 && steps.size() < 100)) {
    spent += steps.emplace_back(text.decode());
    spent += parts.emplace_back(part.run());
  }
  out.decode_byte_s =
      median(std::move(steps)) / decode_bytes(engine.config(), decode_weight_bytes, context, engine.info().kv_dtype);
  out.decode_part_s = median(std::move(parts));
  return out;
}

double measure_decode_part(const engine::Engine& engine, int64_t decode_weight_bytes) {
  constexpr double kSeconds = 0.3;
  DecodePart part(engine, decode_weight_bytes);
  part.run();  // pages of the weights, buffers
  std::vector<double> seconds;
  double spent = 0;
  while (seconds.size() < 5 || (spent < kSeconds && seconds.size() < 100)) spent += seconds.emplace_back(part.run());
  return median(std::move(seconds));
}

SpeedProfile with_decoding_now(SpeedProfile profile, const engine::Engine& engine) {
  const double part = measure_decode_part(engine, profile.decode_weight_bytes);
  if (profile.decode_part_s > 0) profile.decode_byte_s *= part / profile.decode_part_s;
  profile.decode_part_s = part;
  return profile;
}

}  // namespace qvl::generate
