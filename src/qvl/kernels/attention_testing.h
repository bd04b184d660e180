// Helpers of the tests of norms, rotary embedding and attention: random activations of either type, widened
// views of them, tables and threads to run with. Test code only.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "qvl/base/tensor.h"
#include "qvl/base/thread_pool.h"
#include "qvl/kernels/attention_int8_tile.h"
#include "qvl/kernels/ops.h"
#include "qvl/kernels/table.h"

namespace qvl::kernels::testing {

inline constexpr double kUnit = 5.9604644775390625e-8;  // 2^-24, the unit roundoff of float32

// Owned activations [rows, stride] of one type with `cols` used columns; the gap holds NaN, so that reading
// it shows.
struct Activations {
  Tensor tensor;
  int64_t rows, cols, stride;

  Activations(DType dtype, int64_t r, int64_t c, int64_t gap = 0)
      : tensor(dtype, {r, c + gap}), rows(r), cols(c), stride(c + gap) {
    for (int64_t i = 0; i < r * stride; ++i) set(i, NAN);
  }

  Activations copy() const {
    Activations c(tensor.dtype(), rows, cols, stride - cols);
    std::memcpy(c.tensor.data(), tensor.data(), tensor.size_bytes());
    return c;
  }
  void set(int64_t i, float v) {
    if (tensor.dtype() == DType::kF32) {
      tensor.as<float>()[static_cast<size_t>(i)] = v;
    } else {
      tensor.as<BFloat16>()[static_cast<size_t>(i)] = to_bfloat16(v);
    }
  }
  void set(int64_t r, int64_t c, float v) { set(r * stride + c, v); }
  float at(int64_t r, int64_t c) const {
    const auto i = static_cast<size_t>(r * stride + c);
    return tensor.dtype() == DType::kF32 ? tensor.as<float>()[i] : to_float(tensor.as<BFloat16>()[i]);
  }
  Matrix matrix() { return {tensor.data(), tensor.dtype(), rows, cols, stride}; }
  ConstMatrix matrix() const { return {tensor.data(), tensor.dtype(), rows, cols, stride}; }
  // Columns [first, first + count) of rows [row, row + n).
  Matrix view(int64_t row, int64_t n, int64_t first, int64_t count) {
    const auto size = static_cast<int64_t>(dtype_size_bytes(tensor.dtype()));
    return {static_cast<std::byte*>(tensor.data()) + (row * stride + first) * size, tensor.dtype(), n, count,
            stride};
  }
};

inline void fill_normal(Activations& a, uint32_t seed, float scale = 1.0f, float offset = 0.0f) {
  std::mt19937 g(seed);
  std::normal_distribution<float> n;
  for (int64_t r = 0; r < a.rows; ++r) {
    for (int64_t c = 0; c < a.cols; ++c) a.set(r, c, n(g) * scale + offset);
  }
}

inline std::vector<float> random_floats(int64_t count, uint32_t seed, float scale, float offset,
                                        DType dtype) {
  std::mt19937 g(seed);
  std::normal_distribution<float> n;
  std::vector<float> v(static_cast<size_t>(count));
  for (float& x : v) {
    x = n(g) * scale + offset;
    if (dtype == DType::kBF16) x = round_to_bf16(x);
  }
  return v;
}

// Whether two results are the same to the bit in their used columns.
inline ::testing::AssertionResult same_bits(const Activations& a, const Activations& b) {
  for (int64_t r = 0; r < a.rows; ++r) {
    for (int64_t c = 0; c < a.cols; ++c) {
      const float x = a.at(r, c), y = b.at(r, c);
      if (std::memcmp(&x, &y, sizeof x) != 0) {
        return ::testing::AssertionFailure() << "row " << r << " column " << c << ": " << x << " and " << y;
      }
    }
  }
  return ::testing::AssertionSuccess();
}

// A table that this processor runs, an activation type and a type of the cache; the parameter of most tests here.
struct Variant {
  std::string table;
  DType dtype;
  DType cache;
};

inline std::ostream& operator<<(std::ostream& os, const Variant& v) {
  os << v.table << " " << dtype_name(v.dtype);
  if (v.cache != v.dtype) os << " " << dtype_name(v.cache);
  return os;
}

inline std::vector<Variant> all_variants() {
  std::vector<Variant> v;
  for (std::string_view name : runnable_tables()) {
    for (DType type : {DType::kF32, DType::kBF16}) v.push_back({std::string(name), type, type});
  }
  return v;
}

// With int8 caches too.
inline std::vector<Variant> all_cache_variants() {
  std::vector<Variant> v = all_variants();
  for (std::string_view name : runnable_tables()) {
    for (DType type : {DType::kF32, DType::kBF16}) v.push_back({std::string(name), type, DType::kI8});
  }
  return v;
}

inline std::string variant_name(const ::testing::TestParamInfo<Variant>& info) {
  const Variant& v = info.param;
  return v.table + "_" + std::string(dtype_name(v.dtype)) + (v.cache == DType::kI8 ? "_int8_cache" : "");
}

class VariantTest : public ::testing::TestWithParam<Variant> {
 protected:
  DType dtype() const { return GetParam().dtype; }
  bool bf16() const { return dtype() == DType::kBF16; }
  DType cache_dtype() const { return GetParam().cache; }
  bool int8() const { return cache_dtype() == DType::kI8; }
  // Whether attention of many rows multiplies 16-bit codes.
  bool int16() { return bf16() && context().table->attention->tile_bf16.int16; }
  Context context() { return {&pool_, &table_by_name(GetParam().table)}; }
  static ThreadPool pool_;
};
inline ThreadPool VariantTest::pool_{2};

// A paged cache of one layer with all storage set to NaN.
struct Cache {
  std::vector<AlignedBuffer> blocks;
  std::vector<void*> pointers;
  KvView view;

