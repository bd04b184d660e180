// Reading single safetensors files: valid ones of all kinds, every defect by its message, and seeded
// mutations.
#include "qvl/checkpoint/safetensors.h"

#include <gtest/gtest.h>

#include <random>

#include "qvl/checkpoint/test_support.h"

namespace qvl::checkpoint {
namespace {

class Safetensors : public testing::Test {
 protected:
  // The error of opening a file with this content, with its path written as FILE.
  std::string error(std::string_view bytes) {
    const std::filesystem::path path = scratch_ / "x.safetensors";
    write_text(path, bytes);
    std::string text = error_of([&] { SafetensorsFile::open(path); }, scratch_.path());
    if (const size_t at = text.find("DIR/x.safetensors"); at != std::string::npos)
      text.replace(at, 17, "FILE");
    return text;
  }
  std::string error(std::string_view json, std::string_view data) {
    return error(safetensors_bytes(json, data));
  }
  SafetensorsFile open(std::string_view json, std::string_view data) {
    const std::filesystem::path path = scratch_ / "ok.safetensors";
    write_text(path, safetensors_bytes(json, data));
    return SafetensorsFile::open(path);
  }

  ScratchFolder scratch_;
};

TEST_F(Safetensors, ReadsTypesShapesAndMetadata) {
  const SafetensorsFile file =
      open(R"({"__metadata__":{"format":"pt","note":"h\u00e9"},)"
           R"("b":{"dtype":"BF16","shape":[2],"data_offsets":[8,12]},)"
           R"("a":{"data_offsets":[0,8],"shape":[1,1,1,1,2],"dtype":"F32"},)"
           R"("scalar":{"dtype":"I64","shape":[],"data_offsets":[12,20]},)"
           R"("none":{"dtype":"F16","shape":[0,7],"data_offsets":[20,20]},)"
           R"("flag":{"dtype":"BOOL","shape":[1],"data_offsets":[20,21]}}    )",
           std::string("\x00\x00\x80\x3f\x00\x00\x00\xc0\x80\x3f\x00\x40\x07\x00\x00\x00\x00\x00\x00\x00\x01",
                       21));
  ASSERT_EQ(file.tensors().size(), 5u);
  EXPECT_EQ(file.tensors()[0].name, "a") << "in the order of the data";
  EXPECT_EQ(file.metadata().at("format"), "pt");
  EXPECT_EQ(file.metadata().at("note"), "h\xc3\xa9");
  EXPECT_EQ(file.get("a").shape, (Shape{1, 1, 1, 1, 2}));
  EXPECT_EQ(file.get("a").to_f32(), (std::vector<float>{1.0f, -2.0f}));
  EXPECT_EQ(file.get("b").to_f32(), (std::vector<float>{1.0f, 2.0f}));
  EXPECT_EQ(file.get("scalar").to_i64(), std::vector<int64_t>{7});
  EXPECT_EQ(file.get("scalar").shape, Shape{});
  EXPECT_EQ(file.get("none").size(), 0);
  EXPECT_TRUE(file.get("none").to_f32().empty());
  EXPECT_EQ(file.get("flag").dtype, DType::kBool);
  EXPECT_EQ(file.data_bytes(), 21u);
  EXPECT_EQ(file.find("A"), nullptr);
  EXPECT_EQ(error_of([&] { file.get("A"); }, scratch_.path()),
            "not_found: [DIR/ok.safetensors: tensor 'A'] not in the file");
  EXPECT_EQ(
      error_of([&] { file.get("flag").to_f32(); }, scratch_.path()),
      "unsupported: [DIR/ok.safetensors: tensor 'flag'] element type: expected F32, BF16 or F16, got BOOL");
  EXPECT_EQ(error_of([&] { file.get("a").to_i64(); }, scratch_.path()),
            "unsupported: [DIR/ok.safetensors: tensor 'a'] element type: expected I64 or I32, got F32");
}

TEST_F(Safetensors, UnalignedDataAreUsable) {
  const SafetensorsFile file = open(
      R"({"u":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"f":{"dtype":"F32","shape":[1],"data_offsets":[1,5]}})",
      std::string("\x07\x00\x00\x80\x3f", 5));
  EXPECT_EQ(file.get("f").to_f32(), std::vector<float>{1.0f});
}

TEST_F(Safetensors, AnEmptyFileOfNoTensorsIsValid) {
  EXPECT_EQ(open("{}", "").tensors().size(), 0u);
  EXPECT_EQ(open(R"({"__metadata__":{}})", "").tensors().size(), 0u);
}

TEST_F(Safetensors, MovedFilesKeepTheirViews) {
  SafetensorsFile first =
      open(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", std::string("\0\0\x80\x3f", 4));
  const TensorView* view = first.find("a");
  const SafetensorsFile second = std::move(first);
  EXPECT_EQ(second.find("a"), view);
  EXPECT_EQ(view->to_f32(), std::vector<float>{1.0f});
}

TEST_F(Safetensors, DefectsOfTheFrame) {
  EXPECT_EQ(
      error(""),
      "format: [FILE] file size: expected at least 8 bytes, got 0 (not a safetensors file, or truncated)");
  EXPECT_EQ(
      error("1234567"),
      "format: [FILE] file size: expected at least 8 bytes, got 7 (not a safetensors file, or truncated)");
  EXPECT_EQ(error(std::string("\x05\0\0\0\0\0\0\0{}", 10)),
            "format: [FILE] header length: expected at most the 2 bytes that follow, got 5 (the file is "
            "truncated)");
  EXPECT_EQ(error("<html>no such page</html>"),
            "format: [FILE] header length: expected at most 100000000 bytes, got 8029423821061908540 (not a "
            "safetensors file?)");
  EXPECT_EQ(error("", "x"),
            "format: [FILE] first byte of the header: expected '{', got nothing (not a safetensors file?)");
  EXPECT_EQ(
      error(" {}", ""),
      "format: [FILE] first byte of the header: expected '{', got another byte (not a safetensors file?)");
  EXPECT_EQ(error(std::string("{}\0\0", 4), ""),
            "format: [FILE] the header is not valid JSON: zero byte at 2");
  EXPECT_EQ(error("{}{}", "").find("format: [FILE] the header is not valid JSON at byte 3"), 0u);
  EXPECT_EQ(error("{\"a\":", "").find("format: [FILE] the header is not valid JSON at byte"), 0u);
  EXPECT_EQ(error("{\"\xff\":{}}", "").find("format: [FILE] the header is not valid JSON at byte"), 0u);
}

TEST_F(Safetensors, DefectsOfTheHeader) {
  const std::string a = "format: [FILE: tensor 'a'] ";
  EXPECT_EQ(error(R"({"a":1})", ""), a + "header entry: expected an object, got the number 1");
  EXPECT_EQ(error(R"({"a":[]})", ""), a + "header entry: expected an object, got an array");
  EXPECT_EQ(error(R"({"a":{}})", ""), a + "the header has no dtype for it");
  EXPECT_EQ(error(R"({"a":{"dtype":"F32"}})", ""), a + "the header has no shape for it");
  EXPECT_EQ(error(R"({"a":{"dtype":"F32","shape":[]}})", ""), a + "the header has no data_offsets for it");
  EXPECT_EQ(error(R"({"a":{"dtype":"F32","dtype":"F32"}})", ""), a + "key 'dtype' appears twice");
  EXPECT_EQ(error(R"({"a":{"dtype":"F32","shape":[],"shape":[]}})", ""), a + "key 'shape' appears twice");
  EXPECT_EQ(error(R"({"a":{"offset":1}})", ""),
            a + "header key: expected dtype, shape or data_offsets, got 'offset'");
  EXPECT_EQ(error(R"({"a":{"dtype":3}})", ""), a + "dtype: expected a string, got the number 3");
  EXPECT_EQ(error(R"({"a":{"shape":"x"}})", ""), a + "shape: expected an array of numbers, got a string");
  EXPECT_EQ(error(R"({"a":{"shape":[-1]}})", ""),
            a + "shape: expected non-negative integers, got the negative number -1");
  EXPECT_EQ(error(R"({"a":{"shape":[1.5]}})", ""),
            a + "shape: expected non-negative integers, got the number 1.5");
  EXPECT_EQ(error(R"({"a":{"shape":[99999999999999999999]}})", ""),
            a + "shape: expected non-negative integers, got the number 99999999999999999999");
  EXPECT_EQ(error(R"({"a":{"shape":[18446744073709551615]}})", ""),
            a + "shape: expected extents below 2^63, got 18446744073709551615");
  EXPECT_EQ(error(R"({"a":{"shape":[[1]]}})", ""), a + "shape: expected non-negative integers, got an array");
  EXPECT_EQ(error(R"({"a":{"data_offsets":[0]}})", ""), a + "data_offsets: expected two numbers, got 1");
  EXPECT_EQ(error(R"({"a":{"data_offsets":[0,1,2]}})", ""),
            a + "data_offsets: expected two numbers, got more");
  EXPECT_EQ(error(R"({"a":{"data_offsets":{"x":1}}})", ""),
            a + "data_offsets: expected an array of numbers, got an object");
  EXPECT_EQ(error(R"({"__metadata__":{"k":1}})", ""),
            "format: [FILE] value of 'k' in __metadata__: expected a string, got the number 1");
  EXPECT_EQ(error(R"({"__metadata__":{"k":"1","k":"2"}})", ""),
            "format: [FILE] key 'k' appears twice in __metadata__");
  EXPECT_EQ(error(R"({"a":{"dtype":"F8_E4M3","shape":[1],"data_offsets":[0,1]}})", "x")
                .find("unsupported: [FILE: tensor 'a'] element type: expected F64, F32"),
            0u);
  std::string deep = R"({"a":{"shape":)";
  deep.append(100000, '[');
  EXPECT_EQ(error(deep, ""), a + "shape: expected non-negative integers, got an array");
  std::string rank = R"({"a":{"shape":[1)";
  for (int i = 0; i < 64; ++i) rank += ",1";
  EXPECT_EQ(error(rank + "]}}", ""), a + "shape: expected at most 64 dimensions, got more");
}

TEST_F(Safetensors, ANameTwiceIsSeen) {
  EXPECT_EQ(
      error(
          R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
          "xy"),
      "format: [FILE: tensor 'a'] the name appears twice in the header");
}

TEST_F(Safetensors, DefectsOfTheRanges) {
  const auto two = [&](const char* first, const char* second, std::string_view data) {
    return error(std::string(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":)") + first +
                     R"(},"b":{"dtype":"F32","shape":[1],"data_offsets":)" + second + "}}",
                 data);
  };
  EXPECT_EQ(two("[0,8]", "[8,12]", std::string(12, 'x')), "no error");
  EXPECT_EQ(
      two("[0,8]", "[8,12]", std::string(11, 'x')),
      "format: [FILE: tensor 'b'] end of the data: expected at most byte 11 of the data in the file, got 12 "
      "(offset out of range, or the file is truncated)");
  EXPECT_EQ(two("[0,8]", "[8,12]", std::string(13, 'x')),
            "format: [FILE] size of the data: expected 12 bytes as the header says, got 13 (surplus bytes "
            "after the "
            "last tensor)");
  EXPECT_EQ(two("[0,8]", "[4,8]", std::string(8, 'x')),
            "format: [FILE: tensor 'b'] its data overlap those of 'a': expected begin at 8, got 4");
  EXPECT_EQ(two("[4,12]", "[0,4]", std::string(12, 'x')), "no error");
  EXPECT_EQ(two("[0,8]", "[12,16]", std::string(16, 'x')),
            "format: [FILE: tensor 'b'] hole of 4 bytes before its data: expected begin at 8, the end of "
            "'a', got 12");
  EXPECT_EQ(two("[8,16]", "[4,8]", std::string(16, 'x')),
            "format: [FILE: tensor 'b'] hole of 4 bytes before its data: expected begin at 0, the start of "
            "the data, "
            "got 4");
  EXPECT_EQ(two("[8,0]", "[8,12]", std::string(12, 'x')),
            "format: [FILE: tensor 'a'] data_offsets: expected begin <= end, got [8, 0]");
  EXPECT_EQ(two("[0,4]", "[4,8]", std::string(8, 'x')),
            "format: [FILE: tensor 'a'] data size: expected 2 elements of 4 bytes for F32 [2], got 4 bytes");
  EXPECT_EQ(
      two("[0,8]", "[18446744073709551608,18446744073709551612]", std::string(12, 'x')),
      "format: [FILE: tensor 'b'] end of the data: expected at most byte 12 of the data in the file, got "
      "18446744073709551612 (offset out of range, or the file is truncated)");
  EXPECT_EQ(error(R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}})", ""),
            "format: [FILE: tensor 'a'] shape [4294967296, 4294967296] is impossibly large");
}

TEST_F(Safetensors, NamesInMessagesAreMadePrintable) {
  EXPECT_EQ(error(R"({"a\u0000\n":1})", ""),
            "format: [FILE: tensor 'a\\x00\\x0a'] header entry: expected an object, got the number 1");
  EXPECT_EQ(quoted_name(std::string(500, 'n')), "'" + std::string(160, 'n') + "...'");
}

TEST_F(Safetensors, FilesThatCannotBeOpened) {
  EXPECT_EQ(error_of([&] { SafetensorsFile::open(scratch_ / "none.safetensors"); }, scratch_.path()),
            "not_found: [DIR/none.safetensors] cannot open: No such file or directory");
  EXPECT_EQ(error_of([&] { SafetensorsFile::open(scratch_.path()); }, scratch_.path()).substr(0, 9),
            "io: [DIR]");
}

// Reads every byte that an accepted file hands out, so that the sanitizer sees a wrong range.
uint64_t touch(const SafetensorsFile& file) {
  uint64_t sum = 0;
  for (const TensorView& view : file.tensors()) {
    EXPECT_EQ(view.bytes.size(), static_cast<size_t>(view.size()) * dtype_size_bytes(view.dtype));
    for (const std::byte b : view.bytes) sum += static_cast<uint64_t>(b);
    EXPECT_EQ(file.find(view.name), &view);
  }
  return sum;
}

TEST_F(Safetensors, MutatedFilesAreReadOrRefusedButNeverWorse) {
  const std::string valid = safetensors_bytes(
      R"({"__metadata__":{"format":"pt"},"w.a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},)"
      R"("w.b":{"dtype":"BF16","shape":[4],"data_offsets":[24,32]},"w.c":{"dtype":"I64","shape":[],"data_offsets":[32,40]}}  )",
      std::string(40, '\x11'));
  constexpr std::string_view kTokens[] = {"{",
                                          "}",
                                          "[",
                                          "]",
                                          ",",
                                          ":",
                                          "\"",
                                          "0",
                                          "9",
                                          "-1",
                                          "1e9",
                                          "null",
                                          "true",
                                          "\"F32\"",
                                          "\"dtype\":\"U8\"",
                                          "18446744073709551615",
                                          "\\u0000",
                                          "\xc3",
                                          std::string_view("\0", 1),
                                          "\"w.a\":"};
  std::mt19937_64 rng(20240607);
  const std::filesystem::path path = scratch_ / "mutant.safetensors";
  int accepted = 0;
  int refused = 0;
  for (int round = 0; round < 6000; ++round) {
    std::string bytes = valid;
    for (uint64_t edits = 1 + rng() % 3; edits > 0 && !bytes.empty(); --edits) {
      const size_t at = rng() % bytes.size();
      switch (rng() % 6) {
        case 0:
          bytes[at] = static_cast<char>(rng());
          break;
        case 1:
          bytes[at] = static_cast<char>(bytes[at] ^ (1 << rng() % 8));
          break;
        case 2:
          bytes.erase(at, 1 + rng() % 8);
          break;
        case 3:
          bytes.insert(at, kTokens[rng() % std::size(kTokens)]);
          break;
        case 4:
          bytes.resize(at);
          break;
        default:
          bytes[rng() % 8 % bytes.size()] = static_cast<char>(rng());
          break;  // the length
      }
    }
    // An edit inside the header usually breaks its length too; half of the time mend that, to get further in.
    if (rng() % 2 && bytes.size() > 48) {
      const uint64_t length = bytes.size() - 48;
      std::memcpy(bytes.data(), &length, 8);
    }
    write_text(path, bytes);
    try {
      touch(SafetensorsFile::open(path));
      ++accepted;
    } catch (const Error& e) {
      ++refused;
      EXPECT_TRUE(e.code() == ErrorCode::kFormat || e.code() == ErrorCode::kUnsupported) << e.what();
      EXPECT_EQ(std::string_view(e.what()).find('\n'), std::string_view::npos) << e.what();
    }
  }
  EXPECT_GT(accepted, 50) << "mutations of the data alone leave a valid file";
  EXPECT_GT(refused, 3000);
}

TEST_F(Safetensors, ManyTensorsOpenInLinearTime) {
  constexpr int kCount = 100000;
  std::string json = "{";
  for (int i = 0; i < kCount; ++i) {
    if (i) json += ',';
    json += "\"t" + std::to_string(i) + "\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[" +
            std::to_string(i) + "," + std::to_string(i + 1) + "]}";
  }
  const SafetensorsFile file = open(json + "}", std::string(kCount, 'x'));
  EXPECT_EQ(file.tensors().size(), static_cast<size_t>(kCount));
  EXPECT_NE(file.find("t99999"), nullptr);
}

}  // namespace
}  // namespace qvl::checkpoint
