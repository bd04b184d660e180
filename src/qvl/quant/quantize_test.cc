// The quantisers: plain rounding equals ONNX Runtime's, the search comes close to the best there is, every
// instruction set gives the same bytes, and neither grouping nor threads matter.
#include "qvl/quant/quantize.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "qvl/base/error.h"
#include "qvl/base/tensor.h"

namespace qvl::quant {
namespace {

const char* const kIntegerFormats[] = {"int4 b16",  "int4 b32",    "int4 b64 bf16-scales",
                                       "int4 b256", "int4 b32 zp", "int4 b128 zp f16-scales",
                                       "int8 b32",  "int8 b16 zp", "int8 row",
                                       "int4 b32 i8-scales", "int4 b16 zp i8-scales", "int8 b128 i8-scales"};

std::vector<float> gaussian(int64_t count, uint32_t seed, float scale = 0.02f) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(count));
  for (float& v : values) v = scale * normal(rng);
  return values;
}

std::vector<float> random_importance(int64_t columns, uint32_t seed) {
  std::vector<float> values = gaussian(columns, seed, 1.5f);
  for (float& v : values) v = std::exp(v);
  return values;
}

struct Result {
  QuantizedMatrix matrix;
  ErrorStats stats;
  std::vector<std::byte> bytes() const {
    std::vector<std::byte> all(matrix.span().data.begin(), matrix.span().data.end());
    for (std::span<const std::byte> part : {matrix.span().scales, matrix.span().zero_points}) {
      all.insert(all.end(), part.begin(), part.end());
    }
    return all;
  }
  std::vector<float> values() const {
    std::vector<float> out(static_cast<size_t>(matrix.rows() * matrix.columns()));
    dequantize(matrix.format(), matrix.rows(), matrix.columns(), matrix.span(), out);
    return out;
  }
};

Result quantized(const char* format, std::span<const float> w, int64_t columns, Method method,
                 std::span<const float> importance = {}, Isa isa = available_isas().back()) {
  const int64_t rows = static_cast<int64_t>(w.size()) / columns;
  ThreadPool pool(1);
  Result r{QuantizedMatrix(parse_format(format), rows, columns), {}};
  r.stats = Quantizer(parse_format(format), columns, method, importance, "test", isa)
                .quantize(w.data(), DType::kF32, rows, r.matrix.span(), pool);
  return r;
}

void expect_equal(const ErrorStats& a, const ErrorStats& b, const std::string& what) {
  EXPECT_EQ(a.count, b.count) << what;
  EXPECT_EQ(a.stored_bytes, b.stored_bytes) << what;
  EXPECT_EQ(a.to_json(), b.to_json()) << what;
}

