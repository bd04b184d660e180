// What well-meaning clients get.
#include "qvl/serve/http.h"

#include <filesystem>

#include "qvl/base/json.h"
#include "qvl/serve/http_test_server.h"

namespace qvl::serve {
namespace {

using std::chrono::milliseconds;

constexpr std::string_view kJson = "Content-Type: application/json\r\n";

TEST(Http, AnswersWithLengthAndSafetyHeaders) {
  TestServer server;
  RawClient client(server.port());
  const Reply reply = client.ask(get("/hello"));
  EXPECT_EQ(reply.status, 200);
  EXPECT_EQ(reply.body, "hi");
  EXPECT_EQ(reply.header("content-length"), "2");
  EXPECT_EQ(reply.header("content-type"), "text/plain");
  EXPECT_EQ(reply.header("x-content-type-options"), "nosniff");
  EXPECT_EQ(reply.header("referrer-policy"), "no-referrer");
  EXPECT_EQ(reply.header("connection"), "");
  EXPECT_EQ(reply.header("date").size(), 29u);
  EXPECT_TRUE(reply.header("x-request-id").starts_with("req_"));
  EXPECT_EQ(reply.header("access-control-allow-origin"), "");
  client.send("HEAD /hello HTTP/1.1\r\nHost: localhost\r\n\r\n" + get("/hello"));
  const Reply head = client.read(true);
  EXPECT_EQ(head.status, 200);
  EXPECT_EQ(head.header("content-length"), "2");
  EXPECT_EQ(client.read().body, "hi");  // no body came between
}

TEST(Http, RequestIdsOfClientsAreKeptWhenSane) {
  TestServer server;
  RawClient client(server.port());
  EXPECT_EQ(client.ask(get("/hello", "X-Request-Id: my-id_1.2\r\n")).header("x-request-id"), "my-id_1.2");
  const std::string made = client.ask(get("/hello", "X-Request-Id: a b<c>\r\n")).header("x-request-id");
  EXPECT_EQ(made.size(), 28u) << made;
  EXPECT_NE(made, client.ask(get("/hello")).header("x-request-id"));
}

TEST(Http, PathsAreDecodedAndMatched) {
  TestServer server;
  RawClient client(server.port());
  EXPECT_EQ(client.ask(get("/items/Qwen/Qwen3-VL%204B?x=%20y")).body, "Qwen/Qwen3-VL 4B|x=%20y");
  EXPECT_EQ(client.ask(get("/items/one")).body, "exact");
  EXPECT_EQ(client.ask(get("/items/")).status, 404);
  EXPECT_EQ(client.ask(get("http://localhost/items/two")).body, "two|");
  EXPECT_EQ(client.ask(get("/items/one/x")).body, "one/x|");
}

TEST(Http, StatusesOfRefusals) {
  TestServer server;
  struct Case {
    std::string request;
    int status;
    bool stays;  // the connection
    std::string code = "bad_request";
  };
  const std::string host = "Host: localhost\r\n";
  const std::vector<Case> cases = {
      {get("/nowhere"), 404, true, "unknown_url"},
      {get("/echo"), 405, true, "method_not_supported"},
      {"DELETE /hello HTTP/1.1\r\n" + host + "\r\n", 405, true, "method_not_supported"},
      {"GET /hello HTTP/1.1\r\n\r\n", 400, false},
      {"GET /hello HTTP/1.1\r\n" + host + host + "\r\n", 400, false},
      {"GET /hello HTTP/1.1\r\nHost: a b\r\n\r\n", 400, false},
      {"GET /%zz HTTP/1.1\r\n" + host + "\r\n", 400, false},
      {"GET /a%00b HTTP/1.1\r\n" + host + "\r\n", 400, false},
      {"GET hello HTTP/1.1\r\n" + host + "\r\n", 400, false},
      {"GET /hello HTTP/2.0\r\n" + host + "\r\n", 505, false, "unsupported_http_version"},
      {"GET /hello\r\n\r\n", 400, false},
      {"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 TLS\r\n\r\n", 400, false},
      {"GET /hello HTTP/1.1\r\n" + host + "Bad Name: x\r\n\r\n", 400, false},
      {post("/echo", "x", "Content-Length: 2\r\n"), 400, false},
      {"POST /echo HTTP/1.1\r\n" + host + "Content-Length: -1\r\n\r\n", 400, false},
      {post("/echo", "x", "Transfer-Encoding: chunked\r\n"), 400, false},
      {"POST /echo HTTP/1.1\r\n" + host + "Transfer-Encoding: gzip, chunked\r\n\r\n", 501, false, "unsupported_transfer_encoding"},
      {"POST /echo HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400, false},
      {post("/json", "{}"), 415, false, "unsupported_content_type"},
      {post("/json", "a=b", "Content-Type: application/x-www-form-urlencoded\r\n"), 415, false, "unsupported_content_type"},
      {post("/json", "{}", "Content-Type: text/plain; application/json\r\n"), 415, false, "unsupported_content_type"},
      {"POST /json HTTP/1.1\r\n" + host + std::string(kJson) + "\r\n", 411, true, "length_required"},
      {post("/json", "{}", cat(kJson, "Expect: tea\r\n")), 417, false, "expectation_failed"},
      {"GET /hello HTTP/1.1\r\n" + host + "Content-Length: 5\r\n\r\nhello", 413, false, "request_too_large"},
      {"POST /echo HTTP/1.1\r\n" + host + "Content-Length: 100001\r\n\r\n", 413, false, "request_too_large"},
      {"POST /echo HTTP/1.1\r\n" + host + "Content-Length: 18446744073709551615\r\n\r\n", 413, false, "request_too_large"},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.request);
    RawClient client(server.port());
    const Reply reply = client.ask(c.request);
    EXPECT_EQ(reply.status, c.status) << reply.body;
    EXPECT_EQ(reply.header("content-type"), "application/json");
    ASSERT_TRUE(Json::accept(reply.body)) << reply.body;
    const Json error = Json::parse(reply.body).at("error");
    EXPECT_FALSE(error.at("message").get<std::string>().empty());
    EXPECT_EQ(error.at("type"), c.status < 500 ? "invalid_request_error" : "server_error");
    EXPECT_TRUE(error.at("param").is_null());
    EXPECT_EQ(error.at("code"), c.code);
    EXPECT_EQ(reply.header("connection"), c.stays ? "" : "close");
    if (c.stays) {
      EXPECT_EQ(client.ask(get("/hello")).body, "hi");
    } else {
      EXPECT_TRUE(client.at_end());
      EXPECT_EQ(client.buffer(), "");
    }
  }
  RawClient client(server.port());
  EXPECT_EQ(client.ask(get("/echo")).header("allow"), "POST, OPTIONS");
  EXPECT_EQ(client.ask(post("/hello", "")).header("allow"), "GET, HEAD, OPTIONS");
}

TEST(Http, ConnectionsStayOpenAsAsked) {
  TestServer server;
  {
    RawClient client(server.port());
    for (int i = 0; i < 5; ++i) EXPECT_EQ(client.ask(get("/hello")).body, "hi");
    EXPECT_EQ(server->stats().accepted, 1u);
    EXPECT_EQ(client.ask(get("/hello", "Connection: close\r\n")).header("connection"), "close");
    EXPECT_TRUE(client.at_end());
  }
  RawClient old(server.port());
  EXPECT_EQ(old.ask("GET /hello HTTP/1.0\r\n\r\n").header("connection"), "close");
  EXPECT_TRUE(old.at_end());
  RawClient kept(server.port());
  EXPECT_EQ(kept.ask("GET /hello HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").header("connection"),
            "keep-alive");
  EXPECT_EQ(kept.ask("\r\n\r\n" + get("/hello")).body, "hi");
}

TEST(Http, PipelinedRequestsAreAnsweredInOrder) {
  HttpOptions options;
  options.worker_threads = 1;
  TestServer server(options);
  RawClient client(server.port());
  std::string all;
  for (int i = 0; i < 12; ++i) {
    all += i % 3 == 0 ? get(cat("/later?", i)) : i % 3 == 1 ? post("/echo", cat(i)) : get(cat("/items/", i));
  }
  client.send(all);
  for (int i = 0; i < 12; ++i) EXPECT_EQ(client.read().body, i % 3 == 2 ? cat(i, "|") : cat(i));
}

TEST(Http, BodiesComeInAnyPieces) {
  TestServer server;
  const std::string chunked =
      "POST /echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
      "5;name=value\r\nhello\r\n7\r\n, world\r\n0\r\nTrailer: x\r\n\r\n";
  RawClient client(server.port());
  EXPECT_EQ(client.ask(chunked).body, "hello, world");
  for (const std::string& request : {chunked, post("/echo", "some body"), get("/hello")}) {
    for (const char c : request) ASSERT_TRUE(client.send({&c, 1}));
    EXPECT_EQ(client.read().status, 200);
  }
  std::string large;
  for (int i = 0; large.size() < 99'000; ++i) large += cat(i, ",");
  EXPECT_EQ(client.ask(post("/echo", large)).body, large);
  EXPECT_EQ(client.ask(post("/json", "{}", "content-TYPE: Application/JSON; charset=utf-8\r\n")).body, "{}");
}

TEST(Http, ExpectContinueIsMetOnlyForAcceptableBodies) {
  TestServer server;
  RawClient client(server.port());
  client.send("POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n");
  ASSERT_TRUE(client.receive());
  EXPECT_EQ(client.buffer(), "HTTP/1.1 100 Continue\r\n\r\n");
  client.send("body");
  EXPECT_EQ(client.read().body, "body");
  client.send("POST /json HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n");
  EXPECT_EQ(client.read().status, 415);
}

TEST(Http, KeysAreAskedForWhereTheRouteSaysSo) {
  HttpOptions options;
  options.api_keys = {"sk-first", "sk-second"};
  TestServer server(options);
  RawClient client(server.port());
  EXPECT_EQ(client.ask(get("/hello")).status, 200);
  const Reply missing = client.ask(get("/secret"));
  EXPECT_EQ(missing.status, 401);
  EXPECT_EQ(missing.header("www-authenticate"), "Bearer");
  EXPECT_EQ(Json::parse(missing.body).at("error").at("code"), "invalid_api_key");
  for (const std::string_view wrong : {"Bearer sk-firs", "Bearer sk-firstt", "Bearer ", "Basic sk-first",
                                       "sk-first", "Bearer sk-first sk-second", "Bearer SK-FIRST"}) {
    const Reply reply = client.ask(get("/secret", cat("Authorization: ", wrong, "\r\n")));
    EXPECT_EQ(reply.status, 401) << wrong;
    EXPECT_EQ(reply.body.find("sk-"), std::string::npos);
    EXPECT_EQ(Json::parse(reply.body).at("error").at("code"), "invalid_api_key");
  }
  for (const std::string_view right : {"Bearer sk-first", "bearer  sk-second "}) {
    EXPECT_EQ(client.ask(get("/secret", cat("Authorization: ", right, "\r\n"))).body, "gold") << right;
  }
  // Before the body is read.
  EXPECT_EQ(client.ask("POST /json HTTP/1.1\r\nHost: localhost\r\nContent-Length: 90000\r\n\r\n").status,
            401);
}

TEST(Http, OnLoopbackOnlyItsNamesAreAnsweredTo) {
  TestServer server;
  RawClient client(server.port());
  const auto status = [&](std::string_view host) {
    return client.ask(cat("GET /hello HTTP/1.1\r\nHost: ", host, "\r\n\r\n")).status;
  };
  for (const std::string_view good :
       {"localhost", "LOCALHOST:8080", "127.0.0.1:80", "[::1]:80", "localhost."}) {
    EXPECT_EQ(status(good), 200) << good;
  }
  for (const std::string_view bad :
       {"evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "10.0.0.1"}) {
    EXPECT_EQ(status(bad), 403) << bad;
  }
  HttpOptions options;
  options.allowed_hosts = {"Qvl.Example"};
  TestServer named(options);
  RawClient other(named.port());
  EXPECT_EQ(other.ask("GET /hello HTTP/1.1\r\nHost: qvl.example:443\r\n\r\n").status, 200);
  EXPECT_EQ(other.ask("GET /hello HTTP/1.1\r\nHost: evil.example\r\n\r\n").status, 403);
  options.allowed_hosts = {};
  options.host = "0.0.0.0";
  TestServer open(options);
  EXPECT_TRUE(server->loopback_only() && named->loopback_only());
  EXPECT_FALSE(open->loopback_only());
  RawClient any(open.port());
  EXPECT_EQ(any.ask("GET /hello HTTP/1.1\r\nHost: evil.example\r\n\r\n").status, 200);
}

TEST(Http, OtherOriginsOnlyWhereAllowed) {
  const std::string preflight =
      "OPTIONS /json HTTP/1.1\r\nHost: localhost\r\nOrigin: "
      "https://app.example\r\nAccess-Control-Request-Method: POST\r\n"
      "Access-Control-Request-Headers: authorization,content-type\r\n\r\n";
  TestServer closed;
  RawClient client(closed.port());
  const Reply refused = client.ask(preflight);
  EXPECT_EQ(refused.status, 204);
  EXPECT_EQ(refused.header("allow"), "POST, OPTIONS");
  EXPECT_EQ(refused.header("access-control-allow-origin"), "");
  EXPECT_EQ(client.ask("OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n").status, 204);
  HttpOptions options;
  options.allowed_origins = {"https://app.example"};
  options.api_keys = {"k"};
  TestServer server(options);
  RawClient allowed(server.port());
  const Reply granted = allowed.ask(preflight);
  EXPECT_EQ(granted.status, 204);
  EXPECT_EQ(granted.header("access-control-allow-origin"), "https://app.example");
  EXPECT_EQ(granted.header("access-control-allow-methods"), "POST, OPTIONS");
  EXPECT_EQ(granted.header("access-control-allow-headers"), "authorization,content-type");
  const Reply other = allowed.ask(get("/hello", "Origin: https://app.example.evil\r\n"));
  EXPECT_EQ(other.header("access-control-allow-origin"), "");
  EXPECT_EQ(other.header("vary"), "Origin");
  const Reply simple = allowed.ask(get("/secret", "Origin: https://app.example\r\n"));
  EXPECT_EQ(simple.status, 401);  // readable by the page
  EXPECT_EQ(simple.header("access-control-allow-origin"), "https://app.example");
}

TEST(Http, ExceptionsBecomeAnswers) {
  TestServer server;
  RawClient client(server.port());
  const Reply invalid = client.ask(get("/throw/invalid"));
  EXPECT_EQ(invalid.status, 400);
  EXPECT_EQ(Json::parse(invalid.body).at("error").at("param"), "messages[0].role");
  const auto code = [](const Reply& reply) { return Json::parse(reply.body).at("error").at("code").get<std::string>(); };
  EXPECT_EQ(code(invalid), "invalid_value");
  const Reply io = client.ask(get("/throw/io"));
  EXPECT_EQ(io.status, 500);
  EXPECT_EQ(code(io), "internal_error");
  EXPECT_EQ(io.body.find("secret"), std::string::npos);
  const Reply busy = client.ask(get("/throw/busy"));
  EXPECT_EQ(busy.status, 429);
  EXPECT_EQ(busy.header("retry-after"), "7");
  const Reply other = client.ask(get("/throw/other", "X-Request-Id: me\r\n"));
  EXPECT_EQ(other.status, 500);
  EXPECT_EQ(other.body.find("inner"), std::string::npos);
  EXPECT_NE(other.body.find("request me"), std::string::npos);
  const Reply silent = client.ask(get("/silent"));
  EXPECT_EQ(silent.status, 500);
  EXPECT_EQ(code(silent), "internal_error");
  EXPECT_EQ(client.ask(get("/hello")).body, "hi");
  const Reply stream = client.ask(get("/throw/stream"));
  EXPECT_EQ(stream.status, 200);
  EXPECT_EQ(stream.body, "begun");
  EXPECT_TRUE(stream.cut);
  EXPECT_TRUE(client.at_end());
}

TEST(Http, FixedBytesHaveTags) {
  TestServer server;
  RawClient client(server.port());
  const Reply page = client.ask(get("/page"));
  EXPECT_EQ(page.body, "<p>page</p>");
  EXPECT_EQ(page.header("content-type"), "text/html; charset=utf-8");
  EXPECT_EQ(page.header("cache-control"), "no-cache");
  EXPECT_EQ(page.header("x-extra"), "yes");
  const std::string etag = page.header("etag");
  const Reply again = client.ask(get("/page", cat("If-None-Match: \"x\", W/", etag, "\r\n")));
  EXPECT_EQ(again.status, 304);
  EXPECT_EQ(again.header("etag"), etag);
  EXPECT_EQ(client.ask(get("/page", "If-None-Match: \"x\"\r\n")).status, 200);
}

TEST(Http, StreamsAreChunked) {
  TestServer server;
  RawClient client(server.port());
  const Reply reply = client.ask(get("/count/300"));
  EXPECT_EQ(reply.header("transfer-encoding"), "chunked");
  EXPECT_EQ(reply.header("content-length"), "");
  EXPECT_FALSE(reply.cut);
  EXPECT_TRUE(reply.body.starts_with("0;1;2;") && reply.body.ends_with("298;299;")) << reply.body;
  client.send("HEAD /count/9 HTTP/1.1\r\nHost: localhost\r\n\r\n" + get("/hello"));
  EXPECT_EQ(client.read(true).status, 200);
  EXPECT_EQ(client.read().body, "hi");
  RawClient old(server.port());
  old.send("GET /count/3 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
  const Reply plain = old.read();
  EXPECT_EQ(plain.header("transfer-encoding"), "");
  EXPECT_EQ(plain.header("connection"), "close");
  EXPECT_EQ(plain.body, "0;1;2;");
}

TEST(Http, PiecesOfAStreamArriveAsTheyAreWritten) {
  TestServer server;
  RawClient client(server.port());
  client.send(get("/stream"));
  ASSERT_TRUE(eventually([&] { return server.held.size() == 1; }));
  const auto responder = server.held.at(0);
  EXPECT_FALSE(responder->send(200, {}, ""));  // begun already
  EXPECT_FALSE(responder->start_stream(200, {}));
  while (client.buffer().find("first") == std::string::npos) ASSERT_TRUE(client.receive());
  EXPECT_TRUE(responder->write("second"));
  while (client.buffer().find("second") == std::string::npos) ASSERT_TRUE(client.receive());
  EXPECT_TRUE(responder->end());
  EXPECT_FALSE(responder->end());
  EXPECT_FALSE(responder->write("x"));
  EXPECT_EQ(client.read().body, "firstsecond");
  EXPECT_FALSE(responder->gone());
  EXPECT_EQ(client.ask(get("/hello")).body, "hi");
  client.close();
  EXPECT_FALSE(eventually([&] { return server.held.gone > 0; }, 100));  // the answer was complete
}

TEST(Http, AnswersThatCannotBeWrittenAreRefused) {
  TestServer server;
  RawClient client(server.port());
  client.send(get("/hold"));
  ASSERT_TRUE(eventually([&] { return server.held.size() == 1; }));
  const auto responder = server.held.at(0);
  EXPECT_THROW(responder->send(200, {{"X-A", "b\r\nSet-Cookie: c"}}, ""), Error);
  EXPECT_THROW(responder->send(200, {{"X A", "b"}}, ""), Error);
  EXPECT_THROW(responder->send(200, {{"Content-Length", "3"}}, ""), Error);
  EXPECT_THROW(responder->send(99, {}, ""), Error);
  EXPECT_THROW(responder->start_stream(204, {}), Error);
  EXPECT_TRUE(responder->send(200, {}, "good"));
  EXPECT_EQ(client.read().body, "good");
}

TEST(Http, HalfClosedClientsStillReadShortAnswers) {
  TestServer server;
  RawClient client(server.port());
  client.send(get("/hello") + get("/page"));
  client.shut_sending();
  EXPECT_EQ(client.read().body, "hi");
  EXPECT_EQ(client.read().body, "<p>page</p>");
  EXPECT_TRUE(client.at_end());
  EXPECT_TRUE(eventually([&] { return server.idle(); }));
}

TEST(Http, EveryRequestIsReported) {
  TestServer server;
  {
    RawClient client(server.port());
    client.ask(get("/hello", "X-Request-Id: a\r\n"));
    client.ask(get("/nowhere"));
    client.ask("nonsense\r\n\r\n");
  }
  ASSERT_TRUE(eventually([&] { return server.exchanged().size() == 3; }));
  const std::vector<Exchanged> all = server.exchanged();
  EXPECT_EQ(all[0].method, "GET");
  EXPECT_EQ(all[0].route, "/hello");
  EXPECT_EQ(all[0].request_id, "a");
  EXPECT_EQ(all[0].status, 200);
  EXPECT_FALSE(all[0].gone);
  EXPECT_GT(all[0].sent_bytes, 100u);
  EXPECT_TRUE(all[0].peer.starts_with("127.0.0.1:")) << all[0].peer;
  EXPECT_EQ(all[1].route, "");
  EXPECT_EQ(all[1].status, 404);
  EXPECT_EQ(all[2].method, "");
  EXPECT_EQ(all[2].status, 400);
}

TEST(Http, ListensWhereItIsTold) {
  HttpOptions options;
  options.host = "::1";
  {
    options.port = 0;
    HttpServer six(options);
    six.add({"GET", "/hello",
             [](const HttpRequest&, const std::shared_ptr<Responder>& r) { r->send(200, {}, "6"); }});
    bool have_ipv6 = true;
    try {
      six.start();
    } catch (const Error& e) {
      have_ipv6 = false;  // a machine without IPv6
      EXPECT_EQ(e.code(), ErrorCode::kIo);
    }
    if (have_ipv6) {
      EXPECT_EQ(six.url(), cat("http://[::1]:", six.port()));
    }
  }
  TestServer taken;
  options.host = "127.0.0.1";
  options.port = taken.port();
  HttpServer second(options);
  EXPECT_THROW(second.start(), Error);
  options.host = "no such host";
  HttpServer third(options);
  EXPECT_THROW(third.start(), Error);
}

TEST(Http, UnixSockets) {
  const std::string path = cat(::testing::TempDir(), "qvl_http_", ::getpid(), ".sock");
  HttpOptions options;
  options.host = "unix:" + path;
  {
    TestServer server(options);
    EXPECT_EQ(server->url(), "unix:" + path);
    EXPECT_TRUE(server->loopback_only());
    EXPECT_EQ(std::filesystem::status(path).permissions(),
              std::filesystem::perms::owner_read | std::filesystem::perms::owner_write);
    RawClient client(path);
    ASSERT_TRUE(client.connected());
    EXPECT_EQ(client.ask("GET /hello HTTP/1.1\r\nHost: anything\r\n\r\n").body, "hi");
    EXPECT_THROW(TestServer{options}, Error);  // in use
    ASSERT_TRUE(RawClient(path).connected());
  }
  EXPECT_FALSE(std::filesystem::exists(path));
}

TEST(Http, RoutesAndOptionsAreChecked) {
  HttpServer server({});
  const Handler handler = [](const HttpRequest&, const std::shared_ptr<Responder>&) {};
  server.add({"GET", "/a", handler});
  EXPECT_THROW(server.add({"GET", "/a", handler}), Error);
  EXPECT_THROW(server.add({"GET", "a", handler}), Error);
  EXPECT_THROW(server.add({"GET", "/a/*/b", handler}), Error);
  EXPECT_THROW(server.add({"GET", "/b", {}}), Error);
  HttpOptions options;
  options.api_keys = {"with blank"};
  HttpServer bad(options);
  EXPECT_THROW(bad.start(), Error);
}

TEST(HttpStop, LetsAnswersFinishWithinTheGrace) {
  TestServer server;
  RawClient idle(server.port()), streaming(server.port());
  EXPECT_EQ(idle.ask(get("/hello")).status, 200);
  streaming.send(get("/stream"));
  ASSERT_TRUE(eventually([&] { return server.held.size() == 1; }));
  std::thread stopper([&] { server->stop(milliseconds(10'000)); });
  EXPECT_TRUE(idle.at_end());
  EXPECT_TRUE(eventually([&] { return !RawClient(server.port()).connected(); }));
  const auto responder = server.held.at(0);
  EXPECT_FALSE(responder->gone());
  EXPECT_TRUE(responder->write("last"));
  EXPECT_TRUE(responder->end());
  EXPECT_EQ(streaming.read().body, "firstlast");
  const auto start = Clock::now();
  stopper.join();
  EXPECT_LT(ms_since(start), 5000);
  server->wait();
  EXPECT_EQ(server->stats().connections, 0u);
}

TEST(HttpStop, AfterTheGraceClientsAreGone) {
  TestServer server;
  RawClient streaming(server.port()), owed(server.port());
  streaming.send(get("/stream"));
  owed.send(get("/hold"));
  ASSERT_TRUE(eventually([&] { return server.held.size() == 2; }));
  const auto start = Clock::now();
  server->stop(milliseconds(100));
  EXPECT_GE(ms_since(start), 100);
  EXPECT_LT(ms_since(start), 3000);
  EXPECT_EQ(server.held.gone, 2u);
  EXPECT_TRUE(server.held.at(0)->gone());
  EXPECT_FALSE(server.held.at(0)->write("x"));
  EXPECT_FALSE(server.held.at(1)->send(200, {}, "x"));
  EXPECT_TRUE(streaming.read().cut);
  EXPECT_EQ(owed.read().status, 0);
}

// For ThreadSanitizer, mostly: accepting and closing meet.
TEST(HttpStop, WhileClientsKeepComing) {
  for (int round = 0; round < 20; ++round) {
    HttpOptions options;
    options.io_threads = 4;
    TestServer server(options);
    std::atomic<bool> over{false};
    std::vector<std::thread> clients;
    for (int i = 0; i < 4; ++i) {
      clients.emplace_back([&] {
        while (!over) RawClient(server.port()).send(get("/hello"));
      });
    }
    EXPECT_TRUE(eventually([&] { return server->stats().accepted > 20; }));
    server->stop(milliseconds(0));
    EXPECT_EQ(server->stats().connections, 0u);
    over = true;
    for (std::thread& client : clients) client.join();
  }
}

TEST(HttpMessage, HostNames) {
  EXPECT_EQ(host_name("Example.COM:8080"), "example.com");
  EXPECT_EQ(host_name("[::1]:80"), "[::1]");
  EXPECT_EQ(host_name("a."), "a");
  for (const std::string_view bad :
       {"", ":80", "a:b", "a:123456", "[::1", "[::1]x", "[g]", "a/b", "a@b", "a b"}) {
    EXPECT_FALSE(host_name(bad)) << bad;
  }
}

TEST(HttpMessage, Targets) {
  EXPECT_EQ(parse_target("/a%2Fb?c=%20")->path, "/a/b");
  EXPECT_EQ(parse_target("/a?b?c")->query, "b?c");
  EXPECT_EQ(parse_target("https://h:1")->path, "/");
  EXPECT_EQ(parse_target("http://h?x")->query, "x");
  for (const std::string_view bad : {"", "a", "ftp://h/", "h:80", "/%", "/%1", "/%0a", "/%g0"}) {
    EXPECT_FALSE(parse_target(bad)) << bad;
  }
}

TEST(HttpMessage, ErrorBodiesSurviveAnyBytes) {
  const Json body = Json::parse(ErrorReply("bad_request", "bad \xff byte").body()).at("error");
  EXPECT_EQ(body.at("message"), "bad \xef\xbf\xbd byte");
  EXPECT_TRUE(body.at("param").is_null());
  EXPECT_EQ(body.at("code"), "bad_request");
}

}  // namespace
}  // namespace qvl::serve
