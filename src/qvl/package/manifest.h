// qvl.json, the manifest of an exported folder: what it was made from, which graphs and data files belong to
// it, and where each tensor of the model stands in which format. The exporter writes it, both engines read it
// (spec 10).
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "qvl/base/dtype.h"
#include "qvl/base/json.h"
#include "qvl/quant/format.h"

namespace qvl::package {

// Raised when a reader of the old version would misread the new one.
inline constexpr int64_t kFormatVersion = 2;  // 2: int8 rows are unsigned
// Every part of a tensor starts at a multiple of this in its file.
inline constexpr uint64_t kPartAlignmentBytes = 64;

enum class Layout { kQvl, kGenai };
std::string_view layout_name(Layout layout);

enum class GraphKind { kVision, kVisionHost, kEmbedding, kDecoder };
// "vision", "vision_host", "embedding", "decoder"
std::string_view graph_name(GraphKind kind);

// A file of the folder. `file` is a plain name: packages have no subfolders.
struct FileEntry {
  std::string file;
  uint64_t bytes = 0;
  std::string sha256;  // 64 lower-case hexadecimal digits
};

struct GraphEntry {
  FileEntry file;
  std::map<std::string, int64_t> operators;  // "domain.operator" -> nodes, subgraphs included
};

// One initializer: bytes [offset, offset + length) of a data file.
struct TensorPart {
  std::string initializer;  // its name in the graphs
  std::string file;
  uint64_t offset = 0;
  uint64_t length = 0;
  DType dtype = DType::kF32;
  Shape shape;
};

// A tensor of the checkpoint as it is stored. Matrices of any rank count as [rows, columns] = [shape[0],
// rest], never transposed; vectors have one row.
struct TensorEntry {
  std::string name;  // canonical name in the checkpoint
  quant::Format format;
  int64_t rows = 0;
  int64_t columns = 0;
  TensorPart data;
  std::optional<TensorPart> scales;       // present exactly when the format has them
  std::optional<TensorPart> zero_points;  // present exactly when the format has them

  uint64_t stored_bytes() const {
    return data.length + (scales ? scales->length : 0) + (zero_points ? zero_points->length : 0);
  }
};

// The head once more in few bits (quant/shortlist.h), in no graph.
struct ShortlistEntry {
  int64_t rows = 0;
  int64_t columns = 0;
  TensorPart coarse, fine, scales;

  uint64_t stored_bytes() const { return coarse.length + fine.length + scales.length; }
};

struct SourceInfo {
  std::string name;           // folder name of the checkpoint, informative
  std::string config_sha256;  // of its config.json, which is copied into the package byte for byte
  std::string dtype;          // what most of its bytes are: "bf16", "f16", "f32"
  int64_t parameters = 0;
  bool tied_head = false;  // logits use the embedding matrix
};

struct StageEntry {
  std::string precision;  // as asked for: "int4", "int8", "bf16", "fp16", "fp32"
  std::string recipe;     // "plain", "balanced", "best"; empty for float formats
  int activation_bits = 8;  // of the codes that the native engine rounds activations to before integer weights: 8 or 7
  // Vision: where its kernels can, the native engine multiplies 8-bit codes in attention too, with activations of so many bits,
  // 8 or 7, instead of the above; 0: it does not.
  int int8_attention = 0;
  Json verdict;           // what decided the precision where nobody asked for one; null: somebody did
};

// Fixed sizes of --static.
struct StaticSizes {
  int64_t image_width_px = 0;
  int64_t image_height_px = 0;
  int64_t grid_t = 0, grid_h = 0, grid_w = 0;  // patches
  int64_t sequence_tokens = 0;                 // rows of a decoder call; 0: not fixed
  int64_t context_tokens = 0;                  // length of the cache; 0: not fixed
};

struct Manifest {
  int64_t format_version = kFormatVersion;
  std::string qvl_version;
  SourceInfo source;
  Layout layout = Layout::kQvl;
  int64_t opset = 0;
  bool plain = false;  // standard operators only
  StageEntry vision;
  StageEntry text;
  std::optional<StaticSizes> static_sizes;
  std::map<GraphKind, GraphEntry> graphs;
  std::vector<FileEntry> data_files;
  std::vector<FileEntry> other_files;  // config, tokenizer and processor files
  std::vector<TensorEntry> tensors;
  // By it the native engine finds the few rows of the head that a decode step needs (engine/native/head.h). Readers may ignore it.
  std::optional<ShortlistEntry> head_shortlist;
  Json quantisation;  // report of the quantisers; null when there is none
  Json parity;        // report of `qvl verify`; null when there is none

  // Checks everything that can be checked without the files: names, formats, sizes of parts against format,
  // rows and columns and against their shapes, places inside data files, alignment, no overlap. Throws
  // kFormat (kMismatch where sizes disagree) naming `where`, file and tensor.
  void validate(std::string_view where) const;

  // Throws what validate() throws: nothing invalid is written.
  Json to_json() const;
  // The same as text: one tensor a line.
  std::string to_text() const;
  // Validated. Throws kFormat, kMismatch, and kUnsupported for another format_version.
  static Manifest from_json(const Json& json, std::string_view where);

  // FOLDER/qvl.json; load throws kNotFound, kIo as well. save replaces it atomically.
  static Manifest load(const std::filesystem::path& folder);
  void save(const std::filesystem::path& folder) const;
};

}  // namespace qvl::package
