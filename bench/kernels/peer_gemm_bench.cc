// Matrix products of the released 4B model beside those of oneDNN and ONNX Runtime, in turns: float32, rows of int8,
// and blocks of int4. Every result is checked first. GOPS are medians; in brackets how many times faster qvl is (below
// 1: slower). Times are CPU seconds of the calling thread with one thread, wall clock with more.
//
//   peer_gemm_bench [--threads N] [--only SUBSTRING] [--repeat N]
//
// What is inside a measured call: qvl rounds bf16 activations to int8, packs the weight, multiplies, scales, and rounds
// to bf16 (float32: packs and multiplies). ONNX Runtime does the same from float32 to float32, its weight packed at
// load. oneDNN multiplies integers that are there (uint8 x int8 to int32), its weight packed ahead: less work.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "qvl/base/error.h"
#include "qvl/base/tensor.h"
#include "qvl/base/thread_pool.h"
#include "qvl/kernels/machine_limits.h"
#include "qvl/kernels/ops.h"
#include "qvl/kernels/table.h"
#include "qvl/quant/format.h"
#ifdef QVL_BENCH_ONEDNN
#include "onednn_matmul.h"
#endif
#ifdef QVL_BENCH_ONNXRUNTIME
#include "onnxruntime_matmul.h"
#endif

namespace qvl::bench {
namespace {

using kernels::LinearPath;
using kernels::Weight;

struct Options {
  std::string only;
  int threads = 1;
  int repeat = 5;
};

struct Contender {
  std::string name;
  std::function<void()> run;
  std::vector<double> seconds = {};
};

// Seeded random float32 of about unit size / codes of a format.
Tensor random_floats(Shape shape, uint32_t seed, float scale) {
  Tensor t(DType::kF32, std::move(shape));
  std::mt19937 rng(seed);
  std::uniform_real_distribution<float> draw(-scale, scale);
  for (float& v : t.as<float>()) v = round_to_bf16(draw(rng));
  return t;
}

struct Layer {
  Layer(const quant::Format& f, int64_t n, int64_t k) {
    weight.out = n;
    weight.in = k;
    weight.format = f;
    if (f.kind == quant::Kind::kFloat) {
      floats = random_floats({n, k}, 2, 0.05f);
      weight.data = floats.data();
      weight.dtype = DType::kF32;
      return;
    }
    data = AlignedBuffer(f.data_bytes(n, k));
    scales = AlignedBuffer(f.scale_bytes(n, k));
    std::mt19937 rng(3);
    for (size_t i = 0; i < data.size_bytes(); ++i) {
      const auto byte = static_cast<uint8_t>(rng());
      data.data()[i] = std::byte{f.kind == quant::Kind::kRow8 ? std::max<uint8_t>(byte, 1) : byte};
    }
    std::vector<float> s(scales.size_bytes() / dtype_size_bytes(f.scale_type));
    for (float& v : s) v = round_to_bf16(1e-3f * static_cast<float>(1 + rng() % 8));
    convert_elements(s.data(), DType::kF32, scales.data(), f.scale_type, static_cast<int64_t>(s.size()));
    weight.data = data.data();
    weight.scales = scales.data();
  }

  // (q - zero point) * scale, the format's zero point.
  double value(int64_t row, int64_t column) const {
    const quant::Format& f = weight.format;
    if (f.kind == quant::Kind::kFloat) return floats.as<float>()[static_cast<size_t>(row * weight.in + column)];
    float scale = 0;
    const int64_t blocks = f.block_count(weight.in), block = f.kind == quant::Kind::kRow8 ? 0 : column / f.block;
    const int64_t size = static_cast<int64_t>(dtype_size_bytes(f.scale_type));
    convert_elements(scales.data() + (row * blocks + block) * size, f.scale_type, &scale, DType::kF32, 1);
    const int64_t index = f.kind == quant::Kind::kRow8 ? row * weight.in + column : row * blocks * f.block + column;
    if (f.bits == 8) return (std::to_integer<int>(data.data()[index]) - 128) * static_cast<double>(scale);
    const int pair = std::to_integer<int>(data.data()[index / 2]);
    return ((index % 2 ? pair >> 4 : pair & 15) - 8) * static_cast<double>(scale);
  }

  Weight weight;
  Tensor floats;
  AlignedBuffer data, scales;
};

class Bench {
 public:
  explicit Bench(const Options& options) : options_(options), pool_(options.threads) {
    const std::string table(kernels::table_name(kernels::active_table()));
    std::printf("table %s, %d thread%s, median of %d\n", table.c_str(), options.threads,
                options.threads == 1 ? "" : "s", options.repeat);
#ifdef QVL_BENCH_ONEDNN
    set_onednn_threads(options.threads);
#else
    std::printf("built without oneDNN (libdnnl-dev)\n");
#endif
#ifndef QVL_BENCH_ONNXRUNTIME
    std::printf("built without ONNX Runtime\n");
#endif
  }

