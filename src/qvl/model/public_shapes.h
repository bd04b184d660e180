// The released dense sizes (spec 1.1) as configurations, and the files that are published beside their
// weights. Used by `qvl synth`, `qvl bench --shape` and tests. "tiny" is a small model with every feature of
// the large ones, for tests.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "qvl/model/config.h"

namespace qvl::model {

// "tiny", "2b", "4b", "8b", "32b".
std::span<const std::string_view> public_shape_names();

// `name` in either case; throws kInvalidArgument listing the names.
ModelConfig public_config(std::string_view name);

// File contents in the published spelling (rotary keys of the older form).
std::string public_config_json(std::string_view name);
std::string public_generation_config_json(std::string_view name);
std::string public_preprocessor_config_json();
std::string public_video_preprocessor_config_json();

}  // namespace qvl::model
