// Opens a Hugging Face checkpoint folder with the native stages.
#pragma once

#include <filesystem>
#include <memory>

#include "qvl/engine/engine.h"

namespace qvl::engine::native {

// Validates config and tensors (spec 1, 2) and maps the weights; nothing is copied unless the requested precision
// differs from the stored one. Throws kNotFound, kFormat, kMismatch, kUnsupported, kCancelled.
std::shared_ptr<const Engine> open_checkpoint(const std::filesystem::path& dir, const EngineOptions& options);

}  // namespace qvl::engine::native