  bool failed() const { return failed_; }

  void product(const char* name, const quant::Format& format, int64_t m, int64_t k, int64_t n) {
    const bool is_float = format.kind == quant::Kind::kFloat;
    const std::string title = format.name() + " " + name + " [" + std::to_string(m) + "," + std::to_string(k) + "]x[" +
                              std::to_string(k) + "," + std::to_string(n) + "]";
    if (!options_.only.empty() && title.find(options_.only) == std::string::npos) return;
    const Layer layer(format, n, k);
    const Tensor x = random_floats({m, k}, 1, 1.0f);
    std::vector<Contender> contenders;

    const Tensor own_x = x.to(is_float ? DType::kF32 : DType::kBF16);
    Tensor own_y(own_x.dtype(), {m, n});
    contenders.push_back({"qvl", [&] {
      kernels::linear({&pool_, &kernels::active_table()}, m == 1 ? LinearPath::kGemv : LinearPath::kGemm,
                      {own_x.data(), own_x.dtype(), m, k, k}, layer.weight, kernels::Activation::kNone, {},
                      {own_y.data(), own_y.dtype(), m, n, n});
    }});
    contenders.back().run();
    check(title, "qvl", x, layer, own_y.to(DType::kF32));

#ifdef QVL_BENCH_ONEDNN
    std::optional<OnednnMatmul> onednn;
    Tensor onednn_x, onednn_y;
    add_onednn(title, x, layer, contenders, onednn, onednn_x, onednn_y);
#endif
#ifdef QVL_BENCH_ONNXRUNTIME
    OnnxruntimeMatmul onnxruntime(layer.weight, options_.threads);
    Tensor onnxruntime_y(DType::kF32, {m, n});
    contenders.push_back({onnxruntime.name(), [&] {
      onnxruntime.run(static_cast<const float*>(x.data()), m, static_cast<float*>(onnxruntime_y.data()));
    }});
    contenders.back().run();
    check(title, contenders.back().name, x, layer, onnxruntime_y);
#endif
    for (int i = 0; i < options_.repeat; ++i) {
      for (Contender& c : contenders) {
        const double start = now();
        c.run();
        c.seconds.push_back(now() - start);
      }
    }
    print(title, 2.0 * static_cast<double>(m) * static_cast<double>(k) * static_cast<double>(n), contenders);
  }

 private:
#ifdef QVL_BENCH_ONEDNN
  void add_onednn(const std::string& title, const Tensor& x, const Layer& layer, std::vector<Contender>& contenders,
                  std::optional<OnednnMatmul>& matmul, Tensor& in, Tensor& out) {
    const int64_t m = x.dim(0), k = x.dim(1), n = layer.weight.out;
    if (layer.weight.format.kind == quant::Kind::kFloat) {
      matmul.emplace(DType::kF32, m, n, k, layer.weight.data);
      in = x.copy();
      out = Tensor(DType::kF32, {m, n});
      matmul->run(in.data(), out.data());
      check(title, "oneDNN", x, layer, out);
      contenders.push_back({"oneDNN", [&] { matmul->run(in.data(), out.data()); }});
      return;
    }
    // Weights of 4 bits have no product of their own in this version: the integers that they stand for, in 8.
    std::vector<int8_t> w(static_cast<size_t>(n * k));
    std::mt19937 rng(4);
    for (int8_t& v : w) v = static_cast<int8_t>(static_cast<int>(rng() % 16) - 8);
    in = Tensor(DType::kU8, {m, k});
    for (uint8_t& v : in.as<uint8_t>()) v = static_cast<uint8_t>(rng());
    out = Tensor(DType::kI32, {m, n});
    matmul.emplace(m, n, k, w.data());
    matmul->run(in.data(), out.data());
    for (int i = 0; i < 64; ++i) {
      const auto row = static_cast<int64_t>(rng() % static_cast<uint32_t>(m));
      const auto column = static_cast<int64_t>(rng() % static_cast<uint32_t>(n));
      const auto code = [&](int64_t j) { return int64_t{in.as<uint8_t>()[static_cast<size_t>(row * k + j)]}; };
      int64_t sum = 0;
      for (int64_t j = 0; j < k; ++j) sum += code(j) * w[static_cast<size_t>(column * k + j)];
      if (out.as<int32_t>()[static_cast<size_t>(row * n + column)] != sum) return wrong(title, "oneDNN", row, column);
    }
    contenders.push_back({"oneDNN u8*s8", [&] { matmul->run(in.data(), out.data()); }});
  }
#endif

