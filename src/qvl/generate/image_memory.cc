#include "qvl/generate/image_memory.h"

namespace qvl::generate {

size_t features_size_bytes(const engine::VisionFeatures& features) {
  size_t bytes = features.merged.size_bytes();
  for (const Tensor& level : features.deepstack) bytes += level.size_bytes();
  return bytes;
}

std::optional<ImageMemory::Entry> ImageMemory::find(const std::string& key) {
  const std::scoped_lock lock(mutex_);
  const auto it = index_.find(key);
  if (it == index_.end()) return std::nullopt;
  entries_.splice(entries_.begin(), entries_, it->second);
  return *it->second;
}

void ImageMemory::put(Entry entry) {
  const std::scoped_lock lock(mutex_);
  auto drop = [this](std::list<Entry>::iterator it) {
    size_bytes_ -= features_size_bytes(*it->features);
    index_.erase(it->info.key);
    entries_.erase(it);
  };
  if (const auto it = index_.find(entry.info.key); it != index_.end()) drop(it->second);
  const size_t bytes = features_size_bytes(*entry.features);
  if (bytes > budget_bytes_) return;
  while (size_bytes_ + bytes > budget_bytes_) drop(std::prev(entries_.end()));
  size_bytes_ += bytes;
  entries_.push_front(std::move(entry));
  index_[entries_.front().info.key] = entries_.begin();
}

size_t ImageMemory::size_bytes() const {
  const std::scoped_lock lock(mutex_);
  return size_bytes_;
}

size_t ImageMemory::count() const {
  const std::scoped_lock lock(mutex_);
  return entries_.size();
}

}  // namespace qvl::generate
