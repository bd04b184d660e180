// One table of errors: what the page for people, the description for machines and the browser's page say is what can be sent.
#include "qvl/serve/error_codes.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <regex>
#include <set>
#include <string>

#include "qvl/base/json.h"
#include "qvl/serve/http_error.h"
#include "qvl/serve/openapi.h"

namespace qvl::serve {
namespace {

using Codes = std::map<std::string, int>;  // code -> status

std::string read(const std::string& path) {
  std::ifstream in(std::filesystem::path(QVL_SOURCE_DIR) / path);
  std::string text((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  EXPECT_FALSE(text.empty()) << path;
  return text;
}

Codes table() {
  Codes out;
  for (const ErrorEntry& entry : kErrorTable) EXPECT_TRUE(out.emplace(entry.code, entry.status).second) << entry.code;
  return out;
}

TEST(ErrorCodes, StatusAndTypeGoTogether) {
  for (const ErrorEntry& entry : kErrorTable) {
    EXPECT_EQ(entry.type, entry.status >= 500 ? kServerError : entry.status == 429 ? kRateError : kRequestError) << entry.code;
    EXPECT_NE(reason_phrase(entry.status), "Unknown") << entry.code;
  }
  EXPECT_TRUE(std::is_sorted(std::begin(kErrorTable), std::end(kErrorTable), [](const ErrorEntry& a, const ErrorEntry& b) { return a.status < b.status; }));
}

// Rows "| 400 | `code`, `code` | ... |" below "## Errors".
TEST(ErrorCodes, ThePageForPeopleHasTheSameTable) {
  const std::string page = read("docs/server.md");
  const size_t begin = page.find("\n## Errors\n");
  ASSERT_NE(begin, std::string::npos);
  const std::string section = page.substr(begin, page.find("\n## ", begin + 1) - begin);
  const std::regex row(R"(\n\| (\d{3}) \|([^|]*)\|)"), word(R"(`([^`]+)`)");
  Codes told;
  for (auto r = std::sregex_iterator(section.begin(), section.end(), row); r != std::sregex_iterator(); ++r) {
    const std::string codes = (*r)[2];
    for (auto w = std::sregex_iterator(codes.begin(), codes.end(), word); w != std::sregex_iterator(); ++w)
      EXPECT_TRUE(told.emplace((*w)[1], std::stoi((*r)[1])).second) << (*w)[1] << " stands there twice";
  }
  EXPECT_EQ(told, table());
}

TEST(ErrorCodes, TheDescriptionForMachinesHasTheSameTable) {
  const Json document = Json::parse(openapi_json());
  const Json& error = document.at("components").at("schemas").at("Error").at("properties").at("error").at("properties");
  std::set<std::string> codes, described, types, described_types;
  std::set<int> statuses;
  for (const ErrorEntry& entry : kErrorTable) {
    codes.emplace(entry.code);
    types.emplace(entry.type);
    statuses.insert(entry.status);
  }
  for (const Json& code : error.at("code").at("enum")) described.insert(code.get<std::string>());
  for (const Json& type : error.at("type").at("enum")) described_types.insert(type.get<std::string>());
  EXPECT_EQ(described, codes);
  EXPECT_EQ(described_types, types);
  for (const auto& [path, operations] : document.at("paths").items()) {
    for (const auto& [method, operation] : operations.items()) {
      std::set<int> said;
      for (const auto& [status, response] : operation.at("responses").items()) {
        if (status != "200") said.insert(std::stoi(status));
      }
      if (method == "post") {
        EXPECT_EQ(said, statuses) << path;
      } else {
        EXPECT_TRUE(std::includes(statuses.begin(), statuses.end(), said.begin(), said.end())) << path;
        // What is refused before the path matters.
        for (const int any : {400, 403, 405, 408, 413, 414, 417, 431, 501, 503, 505}) EXPECT_TRUE(said.contains(any)) << path << " " << any;
      }
    }
  }
}

// The page tells kinds of errors apart by their codes, and the server it is tested with speaks as this one does.
TEST(ErrorCodes, TheBrowsersPageKnowsThemByTheirNames) {
  const Codes all = table();
  const std::string api = read("src/qvl/serve/page/api.js");
  const size_t begin = api.find("const KINDS = {");
  ASSERT_NE(begin, std::string::npos);
  const std::string kinds = api.substr(begin, api.find('}', begin) - begin);
  const std::regex key(R"((\w+): ')");
  int known = 0;
  for (auto k = std::sregex_iterator(kinds.begin(), kinds.end(), key); k != std::sregex_iterator(); ++k, ++known) EXPECT_TRUE(all.contains((*k)[1])) << (*k)[1];
  EXPECT_GT(known, 10);
  const std::regex made(R"(failure\((\d{3}), '(\w+)')");
  for (const char* file : {"tests/page/mock_server.mjs", "tests/page/cases/errors.mjs"}) {
    const std::string text = read(file);
    int failures = 0;
    for (auto f = std::sregex_iterator(text.begin(), text.end(), made); f != std::sregex_iterator(); ++f, ++failures) {
      const auto entry = all.find((*f)[2]);
      ASSERT_NE(entry, all.end()) << file << ": " << (*f)[2];
      EXPECT_EQ(entry->second, std::stoi((*f)[1])) << file << ": " << (*f)[2];
    }
    EXPECT_GT(failures, 3) << file;
  }
}

}  // namespace
}  // namespace qvl::serve
