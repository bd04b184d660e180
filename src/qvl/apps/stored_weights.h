// How many bytes the weights of a folder take, checkpoint or package.
#pragma once

#include <cstdint>
#include <filesystem>

namespace qvl::apps {

struct StoredWeights {
  int64_t vision_bytes = 0;
  int64_t decode_bytes = 0;  // what one token reads (generate/workload.h)
};

// `shortlist`: the decoder that reads them reads a package's shortlist of the head (DecoderStage::reads_shortlist). Throws what
// opening the folder throws.
StoredWeights stored_weights(const std::filesystem::path& folder, bool shortlist);

}  // namespace qvl::apps
