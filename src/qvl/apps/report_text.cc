#include "qvl/apps/report_text.h"

#include "qvl/base/atomic_file.h"
#include "qvl/base/format.h"

namespace qvl::apps {
namespace {

std::string xml(const std::string& text) {
  std::string out;
  for (char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

}  // namespace

std::string number(const std::optional<double>& v, int decimals) {
  return v ? fmt::format("{:.{}f}", *v, decimals) : std::string("-");
}

std::string short_number(double v) {
  return v >= 100 ? fmt::format("{:.0f}", v) : v >= 10 ? fmt::format("{:.1f}", v) : fmt::format("{:.2f}", v);
}

std::string cut(const std::string& text, size_t most) {
  if (text.size() <= most) return text;
  size_t end = most;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;  // not inside a character
  return text.substr(0, end) + "…";
}

std::string cell(std::string text) {
  for (size_t at = 0; (at = text.find('|', at)) != std::string::npos; at += 2) text.insert(at, 1, '\\');
  return text;
}

void write_text_file(const std::string& path, const std::string& text) {
  AtomicFile file(path);
  file.write(text);
  file.commit();
}

SvgChart::SvgChart(int width, int height) : width_(width) {
  out_ = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\" width=\"{0}\" height=\"{1}\" "
      "font-family=\"system-ui, "
      "'Segoe UI', Helvetica, Arial, sans-serif\">\n<rect width=\"{0}\" height=\"{1}\" fill=\"#ffffff\"/>\n",
      width, height);
}

void SvgChart::text(int x, int y, const std::string& s, const TextStyle& style) {
  out_ += fmt::format(
      "<text x=\"{}\" y=\"{}\" font-size=\"{}\" fill=\"{}\" text-anchor=\"start\" "
      "font-weight=\"{}\">{}</text>\n",
      x, y, style.size, style.colour, style.weight, xml(s));
}

void SvgChart::rectangle(int x, int y, int width, int height, std::string_view colour, int radius) {
  out_ += fmt::format("<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\"{} fill=\"{}\"/>\n", x, y, width, height,
                      radius > 0 ? fmt::format(" rx=\"{}\"", radius) : std::string(), colour);
}

void SvgChart::row_ground(int row, int y, int height) {
  if (row % 2 == 0) rectangle(8, y, width_ - 16, height, "#f5f6f8");
}

std::string SvgChart::finish() {
  return out_ + "</svg>\n";
}

}  // namespace qvl::apps
