#include "qvl/export/input.h"

#include <utility>

namespace qvl::exporting {
namespace {

class CheckpointInput : public Input {
 public:
  explicit CheckpointInput(source::Source source) : source_(std::move(source)) {}
  const model::ModelConfig& config() const override { return source_.config; }
  std::string name() const override { return source_.name; }
  DType dtype() const override { return source_.dtype; }
  int64_t parameters() const override { return source_.parameters; }
  uint64_t weight_bytes() const override { return source_.checkpoint.total_bytes(); }
  std::filesystem::path folder() const override { return source_.checkpoint.folder(); }
  const checkpoint::TensorView& tensor(model::TensorRole role, int layer) const override {
    return source_.tensor(role, layer);
  }
  void drop(model::TensorRole role, int layer) const override { source_.drop(role, layer); }

 private:
  source::Source source_;
};

}  // namespace

std::unique_ptr<const Input> checkpoint_input(source::Source source) {
  return std::make_unique<CheckpointInput>(std::move(source));
}

}  // namespace qvl::exporting
