// The oracle: norms, rotary embedding and attention in plain loops. Every other instruction set is tested
// against this one, and this one against double precision. Spec sections 5.3, 5.4, 6.3, 6.4 and B.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "qvl/base/dtype.h"
#include "qvl/kernels/attention_int8_tile.h"
#include "qvl/kernels/attention_kernels.h"
#include "qvl/kernels/ops.h"

namespace qvl::kernels {
namespace {

constexpr int64_t kKeyTile = 64;
constexpr float kNegativeInfinity = -std::numeric_limits<float>::infinity();

// How activations of one type are read and written.
struct F32 {
  using Element = float;
  static float load(const Element* p) { return *p; }
  static void store(Element* p, float v) { *p = v; }
  static float round(float v) { return v; }
};
struct Bf16 {
  using Element = BFloat16;
  static float load(const Element* p) { return to_float(*p); }
  static void store(Element* p, float v) { *p = to_bfloat16(v); }
  static float round(float v) { return round_to_bf16(v); }
};

// Sum of term(0..n-1) in kAttentionLanes interleaved parts: about as exact as a vector unit's sum.
template <typename Term>
float lane_sum(int64_t n, const Term& term) {
  float lanes[kAttentionLanes] = {};
  for (int64_t i = 0; i < n; ++i) lanes[i % kAttentionLanes] += term(i);
  for (int64_t width = kAttentionLanes / 2; width > 0; width /= 2) {
    for (int64_t i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}

template <typename T>
float inverse_rms(const typename T::Element* x, int64_t n, float eps) {
  const float sum = lane_sum(n, [&](int64_t i) { return T::load(x + i) * T::load(x + i); });
  return 1.0f / std::sqrt(sum / static_cast<float>(n) + eps);
}

template <typename T>
void layer_norm_row(const void* x_data, int64_t n, const float* weight, const float* bias, float eps,
                    void* y_data) {
  const auto* x = static_cast<const typename T::Element*>(x_data);
  auto* y = static_cast<typename T::Element*>(y_data);
  const float mean = lane_sum(n, [&](int64_t i) { return T::load(x + i); }) / static_cast<float>(n);
  const float squares = lane_sum(n, [&](int64_t i) {
    const float d = T::load(x + i) - mean;
    return d * d;
  });
  const float inverse = 1.0f / std::sqrt(squares / static_cast<float>(n) + eps);
  for (int64_t i = 0; i < n; ++i) T::store(y + i, (T::load(x + i) - mean) * inverse * weight[i] + bias[i]);
}

template <typename T>
void rms_norm_row(const void* x_data, int64_t n, const float* weight, float eps, void* y_data) {
  const auto* x = static_cast<const typename T::Element*>(x_data);
  auto* y = static_cast<typename T::Element*>(y_data);
  const float inverse = inverse_rms<T>(x, n, eps);
  for (int64_t i = 0; i < n; ++i) T::store(y + i, T::round(T::load(x + i) * inverse) * weight[i]);
}

template <typename T>
void rope_heads(void* data, int64_t heads, int64_t hd, const float* cos, const float* sin) {
  auto* x = static_cast<typename T::Element*>(data);
  const int64_t half = hd / 2;
  for (int64_t h = 0; h < heads; ++h, x += hd) {
    for (int64_t i = 0; i < half; ++i) {
      const float a = T::load(x + i), b = T::load(x + half + i);
      T::store(x + i, a * cos[i] - b * sin[i]);
      T::store(x + half + i, b * cos[i] + a * sin[i]);
    }
  }
}

template <typename T>
void norm_rope_head(const void* src, int64_t hd, const float* weight, float eps, const float* cos,
                    const float* sin, void* dst) {
  const auto* x = static_cast<const typename T::Element*>(src);
  auto* y = static_cast<typename T::Element*>(dst);
  const int64_t half = hd / 2;
  const float inverse = inverse_rms<T>(x, hd, eps);
  const auto normed = [&](int64_t i) { return T::round(T::round(T::load(x + i) * inverse) * weight[i]); };
  for (int64_t i = 0; i < half; ++i) {
    const float a = normed(i), b = normed(half + i);
    const float c = T::round(cos[i]), s = T::round(sin[i]);
    T::store(y + i, T::round(a * c) - T::round(b * s));
    T::store(y + half + i, T::round(b * c) + T::round(a * s));
  }
}

// attention_int8_simd.h says what for. Neighbours first.
void hadamard(float* x, int64_t hd) {
  for (int64_t half = 1; half < (hd & -hd); half *= 2) {
    for (int64_t i = 0; i < hd; ++i) {
      if (i & half) continue;
      const float a = x[i], b = x[i + half];
      x[i] = a + b;
      x[i + half] = a - b;
    }
  }
}

template <typename T>
float quantize_head(const void* src, int64_t hd, bool key, int8_t* codes) {
  const auto* p = static_cast<const typename T::Element*>(src);
  float x[kMaxInt8HeadDim];
  for (int64_t i = 0; i < hd; ++i) x[i] = T::load(p + i);
  if (key) hadamard(x, hd);
  float largest = 0;
  for (int64_t i = 0; i < hd; ++i) {
    if (!std::isfinite(x[i])) {
      std::fill_n(codes, hd, int8_t{0});
      return std::numeric_limits<float>::quiet_NaN();
    }
    largest = std::max(largest, std::abs(x[i]));
  }
  const bool some = largest >= kSmallestCodedRow;
  const float inverse = some ? 127.0f / largest : 0.0f;
  for (int64_t i = 0; i < hd; ++i) codes[i] = static_cast<int8_t>(std::nearbyint(x[i] * inverse));
  const float scale = some ? largest / 127.0f : 0.0f;
  return key ? scale / static_cast<float>(hd & -hd) : scale;
}

template <typename T>
void dequantize_head(const int8_t* codes, float scale, int64_t hd, bool key, void* dst) {
  auto* y = static_cast<typename T::Element*>(dst);
  float x[kMaxInt8HeadDim];
  for (int64_t i = 0; i < hd; ++i) x[i] = codes[i];
  if (key) hadamard(x, hd);
  for (int64_t i = 0; i < hd; ++i) T::store(y + i, x[i] * scale);
}

// Attention tiles: keys and values as float, key-major.
size_t query_bytes(int64_t hd) {
  return static_cast<size_t>(hd) * sizeof(float);
}
size_t tile_bytes(int64_t hd) {
  return static_cast<size_t>(kKeyTile * hd) * sizeof(float);
}
size_t scratch_bytes(int64_t) {
  return static_cast<size_t>(kKeyTile) * sizeof(float);
}

template <typename T>
void widen(const void* src, int64_t count, float* dst) {
  const auto* p = static_cast<const typename T::Element*>(src);
  for (int64_t i = 0; i < count; ++i) dst[i] = T::load(p + i);
}

// Adding zero turns a negative zero into a positive one.
template <typename T>
void narrow(const float* src, int64_t count, void* dst) {
  auto* p = static_cast<typename T::Element*>(dst);
  for (int64_t i = 0; i < count; ++i) T::store(p + i, src[i] + 0.0f);
}

template <typename T>
void pack_query(const void* src, int64_t hd, void* dst) {
  widen<T>(src, hd, static_cast<float*>(dst));
}

template <typename T>
void pack_rows(const void* src, int64_t stride, int64_t first, int64_t count, int64_t hd, void* tile) {
  const auto* p = static_cast<const typename T::Element*>(src);
  float* dst = static_cast<float*>(tile) + first * hd;
  for (int64_t i = 0; i < count; ++i) widen<T>(p + i * stride, hd, dst + i * hd);
  std::fill_n(dst + count * hd, (round_up(first + count, kAttentionLanes) - first - count) * hd, 0.0f);
}

void attend(const AttendArgs& args) {
  const int64_t hd = args.head_dim, out_stride = round_up(hd, kAttentionLanes);
  const auto* keys = static_cast<const float*>(args.keys);
  const auto* values = static_cast<const float*>(args.values);
  auto* scores = static_cast<float*>(args.scratch);
  for (int64_t r = 0; r < args.rows; ++r) {
    const float* q = static_cast<const float*>(args.queries) + r * hd;
    const int64_t visible = args.visible == nullptr ? args.key_count : args.visible[r];
    float max = args.max[r];
    for (int64_t i = 0; i < visible; ++i) {
      float score = 0;
      for (int64_t d = 0; d < hd; ++d) score += q[d] * keys[i * hd + d];
      scores[i] = score * args.scale;
      max = std::max(max, scores[i]);
    }
    if (visible == 0) continue;
    const float shrink = std::exp2(args.max[r] - max);
    args.max[r] = max;
    float* out = args.out + r * out_stride;
    float* sum = args.sum + r * kAttentionLanes;
    sum[0] *= shrink;
    for (int64_t d = 0; d < hd; ++d) out[d] *= shrink;
    for (int64_t i = 0; i < visible; ++i) {
      const float weight = std::exp2(scores[i] - max);
      sum[0] += weight;
      for (int64_t d = 0; d < hd; ++d) out[d] += weight * values[i * hd + d];
    }
  }
}

template <typename T>
void finish(const float* out, const float* sum, int64_t hd, void* dst) {
  auto* p = static_cast<typename T::Element*>(dst);
  for (int64_t d = 0; d < hd; ++d) T::store(p + d, out[d] / sum[0] + 0.0f);
}

// Tiles of 8-bit codes (attention_int8_tile.h). Keys and values [keys, head_dim] and the scales: keys' one a row, values' one a
// column. A query: its codes, then the scale.
size_t int8_query_bytes(int64_t hd) {
  return static_cast<size_t>(hd) + sizeof(float);
}
size_t int8_key_tile_bytes(int64_t hd) {
  return static_cast<size_t>(kInt8KeyTile) * int8_query_bytes(hd);
}
size_t int8_value_tile_bytes(int64_t hd) {
  return static_cast<size_t>((kInt8KeyTile + static_cast<int64_t>(sizeof(float))) * hd);
}
size_t int8_scratch_bytes(int64_t) {
  return static_cast<size_t>(kInt8KeyTile) * sizeof(float);
}

// `count` elements, `step` apart, and what their codes are worth: NaN, with codes of zero, when one is not finite.
float int8_codes(const BFloat16* x, int64_t step, int64_t count, int8_t* codes) {
  float largest = 0;
  bool finite = true;
  for (int64_t i = 0; i < count; ++i) {
    const float v = to_float(x[i * step]);
    finite &= std::isfinite(v);
    largest = std::max(largest, std::abs(v));
  }
  const bool some = finite && largest >= kSmallestCodedRow;
  const float factor = some ? kInt8LargestCode / largest : 0.0f;
  for (int64_t i = 0; i < count; ++i) codes[i * step] = static_cast<int8_t>(finite ? std::nearbyint(to_float(x[i * step]) * factor) : 0);
  return !finite ? std::numeric_limits<float>::quiet_NaN() : some ? largest * (1.0f / kInt8LargestCode) : 0.0f;
}

void int8_pack_query(const void* src, int64_t hd, void* dst) {
  auto* codes = static_cast<int8_t*>(dst);
  const float scale = int8_codes(static_cast<const BFloat16*>(src), 1, hd, codes);
  std::memcpy(codes + hd, &scale, sizeof(scale));
}

void int8_pack_keys(const void* src, int64_t stride, int64_t, int64_t count, int64_t hd, void* tile) {
  auto* codes = static_cast<int8_t*>(tile);
  auto* scales = reinterpret_cast<float*>(codes + kInt8KeyTile * hd);
  for (int64_t i = 0; i < count; ++i)
    scales[i] = int8_codes(static_cast<const BFloat16*>(src) + i * stride, 1, hd, codes + i * hd);
}

void int8_pack_values(const void* src, int64_t stride, int64_t, int64_t count, int64_t hd, void* tile) {
  std::vector<BFloat16> rows(static_cast<size_t>(count * hd));
  for (int64_t i = 0; i < count; ++i)
    std::copy_n(static_cast<const BFloat16*>(src) + i * stride, hd, rows.data() + i * hd);
  auto* codes = static_cast<int8_t*>(tile);
  auto* scales = reinterpret_cast<float*>(codes + kInt8KeyTile * hd);
  for (int64_t d = 0; d < hd; ++d) scales[d] = int8_codes(rows.data() + d, hd, count, codes + d);
}

void int8_attend(const AttendArgs& args) {
  const int64_t hd = args.head_dim, out_stride = round_up(hd, kAttentionLanes);
  const auto* keys = static_cast<const int8_t*>(args.keys);
  const auto* key_scales = reinterpret_cast<const float*>(keys + kInt8KeyTile * hd);
  const auto* values = static_cast<const int8_t*>(args.values);
  const auto* value_scales = reinterpret_cast<const float*>(values + kInt8KeyTile * hd);
  auto* scores = static_cast<float*>(args.scratch);
  float lost = 0;  // NaN when a key is
  for (int64_t i = 0; i < args.key_count; ++i) lost += 0.0f * key_scales[i];
  std::vector<int64_t> sums(static_cast<size_t>(hd));
  for (int64_t r = 0; r < args.rows; ++r) {
    const auto* q = static_cast<const int8_t*>(args.queries) + r * static_cast<int64_t>(int8_query_bytes(hd));
    float scale;
    std::memcpy(&scale, q + hd, sizeof(scale));
    const float factor = scale * args.scale;
    float top = kNegativeInfinity;
    for (int64_t i = 0; i < args.key_count; ++i) {
      int32_t product = 0;
      for (int64_t d = 0; d < hd; ++d) product += q[d] * keys[i * hd + d];
      scores[i] = static_cast<float>(product) * key_scales[i];
      top = std::max(top, scores[i]);
    }
    top *= factor;
    const float old = args.max[r], now = std::max(old, top), shrink = std::exp2(old - now);
    args.max[r] = now;
    const float unit = std::exp2(top - now) / kInt8LargestWeight + lost + 0.0f * factor;
    std::fill(sums.begin(), sums.end(), 0);
    int64_t total = 0;
    for (int64_t i = 0; i < args.key_count; ++i) {
      const float weight = std::exp2(scores[i] * factor - (top - kInt8LargestWeightLog)) + kInt8Dither[static_cast<size_t>(i)];
      const int64_t code = weight >= 0 ? static_cast<int64_t>(std::min(weight, kInt8LargestWeight)) : 0;  // 0 for NaN
      total += code;
      for (int64_t d = 0; d < hd; ++d) sums[static_cast<size_t>(d)] += code * values[i * hd + d];
    }
    float* sum = args.sum + r * kAttentionLanes;
    sum[0] = sum[0] * shrink + static_cast<float>(total) * unit;
    float* out = args.out + r * out_stride;
    for (int64_t d = 0; d < hd; ++d)
      out[d] = out[d] * shrink + static_cast<float>(sums[static_cast<size_t>(d)]) * value_scales[d] * unit;
  }
}

// Attention over unpacked keys and values of an int8 cache.
struct Code {
  using Element = int8_t;
  static float load(const Element* p) { return *p; }
};

template <typename T>
void widen_for_codes(const void* src, int64_t hd, float* dst) {
  widen<T>(src, hd, dst);
  hadamard(dst, hd);
}

// Attention over unpacked keys and values.
template <typename T>
void stream_scores(const float* q, int64_t rows, const void* k, int64_t count, int64_t hd, float* scores,
                   int64_t score_stride, const void*) {
  const auto* keys = static_cast<const typename T::Element*>(k);
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t r = 0; r < rows; ++r) {
      float score = 0;
      for (int64_t d = 0; d < hd; ++d) score += q[r * hd + d] * T::load(keys + i * hd + d);
      scores[r * score_stride + i] = score;
    }
  }
}

float stream_weights(float* scores, int64_t visible, int64_t count, float scale, float* max_out) {
  float max = kNegativeInfinity, sum = 0;
  for (int64_t i = 0; i < visible; ++i) max = std::max(max, scores[i] * scale);
  for (int64_t i = 0; i < visible; ++i) {
    scores[i] = std::exp2(scores[i] * scale - max);
    sum += scores[i];
  }
  std::fill(scores + visible, scores + count, 0.0f);
  *max_out = max;
  return sum;
}

template <typename T>
void stream_gather(const float* weights, int64_t weight_stride, int64_t rows, const void* v, int64_t count,
                   int64_t hd, float* out, const void*) {
  const auto* values = static_cast<const typename T::Element*>(v);
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t r = 0; r < rows; ++r) {
      const float weight = weights[r * weight_stride + i];
      for (int64_t d = 0; d < hd; ++d) out[r * hd + d] += weight * T::load(values + i * hd + d);
    }
  }
}

