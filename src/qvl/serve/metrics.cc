#include "qvl/serve/metrics.h"

#include <algorithm>
#include <cmath>
#include <deque>
#include <limits>
#include <mutex>
#include <optional>
#include <variant>

#include "qvl/base/error.h"
#include "qvl/base/format.h"

namespace qvl::serve {

namespace {

bool is_letter(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}

bool is_name(std::string_view name, bool colons) {
  if (name.empty() || (name[0] >= '0' && name[0] <= '9')) return false;
  return std::ranges::all_of(
      name, [&](char c) { return is_letter(c) || (c >= '0' && c <= '9') || (colons && c == ':'); });
}

// Sorted by name, so that the order they are given in does not make another child.
Labels checked_labels(std::string_view metric, Labels labels, bool histogram) {
  std::ranges::sort(labels);
  for (size_t i = 0; i < labels.size(); ++i) {
    const std::string& name = labels[i].first;
    if (!is_name(name, false) || name.starts_with("__") || (histogram && name == "le")) {
      fail(ErrorCode::kInvalidArgument, metric, "name of a label", "letters, digits and _", name);
    }
    if (i > 0 && labels[i - 1].first == name) {
      fail(ErrorCode::kInvalidArgument, metric, cat("label ", name, " is there twice"));
    }
  }
  return labels;
}

void append_escaped(std::string& out, std::string_view text, bool quotes) {
  for (const char c : text) {
    if (c == '\\') {
      out += "\\\\";
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '"' && quotes) {
      out += "\\\"";
    } else {
      out += c;
    }
  }
}

std::string number(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value > 0 ? "+Inf" : "-Inf";
  if (value == std::floor(value) && std::abs(value) < 1e15) return cat(static_cast<int64_t>(value));
  return cat(value);
}

void append_sample(std::string& out, std::string_view name, std::string_view suffix, const Labels& labels,
                   std::optional<double> le, double value) {
  out.append(name).append(suffix);
  if (!labels.empty() || le) {
    char separator = '{';
    for (const auto& [label, text] : labels) {
      out += separator;
      out.append(label).append("=\"");
      append_escaped(out, text, true);
      out += '"';
      separator = ',';
    }
    if (le) {
      out += separator;
      out.append("le=\"").append(number(*le)).append("\"");
    }
    out += '}';
  }
  out.append(" ").append(number(value)).append("\n");
}

enum class Kind { kCounter, kGauge, kHistogram };

std::string_view kind_name(Kind kind) {
  switch (kind) {
    case Kind::kCounter:
      return "counter";
    case Kind::kGauge:
      return "gauge";
    case Kind::kHistogram:
      return "histogram";
  }
  return "untyped";
}

using Value = std::variant<std::unique_ptr<Counter>, std::unique_ptr<Gauge>, std::unique_ptr<Histogram>,
                           std::function<double()>>;

struct Child {
  Labels labels;
  Value value;
};

struct Family {
  std::string name, help;
  Kind kind;
  std::vector<double> bounds;
  std::deque<Child>
      children;  // a deque: text() walks without the lock over children that stay where they are

  Child* find(const Labels& labels) {
    const auto it = std::ranges::find(children, labels, &Child::labels);
    return it == children.end() ? nullptr : &*it;
  }
};

void append_histogram(std::string& out, const Family& family, const Child& child,
                      const Histogram& histogram) {
  const std::vector<uint64_t> counts = histogram.counts();
  double total = 0;
  for (size_t i = 0; i < counts.size(); ++i) {
    total += static_cast<double>(counts[i]);
    const double bound =
        i < family.bounds.size() ? family.bounds[i] : std::numeric_limits<double>::infinity();
    append_sample(out, family.name, "_bucket", child.labels, bound, total);
  }
  append_sample(out, family.name, "_sum", child.labels, {}, histogram.sum());
  append_sample(out, family.name, "_count", child.labels, {}, total);
}

}  // namespace

Histogram::Histogram(std::vector<double> bounds) : bounds_(std::move(bounds)) {
  counts_ = std::make_unique<std::atomic<uint64_t>[]>(bounds_.size() + 1);
}

void Histogram::observe(double value) {
  if (std::isnan(value)) return;
  const size_t bucket = std::ranges::lower_bound(bounds_, value) - bounds_.begin();
  counts_[bucket].fetch_add(1, std::memory_order_relaxed);
  sum_.fetch_add(value, std::memory_order_relaxed);
}

std::vector<uint64_t> Histogram::counts() const {
  std::vector<uint64_t> counts(bounds_.size() + 1);
  for (size_t i = 0; i < counts.size(); ++i) counts[i] = counts_[i].load(std::memory_order_relaxed);
  return counts;
}

struct Metrics::State {
  mutable std::mutex mutex;
  std::deque<Family> families;

