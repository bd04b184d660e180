// Rectangles in pixels of the picture, shared by the files of this room.
#pragma once

#include <algorithm>
#include <cmath>

namespace qvl::draw {

// x0 <= x1, y0 <= y1.
struct Rect {
  double x0 = 0, y0 = 0, x1 = 0, y1 = 0;

  double width() const { return x1 - x0; }
  double height() const { return y1 - y0; }
  double area() const { return width() * height(); }
  Rect grown(double by) const { return {x0 - by, y0 - by, x1 + by, y1 + by}; }
  bool operator==(const Rect&) const = default;
};

// Area that both cover.
inline double overlap(const Rect& a, const Rect& b) {
  const double w = std::min(a.x1, b.x1) - std::max(a.x0, b.x0);
  const double h = std::min(a.y1, b.y1) - std::max(a.y0, b.y0);
  return w > 0 && h > 0 ? w * h : 0;
}

// Shortest distance between their borders; 0 when they touch.
inline double distance(const Rect& a, const Rect& b) {
  const double dx = std::max({0.0, a.x0 - b.x1, b.x0 - a.x1});
  const double dy = std::max({0.0, a.y0 - b.y1, b.y0 - a.y1});
  return std::hypot(dx, dy);
}

}  // namespace qvl::draw
