// The picture that a request names, as bytes: data: URLs, http(s) URLs and files, each only as far as the
// operator allows. What the bytes are is the image room's business; nothing here looks at them.
#pragma once

#include <chrono>
#include <cstddef>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

struct sockaddr;

namespace qvl::serve {

struct MediaPolicy {
  size_t max_bytes = size_t{32} << 20;  // of one picture, decoded

  // http:// and https:// URLs. Ports 80 and 443; another one only when allowed_hosts names it
  // ("example.com:8443").
  bool urls = false;
  // "example.com", "*.example.com" (names below, not itself), "example.com:8443"; any case, without a dot at
  // the end. Empty: any host with a public address. Never an address that is not public, listed or not.
  std::vector<std::string> allowed_hosts;
  std::chrono::milliseconds connect_timeout{5'000};
  std::chrono::milliseconds timeout{20'000};  // all of it, redirects too
  int max_redirects = 3;

  // file:// URLs and plain paths, relative to this folder or absolute inside it, symbolic links followed as
  // long as they end inside. Not set: none.
  std::optional<std::filesystem::path> file_root;

  // Whether a connection to this address may be made; empty: is_public_address(). No option of the command
  // line sets it: it is there for tests, whose servers are on the loopback address.
  std::function<bool(const sockaddr*)> address_allowed;
};

// Asked at least ten times a second while something is fetched; true stops it. May be empty.
using Cancelled = std::function<bool()>;

// The bytes of the picture `url` names. `param` is where the request has it
// ("messages[0].content[1].image_url.url") and becomes the [where] of every error:
//   kInvalidArgument  not allowed by the policy, malformed, or (files) not there: a path outside file_root, a
//                     missing file and an unreadable one get the same words, so that nothing is learnt about
//                     other folders
//   kFormat           base64 that is none, an answer cut short
//   kLimit            larger than max_bytes, slower than timeout, more redirects than max_redirects
//   kIo               the other server cannot be reached or refuses (its status is named)
//   kCancelled        cancelled() said so
// All are HttpError with `param`, status 400 (413 for what is too large) and a code: "invalid_image_url",
// "invalid_base64_image", "image_url_not_allowed", "failed_to_download_image", "image_too_large".
// Size is checked before base64 is decoded, before a file is read, and while a download runs. Thread-safe.
std::string load_media(std::string_view url, const MediaPolicy& policy, std::string_view param,
                       const Cancelled& cancelled = {});

// Throws kInvalidArgument for what an operator cannot mean: an allowed host that is no name or address, a
// file_root that is no folder, limits of nothing. To be called once at the start.
void check_policy(const MediaPolicy& policy);

}  // namespace qvl::serve
