// Lines of text from the machine's fonts, by Pango; and numbers, which need none.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

typedef struct _cairo cairo_t;

namespace qvl::draw {

// True when Fontconfig knows an outline font.
bool machine_has_fonts();

// Valid UTF-8 on one line: what is broken becomes U+FFFD, runs of white space and control characters one space, and
// after 200 characters it ends with "…".
std::string clean_label(std::string_view label);

// Equal for labels that differ in upper and lower case alone.
std::string label_key(const std::string& label);

// A line that was measured; pixels.
struct TextLine {
  double width = 0;
  double height = 0;
  double baseline = 0;  // from the top
  // Paints it in the current colour with its upper left corner at x, y.
  std::function<void(cairo_t*, double x, double y)> paint;
};

class Typesetter {
 public:
  // `text_px`: the em.
  explicit Typesetter(double text_px);
  ~Typesetter();
  Typesetter(const Typesetter&) = delete;
  Typesetter& operator=(const Typesetter&) = delete;

  // Nothing when a character of `text` (clean) is in no font. Cut with "…" to `max_width`.
  std::optional<TextLine> line(const std::string& text, double max_width) const;
  // Digits; without fonts they are drawn as those of a pocket calculator.
  TextLine number(int value) const;

 private:
  struct Fonts;
  double text_px_;
  std::unique_ptr<Fonts> fonts_;  // null: none on this machine
};

}  // namespace qvl::draw
