#include "qvl/text/tokenizer.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "qvl/base/error.h"
#include "qvl/base/mapped_file.h"
#include "qvl/base/tensor.h"
#include "qvl/text/bpe.h"
#include "qvl/text/nfc.h"
#include "qvl/text/pretokenizer.h"
#include "qvl/text/unicode.h"
#include "qvl/text/vocabulary.h"

namespace qvl::text {
namespace {

constexpr size_t kMaxFileBytes = size_t{256} << 20;
// Positions inside one piece are 32-bit; no context window comes near.
constexpr size_t kMaxInputBytes = size_t{512} << 20;

// Finds added tokens: the longest that starts at a position.
class AddedTokenMatcher {
 public:
  AddedTokenMatcher() = default;
  explicit AddedTokenMatcher(const std::vector<AddedToken>& tokens) {
    for (const AddedToken& t : tokens) {
      Bucket& bucket = buckets_[static_cast<unsigned char>(t.text[0])];
      bucket.tokens.push_back(&t);
      starts_.push_back(t.text[0]);
    }
    for (Bucket& b : buckets_) {
      std::stable_sort(b.tokens.begin(), b.tokens.end(), [](const AddedToken* x, const AddedToken* y) {
        return x->text.size() > y->text.size();
      });
    }
    std::sort(starts_.begin(), starts_.end());
    starts_.erase(std::unique(starts_.begin(), starts_.end()), starts_.end());
  }

  // The first position at or after `from` where a token may start; text.size() if none.
  size_t candidate(std::string_view text, size_t from) const {
    const size_t at = starts_.size() == 1 ? text.find(starts_[0], from) : text.find_first_of(starts_, from);
    return std::min(at, text.size());
  }
  const AddedToken* match(std::string_view text, size_t at) const {
    const std::string_view rest = text.substr(at);
    for (const AddedToken* t : buckets_[static_cast<unsigned char>(rest[0])].tokens) {
      if (rest.size() >= t->text.size() && (t->text.size() == 1 || rest[1] == t->text[1]) &&
          std::memcmp(rest.data(), t->text.data(), t->text.size()) == 0) {
        return t;
      }
    }
    return nullptr;
  }

 private:
  struct Bucket {
    std::vector<const AddedToken*> tokens;  // longest first
  };
  std::array<Bucket, 256> buckets_;
  std::string starts_;  // the distinct first bytes
};

}  // namespace

struct Tokenizer::Impl {
  Vocabulary vocabulary;
  MergeTable merges;
  JoinTable joins;
  AddedTokenMatcher matcher;
  std::vector<const AddedToken*> added_by_id;  // null: a base token or none
  mutable ScratchPool pool;

  explicit Impl(Vocabulary v)
      : vocabulary(std::move(v)), merges(vocabulary.merges, vocabulary.byte_ids), matcher(vocabulary.added) {
    for (const MergeTable::Merge& m : vocabulary.merges) joins.add_token(vocabulary.base.bytes(m.result));
    vocabulary.merges = {};
    int32_t size = vocabulary.base.size();
    for (const AddedToken& t : vocabulary.added) size = std::max(size, t.id + 1);
    added_by_id.assign(size, nullptr);
    for (const AddedToken& t : vocabulary.added) added_by_id[t.id] = &t;
  }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  const AddedToken* added(int32_t id) const {
    return id >= 0 && static_cast<size_t>(id) < added_by_id.size() ? added_by_id[id] : nullptr;
  }

  // A stretch of valid UTF-8 without added tokens.
  void encode_plain(std::string_view stretch, ScratchPool::Scratch& scratch,
                    std::vector<int32_t>& ids) const {
    PieceScanner scanner(normalize_nfc(stretch, scratch.normalized));
    for (std::string_view piece = scanner.next(); !piece.empty(); piece = scanner.next()) {
      // Words come again, sentences without blanks do not: those are cached by their parts.
      const bool three_byte_script = static_cast<unsigned char>(piece.back()) >= 0x80 && piece.size() > 9 &&
                                     static_cast<unsigned char>(piece[piece.size() - 3]) >= 0xE0;
      if (piece.size() <= PieceCache::kMaxPieceBytes && !three_byte_script) {
        encode_cached(piece, scratch, ids);
        continue;
      }
      while (!piece.empty()) {
        const size_t size = joins.first_part(piece);
        encode_part(piece.substr(0, size), scratch, ids);
        piece.remove_prefix(size);
      }
    }
  }

  void encode_part(std::string_view part, ScratchPool::Scratch& scratch, std::vector<int32_t>& ids) const {
    if (part.size() > PieceCache::kMaxPieceBytes) {
      bpe_encode(merges, part, scratch.bpe, ids);
    } else {
      encode_cached(part, scratch, ids);
    }
  }

  void encode_cached(std::string_view part, ScratchPool::Scratch& scratch, std::vector<int32_t>& ids) const {
    const PieceCache::Key key = PieceCache::key_of(part);
    if (const PieceCache::Entry* hit = scratch.cache.find(key)) {
      if (hit->count == 1) {
        ids.push_back(hit->ids[0]);
      } else {
        ids.insert(ids.end(), hit->ids, hit->ids + hit->count);
      }
      return;
    }
    const size_t before = ids.size();
    bpe_encode(merges, part, scratch.bpe, ids);
    scratch.cache.put(key, ids.data() + before, ids.size() - before);
  }

