// Builds an ONNX graph node by node (nothing is traced) and serialises it as a ModelProto. Weights are only
// declared: their bytes sit in external-data files that the exporter streams (spec 10). Used by the graphs in
// export/.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "qvl/base/dtype.h"

namespace qvl::onnx {

// One extent of a graph input or output: a number, or a name for what varies ("batch", "patches").
using Dim = std::variant<int64_t, std::string>;
using Dims = std::vector<Dim>;

// The name of a tensor inside one graph; empty: an optional input that is left out.
struct Value {
  std::string name;
  explicit operator bool() const { return !name.empty(); }
};

struct Attribute {
  std::string name;
  std::variant<int64_t, float, std::string, std::vector<int64_t>, std::vector<float>> value;
};
using Attributes = std::vector<Attribute>;

inline constexpr std::string_view kStandardDomain = "";
inline constexpr std::string_view kContribDomain = "com.microsoft";

// What one of several results of a node is called.
struct Output {
  std::string name;      // empty: generated
  bool omitted = false;  // an optional result that is left out: its Value is empty
};

// The number of type UINT4 in files (opset 21; newer than the schema of Debian 12), as Cast takes it.
inline constexpr int64_t kUint4 = 21;

// Where the bytes of an initializer are, relative to the folder of the .onnx file.
struct ExternalData {
  std::string file;  // plain file name
  uint64_t offset = 0;
  uint64_t length = 0;
};

struct ModelInfo {
  int64_t opset = 21;  // of the standard domain
  int64_t ir_version = 10;
  std::string producer_version;
  std::map<std::string, std::string> metadata;
};

class GraphBuilder {
  struct Impl;

 public:
  explicit GraphBuilder(std::string graph_name);
  ~GraphBuilder();
  GraphBuilder(GraphBuilder&&) noexcept;
  GraphBuilder& operator=(GraphBuilder&&) noexcept;

  // The builder of a subgraph (Loop, If) of this graph. Its generated names start with `name`, made unique,
  // so that they cannot hide those of the graphs around it. Values of this graph may be used in it; pass it
  // to control().
  GraphBuilder body(std::string_view name);
  // The same graph for the outermost one, for a body the graph that all of it ends up in: the place of
  // weights and of nodes that read nothing but weights. ONNX Runtime folds these once at load; weights inside
  // a body would stay in memory a second time beside their packed form (measured, 1.32).
  GraphBuilder outermost() const;

  // Graph inputs and outputs, in the order of the calls. Throws kInvalidArgument for a repeated or empty
  // name.
  Value input(std::string name, DType type, Dims dims);
  void output(Value value, DType type, Dims dims);

  // Prefix of the names made from here on ("layer3/"): nested scopes join. Names stay unique by themselves.
  class Scope {
   public:
    Scope(GraphBuilder& builder, std::string_view name);
    ~Scope();
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    Impl* impl_;  // outlives a move of the builder
    size_t previous_length_;
  };

  // Small constants inside the file; equal ones are stored once.
  Value i64(int64_t scalar);
  Value i64s(std::span<const int64_t> values);  // [n]
  Value i64s(std::initializer_list<int64_t> values) { return i64s(std::span(values.begin(), values.size())); }
  Value i32(int32_t scalar);
  Value f32(float scalar);
  Value f32s(std::span<const float> values, Shape shape);
  // Any type from raw little-endian bytes.
  Value constant(DType type, Shape shape, std::span<const std::byte> bytes);

  // An initializer whose bytes are in an external file; of a body too it goes to the outermost graph. The
  // same name again returns the first (same place required, kInvalidArgument otherwise).
  Value weight(std::string name, DType type, Shape shape, const ExternalData& where);
  // The same for UINT4 (opset 21), two elements a byte, the first in the low nibble.
  Value weight_uint4(std::string name, Shape shape, const ExternalData& where);
  Value constant_uint4(Shape shape, std::span<const std::byte> bytes);

  // One node. `out` fixes the name of the (first) output; empty: generated from scope and operator.
  Value node(std::string_view op, std::vector<Value> inputs, Attributes attributes = {},
             std::string_view domain = kStandardDomain, std::string out = {});
  // The same with several results, all of them with generated names, or as told one by one.
  std::vector<Value> nodes(std::string_view op, std::vector<Value> inputs, size_t outputs,
                           Attributes attributes = {}, std::string_view domain = kStandardDomain);
  std::vector<Value> nodes(std::string_view op, std::vector<Value> inputs, const std::vector<Output>& outputs,
                           Attributes attributes = {}, std::string_view domain = kStandardDomain);
  // A node with subgraphs (If, Loop): attribute name -> body, made by body() and complete. A body sees the
  // values of the outer graph by name. Throws kInvalidArgument when a body defines a name that this graph has
  // too.
  std::vector<Value> control(std::string_view op, std::vector<Value> inputs, size_t outputs,
                             std::vector<std::pair<std::string, const GraphBuilder*>> bodies);

  // Element types and shapes are not tracked; onnx.checker and shape inference prove the result in the tests.
  // Common operators, so that graphs read like the formulas:
  Value add(Value a, Value b) { return node("Add", {a, b}); }
  Value sub(Value a, Value b) { return node("Sub", {a, b}); }
  Value mul(Value a, Value b) { return node("Mul", {a, b}); }
  Value div(Value a, Value b) { return node("Div", {a, b}); }
  Value cast(Value a, DType to);
  Value reshape(Value a, std::initializer_list<int64_t> shape) { return node("Reshape", {a, i64s(shape)}); }
  Value transpose(Value a, std::vector<int64_t> perm) {
    return node("Transpose", {a}, {{"perm", std::move(perm)}});
  }
  Value gather(Value data, Value indices, int64_t axis = 0) {
    return node("Gather", {data, indices}, {{"axis", axis}});
  }
  Value concat(std::vector<Value> parts, int64_t axis) {
    return node("Concat", std::move(parts), {{"axis", axis}});
  }
  Value unsqueeze(Value a, std::initializer_list<int64_t> axes) { return node("Unsqueeze", {a, i64s(axes)}); }
  Value squeeze(Value a, std::initializer_list<int64_t> axes) { return node("Squeeze", {a, i64s(axes)}); }
  // start, end on one axis with step 1.
  Value slice(Value a, int64_t axis, int64_t start, int64_t end);

  // Nodes by "domain.operator" (subgraphs included), for the table of what was fused.
  std::map<std::string, int64_t> operator_counts() const;

  // The serialised ModelProto; the same calls give the same bytes. Throws kInvalidArgument for an input of a
  // node, or an output of a graph, that nothing before it defines; kLimit above the 2 GiB that the format
  // allows.
  std::string serialize(const ModelInfo& info) const;

 private:
  explicit GraphBuilder(std::shared_ptr<Impl> impl);
  std::shared_ptr<Impl> impl_;  // shared with the bodies and what outermost() returns
};

}  // namespace qvl::onnx
