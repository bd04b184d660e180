// `qvl info`: what a model folder is, without opening it for computing.

#include "qvl/apps/cli.h"
#include "qvl/apps/package_info.h"
#include "qvl/base/error.h"
#include "qvl/base/format.h"
#include "qvl/base/json.h"
#include "qvl/checkpoint/checkpoint.h"
#include "qvl/kernels/ops.h"
#include "qvl/model/config.h"
#include "qvl/model/tensor_table.h"

namespace qvl::apps {
namespace {

namespace fs = std::filesystem;

struct InfoOptions {
  std::string model;
  bool json = false;
  bool verbose = false;
};

constexpr const char* kFiles[] = {
    "config.json",           "generation_config.json",   "tokenizer.json",
    "tokenizer_config.json", "preprocessor_config.json", "video_preprocessor_config.json",
    "chat_template.jinja",   "chat_template.json",       "model.safetensors.index.json"};

Json text_facts(const model::TextConfig& t) {
  return {{"hidden_size", t.hidden_size},
          {"layers", t.num_layers},
          {"heads", t.num_heads},
          {"kv_heads", t.num_kv_heads},
          {"head_dim", t.head_dim},
          {"intermediate_size", t.intermediate_size},
          {"vocab_size", t.vocab_size},
          {"rope_theta", t.rope.theta},
          {"mrope_section", t.rope.mrope_section},
          {"rms_norm_eps", t.rms_norm_eps},
          {"yarn", t.rope.type == model::RopeType::kYarn}};
}

Json vision_facts(const model::VisionConfig& v) {
  return {{"hidden_size", v.hidden_size},
          {"depth", v.depth},
          {"heads", v.num_heads},
          {"intermediate_size", v.intermediate_size},
          {"out_hidden_size", v.out_hidden_size},
          {"patch_size", v.patch_size},
          {"spatial_merge_size", v.spatial_merge_size},
          {"temporal_patch_size", v.temporal_patch_size},
          {"deepstack_indexes", v.deepstack_indexes}};
}

Json generation_facts(const model::GenerationConfig& g) {
  return {{"do_sample", g.do_sample},
          {"temperature", g.temperature},
          {"top_k", g.top_k},
          {"top_p", g.top_p},
          {"min_p", g.min_p},
          {"repetition_penalty", g.repetition_penalty},
          {"presence_penalty", g.presence_penalty},
          {"eos_token_ids", g.eos_token_ids},
          {"max_tokens", g.max_new_tokens.value_or(generate::kDefaultMaxTokens)}};
}

Json describe(const fs::path& folder) {
  const checkpoint::Checkpoint files = checkpoint::Checkpoint::open(folder);
  const model::ModelConfig config =
      model::ModelConfig::from_json(files.config_json(), (folder / "config.json").string());
  std::vector<model::FoundTensor> found;
  std::map<std::string, size_t> dtype_bytes;
  for (const checkpoint::CheckpointTensor& t : files.tensors()) {
    found.push_back({t.name, t.view->dtype, t.view->shape, t.view->file, t.view->name});
    dtype_bytes[std::string(dtype_name(t.view->dtype))] += t.view->bytes.size();
  }
  const model::CheckpointMatch match = model::check_checkpoint(config, found, folder.string());
  const model::ParameterCount parameters = model::parameter_count(config);

  Json out;
  out["folder"] = folder.string();
  out["architecture"] = config.model_type;
  out["parameters"] = {{"total", parameters.total}, {"vision", parameters.vision}};
  out["dtype_bytes"] = Json(dtype_bytes);
  out["weights"] = {{"files", files.file_count()},
                    {"bytes", files.total_bytes()},
                    {"tensors", files.tensors().size()},
                    {"tied_head", match.tied_head},
                    {"ignored_tensors", match.ignored}};
  out["text"] = text_facts(config.text);
  out["vision"] = vision_facts(config.vision);
  out["context_tokens"] = config.text.max_positions;
  out["kv_bytes_per_token"] = {{"int8", config.kv_bytes_per_token(DType::kI8)},
                               {"bf16", config.kv_bytes_per_token(DType::kBF16)},
                               {"fp32", config.kv_bytes_per_token(DType::kF32)}};
  out["files"] = Json::array();
  for (const char* name : kFiles) {
    if (files.has_file(name)) out["files"].push_back(name);
  }
  const text::ChatTemplate chat = text::detect_chat_template(folder);
  out["chat_template"] = {
      {"variant", chat.variant == text::TemplateVariant::kThinking ? "thinking" : "instruct"},
      {"source", chat.source.empty() ? "built in" : chat.source.filename().string()},
      {"recognised", chat.recognised}};
  if (files.has_file("tokenizer.json")) {
    out["tokenizer"] = {{"tokens", text::Tokenizer::load(folder).vocab_size()}};
  } else {
    out["tokenizer"] = nullptr;
  }
  out["generation"] = generation_facts(model::GenerationConfig::load(folder, config));
  const auto image = image::ImageProcessorConfig::load(folder);
  const auto video = image::VideoProcessorConfig::load(folder);
  const int64_t pixels_per_token = image.resize_factor_px() * image.resize_factor_px();
  out["image"] = {{"min_pixels", image.min_pixels},
                  {"max_pixels", image.max_pixels},
                  {"min_tokens", image.min_pixels / pixels_per_token},
                  {"max_tokens", image.max_pixels / pixels_per_token}};
  out["video"] = {{"min_pixels", video.min_pixels},
                  {"max_pixels", video.max_pixels},
                  {"sample_fps", video.sample_fps},
                  {"min_frames", video.min_frames},
                  {"max_frames", video.max_frames}};
  out["machine"] = {{"isa", kernels::table_name(kernels::active_table())},
                    {"threads", available_processors()}};
  return out;
}

std::string grouped(int64_t n) {
  std::string digits = fmt::format("{}", n);
  for (size_t i = digits.size(); i > 3; i -= 3) digits.insert(i - 3, " ");
  return digits;
}

std::string as_text(const Json& j) {
  std::string out;
  auto line = [&out](std::string_view key, const std::string& value) {
    out += fmt::format("{:<16} {}\n", key, value);
  };
  auto number = [](const Json& v) { return grouped(v.get<int64_t>()); };
  auto plain = [](const Json& v) { return v.is_string() ? v.get<std::string>() : v.dump(); };
  line("folder", plain(j["folder"]));
  line("architecture", plain(j["architecture"]));
  line("parameters",
       fmt::format("{} ({} vision)", number(j["parameters"]["total"]), number(j["parameters"]["vision"])));
  std::string dtypes;
  for (const auto& [name, bytes] : j["dtype_bytes"].items())
    dtypes += fmt::format("{}{} {} bytes", dtypes.empty() ? "" : ", ", name, number(bytes));
  line("weights",
       fmt::format("{} in {} file(s), {} tensors, head {}", dtypes, plain(j["weights"]["files"]),
                   plain(j["weights"]["tensors"]),
                   j["weights"]["tied_head"].get<bool>() ? "tied to the embedding" : "of its own"));
  const Json& t = j["text"];
  line("text",
       fmt::format("{} layers, hidden {}, {} heads / {} kv, head dim {}, mlp {}, vocabulary {}",
                   plain(t["layers"]), plain(t["hidden_size"]), plain(t["heads"]), plain(t["kv_heads"]),
                   plain(t["head_dim"]), plain(t["intermediate_size"]), plain(t["vocab_size"])));
  const Json& v = j["vision"];
  line("vision",
       fmt::format("{} blocks, hidden {}, {} heads, mlp {}, patch {}, DeepStack at {}", plain(v["depth"]),
                   plain(v["hidden_size"]), plain(v["heads"]), plain(v["intermediate_size"]),
                   plain(v["patch_size"]), plain(v["deepstack_indexes"])));
  line("context", fmt::format("{} tokens; {} bytes each in the cache (bf16; fp32 twice, int8 {})",
                              number(j["context_tokens"]), number(j["kv_bytes_per_token"]["bf16"]),
                              number(j["kv_bytes_per_token"]["int8"])));
  std::string files;
  for (const Json& f : j["files"]) files += (files.empty() ? "" : ", ") + plain(f);
  line("files", files);
  line("chat template",
       fmt::format("{} ({}{})", plain(j["chat_template"]["variant"]), plain(j["chat_template"]["source"]),
                   j["chat_template"]["recognised"].get<bool>()
                       ? ""
                       : ", not recognised: the built-in one stands in"));
  line("tokenizer", j["tokenizer"].is_null() ? std::string("none (only --ids works)")
                                             : number(j["tokenizer"]["tokens"]) + " tokens");
  const Json& g = j["generation"];
  line("generation",
       g["do_sample"].get<bool>()
           ? fmt::format("sampling: temperature {}, top-k {}, top-p {}, min-p {}", plain(g["temperature"]),
                         plain(g["top_k"]), plain(g["top_p"]), plain(g["min_p"]))
           : std::string("greedy"));
  line("", fmt::format("repetition penalty {}, presence penalty {}, end tokens {}, at most {} tokens",
                       plain(g["repetition_penalty"]), plain(g["presence_penalty"]),
                       plain(g["eos_token_ids"]), plain(g["max_tokens"])));
  line("image", fmt::format("{}..{} pixels, {}..{} tokens", number(j["image"]["min_pixels"]),
                            number(j["image"]["max_pixels"]), number(j["image"]["min_tokens"]),
                            number(j["image"]["max_tokens"])));
  line("video", fmt::format("{} frames per second, {}..{} frames, {}..{} pixels in all",
                            plain(j["video"]["sample_fps"]), plain(j["video"]["min_frames"]),
                            plain(j["video"]["max_frames"]), number(j["video"]["min_pixels"]),
                            number(j["video"]["max_pixels"])));
  line("machine",
       fmt::format("{} kernels, {} threads", plain(j["machine"]["isa"]), plain(j["machine"]["threads"])));
  return out;
}

int info(const InfoOptions& o) {
  log_to_stderr(o.verbose);
  const fs::path folder = resolve_model(o.model);
  if (package::is_package_folder(folder)) {
    const Json facts = describe_package(folder);
    write_stdout(o.json ? facts.dump(2) + "\n" : package_text(facts));
    return kExitOk;
  }
  const Json facts = describe(folder);
  write_stdout(o.json ? facts.dump(2) + "\n" : as_text(facts));
  return kExitOk;
}

}  // namespace

Registration register_info(CLI::App& app) {
  auto options = std::make_shared<InfoOptions>();
  CLI::App* command = app.add_subcommand(
      "info", "What a model folder or a package is: sizes, precision, graphs, parity, limits");
  set_usage(*command, "qvl info [MODEL] [--json]");
  command->add_option("MODEL", options->model, "Model or package folder (default: the small model)")
      ->type_name("FOLDER");
  command->add_flag("--json", options->json, "One JSON object");
  command->add_flag("--verbose", options->verbose, "Decisions on stderr");
  return {command, [options] { return info(*options); }};
}

}  // namespace qvl::apps
