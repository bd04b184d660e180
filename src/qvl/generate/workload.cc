#include "qvl/generate/workload.h"

namespace qvl::generate {
namespace {

double as_double(int64_t v) {
  return static_cast<double>(v);
}

}  // namespace

Operations vision_operations(const model::VisionConfig& c, std::span<const image::Grid> grids) {
  const double width = as_double(c.hidden_size), merged = as_double(c.merged_width());
  double patches = 0, pairs = 0;
  for (const image::Grid& g : grids) {
    const double frame = as_double(g.h * g.w);
    patches += as_double(g.t) * frame;
    pairs += as_double(g.t) * frame * frame;
  }
  const double depth = as_double(c.depth);
  // qkv and the output projection are four squares of the width.
  const double block = 4 * width * width + 2 * width * as_double(c.intermediate_size);
  const double merger = merged * merged + merged * as_double(c.out_hidden_size);
  Operations out;
  out.linear = 2 * patches * (as_double(c.patch_width()) * width + depth * block) +
               2 * patches / as_double(c.merge_rows()) * merger * as_double(1 + c.deepstack_levels());
  out.attention = 4 * depth * pairs * width;
  return out;
}

Operations prefill_operations(const model::TextConfig& c, int64_t tokens, int64_t past) {
  if (tokens <= 0) return {};
  const double width = as_double(c.hidden_size), q = as_double(c.q_width()), kv = as_double(c.kv_width());
  const double rows = as_double(tokens), layers = as_double(c.num_layers);
  const double keys_values = 2 * kv * width;
  const double rest = 2 * q * width + 3 * as_double(c.intermediate_size) * width;
  const double pairs = rows * as_double(past) + rows * (rows + 1) / 2;
  Operations out;
  out.linear = 2 * (rows * layers * keys_values + (rows * (layers - 1) + 1) * rest) +
               2 * width * as_double(c.vocab_size);
  out.attention = 4 * q * ((layers - 1) * pairs + as_double(past + tokens));
  return out;
}

int64_t decode_weight_bytes(const model::ModelConfig& config, bool tied_head, const StoredBytes& stored, int64_t shortlist_bytes) {
  using model::TensorRole;
  int64_t total = 0;
  for (const model::TensorSpec& spec : model::tensor_table(config)) {
    if (model::is_vision_role(spec.role) || spec.role == TensorRole::kTokenEmbedding ||
        spec.role == TensorRole::kLmHead)
      continue;
    total += stored(spec.role, spec.layer);
  }
  const int64_t embedding = stored(TensorRole::kTokenEmbedding, -1);
  const int64_t head = shortlist_bytes > 0 ? shortlist_bytes : tied_head ? embedding : stored(TensorRole::kLmHead, -1);
  return total + head + embedding / config.text.vocab_size;
}

double decode_bytes(const model::ModelConfig& config, int64_t weight_bytes, int64_t context, DType cache) {
  return as_double(weight_bytes) + as_double(context + 1) * as_double(config.kv_bytes_per_token(cache));
}

}  // namespace qvl::generate
