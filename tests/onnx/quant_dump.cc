// Quantises a raw float32 matrix and writes its parts, for check_quant.py.
//
//   quant_dump "int4 b32 zp" plain|search ROWS COLUMNS IN.f32 OUT [IMPORTANCE.f32]
//
// Writes OUT.data, OUT.scales, OUT.zero_points and OUT.f32, what qvl's own codec reads back.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>

#include "qvl/base/error.h"
#include "qvl/base/mapped_file.h"
#include "qvl/quant/quantize.h"

namespace {

void write(const std::string& path, std::span<const std::byte> bytes) {
  std::ofstream out(path, std::ios::binary);
  out.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  out.close();
  if (!out) qvl::fail(qvl::ErrorCode::kIo, path, "cannot be written");
}

void run(int argc, char** argv) {
  using namespace qvl::quant;
  const Format format = parse_format(argv[1]);
  const std::string method = argv[2], out = argv[6];
  const int64_t rows = std::atol(argv[3]), columns = std::atol(argv[4]);
  const std::string values = qvl::read_file(argv[5], size_t{1} << 30);
  if (values.size() != static_cast<size_t>(rows * columns) * 4) {
    qvl::fail(qvl::ErrorCode::kMismatch, argv[5], "size is not that of the matrix");
  }
  qvl::ThreadPool pool(1);
  QuantizedMatrix matrix(format, rows, columns);
  std::vector<float> importance(argc > 7 ? static_cast<size_t>(columns) : 0);
  if (argc > 7) {
    const std::string bytes = qvl::read_file(argv[7], size_t{1} << 26);
    if (bytes.size() != importance.size() * 4)
      qvl::fail(qvl::ErrorCode::kMismatch, argv[7], "size is not that of a row");
    std::memcpy(importance.data(), bytes.data(), bytes.size());
  }
  const Quantizer quantizer(format, columns, method == "plain" ? Method::kPlain : Method::kSearch,
                            importance);
  quantizer.quantize(values.data(), qvl::DType::kF32, rows, matrix.span(), pool);
  std::vector<float> back(static_cast<size_t>(rows * columns));
  dequantize(format, rows, columns, std::as_const(matrix).span(), back);
  write(out + ".data", matrix.span().data);
  write(out + ".scales", matrix.span().scales);
  write(out + ".zero_points", matrix.span().zero_points);
  write(out + ".f32", std::as_bytes(std::span(back)));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 7 && argc != 8) {
    std::fprintf(stderr, "usage: quant_dump FORMAT plain|search ROWS COLUMNS IN.f32 OUT [IMPORTANCE.f32]\n");
    return 2;
  }
  try {
    run(argc, argv);
  } catch (const qvl::Error& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
  return 0;
}
