// Stop strings across token boundaries: text that could be the beginning of a stop string is held back until
// it is decided. Sits between the streaming decoder and whoever shows the answer.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace qvl::generate {

class StopStrings {
 public:
  // Throws kInvalidArgument for an empty stop string.
  explicit StopStrings(std::vector<std::string> stops);

  // Takes the next piece of the answer and returns what may be shown now. Once a stop string is complete,
  // stopped() is true, the text before it has been returned, and it and all that follows are dropped.
  std::string push(std::string_view piece);
  // The text still held back; call at the end of the answer.
  std::string flush();
  bool stopped() const { return stopped_; }
  // Which one was complete; empty while none is. Of several that begin at the same place the first given.
  const std::string& found() const { return found_; }

 private:
  std::vector<std::string> stops_;
  std::string held_;
  std::string found_;
  bool stopped_ = false;
};

}  // namespace qvl::generate
