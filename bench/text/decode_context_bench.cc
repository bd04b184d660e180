// A decode step at several lengths of context, without reading long prompts first: 256 positions are read and then repeated, in
// a file as kept keys and values lie in.
//
//   decode_context_bench MODEL [CONTEXTS [ROUNDS [THREADS [auto|bf16|int8]]]]      # CONTEXTS: 256,768,4096
//
// MODEL: a checkpoint or a package, in the native engine. CONTEXTS: multiples of 256. In every round each context has three
// steps of one token, of which the likeliest is asked for, three more with the logits of all tokens, and memory is read as fast as
// it goes, so that a busy machine disturbs all alike; prints medians and the best of all, and at which rate the keys and values were
// read that a longer context has more than the first.
#include <unistd.h>

#include <cstdlib>
#include <cstring>

#include "native_bench.h"
#include "qvl/base/guarded_mapping.h"
#include "qvl/kernels/machine_limits.h"

namespace {

using namespace qvl;
using namespace qvl::bench;

constexpr int64_t kRepeated = 256;

struct Timeline {
  int64_t context;
  std::unique_ptr<engine::KvCache> cache;
  std::vector<double> ms, all_logits_ms;
};

// What was saved, so many times, in a file without a name. Written as the product writes such files, so that the page cache
// holds them in large pages.
engine::SavedCache repeated(std::span<const std::byte> saved, int64_t times) {
  std::string name = (std::filesystem::temp_directory_path() / "decode_context_bench.XXXXXX").string();
  FileDescriptor file(::mkstemp(name.data()));
  if (!file.valid()) fail_errno(name, "cannot create");
  ::unlink(name.c_str());
  std::vector<std::byte> all;
  for (int64_t i = 0; i < times; ++i) all.insert(all.end(), saved.begin(), saved.end());
  constexpr size_t kPiece = size_t{2} << 20;
  for (size_t at = 0; at < all.size();) {
    const ssize_t written = ::write(file.get(), all.data() + at, std::min(kPiece, all.size() - at));
    if (written < 0) fail_errno(name, "cannot write");
    at += static_cast<size_t>(written);
  }
  const auto mapped = GuardedMapping::map(std::move(file));
  return {mapped, mapped->bytes()};
}

int run(const std::filesystem::path& folder, const std::string& contexts, int rounds, int threads, engine::KvType kv) {
  const auto engine = open_native(folder, threads, kv);
  const std::vector<int32_t> ids = some_ids(kRepeated);
  std::vector<std::byte> saved;
  {
    const auto cache = engine->decoder().new_cache();
    append(*engine, *cache, ids, false);
    cache->save(kRepeated, [&](std::span<const std::byte> piece) { saved.insert(saved.end(), piece.begin(), piece.end()); });
  }
  std::vector<Timeline> timelines;
  for (size_t at = 0; at < contexts.size();) {
    const size_t comma = std::min(contexts.find(',', at), contexts.size());
    const int64_t context = std::atoll(contexts.substr(at, comma - at).c_str());
    if (context < 1 || context % kRepeated != 0)
      fail(ErrorCode::kInvalidArgument, "decode_context_bench", "context", "a multiple of 256", cat(context));
    timelines.push_back({context, engine->decoder().new_cache(), {}, {}});
    timelines.back().cache->load(context, repeated(saved, context / kRepeated));
    at = comma + 1;
  }

  AlignedBuffer buffer(size_t{256} << 20);
  std::memset(buffer.data(), 1, buffer.size_bytes());
  std::vector<double> limits;
  for (int round = 0; round < rounds; ++round) {
    kernels::ReadRate limit;
    kernels::measure_read_limit({buffer.data(), buffer.size_bytes()}, engine->pool(), 1, limit);
    limits.push_back(limit.bytes_per_second * 1e-9);
    for (Timeline& t : timelines) {
      for (int step = 0; step < 3; ++step) {
        const std::vector<int32_t> id = {ids[static_cast<size_t>(step)]};
        t.ms.push_back(timed_ms([&] { append(*engine, *t.cache, id, true, {.count = 1}); }));
        t.cache->truncate(t.context);
        t.all_logits_ms.push_back(timed_ms([&] { append(*engine, *t.cache, id, true); }));
        t.cache->truncate(t.context);
      }
    }
  }
  std::ranges::sort(limits);
  for (Timeline& t : timelines) {
    std::ranges::sort(t.ms);
    std::ranges::sort(t.all_logits_ms);
  }
  const double limit = limits[limits.size() / 2], position_mb = static_cast<double>(saved.size()) / kRepeated * 1e-6;
  std::printf("%s, %d rounds; read limit %.1f GB/s (median, best %.1f)\n", folder.c_str(), rounds, limit, limits.back());
  const Timeline& first = timelines.front();
  for (const Timeline& t : timelines) {
    const double median = t.ms[t.ms.size() / 2], more = median - first.ms[first.ms.size() / 2];
    std::printf("%6lld tokens: %8.2f ms a step (best %.2f), %.2f (%.2f) with all logits", static_cast<long long>(t.context),
                median, t.ms.front(), t.all_logits_ms[t.all_logits_ms.size() / 2], t.all_logits_ms.front());
    if (t.context > first.context && more > 0) {
      const double rate = position_mb * static_cast<double>(t.context - first.context) / more;
      std::printf("; keys and values at %.1f GB/s, %.0f %% of the limit", rate, 100 * rate / limit);
    }
    std::printf("\n");
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  return bench_main(argc, argv, "decode_context_bench MODEL [CONTEXTS [ROUNDS [THREADS [auto|bf16|int8]]]]", 1, 5, {},
                    [](const Arguments& a) {
                      return run(a.text(0), a.text(1, "256,768,4096"), a.number(2, 7), a.threads(3),
                                 engine::parse_kv_type(a.text(4, "auto")));
                    });
}
