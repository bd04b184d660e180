#include "qvl/grammar/token_sets.h"

#include <algorithm>
#include <limits>

#include "qvl/base/error.h"

namespace qvl::grammar {
namespace {

constexpr std::string_view kCallOpen = "<tool_call>";
constexpr std::string_view kCallClose = "</tool_call>";
constexpr std::string_view kThinkClose = "</think>";

std::optional<int32_t> added_token(const text::Tokenizer& tokenizer, std::string_view text) {
  const auto id = tokenizer.token_id(text);
  return id && tokenizer.is_added(*id) ? id : std::nullopt;
}

std::string bytes_of(const text::Tokenizer& tokenizer, std::span<const int32_t> ids) {
  std::string bytes;
  for (const int32_t id : ids) bytes += tokenizer.token_bytes(id);
  return bytes;
}

// Tokens for exactly these bytes. The tokenizer normalises (NFC); where that would change them, the longest
// tokens from left to right stand in.
std::vector<int32_t> tokenize_exactly(const text::Tokenizer& tokenizer, std::string_view bytes) {
  std::vector<int32_t> ids = tokenizer.encode_text(bytes);
  if (bytes_of(tokenizer, ids) == bytes) return ids;
  constexpr size_t kLongest = 64;
  ids.clear();
  while (!bytes.empty()) {
    size_t size = std::min(bytes.size(), kLongest);
    std::optional<int32_t> id;
    for (; size > 0; --size) {
      id = tokenizer.token_id(bytes.substr(0, size));
      if (id && !tokenizer.is_added(*id)) break;
    }
    if (size == 0)
      fail(ErrorCode::kMismatch, "grammar", "vocabulary", "a token for every byte", "none for one");
    ids.push_back(*id);
    bytes.remove_prefix(size);
  }
  return ids;
}

}  // namespace

void keep_only(const TokenSet& set, std::span<float> logits) {
  constexpr float kNever = -std::numeric_limits<float>::infinity();
  const size_t words = std::min(set.size(), logits.size() / 32);
  for (size_t w = 0; w < words; ++w) {
    const uint32_t word = set[w];
    float* const at = logits.data() + w * 32;
    if (word == 0) {
      std::fill_n(at, 32, kNever);
    } else if (word != ~uint32_t{0}) {
      for (int bit = 0; bit < 32; ++bit) {
        if (!(word >> bit & 1u)) at[bit] = kNever;
      }
    }
  }
  for (size_t id = words * 32; id < logits.size(); ++id) {
    if (!contains(set, static_cast<int32_t>(id))) logits[id] = kNever;
  }
}

TagSpelling::TagSpelling(const text::Tokenizer& tokenizer, std::string tag)
    : tag_(std::move(tag)), completing_(tag_.size()) {
  const std::string_view tag_text = tag_;
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    if (tokenizer.is_added(id)) continue;
    const std::string_view bytes = tokenizer.token_bytes(id);
    const bool whole = bytes.find(tag_text) != std::string_view::npos;
    for (size_t matched = 0; matched < tag_.size(); ++matched) {
      if (whole || (matched > 0 && bytes.starts_with(tag_text.substr(matched))))
        completing_[matched].push_back(id);
    }
  }
}

size_t TagSpelling::advance(size_t matched, std::string_view bytes) const {
  for (const char c : bytes) {
    if (matched < tag_.size() && c == tag_[matched]) {
      ++matched;
    } else {
      matched = c == tag_[0] ? 1 : 0;
    }
  }
  return matched;
}

void TagSpelling::remove_completing(size_t matched, TokenSet& set) const {
  if (matched >= completing_.size()) return;
  for (const int32_t id : completing_[matched]) erase(set, id);
}

TokenSets::TokenSets(const text::Tokenizer& tokenizer, std::span<const int32_t> end_ids)
    : call_open(added_token(tokenizer, kCallOpen)),
      call_close(added_token(tokenizer, kCallClose)),
      think_close(added_token(tokenizer, kThinkClose)),
      call_tag(tokenizer, std::string(kCallOpen)) {
  const int32_t size = tokenizer.vocab_size();
  ends.assign((static_cast<size_t>(size) + 31) / 32, 0);
  for (const int32_t id : end_ids) {
    if (id < 0 || id >= size) {
      fail(ErrorCode::kInvalidArgument, "grammar", "end id", "below " + std::to_string(size),
           std::to_string(id));
    }
    insert(ends, id);
  }
  free_text = reasoning = TokenSet(ends.size(), 0);
  for (int32_t id = 0; id < size; ++id) {
    const std::string_view bytes = tokenizer.token_bytes(id);
    if (bytes.empty() || tokenizer.is_special(id)) continue;
    if (tokenizer.is_added(id) && (bytes.starts_with("<tool_") || bytes.starts_with("</tool_"))) continue;
    insert(free_text, id);
    insert(reasoning, id);
  }
  if (call_open) insert(free_text, *call_open);
  for (size_t w = 0; w < ends.size(); ++w) {
    free_text[w] |= ends[w];
    reasoning[w] &= ~ends[w];
  }
}

Vocabulary make_vocabulary(text::Tokenizer tokenizer, std::span<const int32_t> end_ids) {
  Vocabulary v;
  v.end_ids.assign(end_ids.begin(), end_ids.end());
  v.tokens.resize(static_cast<size_t>(tokenizer.vocab_size()));
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    const std::string_view bytes = tokenizer.token_bytes(id);
    std::string& token = v.tokens[static_cast<size_t>(id)];
    if (bytes.empty()) continue;
    if (tokenizer.is_added(id)) {
      token = kSpecialMarker;
      token += bytes;
    } else if (bytes.find(kSpecialMarker) == std::string_view::npos) {  // no text holds that byte
      token = bytes;
    }
  }
  v.tokenize = [tokenizer = std::move(tokenizer)](std::string_view bytes) {
    return tokenize_exactly(tokenizer, bytes);
  };
  return v;
}

}  // namespace qvl::grammar
