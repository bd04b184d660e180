#include "qvl/engine/native/tensor_source.h"

#include <utility>

namespace qvl::engine::native {
namespace {

using model::TensorRole;

// The float type that most of the counted bytes have.
class ByteVote {
 public:
  void add(DType type, size_t bytes) {
    if (type == DType::kBF16) bf16_ += bytes;
    if (type == DType::kF16) f16_ += bytes;
    if (type == DType::kF32) f32_ += bytes;
  }
  DType winner() const {
    if (bf16_ >= f16_ && bf16_ >= f32_) return DType::kBF16;
    return f16_ >= f32_ ? DType::kF16 : DType::kF32;
  }

 private:
  size_t bf16_ = 0, f16_ = 0, f32_ = 0;
};

class CheckpointSource : public TensorSource {
 public:
  explicit CheckpointSource(std::shared_ptr<const source::Source> source) : source_(std::move(source)) {}

  const model::ModelConfig& config() const override { return source_->config; }
  bool tied_head() const override { return source_->config.tie_word_embeddings; }
  DType stage_type(bool) const override { return source_->dtype; }
  int activation_bits(bool) const override { return 8; }
  int int8_attention() const override { return 0; }
  std::string identity() const override { return source_->checkpoint.identity(); }

  SourceTensor find(TensorRole role, int layer) const override {
    const checkpoint::TensorView& view = source_->tensor(role, layer);
    const int64_t rows = view.shape.size() < 2 ? 1 : view.shape[0];
    return {.format = quant::Format::floating(view.dtype),
            .rows = rows,
            .columns = view.size() / rows,
            .data = view.bytes};
  }
  void drop(TensorRole role, int layer) const override { source_->drop(role, layer); }

 private:
  std::shared_ptr<const source::Source> source_;
};

class PackageSource : public TensorSource {
 public:
  explicit PackageSource(std::shared_ptr<const package::Package> package) : package_(std::move(package)) {}

  const model::ModelConfig& config() const override { return package_->config(); }
  bool tied_head() const override { return package_->tied_head(); }
  std::string identity() const override { return package_->identity(); }

  DType stage_type(bool vision) const override {
    ByteVote vote;
    bool integers = false;
    for (const model::TensorSpec& spec : model::tensor_table(config())) {
      const package::PackageTensor* t = package_->find(spec.name);
      if (!t || model::is_vision_role(spec.role) != vision ||
          spec.precision != model::PrecisionClass::kMatrix)
        continue;
      integers |= t->entry->format.kind != quant::Kind::kFloat;
      vote.add(t->entry->format.float_type, t->data.size());
    }
    if (!integers) return vote.winner();
    // Integer weights say nothing about activations: those of the checkpoint they were made from.
    return package_->manifest().source.dtype == "bf16" ? DType::kBF16 : DType::kF32;
  }

  int activation_bits(bool vision) const override {
    const package::Manifest& m = package_->manifest();
    return (vision ? m.vision : m.text).activation_bits;
  }
  int int8_attention() const override { return package_->manifest().vision.int8_attention; }

  SourceTensor find(TensorRole role, int layer) const override {
    // open() compared rows and columns with the tensor table.
    return as_stored(package_->get(model::tensor_name(role, layer)));
  }
  std::optional<kernels::Shortlist> head_shortlist() const override {
    const std::optional<package::PackageShortlist> list = package_->head_shortlist();
    if (!list) return std::nullopt;
    return kernels::Shortlist{list->entry->rows, list->entry->columns, list->parts};
  }
  void drop_head_shortlist() const override {
    if (const std::optional<package::PackageShortlist> list = package_->head_shortlist()) package_->drop(*list);
  }
  ReadStoredRow row_reader(TensorRole role) const override {
    const package::TensorEntry& entry = *package_->get(model::tensor_name(role, -1)).entry;
    const quant::Format& f = entry.format;
    return [&package = *package_, &entry, data_bytes = f.data_bytes(1, entry.columns), scale_bytes = f.scale_bytes(1, entry.columns),
            zero_bytes = f.zero_point_bytes(1, entry.columns)](int64_t row, std::byte* data, std::byte* scales, std::byte* zero_points) {
      const auto part = [&](const package::TensorPart& from, uint64_t bytes, std::byte* to) {
        package.read(from, static_cast<uint64_t>(row) * bytes, {to, bytes});
      };
      part(entry.data, data_bytes, data);
      if (entry.scales) part(*entry.scales, scale_bytes, scales);
      if (entry.zero_points) part(*entry.zero_points, zero_bytes, zero_points);
    };
  }
  void drop(TensorRole role, int layer) const override {
    package_->drop(package_->get(model::tensor_name(role, layer)));
  }

 private:
  static SourceTensor as_stored(const package::PackageTensor& t) {
    return {.format = t.entry->format,
            .rows = t.entry->rows,
            .columns = t.entry->columns,
            .data = t.data,
            .scales = t.scales,
            .zero_points = t.zero_points};
  }

  std::shared_ptr<const package::Package> package_;
};

}  // namespace

int64_t TensorSource::stage_bytes(bool vision) const {
  size_t total = 0;
  for (const model::TensorSpec& spec : model::tensor_table(config())) {
    if (model::is_vision_role(spec.role) != vision) continue;
    if (spec.role == TensorRole::kLmHead && tied_head()) continue;
    total += find(spec.role, spec.layer).bytes();
  }
  return static_cast<int64_t>(total);
}

int64_t TensorSource::parameters() const {
  int64_t total = 0;
  for (const model::TensorSpec& spec : model::tensor_table(config())) {
    if (spec.role != TensorRole::kLmHead || !tied_head()) total += element_count(spec.shape);
  }
  return total;
}

std::shared_ptr<const TensorSource> checkpoint_source(std::shared_ptr<const source::Source> source) {
  return std::make_shared<CheckpointSource>(std::move(source));
}

std::shared_ptr<const TensorSource> package_source(std::shared_ptr<const package::Package> package) {
  return std::make_shared<PackageSource>(std::move(package));
}

}  // namespace qvl::engine::native
