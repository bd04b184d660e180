// A second reading of JSON Schema for this room's tests, written from the specification and independent of
// the grammar engine: does a value satisfy a schema? Only keywords that the tests' schemas use; an unknown
// one throws.
#pragma once

#include <cmath>
#include <regex>
#include <set>
#include <stdexcept>
#include <string>

#include "qvl/base/json.h"

namespace qvl::grammar::testing_support {

class SchemaValidator {
 public:
  explicit SchemaValidator(const Json& root) : root_(root) {}

  // Empty: valid; else where and why not.
  std::string check(const Json& value) const { return check(value, root_, "$"); }

 private:
  static std::string no(const std::string& at, const std::string& why) { return at + ": " + why; }

  static int64_t characters(const std::string& text) {
    int64_t n = 0;
    for (const char c : text) n += (static_cast<unsigned char>(c) & 0xC0) != 0x80;
    return n;
  }

  static bool has_type(const Json& v, const std::string& type) {
    if (type == "integer") {
      return v.is_number_integer() || (v.is_number_float() && std::floor(v.get<double>()) == v.get<double>());
    }
    if (type == "number") return v.is_number();
    return type == v.type_name();
  }

  // Equal numbers are equal whatever their type; order of keys is nothing.
  static bool equal(const Json& a, const Json& b) {
    if (a.is_number() && b.is_number()) return a.get<double>() == b.get<double>();
    if (a.type() != b.type() || a.size() != b.size()) return false;
    if (a.is_array()) {
      for (size_t i = 0; i < a.size(); ++i) {
        if (!equal(a[i], b[i])) return false;
      }
      return true;
    }
    if (a.is_object()) {
      for (const auto& [key, value] : a.items()) {
        if (!b.contains(key) || !equal(value, b.at(key))) return false;
      }
      return true;
    }
    return a == b;
  }

  static const std::regex& format(const std::string& name) {
    static const std::map<std::string, std::regex> formats = {
        {"date", std::regex("\\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\\d|3[01])")},
        {"time", std::regex("([01]\\d|2[0-3]):[0-5]\\d:([0-5]\\d|60)(\\.\\d+)?([zZ]|[+-]\\d\\d:\\d\\d)")},
        {"date-time",
         std::regex("\\d{4}-\\d\\d-\\d\\d[tT]\\d\\d:\\d\\d:\\d\\d(\\.\\d+)?([zZ]|[+-]\\d\\d:\\d\\d)")},
        {"uuid", std::regex("[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")},
        {"ipv4", std::regex("((25[0-5]|2[0-4]\\d|1?\\d?\\d)(\\.|$)){4}")},
        {"email", std::regex("[^@]+@[^@]+")},
    };
    return formats.at(name);
  }

  std::string check_number(const Json& v, const std::string& key, const Json& bound,
                           const std::string& at) const {
    const double x = v.get<double>(), b = bound.get<double>();
    const bool fine = key == "minimum"            ? x >= b
                      : key == "maximum"          ? x <= b
                      : key == "exclusiveMinimum" ? x > b
                      : key == "exclusiveMaximum" ? x < b
                                                  : std::fabs(x / b - std::round(x / b)) < 1e-6;
    return fine ? "" : no(at, v.dump() + " against " + key + " " + bound.dump());
  }

  std::string check_members(const Json& v, const Json& schema, const std::string& at) const {
    for (const auto& [name, value] : v.items()) {
      bool described = false;
      std::string bad;
      if (schema.contains("properties") && schema["properties"].contains(name)) {
        described = true;
        bad = check(value, schema["properties"][name], at + "." + name);
      }
      if (bad.empty() && schema.contains("patternProperties")) {
        for (const auto& [pattern, sub] : schema["patternProperties"].items()) {
          if (!std::regex_search(name, std::regex(pattern))) continue;
          described = true;
          if (bad.empty()) bad = check(value, sub, at + "." + name);
        }
      }
      if (bad.empty() && !described && schema.contains("additionalProperties")) {
        bad = check(value, schema["additionalProperties"], at + "." + name);
      }
      if (!bad.empty()) return bad;
    }
    return "";
  }