  Cache(DType dtype, int64_t tokens, int64_t block_tokens, int64_t kv_heads, int64_t head_dim) {
    view = {nullptr, dtype, block_tokens, kv_heads, head_dim};
    const int64_t count = (tokens + block_tokens - 1) / block_tokens;
    for (int64_t b = 0; b < count; ++b) {
      blocks.emplace_back(kv_block_bytes(view));
      std::memset(blocks.back().data(), 0xff, blocks.back().size_bytes());
      pointers.push_back(blocks.back().data());
    }
    view.blocks = pointers.data();
    decode();
  }

  bool int8() const { return view.dtype == DType::kI8; }
  // Of an int8 cache.
  int8_t* codes(bool key, int64_t position, int64_t head) const {
    return static_cast<int8_t*>(pointers[block_of(position)]) + index(key, position, head, 0);
  }
  float* scale(bool key, int64_t position, int64_t head) const {
    void* block = pointers[block_of(position)];
    return reinterpret_cast<float*>(static_cast<std::byte*>(block) +
                                    2 * view.kv_heads * view.block_tokens * view.head_dim) +
           index(key, position, head, 0) / view.head_dim;
  }
  size_t block_of(int64_t position) const { return static_cast<size_t>(position / view.block_tokens); }

  // Reads what the codes of an int8 cache stand for; get() then sees what was written. Keys by the butterflies of the
  // Hadamard transform, exact in integers (KvInt8 tests the transform by its definition).
  void decode() {
    if (!int8()) return;
    const int64_t hd = view.head_dim, n = hd & -hd;
    std::vector<int64_t> head(static_cast<size_t>(hd));
    for (bool key : {true, false}) {
      auto& out = decoded_[key];
      out.resize(blocks.size() * static_cast<size_t>(view.kv_heads * view.block_tokens * hd));
      for (int64_t p = 0; p < static_cast<int64_t>(blocks.size()) * view.block_tokens; ++p) {
        for (int64_t h = 0; h < view.kv_heads; ++h) {
          std::copy_n(codes(key, p, h), hd, head.begin());
          for (int64_t half = 1; key && half < n; half *= 2) {
            for (int64_t i = 0; i < hd; ++i) {
              if (i & half) continue;
              const auto a = static_cast<size_t>(i), b = static_cast<size_t>(i + half);
              const int64_t sum = head[a] + head[b];
              head[b] = head[a] - head[b];
              head[a] = sum;
            }
          }
          const float step = *scale(key, p, h);
          for (int64_t d = 0; d < hd; ++d)
            out[static_cast<size_t>(at(p, h, d))] = static_cast<float>(head[static_cast<size_t>(d)]) * step;
        }
      }
    }
  }

