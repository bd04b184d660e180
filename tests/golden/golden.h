// What the golden tests share: the fixtures' folder, the engine variants under test, and comparison by the
// limits of tests/fixtures/golden/README.md.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "qvl/base/tensor.h"
#include "qvl/checkpoint/safetensors.h"
#include "qvl/engine/engine.h"
#include "qvl/engine/visual_features.h"
#include "qvl/image/grid.h"
#include "qvl/model/positions.h"

namespace qvl::golden {

std::string fixture_path(const std::string& relative);

// One way to run the stages: a precision, and the kernel table (native) or the kind of package and engines
// (ONNX).
struct Variant {
  engine::Precision precision;
  std::string kernels;
  engine::KvType kv = engine::KvType::kAuto;
};
std::string variant_name(const Variant& variant);

// Each test program has its own: native_variants.cc (both precisions on every kernel table that this
// processor runs) and onnx_variants.cc (packages of several kinds on ONNX Runtime and in mixes).
std::vector<Variant> variants();
// Native only: those, and each of them with an int8 KV cache.
std::vector<Variant> cache_variants();
std::shared_ptr<const engine::Engine> open_variant(const Variant& variant, int threads);
// Whether this variant lets a test see a tensor of the trace contract.
bool traces(const Variant& variant, std::string_view tensor);

// The model that ships, likewise in each program's ways.
std::vector<Variant> small_variants();
std::shared_ptr<const engine::Engine> open_small(const Variant& variant);
std::string small_model_path();

// The tiny golden model; opened once per variant.
std::shared_ptr<const engine::Engine> tiny_engine(const Variant& variant, int threads = 1);

std::vector<float> f32(const checkpoint::SafetensorsFile& file, const std::string& name);
std::vector<int64_t> i64(const checkpoint::SafetensorsFile& file, const std::string& name);
std::vector<image::Grid> grids(const checkpoint::SafetensorsFile& file, const std::string& name);

// Limits of one tensor: absolute for float32 runs, relative to the largest golden magnitude for bfloat16
// runs.
struct Limit {
  float f32_abs;
  float bf16_relative;
};

// Fails the test with the largest difference and where it stands.
void expect_close(std::span<const float> actual, std::span<const float> expected, const Limit& limit,
                  const Variant& variant, const std::string& what);

// A prompt as the decoder takes it.
struct Prompt {
  std::vector<int32_t> ids;
  model::Positions positions;
  Tensor embeds;
  engine::VisualRows visual;
};

// The names of the fixtures in text/, without the batch.
const std::vector<std::string>& text_cases();
// The prompt of a fixture, its pictures encoded and placed by the engine.
Prompt make_prompt(const checkpoint::SafetensorsFile& file, const engine::Engine& engine);

// Feeds rows [begin, end) of a prompt.
Tensor feed(const engine::Engine& engine, const Prompt& prompt, int64_t begin, int64_t end,
            engine::KvCache& cache, engine::LogitsMode mode, const engine::StageHooks& hooks = {});
// One decode step; returns the logits [1, V].
Tensor step(const engine::Engine& engine, int32_t id, int64_t position, engine::KvCache& cache);
int32_t argmax(std::span<const float> logits);

}  // namespace qvl::golden
