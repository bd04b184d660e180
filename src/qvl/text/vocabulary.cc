#include "qvl/text/vocabulary.h"

#include <simdjson.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "qvl/base/error.h"
#include "qvl/base/json.h"
#include "qvl/base/log.h"
#include "qvl/text/pretokenizer.h"

namespace qvl::text {
namespace {

using simdjson::dom::element;

constexpr size_t kMaxVocabularyBytes = size_t{1} << 30;

// The byte that each printable stand-in means: 33-126, 161-172, 174-255 keep their code point, the other 68
// follow from U+0100 on in ascending order.
struct StandIns {
  static constexpr char32_t kEnd = 0x144;
  std::array<int16_t, kEnd> byte_of;
  std::array<char32_t, 256> code_point_of;

  constexpr StandIns() : byte_of(), code_point_of() {
    byte_of.fill(-1);
    char32_t next = 0x100;
    for (int b = 0; b < 256; ++b) {
      const bool printable = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
      const char32_t c = printable ? static_cast<char32_t>(b) : next++;
      byte_of[c] = static_cast<int16_t>(b);
      code_point_of[b] = c;
    }
  }
};
constexpr StandIns kStandIns;

// Stand-ins to bytes; false if some character is none.
bool to_bytes(std::string_view stand_ins, std::string& out) {
  out.clear();
  for (size_t i = 0; i < stand_ins.size();) {
    const Decoded d = decode_valid(stand_ins.data() + i);
    const int16_t byte = d.code_point < StandIns::kEnd ? kStandIns.byte_of[d.code_point] : int16_t{-1};
    if (byte < 0) return false;
    out.push_back(static_cast<char>(byte));
    i += d.length_bytes;
  }
  return true;
}

std::string shorten(std::string text) {
  constexpr size_t kMax = 160;
  if (text.size() > kMax) text = text.substr(0, kMax) + "...";
  return text;
}

class Parser {
 public:
  explicit Parser(std::string_view where) : where_(where) {}

  Vocabulary parse(std::string_view json, std::string_view config) {
    simdjson::dom::parser parser;
    element root;
    if (const auto error = parser.parse(json.data(), json.size(), /*realloc_if_needed=*/true).get(root)) {
      fail(ErrorCode::kFormat, where_, std::string("not valid JSON: ") + simdjson::error_message(error));
    }
    if (!root.is_object()) bad_format("the top level", "an object", root);
    check_normalizer(root);
    check_pre_tokenizer(root);
    check_byte_level_or_null(root, "post_processor");
    check_byte_level(member(root, "decoder"), "decoder");
    for (const char* key : {"truncation", "padding"}) {
      if (element e; root[key].get(e) == simdjson::SUCCESS && !e.is_null()) {
        log_message(LogLevel::kInfo,
                    "[" + std::string(where_) + "] " + key + " is set; it is not applied to prompts");
      }
    }
    const element model = member(root, "model");
    check_model(model);
    read_vocab(member(model, "vocab"));
    read_merges(member(model, "merges"));
    if (element list; root["added_tokens"].get(list) == simdjson::SUCCESS && !list.is_null())
      read_added(list);
    if (!config.empty()) read_config(config);
    std::sort(v_.added.begin(), v_.added.end(), [](const auto& a, const auto& b) { return a.id < b.id; });
    return std::move(v_);
  }

 private:
  [[noreturn]] void bad_format(std::string_view what, std::string_view expected, element got) const {
    fail(ErrorCode::kFormat, where_, what, expected, shorten(simdjson::to_string(got)));
  }
  [[noreturn]] void unsupported(std::string_view what, std::string_view expected,
                                std::string_view got) const {
    fail(ErrorCode::kUnsupported, where_, what, expected, shorten(std::string(got)),
         "only Qwen byte-level BPE tokenizers are implemented");
  }

  element member(element object, const char* key) const {
    element e;
    if (object[key].get(e) != simdjson::SUCCESS) {
      fail(ErrorCode::kFormat, where_, "missing key", key, "none");
    }
    return e;
  }
  // The member, or null JSON if absent.
  static std::string text_of(element object, const char* key) {
    element e;
    return object[key].get(e) == simdjson::SUCCESS ? std::string(simdjson::minify(e)) : "null";
  }

