#include "qvl/generate/disk_memory.h"

#include <utility>

#include "qvl/base/error.h"
#include "qvl/base/format.h"
#include "qvl/base/log.h"
#include "qvl/base/sha256.h"
#include "qvl/base/stopwatch.h"
#include "qvl/generate/session.h"

namespace qvl::generate {
namespace {

// Of the meaning of descriptions and payloads; the program's stamp covers the code.
constexpr int kFormatVersion = 1;

std::string processor_identity(const image::PatchConfig& c) {
  std::string out = cat(c.patch_size_px, " ", c.temporal_patch_size, " ", c.merge_size, " ", c.rescale_factor);
  for (double v : c.mean) out += cat(" ", v);
  for (double v : c.std) out += cat(" ", v);
  return out;
}

std::string assets_identity(const Assets& assets) {
  const image::ImageProcessorConfig& i = assets.image;
  const image::VideoProcessorConfig& v = assets.video;
  return cat("image ", processor_identity(i), " ", i.min_pixels, " ", i.max_pixels, "\nvideo ", processor_identity(v), " ",
             v.min_pixels, " ", v.max_pixels, " ", v.sample_fps, " ", v.min_frames, " ", v.max_frames, "\n");
}

Json describe(const VisualInfo& info, const engine::VisionFeatures& features) {
  Json out = {{"key", info.key},
              {"video", info.is_video},
              {"grid", {info.grid.t, info.grid.h, info.grid.w}},
              {"size", {info.width, info.height}},
              {"resized", {info.resized_width, info.resized_height}},
              {"timestamps_s", info.timestamps_s},
              {"tensors", Json::array()}};
  const auto add = [&out](const Tensor& t) {
    out["tensors"].push_back({{"dtype", dtype_name(t.dtype())}, {"shape", t.shape()}});
  };
  add(features.merged);
  for (const Tensor& level : features.deepstack) add(level);
  return out;
}

// Throws Json::exception where the description is another one's.
VisualInfo read_info(const Json& d) {
  VisualInfo info;
  info.key = d.at("key").get<std::string>();
  info.is_video = d.at("video").get<bool>();
  info.grid = {.t = d.at("grid").at(0).get<int64_t>(),
               .h = d.at("grid").at(1).get<int64_t>(),
               .w = d.at("grid").at(2).get<int64_t>()};
  info.width = d.at("size").at(0).get<int64_t>();
  info.height = d.at("size").at(1).get<int64_t>();
  info.resized_width = d.at("resized").at(0).get<int64_t>();
  info.resized_height = d.at("resized").at(1).get<int64_t>();
  info.timestamps_s = d.at("timestamps_s").get<std::vector<double>>();
  return info;
}

std::span<std::byte> bytes_of(Tensor& t) {
  return {static_cast<std::byte*>(t.data()), t.size_bytes()};
}
std::span<const std::byte> bytes_of(const Tensor& t) {
  return {static_cast<const std::byte*>(t.data()), t.size_bytes()};
}

}  // namespace

DiskMemory::DiskMemory(std::shared_ptr<CacheFolder> folder, const engine::Engine& engine, const Assets& assets,
                       const std::string& program)
    : folder_(std::move(folder)), merge_size_(engine.config().vision.spatial_merge_size) {
  const engine::EngineInfo& info = engine.info();
  if (info.vision_identity.empty()) return;
  vision_ = cat("format ", kFormatVersion, "\n", program, "\n", info.vision_identity, "\n", assets_identity(assets));
  if (!info.text_identity.empty()) text_ = info.text_identity + "\n";
}

std::string DiskMemory::features_name(const std::string& key) const {
  return sha256_hex("features\n" + vision_ + key) + ".features";
}

std::optional<VisualInfo> DiskMemory::find(const std::string& key) {
  if (vision_.empty()) return std::nullopt;
  const std::optional<Json> description = folder_->describe(features_name(key));
  if (!description) return std::nullopt;
  try {
    VisualInfo info = read_info(*description);
    if (info.key == key) return info;
  } catch (const Json::exception&) {
    // load() will say so and remove it
  }
  return std::nullopt;
}

std::shared_ptr<const engine::VisionFeatures> DiskMemory::load(const std::string& key) {
  if (vision_.empty()) return nullptr;
  auto features = std::make_shared<engine::VisionFeatures>();
  const bool found = folder_->get(
      features_name(key), [&](const Json& d, uint64_t payload_bytes, const CacheFolder::Source& read) {
        const VisualInfo info = read_info(d);
        if (info.key != key) return false;
        std::vector<std::pair<DType, Shape>> tensors;
        uint64_t total = 0;
        for (const Json& t : d.at("tensors")) {
          const DType dtype = parse_dtype(t.at("dtype").get<std::string>(), "image memory");
          const Shape shape = t.at("shape").get<Shape>();
          if (shape.size() != 2 || shape[0] != info.grid.merged_tokens(merge_size_)) return false;
          total += static_cast<uint64_t>(element_count(shape)) * dtype_size_bytes(dtype);
          tensors.emplace_back(dtype, shape);
        }
        if (tensors.empty() || total != payload_bytes) return false;  // before any memory is asked for
        for (auto& [dtype, shape] : tensors) {
          Tensor t(dtype, std::move(shape));
          read(bytes_of(t));
          if (features->merged.empty()) {
            features->merged = std::move(t);
          } else {
            features->deepstack.push_back(std::move(t));
          }
        }
        return true;
      });
  if (!found) return nullptr;
  log_message(LogLevel::kInfo, "image memory: features of a picture taken from " + folder_->folder().string());
  return features;
}

void DiskMemory::keep(const VisualInfo& info, const engine::VisionFeatures& features) {
  if (vision_.empty() || features.merged.empty()) return;
  const std::string name = features_name(info.key);
  if (folder_->describe(name)) return;
  folder_->put(name, describe(info, features), features_size_bytes(features), [&](const CacheFolder::Sink& sink) {
    sink(bytes_of(features.merged));
    for (const Tensor& level : features.deepstack) sink(bytes_of(level));
  });
}

std::string DiskMemory::prefix_name(std::span<const int32_t> ids,
                                    std::span<const PromptVisual* const> visuals) const {
  if (vision_.empty() || text_.empty()) return {};
  Sha256 hash;
  hash.add("prefix\n" + vision_ + text_);
  for (const PromptVisual* v : visuals)
    hash.add(cat(v->is_video ? "video " : "image ", v->key, " ", v->grid.t, " ", v->grid.h, " ", v->grid.w, "\n"));
  hash.add(cat(ids.size(), " ids\n"));
  hash.add(std::as_bytes(ids));
  return hash.finish() + ".prefix";
}

bool DiskMemory::load_prefix(const std::string& name, int64_t length, engine::KvCache& cache) {
  if (name.empty() || cache.saved_form().empty()) return false;
  const Clock::time_point start = Clock::now();
  const std::optional<CacheFolder::Mapped> kept = folder_->map(name, [&](const Json& d, uint64_t payload_bytes) {
    return d.at("positions") == length && d.at("form") == cache.saved_form() && payload_bytes == cache.saved_bytes(length);
  });
  if (!kept) return false;
  try {
    cache.load(length, {.file = kept->file, .bytes = kept->payload});
  } catch (const Error& e) {
    log_message(LogLevel::kWarning, cat("image memory: not used: ", e.what()));
    return false;
  }
  log_message(LogLevel::kInfo,
              fmt::format("image memory: {} positions taken from {} in {:.0f} ms", length, folder_->folder().string(),
                          ms_since(start)));
  return true;
}

void DiskMemory::keep_prefix(const std::string& name, int64_t length, const engine::KvCache& cache) {
  if (name.empty() || cache.saved_form().empty() || folder_->describe(name)) return;
  try {
    folder_->put(name, {{"positions", length}, {"form", cache.saved_form()}}, cache.saved_bytes(length),
                 [&](const CacheFolder::Sink& sink) { cache.save(length, sink); });
  } catch (const Error& e) {
    if (e.code() != ErrorCode::kIo) throw;
    log_message(LogLevel::kWarning, cat("image memory: nothing kept: ", e.what()));
  }
}

}  // namespace qvl::generate
