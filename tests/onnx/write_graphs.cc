// Writes the four graphs of a checkpoint, text.data and vision.data into a folder, for check_graphs.py and
// check_vision.py: every operator variant without the rest of a package.
//
//   write_graphs CHECKPOINT OUT FORMAT [plain] [genai] [all_logits] [dequantized] [opset=N] [accuracy=N]
//   [static=S,C] [grid=T,H,W] [skip_norm]
//
// FORMAT is a name of quant/format.h for the matrices; vectors are float32, or the same float type.
// `dequantized`: float32 graphs whose weights are those of FORMAT taken back to floats.

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "qvl/base/error.h"
#include "qvl/base/tensor.h"
#include "qvl/base/thread_pool.h"
#include "qvl/checkpoint/checkpoint.h"
#include "qvl/export/graphs.h"
#include "qvl/model/config.h"
#include "qvl/package/graph_io.h"
#include "qvl/quant/block_codec.h"
#include "qvl/quant/quantize.h"

namespace {

namespace fs = std::filesystem;
using qvl::exporting::StoredTensor;

struct Arguments {
  fs::path checkpoint, out;
  qvl::quant::Format format;
  bool dequantized = false;
  qvl::exporting::GraphOptions options;
};

int64_t number(std::string_view text) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) {
    qvl::fail(qvl::ErrorCode::kInvalidArgument, "write_graphs", "number", "digits", text);
  }
  return value;
}

Arguments parse(int argc, char** argv) {
  if (argc < 4)
    qvl::fail(qvl::ErrorCode::kInvalidArgument, "write_graphs", "CHECKPOINT OUT FORMAT are needed");
  Arguments a{argv[1], argv[2], qvl::quant::parse_format(argv[3])};
  for (int i = 4; i < argc; ++i) {
    const std::string_view word = argv[i];
    if (word == "plain") {
      a.options.linear.plain = true;
    } else if (word == "genai") {
      a.options.layout = qvl::exporting::Layout::kGenai;
    } else if (word == "skip_norm") {
      a.options.skip_layer_norm = true;
    } else if (word == "all_logits") {
      a.options.all_logits = true;
    } else if (word == "dequantized") {
      a.dequantized = true;
    } else if (word.starts_with("opset=")) {
      a.options.opset = number(word.substr(6));
    } else if (word.starts_with("accuracy=")) {
      a.options.linear.accuracy_level = static_cast<int>(number(word.substr(9)));
    } else if (word.starts_with("grid=")) {
      const size_t first = word.find(','), last = word.rfind(',');
      a.options.static_grid =
          qvl::image::Grid{number(word.substr(5, first - 5)),
                           number(word.substr(first + 1, last - first - 1)), number(word.substr(last + 1))};
    } else if (word.starts_with("static=")) {
      const size_t comma = word.find(',');
      a.options.static_sequence = number(word.substr(7, comma - 7));
      a.options.static_context = number(word.substr(comma + 1));
    } else {
      qvl::fail(qvl::ErrorCode::kInvalidArgument, "write_graphs", "argument",
                "one of those in the file's head", word);
    }
  }
  return a;
}

bool is_matrix(qvl::model::TensorRole role) {
  const auto precision = qvl::model::precision_class(role);
  return precision == qvl::model::PrecisionClass::kMatrix ||
         precision == qvl::model::PrecisionClass::kEmbedding;
}

void put(std::fstream& file, const std::optional<qvl::package::TensorPart>& part, const void* bytes) {
  if (!part) return;
  file.seekp(static_cast<std::streamoff>(part->offset));
  file.write(static_cast<const char*>(bytes), static_cast<std::streamsize>(part->length));
}

