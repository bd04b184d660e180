#include "qvl/draw/marks.h"

#include <cairo/cairo.h>

#include <numbers>

namespace qvl::draw {
namespace {

void set_color(cairo_t* cr, Color c) {
  cairo_set_source_rgb(cr, c.red / 255.0, c.green / 255.0, c.blue / 255.0);
}

void add_rect(cairo_t* cr, const Rect& r) {
  cairo_rectangle(cr, r.x0, r.y0, r.width(), r.height());
}

void add_rounded(cairo_t* cr, const Rect& r, double radius) {
  constexpr double kQuarter = std::numbers::pi / 2;
  cairo_new_sub_path(cr);
  cairo_arc(cr, r.x1 - radius, r.y0 + radius, radius, -kQuarter, 0);
  cairo_arc(cr, r.x1 - radius, r.y1 - radius, radius, 0, kQuarter);
  cairo_arc(cr, r.x0 + radius, r.y1 - radius, radius, kQuarter, 2 * kQuarter);
  cairo_arc(cr, r.x0 + radius, r.y0 + radius, radius, 2 * kQuarter, 3 * kQuarter);
  cairo_close_path(cr);
}

// What is between two rectangles; an inner one without area leaves the outer one whole.
void fill_between(cairo_t* cr, const Rect& outer, const Rect& inner, Color color) {
  cairo_save(cr);
  cairo_new_path(cr);
  cairo_set_fill_rule(cr, CAIRO_FILL_RULE_EVEN_ODD);
  add_rect(cr, outer);
  if (inner.x1 > inner.x0 && inner.y1 > inner.y0) add_rect(cr, inner);
  set_color(cr, color);
  cairo_fill(cr);
  cairo_restore(cr);
}

// Four sides instead of the whole, so that tiles inside a large frame are left alone.
std::vector<Rect> sides(const Rect& outer, const Rect& inner) {
  if (inner.x1 <= inner.x0 || inner.y1 <= inner.y0) return {outer};
  return {{outer.x0, outer.y0, outer.x1, inner.y0},
          {outer.x0, inner.y1, outer.x1, outer.y1},
          {outer.x0, outer.y0, inner.x0, outer.y1},
          {inner.x1, outer.y0, outer.x1, outer.y1}};
}

// First pixel of a line whose middle is at `edge`.
double line_start(double edge, double line, double size) {
  return std::clamp(std::round(edge - line / 2), 0.0, std::max(0.0, size - line));
}

double ring_radius(const Style& style) {
  return std::max(3.0, 2.2 * style.line);
}

double padding(const Style& style) {
  return std::ceil(style.text * 0.28);
}

void stroke_with_halo(cairo_t* cr, const Paint& paint, double line, double halo) {
  set_color(cr, paint.contrast);
  cairo_set_line_width(cr, line + 2 * halo);
  cairo_stroke_preserve(cr);
  set_color(cr, paint.color);
  cairo_set_line_width(cr, line);
  cairo_stroke(cr);
}

// The label on its colour; the number in that colour on its contrast, so that it is no part of the text.
void paint_chip(cairo_t* cr, const Rect& place, const ChipText& text, const Paint& paint, const Style& style) {
  const double pad = padding(style);
  double baseline = 0;
  for (const auto* part : {&text.number, &text.label}) {
    if (*part) baseline = std::max(baseline, (*part)->baseline);
  }
  const double radius = std::min(style.halo + 0.15 * style.text, place.height() / 2);
  add_rounded(cr, place, radius);
  set_color(cr, paint.color);
  cairo_fill(cr);
  double x = place.x0;
  const auto put = [&](const TextLine& part, Color color) {
    set_color(cr, color);
    part.paint(cr, x + pad, place.y0 + style.halo + baseline - part.baseline);
    x += std::ceil(part.width) + 2 * pad;
  };
  if (text.number) {
    const double border = std::max(1.0, std::round(style.halo / 2));
    Rect ground = place.grown(-border);
    if (text.label) ground.x1 = place.x0 + std::ceil(text.number->width) + 2 * pad;
    cairo_new_path(cr);
    add_rounded(cr, ground, std::max(0.0, radius - border));
    set_color(cr, paint.contrast);
    cairo_fill(cr);
    put(*text.number, paint.color);
  }
  if (text.label) put(*text.label, paint.contrast);
}

}  // namespace

Frame frame_of(const Rect& box, const Style& style, double width, double height) {
  const double line = style.line;
  const double left = line_start(box.x0, line, width), right = line_start(box.x1, line, width);
  const double top = line_start(box.y0, line, height), bottom = line_start(box.y1, line, height);
  Frame frame;
  frame.outer = {left, top, std::min(width, right + line), std::min(height, bottom + line)};
  frame.inner = {left + line, top + line, right, bottom};
  if (frame.inner.x1 <= frame.inner.x0 || frame.inner.y1 <= frame.inner.y0) frame.inner = {};
  return frame;
}

Rect cross_of(double x, double y, const Style& style) {
  const double arm = 2 * ring_radius(style);
  return Rect{x, y, x, y}.grown(std::ceil(arm + style.halo));
}

Mark frame_mark(const Frame& frame, const Paint& paint, const Style& style) {
  const Rect halo_outer = frame.outer.grown(style.halo);
  Rect halo_inner = frame.inner.grown(-style.halo);
  // A small box has no room for a halo inside: what is in it stays visible.
  if (halo_inner.x1 <= halo_inner.x0 || halo_inner.y1 <= halo_inner.y0) halo_inner = frame.inner;
  Mark mark;
  mark.covers = sides(halo_outer, halo_inner);
  mark.paint = [=](cairo_t* cr) {
    fill_between(cr, halo_outer, halo_inner, paint.contrast);
    fill_between(cr, frame.outer, frame.inner, paint.color);
    const Rect middle = frame.outer.grown(-style.line / 2);
    if (!paint.dashed || middle.width() <= 0 || middle.height() <= 0) return;
    cairo_save(cr);
    const double pattern[] = {3 * style.line, 4 * style.line};
    cairo_set_dash(cr, pattern, 2, 0);
    cairo_set_line_width(cr, style.line);
    set_color(cr, paint.contrast);
    add_rect(cr, middle);
    cairo_stroke(cr);
    cairo_restore(cr);
  };
  return mark;
}

Mark cross_mark(double x, double y, const Paint& paint, const Style& style) {
  Mark mark;
  mark.covers = {cross_of(x, y, style).grown(1)};
  mark.paint = [=](cairo_t* cr) {
    const double ring = ring_radius(style);
    cairo_save(cr);
    cairo_new_path(cr);
    for (const auto& [dx, dy] : {std::pair{1, 0}, {-1, 0}, {0, 1}, {0, -1}}) {
      cairo_move_to(cr, x + dx * ring, y + dy * ring);
      cairo_line_to(cr, x + 2 * dx * ring, y + 2 * dy * ring);
    }
    cairo_new_sub_path(cr);
    cairo_arc(cr, x, y, ring, 0, 2 * std::numbers::pi);
    stroke_with_halo(cr, paint, style.line, style.halo);
    cairo_arc(cr, x, y, std::max(1.0, style.line / 2), 0, 2 * std::numbers::pi);
    cairo_fill(cr);
    cairo_restore(cr);
  };
  return mark;
}

std::optional<Mark> leader_mark(const Rect& chip, const Rect& shape, const Paint& paint, const Style& style) {
  if (distance(chip, shape) <= style.line) return std::nullopt;
  // The closest points of two rectangles; where they face each other, in the middle of the common stretch.
  const auto closest = [](double a0, double a1, double b0, double b1) {
    if (a1 < b0) return std::pair{a1, b0};
    if (b1 < a0) return std::pair{a0, b1};
    const double middle = (std::max(a0, b0) + std::min(a1, b1)) / 2;
    return std::pair{middle, middle};
  };
  const auto [from_x, to_x] = closest(chip.x0, chip.x1, shape.x0, shape.x1);
  const auto [from_y, to_y] = closest(chip.y0, chip.y1, shape.y0, shape.y1);
  const double line = std::max(1.0, style.line / 2);
  Mark mark;
  mark.covers = {Rect{std::min(from_x, to_x), std::min(from_y, to_y), std::max(from_x, to_x), std::max(from_y, to_y)}.grown(
      line + style.halo + 1)};
  mark.paint = [=, from_x = from_x, to_x = to_x, from_y = from_y, to_y = to_y](cairo_t* cr) {
    cairo_save(cr);
    cairo_new_path(cr);
    cairo_move_to(cr, from_x, from_y);
    cairo_line_to(cr, to_x, to_y);
    stroke_with_halo(cr, paint, line, style.halo);
    cairo_restore(cr);
  };
  return mark;
}

double chip_width(const ChipText& text, const Style& style) {
  double width = 0;
  for (const auto* part : {&text.number, &text.label}) {
    if (*part) width += std::ceil((*part)->width) + 2 * padding(style);
  }
  return width;
}

double chip_height(const ChipText& text, const Style& style) {
  double above = 0, below = 0;
  for (const auto* part : {&text.number, &text.label}) {
    if (!*part) continue;
    above = std::max(above, (*part)->baseline);
    below = std::max(below, (*part)->height - (*part)->baseline);
  }
  return text.empty() ? 0 : std::ceil(above + below) + 2 * style.halo;
}

Mark chip_mark(const Rect& place, ChipText text, const Paint& paint, const Style& style) {
  Mark mark;
  mark.covers = {place};
  // By itself first: Cairo puts letters on whole pixels of its surface, halves away from the origin, and tiles have
  // different ones.
  mark.paint = [=](cairo_t* cr) {
    cairo_surface_t* chip = cairo_image_surface_create(CAIRO_FORMAT_ARGB32, static_cast<int>(place.width()),
                                                       static_cast<int>(place.height()));
    cairo_t* on_chip = cairo_create(chip);
    paint_chip(on_chip, {0, 0, place.width(), place.height()}, text, paint, style);
    cairo_destroy(on_chip);
    cairo_save(cr);
    cairo_set_source_surface(cr, chip, place.x0, place.y0);
    cairo_paint(cr);
    cairo_restore(cr);
    cairo_surface_destroy(chip);
  };
  return mark;
}

}  // namespace qvl::draw
