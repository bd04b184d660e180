// The native stages, straight from the checkpoint, in both precisions on every kernel table.
#include "golden.h"
#include "qvl/engine/native/open.h"
#include "qvl/kernels/ops.h"

namespace qvl::golden {

std::vector<Variant> variants() {
  std::vector<Variant> all;
  for (std::string_view table : kernels::runnable_tables()) {
    all.push_back({engine::Precision::kF32, std::string(table)});
    all.push_back({engine::Precision::kBF16, std::string(table)});
  }
  return all;
}

std::vector<Variant> cache_variants() {
  std::vector<Variant> all = variants();
  for (Variant v : variants()) {
    v.kv = engine::KvType::kInt8;
    all.push_back(v);
  }
  return all;
}

namespace {

std::shared_ptr<const engine::Engine> open(const std::string& checkpoint, const Variant& variant,
                                           int threads) {
  engine::EngineOptions options;
  options.threads = threads;
  options.vision_precision = options.text_precision = variant.precision;
  options.kernels = variant.kernels;
  options.kv = variant.kv;
  const auto engine = engine::native::open_checkpoint(checkpoint, options);
  // The forced table must be the one that runs.
  EXPECT_EQ(engine->info().isa, variant.kernels);
  return engine;
}

}  // namespace

std::shared_ptr<const engine::Engine> open_variant(const Variant& variant, int threads) {
  return open(fixture_path("model"), variant, threads);
}

std::vector<Variant> small_variants() {
  return cache_variants();
}

std::shared_ptr<const engine::Engine> open_small(const Variant& variant) {
  return open(small_model_path(), variant, 1);
}

bool traces(const Variant&, std::string_view) {
  return true;
}

}  // namespace qvl::golden
