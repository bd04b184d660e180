#include "qvl/apps/work_folder.h"

#include <cstdlib>

#include "qvl/base/error.h"

namespace qvl::apps {

namespace fs = std::filesystem;

WorkFolder::WorkFolder(const std::string& given, const std::string& command) : keep_(!given.empty()) {
  if (keep_) {
    std::error_code ec;
    fs::create_directories(given, ec);
    if (ec) fail(ErrorCode::kIo, given, "cannot create the folder: " + ec.message());
    path_ = given;
    return;
  }
  std::string name = (fs::temp_directory_path() / ("qvl-" + command + "-XXXXXX")).string();
  if (!mkdtemp(name.data())) fail_errno(name, "cannot create a temporary folder");
  path_ = name;
}

WorkFolder::~WorkFolder() {
  std::error_code ec;
  if (!keep_) fs::remove_all(path_, ec);
}

}  // namespace qvl::apps
