#include "qvl/serve/media.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>

#include "qvl/base/error.h"
#include "qvl/base/format.h"
#include "qvl/serve/http_error.h"

namespace qvl::serve {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kParam = "messages[0].content[1].image_url.url";

struct Refusal {
  std::string message, code;
  ErrorCode kind = ErrorCode::kIo;
  int status = 0;
};

// What load_media() says against `url`; an empty message when it has nothing against it.
Refusal refusal(std::string_view url, const MediaPolicy& policy) {
  try {
    load_media(url, policy, kParam);
  } catch (const HttpError& e) {
    EXPECT_EQ(e.reply().param, kParam);
    EXPECT_TRUE(e.reply().message.starts_with(cat("[", kParam, "] "))) << e.what();
    EXPECT_LT(e.reply().message.size(), 300u);
    return {e.reply().message, e.reply().code, e.code(), e.reply().status};
  }
  return {};
}

TEST(DataUrl, Base64InEveryForm) {
  const MediaPolicy policy;
  const std::string expected("\x00\xff\x10hello", 8);
  for (const std::string_view good : {
           "data:image/png;base64,AP8QaGVsbG8=",
           "data:image/png;base64,AP8QaGVsbG8",
           "DATA:IMAGE/PNG;BASE64,AP8QaGVsbG8=",
           "data:;base64,AP8QaGVsbG8=",
           "data:image/jpeg;charset=x;base64,AP8QaGVsbG8=",
           "data:image/png;base64, AP8Q\r\naGVs\tbG8=\n",
           "data:image/png;base64,AP8QaGVsbG8%3D",
           "data:image/png;base64,%41P8QaGVs%0AbG8%3d",
           "data:application/octet-stream;base64,AP8QaGVsbG8=",
           "data:image/png;base64,AP8QaGVsbG8 =",
           "data:image/png,%00%ff%10hello",
       }) {
    EXPECT_EQ(load_media(good, policy, kParam), expected) << good;
  }
  EXPECT_EQ(load_media("data:image/x;base64,QQ", policy, kParam), "A");
  EXPECT_EQ(load_media("data:image/x;base64,QUI=", policy, kParam), "AB");
  EXPECT_EQ(load_media("data:image/x;base64,++//", policy, kParam), "\xfb\xef\xff");
}

TEST(DataUrl, WrongOnesAreNamed) {
  const MediaPolicy policy;
  const auto says = [&](std::string_view url, std::string_view what, std::string_view code = "invalid_image_url") {
    const Refusal r = refusal(url, policy);
    EXPECT_NE(r.message.find(what), std::string::npos) << url.substr(0, 80) << ": " << r.message;
    EXPECT_EQ(r.code, code) << url.substr(0, 80);
    EXPECT_EQ(r.status, 400);
  };
  says("data:image/png;base64,AP8*aGVs", "got '*' at 3", "invalid_base64_image");
  says("data:image/png;base64,AP8\xc3\xa4", "byte 0xc3 at 3", "invalid_base64_image");
  says("data:image/png;base64,AP8-", "got '-' at 3", "invalid_base64_image");
  says("data:image/png;base64,AP8QA", "cut short", "invalid_base64_image");
  says("data:image/png;base64,AP8=QQ==", "follows the '='", "invalid_base64_image");
  says("data:image/png;base64,AP8QaA=", "cut short", "invalid_base64_image");
  says("data:image/png;base64,====", "'=' after 0 digits", "invalid_base64_image");
  says("data:image/png;base64,", "empty");
  says("data:image/png;base64,%4", "two hexadecimal digits");
  says("data:image/png;base64", "no comma");
  says("data:text/html;base64,PGI+", "expected an image media type, got text/html");
  says("data:" + std::string(5000, 'x'), "no comma");
  says("data:" + std::string(500, 'x') + ",", "...");
  says("", "empty");
  says("ftp://example.com/a.png", "got ftp:");
  says("javascript:alert(1)", "got javascript:");
}

TEST(DataUrl, SizeIsLimited) {
  MediaPolicy policy;
  policy.max_bytes = 9;
  EXPECT_EQ(load_media("data:image/x;base64,QUFBQUFBQUFB", policy, kParam), "AAAAAAAAA");
  for (const std::string& large :
       {std::string("data:image/x;base64,QUFBQUFBQUFBQQ=="), std::string("data:,0123456789"),
        "data:image/x;base64," + std::string(100, '%') + std::string(500, 'A'),
        "data:,%30" + std::string(9, 'x')}) {
    const Refusal r = refusal(large, policy);
    EXPECT_EQ(r.kind, ErrorCode::kLimit) << large.substr(0, 50) << r.message;
    EXPECT_EQ(r.status, 413);
    EXPECT_EQ(r.code, "image_too_large");
  }
}

TEST(MediaUrls, AreOffUnlessAllowed) {
  const Refusal r = refusal("http://example.com/a.png", MediaPolicy{});
  EXPECT_EQ(r.code, "image_url_not_allowed");
  EXPECT_EQ(r.kind, ErrorCode::kInvalidArgument);
}

class FileRoot : public ::testing::Test {
 protected:
  void SetUp() override {
    base_ = fs::canonical(::testing::TempDir()) / cat("qvl_media_", ::getpid());
    fs::remove_all(base_);
    fs::create_directories(base_ / "root/sub");
    fs::create_directories(base_ / "root-other");
    write(base_ / "root/a.png", "picture a");
    write(base_ / "root/sub/b c.png", "picture b");
    write(base_ / "secret.txt", "secret");
    write(base_ / "root-other/d.png", "other");
    fs::create_symlink("sub/b c.png", base_ / "root/inside");
    fs::create_symlink(base_ / "root/a.png", base_ / "root/sub/absolute");
    fs::create_symlink("../secret.txt", base_ / "root/outside");
    fs::create_symlink("..", base_ / "root/up");
    fs::create_symlink("/nowhere/at/all", base_ / "root/dangling");
    fs::create_directory_symlink(base_ / "root", base_ / "linked-root");
    policy_.file_root = base_ / "root";
  }
  void TearDown() override { fs::remove_all(base_); }