  // "Split, Digits" of a list of steps.
  static std::string types_of(element list) {
    if (!list.is_array()) return simdjson::minify(list);
    std::string out;
    const simdjson::dom::array steps = list.get_array().value();
    for (const element step : steps) {
      std::string_view type = "?";
      if (step.is_object() && step["type"].get(type) != simdjson::SUCCESS) type = "?";
      out.append(out.empty() ? "" : ", ").append(type);
    }
    return out;
  }

  void check_type(element object, std::string_view what, std::string_view type) const {
    std::string_view got;
    if (!object.is_object() || object["type"].get(got) != simdjson::SUCCESS || got != type) {
      unsupported(what, type, std::string(simdjson::minify(object)));
    }
  }

  void check_normalizer(element root) const {
    element e = member(root, "normalizer");
    if (std::string_view type;
        e.is_object() && e["type"].get(type) == simdjson::SUCCESS && type == "Sequence") {
      const element list = member(e, "normalizers");
      if (!list.is_array() || list.get_array().value().size() != 1)
        unsupported("normalizer", "NFC", simdjson::minify(list));
      e = list.at(0).value();
    }
    check_type(e, "normalizer", "NFC");
  }

  void check_byte_level(element e, std::string_view what) const { check_type(e, what, "ByteLevel"); }

  void check_byte_level_or_null(element root, const char* key) const {
    element e;
    if (root[key].get(e) == simdjson::SUCCESS && !e.is_null()) check_byte_level(e, key);
  }

  void check_pre_tokenizer(element root) const {
    const element e = member(root, "pre_tokenizer");
    check_type(e, "pre_tokenizer", "Sequence");
    const element list = member(e, "pretokenizers");
    if (!list.is_array() || list.get_array().value().size() != 2) {
      unsupported("pre_tokenizer steps", "Split, ByteLevel", types_of(list));
    }
    const element split = list.at(0).value();
    const element byte_level = list.at(1).value();
    check_type(split, "pre_tokenizer", "Split");
    std::string_view pattern;
    if (split["pattern"]["Regex"].get(pattern) != simdjson::SUCCESS || pattern != kPieceRegex) {
      unsupported("pre_tokenizer pattern", kPieceRegex, text_of(split, "pattern"));
    }
    if (text_of(split, "behavior") != "\"Isolated\"" || text_of(split, "invert") == "true") {
      unsupported("pre_tokenizer Split", "behavior \"Isolated\", invert false",
                  "behavior " + text_of(split, "behavior") + ", invert " + text_of(split, "invert"));
    }
    check_byte_level(byte_level, "pre_tokenizer");
    if (text_of(byte_level, "add_prefix_space") != "false" || text_of(byte_level, "use_regex") != "false") {
      unsupported("pre_tokenizer ByteLevel", "add_prefix_space and use_regex false",
                  simdjson::minify(byte_level));
    }
  }

  void check_model(element model) const {
    if (!model.is_object()) bad_format("model", "an object", model);
    // Old files have no type; what they hold is BPE if it has merges.
    if (const std::string type = text_of(model, "type"); type != "null" && type != "\"BPE\"") {
      unsupported("model type", "BPE", type);
    }
    for (const char* key :
         {"dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges"}) {
      const std::string value = text_of(model, key);
      if (value != "null" && value != "\"\"" && value != "false") {
        unsupported(std::string("model ") + key, "none", value);
      }
    }
  }

  void read_vocab(element vocab) {
    if (!vocab.is_object()) bad_format("vocab", "an object", vocab);
    const simdjson::dom::object object = vocab.get_object().value();
    // object.size() saturates at 2^24 - 1, far above the limit.
    if (object.size() > static_cast<size_t>(kMaxTokens)) {
      fail(ErrorCode::kLimit, where_, "vocab size", "at most " + std::to_string(kMaxTokens),
           std::to_string(object.size()));
    }
    size_t total_bytes = 0;
    for (const auto [key, value] : object) total_bytes += key.size();
    if (total_bytes > kMaxVocabularyBytes) fail(ErrorCode::kLimit, where_, "vocab is larger than 1 GiB");
    v_.base.reserve(object.size(), total_bytes);
    std::string bytes;
    for (const auto [key, value] : object) {
      const int32_t id = read_id(value, key);
      // A token that is not made of stand-ins can never be produced, only decoded: to its own text.
      const bool byte_level = to_bytes(key, bytes);
      if (!v_.base.add(id, byte_level ? std::string_view(bytes) : key, byte_level)) {
        fail(ErrorCode::kFormat, where_,
             "vocab entry \"" + std::string(key) + "\" repeats a token or its id " + std::to_string(id));
      }
    }
    for (int b = 0; b < 256; ++b) {
      const char byte = static_cast<char>(b);
      const auto id = v_.base.find({&byte, 1});
      if (!id) {
        std::string stand_in;
        append_utf8(kStandIns.code_point_of[b], stand_in);
        unsupported("vocab", "a token for each of the 256 bytes",
                    "none for byte " + std::to_string(b) + " (\"" + stand_in + "\")");
      }
      v_.byte_ids[b] = *id;
    }
  }

