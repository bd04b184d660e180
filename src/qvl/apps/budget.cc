#include "qvl/apps/budget.h"

#include <ctime>

#include "qvl/apps/bench_report.h"
#include "qvl/apps/stored_weights.h"
#include "qvl/base/atomic_file.h"
#include "qvl/base/error.h"
#include "qvl/base/format.h"
#include "qvl/base/log.h"
#include "qvl/base/stopwatch.h"

namespace qvl::apps {
namespace {

namespace fs = std::filesystem;

// Everything that a profile depends on.
std::string profile_key(const OpenModel& model) {
  const engine::EngineInfo& info = model.engine->info();
  const model::ModelConfig& c = model.engine->config();
  return fmt::format("{}, {} threads, {}, qvl {}: {} + {} with {} keys and values, {} parameters, {} bytes, text {}x{}, vision {}x{}",
                     processor_name(), info.threads, info.isa, QVL_VERSION, info.vision, info.text,
                     engine::kv_dtype_name(info.kv_dtype), info.parameters,
                     info.weight_bytes, c.text.num_layers, c.text.hidden_size, c.vision.depth, c.vision.hidden_size);
}

std::string now_text() {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  char text[32];
  std::strftime(text, sizeof(text), "%Y-%m-%d %H:%M UTC", &utc);
  return text;
}

// Profiles by key, each with the time of its making; empty without a home.
fs::path profiles_file() {
  const fs::path folder = default_cache_folder();
  return folder.empty() ? fs::path() : folder / "calibration.json";
}

Json read_profiles(const fs::path& file) {
  std::error_code ec;
  if (file.empty() || !fs::is_regular_file(file, ec)) return Json::object();
  try {
    Json all = parse_json_file(file);
    if (all.is_object()) return all;
  } catch (const Error&) {
  }
  log_message(LogLevel::kWarning, fmt::format("{}: not readable as calibrations, written anew", file.string()));
  return Json::object();
}

void keep_profile(const fs::path& file, const std::string& key, const generate::SpeedProfile& profile) {
  if (file.empty()) return;
  try {
    std::error_code ec;
    fs::create_directories(file.parent_path(), ec);
    Json all = read_profiles(file);
    all[key] = {{"made", now_text()}, {"profile", profile.to_json()}};
    AtomicFile out(file);
    out.write(all.dump(1) + "\n");
    out.commit();
  } catch (const Error& e) {
    log_message(LogLevel::kWarning, fmt::format("the calibration is not kept: {}", e.what()));
  }
}

std::optional<generate::SpeedProfile> kept_profile(const fs::path& file, const std::string& key, std::string& source) {
  const Json all = read_profiles(file);
  if (!all.contains(key)) return std::nullopt;
  try {
    const Json& entry = all[key];
    const auto profile = generate::SpeedProfile::from_json(entry.value("profile", Json()), file.string());
    source = fmt::format("of {} ({})", entry.value("made", "an unknown time"), file.string());
    return profile;
  } catch (const Error&) {
    log_message(LogLevel::kWarning,
                fmt::format("{}: a calibration that is damaged or of another version is measured again", file.string()));
    return std::nullopt;
  }
}

generate::SpeedProfile find_profile(const OpenModel& model, int64_t decode_weight_bytes, const BudgetChoice& choice,
                                    ProgressBar& bar, std::string& source) {
  if (!choice.calibration.empty()) {
    source = fmt::format("from {}", choice.calibration);
    return generate::SpeedProfile::from_json(parse_json_file(choice.calibration), choice.calibration);
  }
  const fs::path file = profiles_file();
  const std::string key = profile_key(model);
  if (!choice.calibrate) {
    if (const std::optional<generate::SpeedProfile> kept = kept_profile(file, key, source)) {
      if (!choice.decoding_now) return *kept;
      source += ", decoding measured now";
      return generate::with_decoding_now(*kept, *model.engine);
    }
  }
  const Clock::time_point start = Clock::now();
  const generate::SpeedProfile profile = generate::measure_speed_profile(
      *model.engine, decode_weight_bytes, [&bar](int64_t done, int64_t total) {
        bar.update("measuring this machine", done, total, "steps");
        return !interrupt_flag();
      });
  bar.clear();
  source = fmt::format("measured now in {:.1f} s", seconds_since(start));
  keep_profile(file, key, profile);
  return profile;
}

}  // namespace

void add_budget_options(CLI::App& app, BudgetChoice& choice) {
  const char* group = "Budget (pictures are made smaller until the prediction fits)";
  app.add_option("--budget-seconds", choice.seconds, "Most seconds to the first token")
      ->check(real_between(0.001, 1e9))
      ->group(group);
  app.add_option_function<std::string>(
         "--budget-memory", [&choice](const std::string& text) { choice.bytes = *parse_size(text); },
         "Most memory, in bytes or with K, M, G or T (powers of 1024)")
      ->check([](const std::string& text) {
        const std::optional<uint64_t> bytes = parse_size(text);
        return bytes && *bytes > 0 && *bytes < (uint64_t{1} << 62)
                   ? std::string()
                   : fmt::format("expected bytes, or with K, M, G or T, got {}", text);
      })
      ->type_name("BYTES")
      ->group(group);
  app.add_option("--calibration", choice.calibration,
                 "Predict with this profile (qvl plan --json: \"profile\") as it is instead of measuring")
      ->type_name("FILE")
      ->group(group);
}

Planned plan_question(const fs::path& folder, const OpenModel& model, const generate::Question& question,
                      const ResidentMemory& before, const image::PixelOverrides& pixels, const BudgetChoice& choice, ProgressBar& bar) {
  Planned out;
  const engine::EngineInfo& info = model.engine->info();
  out.memory_known = info.vision.starts_with("native") && info.text.starts_with("native");
  if (choice.bytes && !out.memory_known)
    throw UsageError("--budget-memory: expected native stages, got ONNX ones, whose memory cannot be predicted");
  const StoredWeights weights = stored_weights(folder, model.engine->decoder().reads_shortlist());
  const generate::MemoryFacts memory{.base_bytes = before.outside_bytes,
                                     .touched_weight_bytes = before.inside_bytes,
                                     .vision_weight_bytes = weights.vision_bytes,
                                     .text_weight_bytes = weights.decode_bytes,
                                     .kv_dtype = info.kv_dtype};
  out.profile = find_profile(model, weights.decode_bytes, choice, bar, out.profile_source);
  generate::Budget budget;
  budget.seconds = choice.seconds;
  if (choice.bytes) budget.bytes = static_cast<int64_t>(*choice.bytes);
  out.plan = generate::plan_pictures(
      budget, image::with_overrides(model.assets->image, pixels), [&](const image::ImageProcessorConfig& processor) {
        return generate::forecast(model.engine->config(), out.profile, memory, question, processor);
      });
  return out;
}

generate::Question question_of(const generate::Pipeline& pipeline,
                               const std::vector<std::shared_ptr<generate::Visual>>& visuals,
                               const std::vector<generate::ChatMessage>& conversation,
                               const generate::AnswerOptions& options, double preprocess_seconds) {
  generate::Question out;
  out.answer_tokens = options.max_tokens;
  out.preprocess_seconds = preprocess_seconds;
  out.text_tokens = static_cast<int64_t>(pipeline.make_prompt(conversation, options).ids.size());
  for (const auto& v : visuals) {
    out.pictures.push_back({.height = v->info().height, .width = v->info().width});
    out.text_tokens -= v->info().grid.merged_tokens(pipeline.engine().config().vision.spatial_merge_size);
  }
  return out;
}

std::vector<std::string> given_up(const generate::Question& question, const generate::Plan& plan,
                                  int64_t token_side_px) {
  std::vector<std::string> out;
  const int64_t tokens_px = token_side_px * token_side_px;
  for (size_t i = 0; i < plan.chosen.resized.size(); ++i) {
    const image::ImageSize &before = plan.full.resized[i], &after = plan.chosen.resized[i];
    if (before == after) continue;
    out.push_back(fmt::format("picture {} of {}x{}: {}x{} = {} tokens instead of {}x{} = {}", i + 1,
                              question.pictures[i].width, question.pictures[i].height, after.width, after.height,
                              after.width * after.height / tokens_px, before.width, before.height,
                              before.width * before.height / tokens_px));
  }
  return out;
}

}  // namespace qvl::apps
