// An engine for tests: no network, but logits that depend on every bit the session hands over. Each cached
// position folds its embedding, its three rotary positions and its DeepStack rows into a running hash, and
// the logits are drawn from the hash. A wrong row, position or order changes every token that follows; the
// split into chunks does not.
#pragma once

#include <algorithm>
#include <bit>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "qvl/base/error.h"
#include "qvl/engine/engine.h"

namespace qvl::generate::testing {

inline uint64_t mix(uint64_t h, uint64_t v) {
  h = (h ^ v) * 0x9e3779b97f4a7c15ULL;
  return h ^ (h >> 29);
}

struct FakeCache final : engine::KvCache {
  std::vector<uint64_t> hashes;  // after each position
  size_t prompt = 0;             // positions of the last call that was not a decode step, and those before
  int64_t length() const override { return static_cast<int64_t>(hashes.size()); }
  void truncate(int64_t length) override {
    if (length > this->length()) fail(ErrorCode::kInvalidArgument, "fake", "truncate");
    hashes.resize(static_cast<size_t>(length));
  }
  size_t size_bytes() const override { return hashes.size() * sizeof(uint64_t); }
  std::string saved_form() const override { return "fake"; }
  uint64_t saved_bytes(int64_t length) const override { return static_cast<uint64_t>(length) * sizeof(uint64_t); }
  void save(int64_t length, const engine::ByteSink& sink) const override {
    sink(std::as_bytes(std::span(hashes).first(static_cast<size_t>(length))));
  }
  void load(int64_t length, const engine::SavedCache& saved) override {
    hashes.resize(static_cast<size_t>(length));
    std::ranges::copy(saved.bytes, std::as_writable_bytes(std::span(hashes)).begin());
  }
  bool share_prefix(const engine::KvCache& other, int64_t length) override {
    const auto& from = dynamic_cast<const FakeCache&>(other);
    if (!hashes.empty() || length > from.length()) fail(ErrorCode::kInvalidArgument, "fake", "share");
    hashes.assign(from.hashes.begin(), from.hashes.begin() + length);
    return true;
  }
};

// What the fake stages saw, for assertions.
struct FakeCalls {
  std::vector<int64_t> prefill_chunks;  // rows of every forward call that was not a decode step
  int64_t decode_steps = 0;
  std::vector<int64_t> decode_rows;     // of every timeline in every decode step
  std::vector<int64_t> together;        // timelines of every decode step of several or one
  int64_t encodes = 0;
  int64_t encoded_patches = 0;
};

class FakeEngine final : public engine::Engine {
 public:
  explicit FakeEngine(int64_t vocabulary = 64) : vision_(this), embed_(this), decoder_(this) {
    config_.text.vocab_size = vocabulary;
    config_.text.hidden_size = 8;
    config_.text.max_positions = 4096;
    config_.vision.out_hidden_size = 8;
    config_.vision.deepstack_indexes = {0, 1};
    config_.image_token_id = 60;
    config_.video_token_id = 61;
    config_.vision_start_token_id = 62;
    config_.vision_end_token_id = 63;
    info_ = {.vision = "fake", .text = "fake", .isa = "scalar", .threads = 1};
    info_.vision_identity = "fake vision";
    info_.text_identity = "fake text";
  }

  // With the vocabulary size and the special tokens of a real model, for prompts by its tokenizer.
  static std::shared_ptr<FakeEngine> with_tokens_of(const model::ModelConfig& real) {
    auto engine = std::make_shared<FakeEngine>(real.text.vocab_size);
    engine->config_.image_token_id = real.image_token_id;
    engine->config_.video_token_id = real.video_token_id;
    engine->config_.vision_start_token_id = real.vision_start_token_id;
    engine->config_.vision_end_token_id = real.vision_end_token_id;
    return engine;
  }

  const model::ModelConfig& config() const override { return config_; }
  const engine::EngineInfo& info() const override { return info_; }
  const engine::VisionStage& vision() const override { return vision_; }
  const engine::EmbedStage& embed() const override { return embed_; }
  const engine::DecoderStage& decoder() const override { return decoder_; }
  ThreadPool& pool() const override { return pool_; }

