// layer_norm and rms_norm: the rows are dealt to the threads in fixed groups, one row at a time goes through
// the kernel of the instruction set. Spec sections 5.4, 6.4 and B.
#include "qvl/kernels/op_check.h"
#include "qvl/kernels/ops.h"
#include "qvl/kernels/row_tasks.h"

namespace qvl::kernels {

void layer_norm(const Context& ctx, ConstMatrix x, const float* weight, const float* bias, float eps,
                Matrix y) {
  constexpr std::string_view kWhere = "layer_norm";
  check_matrix(kWhere, "x", x);
  check_like(kWhere, "y", x, y);
  check_pointer(kWhere, "weight", weight);
  check_pointer(kWhere, "bias", bias);
  const RowKernels& k = row_kernels(ctx, x.dtype);
  for_rows(ctx, x.rows, x.cols, [&](int64_t r) {
    k.layer_norm(element(x.data, x.dtype, r * x.stride), x.cols, weight, bias, eps,
                 element(y.data, y.dtype, r * y.stride));
  });
}

void rms_norm(const Context& ctx, ConstMatrix x, const float* weight, float eps, Matrix y) {
  constexpr std::string_view kWhere = "rms_norm";
  check_matrix(kWhere, "x", x);
  check_like(kWhere, "y", x, y);
  check_pointer(kWhere, "weight", weight);
  const RowKernels& k = row_kernels(ctx, x.dtype);
  for_rows(ctx, x.rows, x.cols, [&](int64_t r) {
    k.rms_norm(element(x.data, x.dtype, r * x.stride), x.cols, weight, eps,
               element(y.data, y.dtype, r * y.stride));
  });
}

}  // namespace qvl::kernels
