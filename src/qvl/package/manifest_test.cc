// The manifest: what is written comes back, and every fault is named.
#include "qvl/package/manifest.h"

#include <gtest/gtest.h>

#include <functional>

#include "qvl/base/error.h"

namespace qvl::package {
namespace {

const std::string kHash(64, 'a');

TensorEntry matrix(std::string name, uint64_t offset) {
  TensorEntry t;
  t.name = name;
  t.format = quant::Format::blocks(4, 32, true);
  t.rows = 8;
  t.columns = 64;
  t.data = {name, "text.data", offset, 256, DType::kU8, {8, 2, 16}};
  t.scales = TensorPart{name + ".scales", "text.data", offset + 256, 64, DType::kF32, {8, 2}};
  t.zero_points = TensorPart{name + ".zero_points", "text.data", offset + 320, 8, DType::kU8, {8, 1}};
  return t;
}

Manifest sample() {
  Manifest m;
  m.qvl_version = "0.1.0";
  m.source = {"Tiny", kHash, "bf16", 1234, true};
  m.opset = 21;
  m.vision = {"bf16", ""};
  m.text = {"int4", "balanced"};
  m.static_sizes = StaticSizes{640, 480, 1, 30, 40, 16, 128};
  m.graphs[GraphKind::kVision] = {{"vision.onnx", 10, kHash},
                                  {{"MatMul", 3}, {"com.microsoft.MatMulNBits", 7}}};
  m.graphs[GraphKind::kDecoder] = {{"decoder.onnx", 11, kHash}, {}};
  m.data_files = {{"text.data", 4096, kHash}};
  m.other_files = {{"config.json", 5, kHash}};
  m.tensors = {matrix("a", 0), matrix("b", 512)};
  TensorEntry norm;
  norm.name = "norm";
  norm.format = quant::Format::floating(DType::kBF16);
  norm.rows = 1;
  norm.columns = 64;
  norm.data = {"norm", "text.data", 1024, 128, DType::kBF16, {64}};
  m.tensors.push_back(norm);
  m.quantisation = {{"all", 0.5}};
  return m;
}

TEST(Manifest, WrittenAndReadBackIsTheSame) {
  const Manifest m = sample();
  const std::string text = m.to_text();
  EXPECT_EQ(parse_json(text, "t"), m.to_json());
  const Manifest back = Manifest::from_json(parse_json(text, "t"), "t");
  EXPECT_EQ(back.to_text(), text);
  EXPECT_EQ(back.tensors[0].format, m.tensors[0].format);
  EXPECT_EQ(back.tensors[1].zero_points->offset, 832u);
  EXPECT_EQ(back.graphs.at(GraphKind::kVision).operators.at("com.microsoft.MatMulNBits"), 7);
  EXPECT_EQ(back.static_sizes->grid_w, 40);
  EXPECT_TRUE(back.parity.is_null());
  EXPECT_TRUE(back.source.tied_head);
  EXPECT_EQ(back.vision.activation_bits, 8);  // where nothing is said
  Manifest seven = m;
  seven.vision.activation_bits = 7;
  EXPECT_EQ(Manifest::from_json(seven.to_json(), "t").vision.activation_bits, 7);
  EXPECT_EQ(back.vision.int8_attention, 0);
  seven.vision.int8_attention = 8;
  EXPECT_EQ(Manifest::from_json(seven.to_json(), "t").vision.int8_attention, 8);
  EXPECT_FALSE(back.head_shortlist);
}

TEST(Manifest, AShortlistIsCheckedLikeATensor) {
  Manifest m = sample();
  EXPECT_FALSE(m.head_shortlist);
  m.data_files[0].bytes = 8192;
  m.head_shortlist = {5,
                      300,
                      {"s.coarse", "text.data", 1280, 2048, DType::kU8, {1, 2, 1024}},
                      {"s.fine", "text.data", 4096, 960, DType::kU8, {5, 192}},
                      {"s.scales", "text.data", 3328, 64, DType::kBF16, {1, 2, 16}}};
  const Manifest back = Manifest::from_json(parse_json(m.to_text(), "t"), "t");
  EXPECT_EQ(back.head_shortlist->fine.offset, 4096u);
  EXPECT_EQ(back.head_shortlist->stored_bytes(), 3072u);
  EXPECT_EQ(back.to_text(), m.to_text());
  const auto refused = [&](const std::function<void(ShortlistEntry&)>& change) {
    Manifest changed = m;
    change(*changed.head_shortlist);
    EXPECT_THROW(changed.validate("t"), Error);
  };
  refused([](ShortlistEntry& s) { s.coarse.offset = 512; });  // where "b" is
  refused([](ShortlistEntry& s) { s.rows = 6; });  // of another size in the fine part alone
  refused([](ShortlistEntry& s) { s.columns = 513; });
  refused([](ShortlistEntry& s) { s.scales.dtype = DType::kF16; });
  refused([](ShortlistEntry& s) { s.fine.file = "vision.data"; });
  refused([](ShortlistEntry& s) { s.rows = 0; });
  // What packages of the first days have by another name is passed over.
  Json old = m.to_json();
  old["head_shortlist"] = old["tensors"][0];
  old.erase("shortlist");
  EXPECT_FALSE(Manifest::from_json(old, "t").head_shortlist);
}

// `change` spoils a valid manifest; the error must have the code and name `words`.
void expect_refused(const std::function<void(Manifest&)>& change, ErrorCode code, const std::string& words) {
  Manifest m = sample();
  change(m);
  try {
    m.validate("DIR/qvl.json");
    ADD_FAILURE() << "accepted: " << words;
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), code) << e.what();
    EXPECT_NE(std::string(e.what()).find("DIR/qvl.json"), std::string::npos) << e.what();
    EXPECT_NE(std::string(e.what()).find(words), std::string::npos) << e.what();
  }
}

