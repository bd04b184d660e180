// What a decode step of several rows costs compared with one row: the price of checking guessed tokens
// (generate/speculation.h), and of answering several at once (generate/generation.h).
//
//   decode_rows_bench MODEL [CONTEXT_TOKENS [ROUNDS [THREADS]]]
//
// MODEL: a checkpoint or a package, in the native engine. First checks that the rows have the logits of single steps to
// the bit, then times steps of 1, 2, 3, 4, 6, 8, 12 and 16 rows, of one timeline and of as many, in turn, round after round,
// so that a busy machine disturbs all of them alike; prints medians. Timelines are forks of one: up to 256 tokens of context
// each has its own memory, what is beyond is read by all.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <numeric>
#include <span>
#include <vector>

#include "open_native.h"
#include "qvl/base/error.h"
#include "qvl/base/thread_pool.h"

namespace {

using namespace qvl;

class Timeline {
 public:
  Timeline(const engine::EmbedStage& embed, const engine::DecoderStage& decoder)
      : embed_(embed), decoder_(decoder), cache_(decoder.new_cache()) {}

  Tensor append(const std::vector<int32_t>& ids, bool decode) {
    const Tensor embeds = embed_.embed(ids);
    std::vector<int64_t> positions(ids.size());
    std::iota(positions.begin(), positions.end(), cache_->length());
    engine::DecoderInput input;
    input.embeds = &embeds;
    for (auto& axis : input.positions) axis = positions;
    input.decode = decode;
    return decoder_.forward(input, *cache_, decode ? engine::LogitsMode::kAll : engine::LogitsMode::kNone);
  }
  void truncate(int64_t length) { cache_->truncate(length); }
  Timeline fork() const {
    Timeline out(embed_, decoder_);
    out.cache_->share_prefix(*cache_, cache_->length());
    return out;
  }
  // One token each.
  static Tensor append_together(std::span<Timeline> timelines, const std::vector<int32_t>& ids) {
    const Tensor embeds = timelines[0].embed_.embed(ids);
    std::vector<int64_t> positions;
    std::vector<engine::DecodeShare> shares;
    for (Timeline& t : timelines) {
      positions.push_back(t.cache_->length());
      shares.push_back({t.cache_.get(), 1});
    }
    engine::DecoderInput input;
    input.embeds = &embeds;
    for (auto& axis : input.positions) axis = positions;
    input.decode = true;
    return timelines[0].decoder_.decode_together(input, shares);
  }

 private:
  const engine::EmbedStage& embed_;
  const engine::DecoderStage& decoder_;
  std::unique_ptr<engine::KvCache> cache_;
};

int run(const std::filesystem::path& folder, int64_t context, int rounds, int threads) {
  const auto engine = open_native(folder, threads);
  Timeline timeline(engine->embed(), engine->decoder());
  std::vector<int32_t> ids(static_cast<size_t>(context) + 16);
  uint32_t state = 1;
  for (int32_t& id : ids) {
    state = state * 1664525 + 1013904223;
    id = static_cast<int32_t>(state >> 8) % 500;
  }
  for (int64_t at = 0; at < context; at += 512) {
    timeline.append({ids.begin() + at, ids.begin() + std::min(context, at + 512)}, false);
  }

  const auto some = [&](int64_t rows) { return std::vector<int32_t>(ids.begin() + context, ids.begin() + context + rows); };
  const Tensor together = timeline.append(some(16), true);
  timeline.truncate(context);
  const auto width = static_cast<size_t>(together.dim(1));
  for (size_t r = 0; r < 16; ++r) {
    const Tensor alone = timeline.append({ids[static_cast<size_t>(context) + r]}, true);
    if (!std::ranges::equal(alone.as<float>(), together.as<float>().subspan(r * width, width))) {
      std::fprintf(stderr, "row %zu differs from a single step\n", r);
      return 1;
    }
  }
  timeline.truncate(context);

  std::vector<Timeline> forks;
  for (int i = 0; i < 16; ++i) forks.push_back(timeline.fork());
  const Tensor of_all = Timeline::append_together(forks, some(16));
  for (size_t r = 0; r < 16; ++r) {
    const Tensor alone = timeline.append({ids[static_cast<size_t>(context) + r]}, true);
    timeline.truncate(context);
    if (!std::ranges::equal(alone.as<float>(), of_all.as<float>().subspan(r * width, width))) {
      std::fprintf(stderr, "timeline %zu differs from a single step\n", r);
      return 1;
    }
    forks[r].truncate(context);
  }

  constexpr int64_t kRows[] = {1, 2, 3, 4, 6, 8, 12, 16};
  std::map<int64_t, std::vector<double>> ms_rows, ms_timelines;
  const auto timed = [](std::vector<double>& into, auto call) {
    const auto start = std::chrono::steady_clock::now();
    call();
    into.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
  };
  for (int round = 0; round < rounds; ++round) {
    for (int64_t rows : kRows) {
      timed(ms_rows[rows], [&] { timeline.append(some(rows), true); });
      timeline.truncate(context);
      const std::span<Timeline> some_forks(forks.data(), static_cast<size_t>(rows));
      timed(ms_timelines[rows], [&] { Timeline::append_together(some_forks, some(rows)); });
      for (Timeline& t : some_forks) t.truncate(context);
    }
  }
  const auto median = [](std::vector<double>& v) {
    std::ranges::sort(v);
    return v[v.size() / 2];
  };
  std::printf("%s, %lld tokens of context, %d rounds\n"
              "rows   of one timeline              of as many\n"
              "            ms  of one row  ms a row       ms  of one row  tokens/s of one row's\n",
              folder.c_str(), static_cast<long long>(context), rounds);
  const double one = median(ms_rows[1]);
  for (int64_t rows : kRows) {
    const double a = median(ms_rows[rows]), b = median(ms_timelines[rows]), n = static_cast<double>(rows);
    std::printf("%4lld %9.2f %11.2f %9.2f %8.2f %11.2f %12.2f\n", static_cast<long long>(rows), a, a / one, a / n, b, b / one,
                n * one / b);
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2 || argc > 5) {
    std::fprintf(stderr, "decode_rows_bench MODEL [CONTEXT_TOKENS [ROUNDS [THREADS]]]\n");
    return 2;
  }
  const auto number = [&](int i, int otherwise) { return argc > i ? std::max(1, std::atoi(argv[i])) : otherwise; };
  try {
    return run(argv[1], number(2, 200), number(3, 9), number(4, available_processors()));
  } catch (const Error& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
}
