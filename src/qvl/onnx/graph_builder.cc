#include "qvl/onnx/graph_builder.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>

#include <algorithm>
#include <bit>
#include <functional>
#include <set>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "qvl/base/error.h"
#include "qvl/base/format.h"
#include "qvl/onnx/proto.h"

namespace qvl::onnx {

static_assert(std::endian::native == std::endian::little, "raw tensor data is little-endian");

int32_t proto_type(DType type) {
  using P = ::onnx::TensorProto;
  switch (type) {
    case DType::kF64:
      return P::DOUBLE;
    case DType::kF32:
      return P::FLOAT;
    case DType::kF16:
      return P::FLOAT16;
    case DType::kBF16:
      return P::BFLOAT16;
    case DType::kI64:
      return P::INT64;
    case DType::kI32:
      return P::INT32;
    case DType::kI16:
      return P::INT16;
    case DType::kI8:
      return P::INT8;
    case DType::kU64:
      return P::UINT64;
    case DType::kU32:
      return P::UINT32;
    case DType::kU16:
      return P::UINT16;
    case DType::kU8:
      return P::UINT8;
    case DType::kBool:
      return P::BOOL;
  }
  fail(ErrorCode::kInvalidArgument, "onnx", "element type without a counterpart in ONNX");
}

namespace {

// protobuf refuses messages of 2 GiB and more.
constexpr size_t kMaxModelBytes = (size_t{1} << 31) - 1;

using NameSet = std::unordered_set<std::string>;

void set_attribute(::onnx::AttributeProto& proto, const Attribute& attribute) {
  proto.set_name(attribute.name);
  std::visit(
      [&proto](const auto& value) {
        using T = std::decay_t<decltype(value)>;
        if constexpr (std::is_same_v<T, int64_t>) {
          proto.set_type(::onnx::AttributeProto::INT);
          proto.set_i(value);
        } else if constexpr (std::is_same_v<T, float>) {
          proto.set_type(::onnx::AttributeProto::FLOAT);
          proto.set_f(value);
        } else if constexpr (std::is_same_v<T, std::string>) {
          proto.set_type(::onnx::AttributeProto::STRING);
          proto.set_s(value);
        } else if constexpr (std::is_same_v<T, std::vector<int64_t>>) {
          proto.set_type(::onnx::AttributeProto::INTS);
          for (const int64_t v : value) proto.add_ints(v);
        } else {
          proto.set_type(::onnx::AttributeProto::FLOATS);
          for (const float v : value) proto.add_floats(v);
        }
      },
      attribute.value);
}

void set_value_info(::onnx::ValueInfoProto& proto, const std::string& name, DType type, const Dims& dims) {
  proto.set_name(name);
  ::onnx::TypeProto::Tensor* tensor = proto.mutable_type()->mutable_tensor_type();
  tensor->set_elem_type(proto_type(type));
  ::onnx::TensorShapeProto* shape = tensor->mutable_shape();  // present also for a scalar
  for (const Dim& dim : dims) {
    ::onnx::TensorShapeProto::Dimension* d = shape->add_dim();
    if (const int64_t* number = std::get_if<int64_t>(&dim)) {
      d->set_dim_value(*number);
    } else {
      d->set_dim_param(std::get<std::string>(dim));
    }
  }
}

// All names that a graph defines itself: inputs, initializers, results of nodes.
void for_each_definition(const ::onnx::GraphProto& graph,
                         const std::function<void(const std::string&)>& visit) {
  for (const auto& input : graph.input()) visit(input.name());
  for (const auto& initializer : graph.initializer()) visit(initializer.name());
  for (const auto& node : graph.node()) {
    for (const std::string& name : node.output()) {
      if (!name.empty()) visit(name);
    }
    for (const auto& attribute : node.attribute()) {
      if (attribute.has_g()) for_each_definition(attribute.g(), visit);
    }
  }
}

// `visible`: names of the graphs around. Every use must come after its definition.
void check_graph(const ::onnx::GraphProto& graph, NameSet visible) {
  NameSet own;
  const auto define = [&](const std::string& name) {
    own.insert(name);
    visible.insert(name);
  };
  for (const auto& input : graph.input()) define(input.name());
  for (const auto& initializer : graph.initializer()) define(initializer.name());
  for (const auto& node : graph.node()) {
    for (const std::string& name : node.input()) {
      if (!name.empty() && !visible.contains(name)) {
        fail(ErrorCode::kInvalidArgument, graph.name(),
             fmt::format("node '{}' ({}) reads '{}', which nothing before it defines", node.name(),
                         node.op_type(), name));
      }
    }
    for (const auto& attribute : node.attribute()) {
      if (attribute.has_g()) check_graph(attribute.g(), visible);
    }
    for (const std::string& name : node.output()) {
      if (!name.empty()) define(name);
    }
  }
  for (const auto& output : graph.output()) {
    if (!own.contains(output.name())) {
      fail(ErrorCode::kInvalidArgument, graph.name(),
           fmt::format("output '{}' is not computed in this graph", output.name()));
    }
  }
}

void collect_domains(const ::onnx::GraphProto& graph, std::set<std::string>& domains) {
  for (const auto& node : graph.node()) {
    domains.insert(node.domain());
    for (const auto& attribute : node.attribute()) {
      if (attribute.has_g()) collect_domains(attribute.g(), domains);
    }
  }
}

void count_operators(const ::onnx::GraphProto& graph, std::map<std::string, int64_t>& counts) {
  for (const auto& node : graph.node()) {
    ++counts[node.domain().empty() ? node.op_type() : node.domain() + "." + node.op_type()];
    for (const auto& attribute : node.attribute()) {
      if (attribute.has_g()) count_operators(attribute.g(), counts);
    }
  }
}

}  // namespace

struct GraphBuilder::Impl {
  ::onnx::GraphProto graph;
  NameSet names;                                           // of values in this graph
  NameSet bodies;                                          // prefixes given to bodies
  NameSet weights;                                         // declared by weight()
  std::unordered_map<std::string, int64_t> repeats;        // next number of a generated name
  std::unordered_map<std::string, std::string> constants;  // type, shape and bytes -> name
  std::string scope;                                       // "layer3/mlp/"
  std::string constant_prefix;                             // of a body: its name
  std::shared_ptr<Impl> outer;                             // of a body: the outermost graph

