// The panel kernel for any processor: four lanes through the compiler's own vector type.
#include "qvl/quant/panel_kernels_impl.h"

namespace qvl::quant {
namespace {

struct Vec4 {
  typedef float F __attribute__((vector_size(16)));
  typedef int32_t I __attribute__((vector_size(16)));
  typedef uint32_t U __attribute__((vector_size(16)));
  static constexpr int kWidth = 4;
  static constexpr size_t kTogether = 2;
  static constexpr int64_t kTile = int64_t{1} << 62;  // no transposition of its own

  static F load(const float* p) {
    F v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
  static void store(float* p, F v) { std::memcpy(p, &v, sizeof v); }
  static F set1(float v) { return F{v, v, v, v}; }
  static F add(F a, F b) { return a + b; }
  static F sub(F a, F b) { return a - b; }
  static F mul(F a, F b) { return a * b; }
  static F div(F a, F b) { return a / b; }
  static F min(F a, F b) { return a < b ? a : b; }
  static F max(F a, F b) { return a > b ? a : b; }
  static F abs(F a) { return reinterpret_cast<F>(reinterpret_cast<I>(a) & 0x7fffffff); }
  static I gt(F a, F b) { return a > b; }
  static F select(I mask, F a, F b) { return mask ? a : b; }
  static I zero_int() { return I{}; }
  static I set1_int(int32_t v) { return I{v, v, v, v}; }
  static I bits(F a) { return reinterpret_cast<I>(a); }
  static I max_int(I a, I b) { return a > b ? a : b; }
  static I truncate(F a) { return __builtin_convertvector(a, I); }
  static F to_float(I a) { return __builtin_convertvector(a, F); }
  static I bit_or(I a, I b) { return a | b; }
  static I bit_xor(I a, I b) { return a ^ b; }
  static I shift_left(I a, int count) { return reinterpret_cast<I>(reinterpret_cast<U>(a) << count); }
  static void store_int(uint32_t* p, I v) { std::memcpy(p, &v, sizeof v); }
  static void load_tile(const std::byte*, int64_t, DType, float*) {}
};

}  // namespace

PanelResult quantize_panel_portable(const PanelTask& task) {
  return quantize_panel<Vec4>(task);
}

}  // namespace qvl::quant
