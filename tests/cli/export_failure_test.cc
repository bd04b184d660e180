// `qvl export` when something goes wrong: stopped or killed at several moments, no room, a target that cannot
// be written, something in the way, a package that does not compute what the checkpoint computes. Always one
// line on stderr, never half a package, and an old package stays as it was to the byte.
#include <gtest/gtest.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>

#include "fixture.h"
#include "process.h"
#include "qvl/base/dtype.h"
#include "qvl/base/json.h"
#include "qvl/checkpoint/safetensors.h"
#include "qvl/package/manifest.h"
#include "qvl/package/package.h"

namespace qvl::cli {
namespace {

namespace fs = std::filesystem;

// Every file below a folder with its bytes.
std::map<std::string, std::string> contents(const fs::path& folder) {
  std::map<std::string, std::string> out;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    if (entry.is_regular_file()) out[fs::relative(entry.path(), folder).string()] = slurp(entry.path());
  }
  return out;
}

std::vector<std::string> names(const fs::path& folder) {
  std::vector<std::string> out;
  for (const auto& entry : fs::directory_iterator(folder)) out.push_back(entry.path().filename().string());
  std::ranges::sort(out);
  return out;
}

using Names = std::vector<std::string>;

// One line on stderr that contains all parts, nothing on stdout.
void expect_failure(const Outcome& o, int exit_code, const std::vector<std::string>& parts) {
  EXPECT_EQ(o.exit_code, exit_code) << o.err;
  EXPECT_EQ(o.out, "");
  EXPECT_EQ(std::count(o.err.begin(), o.err.end(), '\n'), 1) << o.err;
  EXPECT_TRUE(o.err.starts_with("qvl: ")) << o.err;
  for (const std::string& part : parts)
    EXPECT_NE(o.err.find(part), std::string::npos) << part << ": " << o.err;
}

class ExportFailures : public ::testing::Test {
 public:
  static void SetUpTestSuite() {
    root() = fs::temp_directory_path() / ("qvl_export_failure_test_" + std::to_string(getpid()));
    fs::remove_all(root());
    fs::create_directories(root());
    const Outcome o =
        qvl({"export", kSmall, (root() / "old").string(), "--text", "int8", "--verify", "none"});
    ASSERT_EQ(o.exit_code, 0) << o.err;
  }
  static void TearDownTestSuite() { fs::remove_all(root()); }
  void SetUp() override {
    here_ = root() / "here";
    fs::remove_all(here_);
    fs::create_directories(here_);
  }
  static fs::path& root() {
    static fs::path path;
    return path;
  }
  static fs::path old_package() { return root() / "old"; }

  fs::path out() const { return here_ / "out"; }
  // A package at out() that an export would replace.
  void put_old_package() {
    fs::remove_all(out());
    fs::copy(old_package(), out(), fs::copy_options::recursive);
  }
  void expect_old_package_untouched() const {
    EXPECT_EQ(names(here_), Names{"out"});
    EXPECT_EQ(contents(out()), contents(old_package()));
  }
  Outcome run(std::vector<std::string> options = {}, const RunOptions& how = {},
              const std::string& checkpoint = kSmall) const {
    std::vector<std::string> arguments = {"export", checkpoint, out().string()};
    arguments.insert(arguments.end(), options.begin(), options.end());
    return qvl(arguments, how);
  }
  static void expect_complete(const fs::path& package) {
    const Outcome o = qvl({"verify", package.string(), "--against", kSmall, "--engines", "native", "--sizes",
                           "64x64", "--max-tokens", "0", "--no-store"});
    EXPECT_EQ(o.exit_code, 0) << o.out << o.err;
  }

