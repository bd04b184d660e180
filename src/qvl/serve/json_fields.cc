#include "qvl/serve/json_fields.h"

#include <algorithm>
#include <cmath>

#include "qvl/base/format.h"

namespace qvl::serve {
namespace {

constexpr size_t kShownBytes = 80;

std::string_view kind_name(const Json& v) {
  switch (v.type()) {
    case Json::value_t::null:
      return "null";
    case Json::value_t::boolean:
      return "a boolean";
    case Json::value_t::string:
      return "a string";
    case Json::value_t::array:
      return "an array";
    case Json::value_t::object:
      return "an object";
    case Json::value_t::number_float:
      return "a decimal";
    default:
      return "an integer";
  }
}

template <typename T>
ApiError out_of_range(ErrorCodeName name, const std::string& path, std::string_view kind, bool below, T bound, const std::string& got) {
  return bad_request(name, path, cat("Invalid '", path, "': ", kind, below ? " below minimum value. Expected a value >= " : " above maximum value. Expected a value <= ",
                                     bound, ", but got ", got, " instead."));
}

ApiError integer_out_of_range(const std::string& path, bool below, int64_t bound, const std::string& got) {
  return below ? out_of_range("integer_below_min_value", path, "integer", true, bound, got) : out_of_range("integer_above_max_value", path, "integer", false, bound, got);
}

ApiError decimal_out_of_range(const std::string& path, bool below, double bound, const std::string& got) {
  return below ? out_of_range("decimal_below_min_value", path, "decimal", true, bound, got) : out_of_range("decimal_above_max_value", path, "decimal", false, bound, got);
}

}  // namespace

std::string join_path(const std::string& path, std::string_view key) {
  return path.empty() ? std::string(key) : cat(path, ".", key);
}

std::string index_path(const std::string& path, size_t index) {
  return cat(path, "[", index, "]");
}

std::string shown(std::string_view value) {
  if (value.size() <= kShownBytes) return cat("'", value, "'");
  return cat("'", value.substr(0, kShownBytes), "...' (", value.size(), " bytes)");
}

ApiError invalid_type(const std::string& path, std::string_view expected, const Json& got) {
  return bad_request("invalid_type", path,
                     cat("Invalid type for '", path, "': expected ", expected, ", but got ", kind_name(got), " instead."));
}

ApiError invalid_value(const std::string& path, const std::string& message) {
  return bad_request("invalid_value", path, cat("Invalid '", path, "': ", message));
}

ApiError missing_parameter(const std::string& path) {
  return bad_request("missing_required_parameter", path, cat("Missing required parameter: '", path, "'."));
}

ApiError unsupported(const std::string& path, const std::string& reason) {
  return bad_request("unsupported_parameter", path, cat("Unsupported parameter: '", path, "': ", reason));
}

ApiError unsupported_value(const std::string& path, const std::string& reason) {
  return bad_request("unsupported_value", path, cat("Unsupported value of '", path, "': ", reason));
}

int64_t integer_value(const Json& value, const std::string& path, int64_t low, int64_t high) {
  int64_t number = 0;
  if (value.is_number_unsigned() && value.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX)) {
    throw integer_out_of_range(path, false, high, value.dump());
  } else if (value.is_number_integer()) {
    number = value.get<int64_t>();
  } else if (value.is_number_float() && value.get<double>() == std::floor(value.get<double>())) {
    const double d = value.get<double>();
    if (std::abs(d) >= 0x1p63) throw integer_out_of_range(path, d < 0, d < 0 ? low : high, value.dump());
    number = static_cast<int64_t>(d);
  } else {
    throw invalid_type(path, "an integer", value);
  }
  if (number < low) throw integer_out_of_range(path, true, low, cat(number));
  if (number > high) throw integer_out_of_range(path, false, high, cat(number));
  return number;
}

