#include "qvl/image/processor_config.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>

#include "qvl/base/log.h"
#include "qvl/image/test_util.h"

namespace qvl::image {
namespace {

namespace fs = std::filesystem;

ImageProcessorConfig image_config(const std::string& text) {
  return ImageProcessorConfig::from_json(parse_json(text, "test"), "test");
}
VideoProcessorConfig video_config(const std::string& text) {
  return VideoProcessorConfig::from_json(parse_json(text, "test"), "test");
}

// The file published with Qwen3-VL.
constexpr const char* kReleased = R"({
  "size": {"longest_edge": 16777216, "shortest_edge": 65536}, "patch_size": 16, "temporal_patch_size": 2,
  "merge_size": 2, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
  "processor_class": "Qwen3VLProcessor", "image_processor_type": "Qwen2VLImageProcessorFast"})";

TEST(ProcessorConfig, Released) {
  const ImageProcessorConfig config = image_config(kReleased);
  EXPECT_EQ(config.min_pixels, 65536);
  EXPECT_EQ(config.max_pixels, 16777216);
  EXPECT_EQ(config.resize_factor_px(), 32);
  EXPECT_EQ(config.patch_values(), 1536);
  const VideoProcessorConfig video =
      video_config(R"({"size": {"longest_edge": 25165824, "shortest_edge": 4096},
      "fps": 2, "min_frames": 4, "max_frames": 768, "do_sample_frames": true})");
  EXPECT_EQ(video.min_pixels, 4096);
  EXPECT_EQ(video.max_pixels, 25165824);
  EXPECT_EQ(video.sample_fps, 2.0);
}

TEST(ProcessorConfig, OlderSpelling) {
  const ImageProcessorConfig config = image_config(
      R"({"min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "image_mean": [0.48, 0.45, 0.4],
          "image_std": [0.26, 0.25, 0.27], "rescale_factor": 0.00392156862745098, "resample": 3, "do_resize": true})");
  EXPECT_EQ(config.min_pixels, 3136);
  EXPECT_EQ(config.max_pixels, 12845056);
  EXPECT_EQ(config.resize_factor_px(), 28);
  EXPECT_EQ(config.mean[1], 0.45);
  EXPECT_EQ(config.std[2], 0.27);
  EXPECT_EQ(image_config(
                R"({"min_pixels": 5, "max_pixels": 100, "size": {"shortest_edge": 7, "longest_edge": 99}})")
                .min_pixels,
            5);
  EXPECT_EQ(
      image_config(
          R"({"min_pixels": null, "max_pixels": null, "size": {"shortest_edge": 7, "longest_edge": 99}})")
          .min_pixels,
      7);
  EXPECT_EQ(image_config(R"({"max_pixels": 70000.0})").max_pixels, 70000);
}