void multiply(const float* factors, int64_t count, float* values) {
  for (int64_t i = 0; i < count; ++i) values[i] *= factors[i];
}

void add_scaled(const float* part, float factor, int64_t count, float* sum) {
  for (int64_t i = 0; i < count; ++i) sum[i] += part[i] * factor;
}

template <typename T>
RowKernels make_rows() {
  return {layer_norm_row<T>, rms_norm_row<T>,  rope_heads<T>,
          norm_rope_head<T>, quantize_head<T>, dequantize_head<T>};
}

template <typename T>
AttentionTile make_tile() {
  AttentionTile t;
  t.key_tile = kKeyTile;
  t.row_group = 1;
  t.query_bytes = query_bytes;
  t.key_tile_bytes = tile_bytes;
  t.value_tile_bytes = tile_bytes;
  t.scratch_bytes = scratch_bytes;
  t.pack_query = pack_query<T>;
  t.pack_keys = pack_rows<T>;
  t.pack_values = pack_rows<T>;
  t.attend = attend;
  t.finish = finish<T>;
  return t;
}

AttentionTile make_int8_tile() {
  AttentionTile t;
  t.key_tile = kInt8KeyTile;
  t.row_group = 1;
  t.query_bytes = int8_query_bytes;
  t.key_tile_bytes = int8_key_tile_bytes;
  t.value_tile_bytes = int8_value_tile_bytes;
  t.scratch_bytes = int8_scratch_bytes;
  t.pack_query = int8_pack_query;
  t.pack_keys = int8_pack_keys;
  t.pack_values = int8_pack_values;
  t.attend = int8_attend;
  t.finish = finish<Bf16>;
  return t;
}

template <typename T>
AttentionStream make_stream() {
  return {stream_scores<T>, stream_weights, stream_gather<T>, add_scaled, multiply, widen<T>, narrow<T>};
}

template <typename T>
AttentionStream make_stream_int8() {
  return {stream_scores<Code>, stream_weights,     stream_gather<Code>, add_scaled,
          multiply,            widen_for_codes<T>, narrow<T>};
}

}  // namespace

const AttentionKernels& attention_kernels_scalar() {
  static const AttentionKernels kernels = {make_rows<F32>(),  make_rows<Bf16>(),  make_tile<F32>(),
                                           make_tile<Bf16>(), make_stream<F32>(), make_stream<Bf16>(),
                                           make_stream_int8<F32>(), make_stream_int8<Bf16>(),
                                           make_int8_tile()};
  return kernels;
}

}  // namespace qvl::kernels
