// `qvl verify`, `qvl compare` and `qvl info` on packages that the real binary exports: healthy ones pass,
// corrupted ones fail and are told why.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "fixture.h"
#include "process.h"
#include "qvl/base/json.h"
#include "qvl/base/sha256.h"
#include "qvl/package/manifest.h"
#include "qvl/package/package.h"

namespace qvl::cli {
namespace {

namespace fs = std::filesystem;

const std::string kTiny =
    (kSource / "tests/fixtures/golden/model").string();  // no tokenizer: prompts of random ids

void spill(const fs::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

class Packages : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    root() = fs::temp_directory_path() / ("qvl_package_test_" + std::to_string(getpid()));
    fs::remove_all(root());
    fs::create_directories(root());
  }
  static void TearDownTestSuite() { fs::remove_all(root()); }
  static fs::path& root() {
    static fs::path path;
    return path;
  }
  // Exported once; tests that change one take a copy.
  static std::string exported(const std::string& name, const std::string& checkpoint,
                              std::vector<std::string> options) {
    const fs::path folder = root() / name;
    if (fs::exists(folder)) return folder.string();
    std::vector<std::string> arguments = {"export", checkpoint, folder.string(), "--verify", "none"};
    arguments.insert(arguments.end(), options.begin(), options.end());
    const Outcome o = qvl(arguments);
    EXPECT_EQ(o.exit_code, 0) << o.err;
    return folder.string();
  }
  static std::string tiny_fp32() {
    return exported("tiny_fp32", kTiny, {"--vision", "fp32", "--text", "fp32"});
  }
  static std::string small_int4() { return exported("small_int4", kSmall, {}); }
  static std::string copy(const std::string& package, const std::string& name) {
    const fs::path to = root() / name;
    fs::remove_all(to);
    fs::copy(package, to, fs::copy_options::recursive);
    return to.string();
  }
  static bool has_onnxruntime() {
    const Outcome o = qvl({"info", tiny_fp32(), "--json"});
    EXPECT_EQ(o.exit_code, 0) << o.err;
    return parse_json(o.out, "info")["onnxruntime"].contains("version");
  }
};

const package::TensorEntry& entry(const package::Manifest& manifest, const std::string& name) {
  for (const package::TensorEntry& t : manifest.tensors) {
    if (t.name == name) return t;
  }
  throw std::runtime_error(name);
}

// As a wrong exporter would have written it: the hash in the manifest is that of the wrong bytes.
void rehash(const fs::path& folder, const std::string& file) {
  package::Manifest manifest = package::Manifest::load(folder);
  for (package::FileEntry& f : manifest.data_files) {
    if (f.file == file) f.sha256 = sha256_hex(slurp(folder / file));
  }
  manifest.save(folder);
}

void swap_tensors(const fs::path& folder, const std::string& a, const std::string& b) {
  const package::Manifest manifest = package::Manifest::load(folder);
  const package::TensorPart &x = entry(manifest, a).data, &y = entry(manifest, b).data;
  ASSERT_EQ(x.length, y.length);
  std::string bytes = slurp(folder / x.file);
  std::swap_ranges(bytes.begin() + static_cast<std::ptrdiff_t>(x.offset),
                   bytes.begin() + static_cast<std::ptrdiff_t>(x.offset + x.length),
                   bytes.begin() + static_cast<std::ptrdiff_t>(y.offset));
  spill(folder / x.file, bytes);
  rehash(folder, x.file);
}

void flip_byte(const fs::path& folder, const std::string& tensor, size_t at, unsigned char mask) {
  const package::Manifest manifest = package::Manifest::load(folder);
  const package::TensorPart& part = entry(manifest, tensor).data;
  std::string bytes = slurp(folder / part.file);
  bytes[part.offset + at] = static_cast<char>(static_cast<unsigned char>(bytes[part.offset + at]) ^ mask);
  spill(folder / part.file, bytes);
}

// What stands on stderr beside warnings (the tiny model has no processor files, and qvl says so).
std::string errors(const Outcome& o) {
  std::istringstream in(o.err);
  std::string out;
  for (std::string line; std::getline(in, line);) {
    if (!line.starts_with("qvl: warning: ")) out += line + "\n";
  }
  return out;
}

// Exit 1 and one error on stderr with all parts.
void expect_failure(const Outcome& o, const std::vector<std::string>& parts) {
  EXPECT_EQ(o.exit_code, 1) << o.out << o.err;
  const std::string error = errors(o);
  EXPECT_EQ(std::count(error.begin(), error.end(), '\n'), 1) << error;
  for (const std::string& part : parts)
    EXPECT_NE(error.find(part), std::string::npos) << part << " not in: " << error;
}

constexpr const char* kQ0 = "model.language_model.layers.0.self_attn.q_proj.weight";

// Names of the first two tensors of 4 bits (of any format where there are none) that are stored alike: which
// ones the recipe keeps at 4 bits is its own business.
std::pair<std::string, std::string> alike(const fs::path& folder) {
  const package::Manifest manifest = package::Manifest::load(folder);
  for (int bits : {4, 0}) {
    for (const package::TensorEntry& a : manifest.tensors) {
      if (a.format.bits != bits || !a.name.ends_with("_proj.weight")) continue;
      for (const package::TensorEntry& b : manifest.tensors) {
        const bool same_role = a.name.substr(a.name.rfind('.', a.name.size() - 8)) ==
                               b.name.substr(b.name.rfind('.', b.name.size() - 8));
        if (a.name != b.name && same_role && a.format == b.format && a.data.length == b.data.length)
          return {a.name, b.name};
      }
    }
  }
  throw std::runtime_error("no two tensors alike in " + folder.string());
}

TEST_F(Packages, HealthyOnesPassAndKeepTheirReport) {
  struct Kind {
    std::string package, checkpoint;
    bool exact;
  };
  const bool onnx = has_onnxruntime();
  for (const Kind& kind : {Kind{tiny_fp32(), kTiny, true}, Kind{small_int4(), kSmall, false}}) {
    const std::string folder = copy(kind.package, "healthy");
    const Outcome o = qvl({"verify", folder, "--against", kind.checkpoint, "--json", "--sizes",
                           "64x64,160x96", "--max-tokens", "4"});
    ASSERT_EQ(o.exit_code, 0) << o.out << o.err;
    EXPECT_EQ(errors(o), "");
    const Json report = parse_json(o.out, "report");
    EXPECT_EQ(report["passed"], true);
    EXPECT_EQ(report["weights"]["passed"], true);
    ASSERT_EQ(report["engines"].size(), onnx ? 3U : 1U);
    EXPECT_EQ(report["engines"][0]["engine"], "native");
    for (const Json& engine : report["engines"]) {
      EXPECT_EQ(engine["passed"], true);
      EXPECT_EQ(engine["fidelity"]["decoder"], kind.exact ? "exact" : "int4");
      ASSERT_EQ(engine["cases"].size(), 7U);  // 3 texts, 2 sizes, several, video
      EXPECT_EQ(engine["cases"][3]["case"], "picture 64x64");
      bool logits = false, layers = false;
      for (const Json& t : engine["tensors"]) {
        if (kind.exact) {
          EXPECT_LE(t["relative_error"].get<double>(), t["tensor"] == "logits" ? 1e-4 : 3e-5) << t;
        } else {
          EXPECT_GT(t["cosine"].get<double>(), 0.98) << t;
        }
        logits = logits || t["tensor"] == "logits";
        layers = layers || t["tensor"] == "layer1";
      }
      EXPECT_TRUE(logits);
      EXPECT_TRUE(layers) << engine["engine"];
    }
    // Stored, and shown.
    EXPECT_EQ(package::Manifest::load(folder).parity["passed"], true);
    const Outcome info = qvl({"info", folder});
    EXPECT_EQ(info.exit_code, 0) << info.err;
    EXPECT_NE(info.out.find("parity           PASSED"), std::string::npos) << info.out;
  }
  if (!onnx) GTEST_SKIP() << "ONNX Runtime was not found: the ONNX engine was not verified";
}

TEST_F(Packages, AFlippedByteIsFoundByItsHash) {
  const std::string folder = copy(small_int4(), "flipped");
  flip_byte(folder, kQ0, 17, 0x01);
  expect_failure(qvl({"verify", folder, "--against", kSmall}), {"text.data"});
}

TEST_F(Packages, AFlippedByteIsFoundByTheWeightsToo) {
  // The smallest change there is: the 4-bit code of one weight of a matrix, with a hash that agrees.
  const std::string int4 = copy(small_int4(), "flipped_int4");
  const std::string changed = alike(int4).first;
  ASSERT_EQ(entry(package::Manifest::load(int4), changed).format.bits, 4);
  flip_byte(int4, changed, 17, 0x01);
  rehash(int4, "text.data");
  expect_failure(qvl({"verify", int4, "--against", kSmall, "--engines", "native", "--sizes", "64x64"}),
                 {changed, "as the export measured"});
  const std::string fp32 = copy(tiny_fp32(), "flipped_fp32");
  flip_byte(fp32, kQ0, 8, 0x01);
  rehash(fp32, "text.data");
  const Outcome o = qvl({"verify", fp32, "--against", kTiny, "--engines", "native", "--sizes", "64x64"});
  expect_failure(o, {kQ0, "expected at most 0"});
  EXPECT_EQ(package::Manifest::load(fp32).parity["passed"], false);
  EXPECT_NE(qvl({"info", fp32}).out.find("parity           FAILED"), std::string::npos);
}

TEST_F(Packages, SwappedTensorsFailInWeightsAndInEveryEngine) {
  const bool onnx = has_onnxruntime();
  for (const auto& [package, checkpoint] : {std::pair(tiny_fp32(), kTiny), std::pair(small_int4(), kSmall)}) {
    const std::string folder = copy(package, "swapped");
    const auto [one, other] = alike(folder);
    ASSERT_NO_FATAL_FAILURE(swap_tensors(folder, one, other));
    const Outcome o = qvl({"verify", folder, "--against", checkpoint, "--json", "--sizes", "64x64",
                           "--max-tokens", "2", "--no-store"});
    expect_failure(o, {"_proj.weight", "relative error 1."});
    const Json report = parse_json(o.out, "report");
    EXPECT_EQ(report["passed"], false);
    EXPECT_EQ(report["weights"]["passed"], false);
    ASSERT_EQ(report["engines"].size(), onnx ? 3U : 1U);
    EXPECT_TRUE(package::Manifest::load(folder).parity.is_null());
    // With exact weights the very first layer gives it away; with coarse ones the limits leave room, the
    // weights do not.
    if (checkpoint != kTiny) continue;
    for (const Json& engine : report["engines"]) {
      EXPECT_EQ(engine["passed"], false) << engine["engine"];
      EXPECT_EQ(engine["cases"][0]["failures"][0]["tensor"], "layer0");
    }
  }
}

TEST_F(Packages, AnotherCheckpointIsRefused) {
  expect_failure(qvl({"verify", tiny_fp32(), "--against", kSmall}), {"config.json", "another model?"});
}

TEST_F(Packages, WithoutOnnxRuntimeItSaysSo) {
  const std::string folder = copy(tiny_fp32(), "without");
  // A qvl that was built without its headers needs no library to miss.
  const Json runtime = parse_json(qvl({"info", folder, "--json"}).out, "info")["onnxruntime"];
  const bool stub = runtime.value("missing", "").find("built without") != std::string::npos;
  const std::string reason = stub ? "scripts/lib/onnxruntime.sh" : "/nonexistent";
  const RunOptions none{.environment = {"QVL_ONNXRUNTIME_LIB=/nonexistent/libonnxruntime.so.1"}};
  const Outcome o =
      qvl({"verify", folder, "--against", kTiny, "--sizes", "64x64", "--max-tokens", "2"}, none);
  EXPECT_EQ(o.exit_code, 0) << o.out << o.err;
  EXPECT_NE(o.out.find("onnx: skipped: "), std::string::npos) << o.out;
  EXPECT_NE(o.out.find(reason), std::string::npos) << o.out;
  EXPECT_EQ(package::Manifest::load(folder).parity["skipped"].size(), 1U);
  // Asked for by name it is an error.
  expect_failure(qvl({"verify", folder, "--against", kTiny, "--engines", "onnx"}, none), {reason});
  expect_failure(qvl({"run", folder, "--text", "onnx", "Hello"}, none), {reason});
}

TEST_F(Packages, WrongOptionsAreUsageErrors) {
  for (const std::vector<std::string>& options : {std::vector<std::string>{"--sizes", "64"},
                                                  {"--sizes", "64x64,0x1"},
                                                  {"--engines", "torch"},
                                                  {"--max-tokens", "-1"}}) {
    std::vector<std::string> arguments = {"verify", tiny_fp32(), "--against", kTiny};
    arguments.insert(arguments.end(), options.begin(), options.end());
    const Outcome o = qvl(arguments);
    EXPECT_EQ(o.exit_code, 2) << o.err;
    EXPECT_EQ(o.out, "");
  }
  EXPECT_EQ(qvl({"verify", tiny_fp32()}).exit_code, 2);
  expect_failure(qvl({"verify", kTiny, "--against", kTiny}), {"qvl.json"});
}

TEST_F(Packages, InfoTellsStagesGraphsAndWhatIsFused) {
  const Outcome o = qvl({"info", small_int4(), "--json"});
  ASSERT_EQ(o.exit_code, 0) << o.err;
  const Json j = parse_json(o.out, "info");
  EXPECT_EQ(j["stages"]["vision"]["precision"], "int8");
  EXPECT_EQ(j["stages"]["text"]["precision"], "int4");
  EXPECT_EQ(j["stages"]["text"]["recipe"], "balanced");
  EXPECT_GT(j["stages"]["text"]["bits_per_weight"].get<double>(), 4);
  EXPECT_LT(j["stages"]["text"]["bits_per_weight"].get<double>(), 8.6);
  EXPECT_EQ(j["parity"], nullptr);
  ASSERT_EQ(j["graphs"].size(), 4U);
  for (const auto& [name, graph] : j["graphs"].items()) {
    int64_t nodes = 0;
    for (const auto& [op, count] : graph["operators"].items()) {
      nodes += count.get<int64_t>();
      // Whatever is written with operators of ONNX Runtime's own is explained.
      bool explained = !op.starts_with("com.microsoft.");
      for (const Json& f : graph["fused"]) explained = explained || f["operator"] == op;
      EXPECT_TRUE(explained) << op;
    }
    EXPECT_EQ(graph["nodes"], nodes) << name;
    EXPECT_GT(graph["plain_nodes"].get<int64_t>(), nodes) << name;
  }
  const Json& decoder = j["graphs"]["decoder"]["operators"];
  EXPECT_EQ(decoder["com.microsoft.GroupQueryAttention"], 4);
  const Outcome text = qvl({"info", small_int4()});
  EXPECT_EQ(text.exit_code, 0) << text.err;
  EXPECT_NE(text.out.find("com.microsoft.SkipSimplifiedLayerNormalization"), std::string::npos) << text.out;
  EXPECT_NE(text.out.find("not verified yet"), std::string::npos) << text.out;

  // A plain package needs no explanation: its graphs are what they would be.
  const Json plain = parse_json(
      qvl({"info", exported("plain", kTiny, {"--plain", "--text", "int4"}), "--json"}).out, "info");
  for (const auto& [name, graph] : plain["graphs"].items())
    EXPECT_EQ(graph["nodes"], graph["plain_nodes"]) << name;
}

TEST_F(Packages, AShortlistOfTheHeadChangesNoAnswer) {
  const std::string with = exported("shortlist", kSmall, {"--shortlist", "on"});
  ASSERT_TRUE(package::Manifest::load(with).head_shortlist);
  EXPECT_FALSE(package::Manifest::load(small_int4()).head_shortlist);  // 640 tokens are read as fast
  EXPECT_FALSE(package::Manifest::load(exported("genai", kSmall, {"--shortlist", "on", "--layout", "genai"})).head_shortlist);
  EXPECT_NE(qvl({"info", with}).out.find("shortlist of the head in 2 + 2 bits"), std::string::npos);
  const std::string picture = (kSource / "tests/fixtures/small/eval/001.png").string();
  for (const std::vector<std::string>& options : std::vector<std::vector<std::string>>{
           {"--greedy"}, {"--seed", "7", "--top-k", "20", "--temperature", "1.5"}, {"--greedy", "--speculate", "4"}}) {
    std::string answer;
    for (const std::string& package : {with, small_int4()}) {
      std::vector<std::string> arguments = {"run", package, "-i", picture, "Describe the image.", "--json", "--max-tokens", "40"};
      arguments.insert(arguments.end(), options.begin(), options.end());
      const Outcome o = qvl(arguments);
      ASSERT_EQ(o.exit_code, 0) << o.err;
      const std::string ids = parse_json(o.out, "run")["token_ids"].dump();
      EXPECT_TRUE(answer.empty() || answer == ids) << answer << "\n" << ids;
      answer = ids;
    }
  }
  // It is a weight like the others to whoever checks them.
  const std::string flipped = copy(with, "flipped_shortlist");
  const auto at = static_cast<int64_t>(package::Manifest::load(flipped).head_shortlist->coarse.offset);
  std::fstream file(fs::path(flipped) / "text.data", std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(at);
  file.put('\x37');
  file.close();
  rehash(flipped, "text.data");
  expect_failure(qvl({"verify", flipped, "--against", kSmall, "--engines", "native", "--sizes", "64x64"}),
                 {"head_shortlist", "as the export measured"});
  // One of another vocabulary is refused.
  const std::string shorter = copy(with, "short_shortlist");
  package::Manifest manifest = package::Manifest::load(shorter);
  package::ShortlistEntry& shortlist = *manifest.head_shortlist;
  shortlist.rows -= 16;
  const auto cut = [&](package::TensorPart& part, int64_t count) {
    part.length = part.length / static_cast<uint64_t>(part.shape[0]) * static_cast<uint64_t>(count);
    part.shape[0] = count;
  };
  cut(shortlist.coarse, shortlist.coarse.shape[0] - 1);
  cut(shortlist.scales, shortlist.scales.shape[0] - 1);
  cut(shortlist.fine, shortlist.rows);
  manifest.save(shorter);
  expect_failure(qvl({"run", shorter, "Hello"}), {"rows and columns of the head's shortlist"});
}

TEST_F(Packages, GuessedTokensAreCheckedWhereThatChangesNoAnswer) {
  const std::string picture = (kSource / "tests/fixtures/small/eval/001.png").string();
  const auto ask = [&](std::vector<std::string> more) {
    std::vector<std::string> all = {"run",      small_int4(), "--json", "-i",
                                    picture,    "Describe the image. The text \"AQG\".",
                                    "--greedy", "--max-tokens", "60"};
    all.insert(all.end(), more.begin(), more.end());
    return qvl(all);
  };
  const Json off = parse_json(ask({"--speculate", "off"}).out, "off");
  const Json on = parse_json(ask({"--speculate", "8"}).out, "on");  // int4 weights with activations in int8
  EXPECT_EQ(on["token_ids"], off["token_ids"]);
  EXPECT_GT(on["decode"]["drafted_tokens"], 0);
  if (!has_onnxruntime()) GTEST_SKIP() << "ONNX Runtime was not found: its rows were not tried";
  // ONNX Runtime multiplies one row in another order than several.
  const Json onnx = parse_json(ask({"--text", "onnx"}).out, "onnx");
  EXPECT_EQ(onnx["decode"]["drafted_tokens"], 0);
  EXPECT_EQ(onnx["decode"]["steps"], onnx["token_ids"].size() - 1);
  const Outcome refused = ask({"--text", "onnx", "--speculate", "8"});
  EXPECT_EQ(refused.exit_code, 1);
  EXPECT_NE(refused.err.find("speculation"), std::string::npos) << refused.err;
  const Outcome told = ask({"--text", "onnx", "--verbose"});
  EXPECT_NE(told.err.find("speculation is off"), std::string::npos) << told.err;
}

TEST_F(Packages, CompareMeasuresEveryWay) {
  const fs::path md = root() / "ways.md", svg = root() / "ways.svg";
  const Outcome o = qvl({"compare", kSmall, "--shape-size", "96x64", "--max-tokens", "4", "--json", "--md",
                         md.string(), "--svg", svg.string(), "--threads", "2"});
  ASSERT_EQ(o.exit_code, 0) << o.err;
  EXPECT_EQ(o.err, "");
  const Json j = parse_json(o.out, "comparison");
  ASSERT_EQ(j["ways"].size(), 6U);
  const bool onnx = has_onnxruntime();
  for (const Json& way : j["ways"]) {
    const auto name = way["name"].get<std::string>();
    if (!onnx && name.find("ONNX") != std::string::npos) {
      EXPECT_EQ(way["works"], false) << name;
      continue;
    }
    ASSERT_EQ(way["works"], true) << name << ": " << way["error"];
    for (const char* key : {"vision_patches_per_s", "prefill_tokens_per_s", "decode_tokens_per_s",
                            "vision_mb", "text_mb", "total_mb"}) {
      EXPECT_GT(way[key].get<double>(), 0) << name << " " << key;
    }
    EXPECT_LT(way["logits_relative_error"].get<double>(), 0.4) << name;
    EXPECT_GT(way["top1"].get<double>(), 0.5) << name;
    EXPECT_NE(slurp(md).find("| " + name + " | yes |"), std::string::npos) << name;
  }
  const std::string chart = slurp(svg);
  EXPECT_TRUE(chart.starts_with("<svg ")) << chart.substr(0, 40);
  EXPECT_TRUE(chart.ends_with("</svg>\n"));
  EXPECT_NE(chart.find("native INT4"), std::string::npos);
  EXPECT_EQ(qvl({"compare", kSmall, "--shape-size", "big"}).exit_code, 2);
  expect_failure(qvl({"compare", (root() / "nothing").string()}), {"nothing"});
  if (!onnx) GTEST_SKIP() << "ONNX Runtime was not found: the ONNX ways were not compared";
}

}  // namespace
}  // namespace qvl::cli