  // In a block: of each head its keys, then its values.
  int64_t index(bool key, int64_t position, int64_t head, int64_t d) const {
    return ((2 * head + (key ? 0 : 1)) * view.block_tokens + position % view.block_tokens) * view.head_dim + d;
  }
  // In what decode() read.
  int64_t at(int64_t position, int64_t head, int64_t d) const {
    return (position * view.kv_heads + head) * view.head_dim + d;
  }
  float get(bool key, int64_t position, int64_t head, int64_t d) const {
    if (int8()) return decoded_[key][static_cast<size_t>(at(position, head, d))];
    const std::byte* block = blocks[block_of(position)].data();
    const int64_t i = index(key, position, head, d);
    return view.dtype == DType::kF32 ? reinterpret_cast<const float*>(block)[i]
                                     : to_float(reinterpret_cast<const BFloat16*>(block)[i]);
  }
  float key(int64_t position, int64_t head, int64_t d) const { return get(true, position, head, d); }
  float value(int64_t position, int64_t head, int64_t d) const { return get(false, position, head, d); }

  void set(bool key, int64_t position, int64_t head, int64_t d, float v) {
    std::byte* block = blocks[block_of(position)].data();
    const int64_t i = index(key, position, head, d);
    if (view.dtype == DType::kF32) {
      reinterpret_cast<float*>(block)[i] = v;
    } else {
      reinterpret_cast<BFloat16*>(block)[i] = to_bfloat16(v);
    }
  }
  // All of a position as another cache of the same shape has it.
  void copy_position(const Cache& from, int64_t position) {
    const auto row_bytes = static_cast<size_t>(view.head_dim) * dtype_size_bytes(view.dtype);
    for (bool key : {true, false}) {
      for (int64_t h = 0; h < view.kv_heads; ++h) {
        const size_t offset = static_cast<size_t>(index(key, position, h, 0)) * dtype_size_bytes(view.dtype);
        std::memcpy(blocks[block_of(position)].data() + offset, from.blocks[block_of(position)].data() + offset,
                    row_bytes);
        if (int8()) *scale(key, position, h) = *from.scale(key, position, h);
      }
    }
  }

  // An int8 cache: random codes, and scales with which the elements are as large as another's.
  void fill_normal(int64_t first, int64_t count, uint32_t seed, float key_scale = 1.0f) {
    std::mt19937 g(seed);
    std::normal_distribution<float> n;
    for (int64_t p = first; p < first + count; ++p) {
      for (int64_t h = 0; h < view.kv_heads; ++h) {
        for (bool key : {true, false}) {
          const float size = (1.0f + 0.5f * std::abs(n(g))) * (key ? key_scale : 1.0f) / 40.0f;
          if (int8())
            *scale(key, p, h) = key ? size / std::sqrt(static_cast<float>(view.head_dim & -view.head_dim)) : size;
          for (int64_t d = 0; d < view.head_dim; ++d) {
            if (int8()) {
              codes(key, p, h)[d] = static_cast<int8_t>(std::clamp(std::nearbyint(n(g) * 40.0f), -127.0f, 127.0f));
            } else {
              set(key, p, h, d, n(g) * (key ? key_scale : 1.0f));
            }
          }
        }
      }
    }
    decode();
  }

 private:
  std::vector<float> decoded_[2];  // values, keys
};

// Keys and values of one head in double, [keys, head_dim] each, and the squared length of every key. Read once for all
// queries: an emulator runs these tests too.
struct WideHead {
  // k(i, d), v(i, d): element d of key and of value i.
  template <typename Key, typename Value>
  WideHead(int64_t count, int64_t head_dim, const Key& k, const Value& v) : hd(head_dim) {
    for (int64_t i = 0; i < count; ++i) {
      double square = 0;
      for (int64_t d = 0; d < hd; ++d) {
        keys.push_back(static_cast<double>(k(i, d)));
        values.push_back(static_cast<double>(v(i, d)));
        square += keys.back() * keys.back();
      }
      squares.push_back(square);
    }
  }

