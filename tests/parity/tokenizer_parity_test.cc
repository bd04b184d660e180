// The tokenizer against the reference library with the published vocabulary: thousands of strings, ids exact.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <fstream>
#include <iostream>
#include <map>
#include <thread>

#include "parity_data.h"
#include "qvl/text/stream_decoder.h"
#include "qvl/text/tokenizer.h"

namespace qvl::text {
namespace {

using parity::golden;
using parity::vocabulary_dir;

std::string from_hex(const std::string& hex) {
  std::string out;
  for (size_t i = 0; i + 1 < hex.size(); i += 2)
    out.push_back(static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16)));
  return out;
}

std::string stream(const Tokenizer& t, const std::vector<int32_t>& ids, bool skip_special) {
  StreamDecoder decoder(t, skip_special);
  std::string out;
  for (const int32_t id : ids) out += decoder.push(id);
  return out + decoder.flush();
}

const Tokenizer& published() {
  static const Tokenizer t = Tokenizer::load(vocabulary_dir());
  return t;
}

TEST(TokenizerParity, EveryGeneratedStringHasTheReferenceIds) {
  const auto path = vocabulary_dir() / "strings.jsonl";
  QVL_NEED_FETCHED(path);
  const Tokenizer& t = published();
  std::ifstream file(path);
  std::string line;
  ASSERT_TRUE(std::getline(file, line));
  const Json head = parse_json(line, path.string());
  std::map<std::string, int> seen, wrong;
  int reported = 0;
  const auto report = [&](const Json& row, const char* what, const std::string& detail) {
    ++wrong[row["kind"].get<std::string>()];
    if (++reported <= 10)
      ADD_FAILURE() << what << " differ for a string of kind " << row["kind"] << ", hex "
                    << row.value("hex", "").substr(0, 400) << detail;
  };
  while (std::getline(file, line)) {
    const Json row = parse_json(line, path.string());
    ++seen[row["kind"].get<std::string>()];
    const auto want = row["ids"].get<std::vector<int32_t>>();
    if (row.contains("hex")) {
      const std::vector<int32_t> got = t.encode(from_hex(row["hex"]));
      if (got != want) {
        report(
            row, "ids",
            "\n  want " + Json(want).dump().substr(0, 300) + "\n  got  " + Json(got).dump().substr(0, 300));
        continue;
      }
    }
    const std::string decoded = from_hex(row["decoded_hex"]);
    const std::string skipped = from_hex(row["skip_hex"]);
    if (t.decode(want, false) != decoded || t.decode(want, true) != skipped) report(row, "decoded texts", "");
    if (stream(t, want, false) != decoded || stream(t, want, true) != skipped)
      report(row, "streamed texts", "");
  }
  int strings = 0;
  for (const auto& [kind, n] : seen) {
    if (kind != "ids") strings += n;
  }
  EXPECT_EQ(strings, head["strings"].get<int>()) << "the file is cut off";
  EXPECT_GE(strings, 5000);
  EXPECT_GE(seen.size(), 13u);
  EXPECT_TRUE(wrong.empty()) << Json(wrong).dump();
  std::cout << "[          ] " << strings << " strings and " << seen["ids"]
            << " id lists compared with tokenizers " << head["tokenizers"] << "\n";
}

// The added tokens of the vocabulary and only those are control tokens; text never becomes one.
TEST(TokenizerParity, UserTextNeverYieldsAnAddedToken) {
  const auto path = vocabulary_dir() / "strings.jsonl";
  QVL_NEED_FETCHED(path);
  const Tokenizer& t = published();
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  int with_added = 0;
  while (std::getline(file, line)) {
    const Json row = parse_json(line, path.string());
    if (!row.contains("hex")) continue;
    const std::string input = from_hex(row["hex"]);
    const std::vector<int32_t> ids = t.encode_text(input);
    for (const int32_t id : ids) ASSERT_FALSE(t.is_added(id)) << row["hex"];
    const std::vector<int32_t> reference = row["ids"].get<std::vector<int32_t>>();
    const bool has_added =
        std::any_of(reference.begin(), reference.end(), [&](int32_t id) { return t.is_added(id); });
    with_added += has_added;
    if (has_added) continue;
    ASSERT_EQ(ids, reference) << row["hex"];
  }
  EXPECT_GT(with_added, 300);
}

TEST(TokenizerParity, GoldenCases) {
  QVL_NEED_FETCHED(vocabulary_dir() / "tokenizer.json");
  const Tokenizer& t = published();
  const Json cases = golden("cases.json");
  ASSERT_EQ(cases.size(), 30u);
  for (const Json& c : cases) {
    const auto ids = c["ids"].get<std::vector<int32_t>>();
    EXPECT_EQ(t.encode(c["text"].get<std::string>()), ids) << c["text"];
    EXPECT_EQ(t.decode(ids, false), c["decoded"].get<std::string>());
    EXPECT_EQ(t.decode(ids, true), c["decoded_skip"].get<std::string>());
  }
}

TEST(TokenizerParity, GoldenAddedTokens) {
  QVL_NEED_FETCHED(vocabulary_dir() / "tokenizer.json");
  const Tokenizer& t = published();
  const Json added = golden("added.json");
  ASSERT_EQ(added.size(), 26u);
  for (const auto& [key, value] : added.items()) {
    const std::string content = value["content"];
    const int32_t id = std::stoi(key);
    EXPECT_EQ(t.token_id(content), id);
    EXPECT_EQ(t.token_bytes(id), content);
    EXPECT_TRUE(t.is_added(id));
    EXPECT_EQ(t.is_special(id), value["special"].get<bool>()) << content;
    EXPECT_EQ(t.encode(content), std::vector<int32_t>{id});
    EXPECT_GT(t.encode_text(content).size(), 1u);
  }
  EXPECT_EQ(t.vocab_size(), 151669);
  EXPECT_FALSE(t.is_added(151642));
  EXPECT_EQ(t.token_bytes(151669), "");
  EXPECT_EQ(t.token_bytes(-1), "");
}

TEST(TokenizerParity, GoldenStream) {
  QVL_NEED_FETCHED(vocabulary_dir() / "tokenizer.json");
  const Json s = golden("stream.json");
  StreamDecoder decoder(published(), false);
  const auto ids = s["ids"].get<std::vector<int32_t>>();
  for (size_t i = 0; i < ids.size(); ++i) {
    const auto bytes = s["bytes"][i].get<std::vector<uint8_t>>();
    EXPECT_EQ(published().token_bytes(ids[i]), std::string(bytes.begin(), bytes.end()));
    EXPECT_EQ(decoder.push(ids[i]), s["emitted"][i].get<std::string>()) << i;
  }
  EXPECT_EQ(decoder.flush(), s["emitted"][ids.size()].get<std::string>());
}

TEST(TokenizerParity, ThreadsShareOneTokenizer) {
  QVL_NEED_FETCHED(vocabulary_dir() / "tokenizer.json");
  const Json cases = golden("cases.json");
  std::vector<std::thread> threads;
  std::atomic<int> wrong = 0;
  for (int k = 0; k < 8; ++k) {
    threads.emplace_back([&, k] {
      for (int round = 0; round < 50; ++round) {
        const Json& c = cases[(round * 7 + k) % cases.size()];
        if (published().encode(c["text"].get<std::string>()) != c["ids"].get<std::vector<int32_t>>()) ++wrong;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

}  // namespace
}  // namespace qvl::text
