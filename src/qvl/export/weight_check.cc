#include "qvl/export/weight_check.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>

#include "qvl/base/error.h"
#include "qvl/base/format.h"
#include "qvl/base/mapped_file.h"
#include "qvl/base/sha256.h"
#include "qvl/base/tensor.h"
#include "qvl/export/weight_plan.h"
#include "qvl/quant/block_codec.h"
#include "qvl/quant/shortlist.h"
#include "qvl/source/source.h"

namespace qvl::exporting {
namespace {

using model::TensorRole;
using source::Source;

// Rows that one task compares: enough values to be worth it, little memory.
constexpr int64_t kTaskValues = int64_t{1} << 17;
// As for 4 bits (weight_limit).
constexpr double kShortlistLimit = 0.5;
// Tasks after which the pages read so far go back: an embedding table alone would fill a gigabyte.
constexpr int64_t kPieceTasks = 256;

// Rows of a part of equal rows.
std::span<const std::byte> rows_of(std::span<const std::byte> all, int64_t rows, int64_t first,
                                   int64_t count) {
  const size_t row = all.size() / static_cast<size_t>(rows);
  return all.subspan(static_cast<size_t>(first) * row, static_cast<size_t>(count) * row);
}

std::vector<float> floats(std::span<const std::byte> bytes, DType type) {
  // Checkpoints do not align tensors to their elements.
  AlignedBuffer aligned(bytes.size());
  std::memcpy(aligned.data(), bytes.data(), bytes.size());
  std::vector<float> out(bytes.size() / dtype_size_bytes(type));
  convert_elements(aligned.data(), type, out.data(), DType::kF32, static_cast<int64_t>(out.size()));
  return out;
}

// `read` writes rows [first, first + count) as they are stored to y.
quant::ErrorStats compare(int64_t rows, int64_t columns, const checkpoint::TensorView& source, ThreadPool& pool,
                          const std::function<void()>& give_back,
                          const std::function<void(int64_t first, int64_t count, std::span<float> y)>& read) {
  // Whole groups of a shortlist.
  const int64_t step = std::max<int64_t>(1, kTaskValues / std::max<int64_t>(1, columns) / quant::kShortlistGroup) * quant::kShortlistGroup;
  const int64_t tasks = (rows + step - 1) / step;
  std::vector<quant::ErrorStats> parts(static_cast<size_t>(tasks));
  const auto compare_task = [&](int64_t task) {
    const int64_t first = task * step, count = std::min(step, rows - first);
    const std::vector<float> x = floats(rows_of(source.bytes, rows, first, count), source.dtype);
    std::vector<float> y(x.size());
    read(first, count, y);
    parts[static_cast<size_t>(task)].add(x, y, columns);
  };
  for (int64_t done = 0; done < tasks; done += kPieceTasks) {
    pool.parallel_for(std::min(kPieceTasks, tasks - done),
                      [&](int64_t task, int) { compare_task(done + task); });
    give_back();
  }
  quant::ErrorStats stats;
  for (const quant::ErrorStats& part : parts) stats.merge(part);
  return stats;
}

quant::ErrorStats compare(const package::PackageTensor& stored, const checkpoint::TensorView& source, ThreadPool& pool,
                          const std::function<void()>& give_back) {
  const package::TensorEntry& entry = *stored.entry;
  quant::ErrorStats stats =
      compare(entry.rows, entry.columns, source, pool, give_back, [&](int64_t first, int64_t count, std::span<float> y) {
        const std::span<const std::byte> data = rows_of(stored.data, entry.rows, first, count);
        if (entry.format.kind == quant::Kind::kFloat) {
          std::ranges::copy(floats(data, entry.format.float_type), y.begin());
          return;
        }
        quant::dequantize(entry.format, count, entry.columns,
                          {data, rows_of(stored.scales, entry.rows, first, count), rows_of(stored.zero_points, entry.rows, first, count)},
                          y);
      });
  stats.stored_bytes = entry.stored_bytes();
  return stats;
}

quant::ErrorStats compare(const package::PackageShortlist& stored, const checkpoint::TensorView& source, ThreadPool& pool,
                          const std::function<void()>& give_back) {
  const int64_t rows = stored.entry->rows, columns = stored.entry->columns;
  quant::ErrorStats stats = compare(rows, columns, source, pool, give_back, [&](int64_t first, int64_t count, std::span<float> y) {
    quant::decode_shortlist(count, columns, quant::shortlist_rows(stored.parts, columns, first, count), true, y);
  });
  stats.stored_bytes = stored.entry->stored_bytes();
  return stats;
}

std::map<std::string, double> reported_errors(const Json& quantisation) {
  std::map<std::string, double> out;
  if (!quantisation.is_object() || !quantisation.contains("tensors")) return out;
  for (const Json& t : quantisation["tensors"]) {
    if (t.contains("tensor") && t.contains("relative_rms") && t["relative_rms"].is_number()) {
      out[t["tensor"].get<std::string>()] = t["relative_rms"].get<double>();
    }
  }
  return out;
}

void check_same_model(const package::Package& package, const Source& source) {
  const std::filesystem::path config = source.checkpoint.file_path("config.json");
  const std::string where = source.checkpoint.folder().string();
  const std::string wanted = package.manifest().source.config_sha256;
  if (const std::string got = sha256_hex(read_file(config, size_t{256} << 20)); got != wanted) {
    fail(ErrorCode::kMismatch, where, "config.json",
         fmt::format("the file that {} was exported from (SHA-256 {})", package.folder().string(),
                     wanted.substr(0, 12)),
         got.substr(0, 12), "another model?");
  }
  if (package.tied_head() != source.config.tie_word_embeddings) {
    fail(ErrorCode::kMismatch, where, "head", package.tied_head() ? "tied to the embedding" : "of its own",
         source.config.tie_word_embeddings ? "tied to the embedding" : "of its own");
  }
}

}  // namespace

double weight_limit(const quant::Format& format) {
  if (format.kind == quant::Kind::kFloat) {
    if (format.float_type == DType::kBF16) return 0x1p-8;
    // Above zero for what lies below the smallest normal number.
    if (format.float_type == DType::kF16) return 0x1p-10;
    return 0;
  }
  return format.bits == 4 ? 0.5 : format.kind == quant::Kind::kRow8 ? 0.15 : 0.05;
}

bool StoredCheck::passed() const {
  return fault().empty();
}

std::string StoredCheck::fault() const {
  const double got = stats.relative_rms();
  if (!(got <= limit)) {
    return fmt::format("{} ({}): relative error {:.3g} against the checkpoint, expected at most {:.3g}",
                       tensor, format, got, limit);
  }
  // The sums are the same in another order.
  if (reported && !(std::abs(got - *reported) <= 1e-6 * *reported)) {
    return fmt::format(
        "{} ({}): relative error {:.6g} against the checkpoint, expected {:.6g} as the export measured",
        tensor, format, got, *reported);
  }
  return {};
}

bool WeightReport::passed() const {
  return worst() == nullptr;
}

const StoredCheck* WeightReport::worst() const {
  const StoredCheck* worst = nullptr;
  const auto see = [&worst](const StoredCheck& t) {
    if (!t.passed() && (!worst || t.stats.relative_rms() > worst->stats.relative_rms())) worst = &t;
  };
  std::ranges::for_each(tensors, see);
  if (shortlist) see(*shortlist);
  return worst;
}

Json WeightReport::to_json() const {
  quant::ErrorStats all;
  int64_t exact = 0;
  for (const WeightCheck& t : tensors) all.merge(t.stats), exact += t.exact();
  const double relative = all.relative_rms();
  return {{"passed", passed()},
          {"tensors", tensors.size()},
          {"exact", exact},
          {"relative_rms", std::isfinite(relative) ? Json(relative) : Json(nullptr)},
          {"worst", worst() ? Json(worst()->fault()) : Json(nullptr)}};
}

std::string WeightReport::to_text() const {
  struct Group {
    int64_t tensors = 0, exact = 0;
    double worst = 0;
    quant::ErrorStats stats;
  };
  std::map<std::string, Group> formats;
  for (const WeightCheck& t : tensors) {
    Group& g = formats[t.format];
    ++g.tensors, g.exact += t.exact();
    g.worst = std::max(g.worst, t.stats.relative_rms());
    g.stats.merge(t.stats);
  }
  std::string out = fmt::format("weights: {}\n", passed() ? "those of the checkpoint" : "FAILED");
  out += fmt::format("  {:<28} {:>8} {:>8} {:>11} {:>12} {:>12}\n", "format", "tensors", "exact",
                     "bits/weight", "error", "worst");
  for (const auto& [name, g] : formats) {
    out += fmt::format("  {:<28} {:>8} {:>8} {:>11.2f} {:>12.2e} {:>12.2e}\n", name, g.tensors, g.exact,
                       g.stats.bits_per_weight(), g.stats.relative_rms(), g.worst);
  }
  if (const StoredCheck* w = worst()) out += fmt::format("  worst: {}\n", w->fault());
  return out;
}

WeightReport check_weights(const package::Package& package, const Source& source, ThreadPool& pool,
                           const std::function<bool(int64_t done, int64_t total)>& progress) {
  check_same_model(package, source);
  std::map<std::string, const model::TensorSpec*> specs;
  // The package was checked against this very table when it was opened.
  const std::vector<model::TensorSpec> table = model::tensor_table(source.config);
  for (const model::TensorSpec& spec : table) specs[spec.name] = &spec;
  const std::map<std::string, double> reported = reported_errors(package.manifest().quantisation);

  WeightReport report;
  int64_t done = 0;
  const auto total = static_cast<int64_t>(package.data_bytes());
  const auto compared = [&](StoredCheck& check, const auto& stored, TensorRole role, int layer) {
    if (progress && !progress(done, total)) fail(ErrorCode::kCancelled, "weights", "cancelled");
    check.stats = compare(stored, source.tensor(role, layer), pool, [&] {
      source.drop(role, layer);
      package.drop(stored);
    });
    if (const auto r = reported.find(check.tensor); r != reported.end()) check.reported = r->second;
    done += static_cast<int64_t>(check.stats.stored_bytes);
  };
  for (const package::PackageTensor& t : package.tensors()) {
    const auto spec = specs.find(t.entry->name);
    if (spec == specs.end()) fail(ErrorCode::kMismatch, t.where(), "no tensor of this model");
    const TensorRole role = spec->second->role;
    const quant::Format& format = t.entry->format;
    WeightCheck check;
    check.tensor = t.entry->name;
    check.format = format.name();
    check.role = role;
    check.stored_as = format;
    check.limit = weight_limit(format);
    if (format.kind == quant::Kind::kFloat && format.float_type == source.tensor(role, spec->second->layer).dtype) check.limit = 0;
    compared(check, t, role, spec->second->layer);
    report.tensors.push_back(std::move(check));
  }
  if (const std::optional<package::PackageShortlist> list = package.head_shortlist()) {
    StoredCheck& check = report.shortlist.emplace();
    check.tensor = kShortlistName;
    check.format = kShortlistFormat;
    check.limit = kShortlistLimit;
    compared(check, *list, model::head_role(package.tied_head()), -1);
  }
  if (progress) progress(total, total);
  return report;
}

}  // namespace qvl::exporting
