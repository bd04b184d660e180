// Rotary embedding: of the vision encoder (rope_vision, spec 5.3) and of the decoder, fused with the per-head
// norms and the append to the paged cache (qk_norm_rope_append, spec 6.3, 6.4 and B).
#include <cstring>
#include <string>

#include "qvl/kernels/kv_check.h"
#include "qvl/kernels/op_check.h"
#include "qvl/kernels/ops.h"
#include "qvl/kernels/row_tasks.h"

namespace qvl::kernels {

size_t kv_scale_bytes(DType dtype) {
  return dtype == DType::kI8 ? sizeof(float) : 0;
}

size_t kv_block_bytes(const KvView& kv) {
  return static_cast<size_t>(2 * kv.kv_heads * kv.block_tokens) *
         (static_cast<size_t>(kv.head_dim) * dtype_size_bytes(kv.dtype) + kv_scale_bytes(kv.dtype));
}

void rope_vision(const Context& ctx, Matrix x, int64_t heads, int64_t head_dim, const float* cos,
                 const float* sin) {
  constexpr std::string_view kWhere = "rope_vision";
  check_matrix(kWhere, "x", x);
  check_head_dim(kWhere, head_dim, 2);
  check_size(kWhere, "x columns (heads * head_dim)", heads * head_dim, x.cols);
  check_pointer(kWhere, "cos", cos);
  check_pointer(kWhere, "sin", sin);
  const RowKernels& k = row_kernels(ctx, x.dtype);
  const int64_t half = head_dim / 2;
  for_rows(ctx, x.rows, x.cols, [&](int64_t r) {
    k.rope_heads(element(x.data, x.dtype, r * x.stride), heads, head_dim, cos + r * half, sin + r * half);
  });
}

void qk_norm_rope_append(const Context& ctx, Matrix q, ConstMatrix k, ConstMatrix v, int64_t heads,
                         const float* q_norm, const float* k_norm, float eps, const float* cos,
                         const float* sin, int64_t past, const KvView& kv) {
  constexpr std::string_view kWhere = "qk_norm_rope_append";
  check_matrix(kWhere, "q", q);
  check_matrix(kWhere, "k", k);
  check_matrix(kWhere, "v", v);
  check_head_dim(kWhere, kv.head_dim, 2);
  check_kv_type(kWhere, kv, q.dtype);
  check_dtype(kWhere, "k", q.dtype, k.dtype);
  check_dtype(kWhere, "v", q.dtype, v.dtype);
  const int64_t hd = kv.head_dim, half = hd / 2;
  check_size(kWhere, "q columns (heads * head_dim)", heads * hd, q.cols);
  check_size(kWhere, "k columns (kv_heads * head_dim)", kv.kv_heads * hd, k.cols);
  check_size(kWhere, "v columns (kv_heads * head_dim)", kv.kv_heads * hd, v.cols);
  if (q.rows > k.rows) {
    fail(ErrorCode::kMismatch, kWhere, "q rows", "at most " + std::to_string(k.rows), std::to_string(q.rows));
  }
  check_size(kWhere, "v rows", k.rows, v.rows);
  if (past < 0) fail(ErrorCode::kInvalidArgument, kWhere, "past", ">= 0", std::to_string(past));
  check_kv(kWhere, kv, k.rows > 0 ? past + k.rows : 0);
  check_pointer(kWhere, "q_norm", q_norm);
  check_pointer(kWhere, "k_norm", k_norm);
  check_pointer(kWhere, "cos", cos);
  check_pointer(kWhere, "sin", sin);

  const RowKernels& kernels = row_kernels(ctx, q.dtype);
  const size_t head_bytes = static_cast<size_t>(hd) * dtype_size_bytes(kv.dtype);
  const int64_t first_query = k.rows - q.rows;
  for_rows(ctx, k.rows, q.cols + k.cols + v.cols, [&](int64_t r) {
    const float* row_cos = cos + r * half;
    const float* row_sin = sin + r * half;
    const int64_t query_heads = r < first_query ? 0 : heads;
    for (int64_t h = 0; h < query_heads; ++h) {
      std::byte* head = element(q.data, q.dtype, (r - first_query) * q.stride + h * hd);
      kernels.norm_rope_head(head, hd, q_norm, eps, row_cos, row_sin, head);
    }
    const int64_t block = (past + r) / kv.block_tokens, slot = (past + r) % kv.block_tokens;
    if (kv.dtype == DType::kI8) {
      alignas(64) std::byte key[kMaxInt8HeadDim * sizeof(float)];
      float* scales = kv_scales(kv, kv.blocks[block]);
      auto* codes = static_cast<int8_t*>(kv.blocks[block]);
      for (int64_t h = 0; h < kv.kv_heads; ++h) {
        const int64_t key_row = kv_row(kv, h, false, slot), value_row = kv_row(kv, h, true, slot);
        kernels.norm_rope_head(element(k.data, k.dtype, r * k.stride + h * hd), hd, k_norm, eps, row_cos, row_sin, key);
        scales[key_row] = kernels.quantize_head(key, hd, true, codes + key_row * hd);
        scales[value_row] =
            kernels.quantize_head(element(v.data, v.dtype, r * v.stride + h * hd), hd, false, codes + value_row * hd);
      }
      return;
    }
    for (int64_t h = 0; h < kv.kv_heads; ++h) {
      kernels.norm_rope_head(element(k.data, k.dtype, r * k.stride + h * hd), hd, k_norm, eps, row_cos,
                             row_sin, element(kv.blocks[block], kv.dtype, kv_row(kv, h, false, slot) * hd));
      std::memcpy(element(kv.blocks[block], kv.dtype, kv_row(kv, h, true, slot) * hd),
                  element(v.data, v.dtype, r * v.stride + h * hd), head_bytes);
    }
  });
}

}  // namespace qvl::kernels
