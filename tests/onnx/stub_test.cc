// The ONNX engine's stand-in where its headers are missing, built and linked on every machine, so that it
// keeps up with the interface that it stands for.
#include <gtest/gtest.h>

#include <functional>

#include "qvl/base/error.h"
#include "qvl/engine/ort/open.h"

namespace qvl::engine::ort {
namespace {

void expect_not_built(const std::function<void()>& call) {
  try {
    call();
    ADD_FAILURE() << "nothing thrown";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::kUnsupported);
    const std::string message = e.what();
    for (const char* part : {"built without ONNX Runtime", "scripts/lib/onnxruntime.sh", "native"}) {
      EXPECT_NE(message.find(part), std::string::npos) << message;
    }
  }
}

TEST(OrtStub, EverythingSaysHowToGetIt) {
  expect_not_built([] { library_info(); });
  expect_not_built([] { library_info("/some/where/libonnxruntime.so.1"); });
  expect_not_built([] { open_package(nullptr, {}, {}); });
  EXPECT_TRUE(library_places().empty());
}

}  // namespace
}  // namespace qvl::engine::ort
