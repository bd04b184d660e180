// Helpers of this room's tests: scratch folders and safetensors files made byte by byte, valid or not.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <string_view>

#include "qvl/base/error.h"

namespace qvl::checkpoint {

// A folder of its own for each test, removed at the end.
class ScratchFolder {
 public:
  ScratchFolder() {
    std::string pattern = (std::filesystem::path(testing::TempDir()) / "qvl-test-XXXXXX").string();
    if (!::mkdtemp(pattern.data())) throw std::runtime_error("mkdtemp");
    path_ = pattern;
  }
  ~ScratchFolder() { std::filesystem::remove_all(path_); }
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;
  std::filesystem::path operator/(std::string_view name) const { return path_ / name; }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

inline void write_text(const std::filesystem::path& path, std::string_view text) {
  std::ofstream out(path, std::ios::binary);
  out.write(text.data(), static_cast<std::streamsize>(text.size()));
}

// The bytes of a file whose header is `json` and whose data part is `data`.
inline std::string safetensors_bytes(std::string_view json, std::string_view data) {
  const uint64_t length = json.size();
  std::string bytes(8, '\0');
  std::memcpy(bytes.data(), &length, 8);
  return bytes.append(json).append(data);
}

// "CODE: message" of what `fn` throws, with every occurrence of `folder` written as DIR; "no error" if it
// does not.
inline std::string error_of(const std::function<void()>& fn, const std::filesystem::path& folder = {}) {
  try {
    fn();
  } catch (const Error& e) {
    std::string text = std::string(error_code_name(e.code())) + ": " + e.what();
    const std::string prefix = folder.string();
    for (size_t at = text.find(prefix); !prefix.empty() && at != std::string::npos; at = text.find(prefix)) {
      text.replace(at, prefix.size(), "DIR");
    }
    return text;
  }
  return "no error";
}

}  // namespace qvl::checkpoint