  model::ModelConfig config_;
  mutable FakeCalls calls_;
  // Tokens to say, in order, whatever the hash (empty: the hash decides). Index = number of tokens decoded so
  // far.
  std::vector<int32_t> script_;
  float script_logit_ = 50;  // those of the hash are below 4
  bool rows_are_independent_ = true;
  mutable std::function<void()> on_decode_;
  mutable std::function<void()> on_prefill_;
  std::function<void()> on_encode_;   // in the middle of each
  bool frames_are_independent_ = true;
  engine::EngineInfo info_;

 private:
  struct Vision final : engine::VisionStage {
    explicit Vision(const FakeEngine* owner) : owner_(owner) {}
    bool frames_are_independent() const override { return owner_->frames_are_independent_; }
    engine::VisionFeatures encode(std::span<const float> pixels, std::span<const image::Grid> grids,
                                  const engine::StageHooks& hooks) const override {
      int64_t patches = 0;
      for (const auto& g : grids) patches += g.patches();
      if (pixels.size() != static_cast<size_t>(patches) * 1536)
        fail(ErrorCode::kMismatch, "fake", "pixel rows");
      for (int64_t i = 0; i < 4; ++i) {
        if (hooks.progress && !hooks.progress(i, 4)) fail(ErrorCode::kCancelled, "fake", "stopped");
        if (i == 2 && owner_->on_encode_) owner_->on_encode_();
      }
      ++owner_->calls_.encodes;
      owner_->calls_.encoded_patches += patches;
      engine::VisionFeatures out;
      const int64_t width = owner_->config_.vision.out_hidden_size;
      auto level = [&](float scale) {
        Tensor t(DType::kF32, {patches / 4, width});
        auto v = t.as<float>();
        for (size_t r = 0; r < static_cast<size_t>(patches / 4); ++r)
          for (size_t c = 0; c < static_cast<size_t>(width); ++c) {
            v[r * static_cast<size_t>(width) + c] =
                scale * pixels[(r * 4) * 1536 + c * 191] + static_cast<float>(c);
          }
        return t;
      };
      out.merged = level(1.0F);
      for (size_t j = 0; j < owner_->config_.vision.deepstack_indexes.size(); ++j) {
        out.deepstack.push_back(level(static_cast<float>(j + 2)));
      }
      return out;
    }
    const FakeEngine* owner_;
  };

  struct Embed final : engine::EmbedStage {
    explicit Embed(const FakeEngine* owner) : owner_(owner) {}
    Tensor embed(std::span<const int32_t> ids) const override {
      const int64_t width = owner_->config_.text.hidden_size;
      Tensor t(DType::kF32, {static_cast<int64_t>(ids.size()), width});
      auto v = t.as<float>();
      for (size_t i = 0; i < ids.size(); ++i) {
        if (ids[i] < 0 || ids[i] >= owner_->config_.text.vocab_size)
          fail(ErrorCode::kInvalidArgument, "fake", "token id");
        for (size_t c = 0; c < static_cast<size_t>(width); ++c) {
          v[i * static_cast<size_t>(width) + c] = static_cast<float>(ids[i]) + static_cast<float>(c) * 0.125F;
        }
      }
      return t;
    }
    const FakeEngine* owner_;
  };