  // Takes `name` as it is.
  void claim(const std::string& name, std::string_view what) {
    if (name.empty()) fail(ErrorCode::kInvalidArgument, graph.name(), fmt::format("{} without a name", what));
    if (!names.insert(name).second) {
      fail(ErrorCode::kInvalidArgument, graph.name(), fmt::format("{} '{}': the name is taken", what, name));
    }
  }

  // scope + stem, with a number from the second one on.
  std::string fresh(std::string_view stem) {
    const std::string base = scope + std::string(stem);
    while (true) {
      const int64_t n = repeats[base]++;
      std::string name = n == 0 ? base : base + "_" + std::to_string(n);
      if (names.insert(name).second) return name;
    }
  }

  ::onnx::TensorProto& add_initializer(const std::string& name, int32_t type, const Shape& shape) {
    ::onnx::TensorProto* tensor = graph.add_initializer();
    tensor->set_name(name);
    tensor->set_data_type(type);
    for (const int64_t extent : shape) tensor->add_dims(extent);
    return *tensor;
  }

  Value constant(int32_t type, const Shape& shape, std::span<const std::byte> bytes,
                 uint64_t expected_bytes) {
    if (bytes.size() != expected_bytes) {
      fail(ErrorCode::kInvalidArgument, graph.name(),
           fmt::format("constant of shape {}", shape_string(shape)), fmt::format("{} bytes", expected_bytes),
           std::to_string(bytes.size()));
    }
    std::string key = fmt::format("{} {} ", type, shape_string(shape));
    key.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    const auto found = constants.find(key);
    if (found != constants.end()) return {found->second};
    std::string name = fmt::format("{}const/{}", constant_prefix, constants.size());
    claim(name, "constant");
    add_initializer(name, type, shape).set_raw_data(bytes.data(), bytes.size());
    constants.emplace(std::move(key), name);
    return {name};
  }

