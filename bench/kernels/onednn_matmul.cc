#include "onednn_matmul.h"

#include <omp.h>

#include <oneapi/dnnl/dnnl.hpp>

#include "qvl/base/error.h"

namespace qvl::bench {

using dnnl::memory;

struct OnednnMatmul::Impl {
  Impl(int64_t m, int64_t n, int64_t k, const void* weight, memory::data_type x_type, memory::data_type w_type,
       memory::data_type y_type) {
    const memory::desc x_desc({m, k}, x_type, memory::format_tag::ab),
        y_desc({m, n}, y_type, memory::format_tag::ab);
    const memory::desc w_any({k, n}, w_type, memory::format_tag::any),
        w_plain({k, n}, w_type, memory::format_tag::ba);
    try {
      const dnnl::matmul::primitive_desc desc(dnnl::matmul::desc(x_desc, w_any, y_desc), engine);
      matmul = dnnl::matmul(desc);
      w = memory(desc.weights_desc(), engine);
    } catch (const dnnl::error& e) {
      fail(ErrorCode::kUnsupported, "oneDNN", e.what());
    }
    x = memory(x_desc, engine, nullptr);
    y = memory(y_desc, engine, nullptr);
    memory plain(w_plain, engine, const_cast<void*>(weight));
    dnnl::reorder(plain, w).execute(stream, plain, w);
    stream.wait();
  }

  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream{engine};
  dnnl::matmul matmul;
  memory x, w, y;
};

namespace {

memory::data_type type_of(DType dtype) {
  return dtype == DType::kBF16 ? memory::data_type::bf16 : memory::data_type::f32;
}

}  // namespace

void set_onednn_threads(int threads) { omp_set_num_threads(threads); }

OnednnMatmul::OnednnMatmul(DType dtype, int64_t m, int64_t n, int64_t k, const void* w)
    : impl_(std::make_unique<Impl>(m, n, k, w, type_of(dtype), type_of(dtype), type_of(dtype))) {}

OnednnMatmul::OnednnMatmul(int64_t m, int64_t n, int64_t k, const int8_t* w)
    : impl_(std::make_unique<Impl>(m, n, k, w, memory::data_type::u8, memory::data_type::s8, memory::data_type::s32)) {}

OnednnMatmul::~OnednnMatmul() = default;

void OnednnMatmul::run(const void* x, void* y) {
  Impl& i = *impl_;
  i.x.set_data_handle(const_cast<void*>(x));
  i.y.set_data_handle(y);
  i.matmul.execute(i.stream, {{DNNL_ARG_SRC, i.x}, {DNNL_ARG_WEIGHTS, i.w}, {DNNL_ARG_DST, i.y}});
  i.stream.wait();
}

}  // namespace qvl::bench
