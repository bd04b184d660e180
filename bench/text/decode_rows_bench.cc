// What a decode step of several rows costs compared with one row: the price of checking guessed tokens
// (generate/speculation.h).
//
//   decode_rows_bench MODEL [CONTEXT_TOKENS [ROUNDS [THREADS]]]
//
// MODEL: a checkpoint or a package, in the native engine. First checks that the rows have the logits of single steps to
// the bit, then times steps of 1, 2, 3, 4, 6, 8, 12 and 16 rows in turn, round after round, so that a busy machine disturbs
// all of them alike; prints medians.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <numeric>
#include <vector>

#include "qvl/base/error.h"
#include "qvl/base/thread_pool.h"
#include "qvl/engine/native/open.h"
#include "qvl/package/package.h"

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

 private:
  const engine::EmbedStage& embed_;
  const engine::DecoderStage& decoder_;
  std::unique_ptr<engine::KvCache> cache_;
};

int run(const std::filesystem::path& folder, int64_t context, int rounds, int threads) {
  engine::EngineOptions options;
  options.threads = threads;
  std::shared_ptr<const engine::Engine> checkpoint;
  engine::OpenedStages stages;
  if (package::is_package_folder(folder)) {
    stages = engine::native::open_package(
        std::make_shared<const package::Package>(package::Package::open(folder)), options,
        {.vision = false, .text = true}, std::make_shared<ThreadPool>(threads));
  } else {
    checkpoint = engine::native::open_checkpoint(folder, options);
  }
  Timeline timeline(checkpoint ? checkpoint->embed() : *stages.embed,
                    checkpoint ? checkpoint->decoder() : *stages.decoder);
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

  constexpr int64_t kRows[] = {1, 2, 3, 4, 6, 8, 12, 16};
  std::map<int64_t, std::vector<double>> ms;
  for (int round = 0; round < rounds; ++round) {
    for (int64_t rows : kRows) {
      const auto start = std::chrono::steady_clock::now();
      timeline.append(some(rows), true);
      ms[rows].push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
      timeline.truncate(context);
    }
  }
  const auto median = [&](int64_t rows) {
    std::vector<double>& v = ms[rows];
    std::ranges::sort(v);
    return v[v.size() / 2];
  };
  std::printf("%s, %lld tokens of context, %d rounds\nrows      ms  of one row  ms a row\n", folder.c_str(),
              static_cast<long long>(context), rounds);
  for (int64_t rows : kRows) {
    std::printf("%4lld %7.2f %11.2f %9.2f\n", static_cast<long long>(rows), median(rows), median(rows) / median(1),
                median(rows) / static_cast<double>(rows));
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
