// The three stages of Qwen3-VL as interfaces: vision, embed, decoder (spec sections 5 and 6). Each exists
// natively and as ONNX graphs; whoever generates text sees only these. A stage is immutable after opening and
// may be called from several threads at once; all changing state sits in the KvCache that the caller owns.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "qvl/base/guarded_mapping.h"
#include "qvl/base/tensor.h"
#include "qvl/image/grid.h"
#include "qvl/model/tensor_table.h"

namespace qvl::engine {

// Receives intermediate tensors by the names of the trace contract ("vision.block3", "layer0", ...),
// converted to float32. A stage computes what only the trace needs only when one is given.
using TraceSink = std::function<void(std::string_view name, Tensor value)>;

// Called on the caller's thread between pieces of work, with the finished units of the stage (blocks, layers) and how many
// there are; where a unit takes long, several times within it, with the same numbers. Return false to cancel: the stage
// throws kCancelled and leaves the cache as it was before the call. No parallel loop runs meanwhile and no memory is
// shared between calls, so that stages may be called from inside it for other timelines (an answer goes on while another
// prompt is read): neither call's bits change. The cache of the interrupted call must not be touched.
using ProgressFn = std::function<bool(int64_t done, int64_t total)>;

// Receives what flows into a linear layer: the role and layer of its weight and x [S, K] in the activation
// type. What calibration gathers; only the native stages call it.
using LinearInputFn = std::function<void(model::TensorRole role, int layer, const Tensor& x)>;

struct StageHooks {
  TraceSink trace;
  ProgressFn progress;
  LinearInputFn linear_input;
};

// Merged visual tokens of one or more images or videos, rows in prompt order. M = sum of t*h*w/4.
struct VisionFeatures {
  Tensor merged;                  // [M, out_hidden], F32 or BF16
  std::vector<Tensor> deepstack;  // one [M, out_hidden] per DeepStack level
};

class VisionStage {
 public:
  virtual ~VisionStage() = default;
  // True: the rows of a frame (one t of a grid) are the same bits whatever else is encoded with it and wherever it
  // stands, so that frames that repeat need encoding once.
  virtual bool frames_are_independent() const { return false; }
  // pixel_values: float32 [P, 1536] in the row order of spec 3.4, P = sum over grids of t*h*w.
  // Throws kMismatch when rows and grids disagree, kCancelled when progress says so.
  virtual VisionFeatures encode(std::span<const float> pixel_values, std::span<const image::Grid> grids,
                                const StageHooks& hooks = {}) const = 0;
  // No picture is expected for now: memory that can be had again (pages of mapped weights) goes back to the system.
  // Results do not change, also not those of an encode() that runs meanwhile.
  virtual void give_back() const {}
};

class EmbedStage {
 public:
  virtual ~EmbedStage() = default;
  // [S, D] rows of the embedding table, in the decoder's activation type. Throws kInvalidArgument for an id
  // outside the vocabulary.
  virtual Tensor embed(std::span<const int32_t> ids) const = 0;
};

// Where a saved cache goes to, piece by piece: the whole of `bytes` is taken.
using ByteSink = std::function<void(std::span<const std::byte> bytes)>;

// What save() wrote, in a file that others may change.
struct SavedCache {
  std::shared_ptr<const GuardedMapping> file;
  std::span<const std::byte> bytes;  // of `file`; aligned to 64 bytes
};

// One timeline: keys and values of every position so far. Made by the decoder that uses it; not thread-safe.
class KvCache {
 public:
  virtual ~KvCache() = default;
  virtual int64_t length() const = 0;
  // Forgets all positions >= length; throws kInvalidArgument when length is above length().
  virtual void truncate(int64_t length) = 0;
  // Memory held. What several caches share counts with each in equal parts, so that a sum over caches is what is there.
  virtual size_t size_bytes() const = 0;

  // Makes this cache, which must be empty, hold positions [0, length) of `other`, bit for bit and without computing them.
  // Memory is shared until one of the two writes there, so neither notices what becomes of the other. False: caches of
  // this kind cannot; this one is still empty. Throws kInvalidArgument when this is not empty, when length is not in
  // 0..other.length(), or when another decoder made `other`. Caches that share are used by one thread at a time.
  virtual bool share_prefix(const KvCache& other, int64_t length);

