#include "qvl/generate/eval.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>

#include "qvl/base/error.h"

namespace qvl::generate {
namespace {

namespace fs = std::filesystem;

class EvalFiles : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("qvl_eval_test_" + std::to_string(getpid()));
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }
  void write(const std::string& name, const std::string& text) { std::ofstream(folder_ / name) << text; }
  fs::path folder_;
};

TEST(Eval, ExactMatchForgivesOnlyWhiteSpaceAtTheEnds) {
  EXPECT_EQ(score_answer("colour", " red\n", "red"), 1.0);
  EXPECT_EQ(score_answer("colour", "Red", "red"), 0.0);
  EXPECT_EQ(score_answer("text", "A B", "AB"), 0.0);
  EXPECT_EQ(score_answer("", "x", "x"), 1.0);
  EXPECT_EQ(score_answer("count", "", "3"), 0.0);
}

TEST(Eval, FindsTheFirstBoxWhereverItStands) {
  EXPECT_EQ(first_box(R"({"bbox_2d": [1, 2, 3, 4], "label": "a"})"), (Box{1, 2, 3, 4}));
  EXPECT_EQ(first_box("```json\n[{\"bbox_2d\":[10,20.5,30,40]}, {\"bbox_2d\": [0,0,1,1]}]"),
            (Box{10, 20.5, 30, 40}));
  EXPECT_EQ(first_box(R"({"bbox_2d": [1, 2, 3], "x": {"bbox_2d": [5, 6, 7, 8]}})"), (Box{5, 6, 7, 8}));
  EXPECT_EQ(first_box(R"({"bbox_2d": [1, 2, 3)"), std::nullopt);
  EXPECT_EQ(first_box(R"({"bbox_2d": ["a", 2, 3, 4]})"), std::nullopt);
  EXPECT_EQ(first_box("no box"), std::nullopt);
  EXPECT_EQ(first_box(""), std::nullopt);
}

TEST(Eval, OverlapOfBoxes) {
  EXPECT_DOUBLE_EQ(box_iou({0, 0, 10, 10}, {0, 0, 10, 10}), 1.0);
  EXPECT_DOUBLE_EQ(box_iou({0, 0, 10, 10}, {5, 0, 15, 10}), 50.0 / 150.0);
  EXPECT_DOUBLE_EQ(box_iou({0, 0, 10, 10}, {2, 2, 4, 4}), 0.04);
  EXPECT_DOUBLE_EQ(box_iou({0, 0, 10, 10}, {10, 0, 20, 10}), 0.0);
  EXPECT_DOUBLE_EQ(box_iou({0, 0, 10, 10}, {20, 20, 30, 30}), 0.0);
  EXPECT_DOUBLE_EQ(box_iou({3, 3, 3, 3}, {3, 3, 3, 3}), 0.0);
  EXPECT_DOUBLE_EQ(box_iou({10, 10, 0, 0}, {0, 0, 10, 10}), 0.0);  // corners swapped: not a box
  const std::string want = R"({"bbox_2d": [0, 0, 100, 100], "label": "red circle"})";
  EXPECT_DOUBLE_EQ(score_answer("box", R"({"bbox_2d": [0, 0, 50, 100], "label": "other"})", want), 0.5);
  EXPECT_DOUBLE_EQ(score_answer("box", "There is no circle.", want), 0.0);
  EXPECT_THROW(score_answer("box", want, "nothing"), Error);
}

TEST_F(EvalFiles, ReadsQuestionsAndFindsTheFile) {
  write("questions.jsonl",
        "{\"images\": [\"a.png\", \"sub/b.png\"], \"question\": \"Q\", \"answer\": \"A\", \"task\": "
        "\"differ\"}\n"
        "\n  \n"
        "{\"question\": \"text only\", \"answer\": \"B\"}");
  write("other.jsonl", "{}");
  EXPECT_EQ(find_questions(folder_), folder_ / "questions.jsonl");
  const auto questions = read_questions(find_questions(folder_));
  ASSERT_EQ(questions.size(), 2U);
  EXPECT_EQ(questions[0].images, (std::vector<fs::path>{folder_ / "a.png", folder_ / "sub/b.png"}));
  EXPECT_EQ(questions[0].task, "differ");
  EXPECT_EQ(questions[1].question, "text only");
  EXPECT_TRUE(questions[1].images.empty());
}

