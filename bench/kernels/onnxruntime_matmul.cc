#include "onnxruntime_matmul.h"

#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <span>
#include <utility>
#include <vector>

#include "qvl/base/dtype.h"
#include "qvl/base/error.h"
#include "qvl/base/tensor.h"
#include "qvl/engine/ort/runtime.h"
#include "qvl/onnx/graph_builder.h"

namespace qvl::bench {
namespace {

using onnx::Value;

std::span<const std::byte> bytes_of(const void* data, uint64_t size) {
  return {static_cast<const std::byte*>(data), static_cast<size_t>(size)};
}

Value product(onnx::GraphBuilder& graph, const Value& x, const kernels::Weight& w) {
  const quant::Format& f = w.format;
  if (f.kind == quant::Kind::kFloat) {
    if (w.dtype != DType::kF32) {
      fail(ErrorCode::kInvalidArgument, "onnxruntime_matmul", "type of a float weight", "F32", dtype_name(w.dtype));
    }
    const auto floats = bytes_of(w.data, static_cast<uint64_t>(w.out * w.in) * sizeof(float));
    return graph.node("MatMul", {x, graph.transpose(graph.constant(DType::kF32, {w.out, w.in}, floats), {1, 0})});
  }
  const int64_t blocks = f.block_count(w.in), count = w.out * blocks;
  std::vector<float> scales(static_cast<size_t>(count));
  convert_elements(w.scales, f.scale_type, scales.data(), DType::kF32, count);
  const auto data = bytes_of(w.data, f.data_bytes(w.out, w.in));
  if (f.kind == quant::Kind::kRow8) {
    const std::vector<Value> rounded = graph.nodes("DynamicQuantizeLinear", {x}, 3);
    const std::byte middle{128};
    const Value codes = graph.transpose(graph.constant(DType::kU8, {w.out, w.in}, data), {1, 0});
    const Value zero = graph.constant(DType::kU8, {}, {&middle, 1});
    const Value sums = graph.node("MatMulInteger", {rounded[0], codes, rounded[2], zero});
    const Value scale = graph.mul(rounded[1], graph.f32s(scales, {w.out}));
    return graph.mul(graph.cast(sums, DType::kF32), scale);
  }
  if (f.zero_points) {
    fail(ErrorCode::kInvalidArgument, "onnxruntime_matmul", "format", "one without zero points", f.name());
  }
  const Value codes = graph.constant(DType::kU8, {w.out, blocks, f.block * f.bits / 8}, data);
  return graph.node("MatMulNBits", {x, codes, graph.f32s(scales, {w.out, blocks})},
                    {{"K", w.in},
                     {"N", w.out},
                     {"bits", int64_t{f.bits}},
                     {"block_size", f.block},
                     {"accuracy_level", int64_t{4}}},
                    onnx::kContribDomain);
}

// A folder of its own that goes when this does.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "qvl-bench-XXXXXX").string();
    if (mkdtemp(pattern.data()) == nullptr) fail_errno(pattern, "mkdtemp");
    path_ = pattern;
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

}  // namespace

struct OnnxruntimeMatmul::Impl {
  int64_t k = 0, n = 0;
  std::shared_ptr<const engine::ort::Runtime> runtime;
  std::unique_ptr<engine::ort::Graph> graph;
};

OnnxruntimeMatmul::OnnxruntimeMatmul(const kernels::Weight& w, int threads) : impl_(std::make_unique<Impl>()) {
  impl_->k = w.in;
  impl_->n = w.out;
  onnx::GraphBuilder graph("linear");
  const Value x = graph.input("x", DType::kF32, {std::string("m"), w.in});
  const Value y = graph.node("Identity", {product(graph, x, w)}, {}, onnx::kStandardDomain, "y");
  graph.output(y, DType::kF32, {std::string("m"), w.out});
  const TemporaryFolder folder;
  const std::filesystem::path file = folder.path() / "linear.onnx";
  {
    const std::string model = graph.serialize({});
    std::ofstream out(file, std::ios::binary);
    out.write(model.data(), static_cast<std::streamsize>(model.size()));
    if (!out.flush()) fail_errno(file.string(), "write");
  }
  impl_->runtime = engine::ort::Runtime::load({});
  engine::ort::OrtOptions options;
  options.threads = threads;
  impl_->graph = std::make_unique<engine::ort::Graph>(impl_->runtime, file, options);
}

OnnxruntimeMatmul::~OnnxruntimeMatmul() = default;

std::string OnnxruntimeMatmul::name() const { return "ONNX Runtime " + impl_->runtime->info().version; }

void OnnxruntimeMatmul::run(const float* x, int64_t m, float* y) {
  const Impl& i = *impl_;
  const auto in = engine::ort::make_value(*i.runtime, x, DType::kF32, {m, i.k});
  const auto out = engine::ort::make_value(*i.runtime, y, DType::kF32, {m, i.n});
  const auto binding = i.graph->new_binding();
  i.graph->bind_input(binding.get(), "x", in.get());
  i.graph->bind_output(binding.get(), "y", out.get());
  i.graph->run(binding.get());
}

}  // namespace qvl::bench
