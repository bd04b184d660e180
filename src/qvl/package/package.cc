#include "qvl/package/package.h"

#include <algorithm>
#include <set>
#include <utility>

#include "qvl/base/error.h"
#include "qvl/base/sha256.h"
#include "qvl/model/tensor_table.h"
#include "qvl/package/graph_io.h"

namespace qvl::package {
namespace {

namespace fs = std::filesystem;

constexpr char kConfigFile[] = "config.json";
constexpr size_t kMaxConfigBytes = size_t{64} << 20;
constexpr size_t kHashStepBytes = size_t{8} << 20;

std::vector<const FileEntry*> all_files(const Manifest& m) {
  std::vector<const FileEntry*> files;
  for (const auto& [kind, graph] : m.graphs) files.push_back(&graph.file);
  for (const FileEntry& f : m.data_files) files.push_back(&f);
  for (const FileEntry& f : m.other_files) files.push_back(&f);
  return files;
}

void check_size(const fs::path& path, uint64_t expected) {
  std::error_code error;
  const uint64_t size = fs::file_size(path, error);
  if (error) {
    const bool absent = error == std::errc::no_such_file_or_directory;
    fail(absent ? ErrorCode::kNotFound : ErrorCode::kIo, path.string(),
         absent ? "the manifest lists this file, but it is not there" : "size: " + error.message());
  }
  if (size != expected) {
    fail(ErrorCode::kFormat, path.string(), "bytes", std::to_string(expected) + " as in the manifest",
         std::to_string(size),
         size < expected ? "the copy is incomplete" : "the file was changed after the export");
  }
}

}  // namespace

bool is_package_folder(const fs::path& path) {
  std::error_code error;
  return fs::is_regular_file(path / kManifestFile, error);
}

std::string PackageTensor::where() const {
  return (fs::path(folder_) / entry->data.file).string() + ": tensor '" + entry->name + "'";
}

Package Package::open(const fs::path& folder) {
  if (!fs::is_directory(folder)) fail(ErrorCode::kNotFound, folder.string(), "no such folder");
  Package p;
  p.folder_ = folder;
  p.manifest_ = Manifest::load(folder);
  for (const FileEntry* f : all_files(p.manifest_)) check_size(folder / f->file, f->bytes);

  const std::string config = read_file(folder / kConfigFile, kMaxConfigBytes);
  if (const std::string hash = sha256_hex(config); hash != p.manifest_.source.config_sha256) {
    fail(ErrorCode::kMismatch, (folder / kConfigFile).string(), "SHA-256", p.manifest_.source.config_sha256,
         hash, "the graphs were made from another configuration");
  }
  p.config_ = model::ModelConfig::from_json(parse_json(config, (folder / kConfigFile).string()),
                                            (folder / kConfigFile).string());
  p.map_files();
  p.bind_tensors();
  p.check_model();
  return p;
}

void Package::map_files() {
  for (const FileEntry& f : manifest_.data_files) {
    MappedFile mapped = MappedFile::open(folder_ / f.file);
    // Once more: the file may have shrunk since its size was read.
    if (mapped.bytes().size() != f.bytes) check_size(folder_ / f.file, f.bytes);
    files_.emplace(f.file, std::move(mapped));
  }
}

const MappedFile& Package::file(const std::string& name) const {
  return files_.at(name);
}

std::string Package::identity() const {
  Manifest without_report = manifest_;
  without_report.parity = nullptr;  // says how well the weights do, not what they are
  Sha256 hash;
  hash.add(without_report.to_text());
  for (const FileEntry& f : manifest_.data_files) hash.add(f.file + " " + file(f.file).stamp() + "\n");
  return "package " + hash.finish();
}

PackageTensor Package::bound(const TensorEntry& entry) const {
  PackageTensor t;
  t.entry = &entry;
  t.folder_ = folder_.string();
  t.data = bytes_of(entry.data);
  if (entry.scales) t.scales = bytes_of(*entry.scales);
  if (entry.zero_points) t.zero_points = bytes_of(*entry.zero_points);
  return t;
}

void Package::bind_tensors() {
  tensors_.reserve(manifest_.tensors.size());
  for (const TensorEntry& entry : manifest_.tensors) {
    index_.emplace(entry.name, tensors_.size());
    tensors_.push_back(bound(entry));
  }
}

std::span<const std::byte> Package::bytes_of(const TensorPart& part) const {
  return file(part.file).bytes().subspan(part.offset, part.length);
}

std::optional<PackageShortlist> Package::head_shortlist() const {
  if (!manifest_.head_shortlist) return std::nullopt;
  const ShortlistEntry& entry = *manifest_.head_shortlist;
  return PackageShortlist{&entry, {bytes_of(entry.coarse), bytes_of(entry.fine), bytes_of(entry.scales)}};
}

void Package::check_model() const {
  const std::string where = (folder_ / kManifestFile).string();
  if (config_.tie_is_explicit && config_.tie_word_embeddings != tied_head()) {
    fail(ErrorCode::kMismatch, where, "source.tied_head", config_.tie_word_embeddings ? "true" : "false",
         tied_head() ? "true" : "false", "config.json decides");
  }
  std::set<std::string_view> known;
  for (const model::TensorSpec& spec : model::tensor_table(config_)) {
    if (spec.role == model::TensorRole::kLmHead && tied_head()) continue;
    const PackageTensor* t = find(spec.name);
    if (!t) fail(ErrorCode::kMismatch, where, "tensor '" + spec.name + "' of the model is not stored");
    known.insert(t->entry->name);
    const bool vector = spec.shape.size() < 2;
    const int64_t rows = vector ? 1 : spec.shape[0];
    const int64_t columns = element_count(spec.shape) / rows;
    if (t->entry->rows != rows || t->entry->columns != columns) {
      fail(ErrorCode::kMismatch, where, "rows and columns of tensor '" + spec.name + "'",
           shape_string({rows, columns}), shape_string({t->entry->rows, t->entry->columns}));
    }
    const bool quantisable = spec.precision == model::PrecisionClass::kMatrix ||
                             spec.precision == model::PrecisionClass::kEmbedding;
    if (!quantisable && t->entry->format.kind != quant::Kind::kFloat) {
      fail(ErrorCode::kUnsupported, where, "format of tensor '" + spec.name + "'", "a floating-point one",
           t->entry->format.name());
    }
  }
  if (manifest_.head_shortlist) {
    const TensorEntry& head = *get(model::tensor_name(model::head_role(tied_head()))).entry;
    const ShortlistEntry& shortlist = *manifest_.head_shortlist;
    if (shortlist.rows != head.rows || shortlist.columns != head.columns) {
      fail(ErrorCode::kMismatch, where, "rows and columns of the head's shortlist", shape_string({head.rows, head.columns}),
           shape_string({shortlist.rows, shortlist.columns}));
    }
  }
  if (known.size() == tensors_.size()) return;
  for (const PackageTensor& t : tensors_) {
    if (!known.contains(t.entry->name)) {
      fail(ErrorCode::kMismatch, where, "tensor '" + t.entry->name + "' is no part of the model");
    }
  }
}

fs::path Package::graph_path(GraphKind kind) const {
  const auto it = manifest_.graphs.find(kind);
  if (it == manifest_.graphs.end()) {
    fail(ErrorCode::kNotFound, folder_.string(),
         "the package has no graph '" + std::string(graph_name(kind)) + "'");
  }
  return folder_ / it->second.file.file;
}

const PackageTensor* Package::find(std::string_view name) const {
  const auto it = index_.find(name);
  return it == index_.end() ? nullptr : &tensors_[it->second];
}

const PackageTensor& Package::get(std::string_view name) const {
  const PackageTensor* t = find(name);
  if (!t) fail(ErrorCode::kNotFound, folder_.string(), "no tensor '" + std::string(name) + "'");
  return *t;
}

uint64_t Package::data_bytes() const {
  uint64_t total = 0;
  for (const FileEntry& f : manifest_.data_files) total += f.bytes;
  return total;
}

void Package::advise(const PackageTensor& tensor, void (MappedFile::*hint)(size_t, size_t) const) const {
  const TensorEntry& e = *tensor.entry;
  for (const TensorPart* part :
       {&e.data, e.scales ? &*e.scales : nullptr, e.zero_points ? &*e.zero_points : nullptr}) {
    if (part) (file(part->file).*hint)(part->offset, part->length);
  }
}

void Package::read(const TensorPart& part, uint64_t offset, std::span<std::byte> out) const {
  file(part.file).read(part.offset + offset, out);
}

void Package::will_need(const PackageTensor& tensor) const {
  advise(tensor, &MappedFile::will_need);
}
void Package::drop(const PackageTensor& tensor) const {
  advise(tensor, &MappedFile::drop);
}

void Package::drop(const PackageShortlist& shortlist) const {
  for (const TensorPart* part : {&shortlist.entry->coarse, &shortlist.entry->fine, &shortlist.entry->scales})
    file(part->file).drop(part->offset, part->length);
}

void Package::drop_all() const {
  for (const auto& [name, file] : files_) file.drop(0, file.bytes().size());
}

void Package::verify_hashes(const std::function<bool(int64_t, int64_t)>& progress) const {
  const std::vector<const FileEntry*> files = all_files(manifest_);
  uint64_t total = 0;
  for (const FileEntry* f : files) total += f->bytes;
  uint64_t done = 0;
  for (const FileEntry* f : files) {
    const fs::path path = folder_ / f->file;
    check_size(path, f->bytes);
    const MappedFile mapped = MappedFile::open(path);
    const std::span<const std::byte> bytes = mapped.bytes();
    Sha256 hash;
    for (size_t at = 0; at < bytes.size(); at += kHashStepBytes) {
      const size_t n = std::min(kHashStepBytes, bytes.size() - at);
      mapped.will_need(at + n, kHashStepBytes);
      hash.add(bytes.subspan(at, n));
      done += n;
      if (progress && !progress(static_cast<int64_t>(done), static_cast<int64_t>(total))) {
        fail(ErrorCode::kCancelled, "verify", "cancelled");
      }
    }
    if (const std::string actual = hash.finish(); actual != f->sha256) {
      fail(ErrorCode::kFormat, path.string(), "SHA-256", f->sha256, actual,
           "the file was changed or damaged");
    }
  }
}

}  // namespace qvl::package
