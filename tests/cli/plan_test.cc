// `qvl plan` and the budgets of `qvl run`, with a given calibration, so that every figure follows.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>

#include "process.h"
#include "qvl/base/json.h"

namespace qvl::cli {
namespace {

namespace fs = std::filesystem;

const fs::path kSource = QVL_SOURCE_DIR;
const std::string kShapes = (kSource / "examples/shapes.png").string();
const std::string kSmall = (kSource / "models/small").string();

class Plan : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("qvl_plan_test_" + std::to_string(getpid()));
    fs::remove_all(folder_);
    fs::create_directories(folder_);
    // A machine on which nothing but the encoder takes time: 1 ns for an operation of its linear layers.
    std::ofstream(folder_ / "slow.json") << R"({"vision_linear_s": 1e-9, "vision_attention_s": 0, "vision_weight_s": 0,
      "prefill_linear_s": 0, "prefill_attention_s": 0, "prefill_weight_s": 0, "vision_first_s": 0, "prefill_first_s": 0, "decode_byte_s": 1e-9, "decode_part_s": 0,
      "decode_weight_bytes": 4000000, "element_bytes": 2})";
  }
  void TearDown() override { fs::remove_all(folder_); }
  std::string slow() const { return (folder_ / "slow.json").string(); }
  Outcome run(std::vector<std::string> arguments) const {
    return qvl(arguments, {.environment = {"XDG_CACHE_HOME=" + (folder_ / "cache").string()}});
  }
  Json plan(std::vector<std::string> more) const {
    std::vector<std::string> arguments = {"plan", kSmall, "-i", kShapes, "What is this?", "--json"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    const Outcome o = run(arguments);
    EXPECT_EQ(o.exit_code, 0) << o.err;
    return o.exit_code == 0 ? parse_json(o.out, "stdout") : Json();
  }
  fs::path folder_;
};

void expect_refusal(const Outcome& o, int code, const std::string& part) {
  EXPECT_EQ(o.exit_code, code) << o.err;
  EXPECT_EQ(o.out, "");
  EXPECT_EQ(std::count(o.err.begin(), o.err.end(), '\n'), 1) << o.err;
  EXPECT_NE(o.err.find(part), std::string::npos) << part << " not in: " << o.err;
}

TEST_F(Plan, SaysWhatTheRunThenSays) {
  const Json p = plan({"--calibration", slow()});
  const Outcome o = run({"run", kSmall, "-i", kShapes, "What is this?", "--json", "--max-tokens", "2"});
  ASSERT_EQ(o.exit_code, 0) << o.err;
  const Json r = parse_json(o.out, "stdout");
  const Json& f = p["forecast"];
  EXPECT_EQ(f["prompt_tokens"], r["usage"]["prompt_tokens"]);
  EXPECT_EQ(f["image_tokens"], r["usage"]["image_tokens"]);
  EXPECT_EQ(f["patches"], r["images"][0]["patches"]);
  EXPECT_EQ(f["images"][0]["width"], r["images"][0]["resized_width"]);
  EXPECT_EQ(p["reduced"], false);
  EXPECT_EQ(f, p["without_budget"]);
  EXPECT_GT(f["ttft_ms"].get<double>(), f["vision_ms"].get<double>());
  // A third of what is there or three times it would be no forecast of memory.
  EXPECT_NEAR(f["peak_rss_mb"].get<double>(), r["peak_rss_mb"].get<double>(), 0.3 * r["peak_rss_mb"].get<double>());
}

TEST_F(Plan, ABudgetMakesPicturesSmallerAndRunTakesIt) {
  const Json whole = plan({"--calibration", slow()});
  const double seconds = whole["forecast"]["vision_ms"].get<double>() * 0.6e-3;
  const Json p = plan({"--calibration", slow(), "--budget-seconds", std::to_string(seconds), "--min-pixels", "1024"});
  EXPECT_EQ(p["reduced"], true);
  EXPECT_LE(p["forecast"]["ttft_ms"].get<double>(), seconds * 1e3);
  EXPECT_LT(p["forecast"]["patches"].get<int64_t>(), whole["forecast"]["patches"].get<int64_t>());
  ASSERT_EQ(p["given_up"].size(), 1u);
  EXPECT_NE(p["given_up"][0].get<std::string>().find("instead of"), std::string::npos);

  const Outcome o = run({"run", kSmall, "-i", kShapes, "What is this?", "--json", "--max-tokens", "2", "--calibration", slow(),
                         "--budget-seconds", std::to_string(seconds), "--min-pixels", "1024"});
  ASSERT_EQ(o.exit_code, 0) << o.err;
  EXPECT_NE(o.err.find("for the budget, picture 1 of 192x"), std::string::npos) << o.err;
  EXPECT_EQ(std::count(o.err.begin(), o.err.end(), '\n'), 1) << o.err;
  const Json r = parse_json(o.out, "stdout");
  EXPECT_LT(r["images"][0]["patches"].get<int64_t>(), whole["forecast"]["patches"].get<int64_t>());
  // Room enough: nothing is said and nothing given up.
  const Outcome wide = run({"run", kSmall, "-i", kShapes, "What is this?", "--json", "--max-tokens", "2", "--calibration",
                            slow(), "--budget-seconds", "1000", "--budget-memory", "64G"});
  ASSERT_EQ(wide.exit_code, 0) << wide.err;
  EXPECT_EQ(wide.err, "");
  EXPECT_EQ(parse_json(wide.out, "stdout")["images"][0]["patches"], whole["forecast"]["patches"]);
}

