// Lines that a user types: with editing and history on a terminal, plainly from a pipe.
#pragma once

#include <memory>
#include <optional>
#include <string>

namespace qvl::apps {

class LineReader {
 public:
  // `prompt` is shown on a terminal only, on stderr.
  explicit LineReader(std::string prompt);
  ~LineReader();

  // The next line without its newline; nothing at the end of input. Ctrl-C on a terminal drops the line and
  // starts a new one (interrupt_flag() is reset).
  std::optional<std::string> next();

 private:
  struct Editor;
  std::unique_ptr<Editor> editor_;
};

}  // namespace qvl::apps
