// Position ids, rotary tables and position taps against the fixtures of the reference implementation: ids,
// indexes and coordinates exactly, tables to the tolerances of tests/fixtures/golden/README.md.
#include "qvl/model/positions.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <filesystem>
#include <functional>
#include <string>

#include "qvl/base/error.h"
#include "qvl/base/json.h"
#include "qvl/checkpoint/safetensors.h"
#include "qvl/model/public_shapes.h"

namespace qvl::model {
namespace {

using checkpoint::SafetensorsFile;
using image::Grid;

const std::filesystem::path kGolden = QVL_SOURCE_DIR "/tests/fixtures/golden";
constexpr int32_t kImage = 500;
constexpr int32_t kVideo = 501;

std::vector<Grid> grids_from(const Json& json) {
  std::vector<Grid> grids;
  if (json.is_null()) return grids;
  for (const Json& g : json) grids.push_back({g[0], g[1], g[2]});
  return grids;
}

std::vector<Grid> grids_from(const checkpoint::TensorView& view) {
  const std::vector<int64_t> v = view.to_i64();
  std::vector<Grid> grids;
  for (size_t i = 0; i + 2 < v.size(); i += 3) grids.push_back({v[i], v[i + 1], v[i + 2]});
  return grids;
}

void expect_near(const std::vector<float>& got, const std::vector<float>& want, double tolerance,
                 const char* what) {
  ASSERT_EQ(got.size(), want.size()) << what;
  for (size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], want[i], tolerance) << what << " at " << i;
}

// How many float32 steps apart two positive values are.
int64_t ulps(float a, float b) {
  return std::abs(static_cast<int64_t>(std::bit_cast<int32_t>(a)) -
                  static_cast<int64_t>(std::bit_cast<int32_t>(b)));
}

TextConfig real_text() {
  TextConfig c;
  c.rope.theta = 5e6;
  return c;
}

std::string error_of(const std::function<void()>& fn) {
  try {
    fn();
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

class PositionCases : public testing::TestWithParam<const char*> {};

TEST_P(PositionCases, EqualTheReference) {
  const Json c = parse_json_file(kGolden / "rope/positions.json")[GetParam()];
  const auto ids = c["ids"].get<std::vector<int32_t>>();
  const std::vector<Grid> images = grids_from(c["image_grids"]);
  const std::vector<Grid> videos = grids_from(c["video_grids"]);
  const Positions got = mrope_positions(ids, kImage, kVideo, images, videos, 2);
  for (int a = 0; a < 3; ++a) EXPECT_EQ(got.axis[a], c["pos"][a].get<std::vector<int64_t>>()) << "axis " << a;
  EXPECT_EQ(got.delta, c["delta"].get<int64_t>());
  EXPECT_LE(got.delta, 0);

  // Positions depend only on what comes before: a prefix that ends at a text token has the head of the whole,
  // and a later turn on a cache takes its tail.
  for (size_t cut = 1; cut < ids.size(); ++cut) {
    if (ids[cut - 1] == kImage || ids[cut - 1] == kVideo) continue;
    const auto used_by = [&](int32_t pad) {
      size_t runs = 0;
      for (size_t i = 0; i < cut; ++i) runs += ids[i] == pad && (i == 0 || ids[i - 1] != pad);
      return runs;
    };
    std::vector<Grid> frames;
    for (const Grid& g : videos) frames.insert(frames.end(), static_cast<size_t>(g.t), Grid{1, g.h, g.w});
    frames.resize(used_by(kVideo));
    const Positions head = mrope_positions(std::span(ids).first(cut), kImage, kVideo,
                                           std::span(images).first(used_by(kImage)), frames, 2);
    for (int a = 0; a < 3; ++a)
      EXPECT_EQ(head.axis[a], got.slice(0, static_cast<int64_t>(cut)).axis[a]) << cut;
  }
}

INSTANTIATE_TEST_SUITE_P(Golden, PositionCases,
                         testing::Values("text", "image", "two_images", "video", "image_video",
                                         "wide_image_last"));

TEST(Positions, LeftPaddedBatchRowsAreTheirUnpaddedSequences) {
  const Json c = parse_json_file(kGolden / "rope/positions.json")["batch_left_pad"];
  std::vector<Grid> grids = grids_from(c["image_grids"]);
  size_t next_grid = 0;
  for (size_t row = 0; row < c["ids"].size(); ++row) {
    std::vector<int32_t> ids;
    size_t pads = 0;
    for (size_t i = 0; i < c["ids"][row].size(); ++i) {
      if (c["mask"][row][i] == 1) {
        ids.push_back(c["ids"][row][i]);
      } else {
        ++pads;
      }
    }
    size_t runs = 0;
    for (size_t i = 0; i < ids.size(); ++i) runs += ids[i] == kImage && (i == 0 || ids[i - 1] != kImage);
    const Positions got =
        mrope_positions(ids, kImage, kVideo, std::span(grids).subspan(next_grid, runs), {}, 2);
    next_grid += runs;
    for (size_t a = 0; a < 3; ++a) {
      const auto want = c["pos"][a][row].get<std::vector<int64_t>>();
      EXPECT_EQ(got.axis[a], std::vector<int64_t>(want.begin() + static_cast<ptrdiff_t>(pads), want.end()));
    }
    EXPECT_EQ(got.delta, c["delta"][row].get<int64_t>());
  }
  EXPECT_EQ(next_grid, grids.size());
}

TEST(Positions, WorkedExamplesOfTheSpec) {
  // 3 text, S, 6 I of grid (1,4,6), E, 2 text: delta -3, next position 10.
  const std::vector<int32_t> ids = {1, 2, 3, 502, 500, 500, 500, 500, 500, 500, 503, 4, 5};
  const std::vector<Grid> grids = {{1, 4, 6}};
  const Positions p = mrope_positions(ids, kImage, kVideo, grids, {}, 2);
  EXPECT_EQ(p.axis[0], (std::vector<int64_t>{0, 1, 2, 3, 4, 4, 4, 4, 4, 4, 7, 8, 9}));
  EXPECT_EQ(p.axis[1], (std::vector<int64_t>{0, 1, 2, 3, 4, 4, 4, 5, 5, 5, 7, 8, 9}));
  EXPECT_EQ(p.axis[2], (std::vector<int64_t>{0, 1, 2, 3, 4, 5, 6, 4, 5, 6, 7, 8, 9}));
  EXPECT_EQ(p.delta, -3);
  const Positions next = decode_positions(static_cast<int64_t>(ids.size()), p.delta, 2);
  for (int a = 0; a < 3; ++a) EXPECT_EQ(next.axis[a], (std::vector<int64_t>{10, 11}));
  EXPECT_EQ(mrope_positions({}, kImage, kVideo, {}, {}, 2).size(), 0);
}

TEST(Positions, SeveralGridTimesOfAnImageStayOneRun) {
  // An "image" of t = 2 is one run: the temporal axis does not advance inside it.
  const std::vector<int32_t> ids(8, kImage);
  const Positions p = mrope_positions(ids, kImage, kVideo, std::vector<Grid>{{2, 4, 4}}, {}, 2);
  EXPECT_EQ(p.axis[0], std::vector<int64_t>(8, 0));
  EXPECT_EQ(p.axis[1], (std::vector<int64_t>{0, 0, 1, 1, 0, 0, 1, 1}));
  EXPECT_EQ(p.delta, 2 - 8);
}

TEST(Positions, MismatchesAreErrors) {
  const std::vector<int32_t> one = {1, 500, 500, 500, 500, 2};
  const std::vector<Grid> fits = {{1, 4, 4}};
  const auto run = [&](std::vector<Grid> images, std::vector<Grid> videos) {
    return error_of([&] { mrope_positions(one, kImage, kVideo, images, videos, 2); });
  };
  EXPECT_EQ(run(fits, {}), "no error");
  EXPECT_EQ(run({}, {}),
            "[positions] image grids: expected one for the run of pads at token 1, got none left of 0");
  EXPECT_EQ(
      run({{1, 4, 6}}, {}),
      "[positions] image pads at token 1: expected 6 for grid (1, 4, 6), got 4 (two images or frames must be "
      "separated by a token)");
  EXPECT_EQ(run({{1, 4, 4}, {1, 4, 4}}, {}),
            "[positions] image grids: expected as many as runs of image pads, 1, got 2");
  EXPECT_NE(run(fits, {{2, 4, 4}}).find("no run for frame pair 0 of video 0"), std::string::npos);
  EXPECT_NE(run({{1, 4, 5}}, {}).find("h and w multiples of 2, got (1, 4, 5)"), std::string::npos);
  EXPECT_NE(run({{0, 4, 4}}, {}).find("positive numbers"), std::string::npos);
  EXPECT_NE(run({{1, 16777216, 16777216}, {16777216, 16777216, 16777216}}, {}).find("impossibly large"),
            std::string::npos);

  // Two videos frames in one run: the count does not fit a single frame.
  const std::vector<int32_t> frames(8, kVideo);
  EXPECT_NE(error_of([&] {
              mrope_positions(frames, kImage, kVideo, {}, std::vector<Grid>{{2, 4, 4}}, 2);
            }).find("video frame pads at token 0: expected 4 for grid (1, 4, 4), got 8"),
            std::string::npos);
  EXPECT_THROW(decode_positions(3, -5, 1), Error);
  EXPECT_THROW(decode_positions(3, 0, 1).slice(1, 1), Error);
}

class VisionCases : public testing::TestWithParam<const char*> {};

TEST_P(VisionCases, CoordinatesTapsAndTables) {
  const SafetensorsFile file =
      SafetensorsFile::open(kGolden / "vision" / (std::string(GetParam()) + ".safetensors"));
  const std::vector<Grid> grids = grids_from(file.get("grid_thw"));
  const PatchCoords coords = patch_coords(grids, 2);
  EXPECT_EQ(coords.row, file.get("row").to_i64());
  EXPECT_EQ(coords.col, file.get("col").to_i64());
  const VisionTaps taps = vision_taps(grids, 48, 2);
  EXPECT_EQ(taps.index, file.get("pos_idx").to_i64());
  expect_near(taps.weight, file.get("pos_weight").to_f32(), 5e-6, "pos_weight");
  const CosSin half = vision_cos_sin(grids, 16, 2);
  EXPECT_EQ(half.width, 8);
  const CosSin full = half.widened();
  EXPECT_EQ(full.rows, static_cast<int64_t>(coords.row.size()));
  expect_near(full.cos, file.get("cos").to_f32(), 1e-6, "cos");
  expect_near(full.sin, file.get("sin").to_f32(), 1e-6, "sin");
}

INSTANTIATE_TEST_SUITE_P(Golden, VisionCases,
                         testing::Values("one", "multi", "video", "tall", "side48", "mixed"));

TEST(Vision, TapsOfALargeImage) {
  const SafetensorsFile file = SafetensorsFile::open(kGolden / "vision/taps_34x60.safetensors");
  const VisionTaps taps = vision_taps(std::vector<Grid>{{1, 34, 60}}, 48, 2);
  EXPECT_EQ(taps.patches, 2040);
  EXPECT_EQ(taps.index, file.get("pos_idx").to_i64());
  expect_near(taps.weight, file.get("pos_weight").to_f32(), 5e-6, "pos_weight");
}

TEST(Vision, TapsOfTheSpecSamples) {
  const VisionTaps taps = vision_taps(std::vector<Grid>{{1, 4, 6}}, 48, 2);
  const auto index = [&](size_t p) {
    return std::vector<int64_t>{taps.index[p], taps.index[24 + p], taps.index[48 + p], taps.index[72 + p]};
  };
  EXPECT_EQ(index(0), (std::vector<int64_t>{0, 1, 48, 49}));
  EXPECT_EQ(index(1), (std::vector<int64_t>{9, 10, 57, 58}));
  EXPECT_EQ(index(9), (std::vector<int64_t>{47, 47, 95, 95}));
  EXPECT_EQ(index(13), (std::vector<int64_t>{1497, 1498, 1545, 1546}));
  EXPECT_EQ(index(23), (std::vector<int64_t>{2303, 2303, 2303, 2303}));
  EXPECT_NEAR(taps.weight[24 + 3], 0.133333, 1e-6);
  EXPECT_NEAR(taps.weight[13], 0.400001, 1e-6);
}

TEST(Vision, TapsStayInsideTheTableAndSumToOne) {
  for (int64_t n = 2; n <= 512; n += 2) {
    const VisionTaps taps = vision_taps(std::vector<Grid>{{1, n, 2}}, 48, 2);
    for (int64_t p = 0; p < taps.patches; ++p) {
      float sum = 0.0f;
      for (int64_t k = 0; k < 4; ++k) {
        const auto at = static_cast<size_t>(k * taps.patches + p);
        ASSERT_GE(taps.index[at], 0);
        ASSERT_LT(taps.index[at], 48 * 48);
        ASSERT_GE(taps.weight[at], 0.0f);
        sum += taps.weight[at];
      }
      ASSERT_NEAR(sum, 1.0f, 1e-6f);
    }
  }
}

TEST(Vision, ImpossibleGridsAreErrors) {
  const auto run = [](Grid g) { return error_of([&] { vision_taps(std::vector<Grid>{g}, 48, 2); }); };
  EXPECT_EQ(run({1, 65536, 65536}),
            "[positions] patches in one call: expected at most 67108864, got 4294967296");
  EXPECT_NE(run({1, 3, 4}).find("h and w multiples of 2, got (1, 3, 4)"), std::string::npos);
  EXPECT_NE(run({-1, 2, 2}).find("positive numbers"), std::string::npos);
  EXPECT_THROW(patch_coords(std::vector<Grid>{{1, 2, 2}}, 0), Error);
  EXPECT_THROW(vision_taps(std::vector<Grid>{{1, 2, 2}}, 0, 2), Error);
}

TEST(Vision, CosSinOfRealHeadSizes) {
  const SafetensorsFile file = SafetensorsFile::open(kGolden / "rope/vision_6x4.safetensors");
  for (const int64_t head_dim : {64, 72}) {
    const std::string prefix = "hd" + std::to_string(head_dim) + ".";
    const std::vector<float> inv = rope_inv_freq(head_dim / 2, 10000.0);
    EXPECT_EQ(inv, file.get(prefix + "inv_freq").to_f32());
    const CosSin full = vision_cos_sin(std::vector<Grid>{{1, 6, 4}}, head_dim, 2).widened();
    expect_near(full.cos, file.get(prefix + "cos").to_f32(), 1e-6, "cos");
    expect_near(full.sin, file.get(prefix + "sin").to_f32(), 1e-6, "sin");
  }
  EXPECT_THROW(vision_cos_sin(std::vector<Grid>{{1, 6, 4}}, 18, 2), Error);
}

TEST(Mrope, FrequenciesAxesAndTables) {
  const SafetensorsFile file = SafetensorsFile::open(kGolden / "rope/mrope.safetensors");
  const TextConfig config = real_text();
  const std::vector<float> inv = mrope_inv_freq(config);
  const std::vector<float> want = file.get("inv_freq").to_f32();
  ASSERT_EQ(inv.size(), want.size());
  for (size_t i = 0; i < inv.size(); ++i) {
    EXPECT_LE(ulps(inv[i], want[i]), i == 19 ? 1 : 0)
        << i;  // appendix A: the recipe differs from torch at 19 only
  }
  EXPECT_EQ(mrope_axis(config), file.get("axis").to_i64());
  EXPECT_EQ(mrope_attention_factor(config), 1.0);

  const std::vector<int64_t> pos = file.get("pos").to_i64();
  Positions positions;
  for (size_t a = 0; a < 3; ++a) {
    positions.axis[a].assign(pos.begin() + static_cast<ptrdiff_t>(a * 10),
                             pos.begin() + static_cast<ptrdiff_t>(a * 10 + 10));
  }
  const CosSin full = mrope_cos_sin(positions, config).widened();
  const std::vector<float> cos = file.get("cos").to_f32();
  const std::vector<float> sin = file.get("sin").to_f32();
  ASSERT_EQ(full.cos.size(), cos.size());
  for (size_t r = 0; r < 10; ++r) {
    const int64_t largest = std::max({positions.axis[0][r], positions.axis[1][r], positions.axis[2][r]});
    const double tolerance = largest <= 4003 ? 5e-6 : 1e-3;
    for (size_t i = 0; i < 128; ++i) {
      ASSERT_NEAR(full.cos[r * 128 + i], cos[r * 128 + i], tolerance) << r << " " << i;
      ASSERT_NEAR(full.sin[r * 128 + i], sin[r * 128 + i], tolerance) << r << " " << i;
    }
  }
}

TEST(Mrope, TailOfTheInterleavingIsTime) {  // trap 15
  const std::vector<int64_t> axis = mrope_axis(real_text());
  int64_t count[3] = {};
  for (size_t i = 0; i < axis.size(); ++i) {
    ++count[axis[i]];
    if (i < 60) {
      EXPECT_EQ(axis[i], static_cast<int64_t>(i % 3));
    } else {
      EXPECT_EQ(axis[i], 0) << i;
    }
  }
  EXPECT_EQ(count[0], 24);
  EXPECT_EQ(count[1], 20);
  EXPECT_EQ(count[2], 20);
  TextConfig odd = real_text();  // a section whose interleaving would run past the end
  odd.rope.mrope_section = {0, 32, 32};
  EXPECT_EQ(mrope_axis(odd).size(), 64u);
  EXPECT_EQ(mrope_axis(odd)[61], 1);
}

TEST(Mrope, AnglesAreFloat32Products) {  // trap 38
  const TextConfig config = real_text();
  const std::vector<float> inv = mrope_inv_freq(config);
  bool differs = false;
  for (size_t i = 0; i < inv.size(); ++i) {
    Positions p;
    for (auto& axis : p.axis) axis = {262143};
    const CosSin t = mrope_cos_sin(p, config);
    const float product = 262143.0f * inv[i];
    EXPECT_EQ(t.cos[i], static_cast<float>(std::cos(static_cast<double>(product))));
    differs |= std::fabs(t.cos[i] - std::cos(262143.0 * static_cast<double>(inv[i]))) > 1e-4;
  }
  EXPECT_TRUE(differs) << "a double product would have passed too";
}

TEST(Mrope, YarnEqualsTheReference) {
  // Computed by transformers 5.5.4 for theta 5e6, L0 262144, factor 3.
  constexpr uint32_t kFactor3[64] = {
      0x3f800000, 0x3f492c28, 0x3f1e165d, 0x3ef875a7, 0x3ec33f3a, 0x3e996e52, 0x3e712429, 0x3e3d7efc,
      0x3e14e963, 0x3dea09db, 0x3db7ea1a, 0x3d908687, 0x3d63251b, 0x3d327f50, 0x3d0c44bf, 0x3cdc7456,
      0x3cad3d5e, 0x3c88230f, 0x3c55f605, 0x3c282311, 0x3c042088, 0x3bcfa8a9, 0x3ba32f3e, 0x3b803c3d,
      0x3b498ad3, 0x3b1e60c3, 0x3af8ea93, 0x3ac39b1c, 0x3a99b686, 0x3a7195a5, 0x3a35ef27, 0x3a08c0d7,
      0x39cd28ff, 0x39998b37, 0x396540b1, 0x392aac00, 0x38fd5606, 0x38bb5e57, 0x388a098d, 0x384a7c0a,
      0x3813c0b8, 0x37d65ab4, 0x379a68ac, 0x375c9dd9, 0x371c07ca, 0x36d9fab6, 0x36ab4b72, 0x36869bc8,
      0x36538f0f, 0x36263fcf, 0x3602a4c7, 0x35cd53d1, 0x35a15a39, 0x357d9756, 0x3547478f, 0x351c998d,
      0x34f61f27, 0x34c168e8, 0x3497fcba, 0x346edf49, 0x343bb684, 0x341382ae, 0x33e7d618, 0x33b62f14};
  // theta 1e6, L0 32768, factor 4, beta_fast 16, beta_slow 2, bounds not rounded, mscale 0.707 over 1.
  constexpr uint32_t kFactor4[64] = {
      0x3f800000, 0x3f4e4bad, 0x3f263de0, 0x3f05f6ef, 0x3ed7e89b, 0x3eadfcff, 0x3e8c3504, 0x3e61f835,
      0x3e361887, 0x3e12bd91, 0x3dec7fd6, 0x3dbe94c6, 0x3d99940d, 0x3d778513, 0x3d47763f, 0x3d20bc1d,
      0x3d0186e3, 0x3cd0c1a8, 0x3ca8398b, 0x3c879008, 0x3c5a7bf2, 0x3c301052, 0x3c0de12d, 0x3be4aa46,
      0x3bb8449c, 0x3b947dae, 0x3b6f520e, 0x3b3df4a6, 0x3b0cf971, 0x3acfb47a, 0x3a97a99e, 0x3a5b1ad2,
      0x3a1c2768, 0x39dac6c7, 0x3995caaa, 0x3946b1e3, 0x38fb610a, 0x38b229fb, 0x388f9272, 0x38676492,
      0x383a7753, 0x38164324, 0x37f22ce2, 0x37c327b5, 0x379d43a4, 0x377d75d4, 0x374c3fbe, 0x372497ab,
      0x3704a2b2, 0x36d5c441, 0x36ac431d, 0x368ad0ed, 0x365fba4f, 0x36344a0e, 0x361148e3, 0x35ea2732,
      0x35bcb0c1, 0x35980e02, 0x35751070, 0x35457bab, 0x351f23e4, 0x35003dec, 0x34ceaf79, 0x34a68e4c};
  TextConfig config = real_text();
  config.rope.type = RopeType::kYarn;
  config.rope.factor = 3.0;
  config.rope.original_max_positions = 262144;
  EXPECT_NEAR(mrope_attention_factor(config), 1.109861228866811, 1e-12);
  std::vector<float> inv = mrope_inv_freq(config);
  for (size_t i = 0; i < 64; ++i) EXPECT_LE(ulps(inv[i], std::bit_cast<float>(kFactor3[i])), 1) << i;
  Positions zero;
  for (auto& axis : zero.axis) axis = {0};
  EXPECT_FLOAT_EQ(mrope_cos_sin(zero, config).cos[0], 1.1098613f);
  config.rope.attention_factor = 2.0;
  EXPECT_EQ(mrope_attention_factor(config), 2.0);

  config.rope = {};
  config.rope.type = RopeType::kYarn;
  config.rope.theta = 1e6;
  config.rope.factor = 4.0;
  config.rope.original_max_positions = 32768;
  config.rope.beta_fast = 16.0;
  config.rope.beta_slow = 2.0;
  config.rope.truncate = false;
  config.rope.mscale = 0.707;
  config.rope.mscale_all_dim = 1.0;
  EXPECT_NEAR(mrope_attention_factor(config), 0.964326914892074, 1e-12);
  inv = mrope_inv_freq(config);
  for (size_t i = 0; i < 64; ++i) EXPECT_LE(ulps(inv[i], std::bit_cast<float>(kFactor4[i])), 2) << i;
}

TEST(Mrope, TableChecksItsBuffers) {
  const MropeTable table(real_text());
  const std::vector<int64_t> two = {1, 2};
  const std::vector<int64_t> one = {1};
  std::vector<float> cos(128), sin(128);
  EXPECT_THROW(table.fill({two, two, one}, cos, sin), Error);
  EXPECT_THROW(table.fill({one, one, one}, cos, sin), Error);
  table.fill({two, two, two}, cos, sin);
  EXPECT_FLOAT_EQ(cos[64], std::cos(2.0f));
}

}  // namespace
}  // namespace qvl::model