TEST_F(Plan, MeasuresOnceAndKeepsIt) {
  const Outcome first = run({"plan", kSmall, "Hello"});
  ASSERT_EQ(first.exit_code, 0) << first.err;
  EXPECT_NE(first.out.find("measured now in"), std::string::npos) << first.out;
  const fs::path file = folder_ / "cache/qvl/calibration.json";
  ASSERT_TRUE(fs::exists(file));
  const Outcome second = run({"plan", kSmall, "Hello"});
  EXPECT_NE(second.out.find("of 2"), std::string::npos) << second.out;
  EXPECT_EQ(second.out.find("measured now in"), std::string::npos);
  // Another number of threads is another machine; what is damaged is measured again.
  EXPECT_NE(run({"plan", kSmall, "Hello", "--threads", "1"}).out.find("measured now in"), std::string::npos);
  EXPECT_EQ(parse_json_file(file).size(), 2u);
  EXPECT_NE(run({"plan", kSmall, "Hello", "--calibrate"}).out.find("measured now in"), std::string::npos);
  std::ofstream(file) << "[";
  const Outcome third = run({"plan", kSmall, "Hello"});
  EXPECT_EQ(third.exit_code, 0);
  EXPECT_NE(third.out.find("measured now in"), std::string::npos);
  EXPECT_EQ(parse_json_file(file).size(), 1u);
}

TEST_F(Plan, DecodingIsThatOfTheMoment) {
  const auto rate = [](const Json& p) { return p["forecast"]["decode_tokens_per_s"].get<double>(); };
  const double first = rate(plan({}));
  const fs::path file = folder_ / "cache/qvl/calibration.json";
  Json all = parse_json_file(file);
  // Kept figures that no moment makes: beside other tests a step of a tiny model takes a hundred times as long as alone.
  constexpr double kSlower = 1e9;
  const double between = first / std::sqrt(kSlower);
  Json& profile = all.begin().value()["profile"];
  profile["decode_byte_s"] = kSlower * profile["decode_byte_s"].get<double>();
  profile["decode_part_s"] = kSlower * profile["decode_part_s"].get<double>();
  std::ofstream(file) << all;
  const Json later = plan({});
  EXPECT_GT(rate(later), between);
  EXPECT_EQ(later["profile"]["vision_linear_s"], profile["vision_linear_s"]);
  EXPECT_EQ(parse_json_file(file), all);
  EXPECT_NE(run({"plan", kSmall, "Hello"}).out.find("decoding measured now"), std::string::npos);
  // A given one is taken as it is.
  std::ofstream(folder_ / "given.json") << profile;
  EXPECT_LT(rate(plan({"--calibration", (folder_ / "given.json").string()})), between);
  // One of a version that knew fewer figures is no calibration.
  profile.erase("prefill_attention_s");
  std::ofstream(file) << all;
  const Outcome old = run({"plan", kSmall, "Hello"});
  EXPECT_EQ(old.exit_code, 0);
  EXPECT_NE(old.err.find("damaged or of another version"), std::string::npos) << old.err;
  EXPECT_NE(old.out.find("measured now in"), std::string::npos) << old.out;
}

TEST_F(Plan, RefusesWhatCannotBe) {
  expect_refusal(run({"plan", kSmall, "-i", kShapes, "--calibration", slow(), "--budget-seconds", "0.001"}), 1,
                 "smallest pictures");
  expect_refusal(run({"run", kSmall, "-i", kShapes, "Hi", "--calibration", slow(), "--budget-memory", "1M"}), 1,
                 "smallest pictures");
  expect_refusal(run({"plan", "--budget-seconds", "-1"}), 2, "--budget-seconds");
  expect_refusal(run({"plan", "--budget-memory", "lots"}), 2, "--budget-memory");
  expect_refusal(run({"plan", kShapes, "What?"}), 2, "did you mean");
  expect_refusal(run({"plan", kSmall, ""}), 2, "empty text");
  std::ofstream(folder_ / "broken.json") << "{}";
  expect_refusal(run({"plan", kSmall, "Hi", "--calibration", (folder_ / "broken.json").string()}), 1, "vision_linear_s");
  expect_refusal(run({"plan", (folder_ / "none").string(), "Hi"}), 1, "no such model folder");
}

}  // namespace
}  // namespace qvl::cli