  int32_t read_id(element value, std::string_view token) const {
    int64_t id;
    if (value.get(id) != simdjson::SUCCESS)
      bad_format("id of token \"" + std::string(token) + "\"", "an integer", value);
    if (id < 0 || id >= kMaxTokens) {
      fail(ErrorCode::kLimit, where_, "id of token \"" + std::string(token) + "\"",
           "0 to " + std::to_string(kMaxTokens - 1), std::to_string(id));
    }
    return static_cast<int32_t>(id);
  }

  void read_merges(element merges) {
    if (!merges.is_array()) bad_format("merges", "an array", merges);
    const simdjson::dom::array array = merges.get_array().value();
    v_.merges.reserve(array.size());
    std::string left, right, joined;
    for (const element merge : array) {
      std::string_view a, b;
      if (merge.is_array()) {
        const simdjson::dom::array pair = merge.get_array().value();
        if (pair.size() != 2 || pair.at(0).get(a) != simdjson::SUCCESS ||
            pair.at(1).get(b) != simdjson::SUCCESS) {
          bad_format("a merge", "two strings", merge);
        }
      } else if (merge.get(a) == simdjson::SUCCESS) {
        const size_t space = a.find(' ');
        if (space == std::string_view::npos || a.find(' ', space + 1) != std::string_view::npos) {
          bad_format("a merge", "two tokens with one space between", merge);
        }
        b = a.substr(space + 1);
        a = a.substr(0, space);
      } else {
        bad_format("a merge", "two strings", merge);
      }
      if (!to_bytes(a, left) || !to_bytes(b, right)) bad_format("a merge", "byte-level tokens", merge);
      joined.assign(left).append(right);
      const auto left_id = v_.base.find(left), right_id = v_.base.find(right), result = v_.base.find(joined);
      if (!left_id || !right_id || !result)
        bad_format("a merge", "tokens of the vocab with a result in the vocab", merge);
      if (v_.merges.size() == static_cast<size_t>(kMaxTokens)) {
        fail(ErrorCode::kLimit, where_, "number of merges", "at most " + std::to_string(kMaxTokens), "more");
      }
      v_.merges.push_back({*left_id, *right_id, *result});
    }
  }

  void read_added(element list) {
    if (!list.is_array()) bad_format("added_tokens", "an array", list);
    const simdjson::dom::array array = list.get_array().value();
    for (const element e : array) {
      AddedToken token;
      std::string_view content;
      element id;
      if (!e.is_object() || e["content"].get(content) != simdjson::SUCCESS || content.empty() ||
          e["id"].get(id) != simdjson::SUCCESS) {
        bad_format("added token", "an object with content and id", e);
      }
      token.text = content;
      token.id = read_id(id, content);
      token.special = text_of(e, "special") == "true";
      for (const char* key : {"single_word", "lstrip", "rstrip", "normalized"}) {
        if (text_of(e, key) == "true")
          unsupported("added token \"" + token.text + "\"", std::string(key) + " false", "true");
      }
      add(std::move(token), where_);
    }
  }

