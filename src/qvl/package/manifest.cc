#include "qvl/package/manifest.h"

#include <algorithm>
#include <array>
#include <set>
#include <utility>

#include "qvl/base/atomic_file.h"
#include "qvl/base/error.h"
#include "qvl/package/graph_io.h"
#include "qvl/quant/shortlist.h"

namespace qvl::package {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kFormatName = "qvl package";
constexpr std::array kGraphKinds = {GraphKind::kVision, GraphKind::kVisionHost, GraphKind::kEmbedding,
                                    GraphKind::kDecoder};
// Far above any model, and small enough that no product of sizes overflows.
constexpr int64_t kMaxExtent = int64_t{1} << 40;
constexpr int64_t kMaxElements = int64_t{1} << 46;

// One object of the file, with the way to it for messages: "DIR/qvl.json: tensors[3].data".
class Reader {
 public:
  Reader(const Json& json, std::string where) : json_(&json), where_(std::move(where)) {
    if (!json.is_object()) fail(ErrorCode::kFormat, where_, "value", "an object", json.type_name());
  }

  const std::string& where() const { return where_; }
  bool has(std::string_view key) const {
    const auto it = json_->find(key);
    return it != json_->end() && !it->is_null();
  }
  const Json& get(std::string_view key) const {
    const auto it = json_->find(key);
    if (it == json_->end()) fail(ErrorCode::kFormat, where_, "key '" + std::string(key) + "' is missing");
    return *it;
  }
  const Json& json() const { return *json_; }
  Reader object(std::string_view key) const { return Reader(get(key), where_ + "." + std::string(key)); }
  const Json& array(std::string_view key) const {
    const Json& v = get(key);
    if (!v.is_array()) wrong_type(key, "an array", v);
    return v;
  }
  Reader element(std::string_view key, size_t index) const {
    return Reader(array(key)[index], where_ + "." + std::string(key) + "[" + std::to_string(index) + "]");
  }
  std::string text(std::string_view key) const {
    const Json& v = get(key);
    if (!v.is_string()) wrong_type(key, "a string", v);
    return v.get<std::string>();
  }
  bool boolean(std::string_view key) const {
    const Json& v = get(key);
    if (!v.is_boolean()) wrong_type(key, "true or false", v);
    return v.get<bool>();
  }
  // A whole number from 0 to 2^63 - 1.
  int64_t count(std::string_view key) const { return count(get(key), key); }
  int64_t count(const Json& v, std::string_view key) const {
    if (!v.is_number_integer() || (v.is_number_unsigned() && v.get<uint64_t>() > INT64_MAX) ||
        v.get<int64_t>() < 0) {
      wrong_type(key, "a whole number, 0 or more", v);
    }
    return v.get<int64_t>();
  }

 private:
  [[noreturn]] void wrong_type(std::string_view key, std::string_view expected, const Json& got) const {
    std::string shown = got.dump();
    if (shown.size() > 60) shown = shown.substr(0, 57) + "...";
    fail(ErrorCode::kFormat, where_, "key '" + std::string(key) + "'", expected, shown);
  }

