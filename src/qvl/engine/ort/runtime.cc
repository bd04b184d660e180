#include "qvl/engine/ort/runtime.h"

#include <dlfcn.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>

#include "qvl/base/error.h"
#include "qvl/base/log.h"
#include "qvl/base/mapped_file.h"
#include "qvl/base/thread_pool.h"
#include "qvl/onnx/expose.h"

namespace qvl::engine::ort {
namespace {

namespace fs = std::filesystem;

constexpr char kLibraryFile[] = "libonnxruntime.so.1";
constexpr char kLibraryVariable[] = "QVL_ONNXRUNTIME_LIB";
constexpr char kHint[] =
    "scripts/lib/onnxruntime.sh fetches it; or pip download onnxruntime, unpack libonnxruntime.so from "
    "the wheel and set QVL_ONNXRUNTIME_LIB to it; native stages need nothing";
constexpr std::chrono::milliseconds kPollInterval{50};
constexpr size_t kMaxGraphBytes = size_t{2} << 30;  // of the format

void ORT_API_CALL log_from_runtime(void*, OrtLoggingLevel severity, const char*, const char*, const char*,
                                   const char* message) {
  log_message(severity >= ORT_LOGGING_LEVEL_ERROR ? LogLevel::kWarning : LogLevel::kDebug,
              "ONNX Runtime: " + std::string(message));
}

// A library file, or the one inside a folder.
fs::path library_in(const fs::path& given) {
  std::error_code error;
  return fs::is_directory(given, error) ? given / kLibraryFile : given;
}

struct Opened {
  void* handle = nullptr;
  fs::path path;
};

Opened open_file(const fs::path& path) {
  // Never closed: the runtime's threads and statics must outlive every user.
  void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
  return {handle, path};
}

Opened open_library(const fs::path& given) {
  fs::path named = given;
  std::string by = "--onnxruntime";
  if (named.empty()) {
    if (const char* set = std::getenv(kLibraryVariable); set && *set) {
      named = set;
      by = kLibraryVariable;
    }
  }
  if (!named.empty()) {
    // Somebody said which one: no other will do.
    const Opened opened = open_file(library_in(named));
    if (!opened.handle) {
      const char* why = dlerror();
      fail(ErrorCode::kUnsupported, "onnx",
           by + ": the library of ONNX Runtime cannot be opened: " + (why ? why : "?"));
    }
    return opened;
  }
  std::string tried;
  for (const fs::path& place : library_places()) {
    std::error_code error;
    const bool by_loader = !place.has_parent_path();
    if (!by_loader && !fs::exists(place, error)) {
      tried += (tried.empty() ? "" : ", ") + place.string();
      continue;
    }
    const Opened opened = open_file(place);
    if (opened.handle) return opened;
    const char* why = dlerror();
    tried += (tried.empty() ? "" : ", ") + (why ? std::string(why) : place.string());
  }
  fail(ErrorCode::kUnsupported, "onnx",
       "the library of ONNX Runtime was not found; tried " + tried + " (" + kHint + ")");
}

ErrorCode code_of(OrtErrorCode code) {
  switch (code) {
    case ORT_NO_SUCHFILE:
      return ErrorCode::kNotFound;
    case ORT_NO_MODEL:
    case ORT_INVALID_PROTOBUF:
    case ORT_INVALID_GRAPH:
      return ErrorCode::kFormat;
    case ORT_INVALID_ARGUMENT:
      return ErrorCode::kInvalidArgument;
    default:
      return ErrorCode::kUnsupported;
  }
}

constexpr std::pair<DType, ONNXTensorElementDataType> kTypes[] = {
    {DType::kF32, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT},
    {DType::kF64, ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE},
    {DType::kF16, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16},
    {DType::kBF16, ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16},
    {DType::kI64, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64},
    {DType::kI32, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32},
    {DType::kI16, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT16},
    {DType::kI8, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8},
    {DType::kU64, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT64},
    {DType::kU32, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT32},
    {DType::kU16, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16},
    {DType::kU8, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8},
    {DType::kBool, ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL}};

ONNXTensorElementDataType to_onnx(DType type) {
  return std::ranges::find(kTypes, type, [](const auto& t) { return t.first; })->second;
}

std::string port_string(const Port& p) {
  std::string text = std::string(dtype_name(p.type)) + " [";
  for (size_t i = 0; i < p.dims.size(); ++i)
    text += (i ? ", " : "") + (p.dims[i] < 0 ? "?" : std::to_string(p.dims[i]));
  return text + "]";
}

bool fits(const Port& actual, const Port& expected) {
  if (actual.type != expected.type || actual.dims.size() != expected.dims.size()) return false;
  for (size_t i = 0; i < actual.dims.size(); ++i) {
    if (actual.dims[i] >= 0 && expected.dims[i] >= 0 && actual.dims[i] != expected.dims[i]) return false;
  }
  return true;
}

std::string names_of(const std::vector<Port>& ports) {
  std::string text;
  for (const Port& p : ports) text += (text.empty() ? "" : ", ") + p.name;
  return text;
}

bool is_cpu(std::string_view provider) {
  return provider.empty() || provider == "cpu" || provider == "CPU" || provider == "CPUExecutionProvider";
}

// glibc raises the size from which blocks are mapped, and given back, each time such a block is freed, up to 32 MB. What a
// session folds away while it is made would stay in the heap then: 0.3 GB of the 4B's scales.
void keep_large_blocks_mapped() {
#ifdef __GLIBC__
  mallopt(M_MMAP_THRESHOLD, 128 << 10);  // where glibc begins; naming it keeps it there
#endif
}

}  // namespace

std::vector<fs::path> library_places() {
  std::vector<fs::path> places;
  std::error_code error;
  const fs::path self = fs::read_symlink("/proc/self/exe", error);
  if (!error) {
    places.push_back(self.parent_path() / kLibraryFile);
    places.push_back(self.parent_path() / ".." / "lib" / kLibraryFile);
  }
  if (*QVL_ONNXRUNTIME_PREFIX) places.push_back(fs::path(QVL_ONNXRUNTIME_PREFIX) / "lib" / kLibraryFile);
  // Plain names: the loader's own search.
  places.emplace_back(kLibraryFile);
  places.emplace_back("libonnxruntime.so");
  return places;
}

Runtime::Runtime() = default;
Runtime::~Runtime() = default;

std::shared_ptr<const Runtime> Runtime::load(const fs::path& library) {
  const Opened opened = open_library(library);
  const std::string where = opened.path.string();
  using GetBase = const OrtApiBase*(ORT_API_CALL*)();
  const auto get_base = reinterpret_cast<GetBase>(dlsym(opened.handle, "OrtGetApiBase"));
  if (!get_base) fail(ErrorCode::kUnsupported, where, "no library of ONNX Runtime: OrtGetApiBase is missing");
  const OrtApiBase* base = get_base();
  std::shared_ptr<Runtime> runtime(new Runtime);
  runtime->info_.version = base->GetVersionString();
  runtime->info_.path = opened.path;
  runtime->info_.api_version = ORT_API_VERSION;
  runtime->api_ = base->GetApi(ORT_API_VERSION);
  if (!runtime->api_) {
    fail(ErrorCode::kUnsupported, where, "version of ONNX Runtime",
         "1." + std::to_string(ORT_API_VERSION) + " or newer", runtime->info_.version, kHint);
  }
  const OrtApi& api = *runtime->api_;

  OrtEnv* env = nullptr;
  runtime->check(
      api.CreateEnvWithCustomLogger(log_from_runtime, nullptr, ORT_LOGGING_LEVEL_WARNING, "qvl", &env),
      where);
  runtime->env_ = {env, api.ReleaseEnv};
  OrtMemoryInfo* memory = nullptr;
  runtime->check(api.CreateCpuMemoryInfo(OrtDeviceAllocator, OrtMemTypeDefault, &memory), where);
  runtime->memory_ = {memory, api.ReleaseMemoryInfo};
  char** providers = nullptr;
  int count = 0;
  runtime->check(api.GetAvailableProviders(&providers, &count), where);
  runtime->info_.providers.assign(providers, providers + count);
  if (OrtStatus* status = api.ReleaseAvailableProviders(providers, count)) api.ReleaseStatus(status);
  return runtime;
}

LibraryInfo library_info(const fs::path& library) {
  return Runtime::load(library)->info();
}

void Runtime::check(OrtStatus* status, std::string_view where) const {
  if (!status) return;
  const Handle<OrtStatus> owned(status, api_->ReleaseStatus);
  std::string message = api_->GetErrorMessage(status);
  std::ranges::replace(message, '\n', ' ');
  fail(code_of(api_->GetErrorCode(status)), where, "ONNX Runtime " + info_.version + ": " + message);
}

Handle<OrtValue> make_value(const Runtime& runtime, const void* elements, DType type, const Shape& shape) {
  static const int64_t nothing = 0;  // the runtime refuses null also where there are no elements
  const size_t bytes = static_cast<size_t>(element_count(shape)) * dtype_size_bytes(type);
  OrtValue* value = nullptr;
  // The runtime writes only to what is bound as an output.
  void* p = const_cast<void*>(bytes ? elements : &nothing);
  runtime.check(runtime.api().CreateTensorWithDataAsOrtValue(runtime.memory(), p, bytes, shape.data(),
                                                             shape.size(), to_onnx(type), &value),
                "onnx");
  return {value, runtime.api().ReleaseValue};
}

Graph::Graph(std::shared_ptr<const Runtime> runtime, const fs::path& file, const OrtOptions& options)
    : runtime_(std::move(runtime)),
      file_(file),
      where_(file.string()),
      options_(options),
      cpu_(is_cpu(options.provider)) {
  options_.progress = nullptr;
  if (!fs::exists(file)) fail(ErrorCode::kNotFound, where_, "no such graph");
  load({});
}

Graph::Graph(std::shared_ptr<const Runtime> runtime, const Graph& base, const std::string& bytes,
             std::vector<std::string> traced)
    : runtime_(std::move(runtime)),
      file_(base.file_),
      where_(base.where_),
      options_(base.options_),
      cpu_(base.cpu_),
      traced_names_(std::move(traced)) {
  load(bytes);
}

const Graph& Graph::traced(std::span<const std::string> wanted) const {
  const std::lock_guard lock(mutex_);
  if (!traced_) {
    onnx::ExposedModel exposed = onnx::expose_values(read_file(file_, kMaxGraphBytes), wanted, where_);
    traced_.reset(new Graph(runtime_, *this, exposed.bytes, std::move(exposed.names)));
  }
  return *traced_;
}

void Graph::load(const std::string& bytes) {
  keep_large_blocks_mapped();
  const OrtApi& api = runtime_->api();
  const OrtOptions& options = options_;
  const auto check = [&](OrtStatus* status) { runtime_->check(status, where_); };

  OrtSessionOptions* raw = nullptr;
  check(api.CreateSessionOptions(&raw));
  const Handle<OrtSessionOptions> settings(raw, api.ReleaseSessionOptions);
  check(api.SetIntraOpNumThreads(raw, options.threads > 0 ? options.threads : available_processors()));
  check(api.SetInterOpNumThreads(raw, 1));
  check(api.SetSessionExecutionMode(raw, ORT_SEQUENTIAL));
  check(api.SetSessionGraphOptimizationLevel(raw, ORT_ENABLE_ALL));
  // Sizes differ from call to call: a remembered pattern of allocations never fits.
  check(api.DisableMemPattern(raw));
  // Its threads spin inside a run and sleep between runs, when ours (or another stage's) need the processors.
  std::map<std::string, std::string> config = {{"session.force_spinning_stop", "1"}};
  for (const auto& [key, value] : options.session_config) config[key] = value;
  if (!bytes.empty())
    config["session.model_external_initializers_file_folder_path"] = file_.parent_path().string();
  for (const auto& [key, value] : config) check(api.AddSessionConfigEntry(raw, key.c_str(), value.c_str()));
  if (!cpu_) {
    std::vector<const char*> keys, values;
    for (const auto& [key, value] : options.provider_options) {
      keys.push_back(key.c_str());
      values.push_back(value.c_str());
    }
    try {
      check(api.SessionOptionsAppendExecutionProvider(raw, options.provider.c_str(), keys.data(),
                                                      values.data(), keys.size()));
    } catch (const Error& e) {
      std::string available;
      for (const std::string& p : runtime_->info().providers)
        available += (available.empty() ? "" : ", ") + p;
      fail(ErrorCode::kUnsupported, "onnx",
           "execution provider '" + options.provider + "' cannot be used: " + e.what() +
               " (this library has " + available + ")");
    }
  } else if (!options.provider_options.empty()) {
    fail(ErrorCode::kInvalidArgument, "onnx", "options for the execution provider 'cpu'", "none",
         "'" + options.provider_options.begin()->first + "'");
  }

  OrtSession* session = nullptr;
  if (bytes.empty()) {
    check(api.CreateSession(runtime_->env(), file_.c_str(), raw, &session));
  } else {
    check(api.CreateSessionFromArray(runtime_->env(), bytes.data(), bytes.size(), raw, &session));
  }
  session_ = {session, api.ReleaseSession};

  OrtAllocator* allocator = nullptr;
  check(api.GetAllocatorWithDefaultOptions(&allocator));
  const auto read = [&](auto count, auto name_of, auto type_of, std::vector<Port>& ports) {
    size_t n = 0;
    check(count(session, &n));
    for (size_t i = 0; i < n; ++i) {
      Port port;
      char* name = nullptr;
      check(name_of(session, i, allocator, &name));
      port.name = name;
      check(api.AllocatorFree(allocator, name));
      OrtTypeInfo* info = nullptr;
      check(type_of(session, i, &info));
      const Handle<OrtTypeInfo> owned(info, api.ReleaseTypeInfo);
      const OrtTensorTypeAndShapeInfo* tensor = nullptr;
      check(api.CastTypeInfoToTensorInfo(info, &tensor));
      if (!tensor) fail(ErrorCode::kMismatch, where_, "'" + port.name + "' is not a tensor");
      ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
      check(api.GetTensorElementType(tensor, &type));
      const auto known = std::ranges::find(kTypes, type, [](const auto& t) { return t.second; });
      if (known == std::end(kTypes))
        fail(ErrorCode::kUnsupported, where_, "element type of '" + port.name + "'");
      port.type = known->first;
      size_t rank = 0;
      check(api.GetDimensionsCount(tensor, &rank));
      port.dims.resize(rank);
      check(api.GetDimensions(tensor, port.dims.data(), rank));
      ports.push_back(std::move(port));
    }
  };
  read(api.SessionGetInputCount, api.SessionGetInputName, api.SessionGetInputTypeInfo, inputs_);
  read(api.SessionGetOutputCount, api.SessionGetOutputName, api.SessionGetOutputTypeInfo, outputs_);
}

namespace {

const Port& find_port(const std::vector<Port>& ports, std::string_view name, const std::string& where,
                      const char* kind) {
  const auto it = std::ranges::find(ports, name, &Port::name);
  if (it == ports.end()) {
    fail(ErrorCode::kMismatch, where, std::string(kind) + " of the graph", "'" + std::string(name) + "'",
         names_of(ports), "the graph is not of this package format");
  }
  return *it;
}

}  // namespace

const Port& Graph::input(std::string_view name) const {
  return find_port(inputs_, name, where_, "input");
}
const Port& Graph::output(std::string_view name) const {
  return find_port(outputs_, name, where_, "output");
}

void Graph::expect(std::span<const Port> inputs, std::span<const Port> outputs) const {
  const auto check = [&](const Port& actual, const Port& expected, const char* kind) {
    if (!fits(actual, expected)) {
      fail(ErrorCode::kMismatch, where_, std::string(kind) + " '" + expected.name + "'",
           port_string(expected), port_string(actual));
    }
  };
  for (const Port& p : inputs) check(input(p.name), p, "input");
  for (const Port& p : outputs) check(output(p.name), p, "output");
  for (const Port& p : inputs_) {
    if (std::ranges::find(inputs, p.name, &Port::name) == inputs.end()) {
      fail(ErrorCode::kMismatch, where_,
           "the graph wants an input '" + p.name + "' that this qvl does not know");
    }
  }
}

Handle<OrtIoBinding> Graph::new_binding() const {
  OrtIoBinding* binding = nullptr;
  runtime_->check(runtime_->api().CreateIoBinding(session_.get(), &binding), where_);
  return {binding, runtime_->api().ReleaseIoBinding};
}

void Graph::bind_input(OrtIoBinding* binding, const char* name, const OrtValue* value) const {
  runtime_->check(runtime_->api().BindInput(binding, name, value), where_);
}

void Graph::bind_output(OrtIoBinding* binding, const char* name, const OrtValue* value) const {
  runtime_->check(runtime_->api().BindOutput(binding, name, value), where_);
}

void Graph::bind_traced(OrtIoBinding* binding) const {
  for (const std::string& name : traced_names_) {
    runtime_->check(runtime_->api().BindOutputToDevice(binding, name.c_str(), runtime_->memory()), where_);
  }
}

std::vector<Tensor> Graph::traced_values(OrtIoBinding* binding) const {
  const OrtApi& api = runtime_->api();
  const auto check = [&](OrtStatus* status) { runtime_->check(status, where_); };
  OrtAllocator* allocator = nullptr;
  check(api.GetAllocatorWithDefaultOptions(&allocator));
  OrtValue** raw = nullptr;
  size_t count = 0;
  check(api.GetBoundOutputValues(binding, allocator, &raw, &count));
  std::vector<Handle<OrtValue>> values;
  for (size_t i = 0; i < count; ++i) values.emplace_back(raw[i], api.ReleaseValue);
  if (raw) check(api.AllocatorFree(allocator, raw));

  std::vector<Tensor> out;
  for (size_t i = count - traced_names_.size(); i < count; ++i) {
    OrtTensorTypeAndShapeInfo* info = nullptr;
    check(api.GetTensorTypeAndShape(values[i].get(), &info));
    const Handle<OrtTensorTypeAndShapeInfo> owned(info, api.ReleaseTensorTypeAndShapeInfo);
    size_t rank = 0;
    check(api.GetDimensionsCount(info, &rank));
    Shape shape(rank);
    check(api.GetDimensions(info, shape.data(), rank));
    const int64_t columns = rank ? shape.back() : 1;
    Tensor value(DType::kF32, {columns ? element_count(shape) / columns : 0, columns});
    void* data = nullptr;
    check(api.GetTensorMutableData(values[i].get(), &data));
    std::memcpy(value.data(), data, value.size_bytes());
    out.push_back(std::move(value));
  }
  return out;
}

void Graph::run(OrtIoBinding* binding, const std::function<bool()>& poll, bool shrink) const {
  const OrtApi& api = runtime_->api();
  OrtRunOptions* raw = nullptr;
  runtime_->check(api.CreateRunOptions(&raw), where_);
  const Handle<OrtRunOptions> options(raw, api.ReleaseRunOptions);
  if (shrink && cpu_) {
    runtime_->check(api.AddRunConfigEntry(raw, "memory.enable_memory_arena_shrinkage", "cpu:0"), where_);
  }
  if (!poll) {
    runtime_->check(api.RunWithBinding(session_.get(), raw, binding), where_);
    return;
  }

  // The run goes to a thread of its own, so that `poll` is called where the caller expects it.
  std::mutex mutex;
  std::condition_variable ended;
  bool done = false;
  OrtStatus* status = nullptr;
  std::thread runner([&] {
    OrtStatus* result = api.RunWithBinding(session_.get(), raw, binding);
    const std::lock_guard lock(mutex);
    status = result;
    done = true;
    ended.notify_one();
  });
  bool cancelled = false;
  std::exception_ptr thrown;
  {
    std::unique_lock lock(mutex);
    while (!ended.wait_for(lock, kPollInterval, [&] { return done; })) {
      if (cancelled) continue;
      lock.unlock();
      try {
        cancelled = !poll();
      } catch (...) {
        thrown = std::current_exception();
        cancelled = true;
      }
      if (cancelled) {
        if (OrtStatus* s = api.RunOptionsSetTerminate(raw)) api.ReleaseStatus(s);
      }
      lock.lock();
    }
  }
  runner.join();
  if (thrown || cancelled) {
    if (status) api.ReleaseStatus(status);
    if (thrown) std::rethrow_exception(thrown);
    fail(ErrorCode::kCancelled, "onnx", "cancelled");
  }
  runtime_->check(status, where_);
}

}  // namespace qvl::engine::ort
