// Linear layers at the shapes of the released models: each result is checked against double sums first, then
// timed as the median and the best of several runs. Many rows print GFLOPS and the share of the processor's
// arithmetic peak, one row prints GB/s of weights and the share of the read bandwidth, both measured around
// each case by the same threads. Times are CPU seconds with one thread (run pinned: taskset -c 0), which a
// busy machine disturbs least; wall clock with more.
//
//   linear_bench [--table NAME] [--threads N] [--only SUBSTRING] [--repeat N]
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
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

namespace qvl::bench {
namespace {

using namespace kernels;

struct Options {
  std::string table;
  std::string only;
  int threads = 1;
  int repeat = 7;
};

double elapsed(int threads) {
  if (threads == 1) return thread_cpu_seconds();
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

struct Timing {
  double median, best;
};

Timing summarize(std::vector<double> seconds) {
  std::sort(seconds.begin(), seconds.end());
  return {seconds[seconds.size() / 2], seconds.front()};
}

// Random codes and scales in a format of integers.
struct IntegerTensor {
  IntegerTensor(const quant::Format& f, int64_t n, int64_t k, uint32_t seed)
      : format(f), out(n), in(k), data(f.data_bytes(n, k)), scales(f.scale_bytes(n, k)) {
    std::mt19937 rng(seed);
    if (f.kind == quant::Kind::kRow8) {
      // As rows of normally distributed weights are stored. The kernels for AVX2 go by the values (int8_wide_avx2.h).
      std::normal_distribution<float> normal;
      std::vector<float> row(static_cast<size_t>(k));
      for (int64_t r = 0; r < n; ++r) {
        float largest = 0;
        for (float& v : row) largest = std::max(largest, std::abs(v = normal(rng)));
        for (int64_t i = 0; i < k; ++i) {
          data.data()[r * k + i] =
              static_cast<std::byte>(128 + std::lrint(row[static_cast<size_t>(i)] * 127 / largest));
        }
      }
    } else {
      std::byte* bytes = data.data();
      for (size_t i = 0; i < data.size_bytes(); i += 4) {
        const uint32_t v = static_cast<uint32_t>(rng());
        std::memcpy(bytes + i, &v, std::min<size_t>(4, data.size_bytes() - i));
      }
    }
    std::vector<float> s(f.scale_bytes(n, k) / dtype_size_bytes(f.scale_type));
    for (float& v : s) v = round_to_bf16(1e-3f * static_cast<float>(1 + rng() % 8));
    convert_elements(s.data(), DType::kF32, scales.data(), f.scale_type, static_cast<int64_t>(s.size()));
  }
  IntegerTensor(const IntegerTensor& other)
      : format(other.format), out(other.out), in(other.in), data(other.data.size_bytes()), scales(other.scales.size_bytes()) {
    std::memcpy(data.data(), other.data.data(), data.size_bytes());
    std::memcpy(scales.data(), other.scales.data(), scales.size_bytes());
  }
  Weight view() const {
    Weight w;
    w.data = data.data();
    w.out = out;
    w.in = in;
    w.format = format;
    w.scales = scales.data();
    w.activation_bits = activation_bits;
    return w;
  }
  double bytes() const { return static_cast<double>(data.size_bytes() + scales.size_bytes()); }

  quant::Format format;
  int64_t out, in;
  AlignedBuffer data, scales;
  int activation_bits = 8;
};

// Cheap and good enough: small numbers of both signs, bfloat16-representable.
Tensor random_tensor(DType dtype, Shape shape, uint32_t seed, float scale) {
  Tensor t(DType::kF32, std::move(shape));
  uint32_t state = seed * 2654435761u + 1;
  for (float& v : t.as<float>()) {
    state = state * 1664525u + 1013904223u;
    v = round_to_bf16((static_cast<float>(state >> 8) / 8388608.0f - 1.0f) * scale);
  }
  return t.to(dtype);
}

float element(const Tensor& t, int64_t i) {
  if (t.dtype() == DType::kF32) return t.as<float>()[static_cast<size_t>(i)];
  if (t.dtype() == DType::kBF16) return to_float(t.as<BFloat16>()[static_cast<size_t>(i)]);
  return to_float(t.as<Float16>()[static_cast<size_t>(i)]);
}

double dot(const Tensor& x, int64_t r, const Tensor& w, int64_t n, int64_t k) {
  double sum = 0;
  for (int64_t i = 0; i < k; ++i) sum += static_cast<double>(element(x, r * k + i)) * element(w, n * k + i);
  return sum;
}

class Bench {
 public:
  explicit Bench(const Options& options)
      : options_(options),
        pool_(options.threads),
        table_(options.table.empty() ? active_table() : table_by_name(options.table)) {
    std::printf("table %s, %d thread%s\n", std::string(table_.name).c_str(), options.threads,
                options.threads == 1 ? "" : "s");
    std::printf("peaks of one thread: FMA %.1f GFLOPS, VDPBF16PS %.1f GFLOPS\n", peak_fma_gflops(table_.name),
                peak_bf16_dot_gflops());
  }

  int failures() const { return failures_; }

  void gemm(const char* name, DType x_type, DType w_type, int64_t m, int64_t k, int64_t n,
            bool swiglu = false) {
    const std::string title = label("gemm", name, x_type, w_type, m, k, n);
    if (!wanted(title)) return;
    const Tensor x = random_tensor(x_type, {m, k}, 1, 1.0f);
    const Tensor w = random_tensor(w_type, {n, k}, 2, 0.05f),
                 up = random_tensor(w_type, {swiglu ? n : 0, k}, 3, 0.05f);
    Tensor y(x_type, {m, n});
    const auto call = [&] { run(LinearPath::kGemm, x, w, swiglu ? &up : nullptr, y); };
    call();
    check(title, x, w, swiglu ? &up : nullptr, y);
    const bool dot_kernel = table_.name == "avx512bf16" && x_type == DType::kBF16;
    const auto peak = [&] {
      return (dot_kernel ? peak_bf16_dot_gflops() : peak_fma_gflops(table_.name)) * options_.threads;
    };
    const double flops = 2.0 * static_cast<double>(m) * k * n * (swiglu ? 2 : 1);
    double limit = peak();
    const Timing seconds = time(call);
    limit = std::max(limit, peak());
    std::printf("%-58s %7.1f (best %7.1f) GFLOPS  %5.1f %% (%5.1f %%) of %.1f", title.c_str(),
                flops / seconds.median * 1e-9, flops / seconds.best * 1e-9,
                100 * flops / seconds.median * 1e-9 / limit, 100 * flops / seconds.best * 1e-9 / limit,
                limit);
#ifdef QVL_BENCH_ONEDNN
    if (!swiglu && x_type == w_type && options_.threads == 1) {
      try {
        OnednnMatmul other(x_type, m, n, k, w.data());
        Tensor y2(x_type, {m, n});
        const Timing theirs = time([&] { other.run(x.data(), y2.data()); });
        std::printf("   oneDNN %.1f (best %.1f)", flops / theirs.median * 1e-9, flops / theirs.best * 1e-9);
      } catch (const Error& e) {
        if (e.code() != ErrorCode::kUnsupported) throw;
        std::printf("   %s", e.what());
      }
    }
#endif
    std::printf("\n");
    std::fflush(stdout);
  }

  // Weights of about 1 GB in total, so that no cache holds them from one pass to the next.
  void gemv(const char* name, DType x_type, DType w_type, int64_t m, int64_t k, int64_t n,
            bool swiglu = false) {
    const std::string title = label("gemv", name, x_type, w_type, m, k, n);
    if (!wanted(title)) return;
    const double bytes =
        static_cast<double>(n) * k * static_cast<double>(dtype_size_bytes(w_type)) * (swiglu ? 2 : 1);
    const int64_t copies = std::max<int64_t>(1, static_cast<int64_t>(1.0e9 / bytes));
    const Tensor x = random_tensor(x_type, {m, k}, 1, 1.0f);
    std::vector<Tensor> w, up;
    for (int64_t i = 0; i < copies; ++i) {
      w.push_back(i == 0 ? random_tensor(w_type, {n, k}, 2, 0.05f) : w[0].copy());
      if (swiglu) up.push_back(i == 0 ? random_tensor(w_type, {n, k}, 3, 0.05f) : up[0].copy());
    }
    Tensor y(x_type, {m, n});
    run(LinearPath::kGemv, x, w[0], swiglu ? &up[0] : nullptr, y);
    check(title, x, w[0], swiglu ? &up[0] : nullptr, y);
    double limit = read_bandwidth();
    const Timing seconds = time([&] {
      for (size_t i = 0; i < w.size(); ++i) run(LinearPath::kGemv, x, w[i], swiglu ? &up[i] : nullptr, y);
    });
    limit = std::max(limit, read_bandwidth());
    print_bandwidth(title, bytes * static_cast<double>(copies), seconds, limit);
  }

  // Integer weights, activations rounded to int8 or to codes of 7 bits; `swiglu` with a second weight.
  void int8_gemm(const char* name, const quant::Format& format, int64_t m, int64_t k, int64_t n, bool swiglu = false,
                 int activation_bits = 8) {
    const std::string title =
        int8_label(activation_bits == 7 ? "gemm x7" : "gemm", name, format, m, k, n);
    if (!wanted(title)) return;
    const Tensor x = random_tensor(DType::kBF16, {m, k}, 1, 1.0f);
    IntegerTensor w(format, n, k, 2), up(format, swiglu ? n : 32, k, 3);
    w.activation_bits = up.activation_bits = activation_bits;
    Tensor y(DType::kBF16, {m, n});
    const auto call = [&] { run_int8(LinearPath::kGemm, x, w, swiglu ? &up : nullptr, y); };
    check_int8(title, x, w);
    double limit = peak_int8_gops(table_.name) * options_.threads;
    const Timing seconds = time(call);
    limit = std::max(limit, peak_int8_gops(table_.name) * options_.threads);
    const double ops = 2.0 * static_cast<double>(m) * k * n * (swiglu ? 2 : 1);
    std::printf("%-58s %7.1f (best %7.1f) GOPS    %5.1f %% (%5.1f %%) of %.1f\n", title.c_str(),
                ops / seconds.median * 1e-9, ops / seconds.best * 1e-9, 100 * ops / seconds.median * 1e-9 / limit,
                100 * ops / seconds.best * 1e-9 / limit, limit);
    std::fflush(stdout);
  }

  void int8_gemv(const char* name, const quant::Format& format, int64_t m, int64_t k, int64_t n, bool swiglu = false) {
    const std::string title = int8_label("gemv", name, format, m, k, n);
    if (!wanted(title)) return;
    const Tensor x = random_tensor(DType::kBF16, {m, k}, 1, 1.0f);
    std::vector<IntegerTensor> w, up;
    w.emplace_back(format, n, k, 2);
    up.emplace_back(format, swiglu ? n : 32, k, 3);
    const double bytes = w[0].bytes() * (swiglu ? 2 : 1);
    const int64_t copies = std::max<int64_t>(1, static_cast<int64_t>(1.0e9 / bytes));
    w.reserve(static_cast<size_t>(copies));
    up.reserve(static_cast<size_t>(copies));
    while (static_cast<int64_t>(w.size()) < copies) {
      w.push_back(w[0]);
      up.push_back(up[0]);
    }
    Tensor y(DType::kBF16, {m, n});
    check_int8(title, x, w[0]);
    double limit = read_bandwidth();
    const Timing seconds = time([&] {
      for (size_t i = 0; i < w.size(); ++i) run_int8(LinearPath::kGemv, x, w[i], swiglu ? &up[i] : nullptr, y);
    });
    limit = std::max(limit, read_bandwidth());
    print_bandwidth(title, bytes * static_cast<double>(copies), seconds, limit);
  }

 private:
  static void print_bandwidth(const std::string& title, double bytes, const Timing& seconds, double limit) {
    const double median = bytes / seconds.median * 1e-9, best = bytes / seconds.best * 1e-9;
    std::printf("%-58s %7.2f (best %7.2f) GB/s    %5.1f %% (%5.1f %%) of %.2f\n", title.c_str(), median, best,
                100 * median / limit, 100 * best / limit, limit);
    std::fflush(stdout);
  }

  static std::string int8_label(const char* path, const char* name, const quant::Format& format, int64_t m, int64_t k,
                                int64_t n) {
    return std::string(path) + " " + name + " " + format.name() + " [" + std::to_string(m) + "," + std::to_string(k) +
           "]x[" + std::to_string(k) + "," + std::to_string(n) + "]";
  }

  void run_int8(LinearPath path, const Tensor& x, const IntegerTensor& w, const IntegerTensor* up, Tensor& y) {
    const Context ctx{&pool_, &table_};
    const int64_t m = x.dim(0), k = x.dim(1), n = w.out;
    const ConstMatrix xs{x.data(), x.dtype(), m, k, k};
    const Matrix ys{y.data(), y.dtype(), m, n, n};
    if (up == nullptr) {
      linear(ctx, path, xs, w.view(), Activation::kNone, {}, ys);
    } else {
      linear_swiglu(ctx, path, xs, w.view(), up->view(), ys);
    }
  }

  // Against the float product of the same weights: what rounding x to int8 may change.
  void check_int8(const std::string& title, const Tensor& x, const IntegerTensor& w) {
    const int64_t m = std::min<int64_t>(x.dim(0), 8), n = std::min<int64_t>(w.out, 64);
    const Context ctx{&pool_, &table_};
    const ConstMatrix xs{x.data(), x.dtype(), m, w.in, w.in};
    Weight some = w.view();
    some.out = n;
    Tensor rounded(DType::kBF16, {m, n}), exact(DType::kBF16, {m, n});
    for (LinearPath path : {LinearPath::kGemm, LinearPath::kGemv}) {
      some.int8_activations = true;
      linear(ctx, path, xs, some, Activation::kNone, {}, {rounded.data(), DType::kBF16, m, n, n});
      some.int8_activations = false;
      linear(ctx, path, xs, some, Activation::kNone, {}, {exact.data(), DType::kBF16, m, n, n});
      double difference = 0, size = 0;
      for (int64_t i = 0; i < m * n; ++i) {
        difference += std::pow(element(rounded, i) - element(exact, i), 2);
        size += std::pow(element(exact, i), 2);
      }
      if (!(difference <= 4e-4 * size)) {
        std::printf("%s: WRONG, relative error %g\n", title.c_str(), std::sqrt(difference / size));
        ++failures_;
      }
    }
  }

  static std::string label(const char* path, const char* name, DType x, DType w, int64_t m, int64_t k,
                           int64_t n) {
    return std::string(path) + " " + name + " " + std::string(dtype_name(x)) + "x" +
           std::string(dtype_name(w)) + " [" + std::to_string(m) + "," + std::to_string(k) + "]x[" +
           std::to_string(k) + "," + std::to_string(n) + "]";
  }

  bool wanted(const std::string& title) const {
    return options_.only.empty() || title.find(options_.only) != std::string::npos;
  }

  void run(LinearPath path, const Tensor& x, const Tensor& w, const Tensor* up, Tensor& y) {
    const Context ctx{&pool_, &table_};
    const int64_t m = x.dim(0), k = x.dim(1), n = w.dim(0);
    const ConstMatrix xs{x.data(), x.dtype(), m, k, k};
    const Matrix ys{y.data(), y.dtype(), m, n, n};
    const Weight weight{w.data(), w.dtype(), n, k, nullptr};
    if (up == nullptr) {
      linear(ctx, path, xs, weight, Activation::kNone, {}, ys);
    } else {
      linear_swiglu(ctx, path, xs, weight, {up->data(), up->dtype(), n, k, nullptr}, ys);
    }
  }

  // Samples of the result, the corners among them, against double.
  void check(const std::string& title, const Tensor& x, const Tensor& w, const Tensor* up, const Tensor& y) {
    const int64_t m = x.dim(0), k = x.dim(1), n = w.dim(0);
    std::mt19937 rng(9);
    for (int i = 0; i < 64; ++i) {
      const int64_t r = i < 2 ? i * (m - 1) : static_cast<int64_t>(rng() % m);
      const int64_t c = i < 4 ? (i % 2) * (n - 1) : static_cast<int64_t>(rng() % n);
      double want = dot(x, r, w, c, k);
      if (up != nullptr) want = want / (1 + std::exp(-want)) * dot(x, r, *up, c, k);
      const double got = element(y, r * n + c);
      const double tolerance = (y.dtype() == DType::kBF16 ? 0.02 : 2e-5) * (std::abs(want) + 1);
      if (!(std::abs(got - want) <= tolerance)) {
        std::printf("%s: WRONG at [%lld, %lld]: %g, expected %g\n", title.c_str(), static_cast<long long>(r),
                    static_cast<long long>(c), got, want);
        ++failures_;
        return;
      }
    }
  }

  Timing time(const std::function<void()>& fn) {
    std::vector<double> seconds;
    fn();
    for (int i = 0; i < options_.repeat; ++i) {
      const double start = elapsed(options_.threads);
      fn();
      seconds.push_back(elapsed(options_.threads) - start);
    }
    return summarize(std::move(seconds));
  }

  // GB/s of all threads that sum one large buffer.
  double read_bandwidth() {
    constexpr size_t kBytes = size_t{1} << 30;
    if (read_buffer_.size_bytes() == 0) {
      read_buffer_ = AlignedBuffer(kBytes);
      std::memset(read_buffer_.data(), 1, kBytes);
    }
    ReadRate limit;
    measure_read_limit({read_buffer_.data(), read_buffer_.size_bytes()}, pool_, 3, limit);
    return limit.bytes_per_second * 1e-9;
  }

  Options options_;
  ThreadPool pool_;
  const KernelTable& table_;
  AlignedBuffer read_buffer_;
  int failures_ = 0;
};

Options parse(int argc, char** argv) {
  Options o;
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i];
    if (i + 1 >= argc) fail(ErrorCode::kInvalidArgument, "linear_bench", arg, "a value after it", "nothing");
    const std::string value = argv[++i];
    if (arg == "--table") {
      o.table = value;
    } else if (arg == "--threads") {
      o.threads = std::stoi(value);
    } else if (arg == "--only") {
      o.only = value;
    } else if (arg == "--repeat") {
      o.repeat = std::stoi(value);
    } else {
      fail(ErrorCode::kInvalidArgument, "linear_bench", "option", "--table, --threads, --only or --repeat",
           arg);
    }
  }
  return o;
}

int main_checked(int argc, char** argv) {
  Bench bench(parse(argc, argv));
  constexpr DType kF32 = DType::kF32, kBF16 = DType::kBF16, kF16 = DType::kF16;
  struct Pair {
    DType x, w;
  };
  for (const Pair& t : {Pair{kBF16, kBF16}, Pair{kF32, kF32}, Pair{kF32, kBF16}}) {
    bench.gemm("patch embed", t.x, t.w, 3072, 1536, 1024);
    bench.gemm("vision qkv", t.x, t.w, 3072, 1024, 3072);
    bench.gemm("vision proj", t.x, t.w, 3072, 1024, 1024);
    bench.gemm("vision fc1", t.x, t.w, 3072, 1024, 4096);
    bench.gemm("vision fc2", t.x, t.w, 3072, 4096, 1024);
    bench.gemm("merger fc1", t.x, t.w, 768, 4096, 4096);
    bench.gemm("merger fc2", t.x, t.w, 768, 4096, 2560);
    bench.gemm("prefill q", t.x, t.w, 512, 2560, 4096);
    bench.gemm("prefill kv", t.x, t.w, 512, 2560, 1024);
    bench.gemm("prefill swiglu", t.x, t.w, 512, 2560, 9728, true);
    bench.gemm("prefill down", t.x, t.w, 512, 9728, 2560);
    bench.gemm("short prompt down", t.x, t.w, 32, 9728, 2560);
  }
  for (const quant::Format& f : {quant::Format::blocks(4, 32, false, DType::kBF16),
                                 quant::Format::blocks(4, 128, false, DType::kBF16),
                                 quant::Format::blocks(8, 32, false, DType::kBF16)}) {
    bench.int8_gemm("prefill q", f, 512, 2560, 4096);
    bench.int8_gemm("prefill kv", f, 512, 2560, 1024);
    bench.int8_gemm("prefill swiglu", f, 512, 2560, 9728, true);
    bench.int8_gemm("prefill down", f, 512, 9728, 2560);
    bench.int8_gemm("short prompt down", f, 15, 9728, 2560);
    bench.int8_gemv("decode q", f, 1, 2560, 4096);
    bench.int8_gemv("decode kv", f, 1, 2560, 1024);
    bench.int8_gemv("decode swiglu", f, 1, 2560, 9728, true);
    bench.int8_gemv("decode down", f, 1, 9728, 2560);
    bench.int8_gemv("decode logits", f, 1, 2560, 151936);
  }
  const quant::Format row8 = quant::Format::row8();
  for (const int bits : {8, 7}) {
    bench.int8_gemm("vision qkv", row8, 3072, 1024, 3072, false, bits);
    bench.int8_gemm("vision proj", row8, 3072, 1024, 1024, false, bits);
    bench.int8_gemm("vision fc1", row8, 1024, 1024, 4096, false, bits);
    bench.int8_gemm("vision fc2", row8, 1024, 4096, 1024, false, bits);
    bench.int8_gemm("merger fc1", row8, 768, 4096, 4096, false, bits);
  }
  bench.gemm("vision qkv", kF32, kF16, 3072, 1024, 3072);
  for (const Pair& t : {Pair{kBF16, kBF16}, Pair{kF32, kBF16}, Pair{kF32, kF32}, Pair{kF32, kF16}}) {
    bench.gemv("decode q", t.x, t.w, 1, 2560, 4096);
    bench.gemv("decode kv", t.x, t.w, 1, 2560, 1024);
    bench.gemv("decode swiglu", t.x, t.w, 1, 2560, 9728, true);
    bench.gemv("decode down", t.x, t.w, 1, 9728, 2560);
  }
  bench.gemv("decode logits", kBF16, kBF16, 1, 2560, 151936);
  for (int64_t rows : {2, 4, 8, 16}) bench.gemv("decode q", kBF16, kBF16, rows, 2560, 4096);
  return bench.failures() == 0 ? 0 : 1;
}

}  // namespace
}  // namespace qvl::bench

int main(int argc, char** argv) {
  try {
    return qvl::bench::main_checked(argc, argv);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
}
