// Text formatting: {fmt} under one include, so that the dependency stays in this room.
#pragma once

#include <fmt/format.h>  // IWYU pragma: export