  const Json* json_;
  std::string where_;
};

Json to_json(const FileEntry& f) {
  return {{"file", f.file}, {"bytes", f.bytes}, {"sha256", f.sha256}};
}

FileEntry read_file_entry(const Reader& r) {
  return {
      .file = r.text("file"), .bytes = static_cast<uint64_t>(r.count("bytes")), .sha256 = r.text("sha256")};
}

std::vector<FileEntry> read_files(const Reader& r, std::string_view key) {
  std::vector<FileEntry> files;
  for (size_t i = 0; i < r.array(key).size(); ++i) files.push_back(read_file_entry(r.element(key, i)));
  return files;
}

Json to_json(const TensorPart& p) {
  return {{"initializer", p.initializer}, {"file", p.file},  {"offset", p.offset}, {"length", p.length},
          {"dtype", dtype_name(p.dtype)}, {"shape", p.shape}};
}

TensorPart read_part(const Reader& r) {
  TensorPart p;
  p.initializer = r.text("initializer");
  p.file = r.text("file");
  p.offset = static_cast<uint64_t>(r.count("offset"));
  p.length = static_cast<uint64_t>(r.count("length"));
  p.dtype = parse_dtype(r.text("dtype"), r.where());
  for (const Json& extent : r.array("shape")) p.shape.push_back(r.count(extent, "shape"));
  return p;
}

Json to_json(const TensorEntry& t) {
  Json j = {{"name", t.name},
            {"format", t.format.name()},
            {"rows", t.rows},
            {"columns", t.columns},
            {"data", to_json(t.data)}};
  if (t.scales) j["scales"] = to_json(*t.scales);
  if (t.zero_points) j["zero_points"] = to_json(*t.zero_points);
  return j;
}

TensorEntry read_tensor(const Reader& r) {
  TensorEntry t;
  t.name = r.text("name");
  const std::string format = r.text("format");
  try {
    t.format = quant::parse_format(format);
  } catch (const Error& e) {
    fail(ErrorCode::kUnsupported, r.where(), "tensor '" + t.name + "': " + e.what());
  }
  t.rows = r.count("rows");
  t.columns = r.count("columns");
  t.data = read_part(r.object("data"));
  if (r.has("scales")) t.scales = read_part(r.object("scales"));
  if (r.has("zero_points")) t.zero_points = read_part(r.object("zero_points"));
  return t;
}

// Key of the manifest. (Packages of the first days have a "head_shortlist" of another form, which is not read.)
constexpr const char* kShortlistKey = "shortlist";

Json to_json(const ShortlistEntry& s) {
  return {{"rows", s.rows}, {"columns", s.columns}, {"coarse", to_json(s.coarse)}, {"fine", to_json(s.fine)}, {"scales", to_json(s.scales)}};
}

ShortlistEntry read_shortlist(const Reader& r) {
  return {.rows = r.count("rows"),
          .columns = r.count("columns"),
          .coarse = read_part(r.object("coarse")),
          .fine = read_part(r.object("fine")),
          .scales = read_part(r.object("scales"))};
}

Json to_json(const StageEntry& s) {
  Json j = {{"precision", s.precision}, {"recipe", s.recipe}};
  if (s.activation_bits != 8) j["activation_bits"] = s.activation_bits;
  if (s.int8_attention != 0) j["int8_attention"] = s.int8_attention;
  if (!s.verdict.is_null()) j["verdict"] = s.verdict;
  return j;
}
StageEntry read_stage(const Reader& r) {
  StageEntry s{.precision = r.text("precision"), .recipe = r.text("recipe"), .verdict = {}};
  const auto bits = [&r](const char* key, int& value) {
    if (r.has(key)) value = static_cast<int>(std::min<int64_t>(r.count(key), 64));
  };
  bits("activation_bits", s.activation_bits);
  bits("int8_attention", s.int8_attention);
  if (r.has("verdict")) s.verdict = r.object("verdict").json();
  return s;
}

bool is_plain_name(std::string_view name) {
  return !name.empty() && name != "." && name != ".." && name.find('/') == name.npos &&
         name.find('\\') == name.npos && name.find('\0') == name.npos;
}

bool is_sha256(std::string_view hash) {
  return hash.size() == 64 && hash.find_first_not_of("0123456789abcdef") == hash.npos;
}

void check_hash(std::string_view where, std::string_view what, const std::string& hash) {
  if (!is_sha256(hash)) {
    fail(ErrorCode::kFormat, where, std::string(what), "64 hexadecimal digits of SHA-256", "'" + hash + "'");
  }
}

// Checks one part of a tensor and notes its place.
struct Place {
  uint64_t offset;
  uint64_t length;
  std::string owner;  // for messages
};
using Places = std::map<std::string, std::vector<Place>, std::less<>>;

struct PartRule {
  const char* name;  // "data"
  DType dtype;
  uint64_t bytes;
};

// What the parts belong to.
struct Owner {
  std::string name;  // "tensor 'NAME'"
  std::string format;
  int64_t rows;
  int64_t columns;
};

void check_part(std::string_view where, const std::map<std::string, uint64_t, std::less<>>& files,
                const Owner& owner, const TensorPart& part, const PartRule& rule, Places& places) {
  const std::string at = std::string(where) + ": " + owner.name + " " + rule.name + " in '" + part.file + "'";
  if (part.initializer.empty()) fail(ErrorCode::kFormat, at, "name of the initializer is empty");
  const auto file = files.find(part.file);
  if (file == files.end()) fail(ErrorCode::kFormat, at, "not one of the package's data files");
  if (part.dtype != rule.dtype) {
    fail(ErrorCode::kMismatch, at, "element type for format '" + owner.format + "'",
         dtype_name(rule.dtype), dtype_name(part.dtype));
  }
  if (part.length != rule.bytes) {
    fail(ErrorCode::kMismatch, at,
         "bytes of [" + std::to_string(owner.rows) + ", " + std::to_string(owner.columns) + "] in format '" + owner.format + "'",
         std::to_string(rule.bytes), std::to_string(part.length));
  }
  for (int64_t extent : part.shape) {
    if (extent < 1 || extent > kMaxExtent)
      fail(ErrorCode::kFormat, at, "shape", "positive extents", shape_string(part.shape));
  }
  if (static_cast<uint64_t>(element_count(part.shape)) * dtype_size_bytes(part.dtype) != part.length) {
    fail(ErrorCode::kMismatch, at, "bytes of shape " + shape_string(part.shape), std::to_string(part.length),
         std::to_string(element_count(part.shape)) + " elements of " +
             std::to_string(dtype_size_bytes(part.dtype)) + " bytes");
  }
  if (part.offset > file->second || part.length > file->second - part.offset) {
    fail(ErrorCode::kFormat, at, "place", "inside the file's " + std::to_string(file->second) + " bytes",
         std::to_string(part.offset) + " + " + std::to_string(part.length));
  }
  if (part.offset % kPartAlignmentBytes != 0) {
    fail(ErrorCode::kFormat, at, "offset", "a multiple of " + std::to_string(kPartAlignmentBytes),
         std::to_string(part.offset));
  }
  places[part.file].push_back({part.offset, part.length, owner.name + " " + rule.name});
}

void check_extents(std::string_view where, const Owner& owner) {
  if (owner.rows < 1 || owner.columns < 1 || owner.rows > kMaxExtent || owner.columns > kMaxElements / owner.rows) {
    fail(ErrorCode::kFormat, std::string(where) + ": " + owner.name, "rows and columns", "positive and at most 2^46 elements",
         std::to_string(owner.rows) + " x " + std::to_string(owner.columns));
  }
}

void check_shortlist(std::string_view where, const std::map<std::string, uint64_t, std::less<>>& files, const ShortlistEntry& s,
                     Places& places) {
  const Owner owner{"the head's shortlist", "shortlist", s.rows, s.columns};
  check_extents(where, owner);
  const quant::ShortlistBytes bytes = quant::shortlist_bytes(s.rows, s.columns);
  check_part(where, files, owner, s.coarse, {"coarse", DType::kU8, bytes.coarse}, places);
  check_part(where, files, owner, s.fine, {"fine", DType::kU8, bytes.fine}, places);
  check_part(where, files, owner, s.scales, {"scales", DType::kBF16, bytes.scales}, places);
}

void check_tensor(std::string_view where, const std::map<std::string, uint64_t, std::less<>>& files,
                  const TensorEntry& t, Places& places) {
  const std::string at = std::string(where) + ": tensor '" + t.name + "'";
  if (t.name.empty()) fail(ErrorCode::kFormat, where, "a tensor has no name");
  try {
    t.format.validate();
  } catch (const Error& e) {
    fail(ErrorCode::kFormat, at, e.what());
  }
  const Owner owner{"tensor '" + t.name + "'", t.format.name(), t.rows, t.columns};
  check_extents(where, owner);
  const DType data_type = t.format.kind == quant::Kind::kFloat ? t.format.float_type : DType::kU8;
  check_part(where, files, owner, t.data, {"data", data_type, t.format.data_bytes(t.rows, t.columns)}, places);

  const auto optional = [&](const std::optional<TensorPart>& part, const PartRule& rule) {
    if (part.has_value() != (rule.bytes > 0)) {
      fail(ErrorCode::kFormat, at, std::string(rule.name) + " of format '" + t.format.name() + "'",
           rule.bytes > 0 ? "a part" : "none", part ? "a part" : "none");
    }
    if (part) check_part(where, files, owner, *part, rule, places);
  };
  optional(t.scales, {"scales", t.format.scale_type, t.format.scale_bytes(t.rows, t.columns)});
  optional(t.zero_points, {"zero_points", DType::kU8, t.format.zero_point_bytes(t.rows, t.columns)});
}

void check_static(std::string_view where, const StaticSizes& s) {
  const std::pair<const char*, int64_t> positive[] = {{"image_width_px", s.image_width_px},
                                                      {"image_height_px", s.image_height_px},
                                                      {"grid_t", s.grid_t},
                                                      {"grid_h", s.grid_h},
                                                      {"grid_w", s.grid_w}};
  for (const auto& [name, value] : positive) {
    if (value < 1) {
      fail(ErrorCode::kFormat, where, std::string("static size '") + name + "'", "1 or more",
           std::to_string(value));
    }
  }
  if (s.sequence_tokens < 0 || s.context_tokens < s.sequence_tokens) {
    fail(ErrorCode::kFormat, where, "static sequence and context tokens", "0 <= sequence <= context",
         std::to_string(s.sequence_tokens) + " and " + std::to_string(s.context_tokens));
  }
}

}  // namespace

