// `qvl bench` on small models: the reports, the options, what stays behind.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "process.h"
#include "qvl/base/json.h"
#include "qvl/kernels/ops.h"

namespace qvl::cli {
namespace {

namespace fs = std::filesystem;

class Bench : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("qvl_bench_test_" + std::to_string(getpid()));
    fs::remove_all(folder_);
    fs::create_directories(folder_ / "tmp");
  }
  void TearDown() override { fs::remove_all(folder_); }
  std::string path(const std::string& name) const { return (folder_ / name).string(); }
  // Short runs; temporary folders of the program go where the test looks.
  Outcome bench(std::vector<std::string> more, RunOptions options = {}) const {
    std::vector<std::string> arguments = {"bench",     "--picture", "96x64",           "--prompts", "24",
                                          "--contexts", "8,40"};
    for (const auto& [option, value] :
         {std::pair("--decode-tokens", "2"), std::pair("--repeats", "2"), std::pair("--read-buffer-mb", "16")}) {
      if (std::ranges::find(more, option) == more.end()) arguments.insert(arguments.end(), {option, value});
    }
    arguments.insert(arguments.end(), more.begin(), more.end());
    options.environment.push_back("TMPDIR=" + path("tmp"));
    return qvl(arguments, options);
  }
  size_t left_behind() const {
    return static_cast<size_t>(std::distance(fs::directory_iterator(folder_ / "tmp"), fs::directory_iterator()));
  }
  static std::string contents(const std::string& file) {
    std::stringstream out;
    out << std::ifstream(file).rdbuf();
    return out.str();
  }
  fs::path folder_;
};

void expect_series(const Json& row, const std::string& unit) {
  EXPECT_EQ(row["unit"], unit);
  EXPECT_GT(row["min"].get<double>(), 0);
  EXPECT_LE(row["min"].get<double>(), row["median"].get<double>());
  EXPECT_LE(row["median"].get<double>(), row["max"].get<double>());
}

void expect_refusal(const Outcome& o, int code, const std::string& part) {
  EXPECT_EQ(o.exit_code, code) << o.err;
  EXPECT_EQ(o.out, "");
  EXPECT_EQ(std::count(o.err.begin(), o.err.end(), '\n'), 1) << o.err;
  EXPECT_NE(o.err.find(part), std::string::npos) << part << " not in: " << o.err;
}

TEST_F(Bench, MeasuresTheSmallModelInEveryForm) {
  const Outcome o = bench({"--json", path("b.json"), "--md", path("b.md"), "--svg", path("b.svg"), "--threads", "2"});
  ASSERT_EQ(o.exit_code, 0) << o.err;
  EXPECT_EQ(o.err, "");
  for (const char* part : {"limits of this run: memory read", "prefill, 24 tokens", "decode after 8 tokens",
                           "decode after 40 tokens", "patches/s", "% of memory read", " % of bf16 ", "peak memory"})
    EXPECT_NE(o.out.find(part), std::string::npos) << part << " not in:\n" << o.out;

  const Json j = parse_json(contents(path("b.json")), "b.json");
  EXPECT_EQ(j["model"], "small");
  EXPECT_EQ(j["engine"]["threads"], 2);
  EXPECT_EQ(j["engine"]["vision"], "native bf16");
  EXPECT_EQ(j["repeats"], 2);
  for (const char* peak : {"int8", "int8_wide", "bf16", "fp32", "attention"}) EXPECT_GT(j["limits"][peak]["gops"].get<double>(), 0) << peak;
  const double read = j["limits"]["read_gb_per_s"].get<double>();
  EXPECT_GT(read, 0);
  ASSERT_EQ(j["vision"].size(), 1u);
  EXPECT_EQ(j["vision"][0]["patches"], 48);  // its processor enlarges small pictures
  EXPECT_EQ(j["vision"][0]["resized"], "128x96");
  expect_series(j["vision"][0], "patches/s");
  ASSERT_EQ(j["prefill"].size(), 1u);
  expect_series(j["prefill"][0], "tok/s");
  EXPECT_GT(j["prefill"][0]["gops"].get<double>(), 0);
  ASSERT_EQ(j["decode"].size(), 2u);
  for (const Json& row : j["decode"]) {
    expect_series(row, "tok/s");
    const double gb = row["gb_per_s"].get<double>();
    EXPECT_NEAR(gb, row["bytes_per_token"].get<double>() * row["median"].get<double>() * 1e-9, 1e-4 * gb);
    EXPECT_NEAR(row["limit_share"].get<double>(), gb / read, 1e-4 * gb / read);
  }
  // 4 more layers of keys and values of 2 heads x 32, bf16, for each of 32 more positions.
  EXPECT_EQ(j["decode"][1]["bytes_per_token"].get<double>() - j["decode"][0]["bytes_per_token"].get<double>(),
            32 * 4 * 2 * 2 * 32 * 2);
  expect_series(j["ttft"][0], "ms");
  expect_series(j["load"][0], "ms");
  EXPECT_GT(j["peak_mb"]["answer"].get<double>(), 10);

  const std::string md = contents(path("b.md"));
  EXPECT_EQ(std::count(md.begin(), md.end(), '\n'), 16 + (md.find("above 100 %") != md.npos)) << md;
  const std::string svg = contents(path("b.svg"));
  EXPECT_TRUE(svg.starts_with("<svg ")) << svg;
  EXPECT_TRUE(svg.ends_with("</svg>\n"));
  size_t opened = 0, closed = 0;
  for (size_t at = 0; (at = svg.find("<text ", at)) != svg.npos; ++at) ++opened;
  for (size_t at = 0; (at = svg.find("</text>", at)) != svg.npos; ++at) ++closed;
  EXPECT_EQ(opened, closed);
  EXPECT_EQ(left_behind(), 0u);
}

