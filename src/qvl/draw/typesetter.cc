#include "qvl/draw/typesetter.h"

#include <fontconfig/fontconfig.h>
#include <pango/pangocairo.h>

#include <algorithm>
#include <array>

#include "qvl/base/error.h"

namespace qvl::draw {
namespace {

constexpr glong kMaxLabelCharacters = 200;
constexpr std::string_view kEllipsis = "…";

struct Unref {
  void operator()(void* object) const { g_object_unref(object); }
};
template <typename T>
using Owned = std::unique_ptr<T, Unref>;

struct FreeText {
  void operator()(gchar* text) const { g_free(text); }
};
using OwnedText = std::unique_ptr<gchar, FreeText>;

bool has_outlines(FcFontSet* set) {
  if (set == nullptr) return false;
  for (int i = 0; i < set->nfont; ++i) {
    FcBool outline = FcFalse;
    if (FcPatternGetBool(set->fonts[i], FC_OUTLINE, 0, &outline) == FcResultMatch && outline) return true;
  }
  return false;
}

// Segments of a digit: top, upper right, lower right, bottom, lower left, upper left, middle.
constexpr std::array<uint8_t, 10> kSegments = {0b0111111, 0b0000110, 0b1011011, 0b1001111, 0b1100110,
                                               0b1101101, 0b1111101, 0b0000111, 0b1111111, 0b1101111};
constexpr std::array<std::array<double, 4>, 7> kStrokes = {{{0, 0, 1, 0},
                                                            {1, 0, 1, 1},
                                                            {1, 1, 1, 2},
                                                            {0, 2, 1, 2},
                                                            {0, 1, 0, 2},
                                                            {0, 0, 0, 1},
                                                            {0, 1, 1, 1}}};

TextLine segment_number(const std::string& digits, double text_px) {
  const double unit = text_px * 0.34;     // a stroke's length
  const double pen = text_px * 0.14;      // its width
  const double advance = unit + 2.2 * pen;
  TextLine line;
  line.width = advance * static_cast<double>(digits.size()) - 1.2 * pen;
  line.height = 2 * unit + pen;
  line.baseline = line.height;
  line.paint = [=](cairo_t* cr, double x, double y) {
    cairo_save(cr);
    cairo_set_line_width(cr, pen);
    cairo_set_line_cap(cr, CAIRO_LINE_CAP_ROUND);
    for (size_t i = 0; i < digits.size(); ++i) {
      const double left = x + pen / 2 + advance * static_cast<double>(i), top = y + pen / 2;
      const uint8_t segments = kSegments[static_cast<size_t>(digits[i] - '0')];
      for (size_t s = 0; s < kStrokes.size(); ++s) {
        if ((segments >> s & 1) == 0) continue;
        cairo_move_to(cr, left + kStrokes[s][0] * unit, top + kStrokes[s][1] * unit);
        cairo_line_to(cr, left + kStrokes[s][2] * unit, top + kStrokes[s][3] * unit);
      }
    }
    cairo_stroke(cr);
    cairo_restore(cr);
  };
  return line;
}

}  // namespace

bool machine_has_fonts() {
  FcConfig* config = FcConfigReference(nullptr);
  if (config == nullptr) return false;
  const bool found = has_outlines(FcConfigGetFonts(config, FcSetSystem)) ||
                     has_outlines(FcConfigGetFonts(config, FcSetApplication));
  FcConfigDestroy(config);
  return found;
}

std::string clean_label(std::string_view label) {
  if (label.empty()) return {};
  const OwnedText valid(g_utf8_make_valid(label.data(), static_cast<gssize>(label.size())));
  std::string out;
  bool space = false;
  glong count = 0;
  for (const gchar* p = valid.get(); *p != '\0'; p = g_utf8_next_char(p)) {
    const gunichar c = g_utf8_get_char(p);
    if (g_unichar_isspace(c) || g_unichar_iscntrl(c)) {
      space = !out.empty();
      continue;
    }
    if (count >= kMaxLabelCharacters) return out.append(kEllipsis);
    if (space) out += ' ', ++count;
    space = false;
    out.append(p, static_cast<size_t>(g_utf8_next_char(p) - p));
    ++count;
  }
  return out;
}

std::string label_key(const std::string& label) {
  return OwnedText(g_utf8_casefold(label.c_str(), static_cast<gssize>(label.size()))).get();
}

struct Typesetter::Fonts {
  Owned<PangoFontMap> map;
  Owned<PangoContext> context;

  explicit Fonts(double text_px) : map(pango_cairo_font_map_new()), context(pango_font_map_create_context(map.get())) {
    // The same letters on every screen: no subpixel colours, no rounding of widths.
    cairo_font_options_t* options = cairo_font_options_create();
    cairo_font_options_set_antialias(options, CAIRO_ANTIALIAS_GRAY);
    cairo_font_options_set_hint_style(options, CAIRO_HINT_STYLE_SLIGHT);
    cairo_font_options_set_hint_metrics(options, CAIRO_HINT_METRICS_OFF);
    pango_cairo_context_set_font_options(context.get(), options);
    cairo_font_options_destroy(options);
    pango_context_set_round_glyph_positions(context.get(), FALSE);
    PangoFontDescription* font = pango_font_description_from_string("sans-serif Bold");
    pango_font_description_set_absolute_size(font, text_px * PANGO_SCALE);
    pango_context_set_font_description(context.get(), font);
    pango_font_description_free(font);
  }
};

Typesetter::Typesetter(double text_px) : text_px_(text_px) {
  if (machine_has_fonts()) fonts_ = std::make_unique<Fonts>(text_px);
}
Typesetter::~Typesetter() = default;

std::optional<TextLine> Typesetter::line(const std::string& text, double max_width) const {
  if (!fonts_) return std::nullopt;
  const std::shared_ptr<PangoLayout> layout(pango_layout_new(fonts_->context.get()), Unref{});
  pango_layout_set_single_paragraph_mode(layout.get(), TRUE);
  pango_layout_set_text(layout.get(), text.data(), static_cast<int>(text.size()));
  if (pango_layout_get_unknown_glyphs_count(layout.get()) > 0) return std::nullopt;
  PangoRectangle box;
  pango_layout_get_extents(layout.get(), nullptr, &box);
  if (box.width > max_width * PANGO_SCALE) {
    pango_layout_set_ellipsize(layout.get(), PANGO_ELLIPSIZE_END);
    pango_layout_set_width(layout.get(), static_cast<int>(max_width * PANGO_SCALE));
    pango_layout_get_extents(layout.get(), nullptr, &box);
  }
  TextLine line;
  line.width = static_cast<double>(box.width) / PANGO_SCALE;
  line.height = static_cast<double>(box.height) / PANGO_SCALE;
  line.baseline = static_cast<double>(pango_layout_get_baseline(layout.get()) - box.y) / PANGO_SCALE;
  const double left = static_cast<double>(box.x) / PANGO_SCALE, top = static_cast<double>(box.y) / PANGO_SCALE;
  line.paint = [layout, left, top](cairo_t* cr, double x, double y) {
    cairo_move_to(cr, x - left, y - top);
    pango_cairo_show_layout(cr, layout.get());
  };
  return line;
}

TextLine Typesetter::number(int value) const {
  const std::string digits = std::to_string(std::max(0, value));
  if (std::optional<TextLine> text = line(digits, 1e6)) return *std::move(text);
  return segment_number(digits, text_px_);
}

}  // namespace qvl::draw
