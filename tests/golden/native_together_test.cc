// Several timelines on one native decoder: stepped together, forked from each other, and stepped while another prompt or a
// picture is being computed. All of it to the bit what each is alone.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <numeric>
#include <optional>

#include "golden.h"
#include "qvl/base/error.h"
#include "qvl/base/guarded_mapping.h"

namespace qvl::golden {
namespace {

// A timeline with a way to say what comes next: any tokens do.
struct Timeline {
  std::unique_ptr<engine::KvCache> cache;
  int64_t delta = 0;
  int seed = 0;

  int64_t length() const { return cache->length(); }
  int32_t id(int64_t position) const { return static_cast<int32_t>((position * 37 + seed * 11) % 50); }
};

// The next rows of timelines as a decode step takes them.
struct Rows {
  Tensor embeds;
  std::vector<int64_t> positions;
};

Rows next_rows(const engine::Engine& engine, std::span<Timeline* const> timelines, std::span<const int64_t> rows) {
  Rows out;
  std::vector<int32_t> ids;
  for (size_t i = 0; i < timelines.size(); ++i) {
    for (int64_t r = 0; r < rows[i]; ++r) {
      const int64_t at = timelines[i]->length() + r;
      ids.push_back(timelines[i]->id(at));
      out.positions.push_back(at + timelines[i]->delta);
    }
  }
  out.embeds = engine.embed().embed(ids);
  return out;
}

Tensor decode_alone(const engine::Engine& engine, Timeline& timeline, int64_t rows) {
  Timeline* const one[] = {&timeline};
  const Rows next = next_rows(engine, one, {&rows, 1});
  engine::DecoderInput input;
  input.embeds = &next.embeds;
  for (auto& axis : input.positions) axis = next.positions;
  input.decode = true;
  return engine.decoder().forward(input, *timeline.cache, engine::LogitsMode::kAll);
}

Tensor decode_together(const engine::Engine& engine, std::span<Timeline* const> timelines, std::span<const int64_t> rows,
                       const engine::StageHooks& hooks = {}) {
  const Rows next = next_rows(engine, timelines, rows);
  engine::DecoderInput input;
  input.embeds = &next.embeds;
  for (auto& axis : input.positions) axis = next.positions;
  input.decode = true;
  std::vector<engine::DecodeShare> shares;
  for (size_t i = 0; i < timelines.size(); ++i) shares.push_back({timelines[i]->cache.get(), rows[i]});
  return engine.decoder().decode_together(input, shares, hooks);
}

Prompt prompt_of(const engine::Engine& engine, const std::string& name) {
  return make_prompt(checkpoint::SafetensorsFile::open(fixture_path("text/" + name + ".safetensors")), engine);
}

// Filled with the prompt, and decoded further up to `length` positions where that is more.
Timeline start(const engine::Engine& engine, const Prompt& prompt, int seed, int64_t length = 0) {
  Timeline out{engine.decoder().new_cache(), prompt.positions.delta, seed};
  feed(engine, prompt, 0, static_cast<int64_t>(prompt.ids.size()), *out.cache, engine::LogitsMode::kNone);
  while (out.length() < length) decode_alone(engine, out, std::min<int64_t>(16, length - out.length()));
  return out;
}

// The same in memory of its own: whole blocks lie in a file that nobody else has.
Timeline copy(const engine::Engine& engine, const Timeline& timeline) {
  std::vector<std::byte> saved;
  timeline.cache->save(timeline.length(),
                       [&](std::span<const std::byte> piece) { saved.insert(saved.end(), piece.begin(), piece.end()); });
  Timeline out{engine.decoder().new_cache(), timeline.delta, timeline.seed};
  FileDescriptor fd(::memfd_create("saved", MFD_CLOEXEC));
  EXPECT_EQ(::pwrite(fd.get(), saved.data(), saved.size(), 0), static_cast<ssize_t>(saved.size()));
  const auto file = GuardedMapping::map(std::move(fd));
  out.cache->load(timeline.length(), {.file = file, .bytes = file->bytes()});
  return out;
}

void expect_rows(const Tensor& together, int64_t first, const Tensor& alone, const std::string& what) {
  const auto part = together.as<float>().subspan(static_cast<size_t>(first * together.dim(1)),
                                                 static_cast<size_t>(alone.size()));
  EXPECT_TRUE(std::ranges::equal(part, alone.as<float>())) << what;
}

// Timelines of different lengths, one of which crosses a block of its cache and a run of attention (256), with one row,
// with guesses, with guesses taken back.
TEST(NativeTextTogether, EveryTimelineHasTheBitsOfItsOwnSteps) {
  const std::vector<std::vector<int64_t>> rounds = {{1, 1, 1}, {3, 1, 2}, {1, 8, 7}, {14, 1, 1}, {1, 1, 5}, {2, 2, 2}};
  for (const Variant& variant : cache_variants()) {
    const auto engine = tiny_engine(variant, 2);
    const std::vector<std::string> names = {"text", "image_video", "two_images"};
    std::vector<Timeline> together, alone;
    for (size_t i = 0; i < names.size(); ++i) {
      const Prompt prompt = prompt_of(*engine, names[i]);
      together.push_back(start(*engine, prompt, static_cast<int>(i), i == 2 ? 245 : 0));
      alone.push_back(copy(*engine, together.back()));
    }
    Timeline* const all[] = {&together[0], &together[1], &together[2]};
    for (const std::vector<int64_t>& rows : rounds) {
      const Tensor logits = decode_together(*engine, all, rows);
      ASSERT_EQ(logits.dim(0), std::accumulate(rows.begin(), rows.end(), int64_t{0}));
      int64_t first = 0;
      for (size_t i = 0; i < 3; ++i) {
        expect_rows(logits, first, decode_alone(*engine, alone[i], rows[i]),
                    variant_name(variant) + " timeline " + std::to_string(i) + " rows " + std::to_string(rows[i]));
        first += rows[i];
        for (Timeline* t : {&together[i], &alone[i]}) t->cache->truncate(t->length() - rows[i] / 2);
      }
    }
    // One leaves, the others go on in another order.
    Timeline* const left[] = {&together[2], &together[0]};
    const int64_t rows[] = {2, 1};
    const Tensor logits = decode_together(*engine, left, rows);
    expect_rows(logits, 0, decode_alone(*engine, alone[2], 2), variant_name(variant));
    expect_rows(logits, 2, decode_alone(*engine, alone[0], 1), variant_name(variant));
  }
}

TEST(NativeTextTogether, CancelledOrRefusedAllTimelinesAreAsBefore) {
  const auto engine = tiny_engine({engine::Precision::kBF16, "scalar"});
  const Prompt prompt = prompt_of(*engine, "text");
  Timeline a = start(*engine, prompt, 1, 255), b = start(*engine, prompt, 2), c = start(*engine, prompt, 1, 255);
  const int64_t la = a.length(), lb = b.length();
  Timeline* const both[] = {&a, &b};
  const std::vector<int64_t> rows = {3, 2};
  engine::StageHooks cancel;
  cancel.progress = [](int64_t done, int64_t) { return done < 2; };
  try {
    decode_together(*engine, both, rows, cancel);
    FAIL() << "ran to the end";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::kCancelled);
  }

