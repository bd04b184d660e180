// The image memory as a user meets it: a second process answers about a known picture without encoding it, with the
// tokens of a cold run; settings that change a bit never meet each other; nothing about it can make a run fail.
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <thread>

#include "fixture.h"
#include "process.h"
#include "qvl/base/json.h"

namespace qvl::cli {
namespace {

namespace fs = std::filesystem;

class ImageMemoryCli : public FolderTest {
 protected:
  ImageMemoryCli() : FolderTest("qvl_image_memory_test") {}

  Json run(std::vector<std::string> arguments, const std::string& memory, std::vector<std::string> environment = {}) {
    arguments.insert(arguments.begin(), {"run", "--json", "--greedy", "--max-tokens", "24"});
    if (!memory.empty()) arguments.insert(arguments.end(), {"--image-memory", memory});
    const Outcome o = qvl(arguments, {.environment = std::move(environment)});
    EXPECT_EQ(o.exit_code, 0) << o.err;
    err_ = o.err;
    return o.exit_code == 0 ? parse_json(o.out, "stdout") : Json();
  }
  Json kept(std::vector<std::string> arguments, std::vector<std::string> environment = {}) {
    return run(std::move(arguments), memory_.string(), std::move(environment));
  }
  static bool cold(const Json& j) {
    return j["usage"]["cached_tokens"] == 0 && j["images"][0]["cached"] == false;
  }
  std::vector<fs::path> entries() const {
    std::vector<fs::path> out;
    if (!fs::exists(memory_)) return out;
    for (const auto& e : fs::directory_iterator(memory_))
      if (e.path().filename() != "lock") out.push_back(e.path());
    return out;
  }