// tests/onnx/check_quant.py prints this table from ONNX Runtime 1.32 (FNV-1a of data, scales, zero points),
// and has the same generator.
TEST(QuantizePlain, EqualsOnnxRuntimesQuantiser) {
  struct Case {
    const char* format;
    int64_t rows, columns;
    uint64_t hash;
  };
  const Case cases[] = {
      {"int4 b16", 5, 256, 0x8141f8eaa19b5b91u},    {"int4 b16", 3, 96, 0xa9376710533cfeaau},
      {"int4 b16", 1, 160, 0x188563465aa1b780u},    {"int4 b16", 33, 288, 0x30f9d9033750c847u},
      {"int4 b32", 5, 256, 0x8b89951b6f1a2d63u},    {"int4 b32 zp", 5, 256, 0x5fe49e3760e64319u},
      {"int4 b64 zp", 5, 256, 0x86215893fa227924u}, {"int4 b128", 5, 256, 0x490fd531c491f480u},
      {"int8 b16", 5, 256, 0x36c9393e5247b36au},    {"int8 b16", 3, 96, 0x9da22b7db5645c43u},
      {"int8 b16", 1, 160, 0x8a9b4c0591cbe9e8u},    {"int8 b16", 33, 288, 0x66a57e5eed66c4fdu},
      {"int8 b32", 5, 256, 0x9d0528d4e3a22df1u},    {"int8 b32 zp", 5, 256, 0x0a9ab4dd1f6e25fau},
      {"int8 b128", 5, 256, 0x969377299aceda30u},
  };
  for (const Case& c : cases) {
    std::vector<float> w(static_cast<size_t>(c.rows * c.columns));
    uint32_t x = static_cast<uint32_t>(c.rows * 1000 + c.columns);
    for (float& v : w) {
      x = x * 1664525u + 1013904223u;
      v = static_cast<float>(static_cast<int>(x >> 24) - 128) / 1024.0f;
    }
    if (c.rows > 2) {
      for (int64_t k = 0; k < c.columns; ++k) {
        float& one_sign = w[static_cast<size_t>(c.columns + k)];
        one_sign = std::fabs(one_sign);
        if (k < c.columns / 2) w[static_cast<size_t>(2 * c.columns + k)] = 0;
      }
    }
    uint64_t hash = 0xcbf29ce484222325u;
    for (std::byte b : quantized(c.format, w, c.columns, Method::kPlain).bytes()) {
      hash = (hash ^ std::to_integer<uint64_t>(b)) * 0x100000001b3u;
    }
    EXPECT_EQ(hash, c.hash) << c.format << " [" << c.rows << ", " << c.columns << "]";
  }
}

TEST(Quantize, InstructionSetsGiveTheSameBytesAndSums) {
  for (const char* format : kIntegerFormats) {
    for (int64_t columns : {1, 7, 16, 33, 64, 100, 272, 523}) {
      for (int64_t rows : {1, 16, 37}) {
        std::vector<float> w = gaussian(rows * columns, static_cast<uint32_t>(rows + columns));
        for (size_t i = 0; i < w.size(); i += 41) w[i] *= 8;
        const std::vector<float> importance = random_importance(columns, 5);
        for (Method method : {Method::kPlain, Method::kSearch}) {
          for (bool weighted : {false, true}) {
            const std::span<const float> used =
                weighted ? std::span<const float>(importance) : std::span<const float>();
            const Result expected = quantized(format, w, columns, method, used, Isa::kPortable);
            for (Isa isa : available_isas()) {
              const Result got = quantized(format, w, columns, method, used, isa);
              const std::string what = std::string(format) + " " + std::string(isa_name(isa)) + " " +
                                       std::to_string(rows) + "x" + std::to_string(columns);
              EXPECT_EQ(got.bytes(), expected.bytes()) << what;
              expect_equal(got.stats, expected.stats, what);
            }
          }
        }
      }
    }
  }
}

TEST(Quantize, BF16AndF16AreReadAsTheirFloats) {
  const int64_t rows = 19, columns = 90;
  const std::vector<float> source = gaussian(rows * columns, 3);
  ThreadPool pool(2);
  for (DType type : {DType::kBF16, DType::kF16}) {
    // One byte in front: the rows of a mapped file need not be aligned.
    std::vector<std::byte> stored(source.size() * 2 + 1);
    Tensor narrow(type, {rows * columns}), wide(DType::kF32, {rows * columns});
    convert_elements(source.data(), DType::kF32, narrow.data(), type, rows * columns);
    convert_elements(narrow.data(), type, wide.data(), DType::kF32, rows * columns);
    std::copy_n(static_cast<const std::byte*>(narrow.data()), narrow.size_bytes(), stored.begin() + 1);
    for (const char* name : kIntegerFormats) {
      const Result expected = quantized(name, wide.as<float>(), columns, Method::kSearch);
      for (Isa isa : available_isas()) {
        QuantizedMatrix m(parse_format(name), rows, columns);
        const ErrorStats stats = Quantizer(parse_format(name), columns, Method::kSearch, {}, "test", isa)
                                     .quantize(stored.data() + 1, type, rows, m.span(), pool);
        EXPECT_EQ((Result{m, stats}.bytes()), expected.bytes()) << name << " " << dtype_name(type);
        expect_equal(stats, expected.stats, name);
      }
    }
  }
}

