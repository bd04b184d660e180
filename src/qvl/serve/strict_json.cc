#include "qvl/serve/strict_json.h"

#include <string>
#include <unordered_set>
#include <vector>

#include "qvl/base/format.h"
#include "qvl/serve/api_error.h"

namespace qvl::serve {
namespace {

constexpr size_t kReasonBytes = 160;

// Builds the value itself, because the library's own builder keeps the last of two equal keys and looks at every key of
// an object for each that is added.
class Builder final : public nlohmann::json_sax<Json> {
 public:
  explicit Builder(const JsonLimits& limits) : limits_(limits) {}

  Json take() { return std::move(root_); }

  bool null() override { return add(Json()) != nullptr; }
  bool boolean(bool value) override { return add(value) != nullptr; }
  bool number_integer(int64_t value) override { return add(value) != nullptr; }
  bool number_unsigned(uint64_t value) override { return add(value) != nullptr; }
  bool number_float(double value, const std::string&) override { return add(value) != nullptr; }
  bool string(std::string& value) override { return add(std::move(value)) != nullptr; }
  bool binary(Json::binary_t&) override { return false; }
  bool start_object(size_t) override { return open(Json::object()); }
  bool start_array(size_t) override { return open(Json::array()); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }

  bool key(std::string& name) override {
    Frame& frame = stack_.back();
    if (!frame.keys.insert(name).second) {
      const std::string where = path().empty() ? name : path() + "." + name;
      throw bad_request("duplicate_key", where, cat("Invalid JSON body: the key '", where, "' stands there twice."));
    }
    frame.key = std::move(name);
    return true;
  }

  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception& e) override {
    // What was read last may be a whole picture: only the reason is passed on.
    std::string reason = e.what();
    if (const size_t at = reason.find("] "); at != std::string::npos) reason = reason.substr(at + 2);
    if (const size_t at = reason.find("; last read"); at != std::string::npos) reason.resize(at);
    if (const size_t at = reason.find("number overflow"); at != std::string::npos) reason = "a number is too large";
    if (reason.size() > kReasonBytes) reason.resize(kReasonBytes);
    throw bad_request("invalid_json", "",
                      cat("We could not parse the JSON body of your request: ", reason, " (byte ", position, ")."));
  }

 private:
  struct Frame {
    Json* node;
    std::string key;  // of the member that comes next or came last
    std::unordered_set<std::string> keys;
  };

  // Live pointers are those of the values around the current one: none of these grows before its child is closed.
  Json* add(Json value) {
    if (++values_ > limits_.max_values) {
      throw bad_request("invalid_json", "", cat("The JSON body holds more than ", limits_.max_values, " values."));
    }
    if (stack_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    Frame& frame = stack_.back();
    if (frame.node->is_array()) {
      auto& items = frame.node->get_ref<Json::array_t&>();
      items.push_back(std::move(value));
      return &items.back();
    }
    auto& members = frame.node->get_ref<Json::object_t&>();
    members.emplace_back(frame.key, std::move(value));
    return &members.back().second;
  }

  bool open(Json value) {
    if (static_cast<int64_t>(stack_.size()) >= limits_.max_depth) {
      throw bad_request("invalid_json", "", cat("The JSON body nests deeper than ", limits_.max_depth, " levels."));
    }
    stack_.push_back({add(std::move(value)), {}, {}});
    return true;
  }

  bool close() {
    stack_.pop_back();
    return true;
  }

  std::string path() const {
    std::string out;
    for (size_t i = 0; i + 1 < stack_.size(); ++i) {
      const Frame& f = stack_[i];
      if (f.node->is_array()) {
        out += cat("[", f.node->size() - 1, "]");
      } else {
        if (!out.empty()) out += ".";
        out += f.key;
      }
    }
    return out;
  }

  JsonLimits limits_;
  Json root_;
  std::vector<Frame> stack_;
  int64_t values_ = 0;
};

}  // namespace

Json parse_strict_json(std::string_view body, const JsonLimits& limits) {
  Builder builder(limits);
  Json::sax_parse(body.begin(), body.end(), &builder);
  return builder.take();
}

}  // namespace qvl::serve