  const fs::path memory_ = folder_ / "memory";
  std::string err_;
};

TEST_F(ImageMemoryCli, ASecondProcessStartsBehindThePicture) {
  const Json a = kept({"-i", kShapes, "Describe this image."});
  EXPECT_TRUE(cold(a));
  const Json b = kept({"-i", kShapes, "Describe this image."});
  EXPECT_EQ(b["token_ids"], a["token_ids"]);
  EXPECT_GT(b["usage"]["cached_tokens"], b["usage"]["image_tokens"]);
  EXPECT_EQ(b["images"][0]["cached"], true);
  EXPECT_EQ(b["images"][0]["encode_ms"], 0);
  EXPECT_EQ(b["timings"]["vision_ms"], 0);
  EXPECT_EQ(b["timings"]["vision_patches_per_s"], 0);
  for (const char* key : {"width", "height", "resized_width", "resized_height", "grid_thw", "patches", "tokens"})
    EXPECT_EQ(b["images"][0][key], a["images"][0][key]) << key;
  // Other questions, other chunks and threads: the tokens of a run without a memory.
  for (const char* question : {"How many circles are there?", "What colour is the largest shape?"}) {
    const Json c = kept({"-i", kShapes, question, "--threads", "1", "--prefill-chunk", "5"});
    EXPECT_EQ(c["usage"]["cached_tokens"], b["usage"]["cached_tokens"]);
    EXPECT_EQ(c["token_ids"], run({"-i", kShapes, question}, "off")["token_ids"]) << question;
  }
  // Drawn tokens see every logit.
  const std::vector<std::string> drawn = {"run", "-i", kShapes, "Describe this image.", "--seed", "7", "--temperature",
                                          "1.5", "--image-memory"};
  auto with = drawn, off = drawn;
  with.push_back(memory_.string());
  off.emplace_back("off");
  EXPECT_EQ(qvl(with).out, qvl(off).out);
  EXPECT_EQ(err_, "");
}

// Of a large picture whole blocks of keys and values are used where they lie in the file, by several processes at once.
TEST_F(ImageMemoryCli, ProcessesUseALargePictureAtOnce) {
  const auto about = [](const char* question) { return std::vector<std::string>{"-i", kShapes, question, "--min-pixels", "600000", "--max-pixels", "700000"}; };
  ASSERT_TRUE(cold(kept(about("Describe this image."))));
  constexpr const char* kQuestions[] = {"How many circles are there?", "What colour is the largest shape?", "Describe this image."};
  std::vector<Json> expected, answers(6);
  for (const char* question : kQuestions) expected.push_back(run(about(question), "off"));
  std::vector<std::thread> users;
  for (size_t i = 0; i < answers.size(); ++i) {
    users.emplace_back([&, i] {
      std::vector<std::string> arguments = {"run", "--json", "--greedy", "--max-tokens", "24", "--image-memory", memory_.string()};
      for (const std::string& a : about(kQuestions[i % 3])) arguments.push_back(a);
      const Outcome o = qvl(arguments);
      if (o.exit_code == 0) answers[i] = parse_json(o.out, "stdout");
    });
  }
  for (std::thread& u : users) u.join();
  for (size_t i = 0; i < answers.size(); ++i) {
    ASSERT_TRUE(answers[i].is_object()) << i;
    EXPECT_EQ(answers[i]["token_ids"], expected[i % 3]["token_ids"]) << i;
    EXPECT_GT(answers[i]["usage"]["cached_tokens"], 512) << i;
  }
}

TEST_F(ImageMemoryCli, OtherSettingsNeverMeet) {
  const std::vector<std::string> question = {"-i", kShapes, "Describe this image."};
  const Json own = kept(question);
  ASSERT_TRUE(cold(own));
  ASSERT_EQ(own["engine"]["vision"], "native bf16");  // what --vision-dtype bf16 asks for, too
  const auto with = [&](std::vector<std::string> more) {
    more.insert(more.begin(), question.begin(), question.end());
    return more;
  };
  for (const auto& more : std::vector<std::vector<std::string>>{
           {"--max-pixels", "20000"}, {"--vision-dtype", "fp32"}, {"--vision-dtype", "fp32", "--text-dtype", "fp32"},
           {"--vision-dtype", "bf16", "--kv", "int8"}}) {
    const Json first = kept(with(more));
    EXPECT_EQ(first["usage"]["cached_tokens"], 0) << more.back();
    EXPECT_EQ(first["images"][0]["cached"], more.size() == 4) << more.back();  // features do not depend on the text stages
    EXPECT_EQ(first["token_ids"], run(with(more), "off")["token_ids"]) << more.back();
    const Json second = kept(with(more));
    EXPECT_GT(second["usage"]["cached_tokens"], 0) << more.back();
    EXPECT_EQ(second["token_ids"], first["token_ids"]) << more.back();
  }
  EXPECT_FALSE(cold(kept(with({"--vision-dtype", "bf16", "--text-dtype", "bf16", "--kv", "bf16"}))));
  EXPECT_TRUE(cold(kept(question, {"QVL_KERNELS=scalar"})));
  // The same files elsewhere are another model until somebody has read them.
  fs::copy(kSmall, folder_ / "model", fs::copy_options::recursive);
  std::vector<std::string> other = question;
  other.insert(other.begin(), (folder_ / "model").string());
  ASSERT_TRUE(cold(kept(other)));
  EXPECT_FALSE(cold(kept(other)));
  // Weights that change in place.
  for (const auto& e : fs::directory_iterator(folder_ / "model")) {
    if (e.path().extension() != ".safetensors") continue;
    fs::permissions(e.path(), fs::perms::owner_all, fs::perm_options::add);
    const auto time = fs::last_write_time(e.path());
    std::fstream file(e.path(), std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(-2, std::ios::end);
    const int byte = file.get();
    file.seekp(-2, std::ios::end);
    file.put(static_cast<char>(byte ^ 1));
    file.close();
    fs::last_write_time(e.path(), time);
  }
  EXPECT_TRUE(cold(kept(other)));
}

TEST_F(ImageMemoryCli, DamageIsToldAndComputedAgain) {
  const std::vector<std::string> question = {"-i", kShapes, "Describe this image."};
  const Json a = kept(question);
  ASSERT_EQ(entries().size(), 2U);
  for (const fs::path& path : entries()) fs::resize_file(path, fs::file_size(path) - 1);
  const Json b = kept(question);
  EXPECT_TRUE(cold(b));
  EXPECT_EQ(b["token_ids"], a["token_ids"]);
  EXPECT_NE(err_.find("warning"), std::string::npos) << err_;
  EXPECT_FALSE(cold(kept(question)));
  EXPECT_EQ(err_, "");
}

TEST_F(ImageMemoryCli, APlaceThatCannotBeWrittenIsOneWarning) {
  std::ofstream(folder_ / "file") << "x";
  const std::vector<std::string> question = {"-i", kShapes, "Describe this image."};
  const Json a = run(question, (folder_ / "file" / "below").string());
  EXPECT_TRUE(cold(a));
  EXPECT_EQ(std::count(err_.begin(), err_.end(), '\n'), 1) << err_;
  EXPECT_NE(err_.find("warning"), std::string::npos) << err_;
  EXPECT_EQ(a["token_ids"], run(question, "off")["token_ids"]);
}

TEST_F(ImageMemoryCli, WhereItIsAndHowItIsSwitchedOff) {
  const std::vector<std::string> question = {"-i", kFirst, "What is this?"};
  const auto private_to_user = [](const fs::path& path, mode_t mode) {
    struct stat status {};
    return ::stat(path.c_str(), &status) == 0 && (status.st_mode & 07777) == mode;
  };
  run(question, "", {"QVL_IMAGE_MEMORY=" + memory_.string()});
  EXPECT_EQ(entries().size(), 2U);
  EXPECT_TRUE(private_to_user(memory_, 0700));
  for (const fs::path& path : entries()) EXPECT_TRUE(private_to_user(path, 0600)) << path;
  // The option comes before the variable; "off" is off in both.
  const fs::path elsewhere = folder_ / "elsewhere";
  run(question, elsewhere.string(), {"QVL_IMAGE_MEMORY=" + memory_.string()});
  EXPECT_TRUE(fs::exists(elsewhere));
  EXPECT_TRUE(cold(run(question, "off", {"QVL_IMAGE_MEMORY=" + memory_.string()})));
  EXPECT_TRUE(cold(run(question, "")));  // the tests' own variable
  // Without either: the user's cache folder.
  run(question, "", {"QVL_IMAGE_MEMORY=", "XDG_CACHE_HOME=" + (folder_ / "xdg").string()});
  EXPECT_TRUE(fs::is_directory(folder_ / "xdg/qvl"));
  run(question, "", {"QVL_IMAGE_MEMORY=", "XDG_CACHE_HOME=", "HOME=" + (folder_ / "home").string()});
  EXPECT_TRUE(fs::is_directory(folder_ / "home/.cache/qvl"));
  // Without a picture nothing is written, and other commands have no memory.
  const fs::path none = folder_ / "none";
  run({"Hello"}, none.string());
  EXPECT_EQ(qvl({"trace", "-i", kFirst, "Hi", "--out", (folder_ / "t.safetensors").string()},
                {.environment = {"QVL_IMAGE_MEMORY=" + none.string()}})
                .exit_code,
            0);
  EXPECT_FALSE(fs::exists(none));
}

TEST_F(ImageMemoryCli, TheBoundHolds) {
  for (const char* name : {"first.png", "second.png", "shapes.png"}) {
    const Json j = kept({"-i", (kSource / "examples" / name).string(), "What is this?", "--image-memory-size", "1M"});
    uint64_t total = 0;
    for (const fs::path& path : entries()) total += fs::file_size(path);
    EXPECT_LE(total, uint64_t{1} << 20);
  }
  for (const char* size : {"0", "1K", "-1", "2X", "many", "99999999999999999999"}) {
    const Outcome o = qvl({"run", "-i", kFirst, "Hi", "--image-memory-size", size});
    EXPECT_EQ(o.exit_code, 2) << size << o.err;
  }
  EXPECT_EQ(qvl({"run", "-i", kFirst, "Hi", "--image-memory", ""}).exit_code, 2);
}

TEST_F(ImageMemoryCli, AChatStartsBehindAKnownPicture) {
  const std::vector<std::string> chat = {"chat", "-i", kShapes, "--greedy", "--max-tokens", "24", "--image-memory"};
  auto with = chat, off = chat;
  with.push_back(memory_.string());
  off.emplace_back("off");
  const RunOptions lines{.input = "Describe this image.\nHow many circles are there?\n"};
  const Outcome a = qvl(with, lines);
  const Outcome b = qvl(with, lines);
  EXPECT_EQ(a.exit_code, 0) << a.err;
  EXPECT_EQ(a.out, b.out);
  EXPECT_EQ(a.out, qvl(off, lines).out);
  EXPECT_FALSE(cold(kept({"-i", kShapes, "Which colours?"})));
}

}  // namespace
}  // namespace qvl::cli
