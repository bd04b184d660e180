#include "qvl/generate/speed_profile.h"

#include <algorithm>
#include <cmath>
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

// One timed piece of work.
struct ProfileSample {
  double linear = 0, attention = 0;  // operations
  double weights = 0;                // elements
  double seconds = 0;
  bool whole = false;  // a complete call
};

constexpr struct {
  const char* key;
  double SpeedProfile::*value;
} kRates[] = {{"vision_linear_s", &SpeedProfile::vision_linear_s},
              {"vision_attention_s", &SpeedProfile::vision_attention_s},
              {"prefill_linear_s", &SpeedProfile::prefill_linear_s},
              {"prefill_weight_s", &SpeedProfile::prefill_weight_s},
              {"vision_first_s", &SpeedProfile::vision_first_s},
              {"prefill_first_s", &SpeedProfile::prefill_first_s},
              {"decode_byte_s", &SpeedProfile::decode_byte_s}};

// Stages tell when they begin a block or a layer. Where these are slow, a few of them say as much as all.
class UnitClock {
 public:
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
      stopped_ = begun_.size() > kUnits && seconds_between(begun_.front(), begun_.back()) > kEnoughSeconds;
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
  static constexpr size_t kUnits = 4;
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
    return {.linear = work.linear, .attention = work.attention, .seconds = clock.call_seconds(), .whole = true};
  }
  model::VisionConfig one = config, none = config;
  one.depth = 1, none.depth = 0;
  const Operations with = vision_operations(one, {&grid, 1}), without = vision_operations(none, {&grid, 1});
  return {.linear = with.linear - without.linear,
          .attention = with.attention - without.attention,
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

// What the first call took beyond the second, which did the same; 0 where either was stopped early.
double first_call_seconds(const ProfileSample& first, const ProfileSample& second) {
  return first.whole && second.whole ? std::max(0.0, first.seconds - second.seconds) : 0;
}

double layer_weights(const model::TextConfig& c) {
  return static_cast<double>(c.hidden_size) *
         static_cast<double>(2 * c.q_width() + 2 * c.kv_width() + 3 * c.intermediate_size);
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
      out.weights = layer_weights(config) * static_cast<double>(config.num_layers) +
                    static_cast<double>(config.vocab_size * config.hidden_size);
      return out;
    }
    const double rows = static_cast<double>(tokens);
    out.weights = layer_weights(config);
    out.linear = 2 * rows * out.weights;
    out.attention = 4 * static_cast<double>(config.q_width()) * rows * (rows + 1) / 2;
    out.seconds = clock_.unit_seconds({});
    return out;
  }

  int64_t length() const { return timeline_->length(); }
  // Seconds of one token after the last prefill.
  double decode() {
    const auto one = [&] { timeline_->decode(5, {.count = 1}); };
    one();
    std::vector<double> seconds;
    double spent = 0;
    while (seconds.size() < 5 || (spent < 1 && seconds.size() < 100)) {
      const Clock::time_point start = Clock::now();
      one();
      seconds.push_back(seconds_since(start));
      spent += seconds.back();
    }
    return median(std::move(seconds));
  }

 private:
  const engine::Engine& engine_;
  UnitClock& clock_;
  std::optional<TextTimeline> timeline_;
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

Pair solve_rates(double p1, double q1, double seconds1, double p2, double q2, double seconds2) {
  if (!(p1 > 0 && p2 > 0 && seconds1 > 0 && seconds2 > 0)) {
    fail(ErrorCode::kInvalidArgument, "profile", "samples", "work and time in each", "none");
  }
  const double determinant = p1 * q2 - p2 * q1;
  if (std::abs(determinant) > 1e-9 * p1 * std::max(q2, 1e-300)) {
    const double x = (seconds1 * q2 - seconds2 * q1) / determinant;
    const double y = (p1 * seconds2 - p2 * seconds1) / determinant;
    if (x >= 0 && y >= 0) return {x, y};
    if (x < 0 && q2 > 0) return {0, seconds2 / q2};
  }
  return {seconds2 / p2, 0};
}

SpeedProfile measure_speed_profile(const engine::Engine& engine, int64_t decode_weight_bytes,
                                   const engine::ProgressFn& progress) {
  constexpr int64_t kSmallSide = 16, kLargeSide = 48;  // 256 and 2304 patches
  constexpr int64_t kFewTokens = 32, kManyTokens = 256;
  int64_t step = 0;
  const std::function<void()> check = [&] {
    if (progress && !progress(step, 6)) fail(ErrorCode::kCancelled, "plan", "cancelled");
  };
  UnitClock clock(check);
  SpeedProfile out;
  out.decode_weight_bytes = decode_weight_bytes;

  const ProfileSample v0 = sample_vision(engine, kSmallSide, clock);  // brings the weights into memory
  ++step;
  const ProfileSample v1 = steady_sample([&] { return sample_vision(engine, kSmallSide, clock); });
  ++step;
  const ProfileSample v2 = steady_sample([&] { return sample_vision(engine, kLargeSide, clock); });
  out.vision_first_s = first_call_seconds(v0, v1);
  const Pair vision = solve_rates(v1.linear, v1.attention, v1.seconds, v2.linear, v2.attention, v2.seconds);
  out.vision_linear_s = vision.x;
  out.vision_attention_s = vision.y;
  engine.vision().give_back();
  ++step;

  TextSampler text(engine, clock);
  const int64_t many = std::min(kManyTokens, engine.config().text.max_positions);
  const ProfileSample t0 = text.prefill(std::min(kFewTokens, many));
  ++step;
  const auto without_attention = [&](ProfileSample s) {
    s.seconds = std::max(s.seconds / 2, s.seconds - s.attention * out.vision_attention_s);
    return s;
  };
  const ProfileSample t2 = without_attention(steady_sample([&] { return text.prefill(many); }));
  ++step;
  const ProfileSample last = steady_sample([&] { return text.prefill(std::min(kFewTokens, many)); });
  const ProfileSample t1 = without_attention(last);
  out.prefill_first_s = first_call_seconds(t0, last);
  const Pair prefill = solve_rates(t1.linear, t1.weights, t1.seconds, t2.linear, t2.weights, t2.seconds);
  out.prefill_linear_s = prefill.x;
  out.prefill_weight_s = prefill.y;
  ++step;
  const int32_t some_id = 0;
  out.element_bytes = static_cast<int64_t>(dtype_size_bytes(engine.embed().embed({&some_id, 1}).dtype()));
  check();
  const int64_t context = text.length();  // none where the layers were stopped early
  out.decode_byte_s =
      text.decode() / decode_bytes(engine.config(), decode_weight_bytes, context, engine.info().kv_dtype);
  return out;
}

}  // namespace qvl::generate
