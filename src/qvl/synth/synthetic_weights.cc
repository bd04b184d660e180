#include "qvl/synth/synthetic_weights.h"

#include <algorithm>
#include <cmath>
#include <string_view>

#include "qvl/base/atomic_file.h"
#include "qvl/model/public_shapes.h"

namespace qvl::synth {
namespace {

constexpr size_t kTaskElements = size_t{1} << 19;

void write_file(const std::filesystem::path& path, std::string_view content) {
  AtomicFile file(path);
  file.write(content);
  file.commit();
}

}  // namespace

WeightSource synthetic_tensor(const model::TensorSpec& spec, uint64_t seed) {
  switch (spec.precision) {
    case model::PrecisionClass::kNorm: {
      const bool bias = spec.name.ends_with(".bias");
      return {seed, spec.name, bias ? 0.0 : 1.0, bias ? 0.02 : 0.1};
    }
    case model::PrecisionClass::kBias:
    case model::PrecisionClass::kEmbedding:
    case model::PrecisionClass::kPositionTable:
      return {seed, spec.name, 0.0, 0.02};
    case model::PrecisionClass::kMatrix:
      break;
  }
  const int64_t fan_in = element_count(spec.shape) / spec.shape.front();
  return {seed, spec.name, 0.0, 1.0 / std::sqrt(static_cast<double>(fan_in))};
}

void fill(const WeightSource& source, uint64_t first, std::span<BFloat16> out, ThreadPool& pool) {
  const auto tasks = static_cast<int64_t>((out.size() + kTaskElements - 1) / kTaskElements);
  pool.parallel_for(tasks, [&](int64_t task, int) {
    const size_t begin = static_cast<size_t>(task) * kTaskElements;
    source.fill(first + begin, out.subspan(begin, std::min(kTaskElements, out.size() - begin)));
  });
}

void write_config_files(const std::string& shape, const std::filesystem::path& folder) {
  write_file(folder / "config.json", model::public_config_json(shape));
  write_file(folder / "generation_config.json", model::public_generation_config_json(shape));
  write_file(folder / "preprocessor_config.json", model::public_preprocessor_config_json());
  write_file(folder / "video_preprocessor_config.json", model::public_video_preprocessor_config_json());
}

SyntheticWeights::SyntheticWeights(const std::string& shape, uint64_t seed, ThreadPool& pool)
    : config_(model::public_config(shape)), seed_(seed), pool_(pool) {
  for (const model::TensorSpec& spec : model::tensor_table(config_))
    total_bytes_ += static_cast<uint64_t>(element_count(spec.shape)) * sizeof(BFloat16);
  view_.file = "synthetic " + shape;
  view_.dtype = DType::kBF16;
}

const checkpoint::TensorView& SyntheticWeights::tensor(model::TensorRole role, int layer) {
  model::TensorSpec spec{model::tensor_name(role, layer), role, layer, model::tensor_shape(config_, role),
                         model::precision_class(role)};
  if (spec.name == view_.name) return view_;
  const auto count = static_cast<size_t>(element_count(spec.shape));
  if (buffer_.size_bytes() < count * sizeof(BFloat16)) {
    buffer_ = {};
    buffer_ = AlignedBuffer(count * sizeof(BFloat16));
  }
  view_.name = {};
  fill(synthetic_tensor(spec, seed_), 0, {reinterpret_cast<BFloat16*>(buffer_.data()), count}, pool_);
  view_.bytes = {buffer_.data(), count * sizeof(BFloat16)};
  view_.shape = std::move(spec.shape);
  view_.name = std::move(spec.name);
  return view_;
}

}  // namespace qvl::synth
