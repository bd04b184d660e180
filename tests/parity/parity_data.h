// Where the parity tests find what tests/parity/fetch_vocabulary.sh put in place.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <string>

#include "qvl/base/json.h"
#include "qvl/base/mapped_file.h"

namespace qvl::parity {

// $QVL_PARITY_DIR, else build/third_party of the source tree.
inline std::filesystem::path data_dir() {
  const char* dir = std::getenv("QVL_PARITY_DIR");
  return dir != nullptr && *dir != '\0' ? std::filesystem::path(dir)
                                        : std::filesystem::path(QVL_SOURCE_DIR) / "build/third_party";
}
inline std::filesystem::path vocabulary_dir() {
  return data_dir() / "qwen3-tokenizer";
}

inline Json golden(const char* name) {
  return parse_json_file(std::filesystem::path(QVL_SOURCE_DIR) / "tests/fixtures/golden/tokenizer" / name);
}

inline bool parity_is_required() {
  const char* required = std::getenv("QVL_REQUIRE_PARITY");
  return required != nullptr && std::string(required) == "1";
}

}  // namespace qvl::parity

// Ends the test unless the fetched file is there: a failure if QVL_REQUIRE_PARITY=1, else a skip that says
// what to do.
#define QVL_NEED_FETCHED(path)                                                                            \
  do {                                                                                                    \
    if (!std::filesystem::exists(path)) {                                                                 \
      const std::string message = (path).string() + " is missing. Run: tests/parity/fetch_vocabulary.sh"; \
      if (qvl::parity::parity_is_required()) FAIL() << message;                                           \
      GTEST_SKIP() << "NOT TESTED: parity with the reference tokenizer. " << message;                     \
    }                                                                                                     \
  } while (false)
