// Kernel tables and the choice between them: QVL_KERNELS names one, else the best that this processor runs.
#include "qvl/kernels/table.h"

#include <array>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "qvl/base/error.h"

namespace qvl::kernels {
namespace {

// Also on processors of another family, so that a name is either unknown or known and not runnable here.
constexpr std::array<std::string_view, 7> kNames = {"scalar", "avx2",         "avx512",   "avx512bf16",
                                                    "neon",   "neon_dotprod", "neon_i8mm"};

bool runnable(std::string_view name) {
  const CpuFeatures& cpu = cpu_features();
  if (name == "scalar") return true;
  if (name == "avx2") return cpu.avx2;
  if (name == "avx512") return cpu.avx512;
  if (name == "avx512bf16") return cpu.avx512bf16;
  if (name == "neon") return cpu.neon;
  if (name == "neon_dotprod") return cpu.neon_dotprod;
  return name == "neon_i8mm" && cpu.neon_i8mm;
}

// Worst first.
const std::vector<KernelTable>& tables() {
  static const std::vector<KernelTable> all = [] {
    std::vector<KernelTable> t;
    t.push_back({"scalar", &linear_kernels_scalar(), &attention_kernels_scalar(), &int8_kernels_scalar(), &shortlist_kernels_scalar()});
#if defined(__x86_64__)
    if (runnable("avx2")) {
      t.push_back({"avx2", &linear_kernels_avx2(), &attention_kernels_avx2(), &int8_kernels_avx2(), &shortlist_kernels_avx2()});
    }
    // The first processors with AVX-512 have no integer products of that width worth their own kernels.
    const bool vnni = cpu_features().avx512vnni;
    const Int8Kernels* wide = vnni ? &int8_kernels_avx512vnni() : &int8_kernels_avx2();
    const ShortlistKernels* shortlist = vnni ? &shortlist_kernels_avx512vnni() : &shortlist_kernels_avx2();
    if (runnable("avx512")) {
      t.push_back({"avx512", &linear_kernels_avx512(), vnni ? &attention_kernels_avx512vnni() : &attention_kernels_avx512(), wide, shortlist});
    }
    if (runnable("avx512bf16")) {
      t.push_back({"avx512bf16", &linear_kernels_avx512bf16(), &attention_kernels_avx512bf16(), wide, shortlist});
      if (cpu_features().slow_bf16_dot) std::swap(t[t.size() - 1], t[t.size() - 2]);
    }
#elif defined(__aarch64__)
    // Bytes are all that the younger instructions multiply: floats have one set of kernels.
    const LinearKernels& linear = linear_kernels_neon();
    const AttentionKernels& attention = attention_kernels_neon();
    if (runnable("neon")) t.push_back({"neon", &linear, &attention, &int8_kernels_neon(), &shortlist_kernels_neon()});
    if (runnable("neon_dotprod"))
      t.push_back({"neon_dotprod", &linear, &attention, &int8_kernels_neon_dotprod(), &shortlist_kernels_neon_dotprod()});
    if (runnable("neon_i8mm")) t.push_back({"neon_i8mm", &linear, &attention, &int8_kernels_neon_i8mm(), &shortlist_kernels_neon_dotprod()});
#endif
    return t;
  }();
  return all;
}

std::string join(std::span<const std::string_view> names) {
  std::string text;
  for (std::string_view name : names) {
    if (!text.empty()) text += ", ";
    text += name;
  }
  return text;
}

}  // namespace

const KernelTable& table_by_name(std::string_view name) {
  for (const KernelTable& table : tables()) {
    if (table.name == name) return table;
  }
  for (std::string_view known : kNames) {
    if (known == name) {
      fail(ErrorCode::kUnsupported, "kernels", "instruction set", "one that this processor runs", name,
           "here: " + join(runnable_tables()));
    }
  }
  fail(ErrorCode::kInvalidArgument, "kernels", "instruction set", "one of " + join(kNames),
       "'" + std::string(name) + "'", "check QVL_KERNELS");
}

const KernelTable& active_table() {
  static const KernelTable& chosen = [&]() -> const KernelTable& {
    const char* forced = std::getenv("QVL_KERNELS");
    if (forced != nullptr) return table_by_name(forced);
    return tables().back();
  }();
  return chosen;
}

std::span<const std::string_view> runnable_tables() {
  static const std::vector<std::string_view> names = [] {
    std::vector<std::string_view> n;
    for (const KernelTable& table : tables()) n.push_back(table.name);
    return n;
  }();
  return names;
}

std::string_view table_name(const KernelTable& table) {
  return table.name;
}

}  // namespace qvl::kernels
