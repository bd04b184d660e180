// What the benchmarks of the native text engine share: their command lines, the engine, a timeline that steps are timed on.
#pragma once

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <numeric>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "qvl/base/error.h"
#include "qvl/base/format.h"
#include "qvl/base/thread_pool.h"
#include "qvl/engine/composed.h"
#include "qvl/engine/native/open.h"
#include "qvl/package/package.h"

namespace qvl::bench {

// Arguments by place, beside flags such as --json that may stand anywhere.
class Arguments {
 public:
  Arguments(int argc, char** argv) {
    for (int i = 1; i < argc; ++i) {
      const std::string_view word = argv[i];
      (word.starts_with("--") ? flags_ : words_).emplace_back(word);
    }
  }
  size_t count() const { return words_.size(); }
  bool has(std::string_view flag) const { return std::ranges::find(flags_, flag) != flags_.end(); }
  const std::vector<std::string>& flags() const { return flags_; }
  std::string text(size_t i, std::string_view otherwise = "") const { return i < count() ? words_[i] : std::string(otherwise); }
  // Throws kInvalidArgument for anything but a whole number of 1 or more.
  int number(size_t i, int otherwise) const {
    if (i >= count()) return otherwise;
    const std::string& word = words_[i];
    int value = 0;
    const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), value);
    if (error != std::errc() || end != word.data() + word.size() || value < 1)
      fail(ErrorCode::kInvalidArgument, "command line", cat("argument ", i + 1), "a whole number of 1 or more", word);
    return value;
  }
  int threads(size_t i) const { return number(i, available_processors()); }

 private:
  std::vector<std::string> words_, flags_;
};

// The main() of a benchmark: `run(arguments)` gives the exit code. 2 and the usage where there are fewer than `least` or more
// than `most` arguments or a flag that is not in `flags`; 1 and the message of an Error.
template <typename Run>
int bench_main(int argc, char** argv, const char* usage, size_t least, size_t most, std::vector<std::string> flags, Run run) {
  const Arguments arguments(argc, argv);
  const bool known = std::ranges::all_of(arguments.flags(), [&](const std::string& f) { return std::ranges::count(flags, f) > 0; });
  if (arguments.count() < least || arguments.count() > most || !known) {
    std::fprintf(stderr, "%s\n", usage);
    return 2;
  }
  try {
    return run(arguments);
  } catch (const Error& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
}

// A checkpoint or a package in the native engine. Throws what opening them throws.
inline std::shared_ptr<const engine::Engine> open_native(const std::filesystem::path& folder, int threads,
                                                         engine::KvType kv = engine::KvType::kAuto) {
  engine::EngineOptions options;
  options.threads = threads;
  options.kv = kv;
  if (!package::is_package_folder(folder)) return engine::native::open_checkpoint(folder, options);
  const auto package = std::make_shared<const package::Package>(package::Package::open(folder));
  auto pool = std::make_shared<ThreadPool>(threads);
  const engine::OpenedStages stages = engine::native::open_package(package, options, {}, pool);
  return engine::compose(package->config(), stages, stages, package->manifest().source.parameters, std::move(pool));
}

// Token ids below 500, the same every time.
inline std::vector<int32_t> some_ids(size_t count) {
  std::vector<int32_t> ids(count);
  uint32_t state = 1;
  for (int32_t& id : ids) {
    state = state * 1664525 + 1013904223;
    id = static_cast<int32_t>(state >> 8) % 500;
  }
  return ids;
}

// The ids at the end of what the cache holds, as prompt or as rows of a decode step: then their logits, [ids, V].
inline Tensor append(const engine::Engine& engine, engine::KvCache& cache, const std::vector<int32_t>& ids, bool decode,
                     engine::TopLogits top = {}) {
  const Tensor embeds = engine.embed().embed(ids);
  std::vector<int64_t> positions(ids.size());
  std::iota(positions.begin(), positions.end(), cache.length());
  engine::DecoderInput input;
  input.embeds = &embeds;
  for (auto& axis : input.positions) axis = positions;
  input.decode = decode;
  input.top = top;
  return engine.decoder().forward(input, cache, decode ? engine::LogitsMode::kAll : engine::LogitsMode::kNone);
}

template <typename Call>
double timed_ms(Call call) {
  const auto start = std::chrono::steady_clock::now();
  call();
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

// The upper one of two. Sorts; of at least one value.
inline double median(std::vector<double>& values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

}  // namespace qvl::bench
