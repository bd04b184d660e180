// The operators that the native stages call: linear layers, norms, rotary embedding, attention. Each runs on
// the context's thread pool and on the kernel table chosen at run time; sizes come in, never a model's
// config. Spec sections 5 (vision), 6 (decoder) and B (mixed precision).
//
// Precision contract. Activations are F32 or BF16, one type for all activations of a call unless said
// otherwise. Accumulation is float32 always. With BF16 activations every operator named in spec B rounds its
// result to bfloat16 (nearest even) exactly once where the reference stores a bfloat16 tensor, fused or not:
// a fused activation or residual sees the rounded value of the step before it. Vectors (bias, norm weight)
// come as float32; for a bf16 model they hold bf16-representable values.
//
// Determinism contract. The result for one row does not depend on how many other rows are in the call, on
// which rows they are, or on the number of threads. That makes chunked prefill exact.
#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "qvl/base/dtype.h"
#include "qvl/base/thread_pool.h"
#include "qvl/quant/format.h"

namespace qvl::kernels {

struct KernelTable;

// The table named by QVL_KERNELS, else the best one this processor runs. Chosen once per process.
// Throws kInvalidArgument for an unknown name and kUnsupported for one this processor cannot run.
const KernelTable& active_table();
// A table by name ("scalar", "avx2", "avx512", "avx512bf16", "neon", ...); same errors.
const KernelTable& table_by_name(std::string_view name);
// Names of all tables that this processor can run, best last ("scalar" is first).
std::span<const std::string_view> runnable_tables();
std::string_view table_name(const KernelTable& table);

// What every operator needs. Both pointers outlive the call.
struct Context {
  ThreadPool* pool;
  const KernelTable* table;
};

// Called by an operator that takes long, on the thread that called it, between two of its parallel loops: about every
// 50 ms of work, not before the first piece nor after the last. Other operators may be run from inside it, on other
// data. What it throws ends the operator, whose output is then undefined. Results do not depend on it.
using Pause = std::function<void()>;

// Row-major [rows, cols]; stride = distance of two rows in elements, >= cols. Views, not owners.
struct ConstMatrix {
  const void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t stride = 0;
};

struct Matrix {
  void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t stride = 0;

