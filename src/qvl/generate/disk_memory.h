// What is known about pictures, beyond this process: the features of images and videos, and the keys and values of
// prompts up to the end of a picture. A picture that was asked about before needs neither resizing nor encoding nor
// prefill, only its hash. Entries are named by a SHA-256 of all that their bits depend on, so another model, precision,
// pixel budget, kernel table or build never meets them; what is read is bit for bit what was computed, so answers are
// those of a run without a memory.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "qvl/base/cache_folder.h"
#include "qvl/base/file_stamp.h"
#include "qvl/engine/engine.h"
#include "qvl/generate/assets.h"
#include "qvl/generate/image_memory.h"

namespace qvl::generate {

struct PromptVisual;

// Thread-safe. Nothing here throws for what the folder holds or refuses (base/cache_folder.h).
class DiskMemory {
 public:
  // For prompts of this engine and these assets. Stages without an identity (engine/engine.h) keep nothing. `program`
  // stands for the code that runs.
  DiskMemory(std::shared_ptr<CacheFolder> folder, const engine::Engine& engine, const Assets& assets,
             const std::string& program = program_stamp());

  // What preprocessing found out about the visual of this key, if its features are kept.
  std::optional<VisualInfo> find(const std::string& key);
  // Null when absent.
  std::shared_ptr<const engine::VisionFeatures> load(const std::string& key);
  // Unless they are kept already.
  void keep(const VisualInfo& info, const engine::VisionFeatures& features);

  // Names the beginning of a prompt: its ids, which end behind the last token of `visuals`, these being all that it
  // shows in the order of their first tokens. Empty when such beginnings are not kept.
  std::string prefix_name(std::span<const int32_t> ids, std::span<const PromptVisual* const> visuals) const;
  // True: `cache`, which must be empty, holds the `length` positions. False: it is empty.
  bool load_prefix(const std::string& name, int64_t length, engine::KvCache& cache);
  // Keeps positions [0, length), all of them computed as a prompt's, unless they are kept already.
  void keep_prefix(const std::string& name, int64_t length, const engine::KvCache& cache);

  const CacheFolder& folder() const { return *folder_; }

 private:
  std::string features_name(const std::string& key) const;

  std::shared_ptr<CacheFolder> folder_;
  int64_t merge_size_;
  std::string vision_;  // what all features depend on; empty: unknown
  std::string text_;    // what keys and values depend on beside the features
};

// Bound of the folder unless the user says otherwise: about 16 pictures of 1024x768 for the 4B model (126 MB each, keys
// and values 110 of it).
inline constexpr uint64_t kDefaultDiskMemoryBytes = uint64_t{2} << 30;

}  // namespace qvl::generate
