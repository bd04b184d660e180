// Holds the table of rooms of ARCHITECTURE.md: parses every include below src/qvl and refuses what the table
// does not allow.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <vector>

namespace {

namespace fs = std::filesystem;

const fs::path kRoot = fs::path(QVL_SOURCE_DIR) / "src/qvl";

// Room -> what its files may include besides their own room. "image/grid.h" is one header of a room.
const std::map<std::string, std::set<std::string>>& table() {
  static const std::map<std::string, std::set<std::string>> t = {
      {"base", {}},
      {"checkpoint", {"base"}},
      {"text", {"base"}},
      {"image", {"base"}},
      {"quant", {"base"}},
      {"onnx", {"base"}},
      {"model", {"base", "image/grid.h"}},
      {"source", {"base", "model", "checkpoint"}},
      {"synth", {"base", "model", "checkpoint"}},
      {"package", {"base", "model", "quant", "onnx"}},
      {"export", {"base", "checkpoint", "text", "image", "quant", "onnx", "model", "package", "source"}},
      {"kernels", {"base", "quant"}},
      {"engine", {"base", "model", "package", "image/grid.h"}},
      {"engine/native",
       {"base", "checkpoint", "quant", "model", "package", "kernels", "engine", "source", "image/grid.h"}},
      {"engine/ort", {"base", "model", "onnx", "package", "engine", "image/grid.h"}},
      {"grammar", {"base", "text"}},
      {"generate", {"base", "model", "text", "image", "engine"}},
      {"draw", {"base", "image"}},
      {"serve", {"base", "text", "image", "model", "engine", "generate", "grammar", "draw"}},
      {"apps",
       {"base", "checkpoint", "text", "image", "quant", "onnx", "model", "synth", "package", "export",
        "kernels", "engine", "engine/native", "engine/ort", "generate", "grammar", "draw", "serve", "source"}},
  };
  return t;
}

// Start of a third-party header -> the room that owns the library.
const std::map<std::string, std::set<std::string>>& third_party() {
  static const std::map<std::string, std::set<std::string>> t = {
      {"nlohmann/", {"base"}},
      {"fmt/", {"base"}},
      {"CLI/", {"apps"}},
      {"pcre2", {"text"}},
      {"utf8proc", {"text"}},
      {"simdjson", {"text"}},
      {"jpeglib", {"image"}},
      {"jerror", {"image"}},
      {"png.h", {"image"}},
      {"webp/", {"image"}},
      {"libexif/", {"image"}},
      {"gif_lib", {"image"}},
      {"onnx/", {"onnx"}},
      {"google/protobuf", {"onnx"}},
      {"onnxruntime", {"engine/ort"}},
      {"llguidance", {"grammar"}},
      {"immintrin", {"kernels", "image", "quant"}},
      {"openssl/", {"base"}},
      {"xxhash", {"base"}},
      {"boost/", {"serve"}},
      {"curl/", {"serve"}},
      {"cairo", {"draw"}},
      {"pango", {"draw"}},
      {"fontconfig", {"draw"}},
      {"glib", {"draw"}},
      {"histedit", {"apps"}},
      {"editline", {"apps"}},
  };
  return t;
}

std::vector<fs::path> sources() {
  std::vector<fs::path> files;
  for (const auto& entry : fs::recursive_directory_iterator(kRoot)) {
    const std::string ext = entry.path().extension().string();
    if (ext == ".h" || ext == ".cc") files.push_back(entry.path());
  }
  return files;
}

std::string room_of(const fs::path& file) {
  return fs::relative(file.parent_path(), kRoot).string();
}

// The room of "engine/native/open.h".
std::string room_of_include(const std::string& header) {
  return fs::path(header).parent_path().string();
}

bool is_test(const fs::path& file) {
  return file.stem().string().ends_with("_test");
}

struct Include {
  fs::path file;
  int line;
  std::string header;  // without the leading "qvl/" for ours
  bool ours;
};

std::vector<Include> includes() {
  static const std::regex pattern(R"(^\s*#\s*include\s*[<"]([^>"]+)[>"])");
  std::vector<Include> found;
  for (const fs::path& file : sources()) {
    std::ifstream in(file);
    std::string line;
    for (int n = 1; std::getline(in, line); ++n) {
      std::smatch m;
      if (!std::regex_search(line, m, pattern)) continue;
      const std::string header = m[1];
      const bool ours = header.starts_with("qvl/");
      found.push_back({file, n, ours ? header.substr(4) : header, ours});
    }
  }
  return found;
}

std::string place(const Include& i) {
  return fs::relative(i.file, kRoot).string() + ":" + std::to_string(i.line);
}

TEST(Rooms, EveryFolderIsInTheTable) {
  std::set<std::string> seen;
  for (const fs::path& file : sources()) seen.insert(room_of(file));
  ASSERT_GE(seen.size(), 8u);
  for (const std::string& room : seen) EXPECT_TRUE(table().contains(room)) << room;
}

TEST(Rooms, IncludesFollowTheTable) {
  size_t checked = 0;
  for (const Include& i : includes()) {
    if (!i.ours) continue;
    ++checked;
    const std::string room = room_of(i.file);
    const std::string target = room_of_include(i.header);
    if (target == room || !table().contains(room)) continue;
    const std::set<std::string>& allowed = table().at(room);
    // Tests may read fixtures through the checkpoint room.
    const bool test_reads_fixture = is_test(i.file) && target == "checkpoint";
    EXPECT_TRUE(allowed.contains(target) || allowed.contains(i.header) || test_reads_fixture)
        << place(i) << ": room '" << room << "' must not include qvl/" << i.header;
  }
  EXPECT_GT(checked, 50u);
}

TEST(Rooms, OurHeadersAreIncludedByTheirFullName) {
  for (const Include& i : includes()) {
    if (i.ours) {
      EXPECT_TRUE(fs::exists(kRoot / i.header)) << place(i) << ": qvl/" << i.header;
    } else {
      EXPECT_FALSE(fs::exists(i.file.parent_path() / i.header) && i.header.ends_with(".h"))
          << place(i) << ": write qvl/" << room_of(i.file) << "/" << i.header;
    }
  }
}

TEST(Rooms, ThirdPartyHeadersStayInOneRoom) {
  for (const Include& i : includes()) {
    if (i.ours || is_test(i.file)) continue;
    for (const auto& [prefix, rooms] : third_party()) {
      if (!i.header.starts_with(prefix)) continue;
      EXPECT_TRUE(rooms.contains(room_of(i.file))) << place(i) << ": <" << i.header << "> belongs elsewhere";
    }
  }
}

TEST(Rooms, LibraryNeverPrintsOrExits) {
  static const std::regex pattern(
      R"(\bstd::(cout|cerr|clog|exit|abort|quick_exit)\b|\b(printf|fprintf|puts|perror|abort|_exit|exit)\s*\(|\bassert\s*\()");
  for (const fs::path& file : sources()) {
    const std::string room = room_of(file);
    if (room == "apps" || is_test(file)) continue;
    std::ifstream in(file);
    std::string line;
    for (int n = 1; std::getline(in, line); ++n) {
      const std::string code = line.substr(0, line.find("//"));
      EXPECT_FALSE(std::regex_search(code, pattern))
          << fs::relative(file, kRoot).string() << ":" << n << ": " << line;
    }
  }
}

TEST(Rooms, EverySourceFileSaysWhatItIs) {
  for (const fs::path& file : sources()) {
    if (file.extension() != ".h") continue;
    std::ifstream in(file);
    std::string first;
    std::getline(in, first);
    EXPECT_TRUE(first.starts_with("// ")) << fs::relative(file, kRoot).string() << " has no head comment";
  }
}

// MODEL.md names a guard for each trap; the names must be those of tests that exist.
TEST(ModelPage, EveryGuardExists) {
  std::set<std::string> tests;
  static const std::regex definition(R"(TEST(?:_P|_F)?\(\s*(\w+),\s*(\w+)\))");
  for (const char* folder : {"src", "tests"}) {
    for (const auto& entry : fs::recursive_directory_iterator(fs::path(QVL_SOURCE_DIR) / folder)) {
      if (entry.path().extension() != ".cc") continue;
      std::ifstream in(entry.path());
      std::stringstream text;
      text << in.rdbuf();
      const std::string source = text.str();
      for (std::sregex_iterator it(source.begin(), source.end(), definition), end; it != end; ++it) {
        tests.insert((*it)[1].str() + "." + (*it)[2].str());
      }
    }
  }
  std::ifstream in(fs::path(QVL_SOURCE_DIR) / "MODEL.md");
  std::stringstream text;
  text << in.rdbuf();
  const std::string page = text.str();
  static const std::regex guard(R"(`([A-Z]\w+\.[A-Z]\w+)`)");
  size_t guards = 0;
  for (std::sregex_iterator it(page.begin(), page.end(), guard), end; it != end; ++it, ++guards) {
    EXPECT_TRUE(tests.contains((*it)[1].str())) << "MODEL.md names " << (*it)[1].str();
  }
  EXPECT_GT(guards, 30u);
}

}  // namespace