  fs::path here_;
};

// When a file of the unfinished package appears: its name in the folder, or what it begins with.
struct Moment {
  const char* name;
  const char* file;
};
constexpr Moment kMoments[] = {{"the folder", ""},
                               {"vision weights", "vision.data"},
                               {"text weights", "text.data"},
                               {"graphs", "decoder.onnx"},
                               {"verification", "qvl.json"}};

std::function<bool()> appeared(const fs::path& here, const char* file) {
  return [here, file] {
    std::error_code ec;
    for (fs::directory_iterator it(here, ec), end; !ec && it != end; it.increment(ec)) {
      if (it->path().filename().string().find(".partial-") == std::string::npos) continue;
      if (!*file) return true;
      std::error_code inner;
      for (fs::directory_iterator f(it->path(), inner), none; !inner && f != none; f.increment(inner)) {
        if (f->path().filename().string().starts_with(file)) return true;
      }
    }
    return false;
  };
}

// An export that gets `signal` at every moment, beside nothing and over an old package: check(replace, outcome) sees each
// that it ended, done() each that was faster than we. Returns how many it ended, of 10.
int at_every_moment(ExportFailures& test, int signal, const std::function<void(bool, const Outcome&)>& check,
                    const std::function<void()>& done) {
  int ended = 0;
  for (const bool replace : {false, true}) {
    for (const Moment& moment : kMoments) {
      SCOPED_TRACE(std::string(moment.name) + (replace ? ", replacing" : ""));
      test.SetUp();
      if (replace) test.put_old_package();
      const Outcome o = test.run(replace ? Names{"--replace"} : Names{},
                                 {.signal_when = appeared(test.here_, moment.file), .signal = signal});
      if (o.exit_code == 0) {
        done();
        continue;
      }
      ++ended;
      check(replace, o);
    }
  }
  return ended;
}

TEST_F(ExportFailures, CtrlCAtAnyMomentLeavesNothing) {
  const auto check = [this](bool replace, const Outcome& o) {
    expect_failure(o, 130, {"interrupted; ", out().string()});
    if (replace) {
      expect_old_package_untouched();
    } else {
      EXPECT_EQ(names(here_), Names{});
    }
  };
  EXPECT_GE(at_every_moment(*this, SIGINT, check, [this] { expect_complete(out()); }), 6) << "of 10 moments";
}

TEST_F(ExportFailures, WhatAKilledExportLeavesIsRemovedByTheNext) {
  const auto check = [this](bool replace, const Outcome& o) {
    EXPECT_EQ(o.exit_code, 128 + SIGKILL);
    EXPECT_EQ(o.err, "");
    EXPECT_EQ(names(here_).size(), replace ? 2U : 1U);
    if (replace) {
      EXPECT_EQ(contents(out()), contents(old_package()));
    } else {
      EXPECT_FALSE(fs::exists(out()));
    }
    const Outcome next = run(replace ? Names{"--replace", "--verify", "none"} : Names{"--verify", "none"});
    EXPECT_EQ(next.exit_code, 0) << next.err;
    EXPECT_EQ(names(here_), Names{"out"});
    expect_complete(out());
  };
  EXPECT_GE(at_every_moment(*this, SIGKILL, check, [] {}), 6) << "of 10 moments";
}

TEST_F(ExportFailures, FilesThatMayNotGrowEndItWithALine) {
  for (const rlim_t limit : {rlim_t{0}, rlim_t{1000}, rlim_t{300'000}, rlim_t{3'000'000}}) {
    for (const bool replace : {false, true}) {
      SCOPED_TRACE(std::to_string(limit));
      SetUp();
      if (replace) put_old_package();
      const Outcome o = run(replace ? Names{"--replace"} : Names{}, {.in_child = [limit] {
                              const rlimit most{limit, limit};
                              setrlimit(RLIMIT_FSIZE, &most);
                            }});
      expect_failure(o, 1, {"out", strerror(EFBIG)});
      if (replace) {
        expect_old_package_untouched();
      } else {
        EXPECT_EQ(names(here_), Names{});
      }
    }
  }
}

// Runs `body` where mounts are its own; false when this machine does not allow that.
bool with_own_mounts(const std::function<void()>& body) {
  constexpr int kNotAllowed = 77;
  std::fflush(nullptr);
  const pid_t child = fork();
  if (child == 0) {
    const int flags = geteuid() == 0 ? CLONE_NEWNS : CLONE_NEWNS | CLONE_NEWUSER;
    if (unshare(flags) != 0 || mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0)
      _exit(kNotAllowed);
    body();
    std::fflush(nullptr);
    _exit(::testing::Test::HasFailure() ? 1 : 0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  if (WIFEXITED(status) && WEXITSTATUS(status) == kNotAllowed) return false;
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << "see above";
  return true;
}

uint64_t data_bytes(const fs::path& folder) {
  uint64_t bytes = 0;
  for (const package::FileEntry& f : package::Manifest::load(folder).data_files) bytes += f.bytes;
  return bytes;
}

TEST_F(ExportFailures, AFullDiskEndsItWithALine) {
  const uint64_t data = data_bytes(old_package());
  constexpr uint64_t kReserve = uint64_t{64} << 20;  // that an export leaves free
  const auto mount_disk = [this](uint64_t bytes) {
    const std::string size = "size=" + std::to_string(bytes);
    ASSERT_EQ(mount("tmpfs", here_.c_str(), "tmpfs", 0, size.c_str()), 0) << strerror(errno);
  };
  const bool done = with_own_mounts([&] {
    for (const bool replace : {false, true}) {
      SCOPED_TRACE(replace);
      const Names options = replace ? Names{"--text", "int8", "--replace"} : Names{"--text", "int8"};
      // Too small: known before anything is written.
      mount_disk((replace ? 2 * data : data) + kReserve / 2);
      if (replace) put_old_package();
      expect_failure(run(options), 1, {"out", "free disk space"});
      if (replace) {
        expect_old_package_untouched();
      } else {
        EXPECT_EQ(names(here_), Names{});
      }
      ASSERT_EQ(umount(here_.c_str()), 0);
      // Large enough until there is no room any more in the middle of it.
      mount_disk((replace ? 2 * data : data) + 3 * kReserve / 2);
      if (replace) put_old_package();
      const auto fill = [this, started = appeared(here_, "vision.data")] {
        struct statvfs disk {};
        if (!started() || statvfs(here_.c_str(), &disk) != 0) return false;
        const uint64_t used = (disk.f_blocks - disk.f_bfree) * disk.f_frsize;
        const std::string size = "size=" + std::to_string(used + 65536);
        return mount("tmpfs", here_.c_str(), "tmpfs", MS_REMOUNT, size.c_str()) == 0;
      };
      const Outcome o = run(options, {.signal_when = fill, .signal = 0});
      ASSERT_TRUE(o.signalled);
      expect_failure(o, 1, {"out", strerror(ENOSPC)});
      if (replace) {
        expect_old_package_untouched();
      } else {
        EXPECT_EQ(names(here_), Names{});
      }
      ASSERT_EQ(umount(here_.c_str()), 0);
    }
  });
  if (!done) GTEST_SKIP() << "this machine does not let a test mount anything";
}

TEST_F(ExportFailures, AReadOnlyFolderEndsItWithALine) {
  put_old_package();
  const bool done = with_own_mounts([&] {
    ASSERT_EQ(mount(here_.c_str(), here_.c_str(), nullptr, MS_BIND, nullptr), 0) << strerror(errno);
    ASSERT_EQ(mount(nullptr, here_.c_str(), nullptr, MS_REMOUNT | MS_BIND | MS_RDONLY, nullptr), 0)
        << strerror(errno);
    expect_failure(run({"--replace"}), 1, {"out", strerror(EROFS)});
    expect_failure(qvl({"export", kSmall, (here_ / "other").string()}), 1, {"other", strerror(EROFS)});
    expect_old_package_untouched();
  });
  if (!done) GTEST_SKIP() << "this machine does not let a test mount anything";
}

TEST_F(ExportFailures, WhatStandsInTheWayStays) {
  put_old_package();
  expect_failure(run(), 1, {"out", "does not exist yet", "--replace"});
  expect_old_package_untouched();
  // Said before minutes of calibration, and before the samples are looked for.
  expect_failure(run({"--calibrate", (here_ / "nowhere").string()}), 1, {"does not exist yet"});

  SetUp();
  std::ofstream(out()) << "a file";
  expect_failure(run(), 1, {"out", "does not exist yet"});
  expect_failure(run({"--replace"}), 1, {"out", "expected a folder"});
  EXPECT_EQ(slurp(out()), "a file");

  SetUp();
  fs::create_directory(out());
  std::ofstream(out() / "holiday.jpg") << "not a package";
  expect_failure(run({"--replace"}), 1, {"out", "expected a package"});
  EXPECT_EQ(names(here_), Names{"out"});
  EXPECT_EQ(names(out()), Names{"holiday.jpg"});

  SetUp();
  expect_failure(qvl({"export", kSmall, (here_ / "no/such/out").string()}), 1, {"no/such", "no such folder"});
  std::ofstream(here_ / "file") << "x";
  expect_failure(qvl({"export", kSmall, (here_ / "file/out").string()}), 1, {"file", "no such folder"});
  EXPECT_EQ(names(here_), Names{"file"});
}

TEST_F(ExportFailures, ReplacingSwapsWholePackages) {
  put_old_package();
  const Outcome o = run({"--replace"});
  EXPECT_EQ(o.exit_code, 0) << o.err;
  EXPECT_EQ(names(here_), Names{"out"});
  EXPECT_EQ(package::Manifest::load(out()).text.precision, "int4");
  EXPECT_FALSE(fs::exists(out() / ".qvl-partial"));
}

// A checkpoint whose logits are a thousand times as steep: what rounding does to them is no longer harmless.
fs::path steep_model(const fs::path& folder) {
  fs::create_directories(folder);
  for (const auto& entry : fs::directory_iterator(kSmall)) fs::copy(entry.path(), folder);
  const fs::path weights = folder / "model.safetensors";
  size_t offset = 0, count = 0;
  {
    const auto file = checkpoint::SafetensorsFile::open(weights);
    const checkpoint::TensorView& norm = file.get("model.language_model.norm.weight");
    EXPECT_EQ(norm.dtype, DType::kBF16);
    offset = static_cast<size_t>(norm.bytes.data() - file.mapping().bytes().data());
    count = norm.bytes.size() / sizeof(BFloat16);
  }
  std::string bytes = slurp(weights);
  std::vector<BFloat16> values(count);
  std::memcpy(values.data(), bytes.data() + offset, count * sizeof(BFloat16));
  for (BFloat16& v : values) v = to_bfloat16(to_float(v) * 1000);
  std::memcpy(bytes.data() + offset, values.data(), count * sizeof(BFloat16));
  std::ofstream(weights, std::ios::binary | std::ios::trunc) << bytes;
  return folder;
}

TEST_F(ExportFailures, APackageThatAnswersOtherwiseIsNotWritten) {
  const std::string steep = steep_model(root() / "steep").string();
  expect_failure(run({"--recipe", "plain"}, {}, steep), 1,
                 {"out", "does not compute what the checkpoint computes", "native engine", "--verify none"});
  EXPECT_EQ(names(here_), Names{});
  put_old_package();
  expect_failure(run({"--recipe", "plain", "--replace"}, {}, steep), 1, {"does not compute"});
  expect_old_package_untouched();
  // Whoever wants it all the same; verify says what it is.
  const Outcome o = run({"--recipe", "plain", "--replace", "--verify", "none"}, {}, steep);
  EXPECT_EQ(o.exit_code, 0) << o.err;
  EXPECT_TRUE(package::Manifest::load(out()).parity.is_null());
  const Outcome verified = qvl({"verify", out().string(), "--against", steep, "--engines", "native"});
  EXPECT_EQ(verified.exit_code, 1) << verified.err;
  // Unrounded weights compute the same, however steep.
  const Outcome exact = run({"--replace", "--text", "bf16", "--vision", "bf16"}, {}, steep);
  EXPECT_EQ(exact.exit_code, 0) << exact.err;
}

TEST_F(ExportFailures, TheReportOfTheExportIsStored) {
  struct Level {
    const char* name;
    size_t engines;
  };
  for (const Level& level : {Level{"weights", 0}, Level{"native", 1}}) {
    SCOPED_TRACE(level.name);
    const Outcome o = run({"--replace", "--verify", level.name});
    ASSERT_EQ(o.exit_code, 0) << o.err;
    EXPECT_NE(o.err.find("verified against the checkpoint"), std::string::npos) << o.err;
    const Json parity = package::Manifest::load(out()).parity;
    EXPECT_EQ(parity["passed"], true);
    EXPECT_EQ(parity["weights"]["passed"], true);
    ASSERT_EQ(parity["engines"].size(), level.engines);
    for (const Json& engine : parity["engines"]) {
      EXPECT_EQ(engine["engine"], "native");
      EXPECT_EQ(engine["cases"].size(), 3U);  // text, picture, two pictures
    }
    const Outcome info = qvl({"info", out().string()});
    EXPECT_NE(info.out.find("parity           PASSED"), std::string::npos) << info.out;
  }
  EXPECT_EQ(run({"--replace", "--verify", "everything"}).exit_code, 2);
  // Options that would change nothing.
  const std::string samples = (kSource / "tests/fixtures/small/eval").string();
  EXPECT_EQ(run({"--replace", "--calibrate", samples, "--recipe", "plain"}).exit_code, 2);
  EXPECT_EQ(run({"--replace", "--calibrate", samples, "--text", "bf16"}).exit_code, 2);
}

}  // namespace
}  // namespace qvl::cli
