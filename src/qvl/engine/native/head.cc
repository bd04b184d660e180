#include "qvl/engine/native/head.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <limits>

#include "qvl/base/tensor.h"
#include "qvl/engine/native/matrices.h"
#include "qvl/engine/native/weights.h"
#include "qvl/quant/block_codec.h"

namespace qvl::engine::native {
namespace {

// Logits whose greatest is known, so that most of them are passed over together.
constexpr int64_t kChunk = 64;
// Rows computed both ways at least, and per logit asked for.
constexpr int64_t kFewestFirst = 64, kFirstPerTop = 4;
// Of the errors of approximations; of normally distributed ones 1 in 10^15 is greater.
constexpr float kDeviations = 8;
// Shares of the head from which on reading all of it is as cheap.
constexpr int64_t kMostRefined = 4;  // a quarter

struct Chunks {
  std::vector<float> greatest;
  bool finite = true;
};

Chunks chunks_of(std::span<const float> logits) {
  constexpr size_t kLanes = 16;
  Chunks out;
  out.greatest.reserve((logits.size() + kChunk - 1) / kChunk);
  std::array<float, kLanes> check{};  // 0, or NaN once anything was not finite
  for (size_t begin = 0; begin < logits.size(); begin += kChunk) {
    const std::span<const float> chunk = logits.subspan(begin, std::min<size_t>(kChunk, logits.size() - begin));
    std::array<float, kLanes> greatest;
    greatest.fill(-std::numeric_limits<float>::infinity());
    size_t i = 0;
    for (; i + kLanes <= chunk.size(); i += kLanes) {
      for (size_t lane = 0; lane < kLanes; ++lane) {
        const float v = chunk[i + lane];
        greatest[lane] = v > greatest[lane] ? v : greatest[lane];
        check[lane] += v * 0;
      }
    }
    for (; i < chunk.size(); ++i) {
      greatest[0] = std::max(greatest[0], chunk[i]);
      check[0] += chunk[i] * 0;
    }
    out.greatest.push_back(*std::ranges::max_element(greatest));
  }
  for (const float c : check) out.finite &= c == 0;
  return out;
}

}  // namespace

Head::Head(const kernels::Weight& head, const std::optional<kernels::Weight>& shortlist, ReadStoredRow read)
    : head_(head), shortlist_(shortlist), read_(std::move(read)) {}

const Head::Spread& Head::spread(const kernels::Context& context) const {
  std::call_once(spread_once_, [&] {
    const kernels::Weight& w = *shortlist_;
    const int64_t blocks = w.format.block_count(w.in), chunks = (w.out + kChunk - 1) / kChunk;
    const auto row_bytes = static_cast<size_t>(w.format.scale_bytes(1, w.in));
    spread_.of_row.resize(static_cast<size_t>(w.out));
    spread_.most_of_chunk.resize(static_cast<size_t>(chunks));
    context.pool->parallel_for(chunks, [&](int64_t chunk, int) {
      const int64_t first = chunk * kChunk, rows = std::min(kChunk, w.out - first);
      std::vector<float> scales(static_cast<size_t>(rows * blocks));
      quant::read_scales(w.format, rows, w.in,
                         {w.scales + static_cast<size_t>(first) * row_bytes, static_cast<size_t>(rows) * row_bytes}, scales);
      float most = 0;
      for (int64_t r = 0; r < rows; ++r) {
        float sum = 0;
        for (int64_t b = 0; b < blocks; ++b) sum += scales[static_cast<size_t>(r * blocks + b)] * scales[static_cast<size_t>(r * blocks + b)];
        const float spread = std::sqrt(sum);
        spread_.of_row[static_cast<size_t>(first + r)] = spread;
        most = spread > most || std::isnan(spread) ? spread : most;
      }
      spread_.most_of_chunk[static_cast<size_t>(chunk)] = most;
    });
  });
  return spread_;
}

void Head::multiply(const kernels::Context& context, kernels::LinearPath path, const kernels::ConstMatrix& x, const kernels::Weight& w,
                    const kernels::Matrix& logits) const {
  if (x.dtype == DType::kF32) return kernels::linear(context, path, x, w, kernels::Activation::kNone, {}, logits);
  Tensor narrow(x.dtype, {x.rows, w.out});  // bf16 logits before they are raised to float32 (spec B)
  kernels::linear(context, path, x, w, kernels::Activation::kNone, {}, view(narrow));
  convert_elements(narrow.data(), x.dtype, logits.data, DType::kF32, x.rows * w.out);
}

Tensor Head::exact(const kernels::Context& context, kernels::LinearPath path, const kernels::ConstMatrix& x,
                   std::span<const int32_t> rows) const {
  thread_local AlignedBuffer room;
  constexpr int64_t kRowsOfATask = 16;
  const auto n = static_cast<int64_t>(rows.size());
  RowCopies copies(head_, n, room);
  context.pool->parallel_for((n + kRowsOfATask - 1) / kRowsOfATask, [&](int64_t task, int) {
    for (int64_t i = task * kRowsOfATask; i < std::min(n, (task + 1) * kRowsOfATask); ++i)
      copies.read(read_, rows[static_cast<size_t>(i)], i);
  });
  Tensor out(DType::kF32, {1, n});
  multiply(context, path, x, copies.weight(), view(out));
  return out;
}

bool Head::refine(const kernels::Context& context, kernels::LinearPath path, const kernels::ConstMatrix& x, TopLogits top,
                  std::span<float> logits) const {
  const int64_t ids = top.ids > 0 ? std::min(top.ids, head_.out) : head_.out;
  const int64_t first = std::max(kFewestFirst, kFirstPerTop * top.count), most = ids / kMostRefined;
  if (first > most) return false;
  const std::span<float> candidates = logits.first(static_cast<size_t>(ids));
  const Chunks chunks = chunks_of(candidates);
  if (!chunks.finite) return false;
  const Spread& spread = this->spread(context);
  const auto chunk_of = [&](size_t chunk) {
    const size_t begin = chunk * kChunk;
    return std::pair(begin, std::min(begin + kChunk, candidates.size()));
  };

  // As many chunks as rows are wanted reach this, so at least as many rows do.
  float reached = -std::numeric_limits<float>::infinity();
  if (std::vector<float> greatest = chunks.greatest; static_cast<size_t>(first) <= greatest.size()) {
    const auto nth = greatest.begin() + (first - 1);
    std::ranges::nth_element(greatest, nth, std::greater<>());
    reached = *nth;
  } else {
    // Few chunks: by rows.
    std::vector<float> all(candidates.begin(), candidates.end());
    const auto row = all.begin() + (first - 1);
    std::ranges::nth_element(all, row, std::greater<>());
    reached = *row;
  }
  std::vector<int32_t> rows;
  for (size_t c = 0; c < chunks.greatest.size(); ++c) {
    if (chunks.greatest[c] < reached) continue;
    const auto [begin, end] = chunk_of(c);
    for (size_t i = begin; i < end; ++i) {
      if (candidates[i] >= reached) rows.push_back(static_cast<int32_t>(i));
    }
  }
  if (static_cast<int64_t>(rows.size()) > most) return false;

  const Tensor known = exact(context, path, x, rows);
  const std::span<const float> values = known.as<float>();
  double squares = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    const auto row = static_cast<size_t>(rows[i]);
    const double off = values[i] - candidates[row];
    // A row of zeros is not off.
    if (spread.of_row[row] > 0) squares += off * off / (spread.of_row[row] * spread.of_row[row]);
  }
  const auto deviation = static_cast<float>(std::sqrt(squares / static_cast<double>(rows.size())));
  std::vector<float> sorted(values.begin(), values.end());
  const auto last = sorted.begin() + (top.count - 1);
  std::ranges::nth_element(sorted, last, std::greater<>());
  const float least = *last;
  const float reach = kDeviations * deviation;
  if (!std::isfinite(reach) || !std::isfinite(least)) return false;

