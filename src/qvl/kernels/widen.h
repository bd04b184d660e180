// Any stored float as float, for kernels in plain C++ (private to this room).
#pragma once

#include "qvl/base/dtype.h"

namespace qvl::kernels {

inline float widen(float v) {
  return v;
}
inline float widen(BFloat16 v) {
  return to_float(v);
}
inline float widen(Float16 v) {
  return to_float(v);
}

}  // namespace qvl::kernels
