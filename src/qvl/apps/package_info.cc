#include "qvl/apps/package_info.h"

#include <algorithm>
#include <limits>
#include <map>

#include "qvl/apps/cli.h"
#include "qvl/base/error.h"
#include "qvl/base/format.h"
#include "qvl/engine/ort/open.h"
#include "qvl/export/fusion_table.h"
#include "qvl/export/weight_plan.h"
#include "qvl/kernels/ops.h"
#include "qvl/model/tensor_table.h"
#include "qvl/package/package.h"

namespace qvl::apps {
namespace {

struct Stored {
  int64_t tensors = 0;
  int64_t weights = 0;
  uint64_t bytes = 0;
  void add(const package::TensorEntry& t) {
    ++tensors;
    weights += t.rows * t.columns;
    bytes += t.stored_bytes();
  }
  Json to_json() const {
    return {{"tensors", tensors},
            {"weights", weights},
            {"bytes", bytes},
            {"bits_per_weight",
             weights > 0 ? 8.0 * static_cast<double>(bytes) / static_cast<double>(weights) : 0.0}};
  }
};

Json stage_facts(const package::Package& p, const package::StageEntry& stage, bool vision) {
  std::map<std::string, bool> of_stage;
  for (const model::TensorSpec& spec : model::tensor_table(p.config()))
    of_stage[spec.name] = model::is_vision_role(spec.role);
  Stored all;
  std::map<std::string, Stored> formats;
  for (const package::PackageTensor& t : p.tensors()) {
    if (of_stage[t.entry->name] != vision) continue;
    all.add(*t.entry);
    formats[t.entry->format.name()].add(*t.entry);
  }
  Json out = {{"precision", stage.precision}, {"recipe", stage.recipe}};
  if (const auto& shortlist = p.manifest().head_shortlist; shortlist && !vision)
    out["head_shortlist"] = {{"format", exporting::kShortlistFormat}, {"bytes", shortlist->stored_bytes()}};
  if (stage.activation_bits != 8) out["activation_bits"] = stage.activation_bits;
  if (stage.int8_attention != 0) out["int8_attention"] = stage.int8_attention;
  if (!stage.verdict.is_null()) out["verdict"] = stage.verdict;
  out.update(all.to_json());
  out["formats"] = Json::object();
  for (const auto& [name, stored] : formats) out["formats"][name] = stored.to_json();
  return out;
}

Json graph_facts(const package::Package& p, package::GraphKind kind, const package::GraphEntry& graph) {
  int64_t nodes = 0;
  Json operators = Json::object(), fused = Json::array();
  for (const auto& [name, count] : graph.operators) {
    nodes += count;
    operators[name] = count;
    const exporting::FusedOperator* f = exporting::find_fused(name);
    if (!f) continue;
    fused.push_back({{"operator", name},
                     {"nodes", count},
                     {"plain_nodes_each", f->plain_nodes},
                     {"stands_for", f->stands_for}});
  }
  return {{"file", graph.file.file},
          {"bytes", graph.file.bytes},
          {"nodes", nodes},
          {"plain_nodes", exporting::plain_node_count(p, kind)},
          {"operators", std::move(operators)},
          {"fused", std::move(fused)}};
}

// The figures of the report that fit a line: worst of all cases.
Json parity_facts(const Json& report) {
  if (!report.is_object()) return nullptr;
  Json out = {{"passed", report.value("passed", false)},
              {"qvl_version", report.value("qvl_version", "")},
              {"weights", report.contains("weights") ? report["weights"] : Json(nullptr)},
              {"engines", Json::array()},
              {"skipped", report.contains("skipped") ? report["skipped"] : Json::array()}};
  if (!report.contains("engines")) return out;
  for (const Json& e : report["engines"]) {
    double mean_kl = 0, cosine = 1;
    int64_t cases = 0, top1 = 0, positions = 0, greedy = 0, greedy_equal = 0;
    const auto real = [](const Json& v, double broken) { return v.is_number() ? v.get<double>() : broken; };
    for (const Json& c : e["cases"]) {
      ++cases;
      mean_kl = std::max(mean_kl, real(c["mean_kl_nats"], std::numeric_limits<double>::infinity()));
      top1 += c["top1_equal"].get<int64_t>(), positions += c["positions"].get<int64_t>();
      greedy += c["greedy_tokens"].get<int64_t>(), greedy_equal += c["greedy_equal"].get<int64_t>();
    }
    for (const Json& t : e["tensors"]) cosine = std::min(cosine, real(t["cosine"], 0));
    out["engines"].push_back({{"engine", e["engine"]},
                              {"passed", e["passed"]},
                              {"worst", e["worst"]},
                              {"cases", cases},
                              {"lowest_cosine", cosine},
                              {"largest_mean_kl_nats", mean_kl},
                              {"top1_equal", top1},
                              {"positions", positions},
                              {"greedy_equal", greedy_equal},
                              {"greedy_tokens", greedy}});
  }
  return out;
}

Json runtime_facts() {
  try {
    const engine::ort::LibraryInfo info = engine::ort::library_info();
    return {{"version", info.version},
            {"path", info.path.string()},
            {"api_version", info.api_version},
            {"providers", info.providers}};
  } catch (const Error& e) {
    if (e.code() != ErrorCode::kUnsupported) throw;
    return {{"missing", e.what()}};
  }
}

std::string megabytes(const Json& bytes) {
  return fmt::format("{:.1f} MB", bytes.get<double>() * 1e-6);
}

std::string words(const Json& list) {
  std::string out;
  for (const Json& word : list) out += (out.empty() ? "" : ", ") + word.get<std::string>();
  return out;
}

void stage_text(const std::string& name, const Json& s,
                const std::function<void(std::string_view, const std::string&)>& line) {
  const std::string recipe = s["recipe"].get<std::string>();
  line(name, fmt::format("{}{}: {} in {} tensors, {:.2f} bits a weight", s["precision"].get<std::string>(),
                         recipe.empty() ? "" : " (" + recipe + " recipe)", megabytes(s["bytes"]),
                         s["tensors"].get<int64_t>(), s["bits_per_weight"].get<double>()));
  if (s.contains("verdict")) {
    const Json& v = s["verdict"];
    line("", fmt::format("chosen by the features of {} pictures: 8 bits{} keep a cosine of {:.5f} with float32, {} is the limit",
                         v.value("pictures", 0),
                         s.value("activation_bits", 8) == 7 ? " with activations in 7" : "", v.value("cosine", 0.0),
                         v.value("limit", 0.0)));
    if (const int bits = s.value("int8_attention", 0); bits != 0) {
      line("", fmt::format("where kernels can, attention multiplies 8 bits too{}: {:.5f}", bits == 7 ? " (activations in 7)" : "",
                           v.value("cosines_with_int8_attention", Json::object()).value(std::to_string(bits), 0.0)));
    }
  }
  if (s.contains("head_shortlist")) {
    const Json& h = s["head_shortlist"];
    line("", fmt::format("and a shortlist of the head in {}: {}, which the native engine reads instead of the head", h["format"].get<std::string>(),
                         megabytes(h["bytes"])));
  }
  for (const auto& [format, f] : s["formats"].items()) {
    line("", fmt::format("{:<26} {:>5} tensors {:>14} weights {:>12}  {:>5.2f} bits each", format,
                         f["tensors"].get<int64_t>(), f["weights"].get<int64_t>(), megabytes(f["bytes"]),
                         f["bits_per_weight"].get<double>()));
  }
}

std::string graph_text(const Json& g) {
  std::string out =
      fmt::format("  {} ({}): {} nodes; with standard operators only {}\n", g["file"].get<std::string>(),
                  megabytes(g["bytes"]), g["nodes"].get<int64_t>(), g["plain_nodes"].get<int64_t>());
  for (const Json& f : g["fused"]) {
    const auto each = f["plain_nodes_each"].get<int64_t>(), nodes = f["nodes"].get<int64_t>();
    out +=
        fmt::format("    {:>4} x {:<48} {:>2} each, {:>5} in all: {}\n", nodes,
                    f["operator"].get<std::string>(), each, nodes * each, f["stands_for"].get<std::string>());
  }
  std::string rest;
  for (const auto& [name, count] : g["operators"].items()) {
    const bool fused = std::any_of(g["fused"].begin(), g["fused"].end(),
                                   [&](const Json& f) { return f["operator"] == name; });
    if (!fused) rest += fmt::format("{}{} {}", rest.empty() ? "" : ", ", count.get<int64_t>(), name);
  }
  return out + "    others: " + rest + "\n";
}

}  // namespace

Json describe_package(const std::filesystem::path& folder) {
  const package::Package p = package::Package::open(folder);
  const package::Manifest& m = p.manifest();
  Json out;
  out["folder"] = folder.string();
  out["package"] = {{"format_version", m.format_version}, {"qvl_version", m.qvl_version}};
  out["source"] = {{"name", m.source.name},
                   {"dtype", m.source.dtype},
                   {"parameters", m.source.parameters},
                   {"tied_head", m.source.tied_head},
                   {"config_sha256", m.source.config_sha256}};
  out["layout"] = package::layout_name(m.layout);
  out["opset"] = m.opset;
  out["plain"] = m.plain;
  out["static"] = nullptr;
  if (const auto& s = m.static_sizes) {
    out["static"] = {{"image_width_px", s->image_width_px},
                     {"image_height_px", s->image_height_px},
                     {"grid_thw", {s->grid_t, s->grid_h, s->grid_w}},
                     {"sequence_tokens", s->sequence_tokens},
                     {"context_tokens", s->context_tokens}};
  }
  out["stages"] = {{"vision", stage_facts(p, m.vision, true)}, {"text", stage_facts(p, m.text, false)}};
  out["graphs"] = Json::object();
  uint64_t bytes = p.data_bytes();
  for (const auto& [kind, graph] : m.graphs) {
    out["graphs"][std::string(package::graph_name(kind))] = graph_facts(p, kind, graph);
    bytes += graph.file.bytes;
  }
  out["files"] = Json::array();
  for (const auto* list : {&m.data_files, &m.other_files}) {
    for (const package::FileEntry& f : *list) out["files"].push_back({{"file", f.file}, {"bytes", f.bytes}});
  }
  for (const package::FileEntry& f : m.other_files) bytes += f.bytes;
  out["bytes"] = bytes;
  out["quantisation"] = nullptr;
  if (m.quantisation.is_object()) {
    out["quantisation"] = m.quantisation;
    out["quantisation"].erase("tensors");
    out["quantisation"]["tensors"] =
        m.quantisation.contains("tensors") ? m.quantisation["tensors"].size() : 0;
  }
  out["parity"] = parity_facts(m.parity);
  out["onnxruntime"] = runtime_facts();
  out["machine"] = {{"isa", kernels::table_name(kernels::active_table())},
                    {"threads", available_processors()}};
  return out;
}

std::string package_text(const Json& j) {
  std::string out;
  const std::function<void(std::string_view, const std::string&)> line = [&out](std::string_view key,
                                                                                const std::string& value) {
    out += fmt::format("{:<16} {}\n", key, value);
  };
  const auto text = [](const Json& v) { return v.is_string() ? v.get<std::string>() : v.dump(); };
  line("package", fmt::format("{} ({}, written by qvl {})", text(j["folder"]), megabytes(j["bytes"]),
                              text(j["package"]["qvl_version"])));
  line("made from",
       fmt::format("{}: {} parameters, {}, head {}", text(j["source"]["name"]),
                   text(j["source"]["parameters"]), text(j["source"]["dtype"]),
                   j["source"]["tied_head"].get<bool>() ? "tied to the embedding" : "of its own"));
  line(
      "form",
      fmt::format("{} layout, opset {}, {}, {}", text(j["layout"]), text(j["opset"]),
                  j["plain"].get<bool>() ? "standard operators only" : "fused operators of ONNX Runtime",
                  j["static"].is_null()
                      ? std::string("any image sizes and lengths")
                      : fmt::format("fixed: {}x{} pixels, grid {}, {} tokens a call, context {}",
                                    text(j["static"]["image_width_px"]), text(j["static"]["image_height_px"]),
                                    text(j["static"]["grid_thw"]), text(j["static"]["sequence_tokens"]),
                                    text(j["static"]["context_tokens"]))));
  stage_text("vision", j["stages"]["vision"], line);
  stage_text("text", j["stages"]["text"], line);
  if (const Json& q = j["quantisation"]; !q.is_null()) {
    line("quantisation", fmt::format("{} recipe{}: {} tensors, {:.2f} bits a weight, relative error {:.4f}",
                                     text(q["recipe"]), q.value("calibrated", false) ? ", calibrated" : "",
                                     text(q["tensors"]), q["all"]["bits_per_weight"].get<double>(),
                                     q["all"]["relative_rms"].get<double>()));
  } else {
    line("quantisation", "none");
  }
  if (const Json& p = j["parity"]; !p.is_null()) {
    line("parity", fmt::format("{} (qvl {} verify)", p["passed"].get<bool>() ? "PASSED" : "FAILED",
                               text(p["qvl_version"])));
    for (const Json& e : p["engines"]) {
      line("", fmt::format("{}: {}, {} cases, lowest cosine {:.5f}, mean KL at most {:.1e}, first choice "
                           "equal {}/{}, greedy {}/{}",
                           text(e["engine"]), e["passed"].get<bool>() ? "equal within limits" : "FAILED",
                           text(e["cases"]), e["lowest_cosine"].get<double>(),
                           // Infinite numbers became null on the way.
                           e["largest_mean_kl_nats"].is_number() ? e["largest_mean_kl_nats"].get<double>()
                                                                 : std::numeric_limits<double>::infinity(),
                           text(e["top1_equal"]), text(e["positions"]), text(e["greedy_equal"]),
                           text(e["greedy_tokens"])));
    }
    for (const Json& s : p["skipped"]) line("", fmt::format("{}: skipped", text(s["engine"])));
  } else {
    line("parity", fmt::format("not verified yet (qvl verify {} --against CHECKPOINT)", text(j["folder"])));
  }
  const Json& r = j["onnxruntime"];
  line("ONNX Runtime", r.contains("missing") ? text(r["missing"])
                                             : fmt::format("{} ({}), headers of API {}", text(r["version"]),
                                                           text(r["path"]), text(r["api_version"])));
  if (r.contains("providers")) line("", "execution providers: " + words(r["providers"]));
  line("machine",
       fmt::format("{} kernels, {} threads", text(j["machine"]["isa"]), text(j["machine"]["threads"])));
  out += "\ngraphs\n";
  for (const auto& [kind, graph] : j["graphs"].items()) out += graph_text(graph);
  return out;
}

}  // namespace qvl::apps
