// Reads the fields of one JSON object of a request: types, bounds, and errors with the path and the words of OpenAI's
// API. A field whose value is null counts as absent.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "qvl/base/json.h"
#include "qvl/serve/api_error.h"

namespace qvl::serve {

// "messages" + "role" = "messages.role"; at the top the key alone.
std::string join_path(const std::string& path, std::string_view key);
std::string index_path(const std::string& path, size_t index);

// 400s. `expected`: "a string", "an array of strings", ...
ApiError invalid_type(const std::string& path, std::string_view expected, const Json& got);
ApiError invalid_value(const std::string& path, const std::string& message);
ApiError missing_parameter(const std::string& path);
ApiError unsupported(const std::string& path, const std::string& reason);  // a field that this server refuses
ApiError unsupported_value(const std::string& path, const std::string& reason);
// The value of a client in a message: quoted, cut to what a person reads.
std::string shown(std::string_view value);

class FieldReader {
 public:
  // The object outlives the reader. Throws ApiError when `json` is no object, or has a field that is not in `known`.
  FieldReader(const Json& json, std::string path, std::span<const std::string_view> known);

  const std::string& path() const { return path_; }
  std::string path(std::string_view key) const { return join_path(path_, key); }

  const Json* find(std::string_view key) const;     // null: absent or JSON null
  bool has(std::string_view key) const;             // null too
  const Json& require(std::string_view key) const;  // throws missing_parameter, invalid_type for null

  std::optional<std::string> string(std::string_view key) const;
  std::string required_string(std::string_view key) const;
  bool boolean(std::string_view key, bool otherwise) const;
  std::optional<bool> boolean(std::string_view key) const;
  // Integers; also written as 3.0.
  std::optional<int64_t> integer(std::string_view key, int64_t low, int64_t high) const;
  std::optional<double> number(std::string_view key, double low, double high) const;
  // One of some words.
  std::optional<std::string> choice(std::string_view key, std::initializer_list<std::string_view> words) const;
  std::string required_choice(std::string_view key, std::initializer_list<std::string_view> words) const;
  const Json* array(std::string_view key) const;
  const Json* object(std::string_view key) const;
  // Throws unsupported() when the field is there and not null.
  void refuse(std::string_view key, const std::string& reason) const;

 private:
  const Json& json_;
  std::string path_;
};

// The same checks for a value that is no field.
int64_t integer_value(const Json& value, const std::string& path, int64_t low, int64_t high);
double number_value(const Json& value, const std::string& path, double low, double high);
const std::string& string_value(const Json& value, const std::string& path);

}  // namespace qvl::serve
