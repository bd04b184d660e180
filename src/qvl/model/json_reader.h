// Typed access to the keys of one JSON object, with defaults and errors that name file and key. A null counts
// as absent, as in the reference library. Used by the configuration readers of this room.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "qvl/base/json.h"

namespace qvl::model {

class JsonReader {
 public:
  // Throws kFormat when `json` is not an object. Keeps a pointer: `json` must outlive this.
  JsonReader(const Json& json, std::string where);

  const std::string& where() const { return where_; }
  bool empty() const { return !json_ || json_->empty(); }
  // Present and not null.
  bool has(std::string_view key) const { return find(key) != nullptr; }
  bool is_null(std::string_view key) const;
  bool is_array(std::string_view key) const;

  // The value, or `fallback` when absent; all throw kFormat for a value of another type.
  int64_t integer(std::string_view key, int64_t fallback) const;
  double number(std::string_view key, double fallback) const;
  bool boolean(std::string_view key, bool fallback) const;
  std::string text(std::string_view key, std::string_view fallback) const;
  std::vector<int64_t> integers(std::string_view key, std::vector<int64_t> fallback) const;
  // A token id: an integer that fits 32 bits and is not negative.
  int32_t token(std::string_view key, int32_t fallback) const;
  int32_t narrow(std::string_view key, int64_t value) const;
  // A nested object; empty() when absent.
  JsonReader object(std::string_view key) const;

 private:
  explicit JsonReader(std::string where) : where_(std::move(where)) {}
  const Json* find(std::string_view key) const;
  [[noreturn]] void wrong_type(std::string_view key, std::string_view expected, const Json& got) const;

  const Json* json_ = nullptr;
  std::string where_;
};

}  // namespace qvl::model