  int64_t hd;
  std::vector<double> keys, values, squares;
};

// softmax(q . K^T * scale) . V for one query and the first `keys` of a head in double, and how far a correct kernel may
// be from each element. q(d): element d of the query.
//
// With u = 2^-24: a score is a float sum of head_dim products (error about sqrt(head_dim) u of its
// magnitudes, four more roundings for the scaling), which moves every weight by at most twice that; exp2 and
// the sums over n keys add (16 + 4 sqrt(n)) u of the sum of |weight * value|. bf16 (unit roundoff 2^-8): the
// weights may be rounded, in the numerator and perhaps not in the sum, and the result is rounded once.
//
// transformed: the scores are those of transformed queries and keys, whose products are no larger than the product of
// their lengths (Cauchy and Schwarz), of queries that went through log2(head_dim) float additions.
//
// int16: rows became 16-bit codes. Half a code of a query or key is at most 1/46300 of its length, which makes
// sqrt(2/3)/46300 of the product of the lengths in the mean square of a score: 2^-14 is 3.5 of them. Half a code of a value
// is at most 2^-15 of its row's largest magnitude.
struct Expected {
  std::vector<double> out;
  std::vector<double> tolerance;
};

template <typename Query>
Expected attend_in_double(const WideHead& head, int64_t keys, double scale, bool bf16, const Query& q,
                          bool transformed = false, bool int16 = false) {
  const auto hd = static_cast<size_t>(head.hd), count = static_cast<size_t>(keys);
  std::vector<double> query(hd), weights(count);
  double square = 0;
  for (size_t d = 0; d < hd; ++d) {
    query[d] = static_cast<double>(q(static_cast<int64_t>(d)));
    square += query[d] * query[d];
  }
  double max = -INFINITY, magnitude = 0, longest = 0;
  for (size_t i = 0; i < count; ++i) {
    const double* key = head.keys.data() + i * hd;
    double s = 0, m = 0;
    if (transformed) {
      for (size_t d = 0; d < hd; ++d) s += query[d] * key[d];
      m = std::sqrt(square * head.squares[i]);
    } else {
      for (size_t d = 0; d < hd; ++d) {
        const double product = query[d] * key[d];
        s += product;
        m += std::abs(product);
      }
    }
    longest = std::max(longest, std::sqrt(square * head.squares[i]) * scale);
    weights[i] = s * scale;
    max = std::max(max, s * scale);
    magnitude = std::max(magnitude, m * scale);
  }
  double sum = 0;
  for (double& w : weights) sum += w = std::exp(w - max);
  const double n = static_cast<double>(hd);
  const double score_error = kUnit * magnitude * (4 + std::sqrt(n) + (transformed ? 2 + std::log2(n) : 0.0)) +
                             (int16 ? 0x1p-14 * longest : 0.0);
  const double relative =
      std::expm1(2 * score_error) + kUnit * (16 + 4 * std::sqrt(static_cast<double>(keys)));
  Expected e{std::vector<double>(hd, 0.0), std::vector<double>(hd, 0.0)};
  double largest_values = 0;
  for (size_t i = 0; i < count; ++i) {
    const double weight = weights[i] / sum;
    const double* value = head.values.data() + i * hd;
    double largest = 0;
    for (size_t d = 0; d < hd; ++d) largest = std::max(largest, std::abs(value[d]));
    largest_values += weight * largest;
    for (size_t d = 0; d < hd; ++d) {
      const double term = weight * value[d];
      e.out[d] += term;
      e.tolerance[d] += std::abs(term);
    }
  }
  for (size_t d = 0; d < hd; ++d) {
    const double absolute = e.tolerance[d];
    e.tolerance[d] = absolute * relative + (bf16 ? (absolute + 2 * std::abs(e.out[d])) / 256 : 0.0) +
                     (int16 ? 0x1p-15 * largest_values : 0.0) + 1e-37;
  }
  return e;
}

// What attention in 8-bit codes (attention_int8_tile.h) makes of a row or column of n elements; the codes are in `out`.
template <typename Element>
double int8_codes(size_t n, const Element& element, double* out, size_t step = 1) {
  float largest = 0;
  for (size_t i = 0; i < n; ++i) largest = std::max(largest, std::abs(static_cast<float>(element(i))));
  const bool some = largest >= kSmallestCodedRow;
  const float factor = some ? kInt8LargestCode / largest : 0.0f;
  for (size_t i = 0; i < n; ++i) out[i * step] = std::nearbyint(static_cast<float>(element(i)) * factor);
  return some ? static_cast<double>(largest) / 127 : 0.0;
}

// A head's keys and values in codes.
struct Int8Head {
  explicit Int8Head(const WideHead& head)
      : hd(static_cast<size_t>(head.hd)), count(head.squares.size()), keys(head.keys.size()), values(keys.size()), key_scales(count) {
    for (size_t i = 0; i < count; ++i)
      key_scales[i] = int8_codes(hd, [&](size_t d) { return head.keys[i * hd + d]; }, keys.data() + i * hd);
    for (size_t first = 0; first < count; first += kInt8KeyTile) {
      const size_t n = std::min<size_t>(kInt8KeyTile, count - first);
      for (size_t d = 0; d < hd; ++d) {
        value_scales.push_back(int8_codes(n, [&](size_t i) { return head.values[(first + i) * hd + d]; },
                                          values.data() + first * hd + d, hd));
      }
    }
  }

