// Attention at the shapes of the vision encoder and the decoder: checked against the scalar kernels first,
// then timed as best of several runs, with its share of the limits measured around it. Times are CPU seconds
// with one thread (run pinned: taskset -c 0), wall clock with more.
//
//   attention_bench [--table NAME] [--threads N] [--only SUBSTRING] [--repeat N]
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "qvl/base/error.h"
#include "qvl/base/tensor.h"
#include "qvl/base/thread_pool.h"
#include "qvl/kernels/attention_kernels.h"
#include "qvl/kernels/machine_limits.h"
#include "qvl/kernels/ops.h"
#include "qvl/kernels/table.h"

namespace qvl::bench {
namespace {

using kernels::AttentionProducts;
using kernels::ConstMatrix;
using kernels::Context;
using kernels::KernelTable;
using kernels::KvView;
using kernels::LinearPath;
using kernels::Matrix;

struct Options {
  std::string table;
  std::string only;
  int threads = 1;
  int repeat = 10;
};

Tensor random_tensor(DType dtype, Shape shape, uint32_t seed) {
  Tensor t(DType::kF32, std::move(shape));
  std::mt19937 g(seed);
  std::normal_distribution<float> n;
  for (float& v : t.as<float>()) v = n(g);
  return t.to(dtype);
}

double largest_difference(const Tensor& a, const Tensor& b) {
  const Tensor x = a.to(DType::kF32), y = b.to(DType::kF32);
  double largest = 0;
  for (size_t i = 0; i < x.as<float>().size(); ++i) {
    largest = std::max(largest, static_cast<double>(std::abs(x.as<float>()[i] - y.as<float>()[i])));
    if (!std::isfinite(x.as<float>()[i])) largest = INFINITY;
  }
  return largest;
}

class Bench {
 public:
  explicit Bench(const Options& options)
      : options_(options),
        pool_(options.threads),
        table_(options.table.empty() ? kernels::active_table() : kernels::table_by_name(options.table)),
        scalar_(kernels::table_by_name("scalar")) {
    std::printf("table %s, %d thread%s\n", std::string(table_.name).c_str(), options.threads,
                options.threads == 1 ? "" : "s");
  }

  int failures() const { return failures_; }

  void full(const char* name, DType dtype, int64_t patches, int64_t heads, int64_t hd,
            AttentionProducts products = AttentionProducts::kActivations) {
    const bool int8 = products == AttentionProducts::kInt8;
    const std::string title = label("vision", name, dtype) + (int8 ? " int8" : "");
    if (!wanted(title) || (int8 && !kernels::has_int8_attention(table_))) return;
    const int64_t width = heads * hd;
    const Tensor qkv = random_tensor(dtype, {patches, 3 * width}, 1);
    const float scale = 1.0f / std::sqrt(static_cast<float>(hd));
    const auto call = [&](const KernelTable& table, int64_t rows, Tensor& out) {
      const auto part = [&](int64_t i) {
        return ConstMatrix{static_cast<const std::byte*>(qkv.data()) +
                               i * width * static_cast<int64_t>(dtype_size_bytes(dtype)),
                           dtype, rows, width, 3 * width};
      };
      const int64_t lengths[] = {rows};
      attention_full({&pool_, &table}, part(0), part(1), part(2), heads, hd, lengths, scale,
                     {out.data(), dtype, rows, width, width}, products);
    };
    const int64_t checked = std::min<int64_t>(patches, 300);
    Tensor expected(dtype, {checked, width}), got(dtype, {checked, width}), out(dtype, {patches, width});
    call(scalar_, checked, expected);
    call(table_, checked, got);
    if (!valid(title, dtype, largest_difference(expected, got))) return;
    const double flop =
        4.0 * static_cast<double>(patches) * static_cast<double>(patches) * static_cast<double>(width);
    report_flops(title, flop, dtype, [&] { call(table_, patches, out); }, int8);
  }

  void prefill(const char* name, DType dtype, int64_t rows, int64_t past, int64_t heads, int64_t kv_heads,
               int64_t hd, bool int8 = false) {
    causal(label("prefill", name, dtype, int8), LinearPath::kGemm, dtype, int8, rows, past, heads, kv_heads, hd);
  }
  void decode(const char* name, DType dtype, int64_t past, int64_t heads, int64_t kv_heads, int64_t hd,
              bool int8 = false) {
    causal(label("decode", name, dtype, int8), LinearPath::kGemv, dtype, int8, 1, past, heads, kv_heads, hd);
  }

 private:
  static std::string label(const char* kind, const char* name, DType dtype, bool int8 = false) {
    return std::string(kind) + " " + name + " " + std::string(dtype_name(dtype)) + (int8 ? " int8 cache" : "");
  }
  bool wanted(const std::string& title) const { return title.find(options_.only) != std::string::npos; }

