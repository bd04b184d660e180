// Scores answers about pictures: exact match, or the overlap of boxes. `qvl eval` feeds it, tests check it.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "qvl/base/json.h"
#include "qvl/generate/pipeline.h"

namespace qvl::generate {

struct EvalQuestion {
  std::vector<std::filesystem::path> images;  // as in the file, made absolute against its folder
  std::string question;
  std::string answer;
  std::string
      task;  // "colour", "shape", "count", "text", "box", "describe", "differ", ...; "" when not given
};

// The question as a user's message, its pictures before it. Throws what loading a picture throws.
ChatMessage question_message(Pipeline& pipeline, const EvalQuestion& question,
                             const image::PixelOverrides& overrides = {});

// One JSON object per line: {"images": [...], "question", "answer", "task"}; blank lines are skipped. Throws
// kNotFound, kIo, kFormat naming the line.
std::vector<EvalQuestion> read_questions(const std::filesystem::path& jsonl);
// FOLDER/questions.jsonl, or the only *.jsonl in FOLDER, or a file itself. Throws kNotFound,
// kInvalidArgument.
std::filesystem::path find_questions(const std::filesystem::path& folder_or_file);

using Box = std::array<double, 4>;  // x0, y0, x1, y1

// The first "bbox_2d": [x0, y0, x1, y1] in an answer, wherever it stands and whatever is around it.
std::optional<Box> first_box(std::string_view answer);
// Intersection over union; 0 for boxes without area.
double box_iou(const Box& a, const Box& b);

// 0..1. Task "box": IoU of the first boxes, 0 when the answer has none; all others: 1 when the answers are
// equal but for white space at the ends. Throws kFormat when a "box" question's own answer has no box.
double score_answer(const std::string& task, std::string_view answer, std::string_view expected);

// Means by task and by size of the first picture ("160x96", "" without picture).
class EvalTable {
 public:
  void add(const std::string& task, const std::string& size, double score);

  // How the answer's tokens came about.
  void add_decode(const std::string& task, const Answer& answer);

  // {"questions", "score", "tasks": {task: {"questions", "score"}}, "sizes": {...}, "tasks_by_size": {task:
  // {size: {...}}}, "decode": {"tokens" (after the first of each answer), "steps", "drafted_tokens",
  // "accepted_tokens", "ms", "tasks": {task: {...}}}}
  Json to_json() const;
  // Two plain-text tables, scores in percent.
  std::string to_text() const;

  int64_t questions() const { return all_.count; }

 private:
  struct Mean {
    double sum = 0;
    int64_t count = 0;
    void add(double v) { sum += v, ++count; }
    double value() const { return count > 0 ? sum / static_cast<double>(count) : 0.0; }
    Json to_json() const;
  };

  struct Decode {
    int64_t tokens = 0;
    DecodeCounts counts;
    double ms = 0;
    void add(const Answer& answer);
    Json to_json() const;
  };

  Mean all_;
  Decode decode_;
  std::map<std::string, Decode> task_decode_;
  std::map<std::string, Mean> tasks_;
  std::map<std::string, Mean> sizes_;
  std::map<std::string, std::map<std::string, Mean>> cells_;  // task, size
};

}  // namespace qvl::generate