std::string_view layout_name(Layout layout) {
  return layout == Layout::kGenai ? "genai" : "qvl";
}

std::string_view graph_name(GraphKind kind) {
  switch (kind) {
    case GraphKind::kVision:
      return "vision";
    case GraphKind::kVisionHost:
      return "vision_host";
    case GraphKind::kEmbedding:
      return "embedding";
    case GraphKind::kDecoder:
      return "decoder";
  }
  return "?";
}

void Manifest::validate(std::string_view where) const {
  if (format_version != kFormatVersion) {
    fail(ErrorCode::kUnsupported, where, "format version", std::to_string(kFormatVersion),
         std::to_string(format_version), "written by another qvl: export again or use that version");
  }
  if (opset < 1) fail(ErrorCode::kFormat, where, "opset", "1 or more", std::to_string(opset));
  for (const StageEntry* s : {&vision, &text}) {
    if (s->activation_bits != 7 && s->activation_bits != 8) {
      fail(ErrorCode::kFormat, where, "activation_bits of a stage", "7 or 8", std::to_string(s->activation_bits));
    }
    if (s->int8_attention != 0 && s->int8_attention != 7 && s->int8_attention != 8) {
      fail(ErrorCode::kFormat, where, "int8_attention of a stage", "7 or 8, or nothing", std::to_string(s->int8_attention));
    }
  }
  check_hash(where, "source.config_sha256", source.config_sha256);
  if (static_sizes) check_static(where, *static_sizes);

  // Every file once, whatever its kind.
  std::set<std::string, std::less<>> names = {kManifestFile};
  const auto check_file = [&](const FileEntry& f) {
    if (!is_plain_name(f.file)) {
      fail(ErrorCode::kFormat, where, "file name", "a plain name inside the folder", "'" + f.file + "'");
    }
    if (!names.insert(f.file).second)
      fail(ErrorCode::kFormat, where, "file '" + f.file + "' is listed twice");
    check_hash(where, "sha256 of '" + f.file + "'", f.sha256);
  };
  std::map<std::string, uint64_t, std::less<>> data;
  for (const auto& [kind, graph] : graphs) check_file(graph.file);
  for (const FileEntry& f : data_files) {
    check_file(f);
    data[f.file] = f.bytes;
  }
  for (const FileEntry& f : other_files) check_file(f);

  Places places;
  std::set<std::string_view> seen;
  std::set<std::string_view> initializers;
  const auto check_one = [&](const TensorEntry& t) {
    if (!seen.insert(t.name).second)
      fail(ErrorCode::kFormat, where, "tensor '" + t.name + "' is listed twice");
    check_tensor(where, data, t, places);
    for (const TensorPart* part :
         {&t.data, t.scales ? &*t.scales : nullptr, t.zero_points ? &*t.zero_points : nullptr}) {
      if (part && !initializers.insert(part->initializer).second) {
        fail(ErrorCode::kFormat, where, "initializer '" + part->initializer + "' belongs to two parts");
      }
    }
  };
  std::ranges::for_each(tensors, check_one);
  if (head_shortlist) check_shortlist(where, data, *head_shortlist, places);
  for (auto& [file, list] : places) {
    std::ranges::sort(list, {}, &Place::offset);
    for (size_t i = 1; i < list.size(); ++i) {
      const Place& before = list[i - 1];
      if (before.offset + before.length > list[i].offset) {
        fail(ErrorCode::kFormat, std::string(where) + ": '" + file + "'",
             list[i].owner + " at " + std::to_string(list[i].offset) + " overlaps " + before.owner +
                 " that ends at " + std::to_string(before.offset + before.length));
      }
    }
  }
}

