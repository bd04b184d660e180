#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <fstream>

#include "qvl/base/json.h"
#include "qvl/base/log.h"
#include "qvl/base/mapped_file.h"
#include "qvl/base/timestamp.h"
#include "qvl/checkpoint/safetensors.h"
#include "qvl/image/preprocess.h"
#include "qvl/image/test_util.h"

namespace qvl::image {
namespace {

namespace fs = std::filesystem;

VideoProcessorConfig config_with(int64_t min_pixels, int64_t max_pixels) {
  VideoProcessorConfig config;
  config.min_pixels = min_pixels;
  config.max_pixels = max_pixels;
  return config;
}

TEST(Sampling, GoldenCases) {
  const Json cases = parse_json_file(fixture("golden/preprocess/sampling.json"));
  ASSERT_EQ(cases.size(), 11u);
  for (const Json& c : cases) {
    const std::vector<int64_t> indexes = sample_frames(c["total"], c["fps"], {});
    ASSERT_EQ(indexes.size(), c["count"].get<size_t>()) << c.dump();
    if (!c["indices"].is_null()) {
      EXPECT_EQ(indexes, c["indices"].get<std::vector<int64_t>>());
    }
    const auto head = c["head"].get<std::vector<int64_t>>();
    const auto tail = c["tail"].get<std::vector<int64_t>>();
    EXPECT_TRUE(std::equal(head.begin(), head.end(), indexes.begin()));
    EXPECT_TRUE(std::equal(tail.rbegin(), tail.rend(), indexes.rbegin()));
    const std::vector<double> stamps_s = frame_timestamps(indexes, c["fps"]);
    EXPECT_EQ(stamps_s.size(), (indexes.size() + 1) / 2);
    for (size_t i = 0; i < c["stamps"].size(); ++i) EXPECT_EQ(format_timestamp(stamps_s[i]), c["stamps"][i]);
  }
}

// 200 random lengths and rates through the reference's own sampler.
TEST(Sampling, WideCases) {
  const Json wide = parse_json_file(fixture("golden/preprocess/wide.json"));
  ASSERT_EQ(wide["sampling"].size(), 200u);
  for (const Json& c : wide["sampling"]) {
    const std::vector<int64_t> indexes = sample_frames(c[0], c[1], {});
    ASSERT_EQ(indexes.size(), c[2].get<size_t>()) << c.dump();
    const std::string list = Json(indexes).dump();
    EXPECT_EQ(sha256_of(std::span<const char>(list)).substr(0, 16), c[3]) << c.dump();
    std::string text;
    for (const double s : frame_timestamps(indexes, c[1])) text += format_timestamp(s);
    EXPECT_EQ(sha256_of(std::span<const char>(text)).substr(0, 16), c[4]) << c.dump();
  }
}

TEST(Sampling, ExtremeRates) {
  EXPECT_EQ(sample_frames(1000, 1e-300, {}).size(), 768u);
  EXPECT_EQ(sample_frames(1000, 1e300, {}).size(), 4u);
  EXPECT_EQ(sample_frames(1, 24.0, {}), (std::vector<int64_t>{0}));
  for (const double fps : {0.0, -1.0, std::nan(""), HUGE_VAL}) {
    EXPECT_EQ(catch_error([&] { sample_frames(10, fps, {}); }).code, ErrorCode::kInvalidArgument);
  }
  EXPECT_EQ(catch_error([&] { sample_frames(0, 24.0, {}); }).code, ErrorCode::kInvalidArgument);
}

std::vector<RgbImage> golden_frames(const checkpoint::TensorView& tchw) {
  const int64_t count = tchw.shape[0], h = tchw.shape[2], w = tchw.shape[3];
  const auto* bytes = reinterpret_cast<const uint8_t*>(tchw.bytes.data());
  std::vector<RgbImage> frames;
  for (int64_t t = 0; t < count; ++t) {
    RgbImage frame = generated_image(h, w, 0, 0);
    for (int64_t c = 0; c < 3; ++c) {
      for (int64_t i = 0; i < h * w; ++i) frame.rgb[i * 3 + c] = bytes[(t * 3 + c) * h * w + i];
    }
    frames.push_back(std::move(frame));
  }
  return frames;
}

TEST(Video, Golden) {
  const Json meta = parse_json_file(fixture("golden/preprocess/videos.json"));
  const auto file = checkpoint::SafetensorsFile::open(fixture("golden/preprocess/videos.safetensors"));
  const std::vector<RgbImage> frames = golden_frames(file.get("frames_used_tchw"));
  const VideoProcessorConfig config = config_with(meta["limits"][0], meta["limits"][1]);
  const std::vector<int64_t> indexes = sample_frames(meta["total"], meta["fps"], config);
  EXPECT_EQ(indexes, meta["indices"].get<std::vector<int64_t>>());
  const PreprocessedVideo video = preprocess_video(frames, indexes, meta["fps"], config);
  EXPECT_EQ(video.grid, (Grid{3, 4, 6}));
  const checkpoint::TensorView& expected = file.get("pixel_values_videos");
  ASSERT_EQ(video.pixel_values.shape(), expected.shape);
  EXPECT_EQ(std::memcmp(video.pixel_values.data(), expected.bytes.data(), expected.bytes.size()), 0);
  ASSERT_EQ(video.timestamps_s.size(), 3u);
  EXPECT_EQ(format_timestamp(video.timestamps_s[0]), "<0.3 seconds>");
  EXPECT_EQ(format_timestamp(video.timestamps_s[1]), "<1.5 seconds>");
  EXPECT_EQ(format_timestamp(video.timestamps_s[2]), "<2.7 seconds>");
}

TEST(Video, OddFrameCountRepeatsTheLast) {
  const auto file = checkpoint::SafetensorsFile::open(fixture("golden/preprocess/videos.safetensors"));
  std::vector<RgbImage> frames = golden_frames(file.get("frames_used_tchw"));
  frames.pop_back();
  // Limits that keep the size of the six-frame video.
  const std::vector<int64_t> indexes = {0, 6, 12, 18, 24};
  const PreprocessedVideo video = preprocess_video(frames, indexes, 10.0, config_with(4096, 65536));
  ASSERT_EQ(video.resized_height, 64);
  ASSERT_EQ(video.resized_width, 96);
  const checkpoint::TensorView& expected = file.get("odd5.pixel_values_videos");
  ASSERT_EQ(video.pixel_values.shape(), expected.shape);
  EXPECT_EQ(std::memcmp(video.pixel_values.data(), expected.bytes.data(), expected.bytes.size()), 0);
  EXPECT_EQ(video.timestamps_s.back(), 2.4);
}

TEST(Video, WideCases) {
  const Json wide = parse_json_file(fixture("golden/preprocess/wide.json"));
  ASSERT_EQ(wide["videos"].size(), 8u);
  for (const Json& c : wide["videos"]) {
    const VideoProcessorConfig config = config_with(c["min"], c["max"]);
    const std::vector<int64_t> indexes = sample_frames(c["total"], c["fps"], config);
    EXPECT_EQ(indexes, c["indexes"].get<std::vector<int64_t>>()) << c.dump();
    std::vector<RgbImage> frames;
    for (const int64_t i : indexes) {
      frames.push_back(
          generated_image(c["h"], c["w"], c["kind"], c["seed"].get<uint64_t>() + static_cast<uint64_t>(i)));
    }
    const PreprocessedVideo video = preprocess_video(frames, indexes, c["fps"], config);
    EXPECT_EQ(video.grid, (Grid{c["grid"][0], c["grid"][1], c["grid"][2]})) << c.dump();
    EXPECT_EQ(sha256_of(video.pixel_values.as<float>()).substr(0, 16), c["sha"]) << c.dump();
  }
}

// A folder of uncompressed bitmaps under the system's temporary folder.
class VideoFolder : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("qvl_video_test_" + std::to_string(::getpid()));
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  void TearDown() override {
    set_log_sink({});
    fs::remove_all(folder_);
  }
  void write_text(const std::string& name, const std::string& text) {
    std::ofstream(folder_ / name, std::ios::binary) << text;
  }
  void write_frame(const std::string& name, const RgbImage& image) {
    std::string file = "BM";
    const auto u32 = [&](int64_t v) {
      for (int k = 0; k < 4; ++k) file += static_cast<char>(v >> (8 * k) & 255);
    };
    for (const int64_t v : {int64_t{0}, int64_t{0}, int64_t{54}, int64_t{40}, image.width, -image.height})
      u32(v);
    u32(1 | 24 << 16);
    for (int i = 0; i < 6; ++i) u32(0);
    for (int64_t y = 0; y < image.height; ++y) {
      for (int64_t x = 0; x < image.width; ++x) {
        for (int c = 2; c >= 0; --c) file += static_cast<char>(image.rgb[(y * image.width + x) * 3 + c]);
      }
      while ((file.size() - 54) % 4 != 0) file += '\0';
    }
    write_text(name, file);
  }
  fs::path folder_;
};

TEST_F(VideoFolder, EqualsTheSameFramesInMemory) {
  const int64_t total = 13;
  std::vector<RgbImage> all;
  for (int64_t i = 0; i < total; ++i) {
    all.push_back(generated_image(50, 70, 2, static_cast<uint64_t>(i)));
    write_frame("frame" + std::to_string(i) + ".bmp", all.back());
  }
  write_text(".hidden", "x");
  write_text("notes.txt", "x");
  std::string log;
  set_log_sink([&](LogLevel, std::string_view message) { log += message; });
  const VideoProcessorConfig config = config_with(4096, 65536);
  const PreprocessedVideo video = load_video(folder_, 5.0, config);
  const std::vector<int64_t> indexes = sample_frames(total, 5.0, config);
  ASSERT_EQ(indexes.size(), 5u);
  std::vector<RgbImage> taken;
  for (const int64_t i : indexes) taken.push_back(all[static_cast<size_t>(i)]);
  const PreprocessedVideo expected = preprocess_video(taken, indexes, 5.0, config);
  EXPECT_EQ(video.frame_indexes, indexes);
  EXPECT_EQ(video.total_frames, total);
  EXPECT_EQ(video.timestamps_s, expected.timestamps_s);
  EXPECT_EQ(video.grid, expected.grid);
  EXPECT_EQ(video.width, 70);
  EXPECT_EQ(sha256_of(video.pixel_values.as<float>()), sha256_of(expected.pixel_values.as<float>()));
  EXPECT_NE(log.find("1 entries are not image files"), std::string::npos) << log;
  EXPECT_NE(log.find("notes.txt"), std::string::npos) << log;
}

TEST_F(VideoFolder, FilesInMemoryAreTheSameVideo) {
  std::vector<std::string> files;
  for (int i = 0; i < 9; ++i) {
    const std::string name = "frame" + std::to_string(i) + ".bmp";
    write_frame(name, generated_image(48, 64, 2, static_cast<uint64_t>(i)));
    files.push_back(read_file(folder_ / name, size_t{1} << 20));
  }
  const VideoProcessorConfig config = config_with(4096, 65536);
  const PreprocessedVideo expected = load_video(folder_, 4.0, config);
  const PreprocessedVideo video = load_video(files, 4.0, config, {}, {}, nullptr, "video");
  EXPECT_EQ(video.frame_indexes, expected.frame_indexes);
  EXPECT_EQ(video.timestamps_s, expected.timestamps_s);
  EXPECT_EQ(video.grid, expected.grid);
  EXPECT_EQ(sha256_of(video.pixel_values.as<float>()), sha256_of(expected.pixel_values.as<float>()));
  // At the model's own rate every frame is taken.
  EXPECT_EQ(load_video(files, config.sample_fps, config, {}, {}, nullptr, "video").frame_indexes.size(), files.size());
  files[8] = files[8].substr(0, 20);
  const auto broken = catch_error([&] { load_video(files, config.sample_fps, config, {}, {}, nullptr, "video"); });
  EXPECT_NE(broken.message.find("video[8]"), std::string::npos) << broken.message;
}

TEST_F(VideoFolder, NamesAreOrderedNaturally) {
  for (const char* name : {"f10.png", "f2.png", "f1.png", "F1.png", "f002b.png", "f2a.png", "f.png", "f0.png",
                           "f00.png", "99999999999999999999999.png", "100000000000000000000000.png"}) {
    write_text(name, "x");
  }
  std::vector<std::string> names;
  for (const fs::path& path : list_frames(folder_)) names.push_back(path.filename().string());
  EXPECT_EQ(names, (std::vector<std::string>{"99999999999999999999999.png", "100000000000000000000000.png",
                                             "F1.png", "f.png", "f0.png", "f00.png", "f1.png", "f2.png",
                                             "f2a.png", "f002b.png", "f10.png"}));
}

TEST_F(VideoFolder, UnknownRateIsAssumedAndLogged) {
  for (int i = 0; i < 30; ++i) write_frame("f" + std::to_string(i) + ".bmp", generated_image(32, 32, 0, 1));
  std::string log;
  set_log_sink([&](LogLevel, std::string_view message) { log += message; });
  EXPECT_EQ(load_video(folder_, std::nullopt, {}).frame_indexes, (std::vector<int64_t>{0, 10, 19, 29}));
  EXPECT_NE(log.find("24 frames a second assumed"), std::string::npos) << log;
}

TEST_F(VideoFolder, Errors) {
  const auto error = [&](const fs::path& path) { return catch_error([&] { load_video(path, 24.0, {}); }); };
  EXPECT_EQ(error(folder_ / "missing").code, ErrorCode::kNotFound);
  EXPECT_EQ(error(folder_).code, ErrorCode::kNotFound);
  EXPECT_NE(error(folder_).message.find("got none"), std::string::npos) << error(folder_).message;
  write_text("clip.mp4", "x");
  EXPECT_EQ(error(folder_ / "clip.mp4").code, ErrorCode::kUnsupported);
  EXPECT_NE(error(folder_ / "clip.mp4").message.find("ffmpeg"), std::string::npos);
  write_frame("a1.bmp", generated_image(40, 40, 0, 1));
  write_frame("a2.bmp", generated_image(40, 41, 0, 1));
  EXPECT_EQ(error(folder_).code, ErrorCode::kMismatch);
  EXPECT_NE(error(folder_).message.find("a2.bmp"), std::string::npos) << error(folder_).message;
  write_text("a2.bmp", "BM");
  EXPECT_EQ(error(folder_).code, ErrorCode::kFormat);
  fs::remove(folder_ / "a2.bmp");
  EXPECT_FALSE(error(folder_).thrown) << error(folder_).message;
  write_frame("a1.bmp", generated_image(31, 40, 0, 1));
  EXPECT_EQ(error(folder_).code, ErrorCode::kInvalidArgument);
}

TEST(Video, FramesInMemoryErrors) {
  const std::vector<RgbImage> two = {generated_image(40, 40, 0, 1), generated_image(41, 40, 0, 1)};
  const auto code = [&](std::vector<int64_t> indexes, double fps) {
    return catch_error([&] { preprocess_video(two, indexes, fps, {}); }).code;
  };
  EXPECT_EQ(code({0, 1}, 24.0), ErrorCode::kMismatch);
  EXPECT_EQ(code({0}, 24.0), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code({1, 0}, 24.0), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code({-1, 0}, 24.0), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code({0, 1}, 0.0), ErrorCode::kInvalidArgument);
}

}  // namespace
}  // namespace qvl::image
