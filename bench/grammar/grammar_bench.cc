// What a grammar costs an answer: making the engine, compiling a schema, and the mask of one token.
//
//   grammar_bench [VOCABULARY_FOLDER [ROUNDS]]
//
// Without arguments: the published vocabulary that tests/parity/fetch_vocabulary.sh fetched. For each grammar
// an answer is given; it is first checked that every token of it was allowed and that it could end, then it
// is stepped through again and again. Times are processor time of the thread: median, 99th percentile, most,
// over all tokens of all rounds; "first" is the median over the tokens of answers whose grammar had only just
// been compiled.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "qvl/base/error.h"
#include "qvl/grammar/grammar.h"

namespace {

using namespace qvl;

double cpu_ms(clockid_t clock = CLOCK_THREAD_CPUTIME_ID) {
  timespec t;
  clock_gettime(clock, &t);
  return static_cast<double>(t.tv_sec) * 1e3 + static_cast<double>(t.tv_nsec) * 1e-6;
}

double at(std::vector<double> values, double share) {
  std::sort(values.begin(), values.end());
  return values.empty() ? 0 : values[static_cast<size_t>(share * static_cast<double>(values.size() - 1))];
}

struct Case {
  const char* name;
  std::function<grammar::Grammar()> compile;
  std::string answer;
};

std::string boxes(int count) {
  std::string json = "{\"boxes\": [";
  for (int i = 0; i < count; ++i) {
    json += std::string(i == 0 ? "" : ", ") + "{\"bbox_2d\": [" + std::to_string(11 * i % 1000) + ", 24, " +
            std::to_string(400 + i) + ", 988], \"label\": \"a red circle, number " + std::to_string(i) +
            "\"}";
  }
  return json + "]}";
}

// Steps through `ids`; appends the processor time of each mask.
void step(grammar::Grammar& grammar, const std::vector<int32_t>& ids, std::vector<float>& logits,
          std::vector<double>& mask_ms, bool validate) {
  for (const int32_t id : ids) {
    std::fill(logits.begin(), logits.end(), 0.0f);
    const double begin = cpu_ms();
    grammar.mask(logits);
    mask_ms.push_back(cpu_ms() - begin);
    if (validate && logits[static_cast<size_t>(id)] != 0.0f)
      fail(ErrorCode::kMismatch, "bench", "a token is masked");
    grammar.accept(id);
  }
  if (validate && !grammar.may_end()) fail(ErrorCode::kMismatch, "bench", "the answer may not end");
}

int run(const std::filesystem::path& folder, int rounds) {
  const text::Tokenizer tokenizer = text::Tokenizer::load(folder);
  const std::vector<int32_t> ends = {tokenizer.require_token("<|im_end|>"),
                                     tokenizer.require_token("<|endoftext|>")};
  const double begin = cpu_ms();
  const grammar::GrammarEngine engine(tokenizer, ends);
  std::printf("engine: %.0f ms for %d tokens\n", cpu_ms() - begin, tokenizer.vocab_size());

  const Json box_schema =
      Json::parse(R"({"type":"object","properties":{"boxes":{"type":"array","items":{"type":"object",
    "properties":{"bbox_2d":{"type":"array","items":{"type":"integer","minimum":0,"maximum":1000},"minItems":4,
    "maxItems":4},"label":{"type":"string"}},"required":["bbox_2d","label"],"additionalProperties":false}}},
    "required":["boxes"],"additionalProperties":false})");
  const Json receipt = Json::parse(R"({"type":"object","properties":{"shop":{"type":"string","maxLength":60},
    "date":{"type":"string","format":"date"},"currency":{"enum":["EUR","USD","GBP","JPY"]},"items":{"type":"array",
    "items":{"type":"object","properties":{"name":{"type":"string"},"count":{"type":"integer","minimum":1},
    "price":{"type":"number","minimum":0}},"required":["name","count","price"],"additionalProperties":false}},
    "total":{"type":"number"}},"required":["shop","date","currency","items","total"],"additionalProperties":false})");
  const std::string receipt_json =
      "{\n  \"shop\": \"Bäckerei Müller\",\n  \"date\": \"2025-03-07\",\n  \"currency\": \"EUR\",\n  "
      "\"items\": [\n"
      "    {\"name\": \"Roggenbrot\", \"count\": 2, \"price\": 4.35},\n    {\"name\": \"Brezel\", \"count\": "
      "12, "
      "\"price\": 0.95}\n  ],\n  \"total\": 20.1\n}";
  const std::vector<grammar::Tool> tools = {
      {"get_weather",
       Json::parse(R"({"type":"object","properties":{"city":{"type":"string"},"days":{"type":"integer"}},
        "required":["city"]})")},
      {"find_objects", box_schema}};
  const std::string call =
      "<tool_call>\n{\"name\": \"find_objects\", \"arguments\": " + boxes(3) + "}\n</tool_call>";
  const std::vector<Case> cases = {
      {"json_object", [&] { return engine.json_object(); }, receipt_json},
      {"boxes", [&] { return engine.json_schema(box_schema); }, boxes(6)},
      {"receipt", [&] { return engine.json_schema(receipt); }, receipt_json},
      {"compact",
       [&] {
         return engine.json_schema(Json::parse(R"({"type":"array","items":{"type":"string"}})"),
                                   {.whitespace = grammar::Whitespace::kCompact});
       },
       "[\"one\",\"two hundred and twenty-two\",\"three\"]"},
      {"tools, required",
       [&] { return engine.tool_calls(tools, {.kind = grammar::ToolChoice::Kind::kRequired}); }, call},
      {"tools, auto", [&] { return engine.tool_calls(tools); }, "Let me look at that picture.\n" + call},
  };

  std::printf("%-16s %8s %12s %12s %12s %12s %12s\n", "grammar", "tokens", "compile ms", "first ms",
              "median ms", "99% ms", "most ms");
  std::vector<float> logits(static_cast<size_t>(tokenizer.vocab_size()) + 267);
  for (const Case& c : cases) {
    const std::vector<int32_t> ids = tokenizer.encode(c.answer);
    grammar::Grammar checked = c.compile();
    std::vector<double> all, first, compile;
    step(checked, ids, logits, all, true);
    all.clear();
    for (int round = 0; round < 3; ++round) {
      const double start = cpu_ms(CLOCK_PROCESS_CPUTIME_ID);  // a grammar is compiled on a thread of its own
      grammar::Grammar fresh = c.compile();
      compile.push_back(cpu_ms(CLOCK_PROCESS_CPUTIME_ID) - start);
      step(fresh, ids, logits, first, false);
    }
    // As a server uses it: compiled once, cloned for each answer.
    const grammar::Grammar compiled = c.compile();
    for (int round = 0; round < rounds; ++round) {
      grammar::Grammar answer = compiled.clone();
      step(answer, ids, logits, all, false);
    }
    std::printf("%-16s %8zu %12.2f %12.3f %12.3f %12.3f %12.3f\n", c.name, ids.size(), at(compile, 0.5),
                at(first, 0.5), at(all, 0.5), at(all, 0.99), at(all, 1));
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const std::filesystem::path folder =
        argc > 1 ? std::filesystem::path(argv[1])
                 : std::filesystem::path(QVL_SOURCE_DIR) / "build/third_party/qwen3-tokenizer";
    return run(folder, argc > 2 ? std::atoi(argv[2]) : 20);
  } catch (const Error& e) {
    std::fprintf(stderr, "grammar_bench: %s\n", e.what());
    return 1;
  }
}
