#include "qvl/text/stream_decoder.h"

#include "qvl/text/unicode.h"

namespace qvl::text {

std::string StreamDecoder::push(int32_t id) {
  if (skip_special_ && tokenizer_.is_special(id)) return {};
  held_.append(tokenizer_.token_bytes(id));
  // An unfinished character can only begin in the last three bytes. Whatever invalid bytes stand before it
  // are final: the next byte cannot change how they are split.
  size_t keep = 0;
  for (size_t back = 1; back <= 3 && back <= held_.size(); ++back) {
    const auto byte = static_cast<unsigned char>(held_[held_.size() - back]);
    if ((byte & 0xC0) == 0x80) continue;
    const Utf8Unit unit = next_utf8_unit(std::string_view(held_).substr(held_.size() - back));
    if (unit.kind == Utf8Unit::Kind::kIncomplete) keep = back;
    break;
  }
  std::string out;
  append_sanitized(std::string_view(held_).substr(0, held_.size() - keep), out);
  held_.erase(0, held_.size() - keep);
  return out;
}

std::string StreamDecoder::flush() {
  std::string out;
  append_sanitized(held_, out);
  held_.clear();
  return out;
}

}  // namespace qvl::text
