// Reading and checking of the processor configs; see processor_config.h. Spec 3 and 4.
#include "qvl/image/processor_config.h"

#include <cmath>
#include <string>

#include "qvl/base/error.h"
#include "qvl/base/log.h"

namespace qvl::image {
namespace {

constexpr int kResampleBicubic = 3;

// The value at `key`, or nothing if it is absent or null.
const Json* find(const Json& json, std::string_view key) {
  const auto it = json.find(key);
  return it == json.end() || it->is_null() ? nullptr : &*it;
}

std::string key_name(std::string_view key) {
  return "\"" + std::string(key) + "\"";
}

void read_integer(const Json& json, std::string_view key, std::string_view where, int64_t* value) {
  const Json* found = find(json, key);
  if (found == nullptr) return;
  // 65536.0 is what some writers make of an integer.
  if (found->is_number_float() && found->get<double>() == std::trunc(found->get<double>()) &&
      std::fabs(found->get<double>()) < 1e15) {
    *value = static_cast<int64_t>(found->get<double>());
    return;
  }
  if (!found->is_number_integer() || (found->is_number_unsigned() && found->get<uint64_t>() > INT64_MAX)) {
    fail(ErrorCode::kFormat, where, key_name(key), "an integer", found->dump());
  }
  *value = found->get<int64_t>();
}

void read_number(const Json& json, std::string_view key, std::string_view where, double* value) {
  const Json* found = find(json, key);
  if (found == nullptr) return;
  if (!found->is_number()) fail(ErrorCode::kFormat, where, key_name(key), "a number", found->dump());
  *value = found->get<double>();
}

void read_channels(const Json& json, std::string_view key, std::string_view where,
                   std::array<double, 3>* values) {
  const Json* found = find(json, key);
  if (found == nullptr) return;
  if (found->is_number()) {
    values->fill(found->get<double>());
    return;
  }
  if (!found->is_array() || found->size() != 3) {
    fail(ErrorCode::kFormat, where, key_name(key), "three numbers", found->dump());
  }
  for (size_t c = 0; c < 3; ++c) {
    if (!(*found)[c].is_number())
      fail(ErrorCode::kFormat, where, key_name(key), "three numbers", found->dump());
    (*values)[c] = (*found)[c].get<double>();
  }
}

// A step of the reference that can be switched off there but not here.
void require_enabled(const Json& json, std::string_view key, std::string_view where) {
  const Json* found = find(json, key);
  if (found == nullptr) return;
  if (!found->is_boolean()) fail(ErrorCode::kFormat, where, key_name(key), "true or false", found->dump());
  if (!found->get<bool>()) {
    fail(ErrorCode::kUnsupported, where, key_name(key), "true", "false", "Qwen3-VL always takes this step");
  }
}

void read_common(const Json& json, std::string_view where, PatchConfig* config, int64_t* min_pixels,
                 int64_t* max_pixels) {
  if (!json.is_object()) fail(ErrorCode::kFormat, where, "top level", "an object", json.type_name());
  for (const std::string_view key : {"do_resize", "do_rescale", "do_normalize", "do_convert_rgb"}) {
    require_enabled(json, key, where);
  }
  int64_t resample = kResampleBicubic;
  read_integer(json, "resample", where, &resample);
  if (resample != kResampleBicubic) {
    fail(ErrorCode::kUnsupported, where, key_name("resample"), "3 (bicubic)", std::to_string(resample));
  }
  read_integer(json, "patch_size", where, &config->patch_size_px);
  read_integer(json, "temporal_patch_size", where, &config->temporal_patch_size);
  read_integer(json, "merge_size", where, &config->merge_size);
  read_number(json, "rescale_factor", where, &config->rescale_factor);
  read_channels(json, "image_mean", where, &config->mean);
  read_channels(json, "image_std", where, &config->std);
  if (const Json* size = find(json, "size")) {
    if (!size->is_object()) fail(ErrorCode::kFormat, where, key_name("size"), "an object", size->dump());
    if ((find(*size, "shortest_edge") == nullptr || find(*size, "longest_edge") == nullptr) &&
        (find(json, "min_pixels") == nullptr || find(json, "max_pixels") == nullptr)) {
      fail(ErrorCode::kUnsupported, where, key_name("size"),
           "\"shortest_edge\" and \"longest_edge\" (pixel counts)", size->dump());
    }
    read_integer(*size, "shortest_edge", where, min_pixels);
    read_integer(*size, "longest_edge", where, max_pixels);
  }
  // The older spelling; the reference lets it win where both are present.
  read_integer(json, "min_pixels", where, min_pixels);
  read_integer(json, "max_pixels", where, max_pixels);
}

void validate_common(const PatchConfig& config, int64_t min_pixels, int64_t max_pixels,
                     std::string_view where) {
  const auto require = [&](bool ok, std::string_view what, std::string_view expected,
                           const std::string& got) {
    if (!ok) fail(ErrorCode::kInvalidArgument, where, what, expected, got);
  };
  const auto in_range = [](int64_t v, int64_t low, int64_t high) { return v >= low && v <= high; };
  require(in_range(config.patch_size_px, 1, 1024), "patch_size", "1 to 1024",
          std::to_string(config.patch_size_px));
  require(in_range(config.temporal_patch_size, 1, 64), "temporal_patch_size", "1 to 64",
          std::to_string(config.temporal_patch_size));
  require(in_range(config.merge_size, 1, 64), "merge_size", "1 to 64", std::to_string(config.merge_size));
  require(std::isfinite(config.rescale_factor) && config.rescale_factor > 0.0, "rescale_factor",
          "a positive number", std::to_string(config.rescale_factor));
  for (const double mean : config.mean) {
    require(std::isfinite(mean), "image_mean", "finite numbers", std::to_string(mean));
  }
  for (const double std : config.std) {
    require(std::isfinite(std) && std > 0.0, "image_std", "positive numbers", std::to_string(std));
  }
  require(min_pixels >= 1, "min_pixels", "at least 1", std::to_string(min_pixels));
  if (max_pixels < min_pixels) {
    fail(ErrorCode::kInvalidArgument, where, "max_pixels",
         "at least min_pixels = " + std::to_string(min_pixels), std::to_string(max_pixels),
         "give both --min-pixels and --max-pixels");
  }
}

struct Section {
  Json json;
  std::string where;
};

// The processor's own file, or its part of the joint file that newer tools write.
std::optional<Section> find_section(const std::filesystem::path& folder, const char* file_name,
                                    const char* joint_key) {
  const std::filesystem::path own = folder / file_name;
  if (std::filesystem::exists(own)) return Section{parse_json_file(own), own.string()};
  const std::filesystem::path joint = folder / "processor_config.json";
  if (!std::filesystem::exists(joint)) return std::nullopt;
  const Json json = parse_json_file(joint);
  if (!json.is_object()) fail(ErrorCode::kFormat, joint.string(), "top level", "an object", json.type_name());
  const Json* part = find(json, joint_key);
  if (part == nullptr) return std::nullopt;
  return Section{*part, joint.string() + " " + joint_key};
}

template <typename Config>
Config load_config(const std::filesystem::path& folder, const char* file_name, const char* joint_key) {
  if (const std::optional<Section> section = find_section(folder, file_name, joint_key)) {
    return Config::from_json(section->json, section->where);
  }
  log_message(LogLevel::kWarning,
              "[" + folder.string() + "] no " + file_name + ": the values released with Qwen3-VL are used");
  return Config{};
}

template <typename Config>
Config apply_overrides(Config config, const PixelOverrides& overrides) {
  if (overrides.min_pixels) config.min_pixels = *overrides.min_pixels;
  if (overrides.max_pixels) config.max_pixels = *overrides.max_pixels;
  config.validate("pixel budget");
  return config;
}

}  // namespace

ImageProcessorConfig ImageProcessorConfig::load(const std::filesystem::path& checkpoint_dir) {
  return load_config<ImageProcessorConfig>(checkpoint_dir, "preprocessor_config.json", "image_processor");
}

ImageProcessorConfig ImageProcessorConfig::from_json(const Json& json, std::string_view where) {
  ImageProcessorConfig config;
  read_common(json, where, &config, &config.min_pixels, &config.max_pixels);
  config.validate(where);
  return config;
}

void ImageProcessorConfig::validate(std::string_view where) const {
  validate_common(*this, min_pixels, max_pixels, where);
}

VideoProcessorConfig VideoProcessorConfig::load(const std::filesystem::path& checkpoint_dir) {
  return load_config<VideoProcessorConfig>(checkpoint_dir, "video_preprocessor_config.json",
                                           "video_processor");
}

VideoProcessorConfig VideoProcessorConfig::from_json(const Json& json, std::string_view where) {
  VideoProcessorConfig config;
  read_common(json, where, &config, &config.min_pixels, &config.max_pixels);
  require_enabled(json, "do_sample_frames", where);
  read_number(json, "fps", where, &config.sample_fps);
  read_integer(json, "min_frames", where, &config.min_frames);
  read_integer(json, "max_frames", where, &config.max_frames);
  config.validate(where);
  return config;
}

void VideoProcessorConfig::validate(std::string_view where) const {
  validate_common(*this, min_pixels, max_pixels, where);
  if (!std::isfinite(sample_fps) || sample_fps <= 0.0) {
    fail(ErrorCode::kInvalidArgument, where, "fps", "a positive number", std::to_string(sample_fps));
  }
  if (min_frames < 1 || max_frames < min_frames) {
    fail(ErrorCode::kInvalidArgument, where, "min_frames and max_frames", "1 <= min_frames <= max_frames",
         std::to_string(min_frames) + " and " + std::to_string(max_frames));
  }
}

ImageProcessorConfig with_overrides(ImageProcessorConfig config, const PixelOverrides& overrides) {
  return apply_overrides(config, overrides);
}

VideoProcessorConfig with_overrides(VideoProcessorConfig config, const PixelOverrides& overrides) {
  return apply_overrides(config, overrides);
}

}  // namespace qvl::image
