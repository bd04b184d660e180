// Stands for this room where the headers of ONNX Runtime were not found: everything says how to get them.
#include "qvl/base/error.h"
#include "qvl/engine/ort/open.h"

namespace qvl::engine::ort {
namespace {

[[noreturn]] void fail_not_built() {
  fail(ErrorCode::kUnsupported, "onnx",
       "this qvl was built without ONNX Runtime (run scripts/lib/onnxruntime.sh and build again; native "
       "stages need nothing)");
}

}  // namespace

LibraryInfo library_info(const std::filesystem::path&) {
  fail_not_built();
}
std::vector<std::filesystem::path> library_places() {
  return {};
}
OpenedStages open_package(std::shared_ptr<const package::Package>, const OrtOptions&, const StageSelection&) {
  fail_not_built();
}

}  // namespace qvl::engine::ort
