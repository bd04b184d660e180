#include "qvl/draw/placement.h"

#include <limits>

namespace qvl::draw {
namespace {

// Costs, in units of a chip that lies on another one entirely = kOverChip. Their order of size is what matters: rather
// over a target than over a chip, rather off than over a small target, rather above than below.
constexpr double kOverChip = 20;
constexpr double kOverTarget = 1;       // the chip lies on a target entirely
constexpr double kTargetCovered = 4;    // the target lies under the chip entirely
constexpr double kAwayPerHeight = 0.6;  // for each chip height of distance
constexpr double kPreference = 0.03;    // for each place later in the list
constexpr int kRings = 6;
// Looking again costs as much as the first time; with this many targets the picture is full anyway.
constexpr size_t kMaxToLookAgain = 1000;

Rect at(double x, double y, const Target& t, double width, double height) {
  x = std::clamp(x, 0.0, std::max(0.0, width - t.chip_width));
  y = std::clamp(y, 0.0, std::max(0.0, height - t.chip_height));
  return {x, y, x + t.chip_width, y + t.chip_height};
}

// The best first. Whole pixels, so that chips have sharp edges.
std::vector<Rect> places_for(const Target& t, double width, double height) {
  const double w = t.chip_width, h = t.chip_height;
  const double left = std::floor(t.shape.x0), right = std::ceil(t.shape.x1);
  const double top = std::floor(t.shape.y0), bottom = std::ceil(t.shape.y1);
  std::vector<Rect> places;
  const auto add = [&](double x, double y) { places.push_back(at(x, y, t, width, height)); };
  add(left, top - h);
  add(right - w, top - h);
  add(left, bottom);
  add(right - w, bottom);
  add(right, top);
  add(left - w, top);
  add(right, bottom - h);
  add(left - w, bottom - h);
  add(left, top);
  add(right - w, top);
  add(left, bottom - h);
  add(right - w, bottom - h);
  for (int ring = 1; ring <= kRings; ++ring) {
    const double dy = ring * h, dx = ring * w / 2;
    add(left, top - h - dy);
    add(left, bottom + dy);
    add(right, top + dy);
    add(left - w, top + dy);
    add(right + dx, top);
    add(left - w - dx, top);
    add(right, top - dy);
    add(left - w, top - dy);
  }
  return places;
}

double cost_of(const Rect& place, size_t self, std::span<const Target> targets, const std::vector<Rect>& chips) {
  const double area = place.area();
  double cost = kAwayPerHeight * distance(place, targets[self].shape) / place.height();
  for (size_t i = 0; i < targets.size(); ++i) {
    if (i != self) cost += kOverChip * overlap(place, chips[i]) / area;
    const Rect& shape = targets[i].shape;
    const double hidden = overlap(place, shape);
    if (hidden > 0) cost += kOverTarget * hidden / area + kTargetCovered * hidden / shape.area();
  }
  return cost;
}

}  // namespace

std::vector<Rect> place_chips(std::span<const Target> targets, double width, double height) {
  std::vector<Rect> chips(targets.size());
  const int rounds = targets.size() <= kMaxToLookAgain ? 3 : 1;
  for (int round = 0; round < rounds; ++round) {
    for (size_t i = 0; i < targets.size(); ++i) {
      if (targets[i].chip_width <= 0) continue;
      double least = std::numeric_limits<double>::infinity();
      Rect best;
      double preference = 0;
      for (const Rect& place : places_for(targets[i], width, height)) {
        const double cost = preference + cost_of(place, i, targets, chips);
        preference += kPreference;
        if (cost < least) least = cost, best = place;
      }
      chips[i] = best;
    }
  }
  return chips;
}

}  // namespace qvl::draw
