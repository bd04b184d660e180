#include "qvl/checkpoint/safetensors.h"

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <optional>
#include <unordered_set>
#include <utility>

#include "qvl/base/error.h"
#include "qvl/base/json.h"
#include "qvl/base/tensor.h"

namespace qvl::checkpoint {
namespace {

static_assert(std::endian::native == std::endian::little,
              "safetensors data are little endian and used in place");

constexpr size_t kLengthBytes = 8;
constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the limit of the format's own reader
constexpr size_t kMaxRank = 64;
constexpr std::string_view kMetadataKey = "__metadata__";

struct Entry {
  std::string name;
  std::optional<DType> dtype;
  std::optional<Shape> shape;
  std::vector<uint64_t> offsets;
  bool has_offsets = false;
};

// Reads the header without building a document: types are checked as they come and repeated names are seen.
class HeaderReader {
 public:
  explicit HeaderReader(const std::string& file) : file_(file) {}

  std::vector<Entry> entries;
  std::map<std::string, std::string> metadata;

  bool null() { return unexpected("null"); }
  bool boolean(bool) { return unexpected("a boolean"); }
  bool number_integer(int64_t v) { return unexpected("the negative number " + std::to_string(v)); }
  bool number_float(double, const std::string& text) {
    return unexpected("the number " + text.substr(0, 40));
  }
  template <typename Binary>
  bool binary(Binary&) {
    return unexpected("binary data");
  }

  bool number_unsigned(uint64_t v) {
    Entry* entry = entries.empty() ? nullptr : &entries.back();
    if (state_ == State::kShape) {
      if (v > static_cast<uint64_t>(INT64_MAX)) bad("shape", "extents below 2^63", std::to_string(v));
      if (entry->shape->size() == kMaxRank) bad("shape", "at most 64 dimensions", "more");
      entry->shape->push_back(static_cast<int64_t>(v));
    } else if (state_ == State::kOffsets) {
      if (entry->offsets.size() == 2) bad("data_offsets", "two numbers", "more");
      entry->offsets.push_back(v);
    } else {
      return unexpected("the number " + std::to_string(v));
    }
    return true;
  }

  bool string(std::string& value) {
    if (state_ == State::kMetadata) {
      if (!metadata.emplace(key_, value).second) {
        fail(ErrorCode::kFormat, file_, "key " + quoted_name(key_) + " appears twice in __metadata__");
      }
      return true;
    }
    if (state_ == State::kTensor && key_ == "dtype") {
      entries.back().dtype = parse_dtype(value, where());
      return true;
    }
    return unexpected("a string");
  }

  bool start_object(size_t) {
    if (state_ == State::kStart) {
      state_ = State::kFile;
    } else if (state_ == State::kFile && key_ == kMetadataKey) {
      state_ = State::kMetadata;
    } else if (state_ == State::kFile) {
      entries.push_back({.name = key_});
      state_ = State::kTensor;
    } else {
      return unexpected("an object");
    }
    return true;
  }

  bool key(std::string& value) {
    key_ = value;
    if (state_ == State::kFile) {
      if (!seen_.insert(value).second) {
        fail(ErrorCode::kFormat, file_ + ": tensor " + quoted_name(value),
             "the name appears twice in the header");
      }
    } else if (state_ == State::kTensor) {
      const Entry& entry = entries.back();
      const bool again = (value == "dtype" && entry.dtype) || (value == "shape" && entry.shape) ||
                         (value == "data_offsets" && entry.has_offsets);
      if (again) fail(ErrorCode::kFormat, where(), "key " + quoted_name(value) + " appears twice");
      if (value != "dtype" && value != "shape" && value != "data_offsets") {
        fail(ErrorCode::kFormat, where(), "header key", "dtype, shape or data_offsets", quoted_name(value));
      }
    }
    return true;
  }

  bool end_object() {
    if (state_ == State::kTensor) {
      const Entry& entry = entries.back();
      if (!entry.dtype) fail(ErrorCode::kFormat, where(), "the header has no dtype for it");
      if (!entry.shape) fail(ErrorCode::kFormat, where(), "the header has no shape for it");
      if (!entry.has_offsets) fail(ErrorCode::kFormat, where(), "the header has no data_offsets for it");
      state_ = State::kFile;
    } else if (state_ == State::kMetadata) {
      state_ = State::kFile;
    } else {
      state_ = State::kDone;
    }
    return true;
  }

  bool start_array(size_t) {
    if (state_ == State::kTensor && key_ == "shape") {
      entries.back().shape.emplace();
      state_ = State::kShape;
    } else if (state_ == State::kTensor && key_ == "data_offsets") {
      entries.back().has_offsets = true;
      state_ = State::kOffsets;
    } else {
      return unexpected("an array");
    }
    return true;
  }

  bool end_array() {
    if (state_ == State::kOffsets && entries.back().offsets.size() != 2) {
      bad("data_offsets", "two numbers", std::to_string(entries.back().offsets.size()));
    }
    state_ = State::kTensor;
    return true;
  }