TEST_F(Bench, AShapeNeedsNoWeightsAndIsUsedAgain) {
  const std::string work = path("work");
  const Outcome o = bench({"--shape", "TINY", "--text", "int8", "--vision", "int8,native", "--work", work, "--json", "-"});
  ASSERT_EQ(o.exit_code, 0) << o.err;
  const Json j = parse_json(o.out, "stdout");
  const bool attention = kernels::has_int8_attention(kernels::active_table());
  EXPECT_EQ(j["engine"]["vision"], attention ? "native int8 (7-bit activations, int8 attention)" : "native int8 (7-bit activations)");
  EXPECT_EQ(j["engine"]["text"], "native int8");
  EXPECT_NE(j["model"].get<std::string>().find("tiny"), std::string::npos);
  const fs::path package = fs::path(work) / "tiny-text-int8-vision-int8";
  ASSERT_TRUE(fs::exists(package / "qvl.json"));
  const auto written = fs::last_write_time(package / "qvl.json");
  EXPECT_EQ(std::distance(fs::directory_iterator(work), fs::directory_iterator()), 1);
  const Outcome again = bench({"--shape", "tiny", "--text", "int8", "--vision", "int8", "--work", work});
  EXPECT_EQ(again.exit_code, 0);
  EXPECT_EQ(again.out.find("% of int8 peak") != again.out.npos, attention) << again.out;
  EXPECT_EQ(fs::last_write_time(package / "qvl.json"), written);
  // What is damaged is made anew.
  std::ofstream(package / "qvl.json") << "{";
  EXPECT_EQ(bench({"--shape", "tiny", "--text", "int8", "--vision", "int8", "--work", work}).exit_code, 0);
  EXPECT_GT(fs::file_size(package / "qvl.json"), 100u);
  EXPECT_EQ(left_behind(), 0u);
}

TEST_F(Bench, AFailedValidationGivesNoFigures) {
  const std::string work = path("work");
  ASSERT_EQ(bench({"--shape", "tiny", "--text", "bf16", "--work", work}).exit_code, 0);
  // NaN in the decoder's weights: the same size, so the package opens.
  const fs::path data = fs::path(work) / "tiny-text-bf16-vision-bf16" / "text.data";
  ASSERT_TRUE(fs::exists(data));
  const auto bytes = fs::file_size(data);
  std::ofstream(data, std::ios::binary) << std::string(bytes, '\xff');
  expect_refusal(bench({(fs::path(work) / "tiny-text-bf16-vision-bf16").string(), "--json", path("b.json")}), 1, "finite");
  EXPECT_FALSE(fs::exists(path("b.json")));
}

TEST_F(Bench, RefusesWhatCannotBeMeant) {
  expect_refusal(bench({"--text", "int4"}), 2, "expected --shape beside it");
  expect_refusal(bench({"--shape", "tiny", "--text", "int4,int8"}), 2, "got a second: int8");
  expect_refusal(bench({"--shape", "tiny", "--vision", "int4"}), 2, "--vision");
  expect_refusal(bench({"--shape", "3b"}), 2, "expected 2b, 4b, 8b or 32b");
  expect_refusal(bench({"--shape", "tiny", path("model")}), 2, "expected no model beside it");
  expect_refusal(qvl({"bench", "--picture", "96"}), 2, "--picture");
  expect_refusal(qvl({"bench", "--contexts", "0"}), 2, "--contexts");
  expect_refusal(qvl({"bench", "--contexts", "8,x"}), 2, "--contexts");
  expect_refusal(qvl({"bench", "--repeats", "0"}), 2, "--repeats");
  expect_refusal(qvl({"bench", path("nothing")}), 1, "nothing");
  expect_refusal(qvl({"bench", "--text", "onnx"}), 1, "package");
  expect_refusal(qvl({"bench", "--contexts", "5000", "--repeats", "1", "--picture", "32x32"}), 1, "context");
}

// A measurement must not go on for nobody, taking memory and processors.
TEST_F(Bench, ChildrenEndWithTheProgram) {
  RunOptions options;
  options.signal = SIGKILL;
  const auto measuring = [this] {
    for (const auto& entry : fs::recursive_directory_iterator(folder_ / "tmp"))
      if (entry.path().filename() == "child.err" && contents(entry.path().string()).find("@ 1 ") != std::string::npos)
        return true;
    return false;
  };
  options.signal_when = measuring;
  options.environment = {"QVL_BENCH_TEST_MARK=" + folder_.string()};
  const Outcome o = bench({"--repeats", "1000", "--decode-tokens", "64"}, options);
  EXPECT_TRUE(o.signalled);
  EXPECT_EQ(o.exit_code, 128 + SIGKILL);
  const auto running = [this] {
    int count = 0;
    for (const auto& entry : fs::directory_iterator("/proc")) {
      if (contents((entry.path() / "environ").string()).find("QVL_BENCH_TEST_MARK=" + folder_.string()) !=
          std::string::npos)
        ++count;
    }
    return count;
  };
  for (int i = 0; i < 200 && running() > 0; ++i) usleep(50'000);
  EXPECT_EQ(running(), 0);
}

TEST_F(Bench, CtrlCLeavesNothingBehind) {
  RunOptions options;
  options.signal = SIGINT;
  options.signal_when = [this] { return left_behind() > 0; };
  const Outcome o = bench({"--shape", "2b"}, options);
  EXPECT_TRUE(o.signalled);
  EXPECT_EQ(o.exit_code, 130) << o.err;
  EXPECT_EQ(o.out, "");
  EXPECT_EQ(left_behind(), 0u);
}

}  // namespace
}  // namespace qvl::cli