TEST(Quantize, NeitherGroupsNorThreadsMatter) {
  const int64_t rows = 100, columns = 75;
  const std::vector<float> w = gaussian(rows * columns, 4);
  for (const char* name : kIntegerFormats) {
    const Result whole = quantized(name, w, columns, Method::kSearch);
    const Quantizer quantizer(parse_format(name), columns, Method::kSearch);
    for (int threads : {1, 3}) {
      ThreadPool pool(threads);
      QuantizedMatrix m(parse_format(name), rows, columns);
      ErrorStats sum;
      for (int64_t row = 0; row < rows; row += 32) {
        const int64_t count = std::min<int64_t>(32, rows - row);
        sum.merge(quantizer.quantize(w.data() + row * columns, DType::kF32, count,
                                     row_span(m.format(), rows, columns, m.span(), row, count), pool, row));
      }
      EXPECT_EQ((Result{m, sum}.bytes()), whole.bytes()) << name;
      EXPECT_NEAR(sum.rms_error(), whole.stats.rms_error(), 1e-12 * whole.stats.rms_error());
      EXPECT_EQ(sum.stored_bytes, whole.stats.stored_bytes);
    }
  }
}

TEST(Quantize, StatisticsDescribeTheStoredBytes) {
  const int64_t rows = 21, columns = 300;
  const std::vector<float> w = gaussian(rows * columns, 6);
  const std::vector<float> raw = random_importance(columns, 7);
  double mean = 0;
  for (float v : raw) mean += v / static_cast<double>(columns);
  std::vector<float> importance = raw;
  for (float& v : importance) v = static_cast<float>(std::max(v / mean, 1e-3));
  for (const char* name : kIntegerFormats) {
    for (Method method : {Method::kPlain, Method::kSearch}) {
      const Result r = quantized(name, w, columns, method, raw);
      ErrorStats expected;
      expected.add(w, r.values(), columns, importance);
      EXPECT_EQ(r.stats.count, expected.count);
      EXPECT_NEAR(r.stats.max_error, expected.max_error, 1e-6 * expected.max_error + 1e-9) << name;
      EXPECT_NEAR(r.stats.mean_error(), expected.mean_error(), 1e-5 * expected.mean_error()) << name;
      EXPECT_NEAR(r.stats.rms_error(), expected.rms_error(), 1e-5 * expected.rms_error()) << name;
      EXPECT_NEAR(r.stats.relative_rms(), expected.relative_rms(), 1e-5 * expected.relative_rms()) << name;
      EXPECT_NEAR(r.stats.weighted_relative_rms(), expected.weighted_relative_rms(),
                  1e-5 * expected.weighted_relative_rms())
          << name;
      EXPECT_NEAR(1 - r.stats.cosine(), 1 - expected.cosine(), 1e-5 * (1 - expected.cosine())) << name;
      EXPECT_NEAR(r.stats.bits_per_weight(), r.matrix.format().bits_per_weight(rows, columns), 1e-12) << name;
    }
  }
}

// The least weighted squared error of a block, by trying far more scales than the quantiser, in float64.
double least_error(std::span<const float> x, std::span<const float> w, int low, int high) {
  double largest = 0, energy = 0;
  for (size_t k = 0; k < x.size(); ++k) {
    largest = std::max(largest, std::fabs(static_cast<double>(x[k])));
    energy += static_cast<double>(w[k]) * x[k] * x[k];
  }
  double explained = 0;
  for (int i = 0; i < 3000; ++i) {
    for (const auto& [lo, hi] : {std::pair{low, high}, std::pair{-high, -low}}) {
      const double span = std::max(-low, high);
      const double inverse = span * (0.4 + 1.4 * i / 3000) / largest;
      double product = 0, square = 0;
      for (size_t k = 0; k < x.size(); ++k) {
        const double q =
            std::clamp(std::nearbyint(x[k] * inverse), static_cast<double>(lo), static_cast<double>(hi));
        product += w[k] * q * x[k];
        square += w[k] * q * q;
      }
      if (square > 0) explained = std::max(explained, product * product / square);
    }
  }
  return energy - explained;
}

