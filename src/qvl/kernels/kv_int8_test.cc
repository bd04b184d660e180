// The int8 KV cache's codes on every table that runs here: against the formula, against the scalar kernels to the bit, and
// as qk_norm_rope_append writes them.
#include "qvl/base/error.h"
#include "qvl/kernels/attention_testing.h"

namespace qvl::kernels {
namespace {

using testing::Activations;
using testing::Cache;
using testing::kUnit;
using testing::VariantTest;

const RowKernels& rows_of(const KernelTable& table, bool bf16) {
  return bf16 ? table.attention->rows_bf16 : table.attention->rows_f32;
}

// x transformed by the Hadamard matrix of its largest power of two, by the definition, in double.
std::vector<double> transformed(const std::vector<double>& x) {
  const size_t hd = x.size(), n = hd & (~hd + 1);
  std::vector<double> out(hd, 0.0);
  for (size_t i = 0; i < hd; ++i) {
    for (size_t j = i / n * n; j < i / n * n + n; ++j)
      out[i] += __builtin_popcountll((i % n) & (j % n)) % 2 ? -x[j] : x[j];
  }
  return out;
}

class KvInt8 : public VariantTest {
 protected:
  const RowKernels& kernels() { return rows_of(*context().table, bf16()); }
  const RowKernels& scalar() { return rows_of(table_by_name("scalar"), bf16()); }
};

TEST_P(KvInt8, CodesFollowTheFormulaAndAreTheSameEverywhere) {
  for (const int64_t hd : {4, 6, 12, 16, 32, 48, 64, 72, 80, 128, 256}) {
    for (const float size : {1.0f, 1e-6f, 1e20f}) {
      for (const bool key : {true, false}) {
        Activations x(dtype(), 1, hd);
        testing::fill_normal(x, static_cast<uint32_t>(hd), size);
        std::vector<double> values;
        for (int64_t d = 0; d < hd; ++d) values.push_back(x.at(0, d));
        if (key) values = transformed(values);
        double largest = 0;
        for (const double v : values) largest = std::max(largest, std::abs(v));
        const double n = key ? static_cast<double>(hd & -hd) : 1;
        std::vector<int8_t> codes(static_cast<size_t>(hd) + 1, 99), other = codes;
        const float scale = kernels().quantize_head(x.tensor.data(), hd, key, codes.data());
        ASSERT_NEAR(scale * n, largest / 127, largest / 127 * 32 * kUnit) << "head_dim " << hd;
        for (int64_t d = 0; d < hd; ++d) {
          const auto i = static_cast<size_t>(d);
          ASSERT_NEAR(codes[i], values[i] / largest * 127, 0.501) << "head_dim " << hd << " element " << d;
        }
        ASSERT_EQ(codes.back(), 99);
        ASSERT_EQ(scale, scalar().quantize_head(x.tensor.data(), hd, key, other.data()));
        ASSERT_EQ(codes, other);

        // And back: half a step of every code, spread by the transform.
        Activations back(dtype(), 1, hd), same(dtype(), 1, hd);
        kernels().dequantize_head(codes.data(), scale, hd, key, back.tensor.data());
        scalar().dequantize_head(codes.data(), scale, hd, key, same.tensor.data());
        ASSERT_TRUE(testing::same_bits(back, same));
        for (int64_t d = 0; d < hd; ++d) {
          ASSERT_NEAR(back.at(0, d), x.at(0, d), 0.502 * static_cast<double>(scale) * n + std::abs(back.at(0, d)) / 256);
        }
      }
    }
  }
}

TEST_P(KvInt8, ZerosTinyValuesAndNonFiniteOnes) {
  for (const int64_t hd : {12, 64}) {
    for (const bool key : {true, false}) {
      const auto quantize = [&](float fill, float last, std::vector<int8_t>& codes) {
        Activations x(dtype(), 1, hd);
        for (int64_t d = 0; d < hd; ++d) x.set(d, d + 1 < hd ? fill : last);
        codes.assign(static_cast<size_t>(hd), 99);
        return kernels().quantize_head(x.tensor.data(), hd, key, codes.data());
      };
      const std::vector<int8_t> none(static_cast<size_t>(hd), 0);
      std::vector<int8_t> codes;
      EXPECT_EQ(quantize(0, 0, codes), 0.0f);
      EXPECT_EQ(codes, none);
      EXPECT_EQ(quantize(1e-38f, -1e-38f, codes), 0.0f);  // 127 / largest would be infinite
      EXPECT_EQ(codes, none);
      EXPECT_GT(quantize(0, 0x1p-100f, codes), 0.0f);
      // What a cache of floats would show: nothing that sees this key is finite.
      for (const float broken : {NAN, INFINITY, -INFINITY}) {
        EXPECT_TRUE(std::isnan(quantize(1, broken, codes))) << broken;
        EXPECT_TRUE(std::isnan(quantize(broken, 1, codes))) << broken;
      }
    }
  }
}

// Channels as far from the others as norms make them: the rest of the key keeps its precision.
TEST_P(KvInt8, LargeChannelsDoNotCostTheOthersTheirPrecision) {
  const int64_t hd = 128;
  double error[2] = {0, 0};
  for (const bool key : {true, false}) {
    for (uint32_t seed = 0; seed < 20; ++seed) {
      Activations x(dtype(), 1, hd), back(dtype(), 1, hd);
      testing::fill_normal(x, seed);
      for (const int64_t d : {3, 67}) x.set(d, x.at(0, d) < 0 ? -30.0f : 30.0f);
      int8_t codes[128];
      const float scale = kernels().quantize_head(x.tensor.data(), hd, key, codes);
      kernels().dequantize_head(codes, scale, hd, key, back.tensor.data());
      for (int64_t d = 0; d < hd; ++d) {
        if (d != 3 && d != 67) error[key] += std::pow(back.at(0, d) - x.at(0, d), 2) / (126 * 20);
      }
    }
  }
  EXPECT_LT(std::sqrt(error[true]), 0.025);
  EXPECT_GT(std::sqrt(error[false]), 0.06);  // what one scale over plain channels would leave
}

TEST_P(KvInt8, AppendWritesTheCodesOfWhatAFloatCacheHolds) {
  for (const int64_t hd : {12, 32, 128}) {
    const int64_t rows = 21, heads = 4, kv_heads = 2, past = 30, half = hd / 2;
    Activations q(dtype(), rows, heads * hd), k(dtype(), rows, kv_heads * hd, 2), v(dtype(), rows, kv_heads * hd, 3);
    testing::fill_normal(q, 1);
    testing::fill_normal(k, 2);
    testing::fill_normal(v, 3);
    Activations q2 = q.copy();
    const auto norm = testing::random_floats(hd, 4, 0.2f, 1.0f, dtype());
    const std::vector<float> cos = testing::random_floats(rows * half, 5, 0.3f, 0.0f, dtype()),
                             sin = testing::random_floats(rows * half, 6, 0.3f, 0.0f, dtype());
    Cache plain(dtype(), past + rows, 16, kv_heads, hd), coded(DType::kI8, past + rows, 16, kv_heads, hd);
    const auto append = [&](Activations& queries, const Cache& cache) {
      qk_norm_rope_append(context(), queries.matrix(), k.matrix(), v.matrix(), heads, norm.data(), norm.data(), 1e-6f,
                          cos.data(), sin.data(), past, cache.view);
    };
    append(q, plain);
    append(q2, coded);
    EXPECT_TRUE(testing::same_bits(q, q2));
    for (int64_t p = 0; p < past + rows; ++p) {
      for (int64_t h = 0; h < kv_heads; ++h) {
        for (const bool key : {true, false}) {
          if (p < past) {  // untouched
            ASSERT_TRUE(std::isnan(*coded.scale(key, p, h)));
            ASSERT_EQ(coded.codes(key, p, h)[0], -1);
            continue;
          }
          Activations head(dtype(), 1, hd);
          for (int64_t d = 0; d < hd; ++d) head.set(d, plain.get(key, p, h, d));
          std::vector<int8_t> codes(static_cast<size_t>(hd));
          ASSERT_EQ(*coded.scale(key, p, h), scalar().quantize_head(head.tensor.data(), hd, key, codes.data()));
          ASSERT_EQ(std::memcmp(coded.codes(key, p, h), codes.data(), codes.size()), 0)
              << "head_dim " << hd << " position " << p << " head " << h;
        }
      }
    }
  }
}

// One row at a time, on one thread, gives the bits of all rows on three.
TEST_P(KvInt8, AppendRowsAreIndependent) {
  const int64_t rows = 40, heads = 8, kv_heads = 2, hd = 128, half = hd / 2;
  Activations q(dtype(), rows, heads * hd), k(dtype(), rows, kv_heads * hd), v(dtype(), rows, kv_heads * hd);
  testing::fill_normal(q, 10);
  testing::fill_normal(k, 11);
  testing::fill_normal(v, 12);
  Activations q2 = q.copy();
  const auto norm = testing::random_floats(hd, 9, 0.2f, 1.0f, dtype());
  const std::vector<float> angle(static_cast<size_t>(rows * half), 0.6f);
  Cache together(DType::kI8, rows, 16, kv_heads, hd), single(DType::kI8, rows, 16, kv_heads, hd);
  ThreadPool one(1), three(3);
  const KernelTable* table = context().table;
  qk_norm_rope_append({&three, table}, q.matrix(), k.matrix(), v.matrix(), heads, norm.data(), norm.data(), 1e-6f,
                      angle.data(), angle.data(), 0, together.view);
  for (int64_t r = 0; r < rows; ++r) {
    qk_norm_rope_append({&one, table}, q2.view(r, 1, 0, q.cols), k.view(r, 1, 0, k.cols), v.view(r, 1, 0, v.cols), heads,
                        norm.data(), norm.data(), 1e-6f, angle.data(), angle.data(), r, single.view);
  }
  for (size_t b = 0; b < together.blocks.size(); ++b)
    EXPECT_EQ(std::memcmp(together.blocks[b].data(), single.blocks[b].data(), single.blocks[b].size_bytes()), 0);
}

TEST_P(KvInt8, RejectsHeadsThatAreTooWide) {
  const int64_t hd = kMaxInt8HeadDim + 16;
  Cache wide(DType::kI8, 16, 16, 1, hd);
  Activations q(dtype(), 1, hd), k(dtype(), 1, hd), v(dtype(), 1, hd), out(dtype(), 1, hd);
  const std::vector<float> floats(static_cast<size_t>(hd), 1.0f);
  EXPECT_THROW(qk_norm_rope_append(context(), q.matrix(), k.matrix(), v.matrix(), 1, floats.data(), floats.data(), 1e-6f,
                                   floats.data(), floats.data(), 0, wide.view),
               Error);
  for (const LinearPath path : {LinearPath::kGemm, LinearPath::kGemv})
    EXPECT_THROW(attention_causal(context(), path, q.matrix(), wide.view, 1, 0, 0.1f, out.matrix()), Error);
}

INSTANTIATE_TEST_SUITE_P(Tables, KvInt8, ::testing::ValuesIn(testing::all_variants()), testing::variant_name);

}  // namespace
}  // namespace qvl::kernels
