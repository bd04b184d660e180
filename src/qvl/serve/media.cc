#include "qvl/serve/media.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cctype>

#include "qvl/base/error.h"
#include "qvl/base/file_descriptor.h"
#include "qvl/base/format.h"
#include "qvl/serve/fetch.h"
#include "qvl/serve/http_message.h"
#include "qvl/serve/media_error.h"

namespace qvl::serve {

namespace fs = std::filesystem;

namespace {

// 0..63, or one of these.
enum : signed char { kBad = -1, kBlank = -2, kPad = -3 };

constexpr std::array<signed char, 256> make_base64_table() {
  std::array<signed char, 256> table{};
  for (auto& entry : table) entry = kBad;
  constexpr std::string_view kDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  for (size_t i = 0; i < kDigits.size(); ++i) {
    table[static_cast<unsigned char>(kDigits[i])] = static_cast<signed char>(i);
  }
  for (const char c : {' ', '\t', '\r', '\n', '\f'}) table[static_cast<unsigned char>(c)] = kBlank;
  table['='] = kPad;
  return table;
}

constexpr std::array<signed char, 256> kBase64 = make_base64_table();

[[noreturn]] void fail_base64(std::string_view param, const std::string& what) {
  fail_media(ErrorCode::kFormat, param, MediaFault::kBase64, cat("base64 of the data: URL: ", what));
}

// RFC 4648, with blanks anywhere and with or without the '=' at the end.
std::string decode_base64(std::string_view text, size_t max_bytes, std::string_view param) {
  size_t digits = 0, pads = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const signed char value = kBase64[static_cast<unsigned char>(text[i])];
    if (value == kBad) {
      const auto c = static_cast<unsigned char>(text[i]);
      const std::string shown =
          c > 0x20 && c < 0x7f ? cat("'", text[i], "'") : fmt::format("byte 0x{:02x}", c);
      fail_base64(param, cat("expected A-Z a-z 0-9 + / =, got ", shown, " at ", i));
    }
    if (value == kPad) ++pads;
    if (value >= 0 && pads > 0) fail_base64(param, cat("something follows the '=' before ", i));
    if (value >= 0) ++digits;
  }
  if (digits % 4 == 1)
    fail_base64(param, cat(digits, " digits make no whole number of bytes (is it cut short?)"));
  if (pads > 2 || (pads > 0 && (digits + pads) % 4 != 0)) {
    fail_base64(param, cat(pads, " '=' after ", digits, " digits (is it cut short?)"));
  }
  const size_t bytes = digits / 4 * 3 + (digits % 4 > 1 ? digits % 4 - 1 : 0);
  if (bytes > max_bytes) fail_too_large(param, bytes, max_bytes);
  std::string out;
  out.reserve(bytes);
  uint32_t group = 0;
  int bits = 0;
  for (const char c : text) {
    const signed char value = kBase64[static_cast<unsigned char>(c)];
    if (value < 0) continue;
    group = (group << 6 | static_cast<uint32_t>(value)) & 0xffffff;
    bits += 6;
    if (bits >= 8) {
      bits -= 8;
      out += static_cast<char>(group >> bits & 0xff);
    }
  }
  return out;
}

// RFC 2397: data:[<media type>][;name=value]*[;base64],<data>. `url` begins after "data:".
std::string load_data_url(std::string_view url, const MediaPolicy& policy, std::string_view param) {
  // A media type is short; a comma that comes later is part of something else.
  const size_t comma = url.substr(0, 1024).find(',');
  if (comma == std::string_view::npos) {
    fail_media(ErrorCode::kInvalidArgument, param, MediaFault::kInvalid,
               "data: URL has no comma: expected data:image/png;base64,...");
  }
  const std::string_view head = url.substr(0, comma);
  std::string_view data = url.substr(comma + 1);
  const std::string type = lower_case(trimmed(head.substr(0, head.find(';'))));
  if (!type.empty() && !type.starts_with("image/") && type != "application/octet-stream") {
    fail_media(ErrorCode::kInvalidArgument, param, MediaFault::kInvalid,
               cat("data: URL: expected an image media type, got ", shortened(type)));
  }
  const size_t last = head.rfind(';');
  const bool base64 =
      last != std::string_view::npos && equal_ignoring_case(trimmed(head.substr(last + 1)), "base64");
  // The shortest that it can become, so that a giant is refused before it is copied.
  const size_t escaped = std::ranges::count(data, '%');
  const size_t least = data.size() - std::min(data.size(), 2 * escaped);
  if (!base64 && least > policy.max_bytes) fail_too_large(param, least, policy.max_bytes);
  std::string plain;
  if (escaped > 0) {
    // Blanks make base64 longer than its bytes; four times is more than any sender adds.
    if (least / 4 > policy.max_bytes) fail_too_large(param, least / 4, policy.max_bytes);
    std::optional<std::string> decoded = percent_decode(data);
    if (!decoded) {
      fail_media(ErrorCode::kFormat, param, MediaFault::kInvalid,
                 "data: URL: a '%' is not followed by two hexadecimal digits");
    }
    plain = std::move(*decoded);
    data = plain;
  }
  std::string bytes = base64 ? decode_base64(data, policy.max_bytes, param) : std::string(data);
  if (bytes.empty())
    fail_media(ErrorCode::kInvalidArgument, param, MediaFault::kInvalid, "data: URL is empty");
  return bytes;
}

// The same words for whatever is wrong, so that nothing is learnt about files outside.
[[noreturn]] void fail_file(std::string_view param) {
  fail_media(ErrorCode::kInvalidArgument, param, MediaFault::kInvalid,
             "file: expected a readable picture file in the folder this server allows");
}

bool is_below(const fs::path& path, const fs::path& folder) {
  const auto [in_folder, in_path] = std::mismatch(folder.begin(), folder.end(), path.begin(), path.end());
  return in_folder == folder.end() && in_path != path.end();
}

fs::path without_slash_at_end(fs::path path) {
  return path.has_filename() ? path : path.parent_path();
}

// What the descriptor stands for now, symbolic links and renames done.
fs::path path_of(const FileDescriptor& fd) {
  std::error_code error;
  return fs::read_symlink(cat("/proc/self/fd/", fd.get()), error);
}

std::string load_file(std::string_view name, const MediaPolicy& policy, std::string_view param) {
  if (!policy.file_root) {
    fail_media(ErrorCode::kInvalidArgument, param, MediaFault::kNotAllowed,
               "file paths are not allowed on this server (send a data: URL)");
  }
  if (name.empty() || name.size() > 4096 || name.find('\0') != std::string_view::npos) fail_file(param);
  std::error_code error;
  const fs::path given_root = without_slash_at_end(fs::absolute(*policy.file_root, error).lexically_normal());
  const fs::path root = fs::canonical(given_root, error);
  if (error) fail_file(param);
  const fs::path asked(name);
  const fs::path lexical = (asked.is_absolute() ? asked : given_root / asked).lexically_normal();
  // First by name alone, so that nothing outside is even looked at.
  if (!is_below(lexical, given_root) && !is_below(lexical, root)) fail_file(param);
  // O_PATH opens nothing: no device is disturbed and no pipe waited for before it is known where the path
  // ended.
  const FileDescriptor place(::open(lexical.c_str(), O_PATH | O_CLOEXEC));
  if (!place.valid()) fail_file(param);
  struct stat info{};
  const fs::path real = path_of(place);
  if (real.empty() || !is_below(real, root) || ::fstat(place.get(), &info) != 0 || !S_ISREG(info.st_mode)) {
    fail_file(param);
  }
  const FileDescriptor file(::open(cat("/proc/self/fd/", place.get()).c_str(), O_RDONLY | O_CLOEXEC));
  if (!file.valid()) fail_file(param);
  const auto size = static_cast<size_t>(info.st_size);
  if (size > policy.max_bytes) fail_too_large(param, size, policy.max_bytes);
  std::string bytes;
  std::array<char, size_t{64} << 10> piece;
  for (;;) {
    const ssize_t n = ::read(file.get(), piece.data(), piece.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail_file(param);
    if (n == 0) return bytes;
    bytes.append(piece.data(), static_cast<size_t>(n));
    if (bytes.size() > policy.max_bytes) fail_too_large(param, bytes.size(), policy.max_bytes);  // it grew
  }
}

// file:///path, file://localhost/path, file:/path; `rest` begins after "file:".
std::string load_file_url(std::string_view rest, const MediaPolicy& policy, std::string_view param) {
  if (!policy.file_root) load_file({}, policy, param);
  if (rest.starts_with("//")) {
    const size_t slash = rest.find('/', 2);
    if (slash == std::string_view::npos) fail_file(param);
    const std::string_view host = rest.substr(2, slash - 2);
    if (!host.empty() && !equal_ignoring_case(host, "localhost")) {
      fail_media(ErrorCode::kInvalidArgument, param, MediaFault::kInvalid, "file: URL of another machine");
    }
    rest = rest.substr(slash);
  }
  const std::optional<std::string> path = percent_decode(rest.substr(0, rest.find_first_of("?#")));
  if (!path || !path->starts_with('/')) fail_file(param);
  return load_file(*path, policy, param);
}

// "http" of "http://...", in lower case; nothing for a path.
std::string scheme_of(std::string_view url) {
  const size_t colon = url.substr(0, 32).find(':');
  if (colon == std::string_view::npos || colon == 0 || !std::isalpha(static_cast<unsigned char>(url[0])))
    return {};
  const std::string_view scheme = url.substr(0, colon);
  const bool plain = std::ranges::all_of(
      scheme, [](unsigned char c) { return std::isalnum(c) || c == '+' || c == '-' || c == '.'; });
  return plain ? lower_case(scheme) : std::string();
}

}  // namespace

std::string load_media(std::string_view url, const MediaPolicy& policy, std::string_view param,
                       const Cancelled& cancelled) {
  if (url.empty()) fail_media(ErrorCode::kInvalidArgument, param, MediaFault::kInvalid, "the URL is empty");
  const std::string scheme = scheme_of(url);
  if (scheme.empty()) return load_file(url, policy, param);
  const std::string_view rest = url.substr(scheme.size() + 1);
  if (scheme == "data") return load_data_url(rest, policy, param);
  if (scheme == "file") return load_file_url(rest, policy, param);
  if (scheme != "http" && scheme != "https") {
    fail_media(ErrorCode::kInvalidArgument, param, MediaFault::kInvalid,
               cat("expected a data:, http:, https: or file: URL or a path, got ", scheme, ":"));
  }
  if (!policy.urls) {
    fail_media(ErrorCode::kInvalidArgument, param, MediaFault::kNotAllowed,
               "http(s) URLs are not allowed on this server (send a data: URL)");
  }
  return fetch_url(url, policy, param, cancelled);
}

void check_policy(const MediaPolicy& policy) {
  const auto check = [](bool good, std::string_view what) {
    if (!good) fail(ErrorCode::kInvalidArgument, "media", what);
  };
  check(policy.max_bytes > 0, "max_bytes: expected more than 0");
  check(policy.timeout.count() > 0 && policy.connect_timeout.count() > 0, "timeouts: expected more than 0");
  check(policy.max_redirects >= 0, "max_redirects: expected 0 or more");
  for (const std::string& host : policy.allowed_hosts) {
    std::string_view name = host;
    if (name.starts_with("*.")) name.remove_prefix(2);
    check(host_name(name).has_value(),
          cat("allowed host: expected NAME, *.NAME or NAME:PORT, got ", shortened(host)));
  }
  if (policy.file_root) {
    std::error_code error;
    check(fs::is_directory(*policy.file_root, error),
          cat("folder for pictures: expected a folder, got ", policy.file_root->string()));
  }
}

}  // namespace qvl::serve
