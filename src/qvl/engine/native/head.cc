#include "qvl/engine/native/head.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <limits>

#include "qvl/base/greatest.h"
#include "qvl/base/tensor.h"
#include "qvl/engine/native/matrices.h"
#include "qvl/engine/native/weights.h"

namespace qvl::engine::native {
namespace {

constexpr int64_t kChunk = kGreatestChunk;
constexpr size_t kChunksOfATask = 64;
// Rows of the head computed first, at least, and per logit asked for.
constexpr int64_t kFewestFirst = 64, kFirstPerTop = 4;
// Of the errors of approximations; of normally distributed ones 1 in 10^12 is greater.
constexpr float kDeviations = 7;
// Shares of the head from which on reading all of it is as cheap.
constexpr int64_t kMostRefined = 4;  // a quarter
// Of so many times the rows computed first fine codes are read to find them.
constexpr int64_t kNearerPerFirst = 8;

struct Chunks {
  std::vector<float> greatest;
  bool finite = true;
};

Chunks chunks_of(const kernels::Context& context, std::span<const float> logits) {
  Chunks out;
  out.greatest.resize(chunk_count(logits));
  const size_t tasks = (out.greatest.size() + kChunksOfATask - 1) / kChunksOfATask;
  std::vector<char> finite(tasks);
  context.pool->parallel_for(static_cast<int64_t>(tasks), [&](int64_t task, int) {
    bool all = true;
    const size_t first = static_cast<size_t>(task) * kChunksOfATask;
    for (size_t c = first; c < std::min(first + kChunksOfATask, out.greatest.size()); ++c) {
      const std::span<const float> chunk = chunk_of(logits, c);
      out.greatest[c] = greatest(chunk);
      all &= all_finite(chunk);
    }
    finite[static_cast<size_t>(task)] = all;
  });
  out.finite = std::ranges::all_of(finite, [](char f) { return f != 0; });
  return out;
}

// The mean of squares, each in units of a row's spread.
class MeanSquare {
 public:
  void add(double off, double unit) {
    ++count_;
    if (unit > 0) sum_ += off * off / (unit * unit);  // a row of zeros is not off
  }
  double value() const { return sum_ / static_cast<double>(count_); }