  operator ConstMatrix() const { return {data, dtype, rows, cols, stride}; }
};

// A linear layer's weight [out, in], row-major and contiguous, mapped or owned elsewhere; bias [out] or null.
// Floats (format.kind kFloat, type `dtype`): F32, BF16, F16 with F32 activations (weights are widened exactly in
// registers); BF16 with BF16 ones. Integers: `format`, `data`, `scales` and `zero_points` as quant/format.h lays them
// out, with either type of activations; they are used where they lie, never unpacked as a whole.
struct Weight {
  const void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t out = 0;
  int64_t in = 0;
  const float* bias = nullptr;
  quant::Format format = {};
  const std::byte* scales = nullptr;
  const std::byte* zero_points = nullptr;
  // Integers only. true: activations are rounded to int8 too (int8_kernels.h says how), which is what makes integer
  // weights fast; formats of 8 bits with zero points take the other way all the same. false: the product of the
  // activations as they are with (q - zero point) * scale rounded to their type.
  bool int8_activations = true;
  // Of those: 8, or 7, which cover the range from the least to the greatest value of a group instead of as much on both
  // sides of zero; less exact, and faster where products of bytes add up in 16 bits (AVX2, weights of 8 bits).
  int activation_bits = 8;
};

enum class Activation { kNone, kGeluTanh, kGeluErf };

// kGemm: any number of rows, weights repacked tile by tile, compute-bound.
// kGemv: few rows (<= 16), weights streamed once from memory, bandwidth-bound.
// The two may differ in the last bits; a stage uses kGemm for prefill, whatever the chunk, and kGemv for
// decode.
enum class LinearPath { kGemm, kGemv };

// y[M,out] = act(x[M,in] . W^T + bias) (+ residual[M,out]). y may be the residual itself (in place) but must
// not overlap x. y has x's type. Throws kMismatch on inconsistent sizes, kUnsupported on a type combination
// not listed.
void linear(const Context& ctx, LinearPath path, ConstMatrix x, const Weight& w, Activation activation,
            ConstMatrix residual, Matrix y);

// y = x . weight^T + bias, one of several.
struct LinearProduct {
  ConstMatrix x;
  const Weight* weight = nullptr;
  Matrix y;
};

// As linear() of each, to the bit; at most 4. Those of kGemv share one loop, and what is done to x, where they have the same
// x and the same kind of weights: the threads then wait for each other once. No y may overlap an x. Throws as linear() does,
// before anything is written.
void linear_together(const Context& ctx, LinearPath path, std::span<const LinearProduct> products);

// y[M,I] = silu(x . Wg^T) * (x . Wu^T), both [I, in], no bias (SwiGLU, spec 6.4).
void linear_swiglu(const Context& ctx, LinearPath path, ConstMatrix x, const Weight& gate, const Weight& up,
                   Matrix y);

// out [in] of `type`, F32 or BF16: row `row` of a weight as it is stored, or (q - zero point) * scale, rounded once (the
// embedding of a token, spec 6.1). Throws kInvalidArgument for a row that is not there.
void weight_row(const Weight& w, int64_t row, DType type, void* out);

// y = LayerNorm(x) * weight + bias over each row, biased variance (spec 5.4). y may be x.
void layer_norm(const Context& ctx, ConstMatrix x, const float* weight, const float* bias, float eps,
                Matrix y);

// y = weight * (x / sqrt(mean(x^2) + eps)) over each row (spec 6.4); bf16: the normalised value is rounded
// before the multiplication (spec B). y may be x.
void rms_norm(const Context& ctx, ConstMatrix x, const float* weight, float eps, Matrix y);

// In place: x[r, h*head_dim + ...] <- rotation of each head by the halves rule v*cos + half(v)*sin
// (spec 5.3). cos, sin: float32 [rows, head_dim/2] (both halves of a head turn by the same angles). F32
// arithmetic, one rounding for bf16. x is [rows, heads*head_dim] (stride for packed qkv).
void rope_vision(const Context& ctx, Matrix x, int64_t heads, int64_t head_dim, const float* cos,
                 const float* sin);

// Blocks of a paged KV cache of one layer. Block b holds positions [b*block_tokens, (b+1)*block_tokens), laid
// out as [kv_heads][keys, values][block_tokens][head_dim]: decode reads it from one end to the other. Keys are stored
// rotated (spec 6.4).
//
// I8: codes -127..127, and behind a block's codes the scales, float32 [kv_heads][keys, values][block_tokens]; an element
// is code * scale. The codes of a key are those of its Hadamard transform (attention_int8_simd.h says why); head_dim is at most
// kMaxInt8HeadDim. Rows are rounded to codes one by one, so the determinism contract holds.
struct KvView {
  void* const* blocks = nullptr;
  DType dtype = DType::kF32;  // the activations' type, or I8
  int64_t block_tokens = 0;   // a multiple of 16
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
};

inline constexpr int64_t kMaxInt8HeadDim = 256;

// Bytes of one block: elements, then scales if it has any.
size_t kv_block_bytes(const KvView& kv);
// The bytes behind an element row of a head, per position: 4 for I8, else 0.
size_t kv_scale_bytes(DType dtype);

// The decoder's step between projection and attention, for S new rows that follow `past` cached positions:
//   q[<=S, heads*hd] : of the last rows; per-head RMSNorm(q_norm), then M-RoPE, in place
//   k[S, kv_heads*hd]: per-head RMSNorm(k_norm), then M-RoPE, written into the cache at past..past+S-1
//   v[S, kv_heads*hd]: copied into the cache
// An I8 cache gets the codes of what another would hold.
// cos, sin: float32 [S, hd/2]. bf16: cos and sin are rounded to bf16 first and the products and the sum are
// each rounded (spec B: "rotation in the weight type").
void qk_norm_rope_append(const Context& ctx, Matrix q, ConstMatrix k, ConstMatrix v, int64_t heads,
                         const float* q_norm, const float* k_norm, float eps, const float* cos,
                         const float* sin, int64_t past, const KvView& kv);

// What attention_full multiplies. kActivations: activations as they are, bfloat16 ones perhaps as 16-bit codes that hold
// nearly all of them. kInt8: 8-bit codes of queries, keys, values and weights (attention_int8_tile.h), where activations are
// bfloat16 and the table has_int8_attention(); else as kActivations.
enum class AttentionProducts { kActivations, kInt8 };
bool has_int8_attention(const KernelTable& table);

// out[P, heads*hd] = softmax(q k^T * scale) v inside each segment, no mask (spec 5.4). q, k, v are [P,
// heads*hd] views (stride for packed qkv). segment_lengths sum to P. Tiled with an online softmax: extra
// memory is O(tile * threads + packed keys and values of one segment), never P x P. Any head_dim that is a
// multiple of 4 (16, 48, 64, 72, 128 occur).
void attention_full(const Context& ctx, ConstMatrix q, ConstMatrix k, ConstMatrix v, int64_t heads,
                    int64_t head_dim, std::span<const int64_t> segment_lengths, float scale, Matrix out,
                    AttentionProducts products = AttentionProducts::kActivations, const Pause& pause = {});

// out[S, heads*hd]: query row i sees cache positions 0..past+i (spec 6.4); query head n uses kv head
// n / (heads/kv_heads). kGemm tiles queries (prefill), kGemv is for S <= 16 (decode): each K and V element is
// read once for all query heads of its group. Key tiles start at fixed absolute positions, so results do not
// depend on how a prompt is cut into chunks. kGemv does not pause.
void attention_causal(const Context& ctx, LinearPath path, ConstMatrix q, const KvView& kv, int64_t heads,
                      int64_t past, float scale, Matrix out, const Pause& pause = {});

// x[r] += y[r]; same shapes; bf16: one rounding.
void add_rows(const Context& ctx, Matrix x, ConstMatrix y);

}  // namespace qvl::kernels