  // Values are normal with unit variance, outputs below that: bf16 keeps 2^-8 of them.
  bool valid(const std::string& title, DType dtype, double difference) {
    const double limit = dtype == DType::kF32 ? 2e-5 : 4e-2;
    if (difference <= limit) return true;
    std::printf("%-44s WRONG: differs from the scalar kernels by %g\n", title.c_str(), difference);
    ++failures_;
    return false;
  }

  double now() const {
    if (options_.threads == 1) return kernels::thread_cpu_seconds();
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
  }

  double best_seconds(const std::function<void()>& fn) const {
    double best = INFINITY;
    for (int i = 0; i < options_.repeat; ++i) {
      const double start = now();
      fn();
      best = std::min(best, now() - start);
    }
    return best;
  }

  void report_flops(const std::string& title, double flop, DType dtype, const std::function<void()>& fn, bool int8 = false) {
    // The peak is measured before and after every run: on a shared machine it moves.
    const bool use_dot = table_.name == "avx512bf16" && dtype == DType::kBF16 &&
                         kernels::peak_bf16_dot_gflops() > kernels::peak_fma_gflops(table_.name);
    const bool codes = dtype == DType::kBF16 && table_.attention->tile_bf16.int16;
    const auto peak_now = [&] {
      const double one = int8      ? kernels::peak_int8_gops(table_.name)
                         : use_dot ? kernels::peak_bf16_dot_gflops()
                         : codes ? kernels::peak_int16_gops(table_.name)
                                 : kernels::peak_fma_gflops(table_.name);
      return one * options_.threads;
    };
    fn();
    double best = INFINITY, before = peak_now(), top = before;
    std::vector<std::pair<double, double>> shares;  // share, peak
    for (int i = 0; i < options_.repeat; ++i) {
      const double start = now();
      fn();
      const double seconds = now() - start, after = peak_now(), peak = (before + after) / 2;
      shares.push_back({peak > 0 ? flop / seconds * 1e-9 / peak : 0.0, peak});
      best = std::min(best, seconds);
      before = after;
      top = std::max(top, after);
    }
    std::sort(shares.begin(), shares.end());
    const auto [share, peak] = shares[shares.size() / 2];
    std::printf(
        "%-44s %8.1f GFLOPS, best of %d: %5.1f %% of %.0f (%s); median share %.1f %% of %.0f; %.2f ms\n",
        title.c_str(), flop / best * 1e-9, options_.repeat, top > 0 ? 100 * flop / best * 1e-9 / top : 0.0,
        top, int8 ? "int8" : use_dot ? "bf16 dot" : codes ? "int16" : "fma", 100 * share, peak, best * 1e3);
    std::fflush(stdout);
  }

  // A block of keys and values as normal as those of random_tensor().
  static AlignedBuffer random_block(const KvView& kv, uint32_t seed) {
    AlignedBuffer block(kernels::kv_block_bytes(kv));
    const int64_t rows = 2 * kv.kv_heads * kv.block_tokens;
    if (kv.dtype != DType::kI8) {
      const Tensor t = random_tensor(kv.dtype, {rows, kv.head_dim}, seed);
      std::memcpy(block.data(), t.data(), t.size_bytes());
      return block;
    }
    std::mt19937 g(seed);
    std::normal_distribution<float> n;
    auto* codes = reinterpret_cast<int8_t*>(block.data());
    for (int64_t i = 0; i < rows * kv.head_dim; ++i)
      codes[i] = static_cast<int8_t>(std::clamp(std::nearbyint(n(g) * 42), -127.0f, 127.0f));
    float* scales = reinterpret_cast<float*>(codes + rows * kv.head_dim);
    for (int64_t i = 0; i < rows; ++i) {
      const bool key = i / kv.block_tokens % 2 == 0;
      scales[i] = 1.0f / 42 / (key ? std::sqrt(static_cast<float>(kv.head_dim)) : 1.0f);
    }
    return block;
  }

