# Files built into a program as a table of paths, content types and bytes.
#
# Included: qvl_embed_page(target) adds the page of src/qvl/serve/page to a library, in the form that serve/page.h declares.
# With -P: writes the table. -DOUT=file.cc -DFOLDER=src/qvl/serve/page -DEXAMPLE=picture.png -DLIBRARIES=folder with
# marked.js and purify.js; where that folder lacks them the page is built without Markdown.

function(qvl_embed_page target)
  set(folder ${CMAKE_SOURCE_DIR}/src/qvl/serve/page)
  set(example ${CMAKE_SOURCE_DIR}/examples/shapes.png)
  set(out ${CMAKE_CURRENT_BINARY_DIR}/page_files.cc)
  set(QVL_PAGE_LIBRARIES ${CMAKE_SOURCE_DIR}/build/third_party/page CACHE PATH
      "Folder with marked.js and purify.js (scripts/lib/page.sh)")
  file(GLOB files CONFIGURE_DEPENDS ${folder}/*)
  file(GLOB libraries CONFIGURE_DEPENDS ${QVL_PAGE_LIBRARIES}/*.js)
  if(NOT libraries)
    message(STATUS "Markdown libraries of the page not found: it shows answers as plain text (run scripts/lib/page.sh)")
  endif()
  add_custom_command(
    OUTPUT ${out}
    COMMAND ${CMAKE_COMMAND} -DOUT=${out} -DFOLDER=${folder} -DEXAMPLE=${example} -DLIBRARIES=${QVL_PAGE_LIBRARIES}
            -P ${CMAKE_SOURCE_DIR}/cmake/embed.cmake
    DEPENDS ${files} ${libraries} ${example} ${CMAKE_SOURCE_DIR}/cmake/embed.cmake
    VERBATIM)
  target_sources(${target} PRIVATE ${out})
endfunction()

if(NOT CMAKE_SCRIPT_MODE_FILE)
  return()
endif()

cmake_policy(SET CMP0007 NEW)
set(type_html "text/html; charset=utf-8")
set(type_css "text/css; charset=utf-8")
set(type_js "text/javascript; charset=utf-8")
set(type_svg "image/svg+xml")
set(type_png "image/png")

set(entries "")
# embed(PATH FILE): bytes as escapes, so that no content can end the literal.
function(embed path file)
  get_filename_component(extension "${file}" LAST_EXT)
  string(SUBSTRING "${extension}" 1 -1 extension)
  if(NOT DEFINED type_${extension})
    message(FATAL_ERROR "embed: ${file}: no content type is known for .${extension}")
  endif()
  file(READ "${file}" hex HEX)
  string(LENGTH "${hex}" digits)
  math(EXPR bytes "${digits} / 2")
  string(REGEX REPLACE "(..)" "\\\\x\\1" escaped "${hex}")
  set(entries "${entries}    {\"${path}\", \"${type_${extension}}\", std::string_view(\"${escaped}\", ${bytes})},\n" PARENT_SCOPE)
endfunction()

set(with_libraries OFF)
if(EXISTS "${LIBRARIES}/marked.js" AND EXISTS "${LIBRARIES}/purify.js")
  set(with_libraries ON)
endif()

embed("/" "${FOLDER}/index.html")
file(GLOB files RELATIVE "${FOLDER}" "${FOLDER}/*")
list(APPEND files example.png)
list(SORT files)
foreach(name IN LISTS files)
  if(name STREQUAL "index.html")
    continue()
  elseif(name STREQUAL "example.png")
    embed("/page/${name}" "${EXAMPLE}")
  elseif(name STREQUAL "markdown_libraries.js" AND NOT with_libraries)
    file(WRITE "${OUT}.none.js" "export const libraries = null;\n")
    embed("/page/${name}" "${OUT}.none.js")
  else()
    embed("/page/${name}" "${FOLDER}/${name}")
  endif()
endforeach()
if(with_libraries)
  embed("/page/third_party/marked.js" "${LIBRARIES}/marked.js")
  embed("/page/third_party/purify.js" "${LIBRARIES}/purify.js")
endif()

file(WRITE "${OUT}" "// Written by cmake/embed.cmake.
#include \"qvl/serve/page.h\"

namespace qvl::serve {
namespace {

constexpr PageFile kFiles[] = {
${entries}};

}  // namespace

std::span<const PageFile> page_files() {
  return kFiles;
}

}  // namespace qvl::serve
")