  struct Decoder final : engine::DecoderStage {
    explicit Decoder(const FakeEngine* owner) : owner_(owner) {}
    std::unique_ptr<engine::KvCache> new_cache() const override { return std::make_unique<FakeCache>(); }
    bool decode_rows_are_independent() const override { return owner_->rows_are_independent_; }
    Tensor forward(const engine::DecoderInput& input, engine::KvCache& cache, engine::LogitsMode mode,
                   const engine::StageHooks& hooks) const override {
      auto& fake = dynamic_cast<FakeCache&>(cache);
      const size_t old = fake.hashes.size();
      const auto rows = static_cast<size_t>(input.embeds->dim(0));
      const auto width = static_cast<size_t>(input.embeds->dim(1));
      if (input.decode) {
        ++owner_->calls_.decode_steps;
        owner_->calls_.decode_rows.push_back(static_cast<int64_t>(rows));
        if (owner_->on_decode_) owner_->on_decode_();
      } else {
        owner_->calls_.prefill_chunks.push_back(static_cast<int64_t>(rows));
        if (owner_->on_prefill_) owner_->on_prefill_();
      }
      size_t next_visual = 0;
      for (size_t r = 0; r < rows; ++r) {
        uint64_t h = fake.hashes.empty() ? 1 : fake.hashes.back();
        for (float v : input.embeds->as<float>().subspan(r * width, width))
          h = mix(h, std::bit_cast<uint32_t>(v));
        for (const auto& axis : input.positions) h = mix(h, static_cast<uint64_t>(axis[r]));
        if (next_visual < input.visual_rows.size() &&
            input.visual_rows[next_visual] == static_cast<int64_t>(r)) {
          const size_t from = static_cast<size_t>(input.deepstack_offset) + next_visual++;
          for (const Tensor& level : input.deepstack) {
            for (float v : level.as<float>().subspan(from * width, width))
              h = mix(h, std::bit_cast<uint32_t>(v));
          }
        }
        fake.hashes.push_back(h);
        if (hooks.progress && !hooks.progress(static_cast<int64_t>(r), static_cast<int64_t>(rows))) {
          fake.hashes.resize(old);
          fail(ErrorCode::kCancelled, "fake", "stopped");
        }
      }
      const int64_t vocabulary = owner_->config_.text.vocab_size;
      const int64_t out_rows = mode == engine::LogitsMode::kNone   ? 0
                               : mode == engine::LogitsMode::kLast ? 1
                                                                   : static_cast<int64_t>(rows);
      Tensor logits(DType::kF32, {out_rows, vocabulary});
      auto v = logits.as<float>();
      for (int64_t r = 0; r < out_rows; ++r) {
        const uint64_t h = fake.hashes[fake.hashes.size() - static_cast<size_t>(out_rows - r)];
        for (int64_t c = 0; c < vocabulary; ++c) {
          // Pads and markers stay unlikely, as in a trained model.
          const model::ModelConfig& ids = owner_->config_;
          const bool never = c == ids.image_token_id || c == ids.video_token_id ||
                             c == ids.vision_start_token_id || c == ids.vision_end_token_id;
          v[static_cast<size_t>(r * vocabulary + c)] =
              never ? -100.0F : static_cast<float>(mix(h, static_cast<uint64_t>(c)) >> 40) * 0x1.0p-22F;
        }
      }
      if (!input.decode) {
        fake.prompt = fake.hashes.size();
        owner_->calls_.decode_steps = 0;
      }
      for (int64_t r = 0; r < out_rows; ++r) {
        const size_t step = fake.hashes.size() - static_cast<size_t>(out_rows - 1 - r) - fake.prompt;
        if (step >= owner_->script_.size()) continue;
        v[static_cast<size_t>(r * vocabulary + owner_->script_[step])] = owner_->script_logit_;
      }
      for (int64_t r = 0; r < out_rows; ++r) spoil(input.top, v.subspan(static_cast<size_t>(r * vocabulary), static_cast<size_t>(vocabulary)));
      return logits;
    }
    Tensor decode_together(const engine::DecoderInput& input, std::span<const engine::DecodeShare> shares,
                           const engine::StageHooks& hooks) const override {
      owner_->calls_.together.push_back(static_cast<int64_t>(shares.size()));
      return DecoderStage::decode_together(input, shares, hooks);
    }
    // Logits that nobody asked for say nothing, so that whoever looks at them says something else.
    static void spoil(const engine::TopLogits& top, std::span<float> row) {
      if (top.count == 0) return;
      const std::span<float> asked = row.first(top.ids > 0 ? std::min(row.size(), static_cast<size_t>(top.ids)) : row.size());
      std::vector<float> sorted(asked.begin(), asked.end());
      std::ranges::sort(sorted, std::greater<>());
      const float least = sorted[std::min(static_cast<size_t>(top.count), sorted.size()) - 1];
      for (size_t i = 0; i < row.size(); ++i) {
        if (i >= asked.size() || row[i] < least) row[i] = least - 1 - static_cast<float>(i % 7);
      }
    }
    const FakeEngine* owner_;
  };

  mutable ThreadPool pool_{1};
  Vision vision_;
  Embed embed_;
  Decoder decoder_;
};

}  // namespace qvl::generate::testing
