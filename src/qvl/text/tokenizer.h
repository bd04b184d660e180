// Text to token ids and back: NFC, the Qwen pre-tokenisation pattern, byte-level BPE, added tokens. The first
// step of a prompt and the last of an answer (spec 7.1 to 7.3).
//
// Input is UTF-8. Bytes that are not UTF-8 are read as the reference reads a string decoded with replacement:
// each maximal invalid part becomes U+FFFD.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace qvl::text {

// A stretch of input. Neighbouring runs are encoded as one string, so tokens may span their border; added
// tokens are found only inside a run that allows them. That is how a prompt stays exact for ordinary text and
// still never takes a control token from what a user typed.
struct TextRun {
  std::string_view text;
  bool match_added_tokens = false;
};

// Immutable after load; every const method may be called from any thread at once. Cheap to copy (shared).
class Tokenizer {
 public:
  // Reads tokenizer.json and, where present, added tokens and flags of tokenizer_config.json in
  // `checkpoint_dir`. Throws kNotFound or kIo without a readable file, kFormat for a broken one, kUnsupported
  // for any tokenizer that is not NFC + the Qwen pattern + byte-level BPE, kLimit above 2^21 tokens.
  static Tokenizer load(const std::filesystem::path& checkpoint_dir);
  // The same from the texts of the two files; `tokenizer_config_json` may be empty. `where` names the source
  // in error messages.
  static Tokenizer from_json(std::string_view tokenizer_json, std::string_view tokenizer_config_json,
                             std::string_view where);

  // As the reference's encode of a rendered prompt: added tokens become their ids wherever they stand.
  std::vector<int32_t> encode(std::string_view utf8) const;
  // User text: "<|im_end|>" is nine ordinary characters and more, never a control token.
  std::vector<int32_t> encode_text(std::string_view utf8) const;
  // Runs joined, see TextRun. Appends to `ids`.
  void encode_runs(std::span<const TextRun> runs, std::vector<int32_t>& ids) const;

  // Bytes of all tokens joined, invalid parts replaced by U+FFFD. Ids without text (the padding of the
  // embedding matrix) yield nothing, as in the reference.
  std::string decode(std::span<const int32_t> ids, bool skip_special) const;

  // The id of an added token's text or of a base token's bytes.
  std::optional<int32_t> token_id(std::string_view text) const;
  // Like token_id for tokens a model cannot do without; throws kMismatch.
  int32_t require_token(std::string_view text) const;
  // Raw bytes, possibly half a character; empty for an id without text. Valid while the tokenizer lives.
  std::string_view token_bytes(int32_t id) const;
  // True for tokens that skip_special leaves out.
  bool is_special(int32_t id) const;
  // True for every token of the added list, special or not.
  bool is_added(int32_t id) const;
  // Largest known id + 1 (151669 for the published vocabulary; the model's logits may be wider).
  int32_t vocab_size() const;

 private:
  struct Impl;
  explicit Tokenizer(std::shared_ptr<const Impl> impl) : impl_(std::move(impl)) {}
  std::shared_ptr<const Impl> impl_;
};

}  // namespace qvl::text
