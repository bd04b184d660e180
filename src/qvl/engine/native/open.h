// Opens a Hugging Face checkpoint folder or an exported package with the native stages.
#pragma once

#include <filesystem>
#include <memory>

#include "qvl/base/thread_pool.h"
#include "qvl/engine/composed.h"
#include "qvl/engine/engine.h"
#include "qvl/package/package.h"
#include "qvl/source/source.h"

namespace qvl::engine::native {

// Validates config and tensors (spec 1, 2) and maps the weights; nothing is copied unless the requested
// precision differs from the stored one. Throws kNotFound, kFormat, kMismatch, kUnsupported, kCancelled.
std::shared_ptr<const Engine> open_checkpoint(const std::filesystem::path& dir, const EngineOptions& options);
// The same for a checkpoint that the caller has opened and may give pages of back between calls.
std::shared_ptr<const Engine> open_checkpoint(std::shared_ptr<const source::Source> source,
                                              const EngineOptions& options);

// The selected stages of a package on `pool`. Floats are used from the mapped files; integer formats are
// dequantised into the activation type (bf16 for weights made from a bf16 checkpoint, unless the options say
// otherwise). Throws kUnsupported, kCancelled.
OpenedStages open_package(std::shared_ptr<const package::Package> package, const EngineOptions& options,
                          const StageSelection& selection, std::shared_ptr<ThreadPool> pool);

}  // namespace qvl::engine::native
