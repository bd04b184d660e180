// The generated tables, for unicode.cc and nfc.cc only.
#pragma once

#include <cstdint>

#include "qvl/text/unicode.h"

namespace qvl::text {

struct ClassRange {
  char32_t first, last;
  CharClass char_class;
};

struct CombiningRange {
  char32_t first, last;
  uint8_t combining_class;
};

struct Decomposition {
  char32_t code_point, first, second;  // second = 0: maps to one character
  bool composes;
};

#include "qvl/text/unicode_tables.inc"

}  // namespace qvl::text