  void wrong(const std::string& title, const std::string& who, int64_t row, int64_t column) {
    std::printf("%s: %s WRONG at [%lld, %lld]\n", title.c_str(), who.c_str(), static_cast<long long>(row),
                static_cast<long long>(column));
    failed_ = true;
  }

  // Samples of y [m, n] against sums in double. Rounding x to int8 leaves an error of about 1 % of the root of the sum
  // of squares, float32 one of 1e-6.
  void check(const std::string& title, const std::string& who, const Tensor& x, const Layer& layer, const Tensor& y) {
    const int64_t m = x.dim(0), k = x.dim(1), n = layer.weight.out;
    const bool is_float = layer.weight.format.kind == quant::Kind::kFloat;
    const double tolerance = is_float ? 1e-4 : 0.05;
    std::mt19937 rng(9);
    for (int i = 0; i < 64; ++i) {
      const int64_t row = i < 2 ? i * (m - 1) : static_cast<int64_t>(rng() % static_cast<uint32_t>(m));
      const int64_t column = i < 4 ? (i % 2) * (n - 1) : static_cast<int64_t>(rng() % static_cast<uint32_t>(n));
      double sum = 0, squares = 0;
      for (int64_t j = 0; j < k; ++j) {
        const double term = x.as<float>()[static_cast<size_t>(row * k + j)] * layer.value(column, j);
        sum += term;
        squares += term * term;
      }
      const double got = y.as<float>()[static_cast<size_t>(row * n + column)];
      const double rounding = is_float ? 0 : 0.01 * std::abs(sum);  // of y to bf16
      if (!(std::abs(got - sum) <= tolerance * std::sqrt(squares) + rounding)) return wrong(title, who, row, column);
    }
  }

  double now() const {
    if (options_.threads == 1) return kernels::thread_cpu_seconds();
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
  }

  static double median(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    return values[values.size() / 2];
  }

  static void print(const std::string& title, double operations, const std::vector<Contender>& contenders) {
    std::printf("%-62s", title.c_str());
    const double own = median(contenders.front().seconds);
    for (const Contender& c : contenders) {
      const double theirs = median(c.seconds);
      std::printf("  %s %.1f", c.name.c_str(), operations / theirs * 1e-9);
      if (&c != &contenders.front()) std::printf(" (%.2f)", theirs / own);
    }
    std::printf("  GOPS\n");
    std::fflush(stdout);
  }

  Options options_;
  ThreadPool pool_;
  bool failed_ = false;
};

Options parse(int argc, char** argv) {
  Options o;
  for (int i = 1; i < argc; i += 2) {
    const std::string arg = argv[i];
    if (i + 1 >= argc) fail(ErrorCode::kInvalidArgument, "peer_gemm_bench", arg, "a value after it", "nothing");
    const std::string value = argv[i + 1];
    if (arg == "--threads") {
      o.threads = std::stoi(value);
    } else if (arg == "--only") {
      o.only = value;
    } else if (arg == "--repeat") {
      o.repeat = std::stoi(value);
    } else {
      fail(ErrorCode::kInvalidArgument, "peer_gemm_bench", "option", "--threads, --only or --repeat", arg);
    }
  }
  if (o.threads < 1 || o.repeat < 1) {
    fail(ErrorCode::kInvalidArgument, "peer_gemm_bench", "--threads and --repeat", "at least 1", "less");
  }
  return o;
}

int run(int argc, char** argv) {
  Bench bench(parse(argc, argv));
  const quant::Format f32 = quant::Format::floating(DType::kF32), int8 = quant::Format::row8(),
                      int4 = quant::Format::blocks(4, 32, false, DType::kBF16);
  for (const quant::Format& f : {int8, f32}) {
    bench.product("vision qkv", f, 3072, 1024, 3072);
    bench.product("vision fc1", f, 3072, 1024, 4096);
    bench.product("vision fc2", f, 3072, 4096, 1024);
  }
  for (const quant::Format& f : {int4, int8, f32}) {
    bench.product("prefill q", f, 512, 2560, 4096);
    bench.product("prefill gate", f, 512, 2560, 9728);
    bench.product("prefill down", f, 512, 9728, 2560);
  }
  bench.product("short prompt down", int4, 16, 9728, 2560);
  bench.product("decode logits", int4, 1, 2560, 151936);
  return bench.failed() ? 1 : 0;
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
