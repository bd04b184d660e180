#include "qvl/apps/drawing.h"

#include <algorithm>

#include "qvl/base/atomic_file.h"
#include "qvl/base/error.h"
#include "qvl/base/format.h"
#include "qvl/base/mapped_file.h"
#include "qvl/draw/draw.h"
#include "qvl/image/encode_png.h"

namespace qvl::apps {
namespace {

namespace fs = std::filesystem;

bool is_png_name(const fs::path& path) {
  std::string extension = path.extension().string();
  std::transform(extension.begin(), extension.end(), extension.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return extension == ".png";
}

fs::path numbered(const fs::path& out, size_t n) {
  return out.parent_path() / fmt::format("{}-{}{}", out.stem().string(), n, out.extension().string());
}

// Fails as the writing at the end would, before the model has run for minutes.
void check_writable(const fs::path& path) {
  std::error_code ec;
  if (fs::is_directory(path, ec)) fail(ErrorCode::kIo, path.string(), "cannot write", "a file name", "a folder");
  const AtomicFile probe(path);
}

std::string counted(size_t n, std::string_view what) {
  return fmt::format("{} {}{}", n, what, n == 1 ? "" : what == "box" ? "es" : "s");
}

draw::Annotation annotation_of(const generate::GroundedItem& item, int number) {
  draw::Annotation a{.label = item.label, .number = number, .x0 = item.pixels[0], .y0 = item.pixels[1]};
  if (item.kind == generate::GroundedItem::Kind::kPoint) {
    a.kind = draw::Annotation::Kind::kPoint;
  } else {
    a.x1 = item.pixels[2], a.y1 = item.pixels[3];
  }
  return a;
}

// One line for each item that is not on any picture.
void tell_what_is_missing(const generate::Grounding& grounding) {
  for (size_t i = 0; i < grounding.items.size(); ++i) {
    const generate::GroundedItem& item = grounding.items[i];
    if (item.drawable()) continue;
    std::string problems;
    for (const auto problem : item.problems) {
      problems += (problems.empty() ? "" : ", ") + std::string(generate::grounding_problem_name(problem));
    }
    fmt::print(stderr, "qvl: warning: {} {} of the answer{} cannot be drawn: {}\n",
               item.kind == generate::GroundedItem::Kind::kBox ? "box" : "point", i + 1,
               item.label.empty() ? "" : fmt::format(" (\"{}\")", item.label), problems);
  }
  if (grounding.unread > 0) {
    fmt::print(stderr, "qvl: warning: {} of the answer could not be read (cut off or no JSON)\n",
               counted(static_cast<size_t>(grounding.unread), "coordinate"));
  }
}

}  // namespace

Drawing::Drawing(const std::string& out, std::vector<generate::VisualInput>& inputs) {
  const fs::path path = out;
  if (!is_png_name(path)) throw UsageError(fmt::format("--draw: expected a file name that ends in .png, got {}", out.empty() ? "none" : out));
  if (inputs.empty()) throw UsageError("--draw: expected a picture (-i) to draw on, got none");
  for (const generate::VisualInput& input : inputs) {
    if (input.kind == generate::VisualInput::Kind::kFrameFolder)
      throw UsageError("--draw: expected pictures (-i) alone, got a video, whose frames are not drawn on");
  }
  for (size_t i = 0; i < inputs.size(); ++i) {
    sheets_.push_back({.out = inputs.size() == 1 ? path : numbered(path, i + 1), .name = inputs[i].path.string()});
  }
  for (const Sheet& sheet : sheets_) {
    for (const generate::VisualInput& input : inputs) {
      std::error_code ec;
      if (fs::equivalent(sheet.out, input.path, ec)) {
        throw UsageError(fmt::format("--draw: expected another file than the picture {} itself, got {}",
                                     input.path.string(), sheet.out.string()));
      }
    }
    check_writable(sheet.out);
  }
  for (size_t i = 0; i < inputs.size(); ++i) {
    generate::VisualInput& input = inputs[i];
    input.bytes = sheets_[i].bytes = read_file(input.path, image::DecodeLimits{}.max_file_bytes);
    input.kind = generate::VisualInput::Kind::kImageBytes;
    input.name = sheets_[i].name;
  }
}

void Drawing::write(const generate::Grounding& grounding, bool verbose) const {
  if (sheets_.empty()) return;
  tell_what_is_missing(grounding);
  size_t drawn = 0;
  for (size_t s = 0; s < sheets_.size(); ++s) {
    const Sheet& sheet = sheets_[s];
    const bool numbers = grounding.items.size() > 1;
    std::vector<draw::Annotation> annotations;
    for (size_t i = 0; i < grounding.items.size(); ++i) {
      const generate::GroundedItem& item = grounding.items[i];
      if (item.drawable() && item.visual == static_cast<int64_t>(s)) {
        annotations.push_back(annotation_of(item, numbers ? static_cast<int>(i) + 1 : 0));
      }
    }
    drawn += annotations.size();
    const image::RgbImage picture = image::decode_image(std::as_bytes(std::span(sheet.bytes)), {}, sheet.name);
    image::write_png(sheet.out, draw::draw_annotations(picture, annotations));
    if (verbose) {
      const auto points = std::count_if(annotations.begin(), annotations.end(), [](const draw::Annotation& a) {
        return a.kind == draw::Annotation::Kind::kPoint;
      });
      fmt::print(stderr, "qvl: {}: {} and {} drawn on {}\n", sheet.out.string(),
                 counted(annotations.size() - static_cast<size_t>(points), "box"), counted(static_cast<size_t>(points), "point"),
                 sheet.name);
    }
  }
  if (drawn == 0) {
    fmt::print(stderr, "qvl: nothing to draw in the answer: {}\n",
               sheets_.size() == 1 ? sheets_[0].out.string() + " is the picture as it was"
                                   : std::string("the pictures are written as they were"));
  }
}

}  // namespace qvl::apps