 private:
  double sum_ = 0;
  int64_t count_ = 0;
};

}  // namespace

Head::Head(const kernels::Weight& head, const std::optional<kernels::Shortlist>& shortlist, ReadStoredRow read)
    : head_(head), shortlist_(shortlist), read_(std::move(read)) {}

const Head::Spread& Head::spread(const kernels::Context& context) const {
  std::call_once(spread_once_, [&] {
    const kernels::Shortlist& list = *shortlist_;
    const int64_t blocks = quant::shortlist_blocks(list.columns), chunks = (list.rows + kChunk - 1) / kChunk;
    static_assert(kChunk % quant::kShortlistGroup == 0);
    spread_.of_row.resize(static_cast<size_t>(list.rows));
    spread_.most_of_chunk.resize(static_cast<size_t>(chunks));
    context.pool->parallel_for(chunks, [&](int64_t chunk, int) {
      const int64_t first = chunk * kChunk, rows = std::min(kChunk, list.rows - first);
      const std::span<const std::byte> stored = quant::shortlist_rows(list.parts, list.columns, first, rows).scales;
      std::vector<float> scales(stored.size() / sizeof(BFloat16));
      convert_elements(stored.data(), DType::kBF16, scales.data(), DType::kF32, static_cast<int64_t>(scales.size()));
      float most = 0;
      for (int64_t r = 0; r < rows; ++r) {
        const float* of_row = scales.data() + r / quant::kShortlistGroup * blocks * quant::kShortlistGroup + r % quant::kShortlistGroup;
        float sum = 0;
        for (int64_t b = 0; b < blocks; ++b) sum += of_row[b * quant::kShortlistGroup] * of_row[b * quant::kShortlistGroup];
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

Head::Tokens Head::exact(const Step& step, std::vector<int32_t> ids) const {
  Tokens out{std::move(ids), {}};
  if (out.ids.empty()) return out;
  thread_local AlignedBuffer room;
  constexpr int64_t kRowsOfATask = 16;
  const auto n = static_cast<int64_t>(out.ids.size());
  RowCopies copies(head_, n, room);
  step.context.pool->parallel_for((n + kRowsOfATask - 1) / kRowsOfATask, [&](int64_t task, int) {
    for (int64_t i = task * kRowsOfATask; i < std::min(n, (task + 1) * kRowsOfATask); ++i)
      copies.read(read_, out.ids[static_cast<size_t>(i)], i);
  });
  out.logits.resize(out.ids.size());
  multiply(step.context, step.path, step.x, copies.weight(), {out.logits.data(), DType::kF32, 1, n, n});
  return out;
}

Head::Tokens Head::nearer(const Step& step, std::vector<int32_t> ids, std::span<const float> coarse) const {
  Tokens out{std::move(ids), {}};
  out.logits.resize(out.ids.size());
  kernels::shortlist_refinements(step.context, step.x, *shortlist_, out.ids, out.logits);
  for (size_t i = 0; i < out.ids.size(); ++i) out.logits[i] += coarse[static_cast<size_t>(out.ids[i])];
  return out;
}

bool Head::refine(const Step& step, std::span<float> logits) const {
  const TopLogits top = step.top;
  const int64_t ids = top.ids > 0 ? std::min(top.ids, head_.out) : head_.out;
  const int64_t first = std::max(kFewestFirst, kFirstPerTop * top.count), most = ids / kMostRefined;
  if (first > most) return false;
  const std::span<float> coarse = logits.first(static_cast<size_t>(ids));
  const Chunks chunks = chunks_of(step.context, coarse);
  if (!chunks.finite) return false;
  const Spread& spread = this->spread(step.context);
  const auto unit = [&](int32_t id) { return spread.of_row[static_cast<size_t>(id)]; };

  // The greatest by coarse logits. As many chunks as rows are wanted reach this, so at least as many rows do; of few chunks, rows
  // themselves.
  const int64_t wanted = std::min(kNearerPerFirst * first, most);
  const bool by_chunk = wanted <= static_cast<int64_t>(chunks.greatest.size());
  const float reached = nth_greatest(by_chunk ? std::span<const float>(chunks.greatest) : coarse, static_cast<size_t>(wanted));
  std::vector<int32_t> found;
  for (size_t c = 0; c < chunks.greatest.size(); ++c) {
    if (chunks.greatest[c] < reached) continue;
    const size_t begin = c * kChunk, end = std::min(begin + kChunk, coarse.size());
    for (size_t i = begin; i < end; ++i) {
      if (coarse[i] >= reached) found.push_back(static_cast<int32_t>(i));
    }
  }
  if (static_cast<int64_t>(found.size()) > most) return false;
  const Tokens best = nearer(step, std::move(found), coarse);

  if (!all_finite(best.logits)) return false;  // numbers that are none cannot be sorted

  // The greatest of those.
  const float reached_nearer = nth_greatest(best.logits, static_cast<size_t>(first));
  std::vector<int32_t> chosen;
  std::vector<float> chosen_nearer;
  for (size_t i = 0; i < best.ids.size(); ++i) {
    if (best.logits[i] < reached_nearer) continue;
    chosen.push_back(best.ids[i]);
    chosen_nearer.push_back(best.logits[i]);
  }
  const Tokens known = exact(step, std::move(chosen));
  if (!all_finite(known.logits)) return false;
  const float least = nth_greatest(known.logits, static_cast<size_t>(top.count));
  // Those computed are chosen by their nearer logits, and say how far off these are; what fine codes changed, of all that were
  // chosen by coarse ones, says how far off those are of the nearer.
  MeanSquare of_nearer, between;
  for (size_t i = 0; i < known.ids.size(); ++i) of_nearer.add(known.logits[i] - chosen_nearer[i], unit(known.ids[i]));
  for (size_t i = 0; i < best.ids.size(); ++i)
    between.add(best.logits[i] - coarse[static_cast<size_t>(best.ids[i])], unit(best.ids[i]));
  const auto nearer_reach = kDeviations * static_cast<float>(std::sqrt(of_nearer.value()));
  const auto coarse_reach = kDeviations * static_cast<float>(std::sqrt(of_nearer.value() + between.value()));
  if (!std::isfinite(coarse_reach)) return false;

  // Which others can be as great as the least of those asked for: one in thirty where no token stands out.
  const size_t tasks = (chunks.greatest.size() + kChunksOfATask - 1) / kChunksOfATask;
  std::vector<std::vector<int32_t>> parts(tasks);
  step.context.pool->parallel_for(static_cast<int64_t>(tasks), [&](int64_t task, int) {
    std::array<int32_t, kChunksOfATask * kChunk> some;
    size_t n = 0;
    const size_t first_chunk = static_cast<size_t>(task) * kChunksOfATask;
    for (size_t c = first_chunk; c < std::min(first_chunk + kChunksOfATask, chunks.greatest.size()); ++c) {
      // Written so that a spread that is not a number passes nothing over.
      if (chunks.greatest[c] + coarse_reach * spread.most_of_chunk[c] < least) continue;
      const size_t begin = c * kChunk, end = std::min(begin + kChunk, coarse.size());
      for (size_t i = begin; i < end; ++i) {
        some[n] = static_cast<int32_t>(i);
        n += static_cast<size_t>(coarse[i] < reached) & static_cast<size_t>(!(coarse[i] + coarse_reach * spread.of_row[i] < least));
      }
    }
    parts[static_cast<size_t>(task)].assign(some.begin(), some.begin() + static_cast<ptrdiff_t>(n));
  });
  std::vector<int32_t> others;
  for (const std::vector<int32_t>& part : parts) others.insert(others.end(), part.begin(), part.end());
  const Tokens rest = nearer(step, std::move(others), coarse);

  std::vector<int32_t> in_question;
  const auto see = [&](const Tokens& tokens, float known_from) {
    for (size_t i = 0; i < tokens.ids.size(); ++i) {
      coarse[static_cast<size_t>(tokens.ids[i])] = tokens.logits[i];  // a coarse one might be greater than what is asked for
      if (tokens.logits[i] < known_from && !(tokens.logits[i] + nearer_reach * unit(tokens.ids[i]) < least))
        in_question.push_back(tokens.ids[i]);
    }
  };
  see(best, reached_nearer);
  see(rest, std::numeric_limits<float>::infinity());
  if (static_cast<int64_t>(known.ids.size() + in_question.size()) > most) return false;
  for (const Tokens& tokens : {known, exact(step, std::move(in_question))}) {
    for (size_t i = 0; i < tokens.ids.size(); ++i) coarse[static_cast<size_t>(tokens.ids[i])] = tokens.logits[i];
  }
  return true;
}

void Head::logits(const kernels::Context& context, kernels::LinearPath path, const kernels::ConstMatrix& x, TopLogits top,
                  const kernels::Matrix& logits) const {
  if (!shortlist_ || top.count < 1 || top.count > kMostTop) return multiply(context, path, x, head_, logits);
  kernels::shortlist_logits(context, x, *shortlist_, logits);
  for (int64_t r = 0; r < x.rows; ++r) {
    const kernels::ConstMatrix row = rows_of(x, r, 1);
    const kernels::Matrix out = rows_of(logits, r, 1);
    if (!refine({context, path, row, top}, {static_cast<float*>(out.data), static_cast<size_t>(head_.out)}))
      multiply(context, path, row, head_, out);
  }
}

}  // namespace qvl::engine::native
