// A small tokenizer.json for this room's tests: 256 bytes, a few merges, the 26 added tokens of Qwen3-VL.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "qvl/base/json.h"
#include "qvl/text/pretokenizer.h"
#include "qvl/text/unicode.h"

namespace qvl::text::testing_support {

inline const std::vector<std::pair<std::string, bool>>& added_tokens() {
  static const std::vector<std::pair<std::string, bool>> tokens = {
      {"<|endoftext|>", true},      {"<|im_start|>", true},
      {"<|im_end|>", true},         {"<|object_ref_start|>", true},
      {"<|object_ref_end|>", true}, {"<|box_start|>", true},
      {"<|box_end|>", true},        {"<|quad_start|>", true},
      {"<|quad_end|>", true},       {"<|vision_start|>", true},
      {"<|vision_end|>", true},     {"<|vision_pad|>", true},
      {"<|image_pad|>", true},      {"<|video_pad|>", true},
      {"<tool_call>", false},       {"</tool_call>", false},
      {"<|fim_prefix|>", false},    {"<|fim_middle|>", false},
      {"<|fim_suffix|>", false},    {"<|fim_pad|>", false},
      {"<|repo_name|>", false},     {"<|file_sep|>", false},
      {"<tool_response>", false},   {"</tool_response>", false},
      {"<think>", false},           {"</think>", false}};
  return tokens;
}

// The printable form of raw bytes in tokenizer.json.
inline std::string stand_ins(std::string_view bytes) {
  std::string out;
  for (const char c : bytes) {
    const auto b = static_cast<unsigned char>(c);
    char32_t next = 0x100, code_point = b;
    for (int k = 0; k <= b; ++k) {
      const bool printable = (k >= 33 && k <= 126) || (k >= 161 && k <= 172) || k >= 174;
      if (k == b) code_point = printable ? static_cast<char32_t>(b) : next;
      if (!printable) ++next;
    }
    append_utf8(code_point, out);
  }
  return out;
}

// `merges` are raw bytes, in order of rank; the ids of their results follow those of the bytes (id = byte).
inline Json tokenizer_json(const std::vector<std::pair<std::string, std::string>>& merges,
                           bool merges_as_strings = false) {
  Json vocab = Json::object(), merge_list = Json::array(), added = Json::array();
  int id = 0;
  for (; id < 256; ++id) vocab[stand_ins(std::string(1, static_cast<char>(id)))] = id;
  for (const auto& [a, b] : merges) {
    const std::string joined = stand_ins(a + b);
    if (!vocab.contains(joined)) vocab[joined] = id++;
    if (merges_as_strings) {
      merge_list.push_back(stand_ins(a) + " " + stand_ins(b));
    } else {
      merge_list.push_back(Json::array({stand_ins(a), stand_ins(b)}));
    }
  }
  for (const auto& [content, special] : added_tokens()) {
    added.push_back({{"id", id++},
                     {"content", content},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", special}});
  }
  const Json byte_level = {
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", false}, {"use_regex", false}};
  Json split = {{"type", "Split"},
                {"pattern", {{"Regex", std::string(kPieceRegex)}}},
                {"behavior", "Isolated"},
                {"invert", false}};
  return {{"version", "1.0"},
          {"truncation", nullptr},
          {"padding", nullptr},
          {"added_tokens", added},
          {"normalizer", {{"type", "NFC"}}},
          {"pre_tokenizer", {{"type", "Sequence"}, {"pretokenizers", Json::array({split, byte_level})}}},
          {"post_processor", byte_level},
          {"decoder", byte_level},
          {"model",
           {{"type", "BPE"},
            {"dropout", nullptr},
            {"unk_token", nullptr},
            {"continuing_subword_prefix", ""},
            {"end_of_word_suffix", ""},
            {"fuse_unk", false},
            {"byte_fallback", false},
            {"ignore_merges", false},
            {"vocab", vocab},
            {"merges", merge_list}}}};
}

}  // namespace qvl::text::testing_support
