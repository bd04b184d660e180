#include "qvl/generate/vision_gate.h"

#include <algorithm>

#include "qvl/base/error.h"
#include "qvl/base/format.h"
#include "qvl/generate/parity.h"
#include "qvl/generate/parity_cases.h"
#include "qvl/image/preprocess.h"

namespace qvl::generate {
Json VisionGate::to_json() const {
  return {{"reference", "float32"}, {"cosine", cosine},     {"limit", kVisionGateCosine}, {"passed", passed()},
          {"worst", worst},         {"pictures", pictures}, {"patches", patches}};
}

std::vector<image::RgbImage> vision_gate_pictures() {
  std::vector<image::RgbImage> pictures;
  uint32_t seed = 0;
  for (const PictureSize size : {PictureSize{256, 192}, PictureSize{192, 320}, PictureSize{448, 448}}) {
    pictures.push_back(draw_picture(size, seed++));
  }
  return pictures;
}

VisionGate measure_vision_gate(const engine::VisionStage& reference, const engine::VisionStage& candidate,
                               const image::ImageProcessorConfig& processor,
                               std::span<const image::RgbImage> pictures, ThreadPool* pool,
                               const engine::ProgressFn& progress) {
  if (pictures.empty()) fail(ErrorCode::kInvalidArgument, "vision gate", "pictures", "at least one", "none");
  VisionGate gate;
  const auto total = static_cast<int64_t>(pictures.size());
  const auto report = [&](int64_t done) {
    if (progress && !progress(done, total)) fail(ErrorCode::kCancelled, "vision gate", "cancelled");
  };
  for (const image::RgbImage& picture : pictures) {
    report(gate.pictures);
    const image::PreprocessedImage prepared = image::preprocess_image(picture, processor, {}, pool);
    engine::StageHooks hooks;
    hooks.progress = [&](int64_t, int64_t) { return !progress || progress(gate.pictures, total); };
    const std::span<const float> pixels = prepared.pixel_values.as<float>();
    const engine::VisionFeatures x = reference.encode(pixels, {&prepared.grid, 1}, hooks);
    const engine::VisionFeatures y = candidate.encode(pixels, {&prepared.grid, 1}, hooks);
    gate.pictures += 1;
    gate.patches += prepared.grid.patches();
    const auto compare = [&](const Tensor& a, const Tensor& b, const std::string& output) {
      const std::string where =
          fmt::format("{} of picture {} ({}x{})", output, gate.pictures, picture.width, picture.height);
      if (a.shape() != b.shape()) fail(ErrorCode::kMismatch, where, "features of the two stages differ in shape");
      const Tensor expected = a.to(DType::kF32), given = b.to(DType::kF32);
      const double cosine = compare_tensors(where, expected.as<float>(), given.as<float>()).cosine;
      if (cosine >= gate.cosine && !gate.worst.empty()) return;
      gate.cosine = std::min(gate.cosine, cosine);
      gate.worst = where;
    };
    if (x.deepstack.size() != y.deepstack.size())
      fail(ErrorCode::kMismatch, "vision gate", "DeepStack levels of the two stages differ in number");
    compare(x.merged, y.merged, "merged");
    for (size_t i = 0; i < x.deepstack.size(); ++i)
      compare(x.deepstack[i], y.deepstack[i], fmt::format("deepstack{}", i));
  }
  report(total);
  return gate;
}

}  // namespace qvl::generate
