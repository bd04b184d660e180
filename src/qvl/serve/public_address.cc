// Which addresses are on the public internet: IANA's special-purpose registries (RFC 6890 and what was added
// since).
#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>

#include "qvl/serve/fetch.h"

namespace qvl::serve {

namespace {

struct Block {
  uint32_t address;
  int bits;
};

constexpr uint32_t ipv4(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  return a << 24 | b << 16 | c << 8 | d;
}

constexpr Block kNotPublic[] = {
    {ipv4(0, 0, 0, 0), 8},         // this network
    {ipv4(10, 0, 0, 0), 8},        // private
    {ipv4(100, 64, 0, 0), 10},     // shared by carriers; metadata of some clouds
    {ipv4(127, 0, 0, 0), 8},       // loopback
    {ipv4(168, 63, 129, 16), 32},  // the host of Azure's virtual machines
    {ipv4(169, 254, 0, 0), 16},    // link-local; metadata of most clouds
    {ipv4(172, 16, 0, 0), 12},     // private
    {ipv4(192, 0, 0, 0), 24},      // protocol assignments; metadata of Oracle's cloud
    {ipv4(192, 0, 2, 0), 24},      // documentation
    {ipv4(192, 31, 196, 0), 24},   // AS112
    {ipv4(192, 52, 193, 0), 24},   // AMT
    {ipv4(192, 88, 99, 0), 24},    // 6to4 relays
    {ipv4(192, 168, 0, 0), 16},    // private
    {ipv4(192, 175, 48, 0), 24},   // AS112
    {ipv4(198, 18, 0, 0), 15},     // benchmarks
    {ipv4(198, 51, 100, 0), 24},   // documentation
    {ipv4(203, 0, 113, 0), 24},    // documentation
    {ipv4(224, 0, 0, 0), 3},       // multicast, reserved, broadcast
};

bool is_public_ipv4(uint32_t address) {
  return std::ranges::none_of(kNotPublic, [&](const Block& block) {
    const uint32_t mask = ~uint32_t{0} << (32 - block.bits);
    return (address & mask) == block.address;
  });
}

using Ipv6 = std::array<uint8_t, 16>;

bool begins_with(const Ipv6& address, std::initializer_list<uint8_t> prefix) {
  return std::equal(prefix.begin(), prefix.end(), address.begin());
}

uint32_t last_four(const Ipv6& a) {
  return ipv4(a[12], a[13], a[14], a[15]);
}

bool is_public_ipv6(const Ipv6& a) {
  const bool mapped = begins_with(a, {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff});
  const bool nat64 = begins_with(a, {0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0});
  if (mapped || nat64) return is_public_ipv4(last_four(a));
  if ((a[0] & 0xe0) != 0x20) return false;  // 2000::/3 is all that is given out
  if (begins_with(a, {0x20, 0x01}) && (a[2] & 0xfe) == 0)
    return false;                                              // 2001::/23: Teredo, benchmarks, ORCHID
  if (begins_with(a, {0x20, 0x01, 0x0d, 0xb8})) return false;  // documentation
  if (begins_with(a, {0x20, 0x02})) return false;              // 6to4
  if (begins_with(a, {0x26, 0x20, 0x00, 0x4f, 0x80, 0x00})) return false;  // AS112
  return !(begins_with(a, {0x3f, 0xff}) && (a[2] & 0xf0) == 0);            // documentation
}

}  // namespace

bool is_public_address(const sockaddr* address) {
  if (address->sa_family == AF_INET) {
    sockaddr_in in{};
    std::memcpy(&in, address, sizeof in);
    return is_public_ipv4(ntohl(in.sin_addr.s_addr));
  }
  if (address->sa_family == AF_INET6) {
    sockaddr_in6 in{};
    std::memcpy(&in, address, sizeof in);
    Ipv6 bytes;
    std::memcpy(bytes.data(), &in.sin6_addr, bytes.size());
    return is_public_ipv6(bytes);
  }
  return false;
}

}  // namespace qvl::serve
