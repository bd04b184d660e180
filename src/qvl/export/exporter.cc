#include "qvl/export/exporter.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <span>
#include <utility>

#include "qvl/base/atomic_file.h"
#include "qvl/base/error.h"
#include "qvl/base/log.h"
#include "qvl/base/partial_folder.h"
#include "qvl/base/sha256.h"
#include "qvl/base/thread_pool.h"
#include "qvl/checkpoint/safetensors_writer.h"
#include "qvl/export/data_writer.h"
#include "qvl/export/genai_config.h"
#include "qvl/export/sensitivity.h"
#include "qvl/image/processor_config.h"
#include "qvl/image/smart_resize.h"
#include "qvl/package/graph_io.h"
#include "qvl/quant/quantize.h"
#include "qvl/quant/shortlist.h"
#include "qvl/source/source.h"

namespace qvl::exporting {
namespace {

namespace fs = std::filesystem;

// Bytes of stored rows that are made at once: enough for every thread, little beside the weights.
constexpr uint64_t kPieceBytes = uint64_t{8} << 20;
constexpr int64_t kRowGroup = 16;  // the quantiser's

// What a package needs of a checkpoint beside weights and tokenizer; config.json must be there, the others
// may.
constexpr std::array<std::string_view, 4> kConfigFiles = {
    "config.json", "generation_config.json", "preprocessor_config.json", "video_preprocessor_config.json"};

package::FileEntry write_text(const fs::path& folder, std::string name, std::string_view content) {
  AtomicFile file(folder / name);
  file.write(content);
  file.commit();
  return {std::move(name), content.size(), sha256_hex(content)};
}

image::Grid static_grid(const StaticImage& image, const Input& input) {
  const image::ImageProcessorConfig processor = image::ImageProcessorConfig::load(input.folder());
  const image::ImageSize size =
      image::smart_resize(image.height_px, image.width_px, processor.resize_factor_px(), processor.min_pixels,
                          processor.max_pixels);
  return {1, size.height / processor.patch_size_px, size.width / processor.patch_size_px};
}

// Reports bytes of the checkpoint as they are worked through; throws kCancelled when the caller wants to
// stop.
class Progress {
 public:
  explicit Progress(const ExportOptions& options) : options_(options) {}
  void begin(std::string_view phase, int64_t total) {
    phase_ = phase;
    done_ = 0;
    total_ = total;
    report(0);
  }
  void report(int64_t bytes) {
    done_ += bytes;
    if (options_.progress && !options_.progress(phase_, done_, total_)) {
      fail(ErrorCode::kCancelled, options_.out.string(), "stopped; nothing was written");
    }
  }

