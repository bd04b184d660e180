#include "qvl/serve/metrics.h"

#include <gtest/gtest.h>

#include <cmath>
#include <ctime>
#include <limits>
#include <map>
#include <optional>
#include <sstream>
#include <thread>

#include "qvl/base/error.h"

namespace qvl::serve {
namespace {

// A reader of the text format 0.0.4, written from its description and not from our writer.
struct Page {
  std::map<std::string, std::string> help, type;
  std::map<std::string, double> samples;  // name{label=value,...} with values unescaped
  std::vector<std::string> order;         // of families
};

std::string unescaped(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '\\') {
      out += text[i];
      continue;
    }
    ++i;
    if (i >= text.size()) throw std::runtime_error("backslash at the end");
    out += text[i] == 'n' ? '\n' : text[i];
  }
  return out;
}

std::string read_labels(const std::string& line, size_t& at) {
  std::string key = "{";
  ++at;
  while (line.at(at) != '}') {
    const size_t equals = line.find("=\"", at);
    if (equals == std::string::npos) throw std::runtime_error("label without a value: " + line);
    size_t end = equals + 2;
    while (line.at(end) != '"') end += line[end] == '\\' ? 2 : 1;
    key += line.substr(at, equals - at) + "=" + unescaped(line.substr(equals + 2, end - equals - 2)) + ",";
    at = end + 1;
    if (line.at(at) == ',') ++at;
  }
  ++at;
  return key + "}";
}

Page parse(const std::string& text) {
  Page page;
  if (!text.ends_with('\n')) throw std::runtime_error("no line end at the end");
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) {
    if (line.starts_with("# ")) {
      const size_t name_end = line.find(' ', 7);
      const std::string name = line.substr(7, name_end - 7), rest = line.substr(name_end + 1);
      if (line.starts_with("# HELP ")) {
        page.help[name] = unescaped(rest);
        page.order.push_back(name);
      } else if (line.starts_with("# TYPE ")) {
        if (!page.type.emplace(name, rest).second) throw std::runtime_error("type twice: " + name);
      }
      continue;
    }
    size_t at = line.find_first_of("{ ");
    std::string key = line.substr(0, at);
    if (line[at] == '{') key += read_labels(line, at);
    if (line.at(at) != ' ') throw std::runtime_error("no blank before the value: " + line);
    const std::string value = line.substr(at + 1);
    const double number = value == "+Inf" ? std::numeric_limits<double>::infinity() : std::stod(value);
    if (!page.samples.emplace(key, number).second) throw std::runtime_error("sample twice: " + key);
  }
  return page;
}

TEST(Metrics, WhatIsWrittenCanBeRead) {
  Metrics metrics;
  Counter& ok =
      metrics.counter("qvl_requests_total", "Requests.\nBy \\ route", {{"route", "/v1"}, {"code", "200"}});
  metrics
      .counter("qvl_requests_total", "Requests.\nBy \\ route", {{"route", "a\"b\\c\nd"}, {"code", "4,{}="}})
      .add(2);
  metrics.gauge("qvl_queue", "Waiting").set(-1.5);
  Histogram& seconds = metrics.histogram("qvl_seconds", "Time", {0.1, 1, 10}, {{"kind", "x"}});
  ok.add();
  ok.add(41);
  ok.add(-5);
  for (const double value : {0.05, 0.1, 0.5, 10.0, 11.0, 1e9}) seconds.observe(value);
  seconds.observe(std::nan(""));
  metrics.callback(MetricType::kGauge, "qvl_read", "Read when asked", {}, [] { return 7.25; });
  const Page page = parse(metrics.text());
  EXPECT_EQ(page.order,
            (std::vector<std::string>{"qvl_requests_total", "qvl_queue", "qvl_seconds", "qvl_read"}));
  EXPECT_EQ(page.help.at("qvl_requests_total"), "Requests.\nBy \\ route");
  EXPECT_EQ(page.type.at("qvl_requests_total"), "counter");
  EXPECT_EQ(page.type.at("qvl_queue"), "gauge");
  EXPECT_EQ(page.type.at("qvl_seconds"), "histogram");
  EXPECT_EQ(page.samples.at("qvl_requests_total{code=200,route=/v1,}"), 42);
  EXPECT_EQ(page.samples.at("qvl_requests_total{code=4,{}=,route=a\"b\\c\nd,}"), 2);
  EXPECT_EQ(page.samples.at("qvl_queue"), -1.5);
  EXPECT_EQ(page.samples.at("qvl_read"), 7.25);
  EXPECT_EQ(page.samples.at("qvl_seconds_bucket{kind=x,le=0.1,}"), 2);  // bounds belong to their bucket
  EXPECT_EQ(page.samples.at("qvl_seconds_bucket{kind=x,le=1,}"), 3);
  EXPECT_EQ(page.samples.at("qvl_seconds_bucket{kind=x,le=10,}"), 4);
  EXPECT_EQ(page.samples.at("qvl_seconds_bucket{kind=x,le=+Inf,}"), 6);
  EXPECT_EQ(page.samples.at("qvl_seconds_count{kind=x,}"), 6);
  EXPECT_DOUBLE_EQ(page.samples.at("qvl_seconds_sum{kind=x,}"), 0.05 + 0.1 + 0.5 + 10 + 11 + 1e9);
}