  // The form of what save() writes, in words: load() reads what was saved under equal words. Empty: a cache of this
  // kind cannot be saved.
  virtual std::string saved_form() const { return {}; }
  // Bytes that save() writes for positions [0, length).
  virtual uint64_t saved_bytes(int64_t length) const;
  // Writes positions [0, length), bit for bit. Throws kInvalidArgument when length is above length(), kUnsupported
  // without a saved_form(), kIo when not intact(), and what the sink throws.
  virtual void save(int64_t length, const ByteSink& sink) const;
  // Makes an empty cache hold what was saved with this length, where it lies if it can: the file is then held until the cache
  // lets go of those positions. Throws kInvalidArgument when it is not empty or the saved bytes are not saved_bytes(length),
  // kUnsupported without a saved_form(), and kIo when the file is not intact; it is then empty.
  virtual void load(int64_t length, const SavedCache& saved);
  // False when a file that positions lie in was changed: what was computed from them since is worth nothing. Decoders ask
  // after each call.
  virtual bool intact() const { return true; }
};

// Rows of a decode call, of all timelines together.
inline constexpr int64_t kMaxDecodeRows = 16;

// Which logits of a row somebody will look at.
struct TopLogits {
  // 0: all. Else the `count` greatest among ids [0, ids), and all that equal the last of them: those are what they are with 0, to
  // the bit. Any other may be an approximation that is less than they are.
  int64_t count = 0;
  int64_t ids = 0;  // 0: all

  // Whether logits made with this do for who asks for `other`.
  bool covers(const TopLogits& other) const {
    return count == 0 || (other.count > 0 && other.count <= count && other.ids == ids);
  }
};

struct DecoderInput {
  // [S, D]; rows at visual positions already replaced by merged features.
  const Tensor* embeds = nullptr;
  // M-RoPE positions t, h, w of the S rows (spec 6.2).
  std::span<const int64_t> positions[3];
  // Rows of `embeds` (ascending, relative to this call) that hold visual tokens, and for each DeepStack level
  // the features to add there: feature row of visual_rows[i] is deepstack_offset + i. Empty for text.
  std::span<const int64_t> visual_rows;
  std::span<const Tensor> deepstack;
  int64_t deepstack_offset = 0;
  // True for generated tokens (S <= kMaxDecodeRows): weights are streamed once per call instead of being tiled. Prompts
  // use false, also for a last chunk of one row, so that results do not depend on the chunk size.
  bool decode = false;
  TopLogits top;
};

enum class LogitsMode { kNone, kLast, kAll };

// What one timeline has in a decode call: the next `rows` rows of the input, appended to `cache`.
struct DecodeShare {
  KvCache* cache = nullptr;
  int64_t rows = 0;  // >= 1
};

class DecoderStage {
 public:
  virtual ~DecoderStage() = default;
  virtual std::unique_ptr<KvCache> new_cache() const = 0;
  // True when the result of a row of a decode call depends, to the bit, neither on the other rows nor on their number:
  // then tokens can be guessed and checked in one call without changing any answer (generate/speculation.h).
  virtual bool decode_rows_are_independent() const { return false; }
  // Appends the S rows to the cache and returns float32 logits: [0, V], [1, V] or [S, V]. On any error the
  // cache is as before the call. Throws kIo when the cache is not intact().
  virtual Tensor forward(const DecoderInput& input, KvCache& cache, LogitsMode logits,
                         const StageHooks& hooks = {}) const = 0;
  // One decode step of several timelines: input.decode is true, S <= kMaxDecodeRows rows of text, those of a timeline
  // side by side in their order, timelines in the order of `shares`. Appends each timeline's rows to its cache and returns
  // float32 logits [S, V]; each has to the bit what its own forward() would give. Weights are read once for all where
  // the engine can (otherwise this is one forward() a share). On any error, cancelling included, all caches are as before
  // the call. Throws kInvalidArgument when rows and shares disagree, a cache is missing or there twice, or rows are visual.
  virtual Tensor decode_together(const DecoderInput& input, std::span<const DecodeShare> shares,
                                 const StageHooks& hooks = {}) const;
  // The first call will come soon, and a processor idles until then: what it would wait for (pages of mapped weights) may be brought in
  // meanwhile, on a thread of the stage's own. Returns at once; results do not change.
  virtual void expect() const {}
  // It does not come so soon: ends what expect() began and gives back what that brought in.
  virtual void give_back() const {}
  // The weights that every decode step which asks for the greatest logits reads once, where they lie and in its order: how fast memory
  // gives them can be measured there. Empty where nobody knows.
  virtual std::vector<std::span<const std::byte>> weights_of_step() const { return {}; }
  // Whether steps that ask for the greatest logits alone (TopLogits) read the package's shortlist of the head instead of the head.
  virtual bool reads_shortlist() const { return false; }
};

}  // namespace qvl::engine
