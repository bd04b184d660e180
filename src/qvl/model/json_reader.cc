#include "qvl/model/json_reader.h"

#include <cmath>
#include <utility>

#include "qvl/base/error.h"

namespace qvl::model {
namespace {

// JSON numbers such as 5e6 or 2560.0 are integers too if they are whole.
bool whole_number(const Json& value, int64_t* out) {
  if (value.is_number_unsigned()) {
    const auto v = value.get<uint64_t>();
    if (v > static_cast<uint64_t>(INT64_MAX)) return false;
    *out = static_cast<int64_t>(v);
    return true;
  }
  if (value.is_number_integer()) {
    *out = value.get<int64_t>();
    return true;
  }
  if (!value.is_number_float()) return false;
  const double v = value.get<double>();
  if (!(std::fabs(v) <= 0x1p53) || v != std::floor(v)) return false;
  *out = static_cast<int64_t>(v);
  return true;
}

std::string describe(const Json& value) {
  if (value.is_primitive() && !value.is_null())
    return value.dump(-1, ' ', false, Json::error_handler_t::replace).substr(0, 80);
  return std::string("a value of type ") + value.type_name();
}

}  // namespace

JsonReader::JsonReader(const Json& json, std::string where) : json_(&json), where_(std::move(where)) {
  if (!json.is_object()) fail(ErrorCode::kFormat, where_, "content", "a JSON object", json.type_name());
}

const Json* JsonReader::find(std::string_view key) const {
  if (!json_) return nullptr;
  const auto it = json_->find(key);
  return it == json_->end() || it->is_null() ? nullptr : &*it;
}

bool JsonReader::is_null(std::string_view key) const {
  if (!json_) return false;
  const auto it = json_->find(key);
  return it != json_->end() && it->is_null();
}

bool JsonReader::is_array(std::string_view key) const {
  const Json* value = find(key);
  return value && value->is_array();
}

void JsonReader::wrong_type(std::string_view key, std::string_view expected, const Json& got) const {
  fail(ErrorCode::kFormat, where_, "key '" + std::string(key) + "'", expected, describe(got));
}

int64_t JsonReader::integer(std::string_view key, int64_t fallback) const {
  const Json* value = find(key);
  if (!value) return fallback;
  int64_t result = 0;
  if (!whole_number(*value, &result)) wrong_type(key, "an integer", *value);
  return result;
}

double JsonReader::number(std::string_view key, double fallback) const {
  const Json* value = find(key);
  if (!value) return fallback;
  if (!value->is_number()) wrong_type(key, "a number", *value);
  return value->get<double>();
}

bool JsonReader::boolean(std::string_view key, bool fallback) const {
  const Json* value = find(key);
  if (!value) return fallback;
  if (!value->is_boolean()) wrong_type(key, "true or false", *value);
  return value->get<bool>();
}

std::string JsonReader::text(std::string_view key, std::string_view fallback) const {
  const Json* value = find(key);
  if (!value) return std::string(fallback);
  if (!value->is_string()) wrong_type(key, "a string", *value);
  return value->get<std::string>();
}

std::vector<int64_t> JsonReader::integers(std::string_view key, std::vector<int64_t> fallback) const {
  const Json* value = find(key);
  if (!value) return fallback;
  if (!value->is_array()) wrong_type(key, "a list of integers", *value);
  std::vector<int64_t> result;
  result.reserve(value->size());
  for (const Json& element : *value) {
    int64_t v = 0;
    if (!whole_number(element, &v)) wrong_type(key, "a list of integers", element);
    result.push_back(v);
  }
  return result;
}

int32_t JsonReader::narrow(std::string_view key, int64_t value) const {
  if (value < 0 || value > INT32_MAX) {
    fail(ErrorCode::kMismatch, where_, "key '" + std::string(key) + "'", "a token id", std::to_string(value));
  }
  return static_cast<int32_t>(value);
}

int32_t JsonReader::token(std::string_view key, int32_t fallback) const {
  return narrow(key, integer(key, fallback));
}

JsonReader JsonReader::object(std::string_view key) const {
  const std::string where = where_ + ": " + std::string(key);
  const Json* value = find(key);
  return value ? JsonReader(*value, where) : JsonReader(where);
}

}  // namespace qvl::model
