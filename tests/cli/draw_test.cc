// `qvl run --draw`: the picture with the answer's boxes on it, whole or not at all.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <csignal>

#include "fixture.h"
#include "process.h"
#include "qvl/base/json.h"
#include "qvl/image/decode.h"
#include "qvl/image/encode_png.h"

namespace qvl::cli {
namespace {

namespace fs = std::filesystem;

const std::string kQuestion = "Where is the red circle?";

struct Pixel {
  int red, green, blue;
  bool operator==(const Pixel&) const = default;
};
Pixel pixel(const image::RgbImage& image, int64_t x, int64_t y) {
  const uint8_t* p = &image.rgb[static_cast<size_t>((y * image.width + x) * 3)];
  return {p[0], p[1], p[2]};
}
// The first colour of draw/palette.cc.
constexpr Pixel kLine{0xD5, 0x5E, 0x00};

class Draw : public FolderTest {
 protected:
  Draw() : FolderTest("qvl_draw_test") {}
  std::string path(const std::string& name) const { return (folder_ / name).string(); }
  std::vector<std::string> files() const {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(folder_)) names.push_back(entry.path().filename().string());
    std::sort(names.begin(), names.end());
    return names;
  }
};
using Files = std::vector<std::string>;

void expect_refusal(const Outcome& o, int code, const std::vector<std::string>& parts) {
  EXPECT_EQ(o.exit_code, code) << o.err;
  EXPECT_EQ(o.out, "");
  EXPECT_EQ(std::count(o.err.begin(), o.err.end(), '\n'), 1) << o.err;
  for (const std::string& part : parts) EXPECT_NE(o.err.find(part), std::string::npos) << part << " not in: " << o.err;
}

// A line of the first colour within a pixel and a half of where the reply says the edges are.
void expect_frame(const image::RgbImage& image, const std::vector<double>& box) {
  ASSERT_EQ(box.size(), 4U);
  const auto mid_x = static_cast<int64_t>((box[0] + box[2]) / 2), mid_y = static_cast<int64_t>((box[1] + box[3]) / 2);
  for (const double edge : {box[0], box[2]}) {
    bool found = false;
    for (int64_t x = 0; x < image.width; ++x)
      found |= pixel(image, x, mid_y) == kLine && std::abs(static_cast<double>(x) + 0.5 - edge) <= 1.5;
    EXPECT_TRUE(found) << "no line at x = " << edge;
  }
  for (const double edge : {box[1], box[3]}) {
    bool found = false;
    for (int64_t y = 0; y < image.height; ++y)
      found |= pixel(image, mid_x, y) == kLine && std::abs(static_cast<double>(y) + 0.5 - edge) <= 1.5;
    EXPECT_TRUE(found) << "no line at y = " << edge;
  }
}

TEST_F(Draw, TheBoxOfTheAnswerIsOnThePicture) {
  const std::vector<std::string> question = {"run", "--greedy", "-i", kShapes, kQuestion};
  const Outcome plain = qvl(question);
  std::vector<std::string> drawing = question;
  drawing.insert(drawing.end(), {"--draw", path("out.png")});
  const Outcome o = qvl(drawing);
  EXPECT_EQ(o.exit_code, 0) << o.err;
  EXPECT_EQ(o.out, plain.out);
  EXPECT_EQ(o.err, "");
  EXPECT_EQ(files(), Files{"out.png"});

  drawing.push_back("--json");
  const Json j = parse_json(qvl(drawing).out, "stdout");
  const Json items = j["grounding"]["items"];
  ASSERT_EQ(items.size(), 1U) << j["text"];
  EXPECT_EQ(items[0]["label"], "red circle");
  EXPECT_EQ(items[0]["problems"], Json::array());
  const image::RgbImage before = image::load_image(kShapes), after = image::load_image(path("out.png"));
  ASSERT_EQ(after.width, before.width);
  ASSERT_EQ(after.height, before.height);
  const auto box = items[0]["pixels"].get<std::vector<double>>();
  expect_frame(after, box);
  // The circle itself is there to be seen: the model's box is around it.
  const auto mid_x = static_cast<int64_t>((box[0] + box[2]) / 2), mid_y = static_cast<int64_t>((box[1] + box[3]) / 2);
  EXPECT_EQ(pixel(after, mid_x, mid_y), pixel(before, mid_x, mid_y));
  EXPECT_GT(pixel(after, mid_x, mid_y).red, 180);
  EXPECT_LT(pixel(after, mid_x, mid_y).green, 90);
}

TEST_F(Draw, PhotosAreDrawnUpright) {
  // JPEG with an orientation: what is stored lies on its side.
  const fs::path turned = kSource / "tests/fixtures/images/jpeg_exif_6.jpg";
  ASSERT_TRUE(fs::exists(turned));
  const image::RgbImage upright = image::load_image(turned);
  ASSERT_GT(upright.exif_orientation, 4);
  const Outcome o = qvl({"run", "-i", turned.string(), "Hello", "--draw", path("out.png"), "--max-tokens", "1"});
  ASSERT_EQ(o.exit_code, 0) << o.err;
  const image::RgbImage out = image::load_image(path("out.png"));
  EXPECT_EQ(out.exif_orientation, 1);
  EXPECT_EQ(out.width, upright.width);
  EXPECT_TRUE(out.rgb == upright.rgb);
}

TEST_F(Draw, WithoutBoxesThePictureIsWrittenAsItIs) {
  const Outcome o = qvl({"run", "-i", kShapes, "How many circles are there?", "--draw", path("out.PNG")});
  EXPECT_EQ(o.exit_code, 0) << o.err;
  EXPECT_EQ(std::count(o.err.begin(), o.err.end(), '\n'), 1) << o.err;
  EXPECT_NE(o.err.find("nothing to draw"), std::string::npos) << o.err;
  EXPECT_NE(o.err.find("out.PNG"), std::string::npos) << o.err;
  EXPECT_TRUE(image::load_image(path("out.PNG")).rgb == image::load_image(kShapes).rgb);
}

TEST_F(Draw, SeveralPicturesGiveSeveralFiles) {
  const Outcome o = qvl({"run", "--greedy", "-i", kFirst, "-i", kShapes, kQuestion, "--draw", path("out.png"), "--json"});
  ASSERT_EQ(o.exit_code, 0) << o.err;
  EXPECT_EQ(files(), (Files{"out-1.png", "out-2.png"}));
  // In the order of the command line.
  EXPECT_EQ(image::load_image(path("out-1.png")).width, image::load_image(kFirst).width);
  const image::RgbImage second = image::load_image(path("out-2.png"));
  EXPECT_EQ(second.width, image::load_image(kShapes).width);
  const Json items = parse_json(o.out, "stdout")["grounding"]["items"];
  if (!items.empty()) {
    EXPECT_EQ(items[0]["image"], 1) << "a box without a picture's number is about the last one";
    EXPECT_NE(second.rgb, image::load_image(kShapes).rgb);
  }
}

TEST_F(Draw, AnOlderFileIsReplaced) {
  std::ofstream(path("out.png")) << "old";
  const Outcome o = qvl({"run", "-i", kShapes, kQuestion, "--draw", path("out.png")});
  EXPECT_EQ(o.exit_code, 0) << o.err;
  EXPECT_EQ(image::load_image(path("out.png")).width, image::load_image(kShapes).width);
  EXPECT_EQ(files(), Files{"out.png"});
}

// Found before the model is opened: the model named here does not exist, and nobody says so.
TEST_F(Draw, AnUnwritablePlaceIsFoundBeforeTheModelRuns) {
  const auto refused = [&](const std::string& out, const std::string& part, int code = 1) {
    expect_refusal(qvl({"run", path("no such model"), "-i", kShapes, kQuestion, "--draw", out}), code, {part});
  };
  refused(path("no such folder/out.png"), "no such folder/out.png");
  fs::create_directory(path("folder.png"));
  refused(path("folder.png"), "folder.png");
  if (geteuid() != 0) {
    fs::create_directory(path("locked"));
    fs::permissions(path("locked"), fs::perms::owner_read | fs::perms::owner_exec);
    refused(path("locked/out.png"), "locked/out.png");
    fs::permissions(path("locked"), fs::perms::owner_all);
  }
  expect_refusal(qvl({"run", path("no such model"), "-i", path("absent.png"), kQuestion, "--draw", path("out.png")}), 1,
                 {"absent.png"});
  EXPECT_EQ(files(), (geteuid() != 0 ? Files{"folder.png", "locked"} : Files{"folder.png"}));
}

TEST_F(Draw, APictureIsNeverDrawnOverItself) {
  fs::copy_file(kShapes, path("a.png"));
  fs::create_symlink(path("a.png"), path("b.png"));
  const std::string before = slurp(path("a.png"));
  for (const char* out : {"a.png", "b.png"}) {
    expect_refusal(qvl({"run", "-i", path("a.png"), kQuestion, "--draw", path(out)}), 2, {"--draw", "a.png"});
  }
  EXPECT_EQ(slurp(path("a.png")), before);
}

TEST_F(Draw, AFailureLeavesNoFile) {
  std::ofstream(path("junk.png")) << "this is no picture";
  expect_refusal(qvl({"run", "-i", path("junk.png"), "Hi", "--draw", path("out.png")}), 1, {"junk.png"});
  expect_refusal(qvl({"run", path("no such model"), "-i", kShapes, "Hi", "--draw", path("out.png")}), 1, {"no such model"});
  EXPECT_EQ(files(), Files{"junk.png"});
}

// Without any font the box is still there, with its number, and somebody is told.
TEST_F(Draw, AMachineWithoutFonts) {
  std::ofstream(path("fonts.conf")) << "<?xml version=\"1.0\"?>\n<!DOCTYPE fontconfig SYSTEM \"fonts.dtd\">\n<fontconfig><dir>"
                                    << path("no fonts") << "</dir><cachedir>" << path("cache") << "</cachedir></fontconfig>\n";
  fs::create_directory(path("no fonts"));
  const Outcome o = qvl({"run", "--greedy", "-i", kShapes, kQuestion, "--draw", path("out.png")},
                        {.environment = {"FONTCONFIG_FILE=" + path("fonts.conf")}});
  EXPECT_EQ(o.exit_code, 0) << o.err;
  EXPECT_EQ(std::count(o.err.begin(), o.err.end(), '\n'), 1) << o.err;
  EXPECT_NE(o.err.find("no font on this machine"), std::string::npos) << o.err;
  const image::RgbImage out = image::load_image(path("out.png"));
  EXPECT_NE(out.rgb, image::load_image(kShapes).rgb);
  const Outcome with = qvl({"run", "--greedy", "-i", kShapes, kQuestion, "--draw", path("with.png")});
  EXPECT_NE(out.rgb, image::load_image(path("with.png")).rgb);
}

TEST_F(Draw, VerboseSaysWhatWasDrawn) {
  const Outcome o = qvl({"run", "--greedy", "--verbose", "-i", kShapes, kQuestion, "--draw", path("out.png")});
  EXPECT_NE(o.err.find("out.png: 1 box and 0 points drawn on"), std::string::npos) << o.err;
}

}  // namespace
}  // namespace qvl::cli
