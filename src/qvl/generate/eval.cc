#include "qvl/generate/eval.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <iomanip>
#include <sstream>

#include "qvl/base/error.h"
#include "qvl/base/format.h"
#include "qvl/base/mapped_file.h"

namespace qvl::generate {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxQuestionBytes = size_t{256} << 20;

std::string_view trimmed(std::string_view s) {
  constexpr std::string_view kSpace = " \t\r\n";
  const size_t begin = s.find_first_not_of(kSpace);
  if (begin == std::string_view::npos) return {};
  return s.substr(begin, s.find_last_not_of(kSpace) - begin + 1);
}

std::string string_field(const Json& object, const char* key, bool required, const std::string& where) {
  const auto it = object.find(key);
  if (it == object.end() && !required) return {};
  if (it == object.end() || !it->is_string()) {
    fail(ErrorCode::kFormat, where, cat("\"", key, "\""), "a string",
         it == object.end() ? "nothing" : std::string(it->type_name()));
  }
  return it->get<std::string>();
}

EvalQuestion parse_question(const Json& object, const fs::path& folder, const std::string& where) {
  if (!object.is_object()) fail(ErrorCode::kFormat, where, "line", "a JSON object", object.type_name());
  EvalQuestion q{.images = {},
                 .question = string_field(object, "question", true, where),
                 .answer = string_field(object, "answer", true, where),
                 .task = string_field(object, "task", false, where)};
  const auto images = object.find("images");
  if (images == object.end()) return q;
  const bool strings = images->is_array() && std::all_of(images->begin(), images->end(),
                                                         [](const Json& v) { return v.is_string(); });
  if (!strings) fail(ErrorCode::kFormat, where, "\"images\"", "a list of file names", images->dump());
  for (const Json& name : *images) q.images.push_back(folder / name.get<std::string>());
  return q;
}

// Width and height of "160x96" for sorting by area.
int64_t area(const std::string& size) {
  const size_t x = size.find('x');
  if (x == std::string::npos) return 0;
  return std::atoll(size.c_str()) * std::atoll(size.c_str() + x + 1);
}

}  // namespace

ChatMessage question_message(Pipeline& pipeline, const EvalQuestion& question,
                             const image::PixelOverrides& overrides) {
  std::vector<VisualInput> inputs;
  for (const fs::path& image : question.images)
    inputs.push_back({.kind = VisualInput::Kind::kImageFile, .path = image});
  return user_message(pipeline.load(inputs, overrides), question.question);
}

std::vector<EvalQuestion> read_questions(const fs::path& jsonl) {
  const std::string text = read_file(jsonl, kMaxQuestionBytes);
  std::vector<EvalQuestion> questions;
  size_t line_number = 0;
  for (size_t begin = 0; begin < text.size();) {
    size_t end = text.find('\n', begin);
    if (end == std::string::npos) end = text.size();
    const std::string_view line = trimmed(std::string_view(text).substr(begin, end - begin));
    begin = end + 1;
    ++line_number;
    if (line.empty()) continue;
    const std::string where = cat(jsonl.string(), ":", line_number);
    questions.push_back(parse_question(parse_json(line, where), jsonl.parent_path(), where));
  }
  if (questions.empty()) fail(ErrorCode::kFormat, jsonl.string(), "questions", "at least one line", "none");
  return questions;
}

fs::path find_questions(const fs::path& path) {
  std::error_code ec;
  if (!fs::is_directory(path, ec)) {
    if (!fs::exists(path, ec)) fail(ErrorCode::kNotFound, path.string(), "no such file or folder");
    return path;
  }
  if (fs::exists(path / "questions.jsonl", ec)) return path / "questions.jsonl";
  std::vector<fs::path> found;
  for (const auto& entry : fs::directory_iterator(path)) {
    if (entry.path().extension() == ".jsonl") found.push_back(entry.path());
  }
  if (found.size() == 1) return found.front();
  if (found.empty())
    fail(ErrorCode::kNotFound, path.string(), "questions", "questions.jsonl", "no *.jsonl file");
  fail(ErrorCode::kInvalidArgument, path.string(), "questions", "questions.jsonl or a single *.jsonl file",
       cat(found.size(), " of them"), "name one of them");
}

std::optional<Box> first_box(std::string_view answer) {
  static constexpr std::string_view kKey = "\"bbox_2d\"";
  for (size_t at = answer.find(kKey); at != std::string_view::npos; at = answer.find(kKey, at + 1)) {
    std::string rest(answer.substr(at + kKey.size()));
    const char* p = rest.c_str();
    auto skip = [&p] {
      while (*p == ' ' || *p == '\t' || *p == '\n' || *p == '\r') ++p;
    };
    auto take = [&](char c) {
      skip();
      if (*p != c) return false;
      ++p;
      return true;
    };
    if (!take(':') || !take('[')) continue;
    Box box{};
    bool ok = true;
    for (size_t i = 0; i < 4 && ok; ++i) {
      skip();
      char* end = nullptr;
      box[i] = std::strtod(p, &end);
      ok = end != p && std::isfinite(box[i]);
      p = end;
      ok = ok && take(i < 3 ? ',' : ']');
    }
    if (ok) return box;
  }
  return std::nullopt;
}

