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
