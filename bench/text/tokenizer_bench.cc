// Tokenizer speed: load time, and MB/s of one thread on prose, code, Chinese and a mixture.
//
//   tokenizer_bench [VOCABULARY_FOLDER [TEXT_FILE...]]
//
// Without arguments: the vocabulary that tests/parity/fetch_vocabulary.sh fetched; prose is this project's
// own documentation, code its own sources, Chinese is drawn from the vocabulary's Han tokens. First checks
// that the ids decode to the text and that a cold tokenizer agrees with a warm one, then times. "scan" is the
// speed of UTF-8 check, NFC and splitting alone: the bound that BPE can approach. Times are processor time of
// the thread, the best of several rounds, so that a busy machine disturbs less.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <random>
#include <string>
#include <vector>

#include "qvl/base/error.h"
#include "qvl/base/mapped_file.h"
#include "qvl/text/nfc.h"
#include "qvl/text/pretokenizer.h"
#include "qvl/text/tokenizer.h"
#include "qvl/text/unicode.h"

namespace {

using qvl::text::Tokenizer;

double cpu_ms() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) * 1e3 + static_cast<double>(t.tv_nsec) * 1e-6;
}

template <typename Fn>
double best_ms(int rounds, Fn fn) {
  double best = 1e300;
  for (int i = 0; i < rounds; ++i) {
    const double start = cpu_ms();
    fn();
    best = std::min(best, cpu_ms() - start);
  }
  return best;
}

std::string read_tree(const std::filesystem::path& root, std::initializer_list<const char*> extensions,
                      size_t limit_bytes) {
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(root)) {
    for (const char* extension : extensions) {
      if (entry.is_regular_file() && entry.path().extension() == extension) files.push_back(entry.path());
    }
  }
  std::sort(files.begin(), files.end());
  std::string text;
  for (const auto& file : files) {
    text += qvl::read_file(file, size_t{16} << 20);
    if (text.size() > limit_bytes) break;
  }
  return text;
}

// Sentences of the vocabulary's Han tokens, frequent ones often (Zipf), with the usual punctuation.
std::string chinese(const Tokenizer& tokenizer, size_t size_bytes) {
  std::vector<std::string_view> words;
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    const std::string_view s = tokenizer.token_bytes(id);
    bool han = !s.empty() && qvl::text::is_valid_utf8(s);
    for (size_t i = 0; han && i < s.size();) {
      const qvl::text::Decoded d = qvl::text::decode_valid(s.data() + i);
      han = d.code_point >= 0x4E00 && d.code_point < 0xA000;
      i += d.length_bytes;
    }
    if (han) words.push_back(s);
  }
  std::string text;
  if (words.empty()) return text;
  std::mt19937 rng(1);
  const double n = static_cast<double>(words.size());
  while (text.size() < size_bytes) {
    const int length = 4 + static_cast<int>(rng() % 12);
    for (int i = 0; i < length; ++i) {
      const double u = static_cast<double>(rng()) / 4294967296.0;
      text += words[static_cast<size_t>(std::min(n - 1, std::exp(u * std::log(n)) - 1))];
    }
    text += rng() % 3 ? "\uFF0C" : "\u3002";
    if (rng() % 10 == 0) text += "\n";
  }
  return text;
}

void measure(const char* name, const Tokenizer& tokenizer, const Tokenizer& cold, const std::string& text) {
  const std::vector<int32_t> ids = tokenizer.encode_text(text);
  if (ids != cold.encode_text(text) || ids != tokenizer.encode_text(text)) {
    qvl::fail(qvl::ErrorCode::kMismatch, name, "a cold and a warm tokenizer disagree");
  }
  std::string buffer, repaired;
  qvl::text::append_sanitized(text, repaired);
  if (tokenizer.decode(ids, false) != qvl::text::normalize_nfc(repaired, buffer)) {
    qvl::fail(qvl::ErrorCode::kMismatch, name, "the ids do not decode to the text");
  }
  const double megabytes = static_cast<double>(text.size()) * 1e-6;
  const double encode = best_ms(9, [&] { tokenizer.encode_text(text); });
  size_t pieces = 0;
  const double scan = best_ms(9, [&] {
    pieces = qvl::text::is_valid_utf8(repaired) ? 0 : 1;
    qvl::text::PieceScanner scanner(qvl::text::normalize_nfc(repaired, buffer));
    while (!scanner.next().empty()) ++pieces;
  });
  std::string out;
  const double decode = best_ms(9, [&] { out = tokenizer.decode(ids, false); });
  std::printf(
      "%-10s %6.2f MB %8zu ids %5.2f B/id   encode %7.1f MB/s   scan %7.1f MB/s (encode is %2.0f%% of it)   "
      "decode %7.1f MB/s\n",
      name, megabytes, ids.size(), static_cast<double>(text.size()) / static_cast<double>(ids.size()),
      megabytes / encode * 1e3, megabytes / scan * 1e3, 100 * scan / encode, megabytes / decode * 1e3);
}

void run(int argc, char** argv) {
  const std::filesystem::path root = QVL_SOURCE_DIR;
  const std::filesystem::path folder =
      argc > 1 ? std::filesystem::path(argv[1]) : root / "build/third_party/qwen3-tokenizer";
  const Tokenizer cold = Tokenizer::load(folder);
  const double load = best_ms(5, [&] { Tokenizer::load(folder); });
  const Tokenizer tokenizer = Tokenizer::load(folder);
  std::printf("load %.0f ms, %d tokens\n", load, tokenizer.vocab_size());
  if (argc > 2) {
    for (int i = 2; i < argc; ++i)
      measure(argv[i], tokenizer, cold, qvl::read_file(argv[i], size_t{256} << 20));
    return;
  }
  const size_t limit = 1 << 20;
  const std::string prose = read_tree(root / "docs", {".md"}, limit);
  const std::string code = read_tree(root / "src", {".cc", ".h"}, limit);
  const std::string han = chinese(tokenizer, limit);
  measure("prose", tokenizer, cold, prose);
  measure("code", tokenizer, cold, code);
  if (!han.empty()) measure("chinese", tokenizer, cold, han);
  std::string mixed;
  for (size_t at = 0; at < limit; at += 2000) {
    for (const std::string* s : {&prose, &code, &han}) {
      if (!s->empty()) mixed += s->substr(at % s->size(), 2000);
    }
  }
  measure("mixed", tokenizer, cold, mixed);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    run(argc, argv);
  } catch (const qvl::Error& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
  return 0;
}
