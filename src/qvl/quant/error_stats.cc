#include "qvl/quant/error_stats.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "qvl/base/error.h"

namespace qvl::quant {
namespace {

double ratio(double squared_error, double squared) {
  if (squared_error == 0) return 0;
  if (squared == 0) return std::numeric_limits<double>::infinity();
  return std::sqrt(squared_error / squared);
}

}  // namespace

void ErrorStats::add(std::span<const float> x, std::span<const float> y, int64_t columns,
                     std::span<const float> importance) {
  if (columns <= 0 || x.size() != y.size() || x.size() % static_cast<size_t>(columns) != 0 ||
      (!importance.empty() && importance.size() != static_cast<size_t>(columns))) {
    fail(ErrorCode::kMismatch, "error statistics", "sizes",
         "two equal ranges of whole rows and one importance a column",
         std::to_string(x.size()) + ", " + std::to_string(y.size()) + ", " + std::to_string(columns) +
             " columns, " + std::to_string(importance.size()) + " importances");
  }
  for (size_t i = 0; i < x.size(); ++i) {
    const double a = x[i], b = y[i], error = a - b;
    const double weight = importance.empty() ? 1.0 : importance[i % static_cast<size_t>(columns)];
    max_error = std::max(max_error, std::fabs(error));
    sum_error += std::fabs(error);
    sum_squared_error += error * error;
    sum_squared += a * a;
    sum_cross += a * error;
    sum_weighted_squared_error += weight * error * error;
    sum_weighted_squared += weight * a * a;
  }
  count += static_cast<int64_t>(x.size());
}

void ErrorStats::merge(const ErrorStats& other) {
  count += other.count;
  stored_bytes += other.stored_bytes;
  max_error = std::max(max_error, other.max_error);
  sum_error += other.sum_error;
  sum_squared_error += other.sum_squared_error;
  sum_squared += other.sum_squared;
  sum_cross += other.sum_cross;
  sum_weighted_squared_error += other.sum_weighted_squared_error;
  sum_weighted_squared += other.sum_weighted_squared;
}

double ErrorStats::bits_per_weight() const {
  return count == 0 ? 0 : 8.0 * static_cast<double>(stored_bytes) / static_cast<double>(count);
}

double ErrorStats::mean_error() const {
  return count == 0 ? 0 : sum_error / static_cast<double>(count);
}

double ErrorStats::rms_error() const {
  return count == 0 ? 0 : std::sqrt(sum_squared_error / static_cast<double>(count));
}

double ErrorStats::relative_rms() const {
  return ratio(sum_squared_error, sum_squared);
}

double ErrorStats::weighted_relative_rms() const {
  return ratio(sum_weighted_squared_error, sum_weighted_squared);
}

double ErrorStats::cosine() const {
  if (count == 0) return 0;
  if (sum_squared_error == 0) return 1;
  if (sum_squared == 0) return 0;
  // x y = x x - x d and y y = x x - 2 x d + d d, with d = x - y, all divided by x x
  const double cross = sum_cross / sum_squared, error = sum_squared_error / sum_squared;
  const double stored = 1 - 2 * cross + error;
  return stored <= 0 ? 0 : std::clamp((1 - cross) / std::sqrt(stored), -1.0, 1.0);
}

Json ErrorStats::to_json() const {
  const auto number = [](double v) { return std::isfinite(v) ? Json(v) : Json(nullptr); };
  return {{"bits_per_weight", bits_per_weight()},
          {"max_error", max_error},
          {"mean_error", mean_error()},
          {"rms_error", rms_error()},
          {"relative_rms", number(relative_rms())},
          {"weighted_relative_rms", number(weighted_relative_rms())},
          {"cosine", cosine()}};
}

}  // namespace qvl::quant
