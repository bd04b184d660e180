# cmake -DIN=file -DOUT=file.cc -DNAME=ns::symbol -P embed_text.cmake: a text file as a std::string_view of the program.
file(READ "${IN}" text)
string(REGEX MATCH "^(.*)::([^:]+)$" parts "${NAME}")
set(space "${CMAKE_MATCH_1}")
set(symbol "${CMAKE_MATCH_2}")
string(FIND "${text}" ")qvl_text\"" inside)
if(NOT parts OR NOT inside EQUAL -1)
  message(FATAL_ERROR "embed_text: bad NAME ${NAME}, or ${IN} holds the delimiter")
endif()
file(WRITE "${OUT}" "#include <string_view>
namespace ${space} {
extern const std::string_view ${symbol};
const std::string_view ${symbol} = R\"qvl_text(${text})qvl_text\";
}
")
