// The "messages" of a chat request: roles, content parts, calls of tools and their results (openai_request.h).
#pragma once

#include <string>
#include <vector>

#include "qvl/base/json.h"
#include "qvl/serve/openai_types.h"

namespace qvl::serve {

struct Conversation {
  std::vector<text::Message> messages;
  std::vector<MediaRef> media;
};

// `pixels`: of the request, for parts that say nothing themselves. Throws ApiError.
Conversation parse_messages(const Json& messages, const std::string& path, const ServerFacts& facts,
                            const image::PixelOverrides& pixels);

class FieldReader;
// "min_pixels" and "max_pixels" of an object that has them. Throws ApiError.
image::PixelOverrides parse_pixels(const FieldReader& fields, const ServerFacts& facts);

}  // namespace qvl::serve
