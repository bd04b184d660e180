// What flows into the decoder's matrices when the model answers about sample pictures: the quantiser weighs
// errors by it
// (`qvl export --calibrate`).
#pragma once

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "qvl/engine/engine.h"
#include "qvl/generate/assets.h"
#include "qvl/generate/eval.h"

namespace qvl::generate {

// Mean square of each input column of a matrix, by the matrix's canonical name.
using ColumnMeanSquares = std::map<std::string, std::vector<float>, std::less<>>;

// The samples of a folder: its questions (eval.h) if it has a *.jsonl file, else every picture in it with a
// request to describe it, in the order of their names. Throws kNotFound for a folder without either.
std::vector<EvalQuestion> calibration_samples(const std::filesystem::path& folder);

// Answers every sample greedily with at most `max_tokens` tokens and gathers what the engine reports (native
// decoders only: kUnsupported from others). progress: samples done, in all; false cancels (kCancelled), as
// `cancel` (may be null) does in the middle of a sample.
ColumnMeanSquares calibrate(const std::shared_ptr<const engine::Engine>& engine,
                            const std::shared_ptr<const Assets>& assets,
                            const std::vector<EvalQuestion>& samples, int64_t max_tokens,
                            const engine::ProgressFn& progress = {},
                            const std::atomic<bool>* cancel = nullptr);

}  // namespace qvl::generate
