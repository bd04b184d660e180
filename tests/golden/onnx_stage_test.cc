// What holds for stages on ONNX Runtime beyond the shared table: the cache's contract in its three forms,
// packages with fixed sizes, integer formats against the native engine, cancelling, errors.
#include <algorithm>
#include <cmath>
#include <fstream>
#include <random>

#include "golden.h"
#include "onnx_variants.h"
#include "qvl/base/error.h"
#include "qvl/base/mapped_file.h"
#include "qvl/package/graph_io.h"

namespace qvl::golden {
namespace {

namespace fs = std::filesystem;

// One package for each form of the cache: in place, in place with joined levels, appended.
const Variant kCacheForms[] = {{engine::Precision::kF32, "onnx_host"},
                               {engine::Precision::kF32, "onnx_genai"},
                               {engine::Precision::kF32, "onnx_plain"}};
const Variant kF32{engine::Precision::kF32, ""};

checkpoint::SafetensorsFile text_file(const std::string& name) {
  return checkpoint::SafetensorsFile::open(fixture_path("text/" + name + ".safetensors"));
}

template <typename F>
ErrorCode code_of(F call, std::string* message = nullptr) {
  try {
    call();
  } catch (const Error& e) {
    if (message) *message = e.what();
    return e.code();
  }
  ADD_FAILURE() << "no error";
  return ErrorCode::kIo;
}

Prompt random_text(const engine::Engine& engine, int64_t length) {
  std::mt19937 random(3);
  Prompt p;
  for (int64_t i = 0; i < length; ++i) p.ids.push_back(static_cast<int32_t>(random() % 490));
  p.positions = model::mrope_positions(engine.config(), p.ids, {}, {});
  p.embeds = engine.embed().embed(p.ids);
  return p;
}

std::shared_ptr<const engine::Engine> native_tiny() {
  return tiny_engine({engine::Precision::kF32, "package_native"});
}

TEST(OnnxVision, ImagesDoNotInfluenceEachOther) {
  const auto file = checkpoint::SafetensorsFile::open(fixture_path("vision/multi.safetensors"));
  const std::vector<float> pixels = f32(file, "pixel_values");
  const std::vector<image::Grid> grid = grids(file, "grid_thw");
  for (const char* kind : {"onnx_full", "onnx_host"}) {
    const auto engine = tiny_engine({engine::Precision::kF32, kind});
    const Tensor together = engine->vision().encode(pixels, grid).merged.to(DType::kF32);
    size_t row = 0;
    size_t at = 0;
    for (const image::Grid& g : grid) {
      const size_t n = static_cast<size_t>(g.patches());
      const Tensor alone = engine->vision()
                               .encode(std::span(pixels).subspan(row * 1536, n * 1536), {&g, 1})
                               .merged.to(DType::kF32);
      expect_close(alone.as<float>(), together.as<float>().subspan(at, static_cast<size_t>(alone.size())),
                   {2e-6f, 0}, kF32, kind);
      row += n;
      at += static_cast<size_t>(alone.size());
    }
  }
}

TEST(OnnxVision, RefusesInputThatDoesNotFit) {
  const auto engine = tiny_engine({engine::Precision::kF32, "onnx_full"});
  const std::vector<float> pixels(8 * 1536);
  for (const image::Grid g : {image::Grid{1, 2, 2}, {1, 4, 4}, {1, 1, 8}, {0, 0, 0}}) {
    EXPECT_EQ(code_of([&] { engine->vision().encode(pixels, {&g, 1}); }), ErrorCode::kMismatch);
  }
}

TEST(OnnxText, ResultsDoNotDependOnTheChunkSize) {
  for (const Variant& variant : kCacheForms) {
    const auto engine = tiny_engine(variant);
    for (const char* name : {"image_video", "wide_image_last"}) {
      const auto file = text_file(name);
      const Prompt prompt = make_prompt(file, *engine);
      const int64_t length = static_cast<int64_t>(prompt.ids.size());
      const std::vector<float> golden = f32(file, "logits");
      const auto last_row = std::span(golden).last(static_cast<size_t>(engine->config().text.vocab_size));
      for (int64_t chunk : {1, 7, 16}) {
        const auto cache = engine->decoder().new_cache();
        Tensor last;
        for (int64_t begin = 0; begin < length; begin += chunk) {
          const int64_t end = std::min(length, begin + chunk);
          last = feed(*engine, prompt, begin, end, *cache,
                      end == length ? engine::LogitsMode::kLast : engine::LogitsMode::kNone);
          ASSERT_EQ(cache->length(), end);
          ASSERT_EQ(last.dim(0), end == length ? 1 : 0);
        }
        expect_close(last.as<float>(), last_row, {1e-4f, 0}, variant,
                     std::string(name) + " in chunks of " + std::to_string(chunk));
      }
    }
  }
}

// Longer than the first buffers, so that the cache moves; held against the native decoder.
TEST(OnnxText, TheCacheGrowsAndIsCutBack) {
  const auto native = native_tiny();
  const int64_t length = 700;
  const Prompt expected_prompt = random_text(*native, length);
  const auto expected_cache = native->decoder().new_cache();
  const Tensor expected =
      feed(*native, expected_prompt, 0, length, *expected_cache, engine::LogitsMode::kLast);
  for (const Variant& variant : kCacheForms) {
    const auto engine = tiny_engine(variant);
    const Prompt prompt = random_text(*engine, length);
    const auto cache = engine->decoder().new_cache();
    Tensor logits;
    for (int64_t begin = 0; begin < length; begin += 100) {
      logits = feed(*engine, prompt, begin, begin + 100, *cache, engine::LogitsMode::kLast);
    }
    expect_close(logits.as<float>(), expected.as<float>(), {1e-4f, 0}, variant,
                 "700 tokens " + variant.kernels);
    EXPECT_GT(cache->size_bytes(), 0u);
    // Another end is computed and forgotten, then the first one again.
    cache->truncate(450);
    step(*engine, 3, 450, *cache);
    step(*engine, 4, 451, *cache);
    EXPECT_EQ(cache->length(), 452);
    cache->truncate(450);
    logits = feed(*engine, prompt, 450, length, *cache, engine::LogitsMode::kLast);
    expect_close(logits.as<float>(), expected.as<float>(), {1e-4f, 0}, variant,
                 "refilled " + variant.kernels);
    EXPECT_EQ(code_of([&] { cache->truncate(length + 1); }), ErrorCode::kInvalidArgument);
    EXPECT_EQ(cache->length(), length);
    // To nothing and on.
    cache->truncate(0);
    logits = feed(*engine, prompt, 0, length, *cache, engine::LogitsMode::kLast);
    expect_close(logits.as<float>(), expected.as<float>(), {1e-4f, 0}, variant,
                 "from nothing " + variant.kernels);
  }
}

TEST(OnnxText, CachesAreIndependent) {
  const auto file = text_file("two_images");
  for (const Variant& variant : kCacheForms) {
    const auto engine = tiny_engine(variant);
    const Prompt prompt = make_prompt(file, *engine);
    const int64_t length = static_cast<int64_t>(prompt.ids.size());
    const auto a = engine->decoder().new_cache();
    const auto b = engine->decoder().new_cache();
    feed(*engine, prompt, 0, length / 2, *a, engine::LogitsMode::kNone);
    const Tensor whole = feed(*engine, prompt, 0, length, *b, engine::LogitsMode::kLast);
    const Tensor parts = feed(*engine, prompt, length / 2, length, *a, engine::LogitsMode::kLast);
    expect_close(parts.as<float>(), whole.as<float>(), {2e-5f, 0}, variant, variant.kernels);
  }
}

// Timelines that begin alike and go on differently, one decode step of both at a time: each as if it were alone.
void expect_forks(const engine::Engine& engine, const std::string& what) {
  const Prompt prompt = random_text(engine, 40);
  const auto root = engine.decoder().new_cache();
  feed(engine, prompt, 0, 40, *root, engine::LogitsMode::kNone);
  const auto fork = engine.decoder().new_cache(), alone = engine.decoder().new_cache(),
             root_alone = engine.decoder().new_cache();
  ASSERT_TRUE(fork->share_prefix(*root, 33)) << what;
  for (auto* cache : {alone.get(), root_alone.get()}) feed(engine, prompt, 0, 40, *cache, engine::LogitsMode::kNone);
  alone->truncate(33);
  for (int32_t i = 0; i < 5; ++i) {
    const std::vector<int32_t> ids = {100 + i, 200 + i, 300 + i};
    const std::vector<int64_t> positions = {root->length(), fork->length(), fork->length() + 1};
    const Tensor embeds = engine.embed().embed(ids);
    engine::DecoderInput input;
    input.embeds = &embeds;
    for (auto& axis : input.positions) axis = positions;
    input.decode = true;
    const std::vector<engine::DecodeShare> shares = {{root.get(), 1}, {fork.get(), 2}};
    const Tensor together = engine.decoder().decode_together(input, shares);
    const auto own = [&](engine::KvCache& cache, size_t first, size_t rows) {
      const Tensor part = engine.embed().embed(std::span(ids).subspan(first, rows));
      engine::DecoderInput in;
      in.embeds = &part;
      for (auto& axis : in.positions) axis = std::span(positions).subspan(first, rows);
      in.decode = true;
      const Tensor logits = engine.decoder().forward(in, cache, engine::LogitsMode::kAll);
      const auto width = static_cast<size_t>(logits.dim(1));
      EXPECT_TRUE(std::ranges::equal(logits.as<float>(), together.as<float>().subspan(first * width, rows * width)))
          << what << " step " << i << " row " << first;
    };
    own(*root_alone, 0, 1);
    own(*alone, 1, 2);
  }
  EXPECT_EQ(root->length(), 45);
  EXPECT_EQ(fork->length(), 43);
  EXPECT_EQ(code_of([&] { fork->share_prefix(*root, 3); }), ErrorCode::kInvalidArgument);
}

TEST(OnnxText, ForksStepTogetherAsEachAlone) {
  for (const Variant& variant : kCacheForms) expect_forks(*tiny_engine(variant), variant.kernels);
  engine::ort::OrtOptions options;
  options.threads = 1;
  expect_forks(*open_mix("static", true, true, options, engine::Precision::kAuto), "static");
}

TEST(OnnxText, AnErrorLeavesTheTimelineAsItWas) {
  const auto file = text_file("text");
  for (const Variant& variant : kCacheForms) {
    const auto engine = tiny_engine(variant);
    const Prompt prompt = make_prompt(file, *engine);
    const int64_t length = static_cast<int64_t>(prompt.ids.size());
    const auto cache = engine->decoder().new_cache();
    feed(*engine, prompt, 0, 4, *cache, engine::LogitsMode::kNone);
    engine::StageHooks cancel;
    cancel.progress = [](int64_t, int64_t) { return false; };
    EXPECT_EQ(code_of([&] { feed(*engine, prompt, 4, length, *cache, engine::LogitsMode::kLast, cancel); }),
              ErrorCode::kCancelled);
    EXPECT_EQ(cache->length(), 4);
    const Tensor rest = feed(*engine, prompt, 4, length, *cache, engine::LogitsMode::kLast);
    const auto fresh = engine->decoder().new_cache();
    const Tensor whole = feed(*engine, prompt, 0, length, *fresh, engine::LogitsMode::kLast);
    expect_close(rest.as<float>(), whole.as<float>(), {2e-5f, 0}, variant, variant.kernels);
    const auto other = native_tiny()->decoder().new_cache();
    EXPECT_EQ(code_of([&] { feed(*engine, prompt, 0, 4, *other, engine::LogitsMode::kNone); }),
              ErrorCode::kInvalidArgument);
  }
}

// A run that has begun is stopped from within.
TEST(OnnxText, ALongRunCanBeCancelled) {
  const auto engine = tiny_engine({engine::Precision::kF32, "onnx_plain"});
  const Prompt prompt = random_text(*engine, 3000);
  const auto cache = engine->decoder().new_cache();
  int calls = 0;
  engine::StageHooks hooks;
  hooks.progress = [&](int64_t, int64_t) { return ++calls < 2; };
  EXPECT_EQ(code_of([&] { feed(*engine, prompt, 0, 3000, *cache, engine::LogitsMode::kLast, hooks); }),
            ErrorCode::kCancelled);
  EXPECT_EQ(calls, 2);
  EXPECT_EQ(cache->length(), 0);
  // What the callback throws comes out as it is.
  hooks.progress = [&](int64_t, int64_t) -> bool {
    if (++calls > 4) throw std::runtime_error("mine");
    return true;
  };
  calls = 3;
  EXPECT_THROW(feed(*engine, prompt, 0, 3000, *cache, engine::LogitsMode::kLast, hooks), std::runtime_error);
  EXPECT_EQ(cache->length(), 0);
}

TEST(OnnxText, RefusesInputThatDoesNotFit) {
  const auto engine = tiny_engine({engine::Precision::kF32, "onnx_host"});
  for (const int32_t id : {512, -1}) {
    EXPECT_EQ(code_of([&] { engine->embed().embed({&id, 1}); }), ErrorCode::kInvalidArgument);
  }
  const Tensor wide(DType::kF32, {2, 65});
  const std::vector<int64_t> positions = {0, 1};
  engine::DecoderInput input;
  input.embeds = &wide;
  for (auto& axis : input.positions) axis = positions;
  const auto cache = engine->decoder().new_cache();
  EXPECT_EQ(code_of([&] { engine->decoder().forward(input, *cache, engine::LogitsMode::kLast); }),
            ErrorCode::kMismatch);
}

TEST(OnnxStatic, FixedSizesGiveTheSame) {
  engine::ort::OrtOptions options;
  options.threads = 1;
  const auto fixed = open_mix("static", true, true, options, engine::Precision::kAuto);
  const auto native = native_tiny();

  const image::Grid grid{1, 16, 16};
  std::mt19937 random(5);
  std::vector<float> pixels(static_cast<size_t>(2 * grid.patches()) * 1536);
  for (float& v : pixels) v = static_cast<float>(random() % 2001) / 1000.0f - 1.0f;
  const std::vector<image::Grid> two = {grid, grid};
  const Tensor expected = native->vision().encode(pixels, two).merged.to(DType::kF32);
  const Tensor actual = fixed->vision().encode(pixels, two).merged.to(DType::kF32);
  expect_close(actual.as<float>(), expected.as<float>(), {3e-5f, 0}, kF32, "static vision");
  const image::Grid other{1, 16, 18};
  const std::vector<float> more(static_cast<size_t>(other.patches()) * 1536);
  EXPECT_EQ(code_of([&] { fixed->vision().encode(more, {&other, 1}); }), ErrorCode::kMismatch);

  // All logits, in calls of one real row; then in chunks that do not fill a call; then decoding.
  for (const char* name : {"text", "image"}) {
    const auto file = text_file(name);
    const Prompt from_native = make_prompt(file, *native);
    Prompt prompt = make_prompt(file, *native);
    const int64_t length = static_cast<int64_t>(prompt.ids.size());
    const auto all_cache = fixed->decoder().new_cache();
    const Tensor all = feed(*fixed, prompt, 0, length, *all_cache, engine::LogitsMode::kAll);
    expect_close(all.as<float>(), f32(file, "logits"), {1e-4f, 0}, kF32, std::string("static ") + name);
    const auto cache = fixed->decoder().new_cache();
    Tensor logits;
    for (int64_t begin = 0; begin < length; begin += 11) {
      logits = feed(*fixed, prompt, begin, std::min(length, begin + 11), *cache, engine::LogitsMode::kLast);
    }
    const std::vector<int64_t> tokens = i64(file, "greedy.tokens");
    for (size_t i = 0; i < tokens.size(); ++i) {
      ASSERT_EQ(argmax(logits.as<float>()), tokens[i]) << name << " step " << i;
      logits = step(*fixed, static_cast<int32_t>(tokens[i]),
                    length + static_cast<int64_t>(i) + prompt.positions.delta, *cache);
    }
  }
  // The cache ends where the graph's does.
  const Prompt lengthy = random_text(*fixed, 160);
  const auto cache = fixed->decoder().new_cache();
  std::string message;
  EXPECT_EQ(code_of([&] { feed(*fixed, lengthy, 0, 160, *cache, engine::LogitsMode::kLast); }, &message),
            ErrorCode::kLimit);
  EXPECT_NE(message.find("112"), std::string::npos) << message;
  EXPECT_EQ(cache->length(), 0);
}

// int4 and int8 blocks with exact activations: the runtime's operators and our dequantised weights compute
// the same.
TEST(OnnxInteger, BothEnginesReadTheSameWeights) {
  engine::ort::OrtOptions options;
  options.threads = 1;
  const auto onnx = open_mix("int", true, true, options, engine::Precision::kAuto);
  const auto native = open_mix("int", false, false, options, engine::Precision::kF32);
  const auto file = text_file("image_video");
  const Prompt prompt = make_prompt(file, *native);
  const int64_t length = static_cast<int64_t>(prompt.ids.size());
  const Prompt embedded = [&] {
    Prompt p;
    p.ids = prompt.ids;
    std::erase_if(p.ids, [](int32_t id) { return id == 500 || id == 501; });
    return p;
  }();
  const Tensor a = onnx->embed().embed(embedded.ids);
  const Tensor b = native->embed().embed(embedded.ids);
  expect_close(a.as<float>(), b.as<float>(), {1e-6f, 0}, kF32, "embeddings");
  const auto cache_a = onnx->decoder().new_cache();
  const auto cache_b = native->decoder().new_cache();
  const Tensor x = feed(*onnx, prompt, 0, length, *cache_a, engine::LogitsMode::kAll);
  const Tensor y = feed(*native, prompt, 0, length, *cache_b, engine::LogitsMode::kAll);
  expect_close(x.as<float>(), y.as<float>(), {2e-4f, 0}, kF32, "logits");

  // int8 rows take activations in int8 in the graph, exact ones natively.
  const auto vision = checkpoint::SafetensorsFile::open(fixture_path("vision/one.safetensors"));
  const auto grid = grids(vision, "grid_thw");
  const Tensor m = onnx->vision().encode(f32(vision, "pixel_values"), grid).merged;
  const Tensor n = native->vision().encode(f32(vision, "pixel_values"), grid).merged;
  expect_close(m.as<float>(), n.as<float>(), {0, 0.1f}, {engine::Precision::kBF16, ""}, "int8 vision");
}

TEST(OnnxErrors, SayWhatIsWrong) {
  const auto package = open_tiny("fp32");
  engine::ort::OrtOptions options;
  options.threads = 1;
  std::string message;
  const auto open = [&](const engine::ort::OrtOptions& o) {
    return [&package, o] { engine::ort::open_package(package, o); };
  };
  options.library = "/nowhere/libonnxruntime.so.1";
  EXPECT_EQ(code_of(open(options), &message), ErrorCode::kUnsupported);
  EXPECT_NE(message.find("/nowhere/"), std::string::npos) << message;
  options.library = package->folder() / "config.json";
  EXPECT_EQ(code_of(open(options)), ErrorCode::kUnsupported);
  options.library.clear();
  options.provider = "NoSuchProvider";
  EXPECT_EQ(code_of(open(options), &message), ErrorCode::kUnsupported);
  EXPECT_NE(message.find("CPUExecutionProvider"), std::string::npos) << message;
  options.provider = "cpu";
  options.provider_options = {{"a", "b"}};
  EXPECT_EQ(code_of(open(options)), ErrorCode::kInvalidArgument);
  options.provider_options.clear();
  options.progress = [](int64_t, int64_t) { return false; };
  EXPECT_EQ(code_of(open(options)), ErrorCode::kCancelled);
}

TEST(OnnxErrors, AForeignGraphIsRefused) {
  const fs::path folder = tiny_package("broken", float_options(exporting::StagePrecision::kFp32));
  engine::ort::OrtOptions options;
  options.threads = 1;
  // Embedding and decoder exchanged in the manifest: the names do not fit.
  package::Manifest manifest = package::Manifest::load(folder);
  std::swap(manifest.graphs[package::GraphKind::kEmbedding], manifest.graphs[package::GraphKind::kDecoder]);
  manifest.save(folder);
  const auto open = [&] {
    engine::ort::open_package(std::make_shared<const package::Package>(package::Package::open(folder)),
                              options, {.vision = false, .text = true});
  };
  std::string message;
  EXPECT_EQ(code_of(open, &message), ErrorCode::kMismatch);
  EXPECT_NE(message.find("input_ids"), std::string::npos) << message;
  std::swap(manifest.graphs[package::GraphKind::kEmbedding], manifest.graphs[package::GraphKind::kDecoder]);
  manifest.graphs.erase(package::GraphKind::kDecoder);
  manifest.save(folder);
  EXPECT_EQ(code_of(open), ErrorCode::kNotFound);

  // Bytes that are no graph, of the right number.
  manifest = package::Manifest::load(folder);
  const fs::path graph = folder / manifest.graphs[package::GraphKind::kEmbedding].file.file;
  const auto size = fs::file_size(graph);
  std::ofstream(graph, std::ios::binary) << std::string(size, '\xff');
  EXPECT_EQ(code_of(open, &message), ErrorCode::kFormat);
  EXPECT_NE(message.find(graph.filename().string()), std::string::npos) << message;
}

TEST(PackageFolder, IsCheckedWhenItIsOpened) {
  const fs::path folder = tiny_package("damaged", float_options(exporting::StagePrecision::kBf16));
  EXPECT_TRUE(package::is_package_folder(folder));
  EXPECT_FALSE(package::is_package_folder(fixture_path("model")));
  std::string message;
  const auto open = [&] { return package::Package::open(folder); };
  {
    const package::Package p = open();
    int64_t last = 0, total = 0;
    p.verify_hashes([&](int64_t done, int64_t all) {
      EXPECT_GT(done, last);
      last = done;
      total = all;
      return true;
    });
    EXPECT_EQ(last, total);
    EXPECT_EQ(code_of([&] { p.verify_hashes([](int64_t, int64_t) { return false; }); }),
              ErrorCode::kCancelled);
    const package::PackageTensor& norm = p.get("model.language_model.norm.weight");
    EXPECT_EQ(norm.data.size(), 64u * dtype_size_bytes(norm.entry->format.float_type));
    EXPECT_EQ(code_of([&] { p.get("lm_head.weight"); }), ErrorCode::kNotFound);
  }
  // Another configuration: of another size, then of the same.
  const std::string config = read_file(folder / "config.json", 1 << 20);
  std::ofstream(folder / "config.json") << config << " ";
  EXPECT_EQ(code_of([&] { open(); }, &message), ErrorCode::kFormat);
  EXPECT_NE(message.find("config.json"), std::string::npos) << message;
  std::string changed = config;
  std::ranges::replace(changed, '1', '2');
  std::ofstream(folder / "config.json") << changed;
  EXPECT_EQ(code_of([&] { open(); }, &message), ErrorCode::kMismatch);
  EXPECT_NE(message.find("SHA-256"), std::string::npos) << message;
  std::ofstream(folder / "config.json") << config;
  // One byte of the weights.
  const fs::path data = folder / package::kTextData;
  std::fstream(data, std::ios::in | std::ios::out | std::ios::binary).seekp(100).put('\x7f');
  EXPECT_EQ(code_of([&] { open().verify_hashes({}); }, &message), ErrorCode::kFormat);
  EXPECT_NE(message.find(package::kTextData), std::string::npos) << message;
  // A copy that stopped early.
  fs::resize_file(data, fs::file_size(data) - 1);
  EXPECT_EQ(code_of([&] { open(); }, &message), ErrorCode::kFormat);
  EXPECT_NE(message.find(package::kTextData), std::string::npos) << message;
  fs::remove(data);
  EXPECT_EQ(code_of([&] { open(); }, &message), ErrorCode::kNotFound);
}

}  // namespace
}  // namespace qvl::golden