  const Rows next = next_rows(*engine, both, rows);
  const auto refuse = [&](std::vector<engine::DecodeShare> shares, auto change) {
    engine::DecoderInput input;
    input.embeds = &next.embeds;
    for (auto& axis : input.positions) axis = next.positions;
    input.decode = true;
    change(input);
    try {
      engine->decoder().decode_together(input, shares);
      ADD_FAILURE() << "was not refused";
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ErrorCode::kInvalidArgument) << e.what();
    }
    EXPECT_EQ(a.length(), la);
    EXPECT_EQ(b.length(), lb);
  };
  const auto as_it_is = [](engine::DecoderInput&) {};
  const std::vector<int64_t> visual = {0};
  const auto foreign = tiny_engine({engine::Precision::kF32, "scalar"})->decoder().new_cache();
  refuse({{a.cache.get(), 3}, {b.cache.get(), 1}}, as_it_is);
  refuse({{a.cache.get(), 3}, {b.cache.get(), 3}}, as_it_is);
  refuse({{a.cache.get(), 5}, {b.cache.get(), 0}}, as_it_is);
  refuse({{a.cache.get(), 3}, {a.cache.get(), 2}}, as_it_is);
  refuse({{a.cache.get(), 3}, {nullptr, 2}}, as_it_is);
  refuse({{a.cache.get(), 3}, {foreign.get(), 2}}, as_it_is);
  refuse({}, as_it_is);
  refuse({{a.cache.get(), 3}, {b.cache.get(), 2}}, [](engine::DecoderInput& i) { i.decode = false; });
  refuse({{a.cache.get(), 3}, {b.cache.get(), 2}}, [&](engine::DecoderInput& i) { i.visual_rows = visual; });

