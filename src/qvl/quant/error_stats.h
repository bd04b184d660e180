// How far stored weights are from the original ones: what the exporter's report, the recipes and the tests
// compare. Sums only, so that row groups and tensors can be merged; the figures are derived from them.
#pragma once

#include <cstdint>
#include <span>

#include "qvl/base/json.h"

namespace qvl::quant {

struct ErrorStats {
  int64_t count = 0;          // weights
  uint64_t stored_bytes = 0;  // data, scales and zero points
  double max_error = 0;       // largest |x - y|
  double sum_error = 0;       // of |x - y|
  double sum_squared_error = 0;
  double sum_squared = 0;  // of x
  double sum_cross = 0;    // of x * (x - y): the cosine comes out of it without cancellation
  // Each column weighted by its importance; equal to the plain sums where all are 1.
  double sum_weighted_squared_error = 0;
  double sum_weighted_squared = 0;

  // Adds rows of `columns` originals x and the values y that are stored for them; importance [columns] or
  // empty for 1. Does not touch stored_bytes. Throws kMismatch for sizes that do not fit together.
  void add(std::span<const float> x, std::span<const float> y, int64_t columns,
           std::span<const float> importance = {});
  void merge(const ErrorStats& other);

  // All are 0 for no weights.
  double bits_per_weight() const;
  double mean_error() const;
  double rms_error() const;
  // Root of squared error over squared weights: 0.08 is 8 % noise. 0 for exact zeros, infinite for noise on
  // zeros.
  double relative_rms() const;
  // The same, weighted: the relative noise of x * W^T if columns are independent and importance is E[x^2].
  double weighted_relative_rms() const;
  // Of x and y as vectors; 1 when both are zero.
  double cosine() const;

  // {"bits_per_weight", "max_error", "mean_error", "rms_error", "relative_rms", "weighted_relative_rms",
  // "cosine"}; an infinite ratio is null.
  Json to_json() const;
};

}  // namespace qvl::quant