 private:
  const ExportOptions& options_;
  std::string_view phase_;
  int64_t done_ = 0, total_ = 0;
};

ExistingFolder existing_folder(bool replace) {
  return replace ? ExistingFolder::kReplace : ExistingFolder::kRefuse;
}

int64_t rows_of_a_piece(uint64_t row_bytes) {
  return std::max(kRowGroup, static_cast<int64_t>(kPieceBytes / std::max<uint64_t>(1, row_bytes)) / kRowGroup * kRowGroup);
}

// All of a part at once.
void put(DataWriter& writer, const package::TensorPart& part, std::span<const std::byte> bytes) {
  std::ranges::copy(bytes, writer.buffer(bytes.size()));
  writer.write(part.offset, bytes.size());
}

// Streams one tensor into its places.
quant::ErrorStats write_tensor(const StoredTensor& tensor, const Input& input, const ExportOptions& options,
                               DataWriter& writer, ThreadPool& pool, Progress& progress) {
  const checkpoint::TensorView& view = input.tensor(tensor.role, tensor.layer);
  const quant::Format& format = tensor.format;
  const auto importance = options.importance.find(model::tensor_name(tensor.role, tensor.layer));
  const std::span<const float> weights = importance == options.importance.end()
                                             ? std::span<const float>()
                                             : std::span<const float>(importance->second);
  const quant::Quantizer quantizer(format, tensor.columns, quant::recipe_method(options.recipe), weights,
                                   view.where());
  const auto row_bytes = format.data_bytes(tensor.rows, tensor.columns) / static_cast<uint64_t>(tensor.rows);
  const int64_t piece_rows = rows_of_a_piece(row_bytes);
  const size_t source_row_bytes = view.bytes.size() / static_cast<size_t>(tensor.rows);

  // Data go out row by row; scales and zero points, far smaller, wait behind them.
  std::vector<std::byte> scales(tensor.scales ? tensor.scales->length : 0);
  std::vector<std::byte> zeros(tensor.zero_points ? tensor.zero_points->length : 0);
  const size_t scale_row = scales.size() / static_cast<size_t>(tensor.rows);
  const size_t zero_row = zeros.size() / static_cast<size_t>(tensor.rows);
  quant::ErrorStats stats;
  for (int64_t row = 0; row < tensor.rows; row += piece_rows) {
    const int64_t rows = std::min(piece_rows, tensor.rows - row);
    const auto first = static_cast<size_t>(row), count = static_cast<size_t>(rows);
    const size_t bytes = count * row_bytes;
    const quant::QuantizedSpan out{{writer.buffer(bytes), bytes},
                                   std::span(scales).subspan(first * scale_row, count * scale_row),
                                   std::span(zeros).subspan(first * zero_row, count * zero_row)};
    const std::span<const std::byte> in =
        view.bytes.subspan(first * source_row_bytes, count * source_row_bytes);
    stats.merge(quantizer.quantize(in.data(), view.dtype, rows, out, pool, row));
    writer.write(tensor.data.offset + first * row_bytes, bytes);
    input.drop(tensor.role, tensor.layer);
    progress.report(static_cast<int64_t>(in.size()));
  }
  if (tensor.scales) put(writer, *tensor.scales, scales);
  if (tensor.zero_points) put(writer, *tensor.zero_points, zeros);
  return stats;
}

// The same for the head's shortlist.
quant::ErrorStats write_shortlist(const package::ShortlistEntry& list, const Input& input, DataWriter& writer, ThreadPool& pool,
                                  Progress& progress) {
  const model::TensorRole role = model::head_role(input.config().tie_word_embeddings);
  const checkpoint::TensorView& view = input.tensor(role, -1);
  const size_t source_row_bytes = view.bytes.size() / static_cast<size_t>(list.rows);
  const int64_t piece_rows = rows_of_a_piece(source_row_bytes);
  // What lies behind the coarse codes waits.
  std::vector<std::byte> scales(list.scales.length), fine(list.fine.length);
  quant::ErrorStats stats;
  uint64_t written = 0;
  for (int64_t first = 0; first < list.rows; first += piece_rows) {
    const int64_t count = std::min(piece_rows, list.rows - first);
    const size_t coarse_bytes = quant::shortlist_bytes(count, list.columns).coarse;
    quant::ShortlistSpan out = quant::shortlist_rows<std::byte>({{}, fine, scales}, list.columns, first, count);
    out.coarse = {writer.buffer(coarse_bytes), coarse_bytes};
    const std::span<const std::byte> in =
        view.bytes.subspan(static_cast<size_t>(first) * source_row_bytes, static_cast<size_t>(count) * source_row_bytes);
    stats.merge(quant::encode_shortlist(in.data(), view.dtype, count, list.columns, out, pool, view.where(), first));
    writer.write(list.coarse.offset + written, coarse_bytes);
    written += coarse_bytes;
    input.drop(role, -1);
    progress.report(static_cast<int64_t>(in.size()));
  }
  put(writer, list.scales, scales);
  put(writer, list.fine, fine);
  return stats;
}

Json quantisation_entry(const std::string& name, const std::string& format, const quant::ErrorStats& stats) {
  Json entry = {{"tensor", name}, {"format", format}};
  entry.update(stats.to_json());
  return entry;
}

// Other layouts are for other runtimes, and a head of fewer bits or of floats is read whole.
bool wants_shortlist(const ExportOptions& options, const StoredTensor& head) {
  return options.head_shortlist.value_or(head.rows >= kLargeVocabulary) && options.layout == Layout::kQvl &&
         head.format.kind == quant::Kind::kBlock && head.format.bits == 8;
}

struct GraphFile {
  package::GraphKind kind;
  std::string file;
  onnx::GraphBuilder graph;
};

std::vector<GraphFile> build_graphs(WeightPlan& plan, const ExportOptions& options,
                                    const GraphOptions& graph_options) {
  std::vector<GraphFile> graphs;
  graphs.push_back({package::GraphKind::kVision, package::kVisionGraph, vision_graph(plan, graph_options)});
  // Other runtimes feed the standalone graph; a fixed grid has its positions folded in.
  if (options.layout == Layout::kQvl && !graph_options.static_grid) {
    graphs.push_back(
        {package::GraphKind::kVisionHost, package::kVisionHostGraph, vision_host_graph(plan, graph_options)});
  }
  graphs.push_back(
      {package::GraphKind::kEmbedding, package::kEmbeddingGraph, embedding_graph(plan, graph_options)});
  graphs.push_back(
      {package::GraphKind::kDecoder, package::kDecoderGraph, decoder_graph(plan, graph_options)});
  return graphs;
}

}  // namespace

void check_output(const fs::path& out, bool replace) {
  PartialFolder::check_target(out, existing_folder(replace));
  if (replace && fs::exists(out) && !fs::exists(out / package::kManifestFile) && !fs::is_empty(out)) {
    fail(ErrorCode::kInvalidArgument, out.string(), "folder to replace", "a package", "something else",
         "choose another name");
  }
}

ExportResult export_package(const ExportOptions& options) {
  check_output(options.out, options.replace);
  const int threads = resolve_threads(options.threads, "export");
  std::unique_ptr<const Input> opened;
  if (!options.input) opened = checkpoint_input(source::Source::open(options.checkpoint));
  const Input& input = options.input ? *options.input : *opened;
  options.precision.validate(input.config().tie_word_embeddings);

  GraphOptions graph_options;
  graph_options.linear = {.accuracy_level = options.accuracy_level, .plain = options.plain};
  graph_options.layout = options.layout;
  graph_options.opset = options.opset;
  if (options.static_image) {
    graph_options.static_grid = static_grid(*options.static_image, input);
    graph_options.static_sequence = options.static_sequence;
    graph_options.static_context = options.static_context;
  }

  PartialFolder folder(options.out, existing_folder(options.replace));
  ThreadPool pool(threads);
  Progress progress(options);
  const auto weight_bytes = static_cast<int64_t>(input.weight_bytes());

  SensitivityReport sensitivity;
  if (options.recipe != quant::Recipe::kPlain) {
    progress.begin("measuring", weight_bytes);
    sensitivity = measure_sensitivity(input, options, pool, [&](int64_t bytes) { progress.report(bytes); });
  }
  WeightPlan plan(input.config(), [&](const model::TensorSpec& tensor) {
    const auto chosen = sensitivity.formats.find(tensor.name);
    return chosen != sensitivity.formats.end() ? chosen->second
                                               : options.precision.format_of(tensor, input.dtype());
  });
  std::vector<GraphFile> graphs = build_graphs(plan, options, graph_options);
  const package::ShortlistEntry* const shortlist = wants_shortlist(options, plan.head()) ? &plan.store_head_shortlist() : nullptr;

  ExportResult result;
  result.checkpoint_bytes = input.weight_bytes();
  uint64_t planned_bytes = 0;
  for (const auto& [file, bytes] : plan.file_bytes()) planned_bytes += bytes;
  checkpoint::check_free_space(folder.path(), planned_bytes);

  package::Manifest& manifest = result.manifest;
  manifest.qvl_version = options.version;
  manifest.source = {input.name(),
                     {},
                     quant::Format::floating(input.dtype()).name(),
                     input.parameters(),
                     input.config().tie_word_embeddings};
  manifest.layout = options.layout;
  manifest.opset = options.opset;
  manifest.plain = options.plain;
  manifest.vision.precision = stage_precision_name(options.precision.vision);
  manifest.text.precision = stage_precision_name(options.precision.text);
  manifest.text.recipe =
      options.precision.text == StagePrecision::kInt4 || options.precision.text == StagePrecision::kInt8
          ? quant::recipe_name(options.recipe)
          : "";
  manifest.vision.recipe =
      options.precision.vision == StagePrecision::kInt8 ? quant::recipe_name(options.recipe) : "";
  if (graph_options.static_grid) {
    const image::Grid& g = *graph_options.static_grid;
    manifest.static_sizes =
        package::StaticSizes{options.static_image->width_px, options.static_image->height_px, g.t, g.h, g.w,
                             options.static_sequence,        options.static_context};
  }

  progress.begin("writing", weight_bytes + (shortlist ? static_cast<int64_t>(input.tensor(plan.head().role, -1).bytes.size()) : 0));
  quant::ErrorStats total;
  Json tensors = Json::array();
  for (const auto& [file, bytes] : plan.file_bytes()) {
    DataWriter writer(folder.path(), file);
    for (const StoredTensor* tensor : plan.tensors()) {
      if (tensor->data.file != file) continue;
      const quant::ErrorStats stats = write_tensor(*tensor, input, options, writer, pool, progress);
      if (tensor->format.kind != quant::Kind::kFloat) {
        tensors.push_back(quantisation_entry(tensor->name, tensor->format.name(), stats));
        total.merge(stats);
      }
    }
    // Not part of the sum: it is no weight of the model.
    if (shortlist && shortlist->coarse.file == file)
      tensors.push_back(quantisation_entry(kShortlistName, kShortlistFormat, write_shortlist(*shortlist, input, writer, pool, progress)));
    manifest.data_files.push_back(writer.finish());
    result.package_bytes += manifest.data_files.back().bytes;
  }
  for (const StoredTensor* tensor : plan.tensors()) manifest.tensors.push_back(*tensor);
  if (shortlist) manifest.head_shortlist = *shortlist;
  if (!tensors.empty()) {
    manifest.quantisation = {{"recipe", quant::recipe_name(options.recipe)},
                             {"calibrated", !options.importance.empty()},
                             {"sensitivity", std::move(sensitivity.report)},
                             {"all", total.to_json()},
                             {"tensors", std::move(tensors)}};
  }

  onnx::ModelInfo info;
  info.opset = options.opset;
  info.producer_version = options.version;
  for (GraphFile& g : graphs) {
    const std::string bytes = g.graph.serialize(info);
    package::GraphEntry entry;
    entry.file = write_text(folder.path(), g.file, bytes);
    entry.operators = g.graph.operator_counts();
    result.package_bytes += bytes.size();
    manifest.graphs.emplace(g.kind, std::move(entry));
  }
  const auto copy = [&](std::string_view name) {
    const fs::path path = input.folder() / name;
    if (std::error_code ec; !fs::is_regular_file(path, ec)) return;
    const std::string content = read_file(path, size_t{256} << 20);
    package::FileEntry entry = write_text(folder.path(), std::string(name), content);
    if (name == "config.json") manifest.source.config_sha256 = entry.sha256;
    result.package_bytes += entry.bytes;
    manifest.other_files.push_back(std::move(entry));
  };
  std::ranges::for_each(kConfigFiles, copy);
  std::ranges::for_each(checkpoint::kTokenizerFiles, copy);
  if (options.layout == Layout::kGenai) {
    for (auto& [name, json] : genai_files(input)) {
      manifest.other_files.push_back(write_text(folder.path(), name, json.dump(2) + "\n"));
      result.package_bytes += manifest.other_files.back().bytes;
    }
  }
  manifest.save(folder.path());
  if (options.verify) {
    options.verify(folder.path(), manifest);
    manifest.save(folder.path());
  }
  folder.publish();
  result.folder = folder.target();
  return result;
}

}  // namespace qvl::exporting
