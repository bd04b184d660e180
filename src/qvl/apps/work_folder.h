// Where a command puts packages that it makes for itself.
#pragma once

#include <filesystem>
#include <string>

namespace qvl::apps {

// A folder that goes away with its contents, unless the user named it.
class WorkFolder {
 public:
  // `given` is created where it is missing and kept; empty: a temporary folder "qvl-COMMAND-XXXXXX". Throws kIo.
  WorkFolder(const std::string& given, const std::string& command);
  ~WorkFolder();
  WorkFolder(const WorkFolder&) = delete;
  WorkFolder& operator=(const WorkFolder&) = delete;
  const std::filesystem::path& path() const { return path_; }
  bool kept() const { return keep_; }

 private:
  bool keep_;
  std::filesystem::path path_;
};

}  // namespace qvl::apps
