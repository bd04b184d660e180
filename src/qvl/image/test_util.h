// For the tests of this room only: fixtures, hashes and generated pixels.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "qvl/base/error.h"
#include "qvl/base/sha256.h"
#include "qvl/image/decode.h"

namespace qvl::image {

inline std::filesystem::path fixture(const std::string& name) {
  return std::filesystem::path(QVL_SOURCE_DIR "/tests/fixtures") / name;
}

inline std::string sha256(std::span<const std::byte> data) {
  Sha256 hash;
  hash.add(data);
  return hash.finish();
}

template <typename T>
std::string sha256_of(std::span<const T> values) {
  return sha256(std::as_bytes(values));
}

inline uint64_t splitmix64(uint64_t seed, uint64_t index) {
  uint64_t z = seed + (index + 1) * 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

// The pixels of make_wide.py: [height, width, 3].
inline RgbImage generated_image(int64_t height, int64_t width, int kind, uint64_t seed) {
  RgbImage image;
  image.height = height;
  image.width = width;
  image.rgb.resize(static_cast<size_t>(height * width * 3));
  for (int64_t y = 0, i = 0; y < height; ++y) {
    for (int64_t x = 0; x < width; ++x) {
      for (int64_t c = 0; c < 3; ++c, ++i) {
        const int64_t noise = static_cast<int64_t>(splitmix64(seed, static_cast<uint64_t>(i)) >> 56);
        int64_t v = noise;
        if (kind == 1) v = (noise & 1) != 0 ? 255 : 0;
        if (kind == 2) v = (x * 3 + y * 5 + c * 80 + (noise >> 6)) & 255;
        image.rgb[static_cast<size_t>(i)] = static_cast<uint8_t>(v);
      }
    }
  }
  return image;
}

// The error that `fn` throws; a message saying so if it throws none.
struct Caught {
  bool thrown = false;
  ErrorCode code = ErrorCode::kIo;
  std::string message = "(nothing was thrown)";
};
inline Caught catch_error(const std::function<void()>& fn) {
  try {
    fn();
  } catch (const Error& error) {
    return {true, error.code(), error.what()};
  }
  return {};
}

}  // namespace qvl::image
