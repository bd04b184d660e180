// What careless and hostile clients get, and that nothing of them stays.
#include <filesystem>
#include <map>
#include <random>

#include "qvl/serve/http_test_server.h"

namespace qvl::serve {
namespace {

using std::chrono::milliseconds;

TEST(HttpLimits, SlowHeads) {
  HttpOptions options;
  options.header_timeout = milliseconds(200);
  TestServer server(options);
  RawClient drip(server.port()), mute(server.port());
  const std::string request = get("/hello");
  const auto start = Clock::now();
  for (size_t i = 0; i < request.size() - 1; ++i) {  // a byte now and then does not buy time
    if (!drip.send(request.substr(i, 1))) break;
    if (drip.receive(10)) break;
  }
  const Reply reply = drip.read();
  EXPECT_EQ(reply.status, 408);
  EXPECT_LT(ms_since(start), 2000);
  EXPECT_TRUE(drip.at_end());
  EXPECT_TRUE(mute.at_end());
  EXPECT_EQ(mute.buffer(), "");
  EXPECT_TRUE(eventually([&] { return server.idle(); }));
}

TEST(HttpLimits, SlowBodies) {
  HttpOptions options;
  options.body_timeout = milliseconds(200);
  options.min_body_bytes_per_s = 50'000;
  TestServer server(options);
  RawClient client(server.port());
  client.send("POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nhalf");
  EXPECT_EQ(client.read().status, 408);
  EXPECT_TRUE(client.at_end());
  // Longer than the timeout, but faster than the least speed.
  RawClient steady(server.port());
  steady.send("POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 90000\r\n\r\n");
  const std::string piece(30'000, 'x');
  for (int i = 0; i < 3; ++i) {
    steady.send(piece);
    std::this_thread::sleep_for(milliseconds(150));
  }
  EXPECT_EQ(steady.read().body.size(), 90'000u);
}

TEST(HttpLimits, IdleConnectionsAreClosed) {
  HttpOptions options;
  options.idle_timeout = milliseconds(100);
  TestServer server(options);
  RawClient client(server.port());
  EXPECT_EQ(client.ask(get("/hello")).status, 200);
  EXPECT_TRUE(client.at_end());
  EXPECT_EQ(client.buffer(), "");
}

TEST(HttpLimits, LongHeads) {
  HttpOptions options;
  options.max_header_bytes = 1000;
  TestServer server(options);
  const auto status = [&](const std::string& request) {
    RawClient client(server.port());
    const int code = client.ask(request).status;
    EXPECT_TRUE(client.at_end());
    return code;
  };
  RawClient client(server.port());
  EXPECT_EQ(client.ask(get("/hello", cat("X: ", std::string(800, 'x'), "\r\n"))).status, 200);
  EXPECT_EQ(status(get(cat("/", std::string(1000, 'a')))), 414);
  EXPECT_EQ(status(get("/hello", cat("X: ", std::string(1000, 'x'), "\r\n"))), 431);
  EXPECT_EQ(status(std::string(5000, 'G')), 414);  // no request line ends here
  std::string many;
  for (int i = 0; i < 200; ++i) many += cat("X", i, ": y\r\n");
  EXPECT_EQ(status(get("/hello", many)), 431);
}

TEST(HttpLimits, LargeBodiesAreRefusedBeforeTheyAreRead) {
  TestServer server;
  RawClient client(server.port());
  // 2 MB that nobody will read must not keep the client from its answer.
  client.send("POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2000000\r\n\r\n");
  const std::string piece(100'000, 'x');
  for (int i = 0; i < 20 && client.send(piece); ++i) {
  }
  EXPECT_EQ(client.read().status, 413);
  RawClient chunked(server.port());
  chunked.send("POST /echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n");
  for (int i = 0; i < 3; ++i) chunked.send(cat("c350\r\n", std::string(50'000, 'x'), "\r\n"));
  EXPECT_EQ(chunked.read().status, 413);
  EXPECT_TRUE(chunked.at_end());
  RawClient extension(server.port());
  extension.send("POST /echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1;");
  for (int i = 0; i < 3 && extension.send(piece); ++i) {
  }
  EXPECT_EQ(extension.read().status, 400);
}

TEST(HttpLimits, BodiesArrivingTogether) {
  HttpOptions options;
  options.max_receiving_bytes = 150'000;
  TestServer server(options);
  const std::string head = "POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 90000\r\n\r\n";
  RawClient first(server.port()), second(server.port());
  first.send(head + "x");
  ASSERT_TRUE(eventually([&] { return server->stats().requests == 1; }));
  second.send(head);
  EXPECT_EQ(second.read().status, 503);
  first.send(std::string(89'999, 'x'));
  EXPECT_EQ(first.read().status, 200);
  RawClient third(server.port());
  EXPECT_EQ(third.ask(head + std::string(90'000, 'x')).status, 200);
}

TEST(HttpLimits, TooManyConnections) {
  HttpOptions options;
  options.max_connections = 3;
  TestServer server(options);
  {
    RawClient a(server.port()), b(server.port()), c(server.port());
    for (RawClient* client : {&a, &b, &c}) EXPECT_EQ(client->ask(get("/hello")).status, 200);
    RawClient d(server.port());
    const Reply reply = d.read();
    EXPECT_EQ(reply.status, 503);
    EXPECT_EQ(reply.header("retry-after"), "1");
    EXPECT_TRUE(d.at_end());
    EXPECT_EQ(a.ask(get("/hello")).status, 200);
  }
  EXPECT_TRUE(eventually([&] { return server.idle(); }));
  RawClient again(server.port());
  EXPECT_EQ(again.ask(get("/hello")).status, 200);
  EXPECT_EQ(server->stats().refused, 1u);
}

TEST(HttpGone, ClientsThatVanishInTheMiddleOfAStream) {
  constexpr size_t kClients = 200;
  HttpOptions options;
  options.max_connections = kClients + 10;
  TestServer server(options);
  std::vector<std::unique_ptr<RawClient>> clients;
  for (size_t i = 0; i < kClients; ++i) {
    clients.push_back(std::make_unique<RawClient>(server.port()));
    ASSERT_TRUE(clients.back()->send(get("/stream")));
  }
  ASSERT_TRUE(eventually([&] { return server.held.size() == kClients; }));
  for (auto& client : clients) {
    while (client->buffer().find("first") == std::string::npos) ASSERT_TRUE(client->receive());
  }
  std::atomic<bool> stop{false};
  std::thread writer([&] {  // tokens go on coming
    while (!stop) {
      for (size_t i = 0; i < kClients; ++i) server.held.at(i)->write("token");
      std::this_thread::sleep_for(milliseconds(5));
    }
  });
  EXPECT_EQ(server.held.gone, 0u);
  const auto start = Clock::now();
  for (size_t i = 0; i < kClients; ++i) i % 2 ? clients[i]->close() : clients[i]->reset();
  EXPECT_TRUE(eventually([&] { return server.held.gone == kClients; }, 1000)) << server.held.gone;
  RecordProperty("gone_after_ms", cat(ms_since(start)));
  stop = true;
  writer.join();
  for (size_t i = 0; i < kClients; ++i) EXPECT_TRUE(server.held.at(i)->gone());
  EXPECT_EQ(server->stats().responders, kClients);  // as long as somebody holds them
  server.held.clear();
  EXPECT_TRUE(eventually([&] { return server.idle(); }));
  EXPECT_EQ(server.held.gone, kClients);  // each once
}

TEST(HttpGone, ClientsThatVanishBeforeTheirAnswer) {
  TestServer server;
  constexpr size_t kClients = 40;
  {
    std::vector<std::unique_ptr<RawClient>> clients;
    for (size_t i = 0; i < kClients; ++i) {
      clients.push_back(std::make_unique<RawClient>(server.port()));
      clients.back()->send(get("/hold"));
    }
    ASSERT_TRUE(eventually([&] { return server.held.size() == kClients; }));
    for (size_t i = 0; i < kClients; ++i) i % 2 ? clients[i]->close() : clients[i]->reset();
  }
  EXPECT_TRUE(eventually([&] { return server.held.gone == kClients; }, 1000));
  for (size_t i = 0; i < kClients; ++i) {
    bool at_once = false;
    server.held.at(i)->on_gone([&] { at_once = true; });
    EXPECT_TRUE(at_once);
  }
  // Nobody answers, yet the connections do not stay.
  EXPECT_TRUE(eventually([&] { return server->stats().connections == 0; }));
  EXPECT_FALSE(server.held.at(0)->send(200, {}, "late"));
  server.held.clear();
  EXPECT_TRUE(eventually([&] { return server.idle(); }));
}

TEST(HttpGone, NoticedBehindRequestsSentAhead) {
  TestServer server;
  RawClient client(server.port());
  client.send(get("/hold"));
  ASSERT_TRUE(eventually([&] { return server.held.size() == 1; }));
  // More than the server reads before its turn (64 KiB and a piece of 32), and less than that and what the
  // system takes unread (64 KiB at first): behind a full window the end of the stream cannot arrive.
  std::string ahead;
  while (ahead.size() < 105'000) ahead += get("/hello");
  client.send(ahead);
  EXPECT_FALSE(eventually([&] { return server.held.gone > 0; }, 300));
  client.close();
  EXPECT_TRUE(eventually([&] { return server.held.gone == 1; }, 1000));
  server.held.clear();
  EXPECT_TRUE(eventually([&] { return server.idle(); }));
}

TEST(HttpGone, UnreadStreamsAreBounded) {
  HttpOptions options;
  options.max_unsent_bytes = 300'000;
  TestServer server(options);
  RawClient client(server.port(), 4096);
  client.send(get("/stream"));
  ASSERT_TRUE(eventually([&] { return server.held.size() == 1; }));
  const auto responder = server.held.at(0);
  const std::string piece(10'000, 'x');
  size_t written = 0;
  while (responder->write(piece) && written < (size_t{64} << 20)) written += piece.size();
  EXPECT_LT(written, size_t{16} << 20);  // the bound and what the system's buffers take
  EXPECT_TRUE(responder->gone());
  EXPECT_EQ(server.held.gone, 1u);
  EXPECT_TRUE(eventually([&] { return server->stats().connections == 0; }));
}

TEST(HttpGone, ClientsThatStopReadingTimeOut) {
  HttpOptions options;
  options.write_timeout = milliseconds(200);
  TestServer server(options);
  RawClient client(server.port(), 4096);
  client.send(get("/hold"));
  ASSERT_TRUE(eventually([&] { return server.held.size() == 1; }));
  EXPECT_TRUE(server.held.at(0)->send(200, {}, std::string(size_t{20} << 20, 'x')));
  EXPECT_TRUE(eventually([&] { return server->stats().connections == 0; }, 3000));
  EXPECT_TRUE(server.exchanged().at(0).gone);
  EXPECT_EQ(server.held.gone, 1u);
}

TEST(HttpGone, LargeAnswersReachSlowReaders) {
  TestServer server;
  RawClient client(server.port(), 4096);
  client.send(get("/hold"));
  ASSERT_TRUE(eventually([&] { return server.held.size() == 1; }));
  std::string body;
  for (int i = 0; body.size() < (size_t{3} << 20); ++i) body += cat(i, ",");
  EXPECT_TRUE(server.held.at(0)->send(200, {}, body));
  EXPECT_TRUE(client.read().body == body);
  EXPECT_EQ(client.ask(get("/hello")).body, "hi");
}

TEST(HttpMany, StreamsSideBySide) {
  HttpOptions options;
  options.io_threads = 2;
  TestServer server(options);
  constexpr int kClients = 32;
  std::vector<std::thread> threads;
  std::atomic<int> good{0};
  for (int i = 0; i < kClients; ++i) {
    threads.emplace_back([&, i] {
      RawClient client(server.port());
      for (int round = 0; round < 5; ++round) {
        std::string expected;
        for (int n = 0; n < 50 + i; ++n) expected += cat(n, ";");
        client.send(get(cat("/count/", 50 + i)));
        const Reply reply = client.read();
        if (!reply.cut && reply.body == expected) ++good;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(good, kClients * 5);
  EXPECT_TRUE(eventually([&] { return server.idle(); }));
}

TEST(HttpMany, RespondersMayOutliveTheServer) {
  auto server = std::make_unique<TestServer>();
  RawClient client(server->port());
  client.send(get("/hold"));
  ASSERT_TRUE(eventually([&] { return server->held.size() == 1; }));
  std::shared_ptr<Responder> responder = server->held.at(0);
  server.reset();
  EXPECT_TRUE(responder->gone());
  EXPECT_FALSE(responder->send(200, {}, "x"));
  responder.reset();
}

std::vector<std::string> good_requests() {
  return {
      get("/hello"),
      get("/count/20", "Accept: text/event-stream\r\nUser-Agent: OpenAI/Python 1.50\r\n"),
      post("/echo", "some body of a request"),
      post("/json", R"({"model":"qvl","messages":[{"role":"user","content":"hi"}]})",
           "Content-Type: application/json\r\nAuthorization: Bearer sk-x\r\nConnection: keep-alive\r\n"),
      "POST /echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
      "POST /echo HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc",
      get("/hello") + get("/page", "If-None-Match: \"x\"\r\n") + get("/items/a%20b?c"),
      "OPTIONS /json HTTP/1.1\r\nHost: localhost\r\nOrigin: https://a.example\r\n\r\n",
      "HEAD /page HTTP/1.0\r\n\r\n",
  };
}

std::string mutated(std::string text, std::mt19937& random) {
  const auto below = [&](size_t n) { return std::uniform_int_distribution<size_t>(0, n - 1)(random); };
  constexpr std::string_view kPieces[] = {"\r\n",
                                          "\r",
                                          "\n",
                                          ":",
                                          " ",
                                          "\r\n\r\n",
                                          "%",
                                          "0",
                                          "9999999999999999999",
                                          "Content-Length: 7\r\n",
                                          "Transfer-Encoding: chunked\r\n",
                                          "HTTP/1.1",
                                          "\xff\xfe",
                                          "Host: x\r\n",
                                          "\t",
                                          "{",
                                          "\"",
                                          ";"};
  const size_t edits = 1 + below(4);
  for (size_t i = 0; i < edits && !text.empty(); ++i) {
    const size_t at = below(text.size());
    switch (below(7)) {
      case 0:
        text[at] = static_cast<char>(below(256));
        break;
      case 1:
        text.erase(at, 1 + below(8));
        break;
      case 2:
        text.insert(at, kPieces[below(std::size(kPieces))]);
        break;
      case 3:
        text.resize(at);  // cut short
        break;
      case 4:
        text.insert(at, text.substr(below(text.size()), 1 + below(30)));
        break;
      case 5:
        text[at] = static_cast<char>(text[at] ^ (1 << below(8)));
        break;
      default:
        text.insert(at, std::string(1 + below(50), static_cast<char>(below(256))));
        break;
    }
  }
  return text;
}

size_t open_files() {
  size_t count = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) count += entry.exists();
  return count;
}

TEST(HttpMutations, ThousandsOfMalformedRequestsLeaveNothing) {
  constexpr int kRounds = 4000;
  HttpOptions options;
  options.header_timeout = milliseconds(300);
  options.body_timeout = milliseconds(300);
  TestServer server(options);
  RawClient(server.port()).ask(get("/hello"));
  EXPECT_TRUE(eventually([&] { return server.idle(); }));
  const size_t files = open_files();
  const std::vector<std::string> seeds = good_requests();
  for (const std::string& seed : seeds) {
    RawClient client(server.port());
    client.send(seed);
    const Reply reply = client.read(seed.starts_with("HEAD"));
    EXPECT_TRUE(reply.status >= 200 && reply.status < 300) << seed << "\n" << reply.status;
  }
  std::mt19937 random(20261129);
  std::map<int, int> statuses;
  for (int i = 0; i < kRounds; ++i) {
    const std::string request = mutated(seeds[static_cast<size_t>(i) % seeds.size()], random);
    RawClient client(server.port());
    ASSERT_TRUE(client.connected()) << i;
    client.send(request);
    client.shut_sending();
    ASSERT_TRUE(client.at_end()) << "round " << i << " neither answered nor closed:\n" << request;
    const std::string& answer = client.buffer();
    if (answer.empty()) {
      ++statuses[0];
      continue;
    }
    ASSERT_TRUE(answer.starts_with("HTTP/1.1 ")) << answer;
    const int status = std::stoi(answer.substr(9, 3));
    ASSERT_TRUE((status >= 100 && status < 500) || status == 501 || status == 505) << request << "\n"
                                                                                   << answer;
    ++statuses[status];
    if (i % 500 == 0) {
      RawClient check(server.port());
      ASSERT_EQ(check.ask(get("/hello")).body, "hi");
    }
  }
  EXPECT_GT(statuses[200], 100);
  EXPECT_GT(statuses[400], 500);
  EXPECT_TRUE(eventually([&] { return server.idle(); }));
  EXPECT_TRUE(eventually([&] { return open_files() <= files; })) << open_files() << " " << files;
  RawClient check(server.port());
  EXPECT_EQ(check.ask(get("/hello")).body, "hi");
}

}  // namespace
}  // namespace qvl::serve
