#include "qvl/engine/engine.h"

#include "qvl/base/error.h"

namespace qvl::engine {

uint64_t KvCache::saved_bytes(int64_t) const { return 0; }

void KvCache::save(int64_t, const ByteSink&) const {
  fail(ErrorCode::kUnsupported, "kv cache", "a cache of this engine cannot be saved");
}

void KvCache::load(int64_t, const ByteSource&) {
  fail(ErrorCode::kUnsupported, "kv cache", "a cache of this engine cannot be loaded");
}

Precision parse_precision(std::string_view name) {
  if (name == "auto") return Precision::kAuto;
  if (name == "f32" || name == "fp32") return Precision::kF32;
  if (name == "bf16") return Precision::kBF16;
  fail(ErrorCode::kInvalidArgument, "precision", "precision name", "auto, fp32 or bf16", name);
}

std::string_view precision_name(Precision precision) {
  switch (precision) {
    case Precision::kAuto:
      return "auto";
    case Precision::kF32:
      return "fp32";
    case Precision::kBF16:
      return "bf16";
  }
  return "auto";
}

}  // namespace qvl::engine
