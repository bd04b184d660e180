#include "qvl/apps/line_reader.h"

#include <cstdio>
#include <iostream>

#include "qvl/apps/terminal.h"
#include "qvl/base/format.h"

#ifdef QVL_HAVE_LIBEDIT
#include <histedit.h>
#endif

namespace qvl::apps {

#ifdef QVL_HAVE_LIBEDIT

struct LineReader::Editor {
  std::string prompt;
  EditLine* edit = nullptr;
  History* history = nullptr;
};

namespace {

std::string* g_prompt = nullptr;  // libedit's prompt callback has no user data in every release

char* show_prompt(EditLine*) {
  return g_prompt->data();
}

}  // namespace

LineReader::LineReader(std::string prompt) {
  if (!stdin_is_terminal()) return;
  editor_ = std::make_unique<Editor>();
  editor_->prompt = std::move(prompt);
  g_prompt = &editor_->prompt;
  editor_->edit = el_init("qvl", stdin, stderr, stderr);
  editor_->history = history_init();
  HistEvent event;
  history(editor_->history, &event, H_SETSIZE, 500);
  history(editor_->history, &event, H_SETUNIQUE, 1);
  el_set(editor_->edit, EL_PROMPT, show_prompt);
  el_set(editor_->edit, EL_EDITOR, "emacs");
  el_set(editor_->edit, EL_HIST, history, editor_->history);
  el_set(editor_->edit, EL_SIGNAL, 0);  // Ctrl-C is ours
}

LineReader::~LineReader() {
  if (!editor_) return;
  el_end(editor_->edit);
  history_end(editor_->history);
  g_prompt = nullptr;
}

std::optional<std::string> LineReader::next() {
  if (!editor_) {
    std::string line;
    if (!std::getline(std::cin, line)) return std::nullopt;
    return line;
  }
  for (;;) {
    int length = 0;
    const char* line = el_gets(editor_->edit, &length);
    if (interrupt_flag().exchange(false)) {
      fmt::print(stderr, "\n");
      el_reset(editor_->edit);
      continue;
    }
    if (!line || length <= 0) return std::nullopt;
    std::string text(line, static_cast<size_t>(length));
    while (!text.empty() && (text.back() == '\n' || text.back() == '\r')) text.pop_back();
    if (!text.empty()) {
      HistEvent event;
      history(editor_->history, &event, H_ENTER, text.c_str());
    }
    return text;
  }
}

#else

struct LineReader::Editor {
  std::string prompt;
};

LineReader::LineReader(std::string prompt) {
  if (!stdin_is_terminal()) return;
  editor_ = std::make_unique<Editor>();
  editor_->prompt = std::move(prompt);
}

LineReader::~LineReader() = default;

std::optional<std::string> LineReader::next() {
  for (;;) {
    if (editor_) {
      fmt::print(stderr, "{}", editor_->prompt);
      std::fflush(stderr);
    }
    std::string line;
    if (std::getline(std::cin, line)) return line;
    if (!editor_ || !interrupt_flag().exchange(false)) return std::nullopt;
    std::cin.clear();
    std::clearerr(stdin);
    fmt::print(stderr, "\n");
  }
}

#endif

}  // namespace qvl::apps
