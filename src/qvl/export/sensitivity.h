// Which matrices of the decoder keep eight bits: measured on the checkpoint before anything is written.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>

#include "qvl/base/json.h"
#include "qvl/base/thread_pool.h"
#include "qvl/export/exporter.h"
#include "qvl/export/input.h"

namespace qvl::exporting {

struct SensitivityReport {
  // What the decoder's matrices get, by canonical name; empty when there was nothing to choose.
  std::map<std::string, quant::Format, std::less<>> formats;
  Json report;  // the plan of quant/recipe.h; null likewise
};

// Only int4 text leaves a choice. Reads sampled rows of every decoder matrix; `on_bytes` gets the bytes of
// the checkpoint that are thereby done with.
SensitivityReport measure_sensitivity(const Input& input, const ExportOptions& options, ThreadPool& pool,
                                      const std::function<void(int64_t)>& on_bytes);

}  // namespace qvl::exporting