double box_iou(const Box& a, const Box& b) {
  const double w = std::min(a[2], b[2]) - std::max(a[0], b[0]);
  const double h = std::min(a[3], b[3]) - std::max(a[1], b[1]);
  const double common = w > 0 && h > 0 ? w * h : 0.0;
  auto size = [](const Box& x) { return std::max(0.0, x[2] - x[0]) * std::max(0.0, x[3] - x[1]); };
  const double all = size(a) + size(b) - common;
  return all > 0 ? common / all : 0.0;
}

double score_answer(const std::string& task, std::string_view answer, std::string_view expected) {
  if (task != "box") return trimmed(answer) == trimmed(expected) ? 1.0 : 0.0;
  const std::optional<Box> want = first_box(expected);
  if (!want)
    fail(ErrorCode::kFormat, "eval", "answer of a box question", "\"bbox_2d\": [x0, y0, x1, y1]", expected);
  const std::optional<Box> got = first_box(answer);
  return got ? box_iou(*got, *want) : 0.0;
}

void EvalTable::add(const std::string& task, const std::string& size, double score) {
  all_.add(score);
  tasks_[task].add(score);
  sizes_[size].add(score);
  cells_[task][size].add(score);
}

void EvalTable::Decode::add(const Answer& answer) {
  tokens += std::max<int64_t>(0, static_cast<int64_t>(answer.token_ids.size()) - 1);
  counts.steps += answer.decode.steps;
  counts.drafted_tokens += answer.decode.drafted_tokens;
  counts.accepted_tokens += answer.decode.accepted_tokens;
  ms += answer.decode_ms;
}

Json EvalTable::Decode::to_json() const {
  return {{"tokens", tokens},
          {"steps", counts.steps},
          {"drafted_tokens", counts.drafted_tokens},
          {"accepted_tokens", counts.accepted_tokens},
          {"ms", ms}};
}

void EvalTable::add_decode(const std::string& task, const Answer& answer) {
  decode_.add(answer);
  task_decode_[task].add(answer);
}

Json EvalTable::Mean::to_json() const {
  return {{"questions", count}, {"score", value()}};
}

Json EvalTable::to_json() const {
  Json out = all_.to_json();
  out["tasks"] = Json::object();
  for (const auto& [task, mean] : tasks_) out["tasks"][task] = mean.to_json();
  out["sizes"] = Json::object();
  for (const auto& [size, mean] : sizes_) out["sizes"][size] = mean.to_json();
  out["tasks_by_size"] = Json::object();
  for (const auto& [task, row] : cells_) {
    Json& cells = out["tasks_by_size"][task] = Json::object();
    for (const auto& [size, mean] : row) cells[size] = mean.to_json();
  }
  out["decode"] = decode_.to_json();
  Json& decode_tasks = out["decode"]["tasks"] = Json::object();
  for (const auto& [task, decode] : task_decode_) decode_tasks[task] = decode.to_json();
  return out;
}

std::string EvalTable::to_text() const {
  std::ostringstream out;
  out << std::fixed << std::setprecision(1);
  auto name = [](const std::string& s) { return s.empty() ? std::string("(none)") : s; };
  auto row = [&](const std::string& label, const Mean& mean) {
    out << std::left << std::setw(12) << label << std::right << std::setw(10) << mean.count << std::setw(10)
        << 100 * mean.value() << '\n';
  };
  out << std::left << std::setw(12) << "task" << std::right << std::setw(10) << "questions" << std::setw(10)
      << "score %" << '\n';
  for (const auto& [task, mean] : tasks_) row(name(task), mean);
  row("all", all_);

  std::vector<std::string> sizes;
  for (const auto& [size, mean] : sizes_) sizes.push_back(size);
  std::stable_sort(sizes.begin(), sizes.end(),
                   [](const auto& a, const auto& b) { return area(a) < area(b); });
  out << '\n' << std::left << std::setw(12) << "size" << std::right;
  for (const auto& [task, mean] : tasks_)
    out << std::setw(std::max<int>(10, static_cast<int>(name(task).size()) + 2)) << name(task);
  out << std::setw(10) << "all" << '\n';
  for (const std::string& size : sizes) {
    out << std::left << std::setw(12) << name(size) << std::right;
    for (const auto& [task, cells] : cells_) {
      const int width = std::max<int>(10, static_cast<int>(name(task).size()) + 2);
      const auto cell = cells.find(size);
      if (cell == cells.end()) {
        out << std::setw(width) << "-";
      } else {
        out << std::setw(width) << 100 * cell->second.value();
      }
    }
    out << std::setw(10) << 100 * sizes_.at(size).value() << '\n';
  }
  return out.str();
}

}  // namespace qvl::generate
