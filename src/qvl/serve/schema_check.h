// A validator for the JSON schemas of openapi.json, for tests: what the parser takes must be what the file says, and
// replies must be of the form it promises. Throws for a keyword it does not know, so that none is passed over.
#pragma once

#include <cmath>
#include <regex>
#include <set>
#include <stdexcept>
#include <string>

#include "qvl/base/format.h"
#include "qvl/base/json.h"

namespace qvl::serve::testing {

class SchemaCheck {
 public:
  explicit SchemaCheck(Json document) : document_(std::move(document)) {}

  // Empty when `value` is of the form of components/schemas/<name>; else what is wrong, with its place.
  std::string check(const Json& value, const std::string& name) const {
    return run(value, document_.at("components").at("schemas").at(name), "");
  }
  const Json& document() const { return document_; }

 private:
  static bool of_type(const Json& v, const std::string& type) {
    if (type == "null") return v.is_null();
    if (type == "boolean") return v.is_boolean();
    if (type == "string") return v.is_string();
    if (type == "array") return v.is_array();
    if (type == "object") return v.is_object();
    if (type == "number") return v.is_number();
    if (type == "integer") return v.is_number_integer() || (v.is_number_float() && std::floor(v.get<double>()) == v.get<double>());
    throw std::logic_error("type " + type);
  }

  static int64_t characters(const std::string& s) {
    int64_t n = 0;
    for (const char c : s) n += (static_cast<unsigned char>(c) & 0xc0) != 0x80;
    return n;
  }

  // Numbers of all kinds.
  static bool equal(const Json& a, const Json& b) {
    return a == b && a.is_boolean() == b.is_boolean();
  }

  std::string run(const Json& v, const Json& s, const std::string& at) const {
    if (s.is_boolean()) return s.get<bool>() ? "" : at + ": nothing is allowed here";
    auto wrong = [&](const std::string& what) { return cat(at.empty() ? "." : at, ": ", what, ", got ", v.dump(-1, ' ', false, Json::error_handler_t::replace).substr(0, 120)); };
    std::string e;
    for (const auto& [key, rule] : s.items()) {
      if (key == "description" || key == "then" || key == "else") continue;
      if (key == "$ref") {
        const std::string name = rule.get<std::string>().substr(std::string("#/components/schemas/").size());
        if (!(e = run(v, document_.at("components").at("schemas").at(name), at)).empty()) return e;
      } else if (key == "type") {
        bool any = false;
        if (rule.is_string()) any = of_type(v, rule.get<std::string>());
        for (size_t i = 0; rule.is_array() && i < rule.size(); ++i) any = any || of_type(v, rule[i].get<std::string>());
        if (!any) return wrong("type " + rule.dump());
      } else if (key == "const") {
        if (!equal(v, rule)) return wrong("const " + rule.dump());
      } else if (key == "enum") {
        bool any = false;
        for (const Json& one : rule) any = any || equal(v, one);
        if (!any) return wrong("enum " + rule.dump());
      } else if (key == "anyOf") {
        bool any = false;
        std::string all;
        for (const Json& one : rule) {
          e = run(v, one, at);
          any = any || e.empty();
          all += "\n    " + e;
        }
        if (!any) return wrong("anyOf" + all);
      } else if (key == "allOf") {
        for (const Json& one : rule) {
          if (!(e = run(v, one, at)).empty()) return e;
        }
      } else if (key == "if") {
        const char* branch = run(v, rule, at).empty() ? "then" : "else";
        if (s.contains(branch) && !(e = run(v, s.at(branch), at)).empty()) return e;
      } else if (key == "properties") {
        if (!v.is_object()) continue;
        for (const auto& [name, one] : rule.items()) {
          if (v.contains(name) && !(e = run(v.at(name), one, at + "." + name)).empty()) return e;
        }
      } else if (key == "required") {
        if (!v.is_object()) continue;
        for (const Json& name : rule) {
          if (!v.contains(name.get<std::string>())) return wrong("required " + name.dump());
        }
      } else if (key == "additionalProperties") {
        if (!v.is_object()) continue;
        for (const auto& [name, one] : v.items()) {
          if (s.contains("properties") && s.at("properties").contains(name)) continue;
          if (matches_pattern(s, name)) continue;
          if (!(e = run(one, rule, at + "." + name)).empty()) return e;
        }
      } else if (key == "patternProperties") {
        if (!v.is_object()) continue;
        for (const auto& [pattern, one] : rule.items()) {
          for (const auto& [name, value] : v.items()) {
            if (std::regex_search(name, std::regex(pattern)) && !(e = run(value, one, at + "." + name)).empty()) return e;
          }
        }
      } else if (key == "propertyNames") {
        if (!v.is_object()) continue;
        for (const auto& [name, value] : v.items()) {
          if (!(e = run(Json(name), rule, at + "." + name)).empty()) return e;
        }
      } else if (key == "maxProperties") {
        if (v.is_object() && v.size() > rule.get<size_t>()) return wrong("maxProperties " + rule.dump());
      } else if (key == "items") {
        for (size_t i = 0; v.is_array() && i < v.size(); ++i) {
          if (!(e = run(v[i], rule, cat(at, "[", i, "]"))).empty()) return e;
        }
      } else if (key == "minItems") {
        if (v.is_array() && v.size() < rule.get<size_t>()) return wrong("minItems " + rule.dump());
      } else if (key == "maxItems") {
        if (v.is_array() && v.size() > rule.get<size_t>()) return wrong("maxItems " + rule.dump());
      } else if (key == "minLength") {
        if (v.is_string() && characters(v.get<std::string>()) < rule.get<int64_t>()) return wrong("minLength " + rule.dump());
      } else if (key == "maxLength") {
        if (v.is_string() && characters(v.get<std::string>()) > rule.get<int64_t>()) return wrong("maxLength " + rule.dump());
      } else if (key == "pattern") {
        if (v.is_string() && !std::regex_search(v.get<std::string>(), std::regex(rule.get<std::string>()))) return wrong("pattern " + rule.dump());
      } else if (key == "minimum") {
        if (v.is_number() && v < rule) return wrong("minimum " + rule.dump());
      } else if (key == "maximum") {
        if (v.is_number() && v > rule) return wrong("maximum " + rule.dump());
      } else if (key == "exclusiveMinimum") {
        if (v.is_number() && v <= rule) return wrong("exclusiveMinimum " + rule.dump());
      } else {
        throw std::logic_error("schema keyword " + key);
      }
    }
    return "";
  }

  static bool matches_pattern(const Json& s, const std::string& name) {
    if (!s.contains("patternProperties")) return false;
    for (const auto& [pattern, one] : s.at("patternProperties").items()) {
      if (std::regex_search(name, std::regex(pattern))) return true;
    }
    return false;
  }

  Json document_;
};

}  // namespace qvl::serve::testing