  template <typename Exception>
  bool parse_error(size_t position, const std::string&, const Exception& e) {
    std::string reason = e.what();
    if (const size_t at = reason.find("parse error"); at != std::string::npos) reason = reason.substr(at);
    fail(ErrorCode::kFormat, file_,
         "the header is not valid JSON at byte " + std::to_string(position) + ": " + reason.substr(0, 300));
  }

 private:
  enum class State { kStart, kFile, kMetadata, kTensor, kShape, kOffsets, kDone };

  std::string where() const { return file_ + ": tensor " + quoted_name(entries.back().name); }

  [[noreturn]] void bad(std::string_view what, std::string_view expected, std::string_view got) const {
    fail(ErrorCode::kFormat, where(), what, expected, got);
  }

  bool unexpected(const std::string& got) const {
    switch (state_) {
      case State::kMetadata:
        fail(ErrorCode::kFormat, file_, "value of " + quoted_name(key_) + " in __metadata__", "a string",
             got);
      case State::kTensor:
        bad(key_, key_ == "dtype" ? "a string" : "an array of numbers", got);
      case State::kShape:
        bad("shape", "non-negative integers", got);
      case State::kOffsets:
        bad("data_offsets", "non-negative integers", got);
      case State::kFile:
        fail(ErrorCode::kFormat, file_ + ": tensor " + quoted_name(key_), "header entry", "an object", got);
      default:
        fail(ErrorCode::kFormat, file_, "header", "a JSON object", got);
    }
  }

  const std::string& file_;
  State state_ = State::kStart;
  std::string key_;
  std::unordered_set<std::string> seen_;
};

// Where the JSON ends, after checking the length in the first eight bytes.
std::string_view header_text(std::span<const std::byte> bytes, const std::string& file) {
  if (bytes.size() < kLengthBytes) {
    fail(ErrorCode::kFormat, file, "file size", "at least 8 bytes", std::to_string(bytes.size()),
         "not a safetensors file, or truncated");
  }
  uint64_t length = 0;
  std::memcpy(&length, bytes.data(), kLengthBytes);
  if (length > kMaxHeaderBytes) {
    fail(ErrorCode::kFormat, file, "header length", "at most " + std::to_string(kMaxHeaderBytes) + " bytes",
         std::to_string(length), "not a safetensors file?");
  }
  if (length > bytes.size() - kLengthBytes) {
    fail(ErrorCode::kFormat, file, "header length",
         "at most the " + std::to_string(bytes.size() - kLengthBytes) + " bytes that follow",
         std::to_string(length), "the file is truncated");
  }
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()) + kLengthBytes, length);
  if (text.empty() || text.front() != '{') {
    fail(ErrorCode::kFormat, file, "first byte of the header", "'{'",
         text.empty() ? "nothing" : "another byte", "not a safetensors file?");
  }
  // The JSON reader takes a zero byte for the end of input and would skip what follows.
  if (const size_t zero = text.find('\0'); zero != std::string_view::npos) {
    fail(ErrorCode::kFormat, file, "the header is not valid JSON: zero byte at " + std::to_string(zero));
  }
  return text;
}

// One entry by itself: range inside the data and as long as shape and type say.
void check_range(const Entry& entry, uint64_t data_bytes, const std::string& file) {
  const std::string where = file + ": tensor " + quoted_name(entry.name);
  const uint64_t begin = entry.offsets[0];
  const uint64_t end = entry.offsets[1];
  if (end < begin) {
    fail(ErrorCode::kFormat, where, "data_offsets", "begin <= end",
         "[" + std::to_string(begin) + ", " + std::to_string(end) + "]");
  }
  uint64_t count = 1;
  for (const int64_t d : *entry.shape) {
    if (d != 0 && count > (uint64_t{1} << 62) / static_cast<uint64_t>(d)) {
      fail(ErrorCode::kFormat, where, "shape " + shape_string(*entry.shape) + " is impossibly large");
    }
    count *= static_cast<uint64_t>(d);
  }
  const uint64_t item = dtype_size_bytes(*entry.dtype);
  if (count > (uint64_t{1} << 62) / item || end - begin != count * item) {
    fail(ErrorCode::kFormat, where, "data size",
         std::to_string(count) + " elements of " + std::to_string(item) + " bytes for " +
             std::string(dtype_name(*entry.dtype)) + " " + shape_string(*entry.shape),
         std::to_string(end - begin) + " bytes");
  }
  if (end > data_bytes) {
    fail(ErrorCode::kFormat, where, "end of the data",
         "at most byte " + std::to_string(data_bytes) + " of the data in the file", std::to_string(end),
         "offset out of range, or the file is truncated");
  }
}

}  // namespace

std::string quoted_name(std::string_view name) {
  constexpr size_t kMaxLength = 160;
  std::string out = "'";
  for (const char c : name.substr(0, kMaxLength)) {
    const auto u = static_cast<unsigned char>(c);
    if (u < 0x20 || u == 0x7f) {
      constexpr char kDigits[] = "0123456789abcdef";
      out.append("\\x").append(1, kDigits[u >> 4]).append(1, kDigits[u & 15]);
    } else {
      out.push_back(c);
    }
  }
  if (name.size() > kMaxLength) out += "...";
  return out + "'";
}

