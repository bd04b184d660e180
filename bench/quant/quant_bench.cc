// Speed and error of the quantisers on one thread: MB/s of bf16 input for each format, method and instruction
// set, and how much error the search leaves compared with plain rounding.
//
//   quant_bench [ROWS COLUMNS]      default 2048 2560; `taskset -c 0` keeps it on one core
//
// Data: Gaussian weights with a few outlier columns and an uneven importance. First checks that all
// instruction sets give the same bytes and that the statistics equal those of the dequantised bytes, then
// times. Time is processor time of the thread, the best of several rounds. The machine's limit beside it: the
// same matrix converted to float32 and summed.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <random>
#include <string>
#include <vector>

#include "qvl/base/error.h"
#include "qvl/base/tensor.h"
#include "qvl/quant/quantize.h"

namespace {

using namespace qvl;
using namespace qvl::quant;

double cpu_s() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
}

template <typename Fn>
double best_s(int rounds, Fn fn) {
  double best = 1e300;
  for (int i = 0; i < rounds; ++i) {
    const double start = cpu_s();
    fn();
    best = std::min(best, cpu_s() - start);
  }
  return best;
}

void run(int64_t rows, int64_t columns) {
  std::mt19937 rng(1);
  std::normal_distribution<float> normal;
  Tensor w(DType::kBF16, {rows, columns});
  std::vector<float> importance(static_cast<size_t>(columns));
  for (float& v : importance) v = std::exp(1.5f * normal(rng));
  for (int64_t i = 0; i < rows * columns; ++i) {
    const float outlier = i % columns % 97 == 5 ? 4.0f : 1.0f;
    w.as<BFloat16>()[static_cast<size_t>(i)] = to_bfloat16(0.02f * outlier * normal(rng));
  }
  const double megabytes = static_cast<double>(w.size_bytes()) * 1e-6;
  ThreadPool pool(1);
  volatile float sink = 0;
  const double read = best_s(5, [&] {
    float sum = 0;
    for (BFloat16 v : w.as<BFloat16>()) sum += to_float(v);
    sink = sum;
  });
  std::printf("%ld x %ld bf16, %.1f MB; scalar read and widen %.0f MB/s\n", static_cast<long>(rows),
              static_cast<long>(columns), megabytes, megabytes / read);
  for (const char* name : {"int4 b32", "int4 b32 bf16-scales", "int4 b64", "int4 b128", "int4 b32 zp",
                           "int4 b128 zp", "int8 b32", "int8 b32 zp", "int8 row"}) {
    const Format format = parse_format(name);
    QuantizedMatrix out(format, rows, columns);
    double plain_error = 0;
    for (Method method : {Method::kPlain, Method::kSearch}) {
      std::vector<std::byte> expected;
      std::printf("%-22s %-6s", name, std::string(method_name(method)).c_str());
      for (Isa isa : available_isas()) {
        const Quantizer quantizer(format, columns, method, importance, name, isa);
        ErrorStats stats;
        const double s = best_s(isa == Isa::kPortable ? 1 : 5, [&] {
          stats = quantizer.quantize(w.data(), w.dtype(), rows, out.span(), pool);
        });
        std::vector<std::byte> bytes(out.span().data.begin(), out.span().data.end());
        bytes.insert(bytes.end(), out.span().scales.begin(), out.span().scales.end());
        if (expected.empty()) {
          expected = bytes;
          std::vector<float> back(static_cast<size_t>(rows * columns));
          dequantize(format, rows, columns, std::as_const(out).span(), back);
          const Tensor x = w.to(DType::kF32);
          ErrorStats check;
          check.add(x.as<float>(), back, columns);
          if (std::fabs(check.rms_error() - stats.rms_error()) > 1e-5 * check.rms_error()) {
            fail(ErrorCode::kMismatch, name, "statistics", std::to_string(check.rms_error()),
                 std::to_string(stats.rms_error()));
          }
          if (method == Method::kPlain) plain_error = stats.weighted_relative_rms();
          std::printf("  %.3f bits  weighted error %.5f (%.3f of plain)", stats.bits_per_weight(),
                      stats.weighted_relative_rms(), stats.weighted_relative_rms() / plain_error);
        } else if (bytes != expected) {
          fail(ErrorCode::kMismatch, name, "instruction sets disagree");
        }
        std::printf("  %s %.0f MB/s", std::string(isa_name(isa)).c_str(), megabytes / s);
      }
      std::printf("\n");
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  try {
    run(argc > 2 ? std::atol(argv[1]) : 2048, argc > 2 ? std::atol(argv[2]) : 2560);
  } catch (const qvl::Error& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
  return 0;
}