void write_tensor(std::fstream& file, const Arguments& arguments, const StoredTensor& tensor,
                  const qvl::checkpoint::TensorView& source, qvl::ThreadPool& pool) {
  // The plan holds float32 for `dequantized`, but the values pass through the format.
  const bool through = is_matrix(tensor.role) || arguments.format.kind == qvl::quant::Kind::kFloat;
  const qvl::quant::Format format = arguments.dequantized && through ? arguments.format : tensor.format;
  std::vector<std::byte> data(format.data_bytes(tensor.rows, tensor.columns));
  std::vector<std::byte> scales(format.scale_bytes(tensor.rows, tensor.columns));
  std::vector<std::byte> zero_points(format.zero_point_bytes(tensor.rows, tensor.columns));
  const qvl::quant::QuantizedSpan made{data, scales, zero_points};
  const qvl::quant::Quantizer quantizer(format, tensor.columns, qvl::quant::Method::kPlain, {}, tensor.name);
  quantizer.quantize(source.bytes.data(), source.dtype, tensor.rows, made, pool);
  if (format != tensor.format) {
    qvl::Tensor floats(qvl::DType::kF32, {tensor.rows, tensor.columns});
    if (format.kind == qvl::quant::Kind::kFloat) {
      qvl::Tensor narrow(format.float_type, {tensor.rows, tensor.columns});
      std::copy(data.begin(), data.end(), static_cast<std::byte*>(narrow.data()));
      floats = narrow.to(qvl::DType::kF32);
    } else {
      qvl::quant::dequantize(format, tensor.rows, tensor.columns, made, floats.as<float>());
    }
    put(file, tensor.data, floats.data());
    return;
  }
  put(file, tensor.data, data.data());
  put(file, tensor.scales, scales.data());
  put(file, tensor.zero_points, zero_points.data());
}

void save(const fs::path& path, const std::string& bytes) {
  std::ofstream file(path, std::ios::binary);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  if (!file.flush()) qvl::fail_errno(path.string(), "cannot write");
}

void run(const Arguments& arguments) {
  const auto checkpoint = qvl::checkpoint::Checkpoint::open(arguments.checkpoint);
  const auto config = qvl::model::ModelConfig::load(arguments.checkpoint);
  const bool floats = arguments.format.kind == qvl::quant::Kind::kFloat && !arguments.dequantized;
  const auto plain_float =
      qvl::quant::Format::floating(floats ? arguments.format.float_type : qvl::DType::kF32);
  qvl::exporting::WeightPlan plan(config, [&](const qvl::model::TensorSpec& spec) {
    return is_matrix(spec.role) && !arguments.dequantized ? arguments.format : plain_float;
  });
  const auto vision = qvl::exporting::vision_graph(plan, arguments.options);
  const auto vision_host = qvl::exporting::vision_host_graph(plan, arguments.options);
  const auto embedding = qvl::exporting::embedding_graph(plan, arguments.options);
  const auto decoder = qvl::exporting::decoder_graph(plan, arguments.options);

  fs::create_directories(arguments.out);
  const qvl::onnx::ModelInfo info{.opset = arguments.options.opset};
  save(arguments.out / qvl::package::kVisionGraph, vision.serialize(info));
  save(arguments.out / qvl::package::kVisionHostGraph, vision_host.serialize(info));
  save(arguments.out / qvl::package::kEmbeddingGraph, embedding.serialize(info));
  save(arguments.out / qvl::package::kDecoderGraph, decoder.serialize(info));

  qvl::ThreadPool pool(1);
  for (const auto& [name, size_bytes] : plan.file_bytes()) {
    const fs::path data = arguments.out / name;
    std::ofstream(data, std::ios::binary | std::ios::trunc).close();
    fs::resize_file(data, size_bytes);
    std::fstream file(data, std::ios::binary | std::ios::in | std::ios::out);
    for (const StoredTensor* tensor : plan.tensors()) {
      if (tensor->data.file != name) continue;
      const auto shape = qvl::model::tensor_shape(config, tensor->role);
      write_tensor(file, arguments, *tensor, checkpoint.get(tensor->name, shape), pool);
    }
    if (!file.flush()) qvl::fail_errno(data.string(), "cannot write");
  }
}

}  // namespace

int main(int argc, char** argv) {
  try {
    run(parse(argc, argv));
    return 0;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
}