namespace {

// Everything but the tensors.
Json head_json(const Manifest& m) {
  Json j;
  j["format"] = kFormatName;
  j["format_version"] = m.format_version;
  j["qvl_version"] = m.qvl_version;
  j["source"] = {{"name", m.source.name},
                 {"config_sha256", m.source.config_sha256},
                 {"dtype", m.source.dtype},
                 {"parameters", m.source.parameters},
                 {"tied_head", m.source.tied_head}};
  j["layout"] = layout_name(m.layout);
  j["opset"] = m.opset;
  j["plain"] = m.plain;
  j["stages"] = {{"vision", to_json(m.vision)}, {"text", to_json(m.text)}};
  if (m.static_sizes) {
    const StaticSizes& s = *m.static_sizes;
    j["static"] = {{"image_width_px", s.image_width_px},
                   {"image_height_px", s.image_height_px},
                   {"grid_thw", {s.grid_t, s.grid_h, s.grid_w}},
                   {"sequence_tokens", s.sequence_tokens},
                   {"context_tokens", s.context_tokens}};
  } else {
    j["static"] = nullptr;
  }
  j["graphs"] = Json::object();
  for (const auto& [kind, graph] : m.graphs) {
    Json g = to_json(graph.file);
    g["operators"] = Json::object();
    for (const auto& [name, nodes] : graph.operators) g["operators"][name] = nodes;
    j["graphs"][std::string(graph_name(kind))] = std::move(g);
  }
  for (const auto& [key, list] : {std::pair("data_files", &m.data_files), {"other_files", &m.other_files}}) {
    j[key] = Json::array();
    for (const FileEntry& f : *list) j[key].push_back(to_json(f));
  }
  if (m.head_shortlist) j[kShortlistKey] = to_json(*m.head_shortlist);
  j["quantisation"] = m.quantisation;
  j["parity"] = m.parity;
  return j;
}

}  // namespace