  std::vector<int32_t> more;
  for (size_t c = 0; c < chunks.greatest.size(); ++c) {
    // Written so that a spread that is not a number passes nothing over.
    if (chunks.greatest[c] + reach * spread.most_of_chunk[c] < least) continue;
    const auto [begin, end] = chunk_of(c);
    for (size_t i = begin; i < end; ++i) {
      if (candidates[i] < reached && !(candidates[i] + reach * spread.of_row[i] < least)) more.push_back(static_cast<int32_t>(i));
    }
  }
  if (static_cast<int64_t>(rows.size() + more.size()) > most) return false;
  for (size_t i = 0; i < rows.size(); ++i) candidates[static_cast<size_t>(rows[i])] = values[i];
  if (more.empty()) return true;
  const Tensor also = exact(context, path, x, more);
  for (size_t i = 0; i < more.size(); ++i) candidates[static_cast<size_t>(more[i])] = also.as<float>()[i];
  return true;
}

void Head::logits(const kernels::Context& context, kernels::LinearPath path, const kernels::ConstMatrix& x, TopLogits top,
                  const kernels::Matrix& logits) const {
  if (!shortlist_ || top.count < 1 || top.count > kMostTop) return multiply(context, path, x, head_, logits);
  multiply(context, path, x, *shortlist_, logits);
  for (int64_t r = 0; r < x.rows; ++r) {
    const kernels::ConstMatrix row = rows_of(x, r, 1);
    const kernels::Matrix out = rows_of(logits, r, 1);
    if (!refine(context, path, row, top, {static_cast<float*>(out.data), static_cast<size_t>(head_.out)}))
      multiply(context, path, row, head_, out);
  }
}

}  // namespace qvl::engine::native