TEST(ProcessorConfig, RejectsWhatItCannotHonour) {
  const auto code = [](const std::string& text) { return catch_error([&] { image_config(text); }).code; };
  EXPECT_EQ(code(R"({"resample": 2})"), ErrorCode::kUnsupported);
  EXPECT_EQ(code(R"({"do_normalize": false})"), ErrorCode::kUnsupported);
  EXPECT_EQ(code(R"({"size": {"height": 224, "width": 224}})"), ErrorCode::kUnsupported);
  EXPECT_EQ(code(R"({"size": 224})"), ErrorCode::kFormat);
  EXPECT_EQ(code(R"({"do_resize": "yes"})"), ErrorCode::kFormat);
  EXPECT_EQ(code(R"({"patch_size": "16"})"), ErrorCode::kFormat);
  EXPECT_EQ(code(R"({"patch_size": 16.5})"), ErrorCode::kFormat);
  EXPECT_EQ(code(R"({"min_pixels": 18446744073709551615})"), ErrorCode::kFormat);
  EXPECT_EQ(code(R"({"image_mean": [0.5, 0.5]})"), ErrorCode::kFormat);
  EXPECT_EQ(code(R"({"image_mean": [0.5, 0.5, "x"]})"), ErrorCode::kFormat);
  EXPECT_EQ(code("[]"), ErrorCode::kFormat);
  EXPECT_EQ(code(R"({"image_std": [0.5, 0.5, 0]})"), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code(R"({"patch_size": 0})"), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code(R"({"merge_size": -2})"), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code(R"({"rescale_factor": 0})"), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code(R"({"min_pixels": 0})"), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code(R"({"max_pixels": 100})"), ErrorCode::kInvalidArgument);
  EXPECT_EQ(catch_error([] { video_config(R"({"fps": 0})"); }).code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(catch_error([] { video_config(R"({"min_frames": 9, "max_frames": 8})"); }).code,
            ErrorCode::kInvalidArgument);
  const Caught error = catch_error([] { image_config(R"({"resample": 2})"); });
  EXPECT_NE(error.message.find("expected 3 (bicubic), got 2"), std::string::npos) << error.message;
}

TEST(ProcessorConfig, OverridesMayComeAlone) {
  EXPECT_EQ(with_overrides(ImageProcessorConfig{}, {.max_pixels = 70000}).max_pixels, 70000);
  EXPECT_EQ(with_overrides(ImageProcessorConfig{}, {.max_pixels = 70000}).min_pixels, 65536);
  EXPECT_EQ(with_overrides(VideoProcessorConfig{}, {.min_pixels = 9999}).min_pixels, 9999);
  EXPECT_EQ(catch_error([] { with_overrides(ImageProcessorConfig{}, {.min_pixels = 0}); }).code,
            ErrorCode::kInvalidArgument);
  EXPECT_EQ(catch_error([] { with_overrides(ImageProcessorConfig{}, {.max_pixels = -1}); }).code,
            ErrorCode::kInvalidArgument);
}

class ProcessorConfigFolder : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("qvl_processor_config_test_" + std::to_string(::getpid()));
    fs::remove_all(folder_);
    fs::create_directories(folder_);
    set_log_sink([this](LogLevel, std::string_view message) { log_ += message; });
  }
  void TearDown() override {
    set_log_sink({});
    fs::remove_all(folder_);
  }
  void write(const char* name, const std::string& text) { std::ofstream(folder_ / name) << text; }
  fs::path folder_;
  std::string log_;
};

TEST_F(ProcessorConfigFolder, AbsentFilesAreALoggedDecision) {
  EXPECT_EQ(ImageProcessorConfig::load(folder_).max_pixels, 16777216);
  EXPECT_NE(log_.find("no preprocessor_config.json"), std::string::npos) << log_;
  EXPECT_EQ(VideoProcessorConfig::load(folder_).max_frames, 768);
  EXPECT_NE(log_.find("no video_preprocessor_config.json"), std::string::npos) << log_;
}

TEST_F(ProcessorConfigFolder, OwnFileBeforeJointFile) {
  write("processor_config.json",
        R"({"image_processor": {"max_pixels": 80000}, "video_processor": {"fps": 3}})");
  EXPECT_EQ(ImageProcessorConfig::load(folder_).max_pixels, 80000);
  EXPECT_EQ(VideoProcessorConfig::load(folder_).sample_fps, 3.0);
  write("preprocessor_config.json", R"({"max_pixels": 90000})");
  EXPECT_EQ(ImageProcessorConfig::load(folder_).max_pixels, 90000);
  EXPECT_EQ(log_, "");
  write("preprocessor_config.json", R"({"max_pixels": )");
  const Caught error = catch_error([&] { ImageProcessorConfig::load(folder_); });
  EXPECT_EQ(error.code, ErrorCode::kFormat);
  EXPECT_NE(error.message.find("preprocessor_config.json"), std::string::npos) << error.message;
}

}  // namespace
}  // namespace qvl::image
