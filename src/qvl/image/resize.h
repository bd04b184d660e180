// Antialiased bicubic resize of 8-bit RGB, byte for byte what torchvision does on the CPU: fixed-point taps,
// width first, then height, each pass rounded to 8 bits. Between decoding and patches. Spec 3.3.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "qvl/base/thread_pool.h"

namespace qvl::image {

// Instruction sets of the inner loop. All give the same bytes.
enum class ResizeIsa : uint8_t { kScalar, kSse2, kAvx2, kAvx512 };
std::string_view resize_isa_name(ResizeIsa isa);
// Those this processor can run, slowest first.
std::span<const ResizeIsa> available_resize_isas();

// The taps that make `out_size` samples of `in_size` ones along one axis.
struct ResizeTaps {
  int precision_bits = 0;       // taps are scaled by 2^precision_bits
  int64_t stride = 0;           // int16 values from one output's taps to the next one's
  std::vector<int32_t> first;   // [out_size] index of the first input sample
  std::vector<int32_t> count;   // [out_size] number of taps
  std::vector<int16_t> weight;  // [out_size, stride], unused ones zero
};
ResizeTaps make_resize_taps(int64_t in_size, int64_t out_size);

// src is [height, width, 3]; returns [out_height, out_width, 3]. An axis of equal size is left alone. `pool`
// may be null (everything on the calling thread). Throws kInvalidArgument for sides below 1 or a span of
// another size.
std::vector<uint8_t> resize_bicubic_u8(std::span<const uint8_t> src, int64_t height, int64_t width,
                                       int64_t out_height, int64_t out_width, ThreadPool* pool);
// The same with the inner loop forced; throws kUnsupported if this processor cannot run it.
std::vector<uint8_t> resize_bicubic_u8(std::span<const uint8_t> src, int64_t height, int64_t width,
                                       int64_t out_height, int64_t out_width, ThreadPool* pool,
                                       ResizeIsa isa);

}  // namespace qvl::image
