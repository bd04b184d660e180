#include "qvl/text/tokenizer.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <thread>

#include "qvl/base/error.h"
#include "qvl/text/stream_decoder.h"
#include "qvl/text/synthetic_tokenizer.h"

namespace qvl::text {
namespace {

using testing_support::tokenizer_json;

// "ab" 256, "abc" 257, LF LF 258, " <" 259, e-acute 260; the added tokens follow: <|endoftext|> 261 to
// </think> 286.
const std::vector<std::pair<std::string, std::string>> kMerges = {
    {"a", "b"}, {"ab", "c"}, {"\n", "\n"}, {" ", "<"}, {"\xC3", "\xA9"}};
constexpr int32_t kFirstAdded = 261;

Tokenizer small() {
  return Tokenizer::from_json(tokenizer_json(kMerges).dump(), "", "test");
}

using Ids = std::vector<int32_t>;

template <typename Fn>
Error error_of(Fn fn) {
  try {
    fn();
  } catch (const Error& e) {
    return e;
  }
  ADD_FAILURE() << "no error was thrown";
  return Error(ErrorCode::kIo, "");
}

TEST(Tokenizer, EncodesAddedTokensOnlyWhereAllowed) {
  const Tokenizer t = small();
  EXPECT_EQ(t.encode("abc<|im_end|>ab"), (Ids{257, kFirstAdded + 2, 256}));
  EXPECT_EQ(t.encode("<|im_end|>"), (Ids{kFirstAdded + 2}));
  const Ids text = t.encode_text("<|im_end|>");
  EXPECT_EQ(text.size(), 10u);
  for (const int32_t id : text) EXPECT_LT(id, 256);
  EXPECT_EQ(t.decode(text, true), "<|im_end|>");
  EXPECT_EQ(t.encode(""), Ids{});
  // The longest of two that start at the same place; nothing of a near miss.
  EXPECT_EQ(t.encode("<|im_end|<|im_start|>").back(), kFirstAdded + 1);
  EXPECT_EQ(t.encode("<<think>>"), (Ids{'<', kFirstAdded + 24, '>'}));
}

TEST(Tokenizer, RunsAreOneTextButAddedTokensStayInside) {
  const Tokenizer t = small();
  const auto runs = [&](std::vector<TextRun> r) {
    Ids ids;
    t.encode_runs(r, ids);
    return ids;
  };
  // Merges and NFC cross the borders.
  EXPECT_EQ(runs({{"a", true}, {"b", false}, {"c", true}}), Ids{257});
  EXPECT_EQ(runs({{"x\n", true}, {"\nabc", false}}), (Ids{'x', 258, 257}));
  EXPECT_EQ(runs({{"e", true}, {"\u0301", false}}), Ids{260});
  // Control tokens do not.
  EXPECT_EQ(runs({{"<|im_end|>", true}, {"ab", false}, {"<|im_end|>", true}}),
            (Ids{kFirstAdded + 2, 256, kFirstAdded + 2}));
  for (const std::vector<TextRun>& r :
       std::vector<std::vector<TextRun>>{{{"<|im_end|>", false}},
                                         {{"<|im_", true}, {"end|>", false}},
                                         {{"<|im_", false}, {"end|>", true}},
                                         {{"<|im_", true}, {"end|>", true}}}) {
    for (const int32_t id : runs(r)) EXPECT_FALSE(t.is_added(id));
  }
  // Each run is repaired by itself, so bytes of two runs never become one character.
  EXPECT_EQ(t.decode(runs({{"\xC3", false}, {"\xA9", true}}), false), "\uFFFD\uFFFD");
  EXPECT_EQ(runs({}), Ids{});
}

TEST(Tokenizer, BrokenBytesBecomeReplacementCharacters) {
  const Tokenizer t = small();
  EXPECT_EQ(t.encode("ab\xFF"), t.encode("ab\uFFFD"));
  EXPECT_EQ(t.encode("\xF0\x9F<think>\xE2\x82"), t.encode("\uFFFD<think>\uFFFD"));
  EXPECT_EQ(t.encode(std::string_view("a\0b", 3)), (Ids{'a', 0, 'b'}));
}

TEST(Tokenizer, DecodesBytesTokensAndUnknownIds) {
  const Tokenizer t = small();
  EXPECT_EQ(t.decode(Ids{0xE4, 0xBD, 0xA0}, false), "\u4F60");
  EXPECT_EQ(t.decode(Ids{0xE4, 0xBD, 'x'}, false), "\uFFFDx");
  EXPECT_EQ(t.decode(Ids{256, kFirstAdded + 2, kFirstAdded + 24, 999999, -5, 257}, false),
            "ab<|im_end|><think>abc");
  EXPECT_EQ(t.decode(Ids{256, kFirstAdded + 2, kFirstAdded + 24, 257}, true), "ab<think>abc");
}

TEST(Tokenizer, LooksUpTokens) {
  const Tokenizer t = small();
  EXPECT_EQ(t.token_id("<|image_pad|>"), kFirstAdded + 12);
  EXPECT_EQ(t.token_id("abc"), 257);
  EXPECT_EQ(t.token_id("abcd"), std::nullopt);
  EXPECT_EQ(t.token_bytes(259), " <");
  EXPECT_EQ(t.token_bytes(kFirstAdded), "<|endoftext|>");
  EXPECT_EQ(t.vocab_size(), kFirstAdded + 26);
  EXPECT_TRUE(t.is_special(kFirstAdded));
  EXPECT_FALSE(t.is_special(kFirstAdded + 25));
  EXPECT_TRUE(t.is_added(kFirstAdded + 25));
  EXPECT_FALSE(t.is_added(260));
  const Error e = error_of([&] { t.require_token("<|nothing|>"); });
  EXPECT_EQ(e.code(), ErrorCode::kMismatch);
  EXPECT_NE(std::string(e.what()).find("<|nothing|>"), std::string::npos);
}

TEST(Tokenizer, MergesAsStringsAreTheSame) {
  const Tokenizer t = Tokenizer::from_json(tokenizer_json(kMerges, true).dump(), "", "test");
  const std::string text = "abcab \n\n <\u00E9e\u0301<think>";
  EXPECT_EQ(t.encode(text), small().encode(text));
}

// Escapes, white space, and more merges than are looked up at a time: what a file spells otherwise is the same.
TEST(Tokenizer, HowAFileIsSpelledDoesNotMatter) {
  std::vector<std::pair<std::string, std::string>> merges = kMerges;
  for (char c = 'a'; c <= 'z'; ++c) {
    for (const char* end : {"\"", "\\", "\xC3", " "}) merges.push_back({std::string(1, c), end});
  }
  const Json json = tokenizer_json(merges);
  const Tokenizer plain = Tokenizer::from_json(json.dump(), "", "test");
  // ensure_ascii writes the stand-ins of 68 bytes, and of those from 161 on, as \u escapes.
  for (const std::string& text : {json.dump(-1, ' ', true), json.dump(3), tokenizer_json(merges, true).dump(1, '\t', true)}) {
    const Tokenizer other = Tokenizer::from_json(text, "", "test");
    ASSERT_EQ(other.vocab_size(), plain.vocab_size());
    for (int32_t id = 0; id < plain.vocab_size(); ++id) {
      ASSERT_EQ(other.token_bytes(id), plain.token_bytes(id)) << id;
      ASSERT_EQ(other.is_special(id), plain.is_special(id)) << id;
    }
    const std::string sample = "q\" z\\ b\xC3\xA9 abc\n\n <|im_start|> x y\" k\\";
    EXPECT_EQ(other.encode(sample), plain.encode(sample));
  }
}

// Cut anywhere, or one character changed: it loads or is refused as a file, whatever stands where.
TEST(Tokenizer, DamagedFilesLoadOrAreRefused) {
  const std::string good = tokenizer_json(kMerges).dump();
  uint32_t state = 1;
  const auto next = [&state](size_t below) {
    state = state * 1664525u + 1013904223u;
    return static_cast<size_t>(state >> 8) % below;
  };
  int refused = 0;
  for (int i = 0; i < 1500; ++i) {
    std::string text = good;
    if (i % 3 == 0) {
      text.resize(next(good.size()));
    } else {
      constexpr std::string_view kCharacters = "\"\\{}[],:0-e x\x01\xC3\xFF";
      text[next(text.size())] = kCharacters[next(kCharacters.size())];
    }
    try {
      Tokenizer::from_json(text, "", "t");
    } catch (const Error& e) {
      ++refused;
      EXPECT_TRUE(e.code() == ErrorCode::kFormat || e.code() == ErrorCode::kUnsupported || e.code() == ErrorCode::kLimit)
          << e.what();
    }
  }
  EXPECT_GT(refused, 500);
}

TEST(Tokenizer, CacheNeverChangesTheAnswer) {
  const Tokenizer warm = small();
  std::string text;
  for (int i = 0; i < 5000; ++i)
    text += " w" + std::to_string(i * 7919) + "abcabab" + std::string(i % 30, 'a') + "\n";
  const Ids first = warm.encode_text(text);
  EXPECT_EQ(warm.encode_text(text), first);
  EXPECT_EQ(small().encode_text(text), first);
  EXPECT_EQ(warm.decode(first, false), text);
}

TEST(Tokenizer, ThreadsMayShareIt) {
  const Tokenizer t = small();
  const std::string text = "abc ab <|im_end|> caf\u00E9 cafe\u0301 123 \n\n\n x";
  const Ids want = t.encode(text);
  std::vector<std::thread> threads;
  std::vector<int> wrong(32, 0);
  for (size_t k = 0; k < wrong.size(); ++k) {
    threads.emplace_back([&, k] {
      for (int i = 0; i < 200; ++i) wrong[k] += t.encode(text) != want;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, std::vector<int>(32, 0));
}

// One change to a good file, and what the message must name.
struct BadFile {
  const char* name;
  std::function<void(Json&)> change;
  ErrorCode code;
  const char* says;
};

TEST(Tokenizer, RejectsWhatItDoesNotImplement) {
  const std::vector<BadFile> files = {
      {"unigram", [](Json& j) { j["model"]["type"] = "Unigram"; }, ErrorCode::kUnsupported, "Unigram"},
      {"nfkc", [](Json& j) { j["normalizer"]["type"] = "NFKC"; }, ErrorCode::kUnsupported, "NFKC"},
      {"no normalizer", [](Json& j) { j["normalizer"] = nullptr; }, ErrorCode::kUnsupported, "normalizer"},
      {"pattern", [](Json& j) { j["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "\\p{N}{1,3}"; },
       ErrorCode::kUnsupported, "{1,3}"},
      {"split behaviour", [](Json& j) { j["pre_tokenizer"]["pretokenizers"][0]["behavior"] = "Removed"; },
       ErrorCode::kUnsupported, "Removed"},
      {"prefix space", [](Json& j) { j["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = true; },
       ErrorCode::kUnsupported, "add_prefix_space"},
      {"metaspace",
       [](Json& j) {
         j["pre_tokenizer"] = {{"type", "Metaspace"}};
       },
       ErrorCode::kUnsupported, "Metaspace"},
      {"third step",
       [](Json& j) {
         j["pre_tokenizer"]["pretokenizers"].push_back({{"type", "Digits"}});
       },
       ErrorCode::kUnsupported, "Digits"},
      {"decoder",
       [](Json& j) {
         j["decoder"] = {{"type", "WordPiece"}};
       },
       ErrorCode::kUnsupported, "WordPiece"},
      {"post processor",
       [](Json& j) {
         j["post_processor"] = {{"type", "TemplateProcessing"}};
       },
       ErrorCode::kUnsupported, "TemplateProcessing"},
      {"dropout", [](Json& j) { j["model"]["dropout"] = 0.1; }, ErrorCode::kUnsupported, "dropout"},
      {"ignore merges", [](Json& j) { j["model"]["ignore_merges"] = true; }, ErrorCode::kUnsupported,
       "ignore_merges"},
      {"subword prefix", [](Json& j) { j["model"]["continuing_subword_prefix"] = "##"; },
       ErrorCode::kUnsupported, "##"},
      {"lstrip", [](Json& j) { j["added_tokens"][3]["lstrip"] = true; }, ErrorCode::kUnsupported, "lstrip"},
      {"byte missing", [](Json& j) { j["model"]["vocab"].erase("A"); }, ErrorCode::kUnsupported, "byte 65"},
      {"no model", [](Json& j) { j.erase("model"); }, ErrorCode::kFormat, "model"},
      {"no vocab", [](Json& j) { j["model"].erase("vocab"); }, ErrorCode::kFormat, "vocab"},
      {"vocab list", [](Json& j) { j["model"]["vocab"] = Json::array(); }, ErrorCode::kFormat, "vocab"},
      {"id text", [](Json& j) { j["model"]["vocab"]["A"] = "65"; }, ErrorCode::kFormat, "\"A\""},
      {"id negative", [](Json& j) { j["model"]["vocab"]["A"] = -1; }, ErrorCode::kLimit, "-1"},
      {"id huge", [](Json& j) { j["model"]["vocab"]["A"] = 1 << 21; }, ErrorCode::kLimit, "2097152"},
      {"id twice", [](Json& j) { j["model"]["vocab"]["A"] = 66; }, ErrorCode::kFormat, "66"},
      {"merge of one", [](Json& j) { j["model"]["merges"][0] = Json::array({"a"}); }, ErrorCode::kFormat,
       "merge"},
      {"merge of numbers", [](Json& j) { j["model"]["merges"][0] = 3; }, ErrorCode::kFormat, "merge"},
      {"merge of two spaces", [](Json& j) { j["model"]["merges"][0] = "a b c"; }, ErrorCode::kFormat,
       "one space"},
      {"merge without result", [](Json& j) { j["model"]["merges"][0] = "x y"; }, ErrorCode::kFormat,
       "result in the vocab"},
      {"merge not bytes",
       [](Json& j) {
         j["model"]["merges"][0] = Json::array({"\u4F60", "a"});
       },
       ErrorCode::kFormat, "byte-level"},
      {"added without id", [](Json& j) { j["added_tokens"][0].erase("id"); }, ErrorCode::kFormat, "id"},
      {"added empty", [](Json& j) { j["added_tokens"][0]["content"] = ""; }, ErrorCode::kFormat, "content"},
      {"added twice", [](Json& j) { j["added_tokens"][1]["content"] = "<|endoftext|>"; }, ErrorCode::kFormat,
       "<|endoftext|>"},
      {"added on a base id", [](Json& j) { j["added_tokens"][0]["id"] = 65; }, ErrorCode::kFormat, "65"},
  };
  for (const BadFile& f : files) {
    Json json = tokenizer_json(kMerges);
    f.change(json);
    const Error e = error_of([&] { Tokenizer::from_json(json.dump(), "", "folder/tokenizer.json"); });
    EXPECT_EQ(e.code(), f.code) << f.name << ": " << e.what();
    EXPECT_NE(std::string(e.what()).find(f.says), std::string::npos) << f.name << ": " << e.what();
    EXPECT_EQ(std::string(e.what()).rfind("[folder/tokenizer.json", 0), 0u) << e.what();
  }
}

TEST(Tokenizer, RejectsTextThatIsNotJson) {
  const std::string good = tokenizer_json(kMerges).dump();
  for (const std::string& text : {std::string(), std::string("{"), std::string("[]"),
                                  good.substr(0, good.size() / 2), std::string("\xFF\xFE")}) {
    EXPECT_EQ(error_of([&] { Tokenizer::from_json(text, "", "t"); }).code(), ErrorCode::kFormat);
  }
}

TEST(Tokenizer, ConfigAddsTokensAndMustAgree) {
  const std::string json = tokenizer_json(kMerges).dump();
  const Tokenizer t =
      Tokenizer::from_json(json, R"({"added_tokens_decoder": {"300": {"content": "<|new|>", "special": true},
      "261": {"content": "<|endoftext|>", "special": true}}})",
                           "t");
  EXPECT_EQ(t.encode("<|new|>"), Ids{300});
  EXPECT_TRUE(t.is_special(300));
  EXPECT_EQ(t.vocab_size(), 301);
  EXPECT_EQ(t.token_bytes(299), "");
  const auto rejects = [&](const char* config, ErrorCode code) {
    EXPECT_EQ(error_of([&] { Tokenizer::from_json(json, config, "t"); }).code(), code) << config;
  };
  rejects(R"({"added_tokens_decoder": {"300": {"content": "<|im_end|>"}}})", ErrorCode::kFormat);
  rejects(R"({"added_tokens_decoder": {"261": {"content": "<|other|>"}}})", ErrorCode::kFormat);
  rejects(R"({"added_tokens_decoder": {"x1": {"content": "<|new|>"}}})", ErrorCode::kFormat);
  rejects(R"({"added_tokens_decoder": {"300": {"content": "<|new|>", "rstrip": true}}})",
          ErrorCode::kUnsupported);
  rejects(R"({"added_tokens_decoder": {"300": 5}})", ErrorCode::kFormat);
  rejects(R"({"split_special_tokens": true})", ErrorCode::kUnsupported);
  rejects(R"([1])", ErrorCode::kFormat);
  rejects(R"({)", ErrorCode::kFormat);
}

TEST(Tokenizer, LoadsAFolder) {
  const std::filesystem::path dir = std::filesystem::path(testing::TempDir()) / "qvl_text_tokenizer";
  std::filesystem::create_directories(dir);
  std::ofstream(dir / "tokenizer.json") << tokenizer_json(kMerges).dump(1);
  std::ofstream(dir / "tokenizer_config.json")
      << R"({"added_tokens_decoder": {"287": {"content": "<|new|>"}}})";
  EXPECT_EQ(Tokenizer::load(dir).encode("abc<|new|>"), (Ids{257, 287}));
  std::filesystem::remove(dir / "tokenizer.json");
  EXPECT_EQ(error_of([&] { Tokenizer::load(dir); }).code(), ErrorCode::kNotFound);
  std::filesystem::remove_all(dir);
}

TEST(StreamDecoder, NeverCutsACharacter) {
  const Tokenizer t = small();
  StreamDecoder d(t);
  std::vector<std::string> out;
  for (const int32_t id : {0xF0, 0x9F, 0x91, 0xA8, int('x'), 0xE2, 0x80, int('y'), 260})
    out.push_back(d.push(id));
  EXPECT_EQ(out, (std::vector<std::string>{"", "", "", "\U0001F468", "x", "", "", "\uFFFDy", "\u00E9"}));
  EXPECT_EQ(d.flush(), "");
  d.push(0xF0);
  d.push(0x9F);
  EXPECT_EQ(d.flush(), "\uFFFD");
  EXPECT_EQ(d.push('a'), "a");  // as new
}

TEST(StreamDecoder, SkipsSpecialTokensOnlyIfAsked) {
  const Tokenizer t = small();
  StreamDecoder skip(t), keep(t, false);
  EXPECT_EQ(skip.push(kFirstAdded + 2), "");
  EXPECT_EQ(keep.push(kFirstAdded + 2), "<|im_end|>");
  EXPECT_EQ(skip.push(kFirstAdded + 24), "<think>");
  // A skipped token between two halves of a character does not part them, as in decode.
  EXPECT_EQ(skip.push(0xC3), "");
  EXPECT_EQ(skip.push(kFirstAdded), "");
  EXPECT_EQ(skip.push(0xA9), "\u00E9");
}

TEST(StreamDecoder, JoinedOutputEqualsDecodeForAnyBytes) {
  const Tokenizer t = small();
  uint32_t state = 12345;
  for (int round = 0; round < 20000; ++round) {
    Ids ids;
    for (int i = 0; i < 8; ++i) {
      state = state * 1664525 + 1013904223;
      // Mostly lead and continuation bytes, so that every kind of broken sequence occurs.
      const uint32_t r = state >> 16;
      ids.push_back(r % 8 == 0 ? static_cast<int32_t>(r / 8 % 287)
                               : static_cast<int32_t>(0x80 + r / 8 % 0x80));
    }
    for (const bool skip_special : {false, true}) {
      StreamDecoder d(t, skip_special);
      std::string out;
      for (const int32_t id : ids) {
        const std::string part = d.push(id);
        ASSERT_TRUE(is_valid_utf8(part));
        out += part;
      }
      out += d.flush();
      ASSERT_EQ(out, t.decode(ids, skip_special));
    }
  }
}

}  // namespace
}  // namespace qvl::text
