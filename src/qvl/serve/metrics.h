// Prometheus metrics: counters, gauges and histograms with labels, written in the text format 0.0.4. Adding
// to one is an atomic operation; looking one up takes a lock, so keep the reference where it is hot.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace qvl::serve {

// Name and value; values are any UTF-8.
using Labels = std::vector<std::pair<std::string, std::string>>;

class Counter {
 public:
  // Never negative (ignored: a counter does not fall).
  void add(double amount = 1) {
    if (amount > 0) value_.fetch_add(amount, std::memory_order_relaxed);
  }
  double value() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<double> value_{0};
};

class Gauge {
 public:
  void set(double value) { value_.store(value, std::memory_order_relaxed); }
  void add(double amount) { value_.fetch_add(amount, std::memory_order_relaxed); }
  double value() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<double> value_{0};
};

class Histogram {
 public:
  // `bounds`: upper ends of the buckets, ascending; the one for everything is added.
  explicit Histogram(std::vector<double> bounds);
  // A value that is not a number is ignored.
  void observe(double value);

  const std::vector<double>& bounds() const { return bounds_; }
  // Of each bucket alone (bounds().size() + 1 of them), not added up.
  std::vector<uint64_t> counts() const;
  double sum() const { return sum_.load(std::memory_order_relaxed); }

 private:
  std::vector<double> bounds_;
  std::unique_ptr<std::atomic<uint64_t>[]> counts_;
  std::atomic<double> sum_{0};
};

enum class MetricType { kCounter, kGauge };

class Metrics {
 public:
  Metrics();
  ~Metrics();
  Metrics(const Metrics&) = delete;
  Metrics& operator=(const Metrics&) = delete;

  // The one of this name and these labels, made when it is new; the reference lives as long as the registry.
  // The order of labels does not matter. All of one name share type, help and bounds. Throws kInvalidArgument
  // for a name Prometheus does not allow, a label named twice, and for another type, help or bounds than the
  // name has already.
  Counter& counter(std::string_view name, std::string_view help, Labels labels = {});
  Gauge& gauge(std::string_view name, std::string_view help, Labels labels = {});
  Histogram& histogram(std::string_view name, std::string_view help, std::vector<double> bounds,
                       Labels labels = {});
  // A counter or gauge whose value is asked for when the page is written, on that thread, without the
  // registry's lock held by anyone else's counters. `read` must not call the registry. Throws as above, and
  // for one that exists.
  void callback(MetricType type, std::string_view name, std::string_view help, Labels labels,
                std::function<double()> read);

  // The page, families in the order of their first appearance.
  std::string text() const;
  static constexpr std::string_view kContentType = "text/plain; version=0.0.4; charset=utf-8";

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// process_resident_memory_bytes, process_virtual_memory_bytes, process_open_fds, process_max_fds,
// process_threads, process_start_time_seconds, process_cpu_seconds_total: from /proc, NaN where that cannot
// be read.
void add_process_metrics(Metrics& metrics);

}  // namespace qvl::serve