TEST(QuantizeSearch, IsCloseToTheBestScaleOfEveryBlock) {
  const int64_t rows = 96, columns = 32;
  for (uint32_t seed : {10u, 11u, 12u}) {
    std::vector<float> x = gaussian(rows * columns, seed);
    if (seed == 11) {
      for (size_t i = 0; i < x.size(); i += 23) x[i] *= 6;  // outliers
    }
    if (seed == 12) {
      std::mt19937 rng(seed);  // evenly spread values
      for (float& v : x) v = static_cast<float>(rng()) * 0x1p-32f - 0.5f;
    }
    const std::vector<float> ones(static_cast<size_t>(columns), 1.0f);
    const std::vector<float> w = seed == 10 ? random_importance(columns, 1) : ones;
    const std::vector<float> stored = quantized("int4 b32", x, columns, Method::kSearch, w).values();
    double best = 0, got = 0;
    for (int64_t r = 0; r < rows; ++r) {
      const std::span row =
          std::span<const float>(x).subspan(static_cast<size_t>(r * columns), static_cast<size_t>(columns));
      const double least = least_error(row, w, -8, 7);
      double error = 0;
      for (int64_t k = 0; k < columns; ++k) {
        const double d = row[static_cast<size_t>(k)] - stored[static_cast<size_t>(r * columns + k)];
        error += w[static_cast<size_t>(k)] * d * d;
      }
      EXPECT_LT(error, 1.15 * least) << seed << " row " << r;
      best += least;
      got += error;
    }
    EXPECT_LT(got, 1.006 * best) << seed;
  }
}

TEST(QuantizeSearch, CodedScalesCostNextToNothing) {
  const int64_t rows = 64, columns = 2560;
  for (const float spread : {0.0f, 0.5f, 1.5f}) {  // blocks of about the same size, of some and of very different ones
    std::vector<float> w = gaussian(rows * columns, 22);
    const std::vector<float> sizes = gaussian(rows * columns / 32, 23, spread);
    for (size_t i = 0; i < w.size(); ++i) w[i] *= std::exp(sizes[i / 32]);
    const std::vector<float> importance = random_importance(columns, 24);
    // What is left of 8 bits is far below what is left of 4.
    for (const auto& [name, limit] : {std::pair{"int4 b32", 1.013}, {"int4 b32 zp", 1.013}, {"int4 b128", 1.005}, {"int8 b32", 1.12}, {"int8 b128", 1.05}}) {
      const auto error = [&](const char* scales) {
        return quantized((std::string(name) + scales).c_str(), w, columns, Method::kSearch, importance).stats.weighted_relative_rms();
      };
      EXPECT_LT(error(" i8-scales"), limit * error(" bf16-scales")) << name << ", blocks of sizes of deviation " << spread << ": "
                                                                  << error(" i8-scales") / error(" bf16-scales");
    }
  }
}

