# Third-party libraries, all from Debian 12 packages (scripts/lib/setup.sh names them). Each is linked by the
# one room that includes its headers.
find_package(PkgConfig REQUIRED)
find_package(nlohmann_json 3.11 REQUIRED)
find_package(fmt REQUIRED)
find_package(CLI11 REQUIRED)
pkg_check_modules(qvl_simdjson REQUIRED IMPORTED_TARGET simdjson)
pkg_check_modules(qvl_jpeg REQUIRED IMPORTED_TARGET libjpeg)
pkg_check_modules(qvl_png REQUIRED IMPORTED_TARGET libpng)
pkg_check_modules(qvl_webp REQUIRED IMPORTED_TARGET libwebp libwebpdemux)
find_package(GIF REQUIRED)
find_package(OpenSSL 3 REQUIRED COMPONENTS Crypto)
pkg_check_modules(qvl_xxhash REQUIRED IMPORTED_TARGET libxxhash>=0.8)  # XXH3
find_package(Boost 1.81 REQUIRED)  # headers alone: Asio and Beast
pkg_check_modules(qvl_curl REQUIRED IMPORTED_TARGET libcurl>=7.87)
pkg_check_modules(qvl_pangocairo REQUIRED IMPORTED_TARGET pangocairo cairo fontconfig)

# The classes of the ONNX schema (Debian libonnx-dev; its own CMake files name libraries that the package lacks).
find_library(QVL_ONNX_PROTO onnx_proto REQUIRED)
find_path(QVL_ONNX_INCLUDE onnx/onnx_pb.h REQUIRED)
pkg_check_modules(qvl_protobuf REQUIRED IMPORTED_TARGET protobuf)
add_library(qvl_onnx_schema INTERFACE)
target_include_directories(qvl_onnx_schema SYSTEM INTERFACE ${QVL_ONNX_INCLUDE})
target_compile_definitions(qvl_onnx_schema INTERFACE ONNX_NAMESPACE=onnx ONNX_ML=1)
target_link_libraries(qvl_onnx_schema INTERFACE ${QVL_ONNX_PROTO} PkgConfig::qvl_protobuf)

option(QVL_ONNXRUNTIME "Build the ONNX engine where the headers of ONNX Runtime are found" ON)
# ONNX Runtime: headers only; the library is opened at run time. scripts/lib/onnxruntime.sh fetches both into
# build/third_party. Without headers the room engine/ort is a stub that says so.
find_path(QVL_ONNXRUNTIME_INCLUDE onnxruntime_c_api.h
          HINTS ${CMAKE_SOURCE_DIR}/build/third_party/onnxruntime/include PATH_SUFFIXES onnxruntime onnxruntime/core/session
          DOC "Folder with onnxruntime_c_api.h")
set(QVL_ONNXRUNTIME_PREFIX ${CMAKE_SOURCE_DIR}/build/third_party/onnxruntime CACHE PATH
    "Where a development build looks for lib/libonnxruntime.so.1")
add_library(qvl_onnxruntime_headers INTERFACE)
if(QVL_ONNXRUNTIME AND QVL_ONNXRUNTIME_INCLUDE)
  target_include_directories(qvl_onnxruntime_headers SYSTEM INTERFACE ${QVL_ONNXRUNTIME_INCLUDE})
  set(QVL_HAVE_ONNXRUNTIME ON)
else()
  set(QVL_HAVE_ONNXRUNTIME OFF)
  if(QVL_ONNXRUNTIME)
    message(STATUS "ONNX Runtime headers not found: building without the ONNX engine (run scripts/lib/onnxruntime.sh)")
  endif()
endif()

option(QVL_GRAMMAR "Build the grammar engine where llguidance is found" ON)
# llguidance: a static library that scripts/lib/llguidance.sh builds with cargo into build/third_party. Without it the room
# grammar has a stub that says so.
set(QVL_LLGUIDANCE ${CMAKE_SOURCE_DIR}/build/third_party/llguidance CACHE PATH "Folder with lib/libqvl_llguidance.a and include/llguidance.h")
add_library(qvl_llguidance INTERFACE)
if(QVL_GRAMMAR AND EXISTS ${QVL_LLGUIDANCE}/lib/libqvl_llguidance.a AND EXISTS ${QVL_LLGUIDANCE}/include/llguidance.h)
  target_include_directories(qvl_llguidance SYSTEM INTERFACE ${QVL_LLGUIDANCE}/include)
  target_link_libraries(qvl_llguidance INTERFACE ${QVL_LLGUIDANCE}/lib/libqvl_llguidance.a Threads::Threads ${CMAKE_DL_LIBS} m)
  target_link_options(qvl_llguidance INTERFACE -Wl,--gc-sections)  # half of the engine is for callers other than ours
  set(QVL_HAVE_LLGUIDANCE ON)
else()
  set(QVL_HAVE_LLGUIDANCE OFF)
  if(QVL_GRAMMAR)
    message(STATUS "llguidance not found: building without constrained output (run scripts/lib/llguidance.sh)")
  endif()
endif()
