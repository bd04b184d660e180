#include "qvl/generate/repeated_frames.h"

#include <cstring>
#include <unordered_map>

#include "qvl/base/checksum.h"

namespace qvl::generate {
namespace {

Tensor repeat_rows(const Tensor& rows, const DistinctFrames& frames) {
  const auto kinds = static_cast<int64_t>(frames.first.size());
  const auto count = static_cast<int64_t>(frames.kind.size());
  const size_t frame_bytes = rows.size_bytes() / frames.first.size();
  Tensor out(rows.dtype(), {rows.dim(0) / kinds * count, rows.dim(1)});
  for (size_t t = 0; t < frames.kind.size(); ++t) {
    std::memcpy(static_cast<std::byte*>(out.data()) + t * frame_bytes,
                static_cast<const std::byte*>(rows.data()) + static_cast<size_t>(frames.kind[t]) * frame_bytes,
                frame_bytes);
  }
  return out;
}

}  // namespace

DistinctFrames distinct_frames(std::span<const float> pixels, int64_t frames) {
  const size_t size = pixels.size() / static_cast<size_t>(frames);
  DistinctFrames out;
  std::unordered_multimap<uint64_t, int64_t> kinds;  // by checksum, which proves nothing alone
  for (int64_t t = 0; t < frames; ++t) {
    const std::span<const float> frame = pixels.subspan(static_cast<size_t>(t) * size, size);
    const uint64_t sum = checksum(std::as_bytes(frame));
    int64_t kind = -1;
    for (auto [it, end] = kinds.equal_range(sum); it != end && kind < 0; ++it) {
      const auto first = static_cast<size_t>(out.first[static_cast<size_t>(it->second)]);
      if (std::memcmp(pixels.data() + first * size, frame.data(), frame.size_bytes()) == 0) kind = it->second;
    }
    if (kind < 0) {
      kind = static_cast<int64_t>(out.first.size());
      out.first.push_back(t);
      kinds.emplace(sum, kind);
    }
    out.kind.push_back(kind);
  }
  return out;
}

std::vector<float> distinct_pixels(std::span<const float> pixels, const DistinctFrames& frames) {
  const size_t size = pixels.size() / frames.kind.size();
  std::vector<float> out;
  out.reserve(size * frames.first.size());
  for (int64_t t : frames.first) {
    const auto frame = pixels.subspan(static_cast<size_t>(t) * size, size);
    out.insert(out.end(), frame.begin(), frame.end());
  }
  return out;
}

engine::VisionFeatures repeat_features(const engine::VisionFeatures& features, const DistinctFrames& frames) {
  engine::VisionFeatures out;
  out.merged = repeat_rows(features.merged, frames);
  for (const Tensor& level : features.deepstack) out.deepstack.push_back(repeat_rows(level, frames));
  return out;
}

}  // namespace qvl::generate
