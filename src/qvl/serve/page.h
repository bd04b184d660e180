// The page at "/": its files, built into the program from serve/page/ (cmake/embed.cmake), and the headers they are served
// with. Nothing in them names another host, and the security policy would not let it through.
#pragma once

#include <array>
#include <span>
#include <string_view>

namespace qvl::serve {

struct PageFile {
  std::string_view path;          // of the URL: "/" or "/page/app.js"
  std::string_view content_type;  // "text/javascript; charset=utf-8"
  std::string_view bytes;
};

// In the order of their paths; the views live as long as the program.
std::span<const PageFile> page_files();

// Scripts, styles and requests of this origin alone; pictures also from the page itself (files of the person, which are
// blobs, and drawn copies). Strings never become markup or code, except what DOMPurify has made of an answer.
inline constexpr std::string_view kPageSecurityPolicy =
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types dompurify";

struct PageHeader {
  std::string_view name;
  std::string_view value;
};
// For every file of the page.
inline constexpr std::array<PageHeader, 5> kPageHeaders{{
    {"Content-Security-Policy", kPageSecurityPolicy},
    {"Cross-Origin-Opener-Policy", "same-origin"},
    {"Permissions-Policy", "camera=(self), microphone=(), geolocation=()"},
    {"Referrer-Policy", "no-referrer"},
    {"X-Content-Type-Options", "nosniff"},
}};

}  // namespace qvl::serve
