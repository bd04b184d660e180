# A room is one folder below src/qvl and one static library. Its sources are all *.cc of the folder except
# *_test.cc, which become one test program, <room>_test. Which room may include which is checked by
# tests/arch_test.cc; the libraries named here must agree with that table.
#
# With QVL_UNITY a room's sources are compiled several at once. ALONE names those that are not: they give a name of another
# file's unnamed namespace a second meaning. Files for one instruction set set it for all that follows, and are never together.
#
#   qvl_room(text DEPS base THIRD_PARTY PkgConfig::qvl_simdjson [TEST_DEPS ...] [LABEL unit] [EXCLUDE regex] [ALONE x_test.cc ...])
function(qvl_room path)
  cmake_parse_arguments(ROOM "" "LABEL;EXCLUDE" "DEPS;THIRD_PARTY;TEST_DEPS;ALONE" ${ARGN})
  string(REPLACE "/" "_" name ${path})
  file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/src/qvl/${path}/*.cc)
  if(ROOM_EXCLUDE)
    list(FILTER sources EXCLUDE REGEX ${ROOM_EXCLUDE})
  endif()
  list(TRANSFORM ROOM_ALONE PREPEND ${CMAKE_SOURCE_DIR}/src/qvl/${path}/)
  set_source_files_properties(${ROOM_ALONE} PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
  set(tests ${sources})
  list(FILTER sources EXCLUDE REGEX "_test\\.cc$")
  list(FILTER tests INCLUDE REGEX "_test\\.cc$")
  if(sources)
    add_library(qvl_${name} STATIC ${sources})
    qvl_unity(qvl_${name})
    target_include_directories(qvl_${name} PUBLIC ${CMAKE_SOURCE_DIR}/src)
    foreach(dep ${ROOM_DEPS})
      string(REPLACE "/" "_" dep_name ${dep})
      target_link_libraries(qvl_${name} PUBLIC qvl_${dep_name})
    endforeach()
    # JSON types stand in public headers of base; every other third-party header stays inside its room.
    if(path STREQUAL "base")
      target_link_libraries(qvl_${name} PUBLIC ${ROOM_THIRD_PARTY})
    else()
      target_link_libraries(qvl_${name} PRIVATE ${ROOM_THIRD_PARTY})
    endif()
  endif()
  if(QVL_BUILD_TESTS AND tests)
    if(NOT ROOM_LABEL)
      set(ROOM_LABEL unit)
    endif()
    set(deps qvl_${name})
    foreach(dep ${ROOM_TEST_DEPS})
      string(REPLACE "/" "_" dep_name ${dep})
      list(APPEND deps qvl_${dep_name})
    endforeach()
    qvl_test(${name}_test SOURCES ${tests} DEPS ${deps} ${ROOM_THIRD_PARTY} LABEL ${ROOM_LABEL})
  endif()
endfunction()

# qvl_unity(target): compiles its sources together if QVL_UNITY says so.
function(qvl_unity target)
  if(QVL_UNITY AND NOT target MATCHES "^(qvl_kernels|kernels_test)$")
    get_target_property(sources ${target} SOURCES)
    list(FILTER sources INCLUDE REGEX "_(avx2|avx512[a-z0-9]*)\\.cc$")
    set_source_files_properties(${sources} PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
    set_target_properties(${target} PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 6)
    # A type of one source with a member of its unnamed namespace looks as if it came from a header.
    target_compile_options(${target} PRIVATE -Wno-subobject-linkage)
  endif()
endfunction()

# qvl_test(name SOURCES ... DEPS ... LABEL unit|kernel|golden|parity|cli|http|arch|onnx [TIMEOUT s] [WHOLE])
# WHOLE: one entry of ctest for the whole program, where its tests share what is costly to make.
function(qvl_test name)
  cmake_parse_arguments(TEST "WHOLE" "LABEL;TIMEOUT" "SOURCES;DEPS" ${ARGN})
  if(NOT TEST_TIMEOUT)
    set(TEST_TIMEOUT 300)
  endif()
  add_executable(${name} ${TEST_SOURCES})
  qvl_unity(${name})
  target_link_libraries(${name} PRIVATE ${TEST_DEPS} GTest::gtest GTest::gtest_main)
  # A third of the time to compile them; what they test is compiled as it ships.
  target_compile_options(${name} PRIVATE $<$<CONFIG:Release>:-O1>)
  target_compile_definitions(${name} PRIVATE QVL_SOURCE_DIR="${CMAKE_SOURCE_DIR}" QVL_BINARY_DIR="${CMAKE_BINARY_DIR}")
  if(TEST_WHOLE)
    add_test(NAME ${name} COMMAND ${name} WORKING_DIRECTORY ${CMAKE_SOURCE_DIR})
    set_tests_properties(${name} PROPERTIES LABELS ${TEST_LABEL} TIMEOUT ${TEST_TIMEOUT}
                         SKIP_REGULAR_EXPRESSION "SKIPPED WITHOUT ONNX RUNTIME")
    return()
  endif()
  gtest_discover_tests(${name} DISCOVERY_MODE PRE_TEST PROPERTIES LABELS ${TEST_LABEL} TIMEOUT ${TEST_TIMEOUT}
                       WORKING_DIRECTORY ${CMAKE_SOURCE_DIR})
endfunction()
