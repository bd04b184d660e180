// Helpers of the tests of norms, rotary embedding and attention: random activations of either type, widened
// views of them, tables and threads to run with. Test code only.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "qvl/base/tensor.h"
#include "qvl/base/thread_pool.h"
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

// A table that this processor runs and an activation type; the parameter of most tests here.
struct Variant {
  std::string table;
  DType dtype;
};

inline std::ostream& operator<<(std::ostream& os, const Variant& v) {
  return os << v.table << " " << dtype_name(v.dtype);
}

inline std::vector<Variant> all_variants() {
  std::vector<Variant> v;
  for (std::string_view name : runnable_tables()) {
    v.push_back({std::string(name), DType::kF32});
    v.push_back({std::string(name), DType::kBF16});
  }
  return v;
}

inline std::string variant_name(const ::testing::TestParamInfo<Variant>& info) {
  return info.param.table + "_" + std::string(dtype_name(info.param.dtype));
}

class VariantTest : public ::testing::TestWithParam<Variant> {
 protected:
  DType dtype() const { return GetParam().dtype; }
  bool bf16() const { return dtype() == DType::kBF16; }
  Context context() { return {&pool_, &table_by_name(GetParam().table)}; }
  static ThreadPool pool_;
};
inline ThreadPool VariantTest::pool_{2};

// A paged cache of one layer with all storage set to NaN.
struct Cache {
  std::vector<Tensor> keys, values;
  std::vector<void*> key_pointers, value_pointers;
  KvView view;

  Cache(DType dtype, int64_t tokens, int64_t block_tokens, int64_t kv_heads, int64_t head_dim) {
    const int64_t blocks = (tokens + block_tokens - 1) / block_tokens;
    for (int64_t b = 0; b < blocks; ++b) {
      for (auto* list : {&keys, &values}) {
        list->emplace_back(dtype, Shape{kv_heads, block_tokens, head_dim});
        std::memset(list->back().data(), 0xff, list->back().size_bytes());
      }
      key_pointers.push_back(keys.back().data());
      value_pointers.push_back(values.back().data());
    }
    view = {key_pointers.data(), value_pointers.data(), dtype, block_tokens, kv_heads, head_dim};
  }

  int64_t index(int64_t position, int64_t head, int64_t d) const {
    return (head * view.block_tokens + position % view.block_tokens) * view.head_dim + d;
  }
  float get(const std::vector<Tensor>& list, int64_t position, int64_t head, int64_t d) const {
    const Tensor& t = list[static_cast<size_t>(position / view.block_tokens)];
    const auto i = static_cast<size_t>(index(position, head, d));
    return t.dtype() == DType::kF32 ? t.as<float>()[i] : to_float(t.as<BFloat16>()[i]);
  }
  void set(std::vector<Tensor>& list, int64_t position, int64_t head, int64_t d, float v) {
    Tensor& t = list[static_cast<size_t>(position / view.block_tokens)];
    const auto i = static_cast<size_t>(index(position, head, d));
    if (t.dtype() == DType::kF32) {
      t.as<float>()[i] = v;
    } else {
      t.as<BFloat16>()[i] = to_bfloat16(v);
    }
  }
  float key(int64_t position, int64_t head, int64_t d) const { return get(keys, position, head, d); }
  float value(int64_t position, int64_t head, int64_t d) const { return get(values, position, head, d); }

  void fill_normal(int64_t first, int64_t count, uint32_t seed, float key_scale = 1.0f) {
    std::mt19937 g(seed);
    std::normal_distribution<float> n;
    for (int64_t p = first; p < first + count; ++p) {
      for (int64_t h = 0; h < view.kv_heads; ++h) {
        for (int64_t d = 0; d < view.head_dim; ++d) {
          set(keys, p, h, d, n(g) * key_scale);
          set(values, p, h, d, n(g));
        }
      }
    }
  }
};

// softmax(q . K^T * scale) . V for one query in double, and how far a correct kernel may be from each
// element.
//
// With u = 2^-24: a score is a float sum of head_dim products (error about sqrt(head_dim) u of its
// magnitudes, four more roundings for the scaling), which moves every weight by at most twice that; exp2 and
// the sums over n keys add (16 + 4 sqrt(n)) u of the sum of |weight * value|. bf16 (unit roundoff 2^-8): the
// weights may be rounded, in the numerator and perhaps not in the sum, and the result is rounded once.
struct Expected {
  std::vector<double> out;
  std::vector<double> tolerance;
};

template <typename Query, typename Key, typename Value>
Expected attend_in_double(int64_t keys, int64_t hd, double scale, bool bf16, const Query& q, const Key& k,
                          const Value& v) {
  std::vector<double> scores(static_cast<size_t>(keys));
  double max = -INFINITY, magnitude = 0;
  for (int64_t i = 0; i < keys; ++i) {
    double s = 0, m = 0;
    for (int64_t d = 0; d < hd; ++d) {
      const double product = static_cast<double>(q(d)) * static_cast<double>(k(i, d));
      s += product;
      m += std::abs(product);
    }
    scores[static_cast<size_t>(i)] = s * scale;
    max = std::max(max, s * scale);
    magnitude = std::max(magnitude, m * scale);
  }
  double sum = 0;
  for (double& s : scores) sum += s = std::exp(s - max);
  const double score_error = kUnit * magnitude * (4 + std::sqrt(static_cast<double>(hd)));
  const double relative =
      std::expm1(2 * score_error) + kUnit * (16 + 4 * std::sqrt(static_cast<double>(keys)));
  Expected e;
  for (int64_t d = 0; d < hd; ++d) {
    double out = 0, absolute = 0;
    for (int64_t i = 0; i < keys; ++i) {
      const double term = scores[static_cast<size_t>(i)] / sum * static_cast<double>(v(i, d));
      out += term;
      absolute += std::abs(term);
    }
    e.out.push_back(out);
    e.tolerance.push_back(absolute * relative + (bf16 ? (absolute + 2 * std::abs(out)) / 256 : 0.0) + 1e-37);
  }
  return e;
}

}  // namespace qvl::kernels::testing
