// The stored weights of a package against the checkpoint they were made from, tensor by tensor: what `qvl
// verify` does before it runs anything. A tensor that is swapped, cut or rounded by another rule is named
// here (spec 10).
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "qvl/base/json.h"
#include "qvl/base/thread_pool.h"
#include "qvl/model/tensor_table.h"
#include "qvl/package/package.h"
#include "qvl/quant/error_stats.h"
#include "qvl/quant/format.h"
#include "qvl/source/source.h"

namespace qvl::exporting {

// What is stored of a tensor against the checkpoint.
struct StoredCheck {
  std::string tensor;
  std::string format;  // its name
  quant::ErrorStats stats;
  // Most relative rms error that this format can cost a healthy tensor: see weight_limit().
  double limit = 0;
  // What the export measured when it wrote the tensor, if the manifest says so. Equal, or bytes have changed
  // since.
  std::optional<double> reported;

  bool exact() const { return stats.sum_squared_error == 0; }
  bool passed() const;
  // "model...q_proj.weight (int4 b32): relative error 1.41, at most 0.5 expected"; empty when passed.
  std::string fault() const;
};

// A tensor of the model.
struct WeightCheck : StoredCheck {
  model::TensorRole role = model::TensorRole::kPatchEmbedWeight;
  quant::Format stored_as;
};

// Relative rms error. Floats: half a unit in the last place. int8 and int4: three times what a matrix with
// heavy tails loses by plain rounding at the largest block; another tensor's bytes lose 1.4.
double weight_limit(const quant::Format& format);

struct WeightReport {
  std::vector<WeightCheck> tensors;  // in the package's order
  std::optional<StoredCheck> shortlist;  // of the head: no weight of the model, so in no sum
  bool passed() const;
  // The tensor, or the shortlist, furthest beyond its limit; null when passed.
  const StoredCheck* worst() const;
  // {"passed", "tensors", "exact", "relative_rms", "worst"}
  Json to_json() const;
  std::string to_text() const;
};

// Reads package and checkpoint once, a piece of a tensor at a time, and gives their pages back. progress:
// bytes of the package done, in all; false cancels (kCancelled). Throws kMismatch when the checkpoint is not
// the one that the package was made from (config.json, head).
WeightReport check_weights(const package::Package& package, const source::Source& source, ThreadPool& pool,
                           const std::function<bool(int64_t done, int64_t total)>& progress = {});

}  // namespace qvl::exporting