Json Manifest::to_json() const {
  validate("manifest");
  Json j = head_json(*this);
  j["tensors"] = Json::array();
  for (const TensorEntry& t : tensors) j["tensors"].push_back(package::to_json(t));
  return j;
}

std::string Manifest::to_text() const {
  validate("manifest");
  std::string out = head_json(*this).dump(2);
  out.resize(out.size() - 2);  // "\n}"
  out += ",\n  \"tensors\": [";
  const char* separator = "\n    ";
  for (const TensorEntry& t : tensors) {
    out += separator + package::to_json(t).dump();
    separator = ",\n    ";
  }
  return out + "\n  ]\n}\n";
}

Manifest Manifest::from_json(const Json& json, std::string_view where) {
  const Reader r(json, std::string(where));
  if (const std::string format = r.text("format"); format != kFormatName) {
    fail(ErrorCode::kFormat, where, "key 'format'", "'" + std::string(kFormatName) + "'", "'" + format + "'");
  }
  Manifest m;
  m.format_version = r.count("format_version");
  // Before anything else is read: a newer version may mean something else by the same keys.
  if (m.format_version != kFormatVersion) m.validate(where);
  m.qvl_version = r.text("qvl_version");
  const Reader source = r.object("source");
  m.source = {.name = source.text("name"),
              .config_sha256 = source.text("config_sha256"),
              .dtype = source.text("dtype"),
              .parameters = source.count("parameters"),
              .tied_head = source.boolean("tied_head")};
  const std::string layout = r.text("layout");
  if (layout != "qvl" && layout != "genai") {
    fail(ErrorCode::kUnsupported, where, "layout", "'qvl' or 'genai'", "'" + layout + "'");
  }
  m.layout = layout == "genai" ? Layout::kGenai : Layout::kQvl;
  m.opset = r.count("opset");
  m.plain = r.boolean("plain");
  const Reader stages = r.object("stages");
  m.vision = read_stage(stages.object("vision"));
  m.text = read_stage(stages.object("text"));
  if (r.has("static")) {
    const Reader s = r.object("static");
    const Json& grid = s.array("grid_thw");
    if (grid.size() != 3)
      fail(ErrorCode::kFormat, s.where(), "grid_thw", "3 numbers", std::to_string(grid.size()));
    m.static_sizes = StaticSizes{.image_width_px = s.count("image_width_px"),
                                 .image_height_px = s.count("image_height_px"),
                                 .grid_t = s.count(grid[0], "grid_thw"),
                                 .grid_h = s.count(grid[1], "grid_thw"),
                                 .grid_w = s.count(grid[2], "grid_thw"),
                                 .sequence_tokens = s.count("sequence_tokens"),
                                 .context_tokens = s.count("context_tokens")};
  }
  const Reader graphs = r.object("graphs");
  for (const auto& [name, value] : r.get("graphs").items()) {
    const auto kind = std::ranges::find(kGraphKinds, name, graph_name);
    if (kind == kGraphKinds.end())
      fail(ErrorCode::kUnsupported, graphs.where(), "unknown graph '" + name + "'");
    const Reader g = graphs.object(name);
    GraphEntry& entry = m.graphs[*kind];
    entry.file = read_file_entry(g);
    const Reader operators = g.object("operators");
    for (const auto& [op, nodes] : g.get("operators").items()) entry.operators[op] = operators.count(op);
  }
  m.data_files = read_files(r, "data_files");
  m.other_files = read_files(r, "other_files");
  const size_t tensors = r.array("tensors").size();
  m.tensors.reserve(tensors);
  for (size_t i = 0; i < tensors; ++i) m.tensors.push_back(read_tensor(r.element("tensors", i)));
  if (r.has(kShortlistKey)) m.head_shortlist = read_shortlist(r.object(kShortlistKey));
  if (r.has("quantisation")) m.quantisation = r.get("quantisation");
  if (r.has("parity")) m.parity = r.get("parity");
  m.validate(where);
  return m;
}

Manifest Manifest::load(const fs::path& folder) {
  const fs::path path = folder / kManifestFile;
  return from_json(parse_json_file(path), path.string());
}

void Manifest::save(const fs::path& folder) const {
  const std::string written = to_text();
  AtomicFile file(folder / kManifestFile);
  file.write(written);
  file.commit();
}

}  // namespace qvl::package
