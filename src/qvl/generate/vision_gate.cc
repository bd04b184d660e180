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

namespace {

// Takes up what one output's cosine says.
void compare(const Tensor& expected, const Tensor& given, const std::string& where, VisionGate& gate) {
  if (expected.shape() != given.shape()) fail(ErrorCode::kMismatch, where, "features of the two stages differ in shape");
  const Tensor x = expected.to(DType::kF32), y = given.to(DType::kF32);
  const double cosine = compare_tensors(where, x.as<float>(), y.as<float>()).cosine;
  if (cosine >= gate.cosine && !gate.worst.empty()) return;
  gate.cosine = std::min(gate.cosine, cosine);
  gate.worst = where;
}

}  // namespace

std::vector<VisionGate> measure_vision_gates(const engine::VisionStage& reference,
                                             std::span<const engine::VisionStage* const> candidates,
                                             const image::ImageProcessorConfig& processor,
                                             std::span<const image::RgbImage> pictures, ThreadPool* pool,
                                             const engine::ProgressFn& progress) {
  if (pictures.empty()) fail(ErrorCode::kInvalidArgument, "vision gate", "pictures", "at least one", "none");
  std::vector<VisionGate> gates(candidates.size());
  const auto total = static_cast<int64_t>(pictures.size());
  int64_t done = 0;
  const auto report = [&] {
    if (progress && !progress(done, total)) fail(ErrorCode::kCancelled, "vision gate", "cancelled");
  };
  engine::StageHooks hooks;
  hooks.progress = [&](int64_t, int64_t) { return !progress || progress(done, total); };
  for (const image::RgbImage& picture : pictures) {
    report();
    const image::PreprocessedImage prepared = image::preprocess_image(picture, processor, {}, pool);
    const std::span<const float> pixels = prepared.pixel_values.as<float>();
    const engine::VisionFeatures x = reference.encode(pixels, {&prepared.grid, 1}, hooks);
    const std::string of = fmt::format(" of picture {} ({}x{})", done + 1, picture.width, picture.height);
    for (size_t c = 0; c < candidates.size(); ++c) {
      const engine::VisionFeatures y = candidates[c]->encode(pixels, {&prepared.grid, 1}, hooks);
      gates[c].pictures += 1;
      gates[c].patches += prepared.grid.patches();
      if (x.deepstack.size() != y.deepstack.size())
        fail(ErrorCode::kMismatch, "vision gate", "DeepStack levels of the two stages differ in number");
      compare(x.merged, y.merged, "merged" + of, gates[c]);
      for (size_t i = 0; i < x.deepstack.size(); ++i)
        compare(x.deepstack[i], y.deepstack[i], fmt::format("deepstack{}{}", i, of), gates[c]);
    }
    ++done;
  }
  report();
  return gates;
}

}  // namespace qvl::generate