double number_value(const Json& value, const std::string& path, double low, double high) {
  if (!value.is_number()) throw invalid_type(path, "a decimal", value);
  const auto number = value.get<double>();
  if (!(number >= low)) throw decimal_out_of_range(path, true, low, value.dump());
  if (!(number <= high)) throw decimal_out_of_range(path, false, high, value.dump());
  return number;
}

const std::string& string_value(const Json& value, const std::string& path) {
  if (!value.is_string()) throw invalid_type(path, "a string", value);
  return value.get_ref<const std::string&>();
}

FieldReader::FieldReader(const Json& json, std::string path, std::span<const std::string_view> known)
    : json_(json), path_(std::move(path)) {
  if (!json.is_object()) {
    if (path_.empty()) throw bad_request("invalid_type", "", cat("The body must be a JSON object, but got ", kind_name(json), "."));
    throw invalid_type(path_, "an object", json);
  }
  for (const auto& [key, value] : json.items()) {
    if (std::find(known.begin(), known.end(), key) == known.end()) {
      const std::string where = this->path(key.size() > kShownBytes ? key.substr(0, kShownBytes) : key);
      throw bad_request("unknown_parameter", where, cat("Unknown parameter: '", where, "'."));
    }
  }
}

const Json* FieldReader::find(std::string_view key) const {
  const auto it = json_.find(key);
  return it == json_.end() || it->is_null() ? nullptr : &*it;
}

bool FieldReader::has(std::string_view key) const {
  return json_.contains(key);
}

const Json& FieldReader::require(std::string_view key) const {
  const auto it = json_.find(key);
  if (it == json_.end()) throw missing_parameter(path(key));
  return *it;
}

std::optional<std::string> FieldReader::string(std::string_view key) const {
  const Json* v = find(key);
  if (v == nullptr) return std::nullopt;
  return string_value(*v, path(key));
}

std::string FieldReader::required_string(std::string_view key) const {
  return string_value(require(key), path(key));
}

std::optional<bool> FieldReader::boolean(std::string_view key) const {
  const Json* v = find(key);
  if (v == nullptr) return std::nullopt;
  if (!v->is_boolean()) throw invalid_type(path(key), "a boolean", *v);
  return v->get<bool>();
}

bool FieldReader::boolean(std::string_view key, bool otherwise) const {
  return boolean(key).value_or(otherwise);
}

std::optional<int64_t> FieldReader::integer(std::string_view key, int64_t low, int64_t high) const {
  const Json* v = find(key);
  if (v == nullptr) return std::nullopt;
  return integer_value(*v, path(key), low, high);
}

std::optional<double> FieldReader::number(std::string_view key, double low, double high) const {
  const Json* v = find(key);
  if (v == nullptr) return std::nullopt;
  return number_value(*v, path(key), low, high);
}

std::optional<std::string> FieldReader::choice(std::string_view key, std::initializer_list<std::string_view> words) const {
  std::optional<std::string> value = string(key);
  if (!value || std::find(words.begin(), words.end(), *value) != words.end()) return value;
  std::string list;
  for (const std::string_view w : words) list += cat(list.empty() ? "" : ", ", "'", w, "'");
  throw bad_request("invalid_value", path(key), cat("Invalid value for '", path(key), "': ", shown(*value), ". Supported values are: ", list, "."));
}

std::string FieldReader::required_choice(std::string_view key, std::initializer_list<std::string_view> words) const {
  (void)required_string(key);
  return *choice(key, words);
}

const Json* FieldReader::array(std::string_view key) const {
  const Json* v = find(key);
  if (v != nullptr && !v->is_array()) throw invalid_type(path(key), "an array", *v);
  return v;
}

const Json* FieldReader::object(std::string_view key) const {
  const Json* v = find(key);
  if (v != nullptr && !v->is_object()) throw invalid_type(path(key), "an object", *v);
  return v;
}

void FieldReader::refuse(std::string_view key, const std::string& reason) const {
  if (find(key) != nullptr) throw unsupported(path(key), reason);
}

}  // namespace qvl::serve