std::string TensorView::where() const {
  return file + ": tensor " + quoted_name(name);
}

std::vector<float> TensorView::to_f32() const {
  const int64_t count = size();
  std::vector<float> out(static_cast<size_t>(count));
  if (count == 0) return out;
  const size_t item = dtype_size_bytes(dtype);
  if (dtype != DType::kF32 && dtype != DType::kBF16 && dtype != DType::kF16) {
    fail(ErrorCode::kUnsupported, where(), "element type", "F32, BF16 or F16", dtype_name(dtype));
  }
  if (reinterpret_cast<uintptr_t>(bytes.data()) % item == 0) {
    convert_elements(bytes.data(), dtype, out.data(), DType::kF32, count);
  } else {
    AlignedBuffer aligned(bytes.size());
    std::memcpy(aligned.data(), bytes.data(), bytes.size());
    convert_elements(aligned.data(), dtype, out.data(), DType::kF32, count);
  }
  return out;
}

std::vector<int64_t> TensorView::to_i64() const {
  const auto count = static_cast<size_t>(size());
  std::vector<int64_t> out(count);
  if (dtype == DType::kI64) {
    if (count) std::memcpy(out.data(), bytes.data(), bytes.size());
  } else if (dtype == DType::kI32) {
    for (size_t i = 0; i < count; ++i) {
      int32_t v;
      std::memcpy(&v, bytes.data() + i * sizeof v, sizeof v);
      out[i] = v;
    }
  } else {
    fail(ErrorCode::kUnsupported, where(), "element type", "I64 or I32", dtype_name(dtype));
  }
  return out;
}

SafetensorsFile SafetensorsFile::open(const std::filesystem::path& path) {
  SafetensorsFile result(MappedFile::open(path));
  const std::string file = path.string();
  const std::span<const std::byte> bytes = result.file_.bytes();
  const std::string_view text = header_text(bytes, file);
  const std::span<const std::byte> data = bytes.subspan(kLengthBytes + text.size());

  HeaderReader reader(file);
  if (!Json::sax_parse(text.data(), text.data() + text.size(), &reader)) {
    fail(ErrorCode::kFormat, file, "the header is not valid JSON");
  }
  for (const Entry& entry : reader.entries) check_range(entry, data.size(), file);

  // In file order the ranges must follow each other without hole or overlap: then no byte has two meanings
  // and none is unaccounted for.
  std::sort(reader.entries.begin(), reader.entries.end(),
            [](const Entry& a, const Entry& b) { return a.offsets < b.offsets; });
  uint64_t position = 0;
  const Entry* previous = nullptr;
  for (const Entry& entry : reader.entries) {
    const std::string after =
        previous ? "the end of " + quoted_name(previous->name) : "the start of the data";
    if (entry.offsets[0] < position) {
      fail(ErrorCode::kFormat, file + ": tensor " + quoted_name(entry.name),
           "its data overlap those of " + quoted_name(previous->name), "begin at " + std::to_string(position),
           std::to_string(entry.offsets[0]));
    }
    if (entry.offsets[0] > position) {
      fail(ErrorCode::kFormat, file + ": tensor " + quoted_name(entry.name),
           "hole of " + std::to_string(entry.offsets[0] - position) + " bytes before its data",
           "begin at " + std::to_string(position) + ", " + after, std::to_string(entry.offsets[0]));
    }
    position = entry.offsets[1];
    previous = &entry;
  }
  if (position != data.size()) {
    fail(ErrorCode::kFormat, file, "size of the data", std::to_string(position) + " bytes as the header says",
         std::to_string(data.size()), "surplus bytes after the last tensor");
  }

  result.data_bytes_ = data.size();
  result.metadata_ = std::move(reader.metadata);
  result.tensors_.reserve(reader.entries.size());
  for (Entry& entry : reader.entries) {
    result.tensors_.push_back({.name = std::move(entry.name),
                               .dtype = *entry.dtype,
                               .shape = std::move(*entry.shape),
                               .bytes = data.subspan(entry.offsets[0], entry.offsets[1] - entry.offsets[0]),
                               .file = file});
  }
  result.index_.reserve(result.tensors_.size());
  for (size_t i = 0; i < result.tensors_.size(); ++i) result.index_.emplace(result.tensors_[i].name, i);
  return result;
}

const TensorView* SafetensorsFile::find(std::string_view name) const {
  const auto it = index_.find(name);
  return it == index_.end() ? nullptr : &tensors_[it->second];
}

const TensorView& SafetensorsFile::get(std::string_view name) const {
  const TensorView* view = find(name);
  if (!view) fail(ErrorCode::kNotFound, path().string() + ": tensor " + quoted_name(name), "not in the file");
  return *view;
}

void SafetensorsFile::will_need(const TensorView& tensor) const {
  file_.will_need(static_cast<size_t>(tensor.bytes.data() - file_.bytes().data()), tensor.bytes.size());
}

void SafetensorsFile::drop(const TensorView& tensor) const {
  file_.drop(static_cast<size_t>(tensor.bytes.data() - file_.bytes().data()), tensor.bytes.size());
}

}  // namespace qvl::checkpoint
