// `qvl trace`: the intermediate tensors of one prefill in a safetensors file, to compare with another
// implementation.

#include "qvl/apps/cli.h"
#include "qvl/base/error.h"
#include "qvl/base/format.h"
#include "qvl/base/json.h"
#include "qvl/checkpoint/safetensors.h"
#include "qvl/checkpoint/safetensors_writer.h"
#include "qvl/generate/trace.h"

namespace qvl::apps {
namespace {

namespace fs = std::filesystem;

struct TraceOptions {
  std::vector<std::string> words;  // MODEL, and PROMPT unless --ids
  std::string out;
  std::string ids;
  std::string pixels_file;
  std::string system;
  int64_t max_tokens = 16;
  EngineChoice engine;
  VisualChoice visuals;
  PixelChoice pixels;
};

// A list of ids, or an object with "input_ids"; a batch of one is accepted.
std::vector<int32_t> read_ids(const fs::path& path, int64_t vocabulary) {
  Json json = parse_json_file(path);
  if (json.is_object() && json.contains("input_ids")) json = Json(json["input_ids"]);
  if (json.is_array() && json.size() == 1 && json[0].is_array()) json = Json(json[0]);
  if (!json.is_array() || json.empty()) {
    fail(ErrorCode::kFormat, path.string(), "token ids",
         "a JSON list of whole numbers, or an object with \"input_ids\"", json.type_name());
  }
  std::vector<int32_t> ids;
  for (const Json& v : json) {
    if (!v.is_number_integer())
      fail(ErrorCode::kFormat, path.string(), "token id", "a whole number", v.dump());
    const auto id = v.get<int64_t>();
    if (id < 0 || id >= vocabulary) {
      fail(ErrorCode::kMismatch, path.string(), "token id", fmt::format("0..{}", vocabulary - 1),
           fmt::format("{}", id));
    }
    ids.push_back(static_cast<int32_t>(id));
  }
  return ids;
}

std::vector<image::Grid> read_grids(const checkpoint::SafetensorsFile& file, const char* name) {
  const checkpoint::TensorView& view = file.get(name);
  if (view.shape.size() != 2 || view.shape[1] != 3 ||
      (view.dtype != DType::kI64 && view.dtype != DType::kI32)) {
    fail(ErrorCode::kMismatch, view.file, name, "I64 [N, 3]",
         fmt::format("{} {}", dtype_name(view.dtype), shape_string(view.shape)));
  }
  std::vector<image::Grid> grids;
  auto value = [&](int64_t i) {
    if (view.dtype == DType::kI32) {
      int32_t v;
      std::memcpy(&v, view.bytes.data() + i * 4, 4);
      return int64_t{v};
    }
    int64_t v;
    std::memcpy(&v, view.bytes.data() + i * 8, 8);
    return v;
  };
  for (int64_t i = 0; i < view.shape[0]; ++i)
    grids.push_back({value(3 * i), value(3 * i + 1), value(3 * i + 2)});
  return grids;
}

Tensor read_pixels(const checkpoint::SafetensorsFile& file, const char* name) {
  const checkpoint::TensorView& view = file.get(name);
  const std::vector<float> values = view.to_f32();
  Tensor t(DType::kF32, view.shape);
  std::copy(values.begin(), values.end(), t.as<float>().begin());
  return t;
}

void load_pixels(const fs::path& path, generate::TraceInput& input) {
  const auto file = checkpoint::SafetensorsFile::open(path);
  const bool images = file.find("pixel_values") || file.find("image_grid_thw");
  const bool videos = file.find("pixel_values_videos") || file.find("video_grid_thw");
  if (!images && !videos) {
    fail(ErrorCode::kNotFound, path.string(), "pixels", "pixel_values and image_grid_thw, or the video pair",
         "neither");
  }
  if (images) {
    input.image_grids = read_grids(file, "image_grid_thw");
    input.pixel_values = read_pixels(file, "pixel_values");
  }
  if (videos) {
    input.video_grids = read_grids(file, "video_grid_thw");
    input.pixel_values_videos = read_pixels(file, "pixel_values_videos");
  }
}

// [P, 1536] of several visuals one below the other.
Tensor stacked(const std::vector<const Tensor*>& parts) {
  if (parts.empty()) return {};
  int64_t rows = 0;
  for (const Tensor* t : parts) rows += t->dim(0);
  Tensor out(DType::kF32, {rows, parts.front()->dim(1)});
  auto* to = static_cast<std::byte*>(out.data());
  for (const Tensor* t : parts) {
    std::memcpy(to, t->data(), t->size_bytes());
    to += t->size_bytes();
  }
  return out;
}

std::vector<text::Message> chat_messages(const std::string& system, const std::string& prompt,
                                         const std::vector<generate::VisualInfo>& visuals) {
  std::vector<text::Message> messages;
  if (!system.empty()) messages.push_back(generate::text_message(text::Role::kSystem, system).message);
  text::Message user;
  for (const generate::VisualInfo& v : visuals) {
    user.parts.push_back(v.is_video ? text::ContentPart::video() : text::ContentPart::image());
  }
  user.parts.push_back(text::ContentPart::make_text(prompt));
  messages.push_back(std::move(user));
  return messages;
}

int trace(const TraceOptions& o) {
  // With --ids there is no prompt, so the one word is the model; without it the last word is the prompt.
  const bool from_ids = !o.ids.empty();
  if (from_ids && o.words.size() > 1) throw UsageError("PROMPT: expected none beside --ids, got one");
  if (!from_ids && o.words.empty())
    throw UsageError("PROMPT: expected a prompt or --ids FILE.json, got neither");
  const std::string model_name =
      o.words.size() > 1 || from_ids ? (o.words.empty() ? "" : o.words.front()) : "";
  const std::string prompt = from_ids ? "" : o.words.back();
  refuse_picture_as_model("trace", model_name);
  std::error_code ec;
  if (!from_ids && o.words.size() == 1 && fs::exists(fs::path(prompt) / "config.json", ec)) {
    throw UsageError(fmt::format(
        "PROMPT: expected a prompt or --ids FILE.json after the model folder {}, got neither", prompt));
  }
  const std::vector<generate::VisualInput> inputs = o.visuals.resolved();
  if (!o.pixels_file.empty() && !inputs.empty())
    throw UsageError("--pixels: expected no -i or -v beside it, got one");
  if (!from_ids && prompt.find_first_not_of(" \t\r\n") == std::string::npos)
    throw UsageError("PROMPT: expected a prompt, got an empty text");
  const image::PixelOverrides overrides = o.pixels.overrides();
  log_to_stderr(o.engine.verbose);
  catch_interrupts();
  ProgressBar bar;
  const fs::path folder = resolve_model(model_name);
  // The tokenizer is needed for a prompt only: a checkpoint without one can still be traced by --ids.
  const OpenModel model = open_model(folder, o.engine, bar, !from_ids || !inputs.empty());
  const model::ModelConfig& config = model.engine->config();

  generate::TraceInput input;
  std::vector<generate::VisualInfo> visuals;
  if (!o.pixels_file.empty()) {
    load_pixels(o.pixels_file, input);
    if (!from_ids && !input.video_grids.empty()) {
      throw UsageError("--pixels: expected --ids beside a video, got a prompt (its time stamps are unknown)");
    }
    for (const image::Grid& g : input.image_grids)
      visuals.push_back({.is_video = false, .key = "", .grid = g});
  } else if (!inputs.empty()) {
    generate::Pipeline pipeline(model.engine, model.assets, std::make_shared<generate::ImageMemory>(0));
    std::vector<std::shared_ptr<generate::Visual>> loaded;
    std::vector<const Tensor*> image_parts, video_parts;
    for (const generate::VisualInput& v : inputs) {
      loaded.push_back(pipeline.load(v, overrides));
      const generate::VisualInfo& info = loaded.back()->info();
      visuals.push_back(info);
      (info.is_video ? input.video_grids : input.image_grids).push_back(info.grid);
      (info.is_video ? video_parts : image_parts).push_back(&pipeline.pixels(*loaded.back()));
    }
    input.pixel_values = stacked(image_parts);
    input.pixel_values_videos = stacked(video_parts);
  }
  input.ids = from_ids ? read_ids(o.ids, config.text.vocab_size)
                       : generate::chat_token_ids(*model.assets, config.vision,
                                                  chat_messages(o.system, prompt, visuals), visuals);

  const std::vector<generate::TracedTensor> tensors =
      generate::trace_prefill(*model.engine, input, {.greedy_tokens = o.max_tokens}, [&](int64_t done, int64_t total) {
        bar.update("tracing", done, total, "steps");
        return !interrupt_flag();
      });
  bar.clear();
  std::vector<checkpoint::NamedTensor> named;
  for (const generate::TracedTensor& t : tensors) named.push_back({t.name, &t.value});
  checkpoint::write_safetensors(o.out, named,
                                {{"producer", "qvl " QVL_VERSION},
                                 {"vision", model.engine->info().vision},
                                 {"text", model.engine->info().text}});
  if (o.engine.verbose) fmt::print(stderr, "qvl: {} tensors written to {}\n", tensors.size(), o.out);
  return kExitOk;
}

}  // namespace

Registration register_trace(CLI::App& app) {
  auto options = std::make_shared<TraceOptions>();
  CLI::App* command =
      app.add_subcommand("trace", "Write the intermediate tensors of one prefill to a safetensors file");
  set_usage(*command,
            "qvl trace [MODEL] [-i IMAGE]... \"PROMPT\" --out FILE.safetensors [OPTIONS]\n       qvl trace "
            "[MODEL] --ids FILE.json [--pixels FILE.safetensors] --out FILE.safetensors [OPTIONS]");
  command->footer(
      "Names: input_ids [S], pixel_values, image_grid_thw (pixel_values_videos, video_grid_thw), "
      "vision.pos_embed,\n"
      "vision.block{i}, vision.merged, vision.deepstack{j}, position_ids [3,S], inputs_embeds, layer{i} "
      "(after DeepStack),\n"
      "logits [S,V], greedy_tokens. Ids, grids, positions and tokens are int64, all else float32. Vision "
      "rows of images come\n"
      "before those of videos. Greedy tokens go on after end tokens.");
  command->add_option("PROMPT", options->words, "[MODEL] \"PROMPT\", or [MODEL] with --ids")
      ->expected(0, 2)
      ->type_name("TEXT");
  command->add_option("--out", options->out, "The file to write")->required()->type_name("FILE.safetensors");
  command
      ->add_option(
          "--ids", options->ids,
          "Token ids as they are instead of a chat prompt: a JSON list, or an object with \"input_ids\"")
      ->type_name("FILE.json");
  command
      ->add_option("--pixels", options->pixels_file,
                   "pixel_values and image_grid_thw (and the video pair) as they are")
      ->type_name("FILE.safetensors");
  command->add_option("--max-tokens", options->max_tokens, "Greedy tokens after the prefill")
      ->check(whole_between(0, 1 << 20));
  command->add_option("--system", options->system, "System message")->type_name("TEXT");
  add_visual_options(*command, options->visuals);
  add_pixel_options(*command, options->pixels);
  add_engine_options(*command, options->engine);
  return {command, [options] { return trace(*options); }};
}

}  // namespace qvl::apps