  static void write(const fs::path& path, std::string_view text) { std::ofstream(path) << text; }
  std::string load(std::string_view url) const { return load_media(url, policy_, kParam); }

  fs::path base_;
  MediaPolicy policy_;
};

TEST_F(FileRoot, FilesBelowItAreRead) {
  for (const std::string& name :
       {std::string("a.png"), std::string("./sub/../a.png"), (base_ / "root/a.png").string(),
        "file://" + (base_ / "root/a.png").string(), "FILE://localhost" + (base_ / "root/a.png").string(),
        std::string("sub/absolute"), "file:" + (base_ / "root/a.png").string()}) {
    EXPECT_EQ(load(name), "picture a") << name;
  }
  EXPECT_EQ(load("sub/b c.png"), "picture b");
  EXPECT_EQ(load("file://" + (base_ / "root/sub/b%20c.png").string()), "picture b");
  EXPECT_EQ(load("inside"), "picture b");
  policy_.file_root = base_ / "linked-root/";  // the operator's own link
  EXPECT_EQ(load("a.png"), "picture a");
  EXPECT_EQ(load((base_ / "linked-root/a.png").string()), "picture a");
  EXPECT_EQ(load((base_ / "root/a.png").string()), "picture a");
}

TEST_F(FileRoot, NothingElseIsEvenAdmittedToExist) {
  ASSERT_EQ(::mkfifo((base_ / "root/pipe").c_str(), 0600), 0);
  std::string message;
  for (const std::string& name : {std::string("../secret.txt"),
                                  std::string("../nothing.txt"),
                                  std::string("sub/../../secret.txt"),
                                  (base_ / "secret.txt").string(),
                                  std::string("/etc/passwd"),
                                  std::string("/no/such/file"),
                                  std::string("outside"),
                                  std::string("up/secret.txt"),
                                  std::string("up/root-other/d.png"),
                                  std::string("dangling"),
                                  std::string("missing.png"),
                                  std::string("sub"),
                                  std::string("."),
                                  std::string("/"),
                                  std::string("pipe"),
                                  std::string("/dev/zero"),
                                  (base_ / "root-other/d.png").string(),
                                  (base_ / "root/../secret.txt").string(),
                                  std::string("a.png/"),
                                  "file://" + (base_ / "root/%2e%2e/secret.txt").string(),
                                  std::string("a.png\0x", 7),
                                  std::string("file:a.png"),
                                  std::string("file://"),
                                  "file://" + (base_ / "root/a.png%00").string(),
                                  std::string("file:///%2"),
                                  std::string(5000, 'x'),
                                  std::string("/proc/self/environ"),
                                  base_.string()}) {
    const Refusal r = refusal(name, policy_);
    ASSERT_FALSE(r.message.empty()) << name;
    if (message.empty()) message = r.message;
    EXPECT_EQ(r.message, message) << name;
    EXPECT_EQ(r.kind, ErrorCode::kInvalidArgument);
    EXPECT_EQ(r.status, 400);
  }
  EXPECT_NE(refusal("file://server/share/a.png", policy_).message.find("another machine"), std::string::npos);
  EXPECT_EQ(refusal("a.png", MediaPolicy{}).code, "image_url_not_allowed");
  EXPECT_EQ(refusal("file:///etc/passwd", MediaPolicy{}).code, "image_url_not_allowed");
}

TEST_F(FileRoot, SizeIsLimited) {
  policy_.max_bytes = 9;
  EXPECT_EQ(load("a.png"), "picture a");
  policy_.max_bytes = 8;
  const Refusal r = refusal("a.png", policy_);
  EXPECT_EQ(r.kind, ErrorCode::kLimit);
  EXPECT_EQ(r.status, 413);
}

TEST_F(FileRoot, PoliciesAreChecked) {
  EXPECT_NO_THROW(check_policy(policy_));
  policy_.allowed_hosts = {"Example.com", "*.example.com", "example.com:8443", "[2001:4860::1]:80",
                           "8.8.8.8"};
  EXPECT_NO_THROW(check_policy(policy_));
  for (const std::string_view bad :
       {"", "http://example.com", "example.com/x", "*", "*.", "a b", "x:y", "u@h"}) {
    MediaPolicy wrong;
    wrong.allowed_hosts = {std::string(bad)};
    EXPECT_THROW(check_policy(wrong), Error) << bad;
  }
  policy_.file_root = base_ / "secret.txt";
  EXPECT_THROW(check_policy(policy_), Error);
}

}  // namespace
}  // namespace qvl::serve
