#include "qvl/generate/image_memory.h"

#include <gtest/gtest.h>

namespace qvl::generate {
namespace {

// 100 bytes of merged features and 100 of DeepStack.
ImageMemory::Entry entry(const std::string& key, int64_t floats = 25) {
  engine::VisionFeatures f;
  f.merged = Tensor::zeros(DType::kF32, {1, floats});
  f.deepstack.push_back(Tensor::zeros(DType::kF32, {1, floats}));
  VisualInfo info;
  info.key = key;
  return {info, std::make_shared<const engine::VisionFeatures>(std::move(f))};
}

TEST(ImageMemory, TheLeastRecentlyUsedGoFirst) {
  ImageMemory memory(3 * features_size_bytes(*entry("x").features));
  for (const char* key : {"a", "b", "c"}) memory.put(entry(key));
  ASSERT_TRUE(memory.find("a"));  // now b is the oldest
  memory.put(entry("d"));
  EXPECT_FALSE(memory.find("b"));
  EXPECT_TRUE(memory.find("a"));
  EXPECT_TRUE(memory.find("c"));
  EXPECT_TRUE(memory.find("d"));
  EXPECT_EQ(memory.count(), 3U);
}

TEST(ImageMemory, BytesAreCountedAndABigEntryIsNotKept) {
  const size_t one = features_size_bytes(*entry("x").features);
  EXPECT_GE(one, 200U);
  ImageMemory memory(2 * one);
  memory.put(entry("a"));
  memory.put(entry("a"));
  EXPECT_EQ(memory.size_bytes(), one);
  memory.put(entry("big", 100000));
  EXPECT_FALSE(memory.find("big"));
  EXPECT_TRUE(memory.find("a"));
  ImageMemory none(0);
  none.put(entry("a"));
  EXPECT_EQ(none.count(), 0U);
}

TEST(ImageMemory, AHolderKeepsWhatWasDropped) {
  ImageMemory memory(features_size_bytes(*entry("x").features));
  memory.put(entry("a"));
  const auto held = memory.find("a");
  memory.put(entry("b"));
  EXPECT_FALSE(memory.find("a"));
  EXPECT_EQ(held->features->merged.dim(1), 25);
}

}  // namespace
}  // namespace qvl::generate
