// For the tests of this room only: fixtures, hashes and generated pixels.
#pragma once

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "qvl/base/error.h"
#include "qvl/image/decode.h"

namespace qvl::image {

inline std::filesystem::path fixture(const std::string& name) {
  return std::filesystem::path(QVL_SOURCE_DIR "/tests/fixtures") / name;
}

// SHA-256 (FIPS 180-4) in hexadecimal.
inline std::string sha256(std::span<const std::byte> data) {
  // Round constants and start values: fractions of the cube and square roots of the first primes.
  static const auto root_bits = [](int prime, double power) {
    // The 32 bits after the point, corrected to the exact floor with integer arithmetic.
    const double root = std::pow(static_cast<double>(prime), power);
    return static_cast<uint32_t>(static_cast<uint64_t>((root - std::floor(root)) * 4294967296.0));
  };
  static const std::array<uint32_t, 72> kConstants = [] {
    std::array<uint32_t, 72> c{};
    int count = 0;
    for (int n = 2; count < 64; ++n) {
      bool prime = true;
      for (int d = 2; d * d <= n; ++d) prime = prime && n % d != 0;
      if (!prime) continue;
      c[static_cast<size_t>(count)] = root_bits(n, 1.0 / 3.0);
      if (count < 8) c[static_cast<size_t>(64 + count)] = root_bits(n, 0.5);
      ++count;
    }
    return c;
  }();
  std::array<uint32_t, 8> state;
  std::memcpy(state.data(), kConstants.data() + 64, sizeof(state));
  std::vector<uint8_t> tail;
  const auto* bytes = reinterpret_cast<const uint8_t*>(data.data());
  const size_t whole = data.size() / 64 * 64;
  tail.assign(bytes + whole, bytes + data.size());
  tail.push_back(0x80);
  while (tail.size() % 64 != 56) tail.push_back(0);
  const uint64_t bits = static_cast<uint64_t>(data.size()) * 8;
  for (int i = 7; i >= 0; --i) tail.push_back(static_cast<uint8_t>(bits >> (8 * i)));
  const auto block = [&](const uint8_t* p) {
    std::array<uint32_t, 64> w;
    for (size_t i = 0; i < 16; ++i) {
      w[i] = uint32_t{p[4 * i]} << 24 | uint32_t{p[4 * i + 1]} << 16 | uint32_t{p[4 * i + 2]} << 8 |
             p[4 * i + 3];
    }
    for (size_t i = 16; i < 64; ++i) {
      const uint32_t s0 = std::rotr(w[i - 15], 7) ^ std::rotr(w[i - 15], 18) ^ (w[i - 15] >> 3);
      const uint32_t s1 = std::rotr(w[i - 2], 17) ^ std::rotr(w[i - 2], 19) ^ (w[i - 2] >> 10);
      w[i] = w[i - 16] + s0 + w[i - 7] + s1;
    }
    std::array<uint32_t, 8> s = state;
    for (size_t i = 0; i < 64; ++i) {
      const uint32_t e = s[4];
      const uint32_t a = s[0];
      const uint32_t t1 = s[7] + (std::rotr(e, 6) ^ std::rotr(e, 11) ^ std::rotr(e, 25)) +
                          ((e & s[5]) ^ (~e & s[6])) + kConstants[i] + w[i];
      const uint32_t t2 =
          (std::rotr(a, 2) ^ std::rotr(a, 13) ^ std::rotr(a, 22)) + ((a & s[1]) ^ (a & s[2]) ^ (s[1] & s[2]));
      s = {t1 + t2, s[0], s[1], s[2], s[3] + t1, s[4], s[5], s[6]};
    }
    for (size_t i = 0; i < 8; ++i) state[i] += s[i];
  };
  for (size_t i = 0; i < whole; i += 64) block(bytes + i);
  for (size_t i = 0; i < tail.size(); i += 64) block(tail.data() + i);
  std::string hex;
  for (const uint32_t word : state) {
    for (int shift = 28; shift >= 0; shift -= 4) hex += "0123456789abcdef"[(word >> shift) & 15];
  }
  return hex;
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
