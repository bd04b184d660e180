// Packages of the tiny golden model for the tests of the ONNX engine, exported by the test program itself.
#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "qvl/engine/engine.h"
#include "qvl/engine/ort/open.h"
#include "qvl/export/exporter.h"
#include "qvl/package/package.h"

namespace qvl::golden {

exporting::ExportOptions float_options(exporting::StagePrecision precision);
// "fp32", "bf16", "plain", "genai", "int" (int8 vision, int4 text, exact activations), "static" (256x256
// pixels, 16 tokens a call, 128 in the cache). Exported once for each process.
std::filesystem::path tiny_package(const std::string& name);
std::filesystem::path tiny_package(const std::string& name, const exporting::ExportOptions& options);
std::shared_ptr<const package::Package> open_tiny(const std::string& name);

std::shared_ptr<const engine::Engine> open_mix(const std::string& name, bool onnx_vision, bool onnx_text,
                                               const engine::ort::OrtOptions& ort,
                                               engine::Precision native_precision);
std::shared_ptr<const engine::Engine> open_mix(const std::shared_ptr<const package::Package>& package,
                                               bool onnx_vision, bool onnx_text,
                                               const engine::ort::OrtOptions& ort,
                                               engine::Precision native_precision);

}  // namespace qvl::golden
