// An exported folder, opened: the manifest, the model's configuration and the mapped data files. Both engines
// read the same bytes from here; nothing is copied (spec 10, ARCHITECTURE.md "The package").
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "qvl/base/mapped_file.h"
#include "qvl/model/config.h"
#include "qvl/package/manifest.h"
#include "qvl/quant/shortlist.h"

namespace qvl::package {

// True when `path` is a folder with a manifest.
bool is_package_folder(const std::filesystem::path& path);

// A stored tensor with its bytes, valid while the Package lives. Each part starts at a multiple of 64 bytes.
struct PackageTensor {
  const TensorEntry* entry = nullptr;
  std::span<const std::byte> data;
  std::span<const std::byte> scales;       // of the format's scale_type; empty where the format has none
  std::span<const std::byte> zero_points;  // uint8; empty where the format has none

  // "FILE: tensor 'NAME'", the [where] of errors about this tensor.
  std::string where() const;

 private:
  friend class Package;
  std::string folder_;
};

// The head once more in few bits, likewise.
struct PackageShortlist {
  const ShortlistEntry* entry = nullptr;
  quant::ConstShortlistSpan parts;
};

class Package {
 public:
  // Reads manifest and config.json, maps the data files and checks: every file there with the size of the
  // manifest, config.json unchanged since the export, every tensor of the model stored once with the model's
  // sizes. Hashes of the other files are not computed. Throws kNotFound, kIo, kFormat, kMismatch,
  // kUnsupported.
  static Package open(const std::filesystem::path& folder);

  Package(Package&&) = default;
  Package& operator=(Package&&) = default;

  const std::filesystem::path& folder() const { return folder_; }
  const Manifest& manifest() const { return manifest_; }
  const model::ModelConfig& config() const { return config_; }
  bool tied_head() const { return manifest_.source.tied_head; }

  bool has_graph(GraphKind kind) const { return manifest_.graphs.contains(kind); }
  // Throws kNotFound naming folder and graph.
  std::filesystem::path graph_path(GraphKind kind) const;

  // Every tensor in the manifest's order.
  std::span<const PackageTensor> tensors() const { return tensors_; }
  // By canonical name; null when absent.
  const PackageTensor* find(std::string_view name) const;
  // Throws kNotFound naming folder and tensor.
  const PackageTensor& get(std::string_view name) const;

  // The manifest's head_shortlist, if it has one; valid while the Package stays where it is.
  std::optional<PackageShortlist> head_shortlist() const;

  // Bytes of all data files.
  uint64_t data_bytes() const;

  // SHA-256 over the configuration's and the data files' hashes in the manifest, the places of the tensors, and the
  // stamps of the data files (base/file_stamp.h): names the weights without reading them.
  std::string identity() const;

  // Copies bytes of a part from its file, not from the mapping (MappedFile::read); throws kIo.
  void read(const TensorPart& part, uint64_t offset, std::span<std::byte> out) const;

  // Hints for the page cache about one tensor.
  void will_need(const PackageTensor& tensor) const;
  void drop(const PackageTensor& tensor) const;
  void drop(const PackageShortlist& shortlist) const;
  // Gives back the pages of all data files: they leave this process's memory, not the page cache.
  void drop_all() const;

  // Reads every listed file and compares its SHA-256; throws kFormat naming the first file that differs,
  // kCancelled when `progress` (bytes done, bytes in all; may be empty) returns false.
  void verify_hashes(const std::function<bool(int64_t done, int64_t total)>& progress) const;

 private:
  Package() = default;
  void map_files();
  std::span<const std::byte> bytes_of(const TensorPart& part) const;
  PackageTensor bound(const TensorEntry& entry) const;
  void bind_tensors();
  void check_model() const;
  const MappedFile& file(const std::string& name) const;
  void advise(const PackageTensor& tensor, void (MappedFile::*hint)(size_t, size_t) const) const;

  std::filesystem::path folder_;
  Manifest manifest_;
  model::ModelConfig config_;
  std::unordered_map<std::string, MappedFile> files_;
  std::vector<PackageTensor> tensors_;
  std::unordered_map<std::string_view, size_t> index_;  // keys point into manifest_
};

}  // namespace qvl::package