  void encode_runs(std::span<const TextRun> runs, ScratchPool::Scratch& scratch,
                   std::vector<int32_t>& ids) const {
    size_t total = 0;
    for (const TextRun& run : runs) {
      if (run.text.size() > kMaxInputBytes - total) {
        fail(ErrorCode::kLimit, "tokenizer", "text length", "at most 512 MiB", "more");
      }
      total += run.text.size();
    }
    // U+FFFD is three bytes, so repairing may triple the text; positions still fit 32 bits.
    std::string_view text;
    std::string& joined = scratch.joined;
    joined.clear();
    const bool in_place = runs.size() == 1 && is_valid_utf8(runs[0].text);
    if (in_place) text = runs[0].text;
    size_t plain_begin = 0, at = 0;
    for (const TextRun& run : runs) {
      if (!in_place) {
        append_sanitized(run.text, joined);
        text = joined;
      }
      if (!run.match_added_tokens) {
        at = text.size();
        continue;
      }
      while ((at = matcher.candidate(text, at)) < text.size()) {
        const AddedToken* token = matcher.match(text, at);
        if (token == nullptr) {
          ++at;
          continue;
        }
        if (at > plain_begin) encode_plain(text.substr(plain_begin, at - plain_begin), scratch, ids);
        ids.push_back(token->id);
        at += token->text.size();
        plain_begin = at;
      }
    }
    if (text.size() > plain_begin) encode_plain(text.substr(plain_begin), scratch, ids);
  }
};

Tokenizer Tokenizer::load(const std::filesystem::path& checkpoint_dir) {
  const std::filesystem::path path = checkpoint_dir / "tokenizer.json";
  const std::filesystem::path config_path = checkpoint_dir / "tokenizer_config.json";
  const MappedFile file = MappedFile::open(path);
  if (file.bytes().size() > kMaxFileBytes) {
    fail(ErrorCode::kLimit, path.string(), "file size", "at most 256 MiB",
         std::to_string(file.bytes().size()) + " bytes");
  }
  std::string config;
  if (std::error_code ec; std::filesystem::exists(config_path, ec))
    config = read_file(config_path, kMaxFileBytes);
  // A copy: what is read twice must not change in between.
  AlignedBuffer copy(file.bytes().size() + kVocabularyPaddingBytes);
  std::ranges::copy(file.bytes(), copy.data());
  const std::string_view json(reinterpret_cast<const char*>(copy.data()), file.bytes().size());
  return Tokenizer(std::make_shared<const Impl>(parse_vocabulary(json, config, path.string(), copy.size_bytes())));
}

Tokenizer Tokenizer::from_json(std::string_view tokenizer_json, std::string_view tokenizer_config_json,
                               std::string_view where) {
  return Tokenizer(
      std::make_shared<const Impl>(parse_vocabulary(tokenizer_json, tokenizer_config_json, where)));
}

void Tokenizer::encode_runs(std::span<const TextRun> runs, std::vector<int32_t>& ids) const {
  std::unique_ptr<ScratchPool::Scratch> scratch = impl_->pool.take();
  impl_->encode_runs(runs, *scratch, ids);
  impl_->pool.give_back(std::move(scratch));
}

std::vector<int32_t> Tokenizer::encode(std::string_view utf8) const {
  const TextRun run{utf8, true};
  std::vector<int32_t> ids;
  ids.reserve(utf8.size() / 3 + 16);
  encode_runs({&run, 1}, ids);
  return ids;
}

std::vector<int32_t> Tokenizer::encode_text(std::string_view utf8) const {
  const TextRun run{utf8, false};
  std::vector<int32_t> ids;
  ids.reserve(utf8.size() / 3 + 16);
  encode_runs({&run, 1}, ids);
  return ids;
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special) const {
  std::string bytes;
  for (const int32_t id : ids) {
    if (!skip_special || !is_special(id)) bytes.append(token_bytes(id));
  }
  if (is_valid_utf8(bytes)) return bytes;
  std::string out;
  append_sanitized(bytes, out);
  return out;
}

std::optional<int32_t> Tokenizer::token_id(std::string_view text) const {
  for (const AddedToken& t : impl_->vocabulary.added) {
    if (t.text == text) return t.id;
  }
  return impl_->vocabulary.base.find(text);
}

int32_t Tokenizer::require_token(std::string_view text) const {
  if (const auto id = token_id(text)) return *id;
  fail(ErrorCode::kMismatch, "tokenizer", "vocabulary", "a token \"" + std::string(text) + "\"", "none",
       "is this a Qwen3-VL tokenizer?");
}

std::string_view Tokenizer::token_bytes(int32_t id) const {
  if (const AddedToken* t = impl_->added(id)) return t->text;
  return impl_->vocabulary.base.bytes(id);
}

bool Tokenizer::is_special(int32_t id) const {
  const AddedToken* t = impl_->added(id);
  return t != nullptr && t->special;
}

bool Tokenizer::is_added(int32_t id) const {
  return impl_->added(id) != nullptr;
}

int32_t Tokenizer::vocab_size() const {
  return static_cast<int32_t>(impl_->added_by_id.size());
}

}  // namespace qvl::text