TEST_F(EvalFiles, BadFilesAreNamedWithTheirLine) {
  auto message = [&](const std::string& text) -> std::string {
    write("q.jsonl", text);
    try {
      read_questions(folder_ / "q.jsonl");
    } catch (const Error& e) {
      return e.what();
    }
    return "no error";
  };
  const std::string good = R"({"question": "Q", "answer": "A"})";
  EXPECT_NE(message(good + "\n{").find("q.jsonl:2"), std::string::npos);
  EXPECT_NE(message(R"({"question": "Q"})").find("answer"), std::string::npos);
  EXPECT_NE(message(R"({"question": 3, "answer": "A"})").find("question"), std::string::npos);
  EXPECT_NE(message(R"({"images": "a.png", "question": "Q", "answer": "A"})").find("images"),
            std::string::npos);
  EXPECT_NE(message("[]").find("object"), std::string::npos);
  EXPECT_NE(message("\n\n").find("at least one"), std::string::npos);
  EXPECT_THROW(find_questions(folder_ / "absent"), Error);
  write("second.jsonl", good);
  EXPECT_THROW(find_questions(folder_), Error);  // two candidates
  fs::remove(folder_ / "q.jsonl");
  EXPECT_EQ(find_questions(folder_), folder_ / "second.jsonl");
  fs::remove(folder_ / "second.jsonl");
  EXPECT_THROW(find_questions(folder_), Error);  // none
}

TEST(Eval, TableMeansByTaskAndSize) {
  EvalTable table;
  table.add("colour", "320x256", 1);
  table.add("colour", "96x96", 0);
  table.add("box", "96x96", 0.5);
  table.add("", "", 1);
  Answer answer{.token_ids = {1, 2, 3, 4, 5}, .decode_ms = 2};
  answer.decode = {.steps = 2, .drafted_tokens = 6, .accepted_tokens = 2};
  table.add_decode("box", answer);
  table.add_decode("colour", {.token_ids = {1}});
  table.add_decode("colour", {});
  table.add_decode("box", answer);
  const Json j = table.to_json();
  EXPECT_EQ(j["decode"]["tokens"], 8);
  EXPECT_EQ(j["decode"]["steps"], 4);
  EXPECT_EQ(j["decode"]["drafted_tokens"], 12);
  EXPECT_EQ(j["decode"]["accepted_tokens"], 4);
  EXPECT_EQ(j["decode"]["ms"], 4.0);
  EXPECT_EQ(j["decode"]["tasks"]["box"]["steps"], 4);
  EXPECT_EQ(j["decode"]["tasks"]["colour"]["tokens"], 0);
  EXPECT_EQ(j["questions"], 4);
  EXPECT_DOUBLE_EQ(j["score"].get<double>(), 0.625);
  EXPECT_EQ(j["tasks"]["colour"]["questions"], 2);
  EXPECT_DOUBLE_EQ(j["tasks"]["colour"]["score"].get<double>(), 0.5);
  EXPECT_DOUBLE_EQ(j["sizes"]["96x96"]["score"].get<double>(), 0.25);
  EXPECT_DOUBLE_EQ(j["tasks_by_size"]["box"]["96x96"]["score"].get<double>(), 0.5);
  EXPECT_FALSE(j["tasks_by_size"]["box"].contains("320x256"));
  const std::string text = table.to_text();
  EXPECT_NE(text.find("62.5"), std::string::npos) << text;
  // Sizes ascend by area, and a cell without questions shows a dash.
  EXPECT_LT(text.find("96x96"), text.find("320x256")) << text;
  EXPECT_NE(text.find(" -"), std::string::npos) << text;
}

}  // namespace
}  // namespace qvl::generate
