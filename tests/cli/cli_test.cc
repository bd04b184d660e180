// The command line is a contract (ARCHITECTURE.md, "Command line"): flags, exit codes, the JSON object, the
// names of the trace, and that stdout carries nothing but the answer.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <set>

#include "fixture.h"
#include "process.h"
#include "qvl/base/json.h"
#include "qvl/checkpoint/safetensors.h"

namespace qvl::cli {
namespace {

namespace fs = std::filesystem;

const std::string kSecond = (kSource / "examples/second.png").string();
const fs::path kGolden = kSource / "tests/fixtures/golden";
const std::string kTiny = (kGolden / "model").string();

class Cli : public FolderTest {
 protected:
  Cli() : FolderTest("qvl_cli_test") {}
  std::string file(const std::string& name, const std::string& contents) const {
    std::ofstream(folder_ / name, std::ios::binary) << contents;
    return (folder_ / name).string();
  }
  std::string path(const std::string& name) const { return (folder_ / name).string(); }
};

size_t lines(const std::string& text) {
  return static_cast<size_t>(std::count(text.begin(), text.end(), '\n'));
}

// Exit code, silence on stdout, and exactly one line on stderr that holds every one of `parts`.
void expect_refusal(const Outcome& o, int code, const std::vector<std::string>& parts) {
  EXPECT_EQ(o.exit_code, code) << o.err;
  EXPECT_EQ(o.out, "");
  EXPECT_EQ(lines(o.err), 1U) << o.err;
  for (const std::string& part : parts)
    EXPECT_NE(o.err.find(part), std::string::npos) << part << " not in: " << o.err;
}

std::vector<std::string> keys(const Json& object) {
  std::vector<std::string> out;
  for (const auto& [key, value] : object.items()) out.push_back(key);
  return out;
}
using Keys = std::vector<std::string>;

// ---- run

TEST_F(Cli, RunPrintsTheAnswerAndNothingElse) {
  const Outcome o = qvl({"run", "-i", kShapes, "Describe this image."});
  EXPECT_EQ(o.exit_code, 0) << o.err;
  EXPECT_EQ(o.err, "");
  ASSERT_GT(o.out.size(), 1U);
  EXPECT_EQ(o.out.back(), '\n');
  EXPECT_EQ(o.out.find('\x1b'), std::string::npos);
  EXPECT_EQ(o.out.find("<|"), std::string::npos);
  // The model may be named, and the result is the same.
  EXPECT_EQ(qvl({"run", kSmall, "-i", kShapes, "Describe this image."}).out, o.out);
  EXPECT_EQ(qvl({"run", kSmall, "Describe this image.", "-i", kShapes}).out, o.out);
  // Even when stderr is a terminal.
  EXPECT_EQ(qvl({"run", "-i", kShapes, "Describe this image."}, {.terminal_stderr = true}).out, o.out);
  // From standard input, on one thread, in small chunks.
  EXPECT_EQ(qvl({"run", "-i", kShapes, "-"}, {.input = "Describe this image.\n"}).out, o.out);
  EXPECT_EQ(qvl({"run", "-i", kShapes, "--threads", "1", "--prefill-chunk", "7", "Describe this image."}).out,
            o.out);
}

TEST_F(Cli, RunJsonIsTheContract) {
  const Outcome o = qvl({"run", "--json", "-i", kFirst, "-i", kShapes, "What differs?", "--threads", "2"});
  ASSERT_EQ(o.exit_code, 0) << o.err;
  EXPECT_EQ(o.err, "");
  const Json j = parse_json(o.out, "stdout");
  EXPECT_EQ(keys(j), (Keys{"text", "token_ids", "finish_reason", "usage", "images", "timings", "decode",
                           "kv_cache", "peak_rss_mb", "engine", "grounding"}));
  EXPECT_EQ(keys(j["decode"]), (Keys{"steps", "drafted_tokens", "accepted_tokens"}));
  EXPECT_EQ(keys(j["usage"]), (Keys{"prompt_tokens", "completion_tokens", "image_tokens", "cached_tokens"}));
  EXPECT_EQ(keys(j["timings"]),
            (Keys{"load_ms", "preprocess_ms", "vision_ms", "vision_patches_per_s", "prefill_ms",
                  "prefill_tokens_per_s", "ttft_ms", "decode_tokens_per_s"}));
  EXPECT_EQ(keys(j["engine"]), (Keys{"vision", "text", "isa", "threads"}));
  ASSERT_TRUE(j["text"].is_string());
  ASSERT_TRUE(j["token_ids"].is_array());
  EXPECT_EQ(j["token_ids"].size(), j["usage"]["completion_tokens"].get<size_t>());
  EXPECT_TRUE(j["finish_reason"] == "stop" || j["finish_reason"] == "length");
  EXPECT_EQ(j["usage"]["cached_tokens"], 0);
  // One block of 256 positions: 4 layers, 2 heads of 32 keys and values in bf16.
  EXPECT_EQ(j["kv_cache"], Json({{"dtype", "bf16"}, {"bytes", 256 * 2 * 4 * 2 * 32 * 2}}));
  ASSERT_EQ(j["images"].size(), 2U);
  int64_t image_tokens = 0;
  for (const Json& image : j["images"]) {
    EXPECT_EQ(keys(image), (Keys{"width", "height", "resized_width", "resized_height", "grid_thw", "patches",
                                 "tokens", "encode_ms", "cached"}));
    const auto grid = image["grid_thw"].get<std::vector<int64_t>>();
    ASSERT_EQ(grid.size(), 3U);
    EXPECT_EQ(image["patches"], grid[0] * grid[1] * grid[2]);
    EXPECT_EQ(image["tokens"], grid[0] * grid[1] * grid[2] / 4);
    EXPECT_EQ(image["resized_height"], grid[1] * 16);
    EXPECT_EQ(image["resized_width"], grid[2] * 16);
    EXPECT_EQ(image["cached"], false);
    EXPECT_GT(image["encode_ms"].get<double>(), 0);
    image_tokens += image["tokens"].get<int64_t>();
  }
  // In the order of the command line.
  EXPECT_EQ(j["images"][0]["width"], 128);
  EXPECT_EQ(j["images"][1]["width"], 192);
  EXPECT_EQ(j["usage"]["image_tokens"], image_tokens);
  EXPECT_GT(j["usage"]["prompt_tokens"].get<int64_t>(), image_tokens);
  for (const auto& [name, value] : j["timings"].items()) {
    EXPECT_TRUE(value.is_number()) << name;
    EXPECT_GE(value.get<double>(), 0) << name;
  }
  EXPECT_GT(j["timings"]["ttft_ms"].get<double>(), j["timings"]["vision_ms"].get<double>());
  EXPECT_GT(j["peak_rss_mb"].get<double>(), 1);
  EXPECT_EQ(j["engine"]["threads"], 2);
  EXPECT_TRUE(j["engine"]["vision"].get<std::string>().starts_with("native"));
  EXPECT_TRUE(j["engine"]["text"].get<std::string>().starts_with("native"));
}

TEST_F(Cli, GuessingTokensTakesFewerStepsAndChangesNoToken) {
  const auto answer = [](std::vector<std::string> arguments) {
    const Outcome o = qvl(arguments);
    EXPECT_EQ(o.exit_code, 0) << o.err;
    return parse_json(o.out, "stdout");
  };
  const std::string picture = (kSource / "tests/fixtures/small/eval/001.png").string();
  const std::vector<std::vector<std::string>> ways = {
      {"--greedy"},
      {"--temperature", "1.5", "--seed", "7", "--repetition-penalty", "1.1"},
      {"--temperature", "0.7", "--seed", "8", "--stop", "\""},
  };
  for (const auto& way : ways) {
    std::vector<std::string> question = {"run", "--json", "-i", picture, "Describe the image. The text \"AQG\"."};
    question.insert(question.end(), way.begin(), way.end());
    const auto with = [&](const std::string& speculate) {
      std::vector<std::string> all = question;
      all.insert(all.end(), {"--speculate", speculate});
      return answer(all);
    };
    const Json off = with("off");
    EXPECT_EQ(off["decode"]["drafted_tokens"], 0);
    EXPECT_EQ(off["decode"]["steps"], off["token_ids"].size() - 1);
    for (const char* speculate : {"1", "4", "15", "auto"}) {
      SCOPED_TRACE(speculate);
      const Json on = with(speculate);
      EXPECT_EQ(on["token_ids"], off["token_ids"]);
      EXPECT_EQ(on["text"], off["text"]);
      EXPECT_EQ(on["finish_reason"], off["finish_reason"]);
      if (way.front() == "--greedy" && std::string(speculate) == "15") {
        EXPECT_LT(on["decode"]["steps"], off["decode"]["steps"]);
        EXPECT_GT(on["decode"]["accepted_tokens"], 0);
      }
    }
  }
  expect_refusal(qvl({"run", "--speculate", "16", "Hello"}), 2, {"--speculate", "auto, off or 1..15", "16"});
  expect_refusal(qvl({"run", "--speculate", "on", "Hello"}), 2, {"--speculate", "on"});
}

TEST_F(Cli, GuessesComeFromEarlierAnswersToo) {
  const std::string eval = (kSource / "tests/fixtures/small/eval").string();
  const auto scores = [&](const char* speculate) {
    Json j = parse_json(qvl({"eval", eval, "--json", "--limit", "60", "--speculate", speculate}).out, "stdout");
    Json decode = j["decode"];
    j.erase("decode");
    return std::pair(j, decode);
  };
  const auto [off, plain] = scores("off");
  const auto [on, guessed] = scores("15");
  EXPECT_EQ(on, off);  // every score
  EXPECT_EQ(plain["steps"], plain["tokens"]);
  EXPECT_EQ(guessed["tokens"], plain["tokens"]);
  EXPECT_LT(guessed["steps"].get<double>(), 0.6 * plain["steps"].get<double>());
}

TEST_F(Cli, TheTextOfJsonIsTheAnswer) {
  const std::vector<std::string> question = {"run", "-i", kShapes, "How many shapes are there?"};
  std::vector<std::string> json = question;
  json.push_back("--json");
  EXPECT_EQ(qvl(question).out, parse_json(qvl(json).out, "stdout")["text"].get<std::string>() + "\n");
}

// tests/fixtures/small/greedy.json: what the reference library says to the same questions in float32.
TEST_F(Cli, RunSaysWhatTheReferenceSays) {
  const Json fixture = parse_json_file(kSource / "tests/fixtures/small/greedy.json");
  int compared = 0;
  for (const Json& c : fixture["cases"]) {
    std::vector<std::string> arguments = {"run", kSmall,         "--json", "--greedy",       "--max-tokens",
                                          "80",  "--text-dtype", "fp32",   "--vision-dtype", "fp32"};
    std::string text;
    bool expressible = c["f32"]["min_margin"].get<double>() > 1e-3;  // below it, rounding decides
    for (const Json& m : c["messages"]) {
      const Json& content = m["content"];
      if (m["role"] == "system" && content.is_string()) {
        arguments.insert(arguments.end(), {"--system", content.get<std::string>()});
        continue;
      }
      // One user turn with its pictures before its text is what `run` can say.
      expressible = expressible && m["role"] == "user" && text.empty();
      if (content.is_string()) {
        text = content;
        continue;
      }
      for (const Json& part : content) {
        if (part["type"] == "text") {
          expressible = expressible && text.empty();
          text = part["text"];
        } else {
          expressible = expressible && part["type"] == "image" && text.empty();
          if (expressible)
            arguments.insert(arguments.end(), {"-i", (kSource / part["image"].get<std::string>()).string()});
        }
      }
    }
    if (!expressible) continue;
    arguments.push_back(text);
    SCOPED_TRACE(c["kind"].get<std::string>() + ": " + text);
    const Outcome o = qvl(arguments);
    ASSERT_EQ(o.exit_code, 0) << o.err;
    const Json j = parse_json(o.out, "stdout");
    EXPECT_EQ(j["token_ids"], c["f32"]["tokens"]);
    if (c["f32"]["tokens"] == c["bf16"]["tokens"]) {
      EXPECT_EQ(j["text"], c["text"]);
    }
    EXPECT_EQ(j["usage"]["prompt_tokens"], c["input_ids"].size());
    ASSERT_EQ(j["images"].size(), c["image_grid_thw"].size());
    for (size_t i = 0; i < j["images"].size(); ++i)
      EXPECT_EQ(j["images"][i]["grid_thw"], c["image_grid_thw"][i]);
    ++compared;
  }
  EXPECT_GE(compared, 20);
}

TEST_F(Cli, LengthSeedAndEndOptions) {
  auto answer = [&](std::vector<std::string> more) {
    std::vector<std::string> arguments = {"run", "--json", "-i", kShapes, "Describe this image."};
    arguments.insert(arguments.end(), more.begin(), more.end());
    const Outcome o = qvl(arguments);
    EXPECT_EQ(o.exit_code, 0) << o.err;
    return parse_json(o.out, "stdout");
  };
  const Json plain = answer({});
  const Json two = answer({"--max-tokens", "2"});
  EXPECT_EQ(two["finish_reason"], "length");
  EXPECT_EQ(two["token_ids"].size(), 2U);
  EXPECT_EQ(two["token_ids"][0], plain["token_ids"][0]);
  const Json greedy = answer({"--greedy"});
  EXPECT_EQ(greedy["token_ids"], plain["token_ids"]);  // its generation_config.json says do_sample false
  EXPECT_EQ(answer({"--top-k", "1"})["token_ids"], plain["token_ids"]);
  const Json hot = answer({"--temperature", "8", "--top-k", "0", "--seed", "1", "--max-tokens", "24"});
  EXPECT_EQ(answer({"--temperature", "8", "--top-k", "0", "--seed", "1", "--max-tokens", "24"})["token_ids"],
            hot["token_ids"]);
  EXPECT_NE(answer({"--temperature", "8", "--top-k", "0", "--seed", "2", "--max-tokens", "24"})["token_ids"],
            hot["token_ids"]);
  const Json on = answer({"--ignore-eos", "--max-tokens", "60"});
  EXPECT_EQ(on["token_ids"].size(), 60U);
  EXPECT_EQ(on["finish_reason"], "length");
  const std::string text = plain["text"];
  ASSERT_GT(text.size(), 4U);
  const std::string stop = text.substr(text.size() / 2, 2);
  const Json stopped = answer({"--stop", stop, "--stop", "never in it"});
  EXPECT_EQ(stopped["text"], text.substr(0, text.find(stop)));
  EXPECT_EQ(stopped["finish_reason"], "stop");
}

TEST_F(Cli, PixelLimitsChangeTheGrid) {
  const Json j = parse_json(qvl({"run", "--json", "-i", kShapes, "--min-pixels", "60000", "--max-pixels",
                                 "70000", "--max-tokens", "1", "Hi"})
                                .out,
                            "stdout");
  const int64_t pixels =
      j["images"][0]["resized_width"].get<int64_t>() * j["images"][0]["resized_height"].get<int64_t>();
  EXPECT_GE(pixels, 60000);
  EXPECT_LE(pixels, 70000);
}

TEST_F(Cli, AFolderOfFramesIsAVideo) {
  fs::create_directories(folder_ / "frames");
  for (int i = 0; i < 4; ++i)
    fs::copy_file(i < 2 ? kFirst : kSecond, folder_ / "frames" / ("f" + std::to_string(i) + ".png"));
  const Outcome o = qvl({"run", "--json", "-v", path("frames"), "-i", kShapes, "--fps", "2", "--max-tokens",
                         "3", "What happens?"});
  ASSERT_EQ(o.exit_code, 0) << o.err;
  const Json j = parse_json(o.out, "stdout");
  ASSERT_EQ(j["images"].size(), 2U);
  EXPECT_EQ(j["images"][0]["grid_thw"][0], 2);
  EXPECT_EQ(j["images"][1]["grid_thw"][0], 1);
}

TEST_F(Cli, VerboseTalksOnStderrOnly) {
  const Outcome quiet = qvl({"run", "-i", kShapes, "Describe this image."});
  const Outcome loud = qvl({"run", "-i", kShapes, "Describe this image.", "--verbose"});
  EXPECT_EQ(loud.out, quiet.out);
  EXPECT_NE(loud.err.find("tokens/s"), std::string::npos) << loud.err;
  EXPECT_NE(loud.err.find("192x160"), std::string::npos) << loud.err;
}

// ---- usage errors: 2 and one line that names the option

TEST_F(Cli, UsageErrors) {
  const std::vector<std::pair<std::vector<std::string>, std::vector<std::string>>> cases = {
      {{}, {"command"}},
      {{"sing"}, {"sing", "run, chat"}},
      {{"serve", "--port", "70000"}, {"--port", "0..65535"}},
      {{"serve", "--slots", "0"}, {"--slots"}},
      {{"serve", "a", "b"}, {"b"}},
      {{"import", "a", "b"}, {"import", "export"}},
      {{"--nonsense"}, {"--nonsense"}},
      {{"run"}, {"PROMPT"}},
      {{"run", ""}, {"PROMPT", "empty"}},
      {{"run", " \n"}, {"PROMPT", "empty"}},
      {{"run", "a", "b", "c"}, {"c"}},
      {{"run", "Hi", "--nonsense"}, {"--nonsense"}},
      {{"run", "Hi", "-i"}, {"--image"}},
      {{"run", "Hi", "--top-p", "1.5"}, {"--top-p", "1.5"}},
      {{"run", "Hi", "--top-p", "nan"}, {"--top-p", "nan"}},
      {{"run", "Hi", "--top-p", "0.5x"}, {"--top-p", "0.5x"}},
      {{"run", "Hi", "--top-p", ""}, {"--top-p"}},
      {{"run", "Hi", "--min-p", "-0.1"}, {"--min-p"}},
      {{"run", "Hi", "--temperature", "-1"}, {"--temperature", "-1"}},
      {{"run", "Hi", "--top-k", "2.5"}, {"--top-k", "2.5"}},
      {{"run", "Hi", "--top-k", "-1"}, {"--top-k"}},
      {{"run", "Hi", "--max-tokens", "0"}, {"--max-tokens", "0"}},
      {{"run", "Hi", "--max-tokens", "many"}, {"--max-tokens", "many"}},
      {{"run", "Hi", "--max-tokens", "99999999999999999999"}, {"--max-tokens"}},
      {{"run", "Hi", "--seed", "-1"}, {"--seed"}},
      {{"run", "Hi", "--threads", "0"}, {"--threads"}},
      {{"run", "Hi", "--threads", "two"}, {"--threads", "two"}},
      {{"run", "Hi", "--repetition-penalty", "0"}, {"--repetition-penalty"}},
      {{"run", "Hi", "--stop", ""}, {"--stop"}},
      {{"run", "Hi", "--greedy", "--temperature", "0.5"}, {"--greedy", "--temperature"}},
      {{"run", "Hi", "--top-p", "0.5", "--top-p", "0.6"}, {"--top-p"}},
      {{"run", "Hi", "--min-pixels", "0"}, {"--min-pixels"}},
      {{"run", "Hi", "--min-pixels", "5000", "--max-pixels", "4000"}, {"--min-pixels", "5000", "4000"}},
      {{"run", "Hi", "--fps", "2"}, {"--fps"}},
      {{"run", "Hi", "--draw", "out.png"}, {"--draw", "-i"}},
      {{"run", "Hi", "-i", kShapes, "--draw", "out.jpg"}, {"--draw", ".png", "out.jpg"}},
      {{"run", "Hi", "-i", kShapes, "--draw", ""}, {"--draw", ".png"}},
      {{"run", "Hi", "-i", kShapes, "-v", "frames", "--draw", "out.png"}, {"--draw", "video"}},
      {{"run", "Hi", "--vision", "cuda"}, {"--vision", "cuda"}},
      {{"run", "Hi", "--text-dtype", "int3"}, {"--text-dtype", "int3"}},
      {{"run", "photo.png", "What is this?"}, {"photo.png", "-i photo.png"}},
      {{"run", kShapes}, {"shapes.png", "-i"}},
      {{"run", kSmall}, {"PROMPT"}},
      {{"photo.png", "What is this?"}, {"photo.png", "qvl run -i photo.png"}},
      {{"chat", "photo.png"}, {"photo.png"}},
      {{"trace", "Hi"}, {"--out"}},
      {{"trace", kSmall, "Hi", "--ids", "x.json", "--out", "y"}, {"PROMPT", "--ids"}},
      {{"trace", "--out", "y"}, {"PROMPT"}},
      {{"trace", "Hi", "--pixels", "p", "-i", kShapes, "--out", "y"}, {"--pixels"}},
      {{"synth", "9b", "out"}, {"9b", "4b"}},
      {{"synth", "2b"}, {"OUT"}},
      {{"info", "a", "b"}, {"b"}},
      {{"eval"}, {"QUESTIONS"}},
  };
  for (const auto& [arguments, parts] : cases) {
    std::string shown;
    for (const std::string& a : arguments) shown += a + " ";
    SCOPED_TRACE(shown);
    expect_refusal(qvl(arguments), 2, parts);
  }
}

TEST_F(Cli, HelpAndVersion) {
  for (const std::vector<std::string>& arguments : {std::vector<std::string>{"--help"},
                                                    {"run", "--help"},
                                                    {"chat", "--help"},
                                                    {"info", "--help"},
                                                    {"trace", "--help"},
                                                    {"eval", "-h"},
                                                    {"synth", "-h"}}) {
    const Outcome o = qvl(arguments);
    EXPECT_EQ(o.exit_code, 0);
    EXPECT_GT(o.out.size(), 200U);
    EXPECT_EQ(o.err, "");
  }
  const std::string help = qvl({"run", "--help"}).out;
  for (const char* option :
       {"--image",      "--video",      "--threads",     "--vision",     "--text",       "--vision-dtype",
        "--text-dtype", "--max-tokens", "--temperature", "--top-p",      "--top-k",      "--min-p",
        "--seed",       "--greedy",     "--min-pixels",  "--max-pixels", "--ignore-eos", "--json",
        "--verbose",    "--stop",       "--system",      "--draw"}) {
    EXPECT_NE(help.find(option), std::string::npos) << option;
  }
  EXPECT_EQ(qvl({"--version"}).out.substr(0, 4), "qvl ");
}

// ---- failures: 1 and one line that names the culprit

TEST_F(Cli, BadPictures) {
  const std::string junk = file("junk.png", "this is no picture");
  const std::string empty = file("empty.png", "");
  std::string png = [] {
    std::ifstream in(kShapes, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(in), {});
  }();
  const std::string cut = file("cut.png", png.substr(0, png.size() / 2));
  expect_refusal(qvl({"run", "-i", path("absent.png"), "Hi"}), 1, {"absent.png"});
  expect_refusal(qvl({"run", "-i", folder_.string(), "Hi"}), 1, {folder_.filename().string()});
  expect_refusal(qvl({"run", "-i", junk, "Hi"}), 1, {"junk.png"});
  expect_refusal(qvl({"run", "-i", empty, "Hi"}), 1, {"empty.png"});
  expect_refusal(qvl({"run", "-i", cut, "Hi"}), 1, {"cut.png"});
  expect_refusal(qvl({"run", "-v", kShapes, "Hi"}), 1, {"shapes.png"});
  expect_refusal(qvl({"run", "-v", path("nowhere"), "Hi"}), 1, {"nowhere"});
  fs::create_directories(folder_ / "hollow");
  expect_refusal(qvl({"run", "-v", path("hollow"), "Hi"}), 1, {"hollow"});
  expect_refusal(qvl({"run", "-i", kShapes, "--min-pixels", "900000", "Hi"}), 1, {"900000"});
}

TEST_F(Cli, BadModels) {
  expect_refusal(qvl({"run", path("absent"), "Hi"}), 1, {"absent"});
  expect_refusal(qvl({"run", file("model.bin", "x"), "Hi"}), 1, {"model.bin"});
  fs::create_directories(folder_ / "bare");
  expect_refusal(qvl({"run", path("bare"), "Hi"}), 1, {"bare"});
  expect_refusal(qvl({"info", path("bare")}), 1, {"bare"});
  fs::create_directories(folder_ / "broken");
  fs::copy(kSmall, folder_ / "broken", fs::copy_options::recursive);
  fs::resize_file(folder_ / "broken/model.safetensors", 1000000);
  expect_refusal(qvl({"run", path("broken"), "Hi"}), 1, {"model.safetensors"});
  expect_refusal(qvl({"info", path("broken")}), 1, {"model.safetensors"});
  // The golden model has no tokenizer.
  expect_refusal(qvl({"run", kTiny, "Hi"}), 1, {"tokenizer"});
  expect_refusal(qvl({"run", "--vision", "onnx", "Hi"}), 1, {"--vision onnx", "package", "qvl export"});
  expect_refusal(qvl({"run", "--text", "onnx", "Hi"}), 1, {"--text"});
  expect_refusal(qvl({"run", "Hi"}, {.environment = {"QVL_SMALL_MODEL=/nowhere/small"}}), 1,
                 {"/nowhere/small"});
}

TEST_F(Cli, KernelsCanBeForced) {
  const Outcome scalar =
      qvl({"run", "--json", "--max-tokens", "4", "Hello"}, {.environment = {"QVL_KERNELS=scalar"}});
  ASSERT_EQ(scalar.exit_code, 0) << scalar.err;
  EXPECT_EQ(parse_json(scalar.out, "stdout")["engine"]["isa"], "scalar");
  expect_refusal(qvl({"run", "Hello"}, {.environment = {"QVL_KERNELS=quantum"}}), 1, {"quantum"});
}

TEST_F(Cli, APromptBeyondTheContextIsRefused) {
  std::string long_prompt;
  for (int i = 0; i < 6000; ++i) long_prompt += "word ";
  expect_refusal(qvl({"run", "-"}, {.input = long_prompt}), 1, {"4096"});
}

TEST_F(Cli, AFullDiskIsAnErrorAndAClosedPipeIsNot) {
  const std::string command =
      std::string("'") + QVL_BINARY_DIR + "/qvl' run Hello > /dev/full 2> '" + path("err") + "'";
  EXPECT_EQ(WEXITSTATUS(std::system(command.c_str())), 1);
  std::ifstream err(path("err"));
  const std::string said((std::istreambuf_iterator<char>(err)), {});
  EXPECT_NE(said.find("stdout"), std::string::npos) << said;
  const Outcome closed =
      qvl({"run", "--ignore-eos", "--max-tokens", "4000", "Hello"}, {.close_stdout_early = true});
  EXPECT_EQ(closed.exit_code, 128 + SIGPIPE);
  EXPECT_EQ(closed.err, "");
}

TEST_F(Cli, AProgressBarOnATerminalAndNowhereElse) {
  std::string prompt;
  for (int i = 0; i < 1500; ++i) prompt += "a ";
  RunOptions slow{.input = prompt, .terminal_stderr = true, .environment = {"QVL_KERNELS=scalar"}};
  const std::vector<std::string> arguments = {"run", "--threads", "1", "--max-tokens", "1", "-"};
  const Outcome shown = qvl(arguments, slow);
  ASSERT_EQ(shown.exit_code, 0) << shown.err;
  EXPECT_NE(shown.err.find("prefill ["), std::string::npos) << shown.err;
  EXPECT_NE(shown.err.find("tokens"), std::string::npos);
  EXPECT_TRUE(shown.err.ends_with("\r\x1b[K")) << shown.err;  // wiped
  EXPECT_EQ(shown.out.find('\x1b'), std::string::npos);
  slow.terminal_stderr = false;
  const Outcome silent = qvl(arguments, slow);
  EXPECT_EQ(silent.err, "");
  EXPECT_EQ(silent.out, shown.out);
}

// ---- Ctrl-C

TEST_F(Cli, CtrlCEndsTheAnswerCleanly) {
  const Outcome o =
      qvl({"run", "--ignore-eos", "--max-tokens", "4000", "Hello"}, {.interrupt_after_bytes = 10});
  EXPECT_EQ(o.exit_code, 130) << o.err;
  ASSERT_GT(o.out.size(), 10U);
  EXPECT_EQ(o.out.back(), '\n');
  EXPECT_EQ(o.err, "");
}

// ---- chat

TEST_F(Cli, ChatFromAPipe) {
  const Outcome o =
      qvl({"chat"}, {.input = "/image " + kShapes + "\nDescribe this image.\n\n/reset\nHello\n"});
  EXPECT_EQ(o.exit_code, 0) << o.err;
  EXPECT_EQ(lines(o.out), 2U) << o.out;
  const std::string described = qvl({"run", "-i", kShapes, "Describe this image."}).out;
  EXPECT_EQ(o.out.substr(0, described.size()), described);
  EXPECT_EQ(o.out.substr(described.size()), qvl({"run", "Hello"}).out);
}

TEST_F(Cli, ChatKeepsItsHistoryInTheCache) {
  const Outcome o = qvl({"chat", "--verbose", "-i", kShapes},
                        {.input = "Describe this image.\nHow many shapes are there?\n"});
  ASSERT_EQ(o.exit_code, 0) << o.err;
  // Statistics of both turns: the second takes the picture and the first turn from the cache.
  const size_t second = o.err.rfind("prompt: ");
  ASSERT_NE(second, o.err.find("prompt: ")) << o.err;
  int tokens = 0, visual = 0, cached = 0;
  ASSERT_EQ(
      sscanf(o.err.c_str() + second, "prompt: %d tokens (%d visual), %d cached", &tokens, &visual, &cached),
      3)
      << o.err;
  EXPECT_EQ(visual, 30);
  EXPECT_GT(cached, visual);
  EXPECT_LT(tokens - cached, 40);
  EXPECT_NE(o.err.find("cached", o.err.rfind("image: 192x160")), std::string::npos);
}

TEST_F(Cli, ChatReadsTheNextTurnsBeginningWhileItsUserThinks) {
  struct Turn {
    int tokens = 0, visual = 0, cached = 0;
    std::string out;
  };
  const auto second_turn = [&](RunOptions options) {
    const Outcome o = qvl({"chat", "--verbose", "-i", kShapes, "--max-tokens", "30", "--greedy"}, options);
    EXPECT_EQ(o.exit_code, 0) << o.err;
    EXPECT_EQ(lines(o.out), 2U) << o.out;
    Turn turn{.out = o.out};
    const size_t at = o.err.rfind("prompt: ");
    if (at == std::string::npos || at == o.err.find("prompt: ") ||
        sscanf(o.err.c_str() + at, "prompt: %d tokens (%d visual), %d cached", &turn.tokens, &turn.visual, &turn.cached) != 3)
      ADD_FAILURE() << o.err;
    return turn;
  };
  const std::string first = "Describe this image.\n", second = "How many shapes are there?\n";
  const Turn at_once = second_turn({.input = first + second});
  Turn later;
  // On a busy machine the pause may be too short to read anything.
  for (double pause_s = 0.5; pause_s < 20 && later.cached <= at_once.cached; pause_s *= 3)
    later = second_turn({.input = first, .later_input = second, .later_s = pause_s});
  EXPECT_EQ(later.out, at_once.out);
  EXPECT_EQ(later.tokens, at_once.tokens);
  EXPECT_GE(later.cached, at_once.cached + 4) << "the marks around the answer and the question were read afterwards";
  EXPECT_LT(later.cached, later.tokens - 5);
}

TEST_F(Cli, ChatReadsAPictureWhileItsQuestionIsTyped) {
  struct Turn {
    int tokens = 0, visual = 0, cached = 0;
    bool encoded = false;
    std::string out;
  };
  const auto second_turn = [&](RunOptions options) {
    const Outcome o = qvl({"chat", "--verbose", "--image-memory", "off", "--max-tokens", "30", "--greedy"}, options);
    EXPECT_EQ(o.exit_code, 0) << o.err;
    Turn turn{.encoded = o.err.find("encoded in") != std::string::npos, .out = o.out};
    const size_t at = o.err.rfind("prompt: ");
    if (at == std::string::npos || at == o.err.find("prompt: ") ||
        sscanf(o.err.c_str() + at, "prompt: %d tokens (%d visual), %d cached", &turn.tokens, &turn.visual, &turn.cached) != 3)
      ADD_FAILURE() << o.err;
    return turn;
  };
  const std::string first = "Hello\n/image " + kShapes + "\n", question = "Describe this image.\n";
  const Turn at_once = second_turn({.input = first + question});
  EXPECT_TRUE(at_once.encoded);
  EXPECT_LT(at_once.cached, at_once.visual);
  Turn later;
  for (double pause_s = 0.5; pause_s < 20 && later.cached <= later.visual; pause_s *= 3)
    later = second_turn({.input = first, .later_input = question, .later_s = pause_s});
  EXPECT_EQ(later.out, at_once.out);
  EXPECT_EQ(later.tokens, at_once.tokens);
  EXPECT_GT(later.cached, at_once.cached + later.visual) << "the picture was read afterwards";
  EXPECT_FALSE(later.encoded);
}

TEST_F(Cli, ChatEndsInTheMiddleOfReadingAhead) {
  // The end of input while the beginning of the next turn is being read, or just before or behind it.
  for (const double pause_s : {0.02, 0.035, 0.05, 0.3}) {
    const Outcome o = qvl({"chat"}, {.input = "Hello\n", .later_input = " ", .later_s = pause_s});
    EXPECT_EQ(o.exit_code, 0) << o.err;
    EXPECT_EQ(o.err, "");
    EXPECT_EQ(lines(o.out), 1U);
    EXPECT_LT(o.seconds, 60);
  }
}

TEST_F(Cli, ChatGoesOnAfterAMistakeAndSaysSo) {
  const Outcome o = qvl({"chat"}, {.input = "/image /nowhere.png\n/frobnicate\nHello\n"});
  EXPECT_EQ(o.exit_code, 1);
  EXPECT_EQ(lines(o.out), 1U);
  EXPECT_NE(o.err.find("/nowhere.png"), std::string::npos);
  EXPECT_NE(o.err.find("/frobnicate"), std::string::npos);
  EXPECT_EQ(qvl({"chat"}, {.input = "/exit\nHello\n"}).out, "");
}

// ---- info

TEST_F(Cli, Info) {
  const Outcome text = qvl({"info"});
  EXPECT_EQ(text.exit_code, 0) << text.err;
  EXPECT_NE(text.out.find("qwen3_vl"), std::string::npos);
  const Json j = parse_json(qvl({"info", kSmall, "--json"}).out, "stdout");
  EXPECT_EQ(j["architecture"], "qwen3_vl");
  EXPECT_EQ(j["text"]["layers"], 4);
  EXPECT_EQ(j["text"]["hidden_size"], 192);
  EXPECT_EQ(j["vision"]["deepstack_indexes"], Json({1, 2, 3}));
  EXPECT_EQ(j["context_tokens"], 4096);
  EXPECT_EQ(j["kv_bytes_per_token"]["bf16"], 2 * 4 * 2 * 32 * 2);
  EXPECT_EQ(j["kv_bytes_per_token"]["int8"], 2 * 4 * 2 * (32 + 4));
  EXPECT_EQ(j["weights"]["bytes"].get<int64_t>(), j["parameters"]["total"].get<int64_t>() * 2);
  EXPECT_TRUE(j["weights"]["tied_head"].get<bool>());
  EXPECT_EQ(j["chat_template"]["variant"], "instruct");
  EXPECT_TRUE(j["chat_template"]["recognised"].get<bool>());
  EXPECT_EQ(j["image"]["min_pixels"], 9216);
  EXPECT_GE(j["machine"]["threads"].get<int>(), 1);
  // Without tokenizer too.
  const Json tiny = parse_json(qvl({"info", kTiny, "--json"}).out, "stdout");
  EXPECT_TRUE(tiny["tokenizer"].is_null());
}

// ---- trace

TEST_F(Cli, TraceByIdsAndPixelsEqualsTheReference) {
  const Json record = parse_json_file(kGolden / "text/image_video.json");
  const auto golden = checkpoint::SafetensorsFile::open(kGolden / "text/image_video.safetensors");
  std::vector<int64_t> ids;
  {
    const auto& view = golden.get("input_ids");
    for (int64_t i = 0; i < view.size(); ++i) {
      int64_t v;
      std::memcpy(&v, view.bytes.data() + 8 * i, 8);
      ids.push_back(v);
    }
  }
  for (const Json& form : {Json(ids), Json{{"input_ids", ids}}, Json{{"input_ids", Json::array({ids})}}}) {
    const std::string ids_file = file("ids.json", form.dump());
    const Outcome o = qvl({"trace", kTiny, "--ids", ids_file, "--pixels",
                           (kGolden / "text/image_video.safetensors").string(), "--out",
                           path("trace.safetensors"), "--text-dtype", "fp32", "--vision-dtype", "fp32"});
    ASSERT_EQ(o.exit_code, 0) << o.err;
    EXPECT_EQ(o.out, "");
    EXPECT_EQ(o.err, "");
  }
  const auto traced = checkpoint::SafetensorsFile::open(path("trace.safetensors"));
  std::set<std::string> names;
  for (const auto& t : traced.tensors()) names.insert(t.name);
  EXPECT_EQ(names, (std::set<std::string>{"input_ids",
                                          "pixel_values",
                                          "image_grid_thw",
                                          "pixel_values_videos",
                                          "video_grid_thw",
                                          "vision.pos_embed",
                                          "vision.block0",
                                          "vision.block1",
                                          "vision.block2",
                                          "vision.block3",
                                          "vision.merged",
                                          "vision.deepstack0",
                                          "vision.deepstack1",
                                          "vision.deepstack2",
                                          "inputs_embeds",
                                          "position_ids",
                                          "layer0",
                                          "layer1",
                                          "layer2",
                                          "layer3",
                                          "logits",
                                          "greedy_tokens"}));
  auto compare = [&](const std::string& name, const std::string& golden_name, double limit) {
    const std::vector<float> got = traced.get(name).to_f32(), want = golden.get(golden_name).to_f32();
    ASSERT_EQ(got.size(), want.size()) << name;
    double worst = 0;
    for (size_t i = 0; i < got.size(); ++i) worst = std::max(worst, std::fabs(double{got[i]} - want[i]));
    EXPECT_LE(worst, limit) << name;
  };
  compare("inputs_embeds", "inputs_embeds", 3e-5);
  for (int i = 0; i < 4; ++i) compare("layer" + std::to_string(i), "layer" + std::to_string(i), 2e-4);
  compare("logits", "logits", 1e-4);
  const auto tokens = traced.get("greedy_tokens"), wanted = golden.get("greedy.tokens");
  ASSERT_EQ(tokens.shape, (Shape{16}));
  EXPECT_EQ(std::memcmp(tokens.bytes.data(), wanted.bytes.data(), 16 * 8), 0);
  const auto positions = traced.get("position_ids"), wanted_positions = golden.get("position_ids");
  ASSERT_EQ(positions.shape, (Shape{3, static_cast<int64_t>(ids.size())}));
  EXPECT_EQ(std::memcmp(positions.bytes.data(), wanted_positions.bytes.data(), positions.bytes.size()), 0);
  EXPECT_EQ(traced.get("logits").shape, (Shape{static_cast<int64_t>(ids.size()), 512}));
  EXPECT_EQ(traced.get("logits").dtype, DType::kF32);
  EXPECT_FALSE(record.empty());
}

TEST_F(Cli, TraceOfAPromptHasWhatRunComputes) {
  const Outcome o = qvl({"trace", kSmall, "-i", kShapes, "Describe this image.", "--out",
                         path("t.safetensors"), "--max-tokens", "6"});
  ASSERT_EQ(o.exit_code, 0) << o.err;
  const auto traced = checkpoint::SafetensorsFile::open(path("t.safetensors"));
  EXPECT_EQ(traced.get("image_grid_thw").shape, (Shape{1, 3}));
  EXPECT_EQ(traced.get("pixel_values").shape, (Shape{120, 1536}));
  const Json run = parse_json(qvl({"run", "--json", "--greedy", "--ignore-eos", "--max-tokens", "6", "-i",
                                   kShapes, "Describe this image."})
                                  .out,
                              "stdout");
  const auto& tokens = traced.get("greedy_tokens");
  for (size_t i = 0; i < 6; ++i) {
    int64_t v;
    std::memcpy(&v, tokens.bytes.data() + 8 * i, 8);
    EXPECT_EQ(run["token_ids"][i], v);
  }
  EXPECT_EQ(run["usage"]["prompt_tokens"], traced.get("input_ids").size());
}

TEST_F(Cli, TraceRefusesWhatDoesNotFit) {
  const std::string pixels = (kGolden / "text/image.safetensors").string();
  const std::string out = path("x.safetensors");
  expect_refusal(qvl({"trace", kTiny, "--ids", path("absent.json"), "--out", out}), 1, {"absent.json"});
  expect_refusal(qvl({"trace", kTiny, "--ids", file("a.json", "{\"ids\": [1]}"), "--out", out}), 1,
                 {"a.json"});
  expect_refusal(qvl({"trace", kTiny, "--ids", file("b.json", "[1, 2.5]"), "--out", out}), 1,
                 {"b.json", "2.5"});
  expect_refusal(qvl({"trace", kTiny, "--ids", file("c.json", "[1, 512]"), "--out", out}), 1,
                 {"c.json", "512"});
  expect_refusal(qvl({"trace", kTiny, "--ids", file("d.json", "[1, 2"), "--out", out}), 1, {"d.json"});
  expect_refusal(qvl({"trace", kTiny, "--ids", file("e.json", "[1, 2]"), "--pixels", pixels, "--out", out}),
                 1, {"image"});
  expect_refusal(qvl({"trace", kTiny, "--ids", file("e.json", "[1, 2]"), "--pixels",
                      kSmall + "/model.safetensors", "--out", out}),
                 1, {"pixel_values"});
  expect_refusal(
      qvl({"trace", kTiny, "--ids", file("e.json", "[1, 2]"), "--out", path("no/such/folder.safetensors")}),
      1, {"no/such"});
  EXPECT_FALSE(fs::exists(out));
}

// ---- eval

TEST_F(Cli, Eval) {
  fs::copy_file(kShapes, folder_ / "a.png");
  const std::string answer =
      parse_json(qvl({"run", "--json", "-i", kShapes, "Describe this image."}).out, "stdout")["text"];
  const Json right = {
      {"images", {"a.png"}}, {"question", "Describe this image."}, {"answer", answer}, {"task", "describe"}};
  const Json wrong = {{"images", {"a.png"}},
                      {"question", "Describe this image."},
                      {"answer", "no such answer"},
                      {"task", "text"}};
  file("questions.jsonl", right.dump() + "\n" + wrong.dump() + "\n");
  const Outcome table = qvl({"eval", folder_.string()});
  EXPECT_EQ(table.exit_code, 0) << table.err;
  EXPECT_NE(table.out.find("describe"), std::string::npos);
  EXPECT_NE(table.out.find("192x160"), std::string::npos);
  const Json j = parse_json(qvl({"eval", kSmall, folder_.string(), "--json"}).out, "stdout");
  EXPECT_EQ(j["questions"], 2);
  EXPECT_EQ(j["tasks"]["describe"]["score"], 1.0);
  EXPECT_EQ(j["tasks"]["text"]["score"], 0.0);
  EXPECT_EQ(j["score"], 0.5);
  const Outcome shown = qvl({"eval", folder_.string(), "--show-wrong"});
  EXPECT_NE(shown.err.find("no such answer"), std::string::npos) << shown.err;
  expect_refusal(qvl({"eval", path("absent")}), 1, {"absent"});
  file("questions.jsonl", "{\"images\": [\"missing.png\"], \"question\": \"Q\", \"answer\": \"A\"}\n");
  expect_refusal(qvl({"eval", folder_.string()}), 1, {"missing.png"});
}

// ---- synth

TEST_F(Cli, SynthWritesACheckpointThatRuns) {
  const Outcome o = qvl({"synth", "tiny", path("made"), "--seed", "3"});
  ASSERT_EQ(o.exit_code, 0) << o.err;
  EXPECT_EQ(o.out, "");
  EXPECT_EQ(qvl({"info", path("made"), "--json"}).exit_code, 0);
  const Outcome trace =
      qvl({"trace", path("made"), "--ids", file("ids.json", "[1, 2, 3]"), "--out", path("t.safetensors")});
  EXPECT_EQ(trace.exit_code, 0) << trace.err;
  expect_refusal(qvl({"synth", "tiny", path("made")}), 1, {"made"});
  // The tokenizer of another model would make a checkpoint that cannot be asked anything.
  expect_refusal(qvl({"synth", "tiny", path("other"), "--tokenizer", kSmall}), 1, {"image_pad"});
  EXPECT_FALSE(fs::exists(path("other")));
}

}  // namespace
}  // namespace qvl::cli