  const Tensor logits = decode_together(*engine, both, rows);
  expect_rows(logits, 0, decode_alone(*engine, c, 3), "after refusals");
}

// Answers of one prompt that go different ways, over shared blocks of the cache.
TEST(NativeTextForks, DivergeWithoutDisturbingEachOther) {
  for (const Variant& variant : cache_variants()) {
    const auto engine = tiny_engine(variant, 2);
    const Prompt prompt = prompt_of(*engine, "image_video");
    const Timeline trunk = start(*engine, prompt, 0, 300);
    for (const int64_t shared : {static_cast<int64_t>(prompt.ids.size()), int64_t{256}, int64_t{300}}) {
      ASSERT_LE(shared, 300);
      Timeline root = copy(*engine, trunk);
      root.cache->truncate(shared);
      std::vector<Timeline> forks, alone;
      for (int i = 1; i <= 3; ++i) {
        forks.push_back({engine->decoder().new_cache(), root.delta, i});
        ASSERT_TRUE(forks.back().cache->share_prefix(*root.cache, shared));
        alone.push_back(copy(*engine, root));
        alone.back().seed = i;
      }
      Timeline root_alone = copy(*engine, root);
      Timeline* const all[] = {&root, &forks[0], &forks[1], &forks[2]};
      Timeline* const each[] = {&root_alone, &alone[0], &alone[1], &alone[2]};
      for (int round = 0; round < 5; ++round) {
        // The second fork goes back into what is shared, and on from there.
        for (auto* group : {all, each}) {
          if (round == 3) group[2]->cache->truncate(shared - 40);
        }
        const std::vector<int64_t> rows = {1, 2, 3, 4};
        const Tensor logits = decode_together(*engine, all, rows);
        int64_t first = 0;
        for (size_t i = 0; i < 4; ++i) {
          expect_rows(logits, first, decode_alone(*engine, *each[i], rows[i]),
                      variant_name(variant) + " shared " + std::to_string(shared) + " fork " + std::to_string(i));
          first += rows[i];
        }
      }
    }
  }
}

// ---- while something long is computed

// Decodes timeline `b` one token further whenever it is called, up to a bound; keeps the logits.
struct Interleaved {
  const engine::Engine& engine;
  Timeline timeline;
  std::vector<std::vector<float>> logits;
  int64_t calls = 0, last_done = 0;

  engine::ProgressFn hook() {
    return [this](int64_t done, int64_t total) {
      EXPECT_GE(done, last_done);
      EXPECT_LE(done, total);
      last_done = done;
      if (++calls % 3 == 1 && logits.size() < 12) next();
      return true;
    };
  }
  void next() {
    const Tensor t = decode_alone(engine, timeline, 1);
    logits.emplace_back(t.as<float>().begin(), t.as<float>().end());
  }
};

void expect_same_as_undisturbed(const Interleaved& seen, Timeline fresh, const std::string& what) {
  ASSERT_GE(seen.logits.size(), 2U) << what;
  Interleaved alone{seen.engine, std::move(fresh), {}};
  while (alone.logits.size() < seen.logits.size()) alone.next();
  EXPECT_EQ(alone.logits, seen.logits) << what;
}