TEST(QuantizeSearch, LeavesLessErrorThanPlainRounding) {
  const int64_t rows = 64, columns = 512;
  const std::vector<float> w = gaussian(rows * columns, 20);
  const std::vector<float> importance = random_importance(columns, 21);
  // The largest share of plain's error (root of the squares) that may be left: figures of 2026, with little
  // room.
  const std::pair<const char*, double> limits[] = {
      {"int4 b32", 0.825},     {"int4 b64", 0.86}, {"int4 b128", 0.87},   {"int4 b32 zp", 0.83},
      {"int4 b128 zp", 0.875}, {"int8 b32", 0.86}, {"int8 b32 zp", 0.85}, {"int8 row", 1.0}};
  for (const auto& [name, limit] : limits) {
    const double plain =
        quantized(name, w, columns, Method::kPlain, importance).stats.weighted_relative_rms();
    const double search =
        quantized(name, w, columns, Method::kSearch, importance).stats.weighted_relative_rms();
    const double unweighted = quantized(name, w, columns, Method::kSearch).stats.relative_rms();
    EXPECT_LT(search, limit * plain) << name << " " << search / plain;
    EXPECT_LT(unweighted, plain) << name;
  }
}

TEST(QuantizeSearch, ImportanceMovesTheErrorAway) {
  const int64_t rows = 64, columns = 128;
  const std::vector<float> w = gaussian(rows * columns, 30);
  std::vector<float> importance(static_cast<size_t>(columns), 0.0f);
  for (size_t k = 0; k < importance.size(); k += 4) importance[k] = 5.0f;
  const auto error_of = [&](const std::vector<float>& y, bool important) {
    double sum = 0;
    for (size_t i = 0; i < w.size(); ++i) {
      if ((i % 4 == 0) == important)
        sum += (static_cast<double>(w[i]) - y[i]) * (static_cast<double>(w[i]) - y[i]);
    }
    return sum;
  };
  const std::vector<float> with = quantized("int4 b32", w, columns, Method::kSearch, importance).values();
  const std::vector<float> without = quantized("int4 b32", w, columns, Method::kSearch).values();
  EXPECT_LT(error_of(with, true), 0.7 * error_of(without, true));
  // Columns of importance 0 are kept all the same.
  EXPECT_LT(error_of(with, false), 8 * error_of(without, false));
  // Only ratios matter.
  std::vector<float> twice = importance;
  for (float& v : twice) v *= 2;
  EXPECT_EQ(quantized("int4 b32", w, columns, Method::kSearch, twice).values(), with);
  const std::vector<float> zeros(static_cast<size_t>(columns), 0.0f);
  EXPECT_EQ(quantized("int4 b32", w, columns, Method::kSearch, zeros).values(), without);
}

TEST(Quantize, UnusualBlocks) {
  const int64_t columns = 32;
  std::vector<float> w(static_cast<size_t>(columns) * 9, 0.0f);
  const auto row = [&](int r) {
    return std::span(w).subspan(static_cast<size_t>(r * columns), static_cast<size_t>(columns));
  };
  // row 0: zeros
  for (float& v : row(1)) v = 0.25f;  // one value
  for (float& v : row(2)) v = -0.25f;
  row(3)[7] = 3.0f;                    // a single spike
  for (float& v : row(4)) v = 1e-40f;  // subnormal: stored as zero
  for (size_t k = 0; k < 32; ++k) row(5)[k] = (k % 2 ? 1.0f : -1.0f) * 3e38f;
  for (size_t k = 0; k < 32; ++k) row(6)[k] = (k % 2 ? 1.0f : -1.0f) * 2e-38f;
  for (size_t k = 0; k < 32; ++k)
    row(7)[k] = static_cast<float>(static_cast<int>(k % 16) - 8) * 0.125f;  // exact in 4 bits
  for (size_t k = 0; k < 32; ++k) row(8)[k] = -0.0f;
  for (const char* name : kIntegerFormats) {
    if (std::string(name).find("f16-scales") != std::string::npos &&
        std::string(name).find("bf16") == std::string::npos) {
      continue;  // cannot hold 3e38
    }
    for (Method method : {Method::kPlain, Method::kSearch}) {
      const std::vector<float> y = quantized(name, w, columns, method).values();
      for (int r = 0; r < 9; ++r) {
        double largest = 0, error = 0;
        for (int64_t k = 0; k < columns; ++k) {
          const size_t i = static_cast<size_t>(r * columns + k);
          ASSERT_TRUE(std::isfinite(y[i])) << name << " row " << r;
          largest = std::max(largest, std::fabs(static_cast<double>(w[i])));
          error = std::max(error, std::fabs(static_cast<double>(w[i]) - y[i]));
        }
        // Scales with an exponent a row are no finer than 2^-126.
        const bool coarse = r == 6 && std::string(name).ends_with("i8-scales");
        const double tolerance = r == 4 ? 1.0 : coarse ? 0.3 : name[3] == '4' ? 0.14 : 0.01;
        EXPECT_LE(error, tolerance * largest) << name << " row " << r << " " << method_name(method);
      }
    }
  }
  const std::vector<float> exact = quantized("int4 b32", w, columns, Method::kSearch).values();
  for (size_t i = 7 * 32; i < 8 * 32; ++i) EXPECT_EQ(exact[i], w[i]) << i;
  EXPECT_EQ(exact[3 * 32 + 7], 3.0f);
}

