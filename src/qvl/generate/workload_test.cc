#include "qvl/generate/workload.h"

#include <gtest/gtest.h>

#include "qvl/model/public_shapes.h"

namespace qvl::generate {
namespace {

// Counted independently, tensor by tensor: every element of a matrix is one multiplication and one addition a row.
double matrix_elements(const model::ModelConfig& config, bool vision) {
  double sum = 0;
  for (const model::TensorSpec& spec : model::tensor_table(config)) {
    if (spec.precision != model::PrecisionClass::kMatrix || model::is_vision_role(spec.role) != vision) continue;
    if (spec.role == model::TensorRole::kLmHead) continue;
    sum += static_cast<double>(element_count(spec.shape));
  }
  return sum;
}

TEST(Workload, VisionCountsEveryMatrixOnce) {
  const model::ModelConfig config = model::public_config("4b");
  const image::Grid grid{1, 48, 64};
  const Operations work = vision_operations(config.vision, {&grid, 1});
  // Four patches share a row of the mergers.
  double mergers = 0;
  for (const model::TensorSpec& spec : model::tensor_table(config)) {
    using R = model::TensorRole;
    if (spec.role == R::kMergerFc1Weight || spec.role == R::kMergerFc2Weight ||
        spec.role == R::kDeepstackFc1Weight || spec.role == R::kDeepstackFc2Weight)
      mergers += static_cast<double>(element_count(spec.shape));
  }
  const double expected = 2 * 3072 * (matrix_elements(config, true) - mergers) + 2 * 768 * mergers;
  EXPECT_NEAR(work.linear, expected, 1e-9 * expected);
  EXPECT_DOUBLE_EQ(work.attention, 24.0 * 4 * 3072 * 3072 * 1024);
  EXPECT_NEAR(work.total(), 2.95e12, 0.02e12);  // SPEED.md's figure for this picture
}

TEST(Workload, FramesDoNotAttendToEachOther) {
  const model::VisionConfig& config = model::public_config("2b").vision;
  const image::Grid video{3, 8, 8}, frame{1, 8, 8};
  const Operations three = vision_operations(config, {&video, 1}), one = vision_operations(config, {&frame, 1});
  EXPECT_DOUBLE_EQ(three.linear, 3 * one.linear);
  EXPECT_DOUBLE_EQ(three.attention, 3 * one.attention);
}

TEST(Workload, APrefillOfOneIsATokenOfDecode) {
  const model::ModelConfig config = model::public_config("4b");
  const Operations one = prefill_operations(config.text, 1, 99);
  const double matrices = matrix_elements(config, false) +
                          static_cast<double>(config.text.vocab_size * config.text.hidden_size);
  EXPECT_NEAR(one.linear, 2 * matrices, 1e-9 * matrices);
  EXPECT_DOUBLE_EQ(one.attention, 4.0 * 36 * 4096 * 100);
  EXPECT_EQ(prefill_operations(config.text, 0).total(), 0);
}

TEST(Workload, PrefillInPartsCostsAsMuchAsWholeButForTheLastLayer) {
  const model::TextConfig text = model::public_config("2b").text;
  const Operations whole = prefill_operations(text, 300);
  const Operations first = prefill_operations(text, 100), second = prefill_operations(text, 200, 100);
  EXPECT_NEAR(first.attention + second.attention, whole.attention, 0.01 * whole.attention);
  EXPECT_GT(first.linear + second.linear, whole.linear);  // logits twice
}

TEST(Workload, DecodeReadsLayersHeadAndKeysAndValues) {
  model::ModelConfig config = model::public_config("4b");
  const auto bf16 = [&](model::TensorRole role, int) {
    return 2 * element_count(model::tensor_shape(config, role));
  };
  const int64_t bytes = decode_weight_bytes(config, true, bf16);
  const double vision = 2.0 * static_cast<double>(model::parameter_count(config).vision);
  EXPECT_NEAR(static_cast<double>(bytes),
              2.0 * static_cast<double>(model::parameter_count(config).total) - vision + 2 * 2560, 1);
  // Another matrix of the same size instead of the embedding: as many bytes.
  EXPECT_EQ(decode_weight_bytes(config, false, bf16), bytes);
  EXPECT_EQ(decode_weight_bytes(config, true, bf16, 1000), bytes - bf16(model::TensorRole::kTokenEmbedding, -1) + 1000);
  EXPECT_DOUBLE_EQ(decode_bytes(config, bytes, 799, DType::kBF16), static_cast<double>(bytes) + 800.0 * 147456);
}

}  // namespace
}  // namespace qvl::generate