TEST(Metrics, NumbersKeepTheirDigits) {
  Metrics metrics;
  const std::vector<double> values = {0.1, 1e-9, 123456789.125, 9007199254740993.0, -3, 1e300};
  for (size_t i = 0; i < values.size(); ++i) {
    metrics.gauge("g", "", {{"i", std::to_string(i)}}).set(values[i]);
  }
  const Page page = parse(metrics.text());
  for (size_t i = 0; i < values.size(); ++i)
    EXPECT_EQ(page.samples.at("g{i=" + std::to_string(i) + ",}"), values[i]);
}

TEST(Metrics, OneOfEachNameAndLabels) {
  Metrics metrics;
  Counter& a = metrics.counter("c", "help", {{"x", "1"}, {"y", "2"}});
  EXPECT_EQ(&a, &metrics.counter("c", "help", {{"y", "2"}, {"x", "1"}}));
  EXPECT_NE(&a, &metrics.counter("c", "help", {{"x", "1"}}));
  EXPECT_THROW(metrics.gauge("c", "help"), Error);
  EXPECT_THROW(metrics.counter("c", "other"), Error);
  EXPECT_THROW(metrics.callback(MetricType::kCounter, "c", "help", {{"x", "1"}}, [] { return 0.0; }), Error);
  metrics.histogram("h", "help", {1, 2});
  EXPECT_THROW(metrics.histogram("h", "help", {1, 3}), Error);
  EXPECT_THROW(metrics.histogram("h2", "help", {2, 1}), Error);
  EXPECT_THROW(metrics.histogram("h2", "help", {}), Error);
  EXPECT_THROW(metrics.histogram("h2", "help", {1}, {{"le", "x"}}), Error);
  for (const std::string_view bad : {"", "1a", "a-b", "a b", "\xc3\xa4"}) {
    EXPECT_THROW(metrics.counter(bad, "help"), Error) << bad;
    EXPECT_THROW(metrics.counter("good", "help", {{std::string(bad), "v"}}), Error) << bad;
  }
  EXPECT_THROW(metrics.counter("good", "help", {{"__reserved", "v"}}), Error);
  EXPECT_THROW(metrics.counter("good", "help", {{"a", "v"}, {"a", "w"}}), Error);
  EXPECT_EQ(parse(metrics.text()).type.count("h2"), 0u);  // what was refused left nothing
}

TEST(Metrics, ManyThreadsLoseNothing) {
  Metrics metrics;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 5000; ++i) {
        metrics.counter("c", "h", {{"t", std::to_string(i % 3)}}).add();
        metrics.histogram("h", "h", {10, 20}).observe(t * 10);
        if (i % 500 == 0) parse(metrics.text());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  const Page page = parse(metrics.text());
  double sum = 0;
  for (int i = 0; i < 3; ++i) sum += page.samples.at("c{t=" + std::to_string(i) + ",}");
  EXPECT_EQ(sum, 20'000);
  EXPECT_EQ(page.samples.at("h_count"), 20'000);
  EXPECT_EQ(page.samples.at("h_sum"), 5000 * (0 + 10 + 20 + 30));
}

TEST(Metrics, OfTheProcess) {
  Metrics metrics;
  add_process_metrics(metrics);
  volatile double work = 0;
  for (int i = 0; i < 3'000'000; ++i) work = work + i;
  const Page page = parse(metrics.text());
  EXPECT_GT(page.samples.at("process_resident_memory_bytes"), 1e6);
  EXPECT_GT(page.samples.at("process_virtual_memory_bytes"),
            page.samples.at("process_resident_memory_bytes"));
  EXPECT_GE(page.samples.at("process_open_fds"), 3);
  EXPECT_GT(page.samples.at("process_max_fds"), page.samples.at("process_open_fds"));
  EXPECT_GE(page.samples.at("process_threads"), 1);
  EXPECT_GT(page.samples.at("process_cpu_seconds_total"), 0.001);
  EXPECT_NEAR(page.samples.at("process_start_time_seconds"), static_cast<double>(std::time(nullptr)), 600);
  EXPECT_EQ(page.type.at("process_cpu_seconds_total"), "counter");
}

}  // namespace
}  // namespace qvl::serve
