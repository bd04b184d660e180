// --image-memory: where what is known about pictures is kept beyond this process.

#include <charconv>
#include <cstdlib>

#include "qvl/apps/cli.h"
#include "qvl/base/format.h"
#include "qvl/base/log.h"

namespace qvl::apps {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kMinBytes = uint64_t{1} << 20;

// Empty where there is none: "off" was chosen, or there is no home folder.
fs::path memory_folder(const MemoryChoice& choice) {
  std::string place = choice.place;
  if (const char* set = std::getenv("QVL_IMAGE_MEMORY"); place.empty() && set) place = set;
  if (place == "off") return {};
  return place.empty() ? default_cache_folder() : fs::path(place);
}

}  // namespace

std::optional<uint64_t> parse_size(std::string_view text) {
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc()) return std::nullopt;
  std::string_view unit = text.substr(static_cast<size_t>(end - text.data()));
  int shift = 0;
  if (!unit.empty()) {
    const size_t at = std::string_view("KMGT").find(unit.front());
    if (at == std::string_view::npos || unit.size() > 1) return std::nullopt;
    shift = 10 * static_cast<int>(at + 1);
  }
  if (value > (UINT64_MAX >> shift)) return std::nullopt;
  return value << shift;
}

// Relative paths in the variable are to be ignored (XDG Base Directory Specification).
fs::path default_cache_folder() {
  if (const char* cache = std::getenv("XDG_CACHE_HOME"); cache && *cache == '/') return fs::path(cache) / "qvl";
  if (const char* home = std::getenv("HOME"); home && *home == '/') return fs::path(home) / ".cache/qvl";
  return {};
}

void add_memory_options(CLI::App& app, MemoryChoice& choice) {
  app.add_option("--image-memory", choice.place,
                 "Folder that keeps what is computed of pictures for later runs, or off (default: QVL_IMAGE_MEMORY, "
                 "else ~/.cache/qvl)")
      ->check([](const std::string& text) {
        return text.empty() ? std::string("expected a folder or off, got an empty name") : std::string();
      })
      ->type_name("FOLDER|off")
      ->group("Images");
  app.add_option_function<std::string>(
         "--image-memory-size",
         [&choice](const std::string& text) { choice.max_bytes = *parse_size(text); },
         "Bound of that folder; the least recently used goes first (default 2G)")
      ->check([](const std::string& text) {
        const std::optional<uint64_t> bytes = parse_size(text);
        return bytes && *bytes >= kMinBytes
                   ? std::string()
                   : fmt::format("expected 1M or more, as bytes or with K, M, G or T, got {}", text);
      })
      ->type_name("SIZE")
      ->group("Images");
}

std::shared_ptr<generate::DiskMemory> open_disk_memory(const MemoryChoice& choice, const OpenModel& model) {
  const fs::path folder = memory_folder(choice);
  if (folder.empty()) {
    log_message(LogLevel::kInfo, "image memory: off");
    return nullptr;
  }
  log_message(LogLevel::kInfo, fmt::format("image memory: {}, up to {} MiB", folder.string(), choice.max_bytes >> 20));
  return std::make_shared<generate::DiskMemory>(std::make_shared<CacheFolder>(folder, choice.max_bytes),
                                                *model.engine, *model.assets);
}

bool memory_is_filled(const MemoryChoice& choice) {
  const fs::path folder = memory_folder(choice);
  std::error_code error;
  return !folder.empty() && fs::directory_iterator(folder, error) != fs::directory_iterator();
}

}  // namespace qvl::apps