TEST(NativeTextTogether, AStepInsideAnotherPrefillChangesNeither) {
  for (const Variant& variant : cache_variants()) {
    const auto engine = tiny_engine(variant, 2);
    const Prompt prompt = prompt_of(*engine, "image_video"), other = prompt_of(*engine, "text");
    const int64_t length = static_cast<int64_t>(prompt.ids.size());
    const auto plain = engine->decoder().new_cache();
    const Tensor expected = feed(*engine, prompt, 0, length, *plain, engine::LogitsMode::kAll);

    Interleaved seen{*engine, start(*engine, other, 4), {}};
    engine::StageHooks hooks;
    hooks.progress = seen.hook();
    const auto cache = engine->decoder().new_cache();
    const Tensor logits = feed(*engine, prompt, 0, length, *cache, engine::LogitsMode::kAll, hooks);
    EXPECT_TRUE(std::ranges::equal(logits.as<float>(), expected.as<float>())) << variant_name(variant);
    // Attention and MLP are told apart, not only layers.
    EXPECT_GE(seen.calls, 4 * engine->config().text.num_layers);
    expect_same_as_undisturbed(seen, start(*engine, other, 4), variant_name(variant));
    // What was written to the cache meanwhile, too.
    Timeline a{engine->decoder().new_cache(), prompt.positions.delta, 9}, b{engine->decoder().new_cache(), prompt.positions.delta, 9};
    a.cache->share_prefix(*cache, length);
    b.cache->share_prefix(*plain, length);
    EXPECT_TRUE(std::ranges::equal(decode_alone(*engine, a, 2).as<float>(), decode_alone(*engine, b, 2).as<float>()));
  }
}

TEST(NativeTextTogether, AStepInsideAPictureChangesNeither) {
  const auto file = checkpoint::SafetensorsFile::open(fixture_path("vision/multi.safetensors"));
  const std::vector<float> pixels = f32(file, "pixel_values");
  const std::vector<image::Grid> grid = grids(file, "grid_thw");
  for (const Variant& variant : variants()) {
    const auto engine = tiny_engine(variant, 2);
    const Prompt other = prompt_of(*engine, "text");
    const engine::VisionFeatures expected = engine->vision().encode(pixels, grid);
    Interleaved seen{*engine, start(*engine, other, 4), {}};
    engine::StageHooks hooks;
    hooks.progress = seen.hook();
    const engine::VisionFeatures features = engine->vision().encode(pixels, grid, hooks);
    const auto expect_equal = [&](const Tensor& a, const Tensor& b) {
      EXPECT_TRUE(std::ranges::equal(a.to(DType::kF32).as<float>(), b.to(DType::kF32).as<float>())) << variant_name(variant);
    };
    expect_equal(features.merged, expected.merged);
    for (size_t j = 0; j < features.deepstack.size(); ++j) expect_equal(features.deepstack[j], expected.deepstack[j]);
    EXPECT_GE(seen.calls, 4 * engine->config().vision.depth);
    expect_same_as_undisturbed(seen, start(*engine, other, 4), variant_name(variant));
  }
}

// A hook may also give up in the middle of a layer or a block.
TEST(NativeTextTogether, GivingUpWithinALayerLeavesTheTimelineAsItWas) {
  const auto engine = tiny_engine({engine::Precision::kF32, "scalar"});
  const Prompt prompt = prompt_of(*engine, "text");
  const int64_t length = static_cast<int64_t>(prompt.ids.size());
  for (int stop_at = 1; stop_at < 9; ++stop_at) {
    const auto cache = engine->decoder().new_cache();
    feed(*engine, prompt, 0, 4, *cache, engine::LogitsMode::kNone);
    engine::StageHooks hooks;
    int calls = 0;
    hooks.progress = [&](int64_t, int64_t) { return ++calls < stop_at; };
    EXPECT_THROW(feed(*engine, prompt, 4, length, *cache, engine::LogitsMode::kLast, hooks), Error);
    EXPECT_EQ(cache->length(), 4);
    const Tensor rest = feed(*engine, prompt, 4, length, *cache, engine::LogitsMode::kLast);
    const auto fresh = engine->decoder().new_cache();
    const Tensor whole = feed(*engine, prompt, 0, length, *fresh, engine::LogitsMode::kLast);
    EXPECT_TRUE(std::ranges::equal(rest.as<float>(), whole.as<float>()));
  }
}

}  // namespace
}  // namespace qvl::golden