TEST(Manifest, EveryFaultIsNamed) {
  using enum ErrorCode;
  expect_refused([](Manifest& m) { m.tensors[1].data.offset = 64; }, kFormat, "'b' data");  // over a
  expect_refused([](Manifest& m) { m.tensors[1].data.offset = 3968; }, kFormat,
                 "tensor 'b' data in 'text.data'");
  expect_refused([](Manifest& m) { m.tensors[1].data.offset = UINT64_MAX - 63; }, kFormat, "tensor 'b' data");
  expect_refused([](Manifest& m) { m.tensors[0].data.offset = 2056; }, kFormat, "multiple of 64");
  expect_refused([](Manifest& m) { m.tensors[0].data.length = 255; }, kMismatch, "tensor 'a' data");
  expect_refused(
      [](Manifest& m) {
        m.tensors[0].data.shape = {8, 2, 15};
      },
      kMismatch, "bytes of shape [8, 2, 15]");
  expect_refused([](Manifest& m) { m.tensors[0].data.shape = {-8, -2, 16}; }, kFormat, "positive extents");
  expect_refused([](Manifest& m) { m.tensors[0].data.dtype = DType::kI8; }, kMismatch, "element type");
  expect_refused([](Manifest& m) { m.tensors[0].scales.reset(); }, kFormat, "scales");
  expect_refused([](Manifest& m) { m.tensors[2].zero_points = m.tensors[0].zero_points; }, kFormat,
                 "zero_points");
  expect_refused([](Manifest& m) { m.tensors[0].format.bits = 5; }, kFormat, "tensor 'a'");
  expect_refused([](Manifest& m) { m.tensors[0].rows = int64_t{1} << 62; }, kFormat, "rows and columns");
  expect_refused([](Manifest& m) { m.tensors[0].rows = 0; }, kFormat, "rows and columns");
  expect_refused([](Manifest& m) { m.tensors[0].data.file = "other.data"; }, kFormat, "'other.data'");
  expect_refused([](Manifest& m) { m.tensors[1].name = "a"; }, kFormat, "listed twice");
  expect_refused([](Manifest& m) { m.tensors[1].data.initializer = "a"; }, kFormat, "two parts");
  expect_refused([](Manifest& m) { m.data_files[0].file = "../text.data"; }, kFormat, "plain name");
  expect_refused([](Manifest& m) { m.other_files[0].file = "text.data"; }, kFormat, "listed twice");
  expect_refused([](Manifest& m) { m.other_files[0].file = "qvl.json"; }, kFormat, "listed twice");
  expect_refused([](Manifest& m) { m.other_files[0].sha256 = "abc"; }, kFormat, "config.json");
  expect_refused([](Manifest& m) { m.format_version = package::kFormatVersion + 1; }, kUnsupported, "format version");
  expect_refused([](Manifest& m) { m.vision.activation_bits = 6; }, kFormat, "activation_bits");
  expect_refused([](Manifest& m) { m.vision.int8_attention = 6; }, kFormat, "int8_attention");
  expect_refused([](Manifest& m) { m.static_sizes->grid_h = 0; }, kFormat, "grid_h");
  expect_refused([](Manifest& m) { m.static_sizes->context_tokens = 8; }, kFormat, "sequence");
}

TEST(Manifest, ReadingNamesKeyAndPlace) {
  const auto refused = [](const std::function<void(Json&)>& change, const std::string& words) {
    Json j = sample().to_json();
    change(j);
    try {
      Manifest::from_json(j, "DIR/qvl.json");
      ADD_FAILURE() << "accepted: " << words;
    } catch (const Error& e) {
      EXPECT_NE(std::string(e.what()).find(words), std::string::npos) << e.what();
    }
  };
  refused([](Json& j) { j.erase("tensors"); }, "'tensors' is missing");
  refused([](Json& j) { j["tensors"][1]["data"].erase("offset"); }, "tensors[1].data");
  refused([](Json& j) { j["tensors"][1]["data"]["offset"] = -64; }, "'offset'");
  refused([](Json& j) { j["tensors"][1]["data"]["offset"] = 0.5; }, "'offset'");
  refused([](Json& j) { j["tensors"][1]["data"]["length"] = "256"; }, "'length'");
  refused([](Json& j) { j["tensors"][0]["format"] = "int3 b32"; }, "int3");
  refused([](Json& j) { j["tensors"][0]["data"]["dtype"] = "Q4"; }, "Q4");
  refused([](Json& j) { j["tensors"][0] = 3; }, "tensors[0]");
  refused([](Json& j) { j["graphs"]["audio"] = j["graphs"]["vision"]; }, "audio");
  refused([](Json& j) { j["layout"] = "tiles"; }, "tiles");
  refused([](Json& j) { j["static"]["grid_thw"] = {1, 2}; }, "grid_thw");
  refused([](Json& j) { j["stages"]["vision"]["activation_bits"] = int64_t{1} << 40; }, "activation_bits");
  refused([](Json& j) { j["stages"]["vision"]["int8_attention"] = -1; }, "int8_attention");
  refused([](Json& j) { j["format"] = "other"; }, "other");
  // A newer version is named before anything in it can be misread.
  refused([](Json& j) { j = {{"format", "qvl package"}, {"format_version", 9}}; }, "format version");
  refused([](Json& j) { j = Json::array(); }, "an object");
}

}  // namespace
}  // namespace qvl::package
