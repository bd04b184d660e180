// What a decode step of several rows costs compared with one row: the price of checking guessed tokens
// (generate/speculation.h), and of answering several at once (generate/generation.h).
//
//   decode_rows_bench MODEL [CONTEXT_TOKENS [ROUNDS [THREADS]]]
//
// MODEL: a checkpoint or a package, in the native engine. First checks that the rows have the logits of single steps to
// the bit, then times steps of 1, 2, 3, 4, 6, 8, 12 and 16 rows, of one timeline and of as many, in turn, round after round,
// so that a busy machine disturbs all of them alike; prints medians. Timelines are forks of one: up to 256 tokens of context
// each has its own memory, what is beyond is read by all.
#include <map>
#include <span>

#include "native_bench.h"

namespace {

using namespace qvl;
using namespace qvl::bench;

class Timeline {
 public:
  explicit Timeline(const engine::Engine& engine) : engine_(engine), cache_(engine.decoder().new_cache()) {}

  Tensor append(const std::vector<int32_t>& ids, bool decode) { return bench::append(engine_, *cache_, ids, decode, {.count = decode ? 1 : 0}); }
  void truncate(int64_t length) { cache_->truncate(length); }
  Timeline fork() const {
    Timeline out(engine_);
    out.cache_->share_prefix(*cache_, cache_->length());
    return out;
  }
  // One token each.
  static Tensor append_together(std::span<Timeline> timelines, const std::vector<int32_t>& ids) {
    const Tensor embeds = timelines[0].engine_.embed().embed(ids);
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
    input.top.count = 1;
    return timelines[0].engine_.decoder().decode_together(input, shares);
  }

 private:
  const engine::Engine& engine_;
  std::unique_ptr<engine::KvCache> cache_;
};

int run(const std::filesystem::path& folder, int64_t context, int rounds, int threads) {
  const auto engine = open_native(folder, threads);
  Timeline timeline(*engine);
  const std::vector<int32_t> ids = some_ids(static_cast<size_t>(context) + 16);
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
  for (int round = 0; round < rounds; ++round) {
    for (int64_t rows : kRows) {
      ms_rows[rows].push_back(timed_ms([&] { timeline.append(some(rows), true); }));
      timeline.truncate(context);
      const std::span<Timeline> some_forks(forks.data(), static_cast<size_t>(rows));
      ms_timelines[rows].push_back(timed_ms([&] { Timeline::append_together(some_forks, some(rows)); }));
      for (Timeline& t : some_forks) t.truncate(context);
    }
  }
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
  return bench_main(argc, argv, "decode_rows_bench MODEL [CONTEXT_TOKENS [ROUNDS [THREADS]]]", 1, 4, {}, [](const Arguments& a) {
    return run(a.text(0), a.number(1, 200), a.number(2, 9), a.threads(3));
  });
}
