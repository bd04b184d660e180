#include "qvl/text/python_json.h"

#include <charconv>
#include <cmath>
#include <string_view>

namespace qvl::text {
namespace {

void append_string(std::string_view s, std::string& out) {
  constexpr char kHex[] = "0123456789abcdef";
  out.push_back('"');
  for (const char c : s) {
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\b':
        out += "\\b";
        break;
      case '\f':
        out += "\\f";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      default:
        if (static_cast<unsigned char>(c) < 0x20) {
          out += "\\u00";
          out.push_back(kHex[c >> 4]);
          out.push_back(kHex[c & 15]);
        } else {
          out.push_back(c);
        }
    }
  }
  out.push_back('"');
}

// Python's repr: shortest digits that read back, fixed notation for exponents -4 to 15, else d.ddde+XX.
void append_float(double v, std::string& out) {
  if (!std::isfinite(v)) {
    out += std::isnan(v) ? "NaN" : v < 0 ? "-Infinity" : "Infinity";
    return;
  }
  char buffer[64];
  const auto scientific = std::to_chars(buffer, buffer + sizeof buffer, v, std::chars_format::scientific);
  const std::string_view text(buffer, scientific.ptr - buffer);
  const size_t e = text.find('e');
  int exponent = 0;
  const char* digits = text.data() + e + (text[e + 1] == '+' ? 2 : 1);
  std::from_chars(digits, text.data() + text.size(), exponent);
  if (exponent < -4 || exponent >= 16) {
    out.append(text);
    return;
  }
  const auto fixed = std::to_chars(buffer, buffer + sizeof buffer, v, std::chars_format::fixed);
  const std::string_view plain(buffer, fixed.ptr - buffer);
  out.append(plain);
  if (plain.find('.') == std::string_view::npos) out += ".0";
}

void append(const Json& value, std::string& out) {
  switch (value.type()) {
    case Json::value_t::object: {
      out.push_back('{');
      bool first = true;
      for (const auto& [key, member] : value.items()) {
        if (!first) out += ", ";
        first = false;
        append_string(key, out);
        out += ": ";
        append(member, out);
      }
      out.push_back('}');
      break;
    }
    case Json::value_t::array: {
      out.push_back('[');
      bool first = true;
      for (const Json& item : value) {
        if (!first) out += ", ";
        first = false;
        append(item, out);
      }
      out.push_back(']');
      break;
    }
    case Json::value_t::string:
      append_string(value.get_ref<const std::string&>(), out);
      break;
    case Json::value_t::number_float:
      append_float(value.get<double>(), out);
      break;
    default:
      out += value.dump();
      break;  // null, booleans and integers look the same everywhere
  }
}

}  // namespace

std::string dump_python_json(const Json& value) {
  std::string out;
  append(value, out);
  return out;
}

}  // namespace qvl::text
