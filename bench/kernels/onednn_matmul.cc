#include "onednn_matmul.h"

#include <oneapi/dnnl/dnnl.hpp>

namespace qvl::bench {

using dnnl::memory;

struct OnednnMatmul::Impl {
  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream{engine};
  dnnl::matmul matmul;
  memory x, w, y;
};

OnednnMatmul::OnednnMatmul(DType dtype, int64_t m, int64_t n, int64_t k, const void* w)
    : impl_(std::make_unique<Impl>()) {
  Impl& i = *impl_;
  const auto type = dtype == DType::kBF16 ? memory::data_type::bf16 : memory::data_type::f32;
  const memory::desc x_desc({m, k}, type, memory::format_tag::ab),
      y_desc({m, n}, type, memory::format_tag::ab);
  const memory::desc w_any({k, n}, type, memory::format_tag::any),
      w_plain({k, n}, type, memory::format_tag::ba);
  const dnnl::matmul::primitive_desc desc(dnnl::matmul::desc(x_desc, w_any, y_desc), i.engine);
  i.matmul = dnnl::matmul(desc);
  i.x = memory(x_desc, i.engine, nullptr);
  i.y = memory(y_desc, i.engine, nullptr);
  i.w = memory(desc.weights_desc(), i.engine);
  memory plain(w_plain, i.engine, const_cast<void*>(w));
  dnnl::reorder(plain, i.w).execute(i.stream, plain, i.w);
  i.stream.wait();
}

OnednnMatmul::~OnednnMatmul() = default;

void OnednnMatmul::run(const void* x, void* y) {
  Impl& i = *impl_;
  i.x.set_data_handle(const_cast<void*>(x));
  i.y.set_data_handle(y);
  i.matmul.execute(i.stream, {{DNNL_ARG_SRC, i.x}, {DNNL_ARG_WEIGHTS, i.w}, {DNNL_ARG_DST, i.y}});
  i.stream.wait();
}

}  // namespace qvl::bench