TEST(Quantize, DamagedWeightsAreNamed) {
  const int64_t columns = 40;
  for (float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                    -std::numeric_limits<float>::infinity()}) {
    std::vector<float> w = gaussian(20 * columns, 40);
    w[17 * 40 + 33] = bad;
    ThreadPool pool(2);
    for (const char* name : {"int4 b32", "int8 b16 zp", "int8 row", "bf16", "f32"}) {
      const Format format = parse_format(name);
      std::vector<std::byte> data(format.data_bytes(20, columns)), scales(format.scale_bytes(20, columns)),
          zeros(format.zero_point_bytes(20, columns));
      try {
        Quantizer(format, columns, Method::kSearch, {}, "model.x.weight")
            .quantize(w.data(), DType::kF32, 20, {data, scales, zeros}, pool, 1000);
        ADD_FAILURE() << name;
      } catch (const Error& e) {
        EXPECT_EQ(e.code(), ErrorCode::kFormat);
        EXPECT_NE(std::string(e.what()).find("[model.x.weight] weight at row 1017, column 33"),
                  std::string::npos)
            << e.what();
      }
    }
  }
}

TEST(Quantize, ValuesThatF16CannotHold) {
  const std::vector<float> w = gaussian(32, 1, 1e7f);
  ThreadPool pool(1);
  std::vector<std::byte> data(16), scales(2);
  for (Method method : {Method::kPlain, Method::kSearch}) {
    try {
      Quantizer(parse_format("int4 b32 f16-scales"), 32, method)
          .quantize(w.data(), DType::kF32, 1, {data, scales, {}}, pool);
      ADD_FAILURE();
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ErrorCode::kLimit) << e.what();
    }
  }
  std::vector<std::byte> halves(64);
  EXPECT_THROW(Quantizer(parse_format("f16"), 32, Method::kPlain)
                   .quantize(w.data(), DType::kF32, 1, {halves, {}, {}}, pool),
               Error);
  EXPECT_NO_THROW(Quantizer(parse_format("bf16"), 32, Method::kPlain)
                      .quantize(w.data(), DType::kF32, 1, {halves, {}, {}}, pool));
}

TEST(Quantize, FloatFormatsAreConversions) {
  const int64_t rows = 35, columns = 9;
  const std::vector<float> w = gaussian(rows * columns, 50);
  ThreadPool pool(2);
  for (DType type : {DType::kF32, DType::kBF16, DType::kF16}) {
    std::vector<std::byte> out(w.size() * dtype_size_bytes(type)), expected(out.size());
    const ErrorStats stats = Quantizer(Format::floating(type), columns, Method::kSearch)
                                 .quantize(w.data(), DType::kF32, rows, {out, {}, {}}, pool);
    convert_elements(w.data(), DType::kF32, expected.data(), type, rows * columns);
    EXPECT_EQ(out, expected);
    EXPECT_EQ(stats.bits_per_weight(), 8.0 * static_cast<double>(dtype_size_bytes(type)));
    if (type == DType::kF32) {
      EXPECT_EQ(stats.max_error, 0);
    } else {
      EXPECT_GT(stats.relative_rms(), 1e-4);
      EXPECT_LT(stats.relative_rms(), 3e-3);
    }
  }
}

