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
namespace stream = simdjson::ondemand;

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

// Appends the bytes that the stand-ins from `p` on mean, up to the first character that is none. Returns where that is: text
// of JSON ends with a quotation mark, which is itself a stand-in only behind a backslash.
const char* append_bytes(const char* p, std::string& out) {
  for (;;) {
    const auto lead = static_cast<unsigned char>(*p);
    int16_t byte = -1;
    int length = 1;
    if (lead < 0x80) {
      if (lead != '"' && lead != '\\') byte = kStandIns.byte_of[lead];
    } else if (lead >= 0xC2 && lead < 0xC6) {
      const char32_t c = (lead & 0x1Fu) << 6 | (static_cast<unsigned char>(p[1]) & 0x3Fu);
      if (c < StandIns::kEnd) byte = kStandIns.byte_of[c];
      length = 2;
    }
    if (byte < 0) return p;
    out.push_back(static_cast<char>(byte));
    p += length;
  }
}

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

  Vocabulary parse(std::string_view json, size_t readable_bytes, std::string_view config) {
    simdjson::padded_string copy;
    if (readable_bytes < json.size() + simdjson::SIMDJSON_PADDING) {
      copy = simdjson::padded_string(json);
      json = copy;
      readable_bytes = json.size() + simdjson::SIMDJSON_PADDING;
    }
    // Vocabulary and merges, nearly all of the file, are read as they come, the rest as a tree.
    stream::parser reader;
    stream::document document;
    if (const auto error = reader.iterate(json.data(), json.size(), readable_bytes).get(document)) not_json(error);
    document_ = &document;
    const std::string rest = without_tokens();
    simdjson::dom::parser parser;
    element root;
    if (const auto error = parser.parse(rest).get(root)) not_json(error);
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
    if (const element vocab = member(model, "vocab"); !vocab.is_object()) bad_format("vocab", "an object", vocab);
    if (const element merges = member(model, "merges"); !merges.is_array()) bad_format("merges", "an array", merges);
    read_vocab();
    read_merges();
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

  [[noreturn]] void not_json(simdjson::error_code error) const {
    fail(ErrorCode::kFormat, where_, std::string("not valid JSON: ") + simdjson::error_message(error));
  }
  // What a step of reading yields.
  template <typename T>
  T value_of(simdjson::simdjson_result<T> result) const {
    T value;
    if (const auto error = std::move(result).get(value)) not_json(error);
    return value;
  }

  // The file without the contents of model.vocab and model.merges.
  std::string without_tokens() {
    stream::json_type type;
    if (document_->type().get(type) != simdjson::SUCCESS || type != stream::json_type::object)
      return std::string(value_of(document_->raw_json_token()));
    std::string out = "{";
    for (auto entry : value_of(document_->get_object())) {
      stream::field field = value_of(std::move(entry));
      const std::string key(value_of(field.unescaped_key()));
      out += (out.size() > 1 ? "," : "") + quoted(key) + ":";
      if (key == "model" && value_of(field.value().type()) == stream::json_type::object) {
        out += model_without_tokens(value_of(field.value().get_object()));
      } else {
        out += value_of(simdjson::to_json_string(field.value()));
      }
    }
    if (const char* at; document_->current_location().get(at) != simdjson::OUT_OF_BOUNDS) not_json(simdjson::TAPE_ERROR);
    return out + "}";
  }

  std::string model_without_tokens(stream::object model) {
    std::string out = "{";
    for (auto entry : model) {
      stream::field field = value_of(std::move(entry));
      const std::string key(value_of(field.unescaped_key()));
      const stream::json_type type = value_of(field.value().type());
      out += (out.size() > 1 ? "," : "") + quoted(key) + ":";
      if (key == "vocab" && type == stream::json_type::object) {
        const std::string_view json = value_of(simdjson::to_json_string(field.value()));
        if (vocab_json_.empty()) vocab_json_ = json;
        out += "{}";
      } else if (key == "merges" && type == stream::json_type::array) {
        out += "[]";
      } else {
        out += value_of(simdjson::to_json_string(field.value()));
      }
    }
    return out + "}";
  }

  static std::string quoted(const std::string& text) { return Json(text).dump(); }

  // A member of the model, read from its beginning.
  stream::value token_list(const char* key) const {
    document_->rewind();
    return value_of((*document_)["model"][key]);
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

  void read_vocab() {
    if (vocab_json_.size() > kMaxVocabularyBytes) fail(ErrorCode::kLimit, where_, "vocab is larger than 1 GiB");
    // At least as many as there are tokens; ids alone bound those.
    const auto colons = static_cast<size_t>(std::count(vocab_json_.begin(), vocab_json_.end(), ':'));
    v_.base.reserve(std::min(colons, static_cast<size_t>(kMaxTokens)), vocab_json_.size());
    stream::object object = value_of(token_list("vocab").get_object());
    std::string bytes, other;
    for (auto entry : object) {
      stream::field field = value_of(std::move(entry));
      bytes.clear();
      bool byte_level = *append_bytes(field.key().raw(), bytes) == '"';
      if (!byte_level) {
        other = value_of(field.unescaped_key());
        // A token that is not made of stand-ins can never be produced, only decoded: to its own text.
        byte_level = to_bytes(other, bytes);
        if (!byte_level) bytes = other;
      }
      int64_t id = 0;
      const auto token = [&] { return byte_level ? in_stand_ins(bytes) : bytes; };
      if (const auto error = field.value().get_int64().get(id)) {
        if (error != simdjson::INCORRECT_TYPE && error != simdjson::NUMBER_OUT_OF_RANGE) not_json(error);
        fail(ErrorCode::kFormat, where_, "id of token \"" + token() + "\"", "an integer",
             shorten(std::string(value_of(simdjson::to_json_string(field.value())))));
      }
      if (id < 0 || id >= kMaxTokens) fail_id(token(), id);
      if (!v_.base.add(static_cast<int32_t>(id), bytes, byte_level)) {
        fail(ErrorCode::kFormat, where_,
             "vocab entry \"" + token() + "\" repeats a token or its id " + std::to_string(id));
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

  static std::string in_stand_ins(std::string_view bytes) {
    std::string out;
    for (const char byte : bytes) append_utf8(kStandIns.code_point_of[static_cast<unsigned char>(byte)], out);
    return out;
  }

  [[noreturn]] void fail_id(std::string_view token, int64_t id) const {
    fail(ErrorCode::kLimit, where_, "id of token \"" + std::string(token) + "\"",
         "0 to " + std::to_string(kMaxTokens - 1), std::to_string(id));
  }

  int32_t read_id(element value, std::string_view token) const {
    int64_t id;
    if (value.get(id) != simdjson::SUCCESS)
      bad_format("id of token \"" + std::string(token) + "\"", "an integer", value);
    if (id < 0 || id >= kMaxTokens) fail_id(token, id);
    return static_cast<int32_t>(id);
  }

  [[noreturn]] void bad_merge(size_t index, std::string_view expected) const {
    stream::array merges = value_of(token_list("merges").get_array());
    fail(ErrorCode::kFormat, where_, "a merge", expected,
         shorten(std::string(value_of(simdjson::to_json_string(value_of(merges.at(index)))))));
  }

  // Appends the bytes of text that stands for some. False for anything else.
  bool read_token(stream::value& value, std::string& out) const {
    const std::string_view json = value.raw_json_token();
    const size_t before = out.size();
    if (json[0] == '"' && *append_bytes(json.data() + 1, out) == '"') return true;
    out.resize(before);
    std::string_view text;
    std::string bytes;
    if (value.get_string().get(text) != simdjson::SUCCESS || !to_bytes(text, bytes)) return false;
    out += bytes;
    return true;
  }

  // Merges whose tokens are looked up together: most of the time goes to waiting for the tables, so all are asked for first.
  struct MergeTexts {
    static constexpr size_t kCount = 32;
    struct Pair {
      size_t begin, middle, end;  // in bytes
      uint64_t left, right;       // hashes
    };
    std::string bytes;
    std::vector<Pair> pairs;
  };

  void read_merges() {
    v_.merges.reserve(static_cast<size_t>(v_.base.size()));
    MergeTexts texts;
    for (auto entry : value_of(token_list("merges").get_array())) {
      stream::value merge = value_of(std::move(entry));
      const size_t index = v_.merges.size() + texts.pairs.size();
      if (index == static_cast<size_t>(kMaxTokens)) {
        fail(ErrorCode::kLimit, where_, "number of merges", "at most " + std::to_string(kMaxTokens), "more");
      }
      MergeTexts::Pair pair{.begin = texts.bytes.size(), .middle = 0, .end = 0, .left = 0, .right = 0};
      switch (value_of(merge.type())) {
        case stream::json_type::array:
          read_pair(index, value_of(merge.get_array()), texts.bytes, pair.middle);
          break;
        case stream::json_type::string:
          read_line(index, merge, texts.bytes, pair.middle);
          break;
        default:
          bad_merge(index, "two strings");
      }
      pair.end = texts.bytes.size();
      const std::string_view bytes = texts.bytes;
      pair.left = TokenStore::hash_of(bytes.substr(pair.begin, pair.middle - pair.begin));
      pair.right = TokenStore::hash_of(bytes.substr(pair.middle, pair.end - pair.middle));
      v_.base.prefetch_slot(pair.left);
      v_.base.prefetch_slot(pair.right);
      texts.pairs.push_back(pair);
      if (texts.pairs.size() == MergeTexts::kCount) look_up(texts);
    }
    look_up(texts);
  }

  // ["a", "b"]
  void read_pair(size_t index, stream::array pair, std::string& bytes, size_t& middle) const {
    size_t count = 0;
    for (auto entry : pair) {
      stream::value value = value_of(std::move(entry));
      if (count == 2 || value_of(value.type()) != stream::json_type::string) bad_merge(index, "two strings");
      if (!read_token(value, bytes)) bad_merge(index, "byte-level tokens");
      if (++count == 1) middle = bytes.size();
    }
    if (count != 2) bad_merge(index, "two strings");
  }

  // "a b"
  void read_line(size_t index, stream::value& line, std::string& bytes, size_t& middle) const {
    const size_t before = bytes.size();
    const char* end = append_bytes(line.raw_json_token().data() + 1, bytes);
    if (*end == ' ') {
      middle = bytes.size();
      if (*append_bytes(end + 1, bytes) == '"') return;
    }
    bytes.resize(before);
    const std::string_view text = value_of(line.get_string());
    const size_t space = text.find(' ');
    if (space == std::string_view::npos || text.find(' ', space + 1) != std::string_view::npos)
      bad_merge(index, "two tokens with one space between");
    std::string part;
    if (!to_bytes(text.substr(0, space), part)) bad_merge(index, "byte-level tokens");
    bytes += part;
    middle = bytes.size();
    if (!to_bytes(text.substr(space + 1), part)) bad_merge(index, "byte-level tokens");
    bytes += part;
  }

  void look_up(MergeTexts& texts) {
    const std::string_view all = texts.bytes;
    for (const MergeTexts::Pair& p : texts.pairs) v_.base.prefetch_token(p.left), v_.base.prefetch_token(p.right);
    for (const MergeTexts::Pair& p : texts.pairs) v_.base.prefetch_text(p.left), v_.base.prefetch_text(p.right);
    for (const MergeTexts::Pair& p : texts.pairs) {
      const std::string_view joined = all.substr(p.begin, p.end - p.begin);
      const auto left = v_.base.find(joined.substr(0, p.middle - p.begin), p.left);
      const auto right = v_.base.find(joined.substr(p.middle - p.begin), p.right);
      // Vocabularies list what merges make in the order of the merges.
      const int32_t next = v_.merges.empty() ? 0 : v_.merges.back().result + 1;
      const auto result = v_.base.finds(next, joined) ? std::optional(next) : v_.base.find(joined);
      if (!left || !right || !result)
        bad_merge(v_.merges.size(), "tokens of the vocab with a result in the vocab");
      v_.merges.push_back({*left, *right, *result});
    }
    texts.pairs.clear();
    texts.bytes.clear();
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
  stream::document* document_ = nullptr;  // while parse() runs
  std::string_view vocab_json_;
  Vocabulary v_;
};

}  // namespace

Vocabulary parse_vocabulary(std::string_view tokenizer_json, std::string_view tokenizer_config_json,
                            std::string_view where, size_t readable_bytes) {
  return Parser(where).parse(tokenizer_json, readable_bytes, tokenizer_config_json);
}

}  // namespace qvl::text
