#include "qvl/generate/json_span.h"

namespace qvl::generate {
namespace {

class Scanner {
 public:
  Scanner(std::string_view text, size_t at, int max_depth) : text_(text), at_(at), max_depth_(max_depth) {}

  size_t at() const { return at_; }
  // After a failure: the text ended where something was still to come.
  bool cut_off() const { return cut_off_; }
  void skip_space() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\t' || text_[at_] == '\n' || text_[at_] == '\r'))
      ++at_;
  }
  bool take(char c) {
    if (ended() || text_[at_] != c) return false;
    ++at_;
    return true;
  }

  bool value(int depth = 0) {
    if (ended()) return false;
    switch (text_[at_]) {
      case '{':
        return depth < max_depth_ && object(depth + 1, nullptr);
      case '[':
        return depth < max_depth_ && array(depth + 1);
      case '"':
        return string();
      case 't':
        return word("true");
      case 'f':
        return word("false");
      case 'n':
        return word("null");
      default:
        return number();
    }
  }

  bool object(int depth, JsonMembers* members) {
    if (!take('{')) return false;
    skip_space();
    if (next_is('}')) return true;
    do {
      skip_space();
      const size_t key = at_;
      if (!string()) return false;
      const std::string_view name = text_.substr(key + 1, at_ - key - 2);
      skip_space();
      if (!take(':')) return false;
      skip_space();
      const size_t begin = at_;
      if (!value(depth)) return false;
      if (members != nullptr) members->emplace_back(name, text_.substr(begin, at_ - begin));
      skip_space();
    } while (next_is(','));
    return take('}');
  }

 private:
  bool ended() {
    if (at_ >= text_.size()) cut_off_ = true;
    return cut_off_;
  }

  bool array(int depth) {
    if (!take('[')) return false;
    skip_space();
    if (next_is(']')) return true;
    do {
      skip_space();
      if (!value(depth)) return false;
      skip_space();
    } while (next_is(','));
    return take(']');
  }

  bool string() {
    if (!take('"')) return false;
    while (!ended()) {
      const char c = text_[at_++];
      if (c == '"') return true;
      if (static_cast<unsigned char>(c) < 0x20) return false;
      if (c == '\\' && !escape()) return false;
    }
    return false;
  }

  bool escape() {
    if (ended()) return false;
    const char c = text_[at_++];
    if (c != 'u') return std::string_view("\"\\/bfnrt").find(c) != std::string_view::npos;
    for (int i = 0; i < 4; ++i, ++at_) {
      if (ended()) return false;
      const char h = text_[at_];
      if (!((h >= '0' && h <= '9') || (h >= 'a' && h <= 'f') || (h >= 'A' && h <= 'F'))) return false;
    }
    return true;
  }

  bool word(std::string_view w) {
    const std::string_view rest = text_.substr(at_, w.size());
    if (rest != w) {
      cut_off_ = w.starts_with(rest);
      return false;
    }
    at_ += w.size();
    return true;
  }

  bool digits() {
    const size_t from = at_;
    while (at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9') ++at_;
    return at_ > from;
  }

  bool next_is(char c) {
    if (at_ >= text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }

  // Digits that have to be there.
  bool some_digits() { return digits() || (ended(), false); }

  bool number() {
    next_is('-');
    if (!next_is('0') && !some_digits()) return false;
    if (next_is('.') && !some_digits()) return false;
    if (next_is('e') || next_is('E')) {
      if (!next_is('+')) next_is('-');
      if (!some_digits()) return false;
    }
    return true;
  }

  std::string_view text_;
  size_t at_;
  int max_depth_;
  bool cut_off_ = false;
};

}  // namespace

JsonScan scan_json_value(std::string_view text, size_t begin, int max_depth) {
  Scanner scanner(text, begin, max_depth);
  if (scanner.value()) return {JsonScan::State::kWhole, scanner.at()};
  return {scanner.cut_off() ? JsonScan::State::kCutOff : JsonScan::State::kBroken, 0};
}

std::optional<size_t> json_value_end(std::string_view text, size_t begin, int max_depth) {
  const JsonScan scan = scan_json_value(text, begin, max_depth);
  if (scan.state != JsonScan::State::kWhole) return std::nullopt;
  return scan.end;
}

std::optional<JsonMembers> json_members(std::string_view text, int max_depth) {
  Scanner scanner(text, 0, max_depth);
  JsonMembers members;
  scanner.skip_space();
  if (!scanner.object(1, &members)) return std::nullopt;
  scanner.skip_space();
  if (scanner.at() != text.size()) return std::nullopt;
  return members;
}

}  // namespace qvl::generate
