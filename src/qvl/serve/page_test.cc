#include "qvl/serve/page.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <regex>
#include <set>
#include <string>

namespace qvl::serve {
namespace {

std::string text_of(const PageFile& file) {
  return std::string(file.bytes);
}

const PageFile* find(std::string_view path) {
  for (const PageFile& file : page_files()) {
    if (file.path == path) return &file;
  }
  return nullptr;
}

bool is_third_party(const PageFile& file) {
  return file.path.starts_with("/page/third_party/");
}

bool is_script(const PageFile& file) {
  return file.path.ends_with(".js");
}

// All first groups of `pattern` in `text`.
std::set<std::string> matches(const std::string& text, const std::string& pattern) {
  const std::regex regex(pattern);
  std::set<std::string> found;
  for (std::sregex_iterator it(text.begin(), text.end(), regex), end; it != end; ++it) found.insert((*it)[1].str());
  return found;
}

TEST(Page, FilesAreBuiltInWithTheirTypes) {
  static const std::map<std::string_view, std::string_view> types = {{"js", "text/javascript; charset=utf-8"},
                                                                     {"css", "text/css; charset=utf-8"},
                                                                     {"svg", "image/svg+xml"},
                                                                     {"png", "image/png"}};
  std::set<std::string_view> paths;
  for (const PageFile& file : page_files()) {
    EXPECT_TRUE(paths.insert(file.path).second) << file.path << " is there twice";
    EXPECT_FALSE(file.bytes.empty()) << file.path;
    if (file.path == "/") {
      EXPECT_EQ(file.content_type, "text/html; charset=utf-8");
      EXPECT_TRUE(file.bytes.starts_with("<!doctype html>"));
      continue;
    }
    EXPECT_TRUE(file.path.starts_with("/page/")) << file.path;
    const auto type = types.find(file.path.substr(file.path.rfind('.') + 1));
    ASSERT_NE(type, types.end()) << file.path;
    EXPECT_EQ(file.content_type, type->second) << file.path;
  }
  EXPECT_TRUE(paths.contains("/"));
  EXPECT_TRUE(paths.contains("/page/app.js"));
  EXPECT_GT(paths.size(), 15u);
}

// Bytes of every value survive the way into the program.
TEST(Page, FilesAreThoseOfTheSourceTree) {
  const std::filesystem::path source(QVL_SOURCE_DIR);
  size_t compared = 0;
  for (const PageFile& file : page_files()) {
    if (is_third_party(file) || file.path == "/page/markdown_libraries.js") continue;
    const std::string name = file.path == "/" ? "index.html" : std::string(file.path.substr(6));
    std::ifstream in(name == "example.png" ? source / "examples/shapes.png" : source / "src/qvl/serve/page" / name, std::ios::binary);
    ASSERT_TRUE(in) << name;
    const std::string bytes((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
    EXPECT_TRUE(bytes == file.bytes) << name;
    ++compared;
  }
  EXPECT_GT(compared, 15u);
  ASSERT_NE(find("/page/example.png"), nullptr);
}

TEST(Page, WhatFilesReferToIsThere) {
  size_t references = 0;
  const std::string html = text_of(*find("/"));
  for (const std::string& path : matches(html, "(?:src|href)=\"([^\"#][^\"]*)\"")) {
    EXPECT_NE(find("/" + path), nullptr) << "/ refers to " << path;
    ++references;
  }
  for (const PageFile& file : page_files()) {
    if (!is_script(file) || is_third_party(file)) continue;
    for (const std::string& path : matches(text_of(file), "from '\\./([^']+)'")) {
      EXPECT_NE(find("/page/" + path), nullptr) << file.path << " imports " << path;
      ++references;
    }
  }
  EXPECT_GT(references, 25u);
}

// What the policy would block in the browser is not written in the first place.
TEST(Page, NothingInlineAndNoOtherHost) {
  for (const PageFile& file : page_files()) {
    if (is_third_party(file) || file.content_type == "image/png") continue;
    const std::string text = text_of(file);
    for (const std::string& url : matches(text, "(https?://[^\\s'\"`)]+)")) {
      EXPECT_TRUE(url.starts_with("http://www.w3.org/")) << file.path << " names " << url;
    }
    EXPECT_FALSE(std::regex_search(text, std::regex("\\beval\\(|new Function\\(|innerHTML|outerHTML|insertAdjacentHTML|document\\.write")))
        << file.path;
    EXPECT_FALSE(std::regex_search(text, std::regex("url\\(|@import"))) << file.path;
  }
  const std::string html = text_of(*find("/"));
  EXPECT_FALSE(std::regex_search(html, std::regex("<style|\\sstyle=|\\son[a-z]+=|<script(?![^>]*\\ssrc=)|javascript:")));
}

TEST(Page, PolicyIsStrict) {
  const std::string policy(kPageSecurityPolicy);
  EXPECT_TRUE(policy.starts_with("default-src 'none'; "));
  for (const char* loose : {"unsafe-inline", "unsafe-eval", "http:", "https:", "*", "strict-dynamic", "nonce-"}) {
    EXPECT_EQ(policy.find(loose), std::string::npos) << loose;
  }
  for (const char* directive : {"script-src 'self';", "style-src 'self';", "connect-src 'self';", "base-uri 'none';",
                                "form-action 'none';", "frame-ancestors 'none';"}) {
    EXPECT_NE(policy.find(directive), std::string::npos) << directive;
  }
  EXPECT_EQ(kPageHeaders[0].value, kPageSecurityPolicy);
}

// Both libraries or none: a parser without the sanitiser would be worse than plain text.
TEST(Page, MarkdownComesWithItsSanitiser) {
  const PageFile* libraries = find("/page/markdown_libraries.js");
  ASSERT_NE(libraries, nullptr);
  const bool with = libraries->bytes.find("import DOMPurify") != std::string_view::npos;
  EXPECT_EQ(find("/page/third_party/marked.js") != nullptr, with);
  EXPECT_EQ(find("/page/third_party/purify.js") != nullptr, with);
  EXPECT_EQ(libraries->bytes.starts_with("export const libraries = null;"), !with);
}

}  // namespace
}  // namespace qvl::serve
