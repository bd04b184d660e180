// ONNX Runtime's C interface under RAII and our errors: the library opened at run time, sessions, values, and
// runs that can be cancelled. Private to this room.
#pragma once

#include <onnxruntime_c_api.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "qvl/base/dtype.h"
#include "qvl/base/tensor.h"
#include "qvl/engine/ort/open.h"
#include "qvl/engine/stages.h"

namespace qvl::engine::ort {

// Owns an object of the C interface.
template <typename T>
using Handle = std::unique_ptr<T, void(ORT_API_CALL*)(T*)>;

// The opened library and its environment. Never unloaded: its threads and statics outlive any caller.
class Runtime {
 public:
  // Throws kUnsupported as library_info() says.
  static std::shared_ptr<const Runtime> load(const std::filesystem::path& library);
  ~Runtime();
  Runtime(const Runtime&) = delete;
  Runtime& operator=(const Runtime&) = delete;

  const OrtApi& api() const { return *api_; }
  OrtEnv* env() const { return env_.get(); }
  const OrtMemoryInfo* memory() const { return memory_.get(); }
  const LibraryInfo& info() const { return info_; }

  // Throws for a status that is not null: "[where] ONNX Runtime 1.32.0: its message".
  void check(OrtStatus* status, std::string_view where) const;

 private:
  Runtime();

  const OrtApi* api_ = nullptr;
  LibraryInfo info_;
  Handle<OrtEnv> env_{nullptr, nullptr};
  Handle<OrtMemoryInfo> memory_{nullptr, nullptr};
};

// A tensor in memory of ours, which must outlive it. `elements` of an empty tensor may be null.
Handle<OrtValue> make_value(const Runtime& runtime, const void* elements, DType type, const Shape& shape);

// An input or output of a graph; -1 stands for an extent that varies.
struct Port {
  std::string name;
  DType type = DType::kF32;
  std::vector<int64_t> dims;
};

// One graph, loaded. Safe to run from several threads.
class Graph {
 public:
  // Throws kNotFound, kFormat, kUnsupported naming the file.
  Graph(std::shared_ptr<const Runtime> runtime, const std::filesystem::path& file, const OrtOptions& options);
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  // The same graph with those of `wanted` that are float32 values in it as further outputs. Loaded on the
  // first call, which decides the names; lives as long as this. Exposed values are not fused away, so that
  // the last bits of results can differ.
  const Graph& traced(std::span<const std::string> wanted) const;
  // Of a graph made by traced().
  std::span<const std::string> traced_names() const { return traced_names_; }

  const Runtime& runtime() const { return *runtime_; }
  OrtSession* session() const { return session_.get(); }
  const std::string& where() const { return where_; }

  // Checks that the graph has exactly these inputs and at least these outputs, of these types and ranks, and
  // where an extent is fixed on both sides the same one; throws kMismatch.
  void expect(std::span<const Port> inputs, std::span<const Port> outputs) const;
  // Throws kMismatch when absent.
  const Port& input(std::string_view name) const;
  const Port& output(std::string_view name) const;

  // A binding for run(); one at a time may use it.
  Handle<OrtIoBinding> new_binding() const;
  void bind_input(OrtIoBinding* binding, const char* name, const OrtValue* value) const;
  void bind_output(OrtIoBinding* binding, const char* name, const OrtValue* value) const;
  // For a traced graph: binds the traced values, as the last outputs / copies them out after the run, [rows,
  // columns].
  void bind_traced(OrtIoBinding* binding) const;
  std::vector<Tensor> traced_values(OrtIoBinding* binding) const;

  // Blocks until the graph has run. `poll`, when given, is called about 20 times a second on this thread;
  // once it returns false the run is stopped and kCancelled thrown. `shrink` gives the run's scratch memory
  // back to the system.
  void run(OrtIoBinding* binding, const std::function<bool()>& poll = {}, bool shrink = false) const;

 private:
  // `bytes`: what to load instead of the file, whose folder has the weights; empty: the file.
  void load(const std::string& bytes);
  Graph(std::shared_ptr<const Runtime> runtime, const Graph& base, const std::string& bytes,
        std::vector<std::string> traced);

  std::shared_ptr<const Runtime> runtime_;
  std::filesystem::path file_;
  std::string where_;
  OrtOptions options_;
  bool cpu_;
  std::vector<std::string> traced_names_;
  mutable std::mutex mutex_;
  mutable std::unique_ptr<const Graph> traced_;  // by mutex_
  Handle<OrtSession> session_{nullptr, nullptr};
  std::vector<Port> inputs_;
  std::vector<Port> outputs_;
};

}  // namespace qvl::engine::ort
