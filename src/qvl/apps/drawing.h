// `--draw OUT.png`: where the pictures with an answer's boxes and points go, settled before the model runs.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "qvl/apps/cli.h"
#include "qvl/generate/grounding.h"

namespace qvl::apps {

class Drawing {
 public:
  // Nothing to draw.
  Drawing() = default;
  // `out` gets the one picture of `inputs`; with several, picture n goes to "out-n.png", counted as -i wrote them. Reads
  // the picture files into `inputs`, so that what is drawn on is what the model saw. Throws UsageError (no picture, a
  // video, another extension than .png, an output that is one of the pictures) and kIo where a file cannot be created
  // or read.
  Drawing(const std::string& out, std::vector<generate::VisualInput>& inputs);

  // Writes every picture, those with nothing on them too, and says on stderr what could not be drawn; with `verbose`
  // also what was. Throws what the image and draw rooms throw.
  void write(const generate::Grounding& grounding, bool verbose) const;

 private:
  struct Sheet {
    std::filesystem::path out;
    std::string name;   // of the picture
    std::string bytes;  // its file
  };
  std::vector<Sheet> sheets_;
};

}  // namespace qvl::apps
