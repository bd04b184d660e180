// Features of pictures seen before, by content: a picture that comes again, in a later turn or from another
// session, is not encoded again. Least recently used ones go when the budget is spent.
#pragma once

#include <cstddef>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "qvl/engine/stages.h"
#include "qvl/image/grid.h"

namespace qvl::generate {

// What preprocessing found out about an image or a video; enough to build a prompt.
struct VisualInfo {
  bool is_video = false;
  std::string key;  // SHA-256 of contents and pixel limits
  image::Grid grid;
  int64_t width = 0;  // upright original
  int64_t height = 0;
  int64_t resized_width = 0;
  int64_t resized_height = 0;
  std::vector<double> timestamps_s;  // videos: one per frame pair
};

size_t features_size_bytes(const engine::VisionFeatures& features);

// Thread-safe.
class ImageMemory {
 public:
  struct Entry {
    VisualInfo info;
    std::shared_ptr<const engine::VisionFeatures> features;
  };

  explicit ImageMemory(size_t budget_bytes) : budget_bytes_(budget_bytes) {}

  // Marks the entry as used.
  std::optional<Entry> find(const std::string& key);
  // Replaces an entry of the same key. One that alone exceeds the budget is not kept.
  void put(Entry entry);

  size_t size_bytes() const;
  size_t count() const;

 private:
  mutable std::mutex mutex_;
  size_t budget_bytes_;
  size_t size_bytes_ = 0;
  std::list<Entry> entries_;  // most recently used first
  std::unordered_map<std::string, std::list<Entry>::iterator> index_;
};

}  // namespace qvl::generate