  Value weight(std::string name, int32_t type, const Shape& shape, uint64_t expected_bytes,
               const ExternalData& where) {
    if (where.length != expected_bytes) {
      fail(ErrorCode::kInvalidArgument, graph.name(),
           fmt::format("length of weight '{}' {}", name, shape_string(shape)),
           fmt::format("{} bytes", expected_bytes), std::to_string(where.length));
    }
    if (where.file.empty() || where.file.find('/') != std::string::npos) {
      fail(ErrorCode::kInvalidArgument, graph.name(), fmt::format("file of weight '{}'", name),
           "a plain file name", "'" + where.file + "'");
    }
    ::onnx::TensorProto tensor;
    tensor.set_name(name);
    tensor.set_data_type(type);
    for (const int64_t extent : shape) tensor.add_dims(extent);
    tensor.set_data_location(::onnx::TensorProto::EXTERNAL);
    const auto entry = [&tensor](const char* key, std::string value) {
      ::onnx::StringStringEntryProto* e = tensor.add_external_data();
      e->set_key(key);
      e->set_value(std::move(value));
    };
    entry("location", where.file);
    entry("offset", std::to_string(where.offset));
    entry("length", std::to_string(where.length));

    if (weights.contains(name)) {
      const auto& all = graph.initializer();
      const auto first =
          std::find_if(all.begin(), all.end(), [&](const auto& t) { return t.name() == name; });
      if (first->SerializeAsString() != tensor.SerializeAsString()) {
        fail(ErrorCode::kInvalidArgument, graph.name(),
             fmt::format("weight '{}' is declared twice with different type, shape or place", name));
      }
      return {name};
    }
    claim(name, "weight");
    weights.insert(name);
    graph.add_initializer()->Swap(&tensor);
    return {std::move(name)};
  }

