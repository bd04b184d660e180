// Unicode Normalization Form C as the reference computes it (spec 7.1 step 2).
#pragma once

#include <string>
#include <string_view>

namespace qvl::text {

// `utf8` must be valid UTF-8. Returns it unchanged, without a copy, if nothing has to change; otherwise the
// result is built in `buffer` (cleared first) and the view points there.
std::string_view normalize_nfc(std::string_view utf8, std::string& buffer);

}  // namespace qvl::text
