// What the reports of `qvl compare` and `qvl bench` share: numbers in words, escaping for Markdown and SVG, the parts
// of a chart.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace qvl::apps {

// With so many decimals; "-" for nothing.
std::string number(const std::optional<double>& v, int decimals);
// Three digits: "12.3".
std::string short_number(double v);
// `text` up to `most` bytes, never inside a character, and an ellipsis.
std::string cut(const std::string& text, size_t most);
// For a cell of a Markdown table: a bar would end it.
std::string cell(std::string text);

// Writes through a file that appears when it is complete. Throws kIo.
void write_text_file(const std::string& path, const std::string& text);

// A chart on white, in user units of pixels.
class SvgChart {
 public:
  SvgChart(int width, int height);
  struct TextStyle {
    int size = 11;
    std::string_view colour = "#1a1a1a";
    std::string_view weight = "400";
  };
  // Left-aligned, the baseline at y; escaped here.
  void text(int x, int y, const std::string& s, const TextStyle& style);
  void text(int x, int y, const std::string& s) { text(x, y, s, {}); }
  void rectangle(int x, int y, int width, int height, std::string_view colour, int radius = 0);
  // Every other row of a chart gets a light ground.
  void row_ground(int row, int y, int height);
  std::string finish();

 private:
  int width_;
  std::string out_;
};

inline constexpr std::string_view kChartGrey = "#666666";
inline constexpr std::string_view kChartRed = "#a03030";
inline constexpr std::string_view kChartBlue = "#2f6db5";
inline constexpr std::string_view kChartGreen = "#2e8b57";
inline constexpr std::string_view kChartOrange = "#b5652f";

}  // namespace qvl::apps