  void causal(const std::string& title, LinearPath path, DType dtype, bool int8, int64_t rows, int64_t past,
              int64_t heads, int64_t kv_heads, int64_t hd) {
    if (!wanted(title)) return;
    constexpr int64_t kBlock = 256, kLayers = 36;
    const int64_t layers = path == LinearPath::kGemv ? kLayers : 1;  // decode: as cold as in a real step
    const int64_t blocks = (past + rows + kBlock - 1) / kBlock;
    // As the engine's cache lays them out: a block of positions holds all layers.
    std::vector<AlignedBuffer> storage;
    std::vector<void*> pointers(static_cast<size_t>(layers * blocks));
    const KvView shape{nullptr, int8 ? DType::kI8 : dtype, kBlock, kv_heads, hd};
    const AlignedBuffer sample = random_block(shape, 2);
    for (int64_t b = 0; b < blocks; ++b) {
      storage.emplace_back(sample.size_bytes() * static_cast<size_t>(layers));
      std::byte* p = storage.back().data();
      for (int64_t layer = 0; layer < layers; ++layer, p += sample.size_bytes()) {
        std::memcpy(p, sample.data(), sample.size_bytes());
        pointers[static_cast<size_t>(layer * blocks + b)] = p;
      }
    }
    const Tensor q = random_tensor(dtype, {rows, heads * hd}, 4);
    Tensor expected(dtype, {rows, heads * hd}), got(dtype, {rows, heads * hd});
    const float scale = 1.0f / std::sqrt(static_cast<float>(hd));
    const auto call = [&](const KernelTable& table, int64_t layer, Tensor& out) {
      KvView kv = shape;
      kv.blocks = pointers.data() + layer * blocks;
      attention_causal({&pool_, &table}, path, {q.data(), dtype, rows, heads * hd, heads * hd}, kv, heads,
                       past, scale, {out.data(), dtype, rows, heads * hd, heads * hd});
    };
    call(scalar_, 0, expected);
    call(table_, 0, got);
    if (!valid(title, dtype, largest_difference(expected, got))) return;
    if (path == LinearPath::kGemm) {
      const double pairs = static_cast<double>(rows) * static_cast<double>(past) +
                           0.5 * static_cast<double>(rows) * static_cast<double>(rows + 1);
      report_flops(title, 4.0 * pairs * static_cast<double>(heads * hd), dtype,
                   [&] { call(table_, 0, got); });
      return;
    }
    const double bytes = static_cast<double>((past + rows) * layers) / kBlock *
                         static_cast<double>(kernels::kv_block_bytes(shape));
    const double limit =
        kernels::read_gb_per_s(static_cast<size_t>(std::clamp(bytes, 64e6, 600e6))) * options_.threads;
    const double seconds = best_seconds([&] {
      for (int64_t layer = 0; layer < layers; ++layer) call(table_, layer, got);
    });
    const double rate = bytes / seconds * 1e-9;
    std::printf("%-44s %8.1f GB/s    %5.1f %% of %.1f (read)  %.2f ms a token (%lld layers)\n", title.c_str(),
                rate, 100 * rate / limit, limit, seconds * 1e3, static_cast<long long>(layers));
    std::fflush(stdout);
  }

  Options options_;
  ThreadPool pool_;
  const KernelTable& table_;
  const KernelTable& scalar_;
  int failures_ = 0;
};

int run(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (i + 1 >= argc)
      fail(ErrorCode::kInvalidArgument, "attention_bench", "option '" + name + "' without a value");
    const std::string value = argv[++i];
    if (name == "--table") {
      options.table = value;
    } else if (name == "--only") {
      options.only = value;
    } else if (name == "--threads") {
      options.threads = std::stoi(value);
    } else if (name == "--repeat") {
      options.repeat = std::stoi(value);
    } else {
      fail(ErrorCode::kInvalidArgument, "attention_bench", "unknown option '" + name + "'");
    }
  }
  Bench bench(options);
  for (DType dtype : {DType::kBF16, DType::kF32}) {
    // 1024 x 768; the models have 16 such heads, two are enough for a rate and short enough for a quiet
    // moment.
    bench.full("3072 x 2 x 64", dtype, 3072, 2, 64);
    bench.full("3072 x 2 x 72", dtype, 3072, 2, 72);
    bench.full("400 x 16 x 64", dtype, 400, 16, 64);
    if (dtype == DType::kBF16) {
      bench.full("3072 x 2 x 64", dtype, 3072, 2, 64, AttentionProducts::kInt8);
      bench.full("3072 x 2 x 72", dtype, 3072, 2, 72, AttentionProducts::kInt8);
      bench.full("400 x 16 x 64", dtype, 400, 16, 64, AttentionProducts::kInt8);
    }
    bench.prefill("512 at 0, 32/8 x 128", dtype, 512, 0, 32, 8, 128);
    bench.prefill("512 at 3584, 4/1 x 128", dtype, 512, 3584, 4, 1, 128);
    bench.prefill("64 at 800, 32/8 x 128", dtype, 64, 800, 32, 8, 128);
    bench.decode("800, 32/8 x 128", dtype, 800, 32, 8, 128);
    bench.decode("4000, 32/8 x 128", dtype, 4000, 32, 8, 128);
    bench.decode("4000, 16/8 x 128", dtype, 4000, 16, 8, 128);
    bench.prefill("64 at 800, 32/8 x 128", dtype, 64, 800, 32, 8, 128, true);
    bench.prefill("512 at 3584, 4/1 x 128", dtype, 512, 3584, 4, 1, 128, true);
    bench.decode("800, 32/8 x 128", dtype, 800, 32, 8, 128, true);
    bench.decode("4000, 32/8 x 128", dtype, 4000, 32, 8, 128, true);
    bench.decode("4000, 16/8 x 128", dtype, 4000, 16, 8, 128, true);
  }
  return bench.failures() == 0 ? 0 : 1;
}

}  // namespace
}  // namespace qvl::bench

int main(int argc, char** argv) {
  try {
    return qvl::bench::run(argc, argv);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
}