  ::onnx::NodeProto& add_node(std::string_view op, const std::vector<Value>& inputs,
                              std::string_view domain) {
    if (op.empty()) fail(ErrorCode::kInvalidArgument, graph.name(), "node without an operator");
    ::onnx::NodeProto* node = graph.add_node();
    node->set_op_type(std::string(op));
    if (!domain.empty()) node->set_domain(std::string(domain));
    // Left-out optional inputs at the end are not written at all: a checker counts them.
    size_t count = inputs.size();
    while (count > 0 && !inputs[count - 1]) --count;
    for (size_t i = 0; i < count; ++i) node->add_input(inputs[i].name);
    return *node;
  }
};

GraphBuilder::GraphBuilder(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}
GraphBuilder::GraphBuilder(std::string graph_name) : impl_(std::make_shared<Impl>()) {
  if (graph_name.empty()) fail(ErrorCode::kInvalidArgument, "onnx", "graph without a name");
  impl_->graph.set_name(std::move(graph_name));
}
GraphBuilder::~GraphBuilder() = default;
GraphBuilder::GraphBuilder(GraphBuilder&&) noexcept = default;
GraphBuilder& GraphBuilder::operator=(GraphBuilder&&) noexcept = default;

GraphBuilder GraphBuilder::body(std::string_view name) {
  std::string unique = impl_->scope + std::string(name);
  for (int64_t n = 1; !impl_->bodies.insert(unique).second; ++n)
    unique = fmt::format("{}{}_{}", impl_->scope, name, n);
  GraphBuilder made(unique);
  made.impl_->scope = unique + "/";
  made.impl_->constant_prefix = unique + "/";
  made.impl_->outer = outermost().impl_;
  return made;
}

GraphBuilder GraphBuilder::outermost() const {
  return GraphBuilder(impl_->outer ? impl_->outer : impl_);
}

GraphBuilder::Scope::Scope(GraphBuilder& builder, std::string_view name)
    : impl_(builder.impl_.get()), previous_length_(impl_->scope.size()) {
  impl_->scope.append(name).append("/");
}
GraphBuilder::Scope::~Scope() {
  impl_->scope.resize(previous_length_);
}

Value GraphBuilder::input(std::string name, DType type, Dims dims) {
  impl_->claim(name, "input");
  set_value_info(*impl_->graph.add_input(), name, type, dims);
  return {std::move(name)};
}

void GraphBuilder::output(Value value, DType type, Dims dims) {
  if (!value) fail(ErrorCode::kInvalidArgument, impl_->graph.name(), "output without a name");
  for (const auto& existing : impl_->graph.output()) {
    if (existing.name() == value.name) {
      fail(ErrorCode::kInvalidArgument, impl_->graph.name(),
           fmt::format("output '{}' is declared twice", value.name));
    }
  }
  set_value_info(*impl_->graph.add_output(), value.name, type, dims);
}

Value GraphBuilder::i64(int64_t scalar) {
  return constant(DType::kI64, {}, std::as_bytes(std::span(&scalar, 1)));
}
Value GraphBuilder::i64s(std::span<const int64_t> values) {
  return constant(DType::kI64, {static_cast<int64_t>(values.size())}, std::as_bytes(values));
}
Value GraphBuilder::i32(int32_t scalar) {
  return constant(DType::kI32, {}, std::as_bytes(std::span(&scalar, 1)));
}
Value GraphBuilder::f32(float scalar) {
  return constant(DType::kF32, {}, std::as_bytes(std::span(&scalar, 1)));
}
Value GraphBuilder::f32s(std::span<const float> values, Shape shape) {
  return constant(DType::kF32, std::move(shape), std::as_bytes(values));
}

Value GraphBuilder::constant(DType type, Shape shape, std::span<const std::byte> bytes) {
  return impl_->constant(proto_type(type), shape, bytes,
                         static_cast<uint64_t>(element_count(shape)) * dtype_size_bytes(type));
}
Value GraphBuilder::constant_uint4(Shape shape, std::span<const std::byte> bytes) {
  return impl_->constant(kUint4, shape, bytes, static_cast<uint64_t>(element_count(shape) + 1) / 2);
}

Value GraphBuilder::weight(std::string name, DType type, Shape shape, const ExternalData& where) {
  return outermost().impl_->weight(std::move(name), proto_type(type), shape,
                                   static_cast<uint64_t>(element_count(shape)) * dtype_size_bytes(type),
                                   where);
}
Value GraphBuilder::weight_uint4(std::string name, Shape shape, const ExternalData& where) {
  return outermost().impl_->weight(std::move(name), kUint4, shape,
                                   static_cast<uint64_t>(element_count(shape) + 1) / 2, where);
}

Value GraphBuilder::node(std::string_view op, std::vector<Value> inputs, Attributes attributes,
                         std::string_view domain, std::string out) {
  return nodes(op, std::move(inputs), std::vector<Output>{{.name = std::move(out)}}, std::move(attributes),
               domain)[0];
}

std::vector<Value> GraphBuilder::nodes(std::string_view op, std::vector<Value> inputs, size_t outputs,
                                       Attributes attributes, std::string_view domain) {
  return nodes(op, std::move(inputs), std::vector<Output>(outputs), std::move(attributes), domain);
}

std::vector<Value> GraphBuilder::nodes(std::string_view op, std::vector<Value> inputs,
                                       const std::vector<Output>& outputs, Attributes attributes,
                                       std::string_view domain) {
  if (outputs.empty())
    fail(ErrorCode::kInvalidArgument, impl_->graph.name(), fmt::format("{} without outputs", op));
  std::vector<Value> made;
  for (const Output& output : outputs) {
    if (output.omitted) {
      made.emplace_back();
    } else if (output.name.empty()) {
      made.push_back({impl_->fresh(op)});
    } else {
      impl_->claim(output.name, fmt::format("output of {}", op));
      made.push_back({output.name});
    }
  }
  ::onnx::NodeProto& proto = impl_->add_node(op, inputs, domain);
  const auto named =
      std::find_if(made.begin(), made.end(), [](const Value& v) { return static_cast<bool>(v); });
  if (named == made.end())
    fail(ErrorCode::kInvalidArgument, impl_->graph.name(), fmt::format("{} without outputs", op));
  proto.set_name(named->name);
  size_t count = made.size();
  while (!made[count - 1]) --count;
  for (size_t i = 0; i < count; ++i) proto.add_output(made[i].name);
  for (const Attribute& attribute : attributes) set_attribute(*proto.add_attribute(), attribute);
  return made;
}

std::vector<Value> GraphBuilder::control(std::string_view op, std::vector<Value> inputs, size_t outputs,
                                         std::vector<std::pair<std::string, const GraphBuilder*>> bodies) {
  for (const auto& [attribute, builder] : bodies) {
    for_each_definition(builder->impl_->graph, [&](const std::string& name) {
      if (impl_->names.contains(name)) {
        fail(ErrorCode::kInvalidArgument, impl_->graph.name(),
             fmt::format(
                 "body '{}' of {} defines '{}', which the graph around it has too (make bodies with body())",
                 builder->impl_->graph.name(), op, name));
      }
    });
  }
  std::vector<Value> made = nodes(op, std::move(inputs), outputs);
  ::onnx::NodeProto& proto = *impl_->graph.mutable_node(impl_->graph.node_size() - 1);
  for (const auto& [attribute, builder] : bodies) {
    ::onnx::AttributeProto* a = proto.add_attribute();
    a->set_name(attribute);
    a->set_type(::onnx::AttributeProto::GRAPH);
    *a->mutable_g() = builder->impl_->graph;
  }
  return made;
}

Value GraphBuilder::cast(Value a, DType to) {
  return node("Cast", {std::move(a)}, {{"to", int64_t{proto_type(to)}}});
}

Value GraphBuilder::slice(Value a, int64_t axis, int64_t start, int64_t end) {
  return node("Slice", {std::move(a), i64s({start}), i64s({end}), i64s({axis})});
}

std::map<std::string, int64_t> GraphBuilder::operator_counts() const {
  std::map<std::string, int64_t> counts;
  count_operators(impl_->graph, counts);
  return counts;
}

std::string GraphBuilder::serialize(const ModelInfo& info) const {
  check_graph(impl_->graph, {});
  ::onnx::ModelProto model;
  model.set_ir_version(info.ir_version);
  model.set_producer_name("qvl");
  if (!info.producer_version.empty()) model.set_producer_version(info.producer_version);
  std::set<std::string> domains{std::string(kStandardDomain)};
  collect_domains(impl_->graph, domains);
  for (const std::string& domain : domains) {
    ::onnx::OperatorSetIdProto* opset = model.add_opset_import();
    opset->set_domain(domain);
    opset->set_version(domain == kStandardDomain ? info.opset : 1);
  }
  for (const auto& [key, value] : info.metadata) {
    ::onnx::StringStringEntryProto* entry = model.add_metadata_props();
    entry->set_key(key);
    entry->set_value(value);
  }
  *model.mutable_graph() = impl_->graph;

  if (model.ByteSizeLong() > kMaxModelBytes) {
    fail(ErrorCode::kLimit, impl_->graph.name(), "size of the model file",
         fmt::format("at most {} bytes", kMaxModelBytes), std::to_string(model.ByteSizeLong()),
         "large tensors belong in external data");
  }
  std::string bytes;
  {
    google::protobuf::io::StringOutputStream stream(&bytes);
    google::protobuf::io::CodedOutputStream coded(&stream);
    coded.SetSerializationDeterministic(true);
    if (!model.SerializeToCodedStream(&coded)) {
      fail(ErrorCode::kInvalidArgument, impl_->graph.name(), "the model could not be serialised");
    }
  }
  return bytes;
}

}  // namespace qvl::onnx