  // Tokens that only tokenizer_config.json lists are added, as the reference library does when it loads the
  // pair.
  void read_config(std::string_view text) {
    const std::string where = std::string(where_) + ", tokenizer_config.json";
    const Json config = parse_json(text, where);
    if (!config.is_object()) fail(ErrorCode::kFormat, where, "top level", "an object", config.type_name());
    if (const auto it = config.find("split_special_tokens"); it != config.end() && *it == true) {
      fail(ErrorCode::kUnsupported, where, "split_special_tokens", "false", "true");
    }
    const auto decoder = config.find("added_tokens_decoder");
    if (decoder == config.end() || decoder->is_null()) return;
    if (!decoder->is_object())
      fail(ErrorCode::kFormat, where, "added_tokens_decoder", "an object", decoder->type_name());
    for (const auto& [key, value] : decoder->items()) {
      AddedToken token;
      char* end = nullptr;
      const long long id = std::strtoll(key.c_str(), &end, 10);
      if (key.empty() || *end != '\0' || id < 0 || id >= kMaxTokens) {
        fail(ErrorCode::kFormat, where, "added_tokens_decoder key", "a token id", "\"" + key + "\"");
      }
      if (!value.is_object() || !value.contains("content") || !value["content"].is_string() ||
          value["content"].get_ref<const std::string&>().empty()) {
        fail(ErrorCode::kFormat, where, "added_tokens_decoder entry " + key, "an object with content",
             shorten(value.dump()));
      }
      token.id = static_cast<int32_t>(id);
      token.text = value["content"].get<std::string>();
      token.special = value.contains("special") && value["special"] == true;
      for (const char* flag : {"single_word", "lstrip", "rstrip", "normalized"}) {
        if (value.contains(flag) && value[flag] == true) {
          fail(ErrorCode::kUnsupported, where, "added token \"" + token.text + "\"",
               std::string(flag) + " false", "true");
        }
      }
      add(std::move(token), where);
    }
  }

  // A token that is listed already must be the same one.
  void add(AddedToken token, std::string_view where) {
    for (const AddedToken& known : v_.added) {
      if (known.id != token.id && known.text != token.text) continue;
      if (known.id == token.id && known.text == token.text && known.special == token.special) return;
      fail(ErrorCode::kFormat, where, "added token",
           "\"" + known.text + "\" = " + std::to_string(known.id) + (known.special ? ", special" : ""),
           "\"" + token.text + "\" = " + std::to_string(token.id) + (token.special ? ", special" : ""));
    }
    if (v_.base.contains(token.id) && v_.base.bytes(token.id) != token.text) {
      fail(ErrorCode::kFormat, where, "added token \"" + token.text + "\"", "an id of its own",
           std::to_string(token.id) + ", which the vocab gives to another token");
    }
    v_.added.push_back(std::move(token));
  }

  std::string_view where_;
  Vocabulary v_;
};

}  // namespace

void TokenStore::reserve(size_t count, size_t total_bytes) {
  slots_.assign(std::bit_ceil(std::max<size_t>(16, count * 2 + 1)), -1);
  tokens_.reserve(count + 64);
  arena_.reserve(total_bytes);
}

size_t TokenStore::slot_of(std::string_view bytes) const {
  const size_t mask = slots_.size() - 1;
  size_t slot = std::hash<std::string_view>()(bytes) & mask;
  while (slots_[slot] >= 0 && this->bytes(slots_[slot]) != bytes) slot = (slot + 1) & mask;
  return slot;
}

bool TokenStore::add(int32_t id, std::string_view bytes, bool findable) {
  if (contains(id)) return false;
  const size_t slot = findable ? slot_of(bytes) : 0;
  if (findable) {
    if (slots_[slot] >= 0) return false;
    slots_[slot] = id;
  }
  if (static_cast<size_t>(id) >= tokens_.size()) tokens_.resize(id + 1);
  tokens_[id] = {static_cast<uint32_t>(arena_.size()), static_cast<uint32_t>(bytes.size()), true};
  arena_.append(bytes);
  return true;
}

std::optional<int32_t> TokenStore::find(std::string_view bytes) const {
  const int32_t id = slots_[slot_of(bytes)];
  return id < 0 ? std::nullopt : std::optional(id);
}

bool TokenStore::contains(int32_t id) const {
  return id >= 0 && static_cast<size_t>(id) < tokens_.size() && tokens_[id].present;
}

std::string_view TokenStore::bytes(int32_t id) const {
  if (!contains(id)) return {};
  return std::string_view(arena_).substr(tokens_[id].offset, tokens_[id].length);
}

Vocabulary parse_vocabulary(std::string_view tokenizer_json, std::string_view tokenizer_config_json,
                            std::string_view where) {
  return Parser(where).parse(tokenizer_json, tokenizer_config_json);
}

}  // namespace qvl::text
