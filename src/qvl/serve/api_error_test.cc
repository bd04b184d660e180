#include "qvl/serve/api_error.h"

#include <gtest/gtest.h>

namespace qvl::serve {
namespace {

TEST(ApiError, TheObjectIsThatOfOpenAi) {
  EXPECT_EQ(bad_request("invalid_type", "messages[0].role", "No.").to_json().dump(),
            R"({"error":{"message":"No.","type":"invalid_request_error","param":"messages[0].role","code":"invalid_type"}})");
  EXPECT_EQ(internal_error().to_json()["error"]["param"], nullptr);
}

TEST(ApiError, EveryRefusalHasItsStatus) {
  EXPECT_EQ(model_not_found("x").status, 404);
  EXPECT_EQ(model_not_found("x").code, "model_not_found");
  EXPECT_EQ(request_timeout(1.5).status, 408);
  EXPECT_EQ(queue_full(3, 7).status, 429);
  EXPECT_EQ(queue_full(3, 7).type, "rate_limit_error");
  EXPECT_EQ(queue_full(3, 7).retry_after_s, 7);
  EXPECT_EQ(shutting_down(5).status, 503);
  EXPECT_EQ(shutting_down(5).retry_after_s, 5);
  EXPECT_EQ(internal_error().status, 500);
  EXPECT_EQ(internal_error().type, "server_error");
}

TEST(ApiError, TheReplySaysTheSame) {
  const ErrorReply reply = queue_full(3, 7).reply();
  EXPECT_EQ(reply.status, 429);
  EXPECT_EQ(reply.headers, (Headers{{"Retry-After", "7"}}));
  EXPECT_EQ(Json::parse(reply.body()), queue_full(3, 7).to_json());
  EXPECT_EQ(Json::parse(bad_request("invalid_type", "messages[0].role", "No.").reply().body()),
            bad_request("invalid_type", "messages[0].role", "No.").to_json());
}

TEST(ApiError, WhatTheLibrarySaysDependsOnWhereItHappened) {
  struct Case {
    ErrorCode code;
    ErrorSite site;
    int status;
    const char* name;
  };
  using enum ErrorCode;
  using enum ErrorSite;
  const Case cases[] = {
      {kInvalidArgument, kMedia, 400, "invalid_value"}, {kInvalidArgument, kPrompt, 400, "invalid_value"}, {kInvalidArgument, kGenerate, 500, "internal_error"},
      {kNotFound, kMedia, 400, "image_parse_error"},     {kNotFound, kPrompt, 400, "invalid_value"},        {kNotFound, kGenerate, 500, "internal_error"},
      {kIo, kMedia, 500, "internal_error"},             {kIo, kPrompt, 500, "internal_error"},             {kIo, kGenerate, 500, "internal_error"},
      {kFormat, kMedia, 400, "image_parse_error"},          {kFormat, kPrompt, 400, "invalid_value"},          {kFormat, kGenerate, 500, "internal_error"},
      {kMismatch, kMedia, 400, "image_parse_error"},        {kMismatch, kPrompt, 400, "invalid_value"},        {kMismatch, kGenerate, 500, "internal_error"},
      {kUnsupported, kMedia, 400, "invalid_image_format"}, {kUnsupported, kPrompt, 400, "unsupported_value"}, {kUnsupported, kGenerate, 500, "internal_error"},
      {kLimit, kMedia, 413, "image_too_large"},         {kLimit, kPrompt, 400, "context_length_exceeded"}, {kLimit, kGenerate, 400, "context_length_exceeded"},
      {kCancelled, kMedia, 503, "cancelled"},           {kCancelled, kPrompt, 503, "cancelled"},           {kCancelled, kGenerate, 503, "cancelled"},
  };
  for (const Case& c : cases) {
    const ApiError e = to_api_error(Error(c.code, "[x] why"), c.site, "messages[0]");
    EXPECT_EQ(e.status, c.status) << error_code_name(c.code);
    EXPECT_EQ(e.code, c.name) << error_code_name(c.code);
    // A fault of the server tells nothing of its insides.
    EXPECT_EQ(std::string(e.what()) == "[x] why", c.status == 400 || c.status == 413);
    EXPECT_EQ(e.param, c.status < 500 ? "messages[0]" : "");
  }
}

}  // namespace
}  // namespace qvl::serve
