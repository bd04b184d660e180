#include "qvl/generate/calibrate.h"

#include <algorithm>
#include <utility>

#include "qvl/base/error.h"
#include "qvl/engine/engine_with_decoder.h"
#include "qvl/generate/pipeline.h"
#include "qvl/image/decode.h"

namespace qvl::generate {
namespace {

namespace fs = std::filesystem;

// Sums of squares in double: thousands of rows of very different size meet in one column.
class Gatherer {
 public:
  void add(model::TensorRole role, int layer, const Tensor& x) {
    const Tensor wide = x.to(DType::kF32);
    Sums& s = sums_[model::tensor_name(role, layer)];
    const size_t columns = static_cast<size_t>(wide.dim(1));
    s.squares.resize(columns);
    const auto values = wide.as<float>();
    for (size_t row = 0; row < values.size(); row += columns) {
      for (size_t c = 0; c < columns; ++c)
        s.squares[c] += static_cast<double>(values[row + c]) * values[row + c];
    }
    s.rows += wide.dim(0);
  }

  ColumnMeanSquares means() const {
    ColumnMeanSquares result;
    for (const auto& [name, s] : sums_) {
      std::vector<float>& mean = result[name];
      mean.reserve(s.squares.size());
      for (const double v : s.squares) mean.push_back(static_cast<float>(v / static_cast<double>(s.rows)));
    }
    return result;
  }
  bool empty() const { return sums_.empty(); }

 private:
  struct Sums {
    std::vector<double> squares;
    int64_t rows = 0;
  };
  std::map<std::string, Sums> sums_;
};

// The same engine with a listener in its decoder, so that calibration sees what an answer really computes.
class ListeningEngine : public engine::EngineWithDecoder {
 public:
  ListeningEngine(std::shared_ptr<const engine::Engine> inner, Gatherer* gatherer)
      : EngineWithDecoder(std::move(inner)), decoder_(this->inner().decoder(), gatherer) {}
  const engine::DecoderStage& decoder() const override { return decoder_; }

 private:
  class Decoder : public engine::DecoderStage {
   public:
    Decoder(const engine::DecoderStage& inner, Gatherer* gatherer) : inner_(inner), gatherer_(gatherer) {}
    std::unique_ptr<engine::KvCache> new_cache() const override { return inner_.new_cache(); }
    Tensor forward(const engine::DecoderInput& input, engine::KvCache& cache, engine::LogitsMode logits,
                   const engine::StageHooks& hooks) const override {
      engine::StageHooks listening = hooks;
      listening.linear_input = [this](model::TensorRole role, int layer, const Tensor& x) {
        gatherer_->add(role, layer, x);
      };
      return inner_.forward(input, cache, logits, listening);
    }

   private:
    const engine::DecoderStage& inner_;
    Gatherer* gatherer_;
  };

  Decoder decoder_;
};

}  // namespace

std::vector<EvalQuestion> calibration_samples(const fs::path& folder) {
  std::error_code ignored;
  if (!fs::is_directory(folder, ignored))
    fail(ErrorCode::kNotFound, folder.string(), "no such folder of samples");
  std::vector<fs::path> pictures;
  bool questions = false;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    if (entry.path().extension() == ".jsonl") questions = true;
    if (image::has_picture_extension(entry.path())) pictures.push_back(entry.path());
  }
  if (questions) return read_questions(find_questions(folder));
  if (pictures.empty()) {
    fail(ErrorCode::kNotFound, folder.string(), "samples", "pictures, or a .jsonl file of questions",
         "neither");
  }
  std::ranges::sort(pictures);
  std::vector<EvalQuestion> samples;
  for (fs::path& picture : pictures)
    samples.push_back({{std::move(picture)}, "Describe this image.", "", ""});
  return samples;
}

ColumnMeanSquares calibrate(const std::shared_ptr<const engine::Engine>& engine,
                            const std::shared_ptr<const Assets>& assets,
                            const std::vector<EvalQuestion>& samples, int64_t max_tokens,
                            const engine::ProgressFn& progress, const std::atomic<bool>* cancel) {
  Gatherer gatherer;
  Pipeline pipeline(std::make_shared<ListeningEngine>(engine, &gatherer), assets,
                    std::make_shared<ImageMemory>(kDefaultImageMemoryBytes));
  AnswerOptions options;
  options.sampling.greedy = true;
  options.max_tokens = max_tokens;
  const auto total = static_cast<int64_t>(samples.size());
  for (int64_t i = 0; i < total; ++i) {
    if (progress && !progress(i, total)) fail(ErrorCode::kCancelled, "calibrate", "cancelled");
    const Answer answer = pipeline.answer({question_message(pipeline, samples[static_cast<size_t>(i)])},
                                          options, {.on_text = {}, .progress = {}, .cancel = cancel});
    if (answer.reason == FinishReason::kCancelled) fail(ErrorCode::kCancelled, "calibrate", "cancelled");
  }
  if (gatherer.empty()) {
    fail(ErrorCode::kUnsupported, "calibrate",
         "the decoder of this engine does not tell what flows into its matrices", "the native one",
         engine->info().text);
  }
  return gatherer.means();
}

}  // namespace qvl::generate