  std::string check_items(const Json& v, const Json& schema, const std::string& at) const {
    const size_t fixed = schema.contains("prefixItems") ? schema["prefixItems"].size() : 0;
    for (size_t i = 0; i < v.size(); ++i) {
      const std::string place = at + "[" + std::to_string(i) + "]";
      std::string bad;
      if (i < fixed) {
        bad = check(v[i], schema["prefixItems"][i], place);
      } else if (schema.contains("items")) {
        bad = check(v[i], schema["items"], place);
      }
      if (!bad.empty()) return bad;
    }
    return "";
  }

  std::string check(const Json& v, const Json& schema, const std::string& at) const {
    if (schema.is_boolean()) return schema.get<bool>() ? "" : no(at, "nothing is allowed here");
    for (const auto& [key, k] : schema.items()) {
      std::string bad;
      if (key == "type") {
        bool any = false;
        for (const Json& type : k.is_array() ? k : Json::array({k}))
          any = any || has_type(v, type.get<std::string>());
        if (!any) bad = no(at, v.dump() + " is not of type " + k.dump());
      } else if (key == "const") {
        if (!equal(v, k)) bad = no(at, v.dump() + " is not " + k.dump());
      } else if (key == "enum") {
        bool any = false;
        for (const Json& option : k) any = any || equal(v, option);
        if (!any) bad = no(at, v.dump() + " is none of " + k.dump());
      } else if (key == "anyOf" || key == "oneOf" || key == "allOf") {
        size_t valid = 0;
        for (const Json& sub : k) valid += check(v, sub, at).empty();
        const bool fine = key == "anyOf" ? valid > 0 : key == "oneOf" ? valid == 1 : valid == k.size();
        if (!fine) bad = no(at, std::to_string(valid) + " alternatives of " + key + " fit " + v.dump());
      } else if (key == "$ref") {
        bad = check(v, root_.at(Json::json_pointer(k.get<std::string>().substr(1))), at);
      } else if (key == "minimum" || key == "maximum" || key == "exclusiveMinimum" ||
                 key == "exclusiveMaximum" || key == "multipleOf") {
        if (v.is_number()) bad = check_number(v, key, k, at);
      } else if (key == "minLength" || key == "maxLength") {
        if (v.is_string()) {
          const int64_t n = characters(v.get<std::string>());
          if (key == "minLength" ? n < k.get<int64_t>() : n > k.get<int64_t>())
            bad = no(at, v.dump() + ": " + key);
        }
      } else if (key == "pattern") {
        if (v.is_string() && !std::regex_search(v.get<std::string>(), std::regex(k.get<std::string>()))) {
          bad = no(at, v.dump() + " does not match " + k.dump());
        }
      } else if (key == "format") {
        if (v.is_string() && !std::regex_match(v.get<std::string>(), format(k.get<std::string>()))) {
          bad = no(at, v.dump() + " is no " + k.dump());
        }
      } else if (key == "minItems" || key == "maxItems") {
        if (v.is_array() && (key == "minItems" ? v.size() < k.get<size_t>() : v.size() > k.get<size_t>())) {
          bad = no(at, std::to_string(v.size()) + " items: " + key);
        }
      } else if (key == "minProperties" || key == "maxProperties") {
        if (v.is_object() &&
            (key == "minProperties" ? v.size() < k.get<size_t>() : v.size() > k.get<size_t>())) {
          bad = no(at, std::to_string(v.size()) + " members: " + key);
        }
      } else if (key == "required") {
        for (const Json& name : k) {
          if (v.is_object() && !v.contains(name.get<std::string>())) bad = no(at, "lacks " + name.dump());
        }
      } else if (key == "properties" || key == "patternProperties" || key == "additionalProperties") {
        if (v.is_object()) bad = check_members(v, schema, at);
      } else if (key == "items" || key == "prefixItems") {
        if (v.is_array()) bad = check_items(v, schema, at);
      } else if (!std::set<std::string>{"$defs", "$schema", "title", "description", "default"}.contains(
                     key)) {
        throw std::invalid_argument("the tests' validator does not know " + key);
      }
      if (!bad.empty()) return bad;
    }
    return "";
  }

  const Json& root_;
};

}  // namespace qvl::grammar::testing_support
