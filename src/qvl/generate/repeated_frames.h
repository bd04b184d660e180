// Frames of a video that repeat: frames attend to nobody but themselves and positions inside them are the same in each
// (spec 5), so that equal pixels give equal features and each distinct frame needs encoding once.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "qvl/base/tensor.h"
#include "qvl/engine/stages.h"

namespace qvl::generate {

// "Frame" is one t of a grid: a pair of frames of the video.
struct DistinctFrames {
  std::vector<int64_t> first;  // the first frame of each kind, ascending
  std::vector<int64_t> kind;   // [t]: an index into `first`
  bool repeat() const { return first.size() < kind.size(); }
};

// `pixels` are those of `frames` frames of equal size, one behind the other. Compared bit by bit.
DistinctFrames distinct_frames(std::span<const float> pixels, int64_t frames);

// The pixels of the first frame of each kind.
std::vector<float> distinct_pixels(std::span<const float> pixels, const DistinctFrames& frames);

// Features of the distinct frames to those of all.
engine::VisionFeatures repeat_features(const engine::VisionFeatures& features, const DistinctFrames& frames);

}  // namespace qvl::generate