  // The family, made when it is new.
  Family& family(Kind kind, std::string_view name, std::string_view help, std::vector<double> bounds) {
    if (!is_name(name, true)) {
      fail(ErrorCode::kInvalidArgument, "metrics", "name", "letters, digits, _ and :", name);
    }
    const auto it = std::ranges::find(families, name, &Family::name);
    if (it == families.end()) {
      families.push_back({std::string(name), std::string(help), kind, std::move(bounds), {}});
      return families.back();
    }
    if (it->kind != kind || it->help != help || it->bounds != bounds) {
      fail(ErrorCode::kInvalidArgument, name, "metric exists with another type, help or bounds");
    }
    return *it;
  }

  template <typename T>
  T& child(Kind kind, std::string_view name, std::string_view help, std::vector<double> bounds,
           Labels labels) {
    const std::lock_guard lock(mutex);
    labels = checked_labels(name, std::move(labels), kind == Kind::kHistogram);
    Family& f = family(kind, name, help, bounds);
    Child* found = f.find(labels);
    if (!found) {
      std::unique_ptr<T> made;
      if constexpr (std::is_same_v<T, Histogram>) {
        made = std::make_unique<T>(std::move(bounds));
      } else {
        made = std::make_unique<T>();
      }
      found = &f.children.emplace_back(Child{std::move(labels), std::move(made)});
    }
    auto* value = std::get_if<std::unique_ptr<T>>(&found->value);
    if (!value) fail(ErrorCode::kInvalidArgument, name, "metric is read by a callback");
    return **value;
  }
};

Metrics::Metrics() : state_(std::make_unique<State>()) {}
Metrics::~Metrics() = default;

Counter& Metrics::counter(std::string_view name, std::string_view help, Labels labels) {
  return state_->child<Counter>(Kind::kCounter, name, help, {}, std::move(labels));
}

Gauge& Metrics::gauge(std::string_view name, std::string_view help, Labels labels) {
  return state_->child<Gauge>(Kind::kGauge, name, help, {}, std::move(labels));
}

Histogram& Metrics::histogram(std::string_view name, std::string_view help, std::vector<double> bounds,
                              Labels labels) {
  const bool ascending = std::ranges::adjacent_find(bounds, std::greater_equal<>()) == bounds.end();
  if (bounds.empty() || !ascending ||
      !std::ranges::all_of(bounds, [](double b) { return std::isfinite(b); })) {
    fail(ErrorCode::kInvalidArgument, name, "bounds of a histogram are not finite and ascending");
  }
  return state_->child<Histogram>(Kind::kHistogram, name, help, std::move(bounds), std::move(labels));
}

void Metrics::callback(MetricType type, std::string_view name, std::string_view help, Labels labels,
                       std::function<double()> read) {
  const std::lock_guard lock(state_->mutex);
  labels = checked_labels(name, std::move(labels), false);
  Family& f = state_->family(type == MetricType::kCounter ? Kind::kCounter : Kind::kGauge, name, help, {});
  if (f.find(labels)) fail(ErrorCode::kInvalidArgument, name, "metric exists with these labels");
  f.children.emplace_back(Child{std::move(labels), std::move(read)});
}

std::string Metrics::text() const {
  // What is there is fixed under the lock; what is read after it stays where it is for the registry's life.
  std::vector<std::pair<const Family*, std::vector<const Child*>>> all;
  {
    const std::lock_guard lock(state_->mutex);
    for (const Family& f : state_->families) {
      std::vector<const Child*> children;
      for (const Child& c : f.children) children.push_back(&c);
      all.emplace_back(&f, std::move(children));
    }
  }
  std::string out;
  for (const auto& [family, children] : all) {
    out.append("# HELP ").append(family->name).append(" ");
    append_escaped(out, family->help, false);
    out.append("\n# TYPE ").append(family->name).append(" ").append(kind_name(family->kind)).append("\n");
    for (const Child* child : children) {
      if (const auto* counter = std::get_if<std::unique_ptr<Counter>>(&child->value)) {
        append_sample(out, family->name, "", child->labels, {}, (*counter)->value());
      } else if (const auto* gauge = std::get_if<std::unique_ptr<Gauge>>(&child->value)) {
        append_sample(out, family->name, "", child->labels, {}, (*gauge)->value());
      } else if (const auto* histogram = std::get_if<std::unique_ptr<Histogram>>(&child->value)) {
        append_histogram(out, *family, *child, **histogram);
      } else {
        append_sample(out, family->name, "", child->labels, {},
                      std::get<std::function<double()>>(child->value)());
      }
    }
  }
  return out;
}

}  // namespace qvl::serve
