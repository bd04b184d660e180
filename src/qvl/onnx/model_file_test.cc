#include "qvl/onnx/model_file.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>

#include "qvl/base/error.h"
#include "qvl/onnx/proto.h"

namespace qvl::onnx {
namespace {

namespace fs = std::filesystem;

class ModelFileTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("qvl_model_file_" + std::to_string(::getpid()));
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  void write(const std::string& name, const std::string& bytes) {
    std::ofstream(folder_ / name, std::ios::binary) << bytes;
  }

  // Two weights in text.data, 96 bytes, one of them in four bits.
  static std::string model_bytes() {
    GraphBuilder g("example");
    const Value x = g.input("x", DType::kF32, {"batch", int64_t{4}});
    const Value w = g.weight("w", DType::kF32, {2, 4}, {"text.data", 64, 32});
    g.weight_uint4("q", {3, 3}, {"text.data", 0, 5});
    GraphBuilder body = g.body("b");
    body.output(body.node("Gemm", {x, w}), DType::kF32, {"batch", int64_t{2}});
    const std::byte yes{1};
    const Value y = g.control("If", {g.constant(DType::kBool, {}, std::span(&yes, 1))}, 1,
                              {{"then_branch", &body}, {"else_branch", &body}})[0];
    g.output(g.node("Gelu", {y}, {}, kContribDomain), DType::kF32, {"batch", int64_t{2}});
    return g.serialize({.producer_version = "9", .metadata = {{"k", "v"}}});
  }

  // The error of reading model_bytes() after `change`.
  template <typename F>
  static Error changed(F change) {
    ::onnx::ModelProto model;
    model.ParseFromString(model_bytes());
    change(*model.mutable_graph());
    try {
      ModelFile::parse(model.SerializeAsString(), "m.onnx");
    } catch (const Error& e) {
      return e;
    }
    ADD_FAILURE() << "no error";
    return Error(ErrorCode::kIo, "none");
  }

  fs::path folder_;
};

TEST_F(ModelFileTest, ListsWhatIsInside) {
  write("m.onnx", model_bytes());
  write("text.data", std::string(96, 'x'));
  const ModelFile file = ModelFile::read(folder_ / "m.onnx");
  EXPECT_EQ(file.producer, "qvl 9");
  EXPECT_EQ(file.opsets, (std::map<std::string, int64_t>{{"", 21}, {"com.microsoft", 1}}));
  EXPECT_EQ(file.metadata.at("k"), "v");
  EXPECT_EQ(file.operators,
            (std::map<std::string, int64_t>{{"If", 1}, {"Gemm", 2}, {"com.microsoft.Gelu", 1}}));
  ASSERT_EQ(file.inputs.size(), 1u);
  EXPECT_EQ(file.inputs[0].describe(), "F32 [batch, 4]");
  ASSERT_EQ(file.outputs.size(), 1u);
  EXPECT_EQ(file.outputs[0].describe(), "F32 [batch, 2]");
  ASSERT_EQ(file.initializers.size(), 3u);
  EXPECT_EQ(file.initializers[0].name, "w");
  EXPECT_EQ(file.initializers[0].type, "F32");
  EXPECT_EQ(file.initializers[0].external.offset, 64u);
  EXPECT_EQ(file.initializers[1].type, "UINT4");
  EXPECT_EQ(file.initializers[1].bytes, 5u);
  EXPECT_TRUE(file.initializers[2].external.file.empty());
  EXPECT_EQ(file.weight_bytes(), 32u + 5u + 1u);
  EXPECT_NO_THROW(file.check_external_data());
}

TEST_F(ModelFileTest, ExternalDataMustBeThere) {
  write("m.onnx", model_bytes());
  const ModelFile file = ModelFile::read(folder_ / "m.onnx");
  const auto error = [&] {
    try {
      file.check_external_data();
    } catch (const Error& e) {
      return std::pair(e.code(), std::string(e.what()));
    }
    return std::pair(ErrorCode::kIo, std::string("no error"));
  };
  EXPECT_EQ(error().first, ErrorCode::kNotFound) << error().second;
  write("text.data", std::string(95, 'x'));  // one byte short
  EXPECT_EQ(error().first, ErrorCode::kMismatch) << error().second;
  EXPECT_NE(error().second.find("'w'"), std::string::npos) << error().second;
  write("text.data", std::string(96, 'x'));
  EXPECT_EQ(error().second, "no error");
}

TEST_F(ModelFileTest, RefusesWhatIsNoModel) {
  for (const std::string& bytes : {std::string(), std::string("not a model"), std::string(64, '\xff')}) {
    EXPECT_THROW(ModelFile::parse(bytes, "m.onnx"), Error) << bytes.size();
  }
  EXPECT_THROW(ModelFile::read(folder_ / "absent.onnx"), Error);
  // Cut anywhere: an error or a model, never a crash; the whole is the only one with all nodes.
  const std::string whole = model_bytes();
  for (size_t n = 0; n < whole.size(); ++n) {
    try {
      const ModelFile file = ModelFile::parse(std::string_view(whole).substr(0, n), "m.onnx");
      EXPECT_GT(n, 0u);
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ErrorCode::kFormat) << e.what();
    }
  }
}

TEST_F(ModelFileTest, RefusesContradictions) {
  using Graph = ::onnx::GraphProto;
  const auto external = [](Graph& g, int entry, const char* value) {
    g.mutable_initializer(0)->mutable_external_data(entry)->set_value(value);
  };
  EXPECT_EQ(changed([](Graph& g) { g.mutable_initializer(0)->set_dims(0, -1); }).code(), ErrorCode::kFormat);
  EXPECT_EQ(changed([](Graph& g) { g.mutable_initializer(0)->set_dims(0, 3); }).code(), ErrorCode::kFormat);
  EXPECT_EQ(changed([](Graph& g) { g.mutable_initializer(0)->set_dims(0, int64_t{1} << 62); }).code(),
            ErrorCode::kLimit);
  for (const char* file : {"", ".", "..", "../text.data", "/etc/passwd", "sub/text.data", "a\\b"}) {
    EXPECT_EQ(changed([&](Graph& g) { external(g, 0, file); }).code(), ErrorCode::kFormat) << file;
  }
  for (const char* number : {"", "-1", "0x10", "99999999999999999999999", "12 "}) {
    EXPECT_EQ(changed([&](Graph& g) { external(g, 1, number); }).code(), ErrorCode::kFormat) << number;
    EXPECT_EQ(changed([&](Graph& g) { external(g, 2, number); }).code(), ErrorCode::kFormat) << number;
  }
  EXPECT_EQ(changed([&](Graph& g) { g.mutable_initializer(2)->set_raw_data("12"); }).code(),
            ErrorCode::kFormat);
}

TEST_F(ModelFileTest, HugeOffsetsDoNotWrapAround) {
  ::onnx::ModelProto model;
  model.ParseFromString(model_bytes());
  model.mutable_graph()->mutable_initializer(0)->mutable_external_data(1)->set_value("18446744073709551600");
  write("text.data", std::string(96, 'x'));
  const ModelFile file = ModelFile::parse(model.SerializeAsString(), folder_ / "m.onnx");
  EXPECT_THROW(file.check_external_data(), Error);
}

}  // namespace
}  // namespace qvl::onnx