TEST(Quantize, MeasureSamplesTheWholeMatrix) {
  const int64_t rows = 1000, columns = 64;
  std::vector<float> w = gaussian(rows * columns, 60);
  for (int64_t i = 0; i < rows * columns; ++i)
    w[static_cast<size_t>(i)] *= 1.0f + static_cast<float>(i / columns) / 100.0f;
  ThreadPool pool(2);
  const Quantizer quantizer(parse_format("int4 b32"), columns, Method::kSearch);
  const Result whole = quantized("int4 b32", w, columns, Method::kSearch);
  expect_equal(quantizer.measure(w.data(), DType::kF32, rows, rows, pool), whole.stats, "all rows");
  expect_equal(quantizer.measure(w.data(), DType::kF32, rows, 1 << 20, pool), whole.stats,
               "more rows than there are");
  const ErrorStats sample = quantizer.measure(w.data(), DType::kF32, rows, 128, pool);
  EXPECT_GT(sample.count, 100 * columns);
  EXPECT_LE(sample.count, 128 * columns);
  EXPECT_NEAR(sample.relative_rms(), whole.stats.relative_rms(), 0.03 * whole.stats.relative_rms());
  EXPECT_NEAR(sample.rms_error(), whole.stats.rms_error(), 0.1 * whole.stats.rms_error());
  EXPECT_EQ(quantizer.measure(w.data(), DType::kF32, rows, 1, pool).count, 16 * columns);
  EXPECT_EQ(quantizer.measure(w.data(), DType::kF32, 0, 16, pool).count, 0);
  EXPECT_THROW(quantizer.measure(w.data(), DType::kF32, rows, 0, pool), Error);
}

TEST(Quantize, BadArgumentsAreRefused) {
  const Format int4 = parse_format("int4 b32");
  const std::vector<float> w(64, 1.0f);
  ThreadPool pool(1);
  std::vector<std::byte> data(32), scales(8);
  const Quantizer good(int4, 32, Method::kPlain);
  EXPECT_NO_THROW(good.quantize(w.data(), DType::kF32, 2, {data, scales, {}}, pool));
  EXPECT_THROW(good.quantize(w.data(), DType::kF32, 1, {data, scales, {}}, pool), Error);
  EXPECT_THROW(good.quantize(w.data(), DType::kF32, 2, {data, data, {}}, pool), Error);
  EXPECT_THROW(good.quantize(w.data(), DType::kF32, 2, {data, scales, scales}, pool), Error);
  EXPECT_THROW(good.quantize(w.data(), DType::kI8, 2, {data, scales, {}}, pool), Error);
  EXPECT_THROW(good.quantize(w.data(), DType::kF32, -1, {data, scales, {}}, pool), Error);
  EXPECT_EQ(good.quantize(nullptr, DType::kF32, 0, {}, pool).count, 0);
  EXPECT_THROW(Quantizer(int4, 0, Method::kPlain), Error);
  EXPECT_THROW(Quantizer(Format::blocks(3, 32), 32, Method::kPlain), Error);
  EXPECT_THROW(Quantizer(int4, 32, Method::kSearch, std::vector<float>(31, 1.0f)), Error);
  EXPECT_THROW(Quantizer(int4, 2, Method::kSearch, std::vector<float>{1, -1}), Error);
  EXPECT_THROW(
      Quantizer(int4, 1, Method::kSearch, std::vector<float>{std::numeric_limits<float>::quiet_NaN()}),
      Error);
}

}  // namespace
}  // namespace qvl::quant
