#include "qvl/grammar/schema.h"

#include <algorithm>
#include <cstdlib>
#include <numeric>
#include <vector>

#include "qvl/base/error.h"

namespace qvl::grammar {
namespace {

bool is_one_of(std::string_view key, std::initializer_list<std::string_view> keys) {
  return std::find(keys.begin(), keys.end(), key) != keys.end();
}

// Keywords whose values are data, not schemas.
bool holds_data(std::string_view key) {
  return is_one_of(key, {"enum", "const", "default", "examples"});
}

// Keywords whose values have schemas under names of the user's: there "enum" is a property, not a keyword.
bool holds_named_schemas(std::string_view key) {
  return is_one_of(key, {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"});
}

// The common multiple of several multipleOf: the engine's lexer has a state for each remainder.
class CommonMultiple {
 public:
  // False above kMaxSchemaMultiple.
  bool add(const Json& multiple) {
    // Digits and decimal places of the shortest way to write it: "0.25", "1e-05", "-7".
    const std::string text = multiple.dump();
    const size_t exponent_at = std::min(text.find('e'), text.size());
    int64_t digits = 0, decimals = 0;
    bool after_point = false;
    for (const char c : std::string_view(text).substr(0, exponent_at)) {
      if (c == '.') after_point = true;
      if (c < '0' || c > '9') continue;
      if (after_point && c == '0' && text.find_first_not_of("0", text.find('.') + 1) >= exponent_at)
        continue;  // "2.0"
      digits = 10 * digits + (c - '0');
      decimals += after_point;
      if (digits > kMaxSchemaMultiple) return false;
    }
    if (exponent_at < text.size()) decimals -= std::strtol(text.c_str() + exponent_at + 1, nullptr, 10);
    if (digits == 0) return true;  // the engine says what is wrong with it
    if (first_) {
      multiple_ = digits;
      decimals_ = decimals;
      first_ = false;
      return true;
    }
    for (; decimals < decimals_; ++decimals) {
      if ((digits *= 10) > kMaxSchemaMultiple) return false;
    }
    for (; decimals_ < decimals; ++decimals_) {
      if ((multiple_ *= 10) > kMaxSchemaMultiple) return false;
    }
    multiple_ = std::lcm(multiple_, digits);
    return multiple_ <= kMaxSchemaMultiple;
  }

 private:
  int64_t multiple_ = 1, decimals_ = 0;
  bool first_ = true;
};

// Walks without recursion: a depth that is too great must not exhaust the stack first. Names of properties
// that happen to be keywords are counted with them; the bounds are wide enough.
void check_bounds(const Json& schema, std::string_view where) {
  struct Place {
    const Json* node;
    int depth;
  };
  std::vector<Place> open = {{&schema, 1}};
  size_t bytes = 0;
  int64_t patterns = 0, alternatives = 0;
  CommonMultiple multiple;
  const auto over = [&](std::string_view what, int64_t most, std::string_view unit) {
    fail(ErrorCode::kLimit, where, what, "at most " + std::to_string(most) + std::string(unit), "more");
  };
  while (!open.empty()) {
    const auto [node, depth] = open.back();
    open.pop_back();
    if (depth > kMaxSchemaDepth) over("nesting of the schema", kMaxSchemaDepth, " levels");
    bytes += 2;
    if (node->is_string()) bytes += node->get_ref<const std::string&>().size();
    if (bytes > kMaxSchemaBytes) over("size of the schema", kMaxSchemaBytes, " bytes");
    if (node->is_array()) {
      for (const Json& item : *node) open.push_back({&item, depth + 1});
    }
    if (!node->is_object()) continue;
    for (const auto& [key, value] : node->items()) {
      bytes += key.size() + 3;
      open.push_back({&value, depth + 1});
      if (is_one_of(key, {"pattern", "format"}) && value.is_string()) ++patterns;
      if (key == "patternProperties" && value.is_object()) patterns += static_cast<int64_t>(value.size());
      if (is_one_of(key, {"enum", "anyOf", "oneOf"}) && value.is_array()) {
        alternatives += static_cast<int64_t>(value.size());
      }
      if (key == "multipleOf" && value.is_number() && !multiple.add(value)) {
        over("common multiple of all multipleOf, in units of their last decimal place", kMaxSchemaMultiple,
             "");
      }
      if (is_one_of(key,
                    {"minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"}) &&
          value.is_number() && value.get<double>() > static_cast<double>(kMaxSchemaRepeats)) {
        over(key, kMaxSchemaRepeats, "");
      }
    }
    if (patterns > kMaxSchemaPatterns) over("patterns and formats of the schema", kMaxSchemaPatterns, "");
    if (alternatives > kMaxSchemaAlternatives) over("alternatives of the schema", kMaxSchemaAlternatives, "");
  }
}

// The engine takes oneOf where it can see that the alternatives exclude each other, but does not look behind
// references; generators of schemas write nothing else. A reference in a oneOf is therefore replaced by what
// it stands for. One that stands inside its own meaning stays.
class OneOfResolver {
 public:
  OneOfResolver(const Json& root, std::string_view where) : root_(root), where_(where) {}

  void resolve(Json& node) {
    if (node.is_array()) {
      for (Json& item : node) resolve(item);
    }
    if (!node.is_object()) return;
    for (const auto& [key, value] : node.items()) {
      if (holds_data(key)) continue;
      if (key == "oneOf" && value.is_array()) {
        for (Json& alternative : value) resolve_alternative(alternative);
      } else if (holds_named_schemas(key) && value.is_object()) {
        for (Json& named : value) resolve(named);
      } else {
        resolve(value);
      }
    }
  }

 private:
  // Copies allowed in all: a chain of definitions may double at each step.
  static constexpr size_t kMaxCopiedBytes = 4 * kMaxSchemaBytes;

  void resolve_alternative(Json& alternative) {
    const size_t entered = chain_.size();
    while (const std::string* reference = bare_reference(alternative)) {
      const Json* target = find(*reference);
      if (target == nullptr || std::find(chain_.begin(), chain_.end(), *reference) != chain_.end()) break;
      copied_ += target->dump().size();
      if (copied_ > kMaxCopiedBytes || chain_.size() >= static_cast<size_t>(kMaxSchemaDepth)) {
        fail(ErrorCode::kLimit, where_, "oneOf with references",
             "alternatives of at most " + std::to_string(kMaxCopiedBytes) + " bytes in all", "more");
      }
      chain_.push_back(*reference);
      alternative = Json(*target);
    }
    resolve(alternative);
    chain_.resize(entered);
  }

  static const std::string* bare_reference(const Json& schema) {
    if (!schema.is_object()) return nullptr;
    for (const auto& [key, value] : schema.items()) {
      if (!is_one_of(key, {"$ref", "title", "description"})) return nullptr;
    }
    const auto it = schema.find("$ref");
    return it == schema.end() ? nullptr : it->get_ptr<const std::string*>();
  }

  // "#/$defs/Cat", as the engine reads it: names between slashes, no escapes.
  const Json* find(std::string_view reference) const {
    if (!reference.starts_with("#/")) return nullptr;
    const Json* at = &root_;
    for (reference.remove_prefix(2); !reference.empty();) {
      const size_t end = std::min(reference.find('/'), reference.size());
      if (!at->is_object()) return nullptr;
      const auto next = at->find(std::string(reference.substr(0, end)));
      if (next == at->end()) return nullptr;
      at = &*next;
      reference.remove_prefix(std::min(end + 1, reference.size()));
    }
    return at;
  }

  const Json& root_;
  std::string_view where_;
  std::vector<std::string> chain_;  // references being replaced, outermost first
  size_t copied_ = 0;
};

Json engine_options(const JsonOptions& options) {
  Json engine = {{"lenient", !options.strict}};
  switch (options.whitespace) {
    case Whitespace::kFlexible:
      // At most once at a place: no model can lose itself in blanks.
      engine["whitespace_pattern"] = " |\\r?\\n[ \\t]{0,32}";
      break;
    case Whitespace::kSpaced:
      engine["whitespace_flexible"] = false;
      engine["item_separator"] = ", ";
      engine["key_separator"] = ": ";
      break;
    case Whitespace::kCompact:
      engine["whitespace_flexible"] = false;
      break;
  }
  return engine;
}

}  // namespace

std::string prepare_schema(const Json& schema, const JsonOptions& options, std::string_view where) {
  if (!schema.is_object() && !schema.is_boolean()) {
    fail(ErrorCode::kInvalidArgument, where, "schema", "an object or a boolean", schema.type_name());
  }
  check_bounds(schema, where);
  Json prepared =
      schema.is_boolean() ? (schema.get<bool>() ? Json::object() : Json{{"enum", Json::array()}}) : schema;
  try {
    OneOfResolver(schema, where).resolve(prepared);
    prepared["x-guidance"] = engine_options(options);
    return prepared.dump();
  } catch (const nlohmann::json::type_error&) {
    fail(ErrorCode::kInvalidArgument, where, "the schema contains text that is not UTF-8");
  }
}

}  // namespace qvl::grammar
