// SHA-256 (FIPS 180-4) by OpenSSL's libcrypto, which uses the processor's SHA instructions: hashes of package
// files, names of pictures' contents.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace qvl {

class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(Sha256&&) noexcept;
  Sha256& operator=(Sha256&&) noexcept;

  void add(std::span<const std::byte> bytes);
  void add(std::string_view text);
  // 64 lower-case hexadecimal digits; throws kInvalidArgument when called a second time.
  std::string finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

std::string sha256_hex(std::string_view text);

}  // namespace qvl