  size_t hd, count;
  std::vector<double> keys, values, key_scales;
  std::vector<double> value_scales;  // [tiles, hd]
};

// Attention in these codes of one query that sees all keys, in double, and how far a kernel with a fast exp2 may be: a weight
// within 1/30 of the next code may become that one.
template <typename Query>
Expected attend_int8_in_double(const Int8Head& head, double scale, const Query& q) {
  const size_t hd = head.hd;
  std::vector<double> query(hd);
  const double query_scale = int8_codes(hd, [&](size_t d) { return q(static_cast<int64_t>(d)); }, query.data()) * scale;
  double max = -INFINITY, sum = 0, unsure = 0;
  std::vector<double> out(hd, 0.0), loose(hd, 0.0), absolute(hd, 0.0), scores(kInt8KeyTile);
  for (size_t first = 0; first < head.count; first += kInt8KeyTile) {
    const size_t keys = std::min<size_t>(kInt8KeyTile, head.count - first);
    double top = -INFINITY;
    for (size_t i = 0; i < keys; ++i) {
      const double* key = head.keys.data() + (first + i) * hd;
      double product = 0;
      for (size_t d = 0; d < hd; ++d) product += query[d] * key[d];
      scores[i] = product * head.key_scales[first + i] * query_scale;
      top = std::max(top, scores[i]);
    }
    const double now = std::max(max, top), shrink = std::exp(max - now), unit = std::exp(top - now) / 255;
    max = now;
    // What keeps the largest scores of different tiles apart is as exact as scores are.
    const double apart = 1e-6 + 16 * kUnit * std::max(std::abs(now), std::abs(top));
    sum *= shrink;
    unsure *= shrink;
    std::vector<double> products(hd, 0.0), may(hd, 0.0), sizes(hd, 0.0);
    for (size_t i = 0; i < keys; ++i) {
      const double exact = 255 * std::exp(scores[i] - top), weight = exact + static_cast<double>(kInt8Dither[i]);
      const double near = 0.033 + exact * 16 * kUnit * (std::abs(scores[i]) + std::abs(top));
      const double code = std::min(255.0, std::floor(weight));
      const bool doubtful = weight - near < 255 && (std::floor(weight + near) > code || std::floor(weight - near) < code);
      const double doubt = doubtful ? 1 + std::floor(near) : 0;
      sum += code * unit;
      unsure += (doubt + code * apart) * unit;
      if (code == 0 && doubt == 0) continue;
      const double* value = head.values.data() + (first + i) * hd;
      for (size_t d = 0; d < hd; ++d) {
        products[d] += code * value[d];
        may[d] += doubt * std::abs(value[d]);
        sizes[d] += code * std::abs(value[d]);
      }
    }
    for (size_t d = 0; d < hd; ++d) {
      const double value = head.value_scales[first / kInt8KeyTile * hd + d] * unit;
      out[d] = out[d] * shrink + products[d] * value;
      loose[d] = loose[d] * shrink + (may[d] + sizes[d] * apart) * value;
      absolute[d] = absolute[d] * shrink + sizes[d] * value;
    }
  }
  Expected e{std::vector<double>(hd), std::vector<double>(hd)};
  const double rest = std::max(sum - unsure, sum / 1000);
  for (size_t d = 0; d < hd; ++d) {
    e.out[d] = out[d] / sum;
    e.tolerance[d] = (loose[d] + std::abs(e.out[d]) * unsure) / rest + absolute[d] / sum * 64 * kUnit +
                     std::abs(e.out[d]) / 256 + 1e-37;
  }
  return e;
}

}  // namespace qvl::kernels::testing
