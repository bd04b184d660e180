// Fetches an http(s) URL that a stranger chose, without letting him reach anything that is not public: every
// hop is checked by name against the allow-list and, when the socket is made, by the very address that is
// connected to, so that it does not matter what a name resolved to before. libcurl stands behind fetch.cc
// alone.
#pragma once

#include <string>
#include <string_view>

#include "qvl/serve/media.h"

namespace qvl::serve {

// True for an IPv4 or IPv6 address on the public internet: not private, loopback, link-local, shared
// (100.64/10), multicast, reserved, unspecified, for documentation or benchmarks, and no IPv6 form that
// carries such an IPv4 one (mapped, compatible, NAT64, 6to4, Teredo). False for every other family.
bool is_public_address(const sockaddr* address);

// The body of `url` under `policy` (policy.urls is not looked at). Errors as load_media().
std::string fetch_url(std::string_view url, const MediaPolicy& policy, std::string_view param,
                      const Cancelled& cancelled);

// Whether `host` (as in a URL: lower case, no dot at the end, IPv6 in brackets) with `port` is one of
// policy.allowed_hosts, or the list is empty and the port 80 or 443.
bool host_allowed(const MediaPolicy& policy, std::string_view host, int port);

}  // namespace qvl::serve
