// The package that `qvl bench --shape` measures: seeded random weights of a released size, streamed through the exporter
// as they are made. No checkpoint stands on the disk on the way.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>

namespace qvl::apps {

struct ShapeOptions {
  std::string shape;            // of model::public_shape_names()
  std::string text = "int4";    // as `qvl export --text` and --vision
  std::string vision = "bf16";
  int threads = 0;
};

// A folder in `work` named after shape and precisions; one that is there already, whole and from this version, is used
// again. `progress` gets a phase, bytes done and in all; false cancels (kCancelled, nothing is left behind). Throws what
// exporting throws.
std::filesystem::path shape_package(const ShapeOptions& options, const std::filesystem::path& work,
                                    const std::function<bool(std::string_view, int64_t, int64_t)>& progress);

}  // namespace qvl::apps
