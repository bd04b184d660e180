// The streaming writer: what it writes reads back, order and alignment, and that nothing half finished stays.
#include "qvl/checkpoint/safetensors_writer.h"

#include <gtest/gtest.h>

#include "qvl/base/json.h"
#include "qvl/base/mapped_file.h"
#include "qvl/checkpoint/checkpoint.h"
#include "qvl/checkpoint/test_support.h"

namespace qvl::checkpoint {
namespace {

std::vector<std::byte> pattern(size_t size, int seed) {
  std::vector<std::byte> bytes(size);
  for (size_t i = 0; i < size; ++i) bytes[i] = static_cast<std::byte>(i * 7 + static_cast<size_t>(seed));
  return bytes;
}

size_t entries_in(const std::filesystem::path& folder) {
  size_t n = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(folder)) ++n;
  return n;
}

TEST(SafetensorsWriter, RoundTripInPieces) {
  const ScratchFolder scratch;
  const std::filesystem::path path = scratch / "x.safetensors";
  SafetensorsWriter writer(path,
                           {{"narrow", DType::kU8, {3}},
                            {"half", DType::kBF16, {2, 2}},
                            {"empty", DType::kF32, {0, 5}},
                            {"wide", DType::kF32, {1, 3, 1}},
                            {"index", DType::kI64, {}}},
                           {{"format", "pt"}, {"quote", "a \"b\" \n"}});
  std::vector<std::string> order;
  int seed = 0;
  while (const TensorDecl* decl = writer.next()) {
    order.push_back(decl->name);
    const std::vector<std::byte> bytes = pattern(decl->size_bytes(), seed++);
    const size_t half = bytes.size() / 2;
    writer.append(std::span(bytes).first(half));
    writer.append(std::span(bytes).subspan(half));
  }
  EXPECT_EQ(order, (std::vector<std::string>{"index", "wide", "half", "narrow"})) << "widest elements first";
  EXPECT_EQ(entries_in(scratch.path()), 1u) << "only the temporary file before finish()";
  EXPECT_FALSE(std::filesystem::exists(path));
  writer.finish();
  EXPECT_EQ(entries_in(scratch.path()), 1u);
  EXPECT_EQ(std::filesystem::file_size(path), writer.file_bytes());

  const SafetensorsFile file = SafetensorsFile::open(path);
  EXPECT_EQ(file.metadata().at("quote"), "a \"b\" \n");
  EXPECT_EQ(file.tensors().size(), 5u);
  seed = 0;
  for (const std::string& name : order) {
    const TensorView& view = file.get(name);
    const std::vector<std::byte> want = pattern(view.bytes.size(), seed++);
    EXPECT_TRUE(std::equal(want.begin(), want.end(), view.bytes.begin(), view.bytes.end())) << name;
    EXPECT_EQ(reinterpret_cast<uintptr_t>(view.bytes.data()) % dtype_size_bytes(view.dtype), 0u) << name;
  }
  EXPECT_EQ(file.get("wide").shape, (Shape{1, 3, 1}));
  EXPECT_EQ(file.get("empty").shape, (Shape{0, 5}));
}

TEST(SafetensorsWriter, MisuseIsAnErrorAndLeavesNothing) {
  const ScratchFolder scratch;
  const std::filesystem::path path = scratch / "x.safetensors";
  {
    SafetensorsWriter writer(path, {{"a", DType::kF32, {2}}});
    const std::vector<std::byte> bytes(8);
    writer.append(std::span(bytes).first(5));
    EXPECT_EQ(error_of([&] { writer.append(std::span(bytes).first(4)); }, scratch.path()),
              "invalid_argument: [DIR/x.safetensors: tensor 'a'] data: expected at most 3 more bytes, got 4");
    EXPECT_EQ(error_of([&] { writer.finish(); }, scratch.path()),
              "invalid_argument: [DIR/x.safetensors: tensor 'a'] data: expected 8 bytes, got 5 (finished too "
              "early)");
    writer.append(std::span(bytes).first(3));
    EXPECT_EQ(error_of([&] { writer.append(bytes); }, scratch.path()),
              "invalid_argument: [DIR/x.safetensors] data after the last tensor");
  }
  EXPECT_EQ(entries_in(scratch.path()), 0u) << "dropped without finish()";
  EXPECT_EQ(error_of(
                [&] {
                  SafetensorsWriter(path, {{"a", DType::kU8, {1}}, {"a", DType::kU8, {1}}});
                },
                scratch.path()),
            "invalid_argument: [DIR/x.safetensors: tensor 'a'] declared twice");
  EXPECT_EQ(
      error_of(
          [&] {
            SafetensorsWriter(path, {{"__metadata__", DType::kU8, {1}}});
          },
          scratch.path()),
      "invalid_argument: [DIR/x.safetensors] tensor name: expected a name of its own, got '__metadata__'");
  EXPECT_EQ(error_of(
                [&] {
                  SafetensorsWriter(path, {{"a\xff", DType::kU8, {1}}});
                },
                scratch.path())
                .substr(0, 16),
            "invalid_argument");
  EXPECT_EQ(error_of(
                [&] {
                  SafetensorsWriter(scratch / "no/x", {{"a", DType::kU8, {1}}});
                },
                scratch.path())
                .substr(0, 9),
            "not_found");
  EXPECT_EQ(entries_in(scratch.path()), 0u);
}

TEST(SafetensorsWriter, RefusesWhatDoesNotFitTheDisk) {
  const ScratchFolder scratch;
  const std::string text = error_of(
      [&] {
        SafetensorsWriter(scratch / "x", {{"a", DType::kF32, {int64_t{1} << 56}}});
      },
      scratch.path());
  EXPECT_EQ(text.find("limit: [DIR] free disk space: expected 288230376151711"), 0u) << text;
  EXPECT_EQ(entries_in(scratch.path()), 0u);
}

TEST(SafetensorsWriter, WritesFinishedTensors) {
  const ScratchFolder scratch;
  Tensor ids(DType::kI64, {2});
  ids.as<int64_t>()[0] = 5;
  ids.as<int64_t>()[1] = -6;
  Tensor x = Tensor::zeros(DType::kF32, {2, 2});
  x.as<float>()[3] = 2.5f;
  const std::vector<NamedTensor> tensors = {{"x", &x}, {"ids", &ids}};
  write_safetensors(scratch / "t.safetensors", tensors);
  const SafetensorsFile file = SafetensorsFile::open(scratch / "t.safetensors");
  EXPECT_EQ(file.get("ids").to_i64(), (std::vector<int64_t>{5, -6}));
  EXPECT_EQ(file.get("x").to_f32(), (std::vector<float>{0, 0, 0, 2.5f}));
  EXPECT_TRUE(file.metadata().empty());
}

TEST(ShardedWriter, SplitsAndIndexes) {
  const ScratchFolder scratch;
  write_text(scratch / "config.json", "{}");
  ShardedWriter writer(scratch.path(),
                       {{"a", DType::kBF16, {10}},
                        {"none", DType::kBF16, {0}},
                        {"b", DType::kBF16, {10}},
                        {"big", DType::kBF16, {100}},
                        {"c", DType::kBF16, {1}}},
                       41);
  EXPECT_EQ(writer.shard_count(), 3u);
  std::vector<std::string> order;
  while (const TensorDecl* decl = writer.next()) {
    order.push_back(decl->name);
    writer.append(pattern(decl->size_bytes(), static_cast<int>(order.size())));
  }
  EXPECT_FALSE(std::filesystem::exists(scratch / "model.safetensors.index.json"));
  writer.finish();
  EXPECT_EQ(order, (std::vector<std::string>{"a", "b", "big", "c"}));

  const Json index = parse_json_file(scratch / "model.safetensors.index.json");
  EXPECT_EQ(index["metadata"]["total_size"], 242);
  EXPECT_EQ(index["weight_map"]["a"], "model-00001-of-00003.safetensors");
  EXPECT_EQ(index["weight_map"]["none"], "model-00001-of-00003.safetensors");
  EXPECT_EQ(index["weight_map"]["big"], "model-00002-of-00003.safetensors");
  EXPECT_EQ(index["weight_map"]["c"], "model-00003-of-00003.safetensors");
  const Checkpoint checkpoint = Checkpoint::open(scratch.path());
  EXPECT_EQ(checkpoint.file_count(), 3u);
  EXPECT_EQ(checkpoint.total_bytes(), 242u);
  const std::vector<std::byte> big = pattern(200, 3);
  EXPECT_TRUE(std::ranges::equal(checkpoint.find("big")->bytes, big));
}

TEST(ShardedWriter, OneShardNeedsNoIndex) {
  const ScratchFolder scratch;
  ShardedWriter writer(scratch.path(), {{"a", DType::kF32, {4}}}, 1 << 20);
  writer.append(pattern(16, 1));
  writer.finish();
  EXPECT_TRUE(std::filesystem::exists(scratch / "model.safetensors"));
  EXPECT_EQ(entries_in(scratch.path()), 1u);
  EXPECT_THROW(writer.finish(), Error);
}

TEST(ShardedWriter, MisuseIsAnError) {
  const ScratchFolder scratch;
  EXPECT_EQ(
      error_of(
          [&] {
            ShardedWriter(scratch.path(), {{"a", DType::kF32, {4}}, {"b", DType::kU8, {4}}}, 1000);
          },
          scratch.path()),
      "invalid_argument: [DIR: tensor 'b'] element size: expected the same for all tensors of a sharded "
      "checkpoint, got U8");
  ShardedWriter writer(scratch.path(), {{"a", DType::kF32, {4}}, {"b", DType::kF32, {4}}}, 16);
  writer.append(pattern(16, 1));
  EXPECT_THROW(writer.finish(), Error);
  EXPECT_FALSE(std::filesystem::exists(scratch / "model.safetensors.index.json"));
}

}  // namespace
}  // namespace qvl::checkpoint
