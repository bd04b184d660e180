// `qvl serve`: the OpenAI-compatible server and its page. Options to the service's settings, signals to a graceful stop;
// the work is in the room serve.
#include <csignal>
#include <condition_variable>
#include <fstream>
#include <iostream>
#include <memory>
#include <mutex>
#include <thread>

#include "qvl/apps/cli.h"
#include "qvl/base/error.h"
#include "qvl/base/format.h"
#include "qvl/base/log.h"
#include "qvl/base/sha256.h"
#include "qvl/generate/prefill_chunk.h"
#include "qvl/serve/service.h"

namespace qvl::apps {
namespace {

namespace fs = std::filesystem;

struct ServeOptions {
  std::string model;
  EngineChoice engine;
  PixelChoice pixels;
  MemoryChoice memory;
  std::string speculate = "auto";
  std::string host = "127.0.0.1";
  int64_t port = 8080;
  std::string model_id;
  bool only_model_id = false;
  int64_t slots = 4;
  int64_t queue = 64;
  int64_t context = 32768;
  int64_t max_tokens = generate::kDefaultMaxTokens;
  int64_t prefill_chunk = generate::kPrefillChunkTokens;
  std::string kv_memory;
  std::vector<std::string> api_keys;
  std::string api_key_file;
  bool open_metrics = false;
  bool image_urls = false;
  std::vector<std::string> image_hosts;
  std::string image_root;
  std::string max_body = "64M";
  std::string max_image = "32M";
  int64_t max_images = 64;
  int64_t max_image_pixels = 0;
  int64_t timeout_s = 600;
  int64_t grace_s = 30;
  int64_t connections = 256;
  std::vector<std::string> origins;
  std::vector<std::string> names;
  bool no_page = false;
  bool no_read_ahead = false;
};

// Turns the first SIGINT or SIGTERM into a flag that others can wait for; the second ends the process. Made before any
// other thread, so that all of them leave these signals alone.
class StopSignals {
 public:
  StopSignals() {
    sigemptyset(&heard_->set);
    sigaddset(&heard_->set, SIGINT);
    sigaddset(&heard_->set, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &heard_->set, nullptr);
    std::thread([heard = heard_] {
      int signal = 0;
      sigwait(&heard->set, &signal);
      {
        std::lock_guard lock(heard->mutex);
        heard->signal = signal;
        interrupt_flag() = true;  // loading ends, too
      }
      heard->changed.notify_all();
      sigwait(&heard->set, &signal);
      _exit(kExitInterrupted);
    }).detach();
  }

  int wait() {
    std::unique_lock lock(heard_->mutex);
    heard_->changed.wait(lock, [this] { return heard_->signal != 0; });
    return heard_->signal;
  }

 private:
  // The thread's as well: it waits for the second signal until the process is gone.
  struct Heard {
    sigset_t set{};
    std::mutex mutex;
    std::condition_variable changed;
    int signal = 0;
  };
  std::shared_ptr<Heard> heard_ = std::make_shared<Heard>();
};

size_t size_option(const char* name, const std::string& text) {
  const std::optional<uint64_t> bytes = parse_size(text);
  if (!bytes || *bytes == 0) throw UsageError(fmt::format("{}: expected a size such as 500M or 2G, got {}", name, text));
  return static_cast<size_t>(*bytes);
}

// Half of what the system could give now: the other half is the weights' pages and everyone else's.
int64_t default_kv_bytes() {
  std::ifstream in("/proc/meminfo");
  std::string key, unit;
  int64_t kib = 0;
  while (in >> key >> kib >> unit) {
    if (key == "MemAvailable:") return kib * 1024 / 2;
  }
  return 0;
}

// One key a line; empty lines and those that begin with # are none.
std::vector<std::string> read_keys(const ServeOptions& o) {
  std::vector<std::string> keys = o.api_keys;
  if (!o.api_key_file.empty()) {
    std::ifstream in(o.api_key_file);
    if (!in) fail_errno(o.api_key_file, "cannot read the API keys");
    for (std::string line; std::getline(in, line);) {
      while (!line.empty() && (line.back() == '\r' || line.back() == ' ' || line.back() == '\t')) line.pop_back();
      if (!line.empty() && line.front() != '#') keys.push_back(line);
    }
    if (keys.empty()) fail(ErrorCode::kInvalidArgument, o.api_key_file, "API keys", "at least one line", "none");
  }
  for (const std::string& key : keys) {
    if (key.size() < 8) fail(ErrorCode::kInvalidArgument, "serve", "API key", "8 characters or more", cat(key.size()));
  }
  return keys;
}

serve::ServiceOptions service_options(const ServeOptions& o, const fs::path& folder, const OpenModel& model) {
  serve::ServiceOptions out;
  out.scheduler = {.slots = static_cast<int>(o.slots),
                   .queue_limit = o.queue,
                   .prefill_chunk_tokens = o.prefill_chunk,
                   .kv_limit_bytes = o.kv_memory.empty() ? default_kv_bytes() : static_cast<int64_t>(size_option("--kv-memory", o.kv_memory))};
  out.media.urls = o.image_urls || !o.image_hosts.empty();
  out.media.allowed_hosts = o.image_hosts;
  out.media.max_bytes = size_option("--max-image-size", o.max_image);
  if (!o.image_root.empty()) out.media.file_root = fs::path(o.image_root);
  out.model_id = !o.model_id.empty() ? o.model_id : fs::canonical(folder).filename().string();
  out.only_model_id = o.only_model_id;
  Sha256 identity;
  identity.add(cat(QVL_VERSION, "\n", model.engine->info().vision_identity, "\n", model.engine->info().text_identity));
  out.fingerprint = "qvl-" + identity.finish().substr(0, 12);
  out.defaults.max_tokens = o.max_tokens;
  out.defaults.speculation = parse_speculation(o.speculate);
  out.pixels = o.pixels.overrides();
  out.max_body_bytes = size_option("--max-body", o.max_body);
  out.max_images = o.max_images;
  out.max_image_pixels = o.max_image_pixels;
  out.read_ahead = !o.no_read_ahead;
  out.context_tokens = o.context;
  out.request_timeout = std::chrono::seconds(o.timeout_s);
  out.page = !o.no_page;
  out.metrics_need_key = !o.open_metrics;
  return out;
}

int serve_until_signal(const ServeOptions& o) {
  StopSignals signals;
  log_to_stderr(o.engine.verbose);
  const std::vector<std::string> keys = read_keys(o);
  ProgressBar bar;
  const fs::path folder = resolve_model(o.model);
  const OpenModel model = open_model(folder, o.engine, bar);
  bar.clear();

  // Takes a second for a vocabulary of 150,000 tokens; most requests never ask.
  serve::GrammarFuture grammar;
  if (grammar::is_available()) {
    grammar = std::async(std::launch::async, [assets = model.assets] {
      return std::make_shared<const grammar::GrammarEngine>(assets->tokenizer, assets->end_ids);
    });
  }
  serve::Service service(model.engine, model.assets, std::make_shared<generate::ImageMemory>(generate::kDefaultImageMemoryBytes),
                         open_disk_memory(o.memory, model), grammar, service_options(o, folder, model));
  serve::HttpOptions http;
  http.host = o.host;
  http.port = static_cast<uint16_t>(o.port);
  http.max_connections = static_cast<size_t>(o.connections);
  http.worker_threads = 16;  // they wait for pictures from elsewhere more than they compute
  http.api_keys = keys;
  http.allowed_origins = o.origins;
  http.allowed_hosts = o.names;
  service.prepare(http);
  serve::HttpServer server(http);
  service.add_routes(server);
  server.start();
  if (keys.empty() && !server.loopback_only()) fmt::print(stderr, "qvl: warning: {} can be reached from other machines and asks for no key (--api-key-file)\n", o.host);
  if (!grammar.valid()) fmt::print(stderr, "qvl: warning: built without the grammar engine: response_format json_object and json_schema are refused\n");
  write_stdout(fmt::format("listening on {}\n", server.url()));
  if (!o.no_page) fmt::print(stderr, "qvl: open {} in a browser, or use {}/v1 as base_url; Ctrl-C stops\n", server.url(), server.url());

  signals.wait();
  fmt::print(stderr, "qvl: stopping; answers in the making have {} s (a second signal ends at once)\n", o.grace_s);
  service.stop(std::chrono::seconds(o.grace_s));
  server.stop(std::chrono::seconds(2));
  return kExitOk;
}

}  // namespace

Registration register_serve(CLI::App& app) {
  auto o = std::make_shared<ServeOptions>();
  CLI::App* command = app.add_subcommand("serve", "An OpenAI-compatible server, and a page to ask about pictures");
  set_usage(*command, "qvl serve [MODEL] [--host 127.0.0.1] [--port 8080] [OPTIONS]");
  command->footer(
      "Routes: POST /v1/chat/completions, POST /v1/completions, GET /v1/models, /health, /metrics (Prometheus), /openapi.json, and\n"
      "the page at /. Fields, limits and statuses: docs/server.md. One line on stdout says where it listens.\n"
      "Ctrl-C or SIGTERM: no new requests, answers in the making end within --grace, then exit code 0.");
  command->add_option("MODEL", o->model, "Checkpoint folder or exported package (default: the small model)")->type_name("FOLDER");
  command->add_option("--host", o->host, "Address to listen on; \"::\" and 0.0.0.0 are all, unix:/PATH a socket file")->type_name("ADDRESS")->group("Network");
  command->add_option("--port", o->port, "Port; 0: any free one")->check(whole_between(0, 65535))->group("Network");
  command->add_option("--api-key", o->api_keys, "Key that requests must carry (Authorization: Bearer KEY); other users of this machine can see it here: prefer the file")->type_name("KEY")->group("Network");
  command->add_option("--api-key-file", o->api_key_file, "File with one key a line")->type_name("FILE")->group("Network");
  command->add_option("--cors-origin", o->origins, "Page of another site that may use the API (\"https://example.com\" or *)")->type_name("ORIGIN")->group("Network");
  command->add_option("--allowed-host", o->names, "Name that the Host header may have; listening on loopback: localhost alone")->type_name("NAME")->group("Network");
  command->add_option("--connections", o->connections, "Open connections at most; more get 503")->check(whole_between(1, 65536))->group("Network");
  command->add_flag("--open-metrics", o->open_metrics, "/metrics asks for no key")->group("Network");
  command->add_flag("--no-page", o->no_page, "Only the API")->group("Network");
  command->add_option("--model-id", o->model_id, "Name in /v1/models and replies (default: the folder's)")->type_name("NAME")->group("Answers");
  command->add_flag("--only-model-id", o->only_model_id, "Refuse requests that name another model (default: any name gets this one, and replies say which)")->group("Answers");
  command->add_option("--max-tokens", o->max_tokens, "Tokens of an answer where the request says nothing")->check(whole_between(1, INT64_MAX))->group("Answers");
  add_speculate_option(*command, o->speculate);
  command->add_option("--slots", o->slots, "Answers in the making at once; they share each decode step")->check(whole_between(1, 64))->group("Load");
  command->add_option("--queue", o->queue, "Requests that may wait for a slot; more get 429 and Retry-After")->check(whole_between(0, 1 << 20))->group("Load");
  command->add_option("--context", o->context, "Tokens of prompt and answer of a request, at most")->check(whole_between(16, INT64_MAX))->group("Load");
  command->add_option("--kv-memory", o->kv_memory, "Keys and values of all conversations, at most (default: half of the memory that is free)")->type_name("SIZE")->group("Load");
  command->add_option("--prefill-chunk", o->prefill_chunk, "Tokens of a prompt computed at a time")->check(whole_between(1, 1 << 20))->group("Load");
  command->add_flag("--no-read-ahead", o->no_read_ahead, "Do not use idle time to read an answer as the next turn's prompt")->group("Load");
  command->add_option("--request-timeout", o->timeout_s, "Seconds from a request's arrival to its last token")->check(whole_between(1, 1 << 20))->group("Load");
  command->add_option("--grace", o->grace_s, "Seconds that answers in the making have when the server stops")->check(whole_between(0, 1 << 20))->group("Load");
  command->add_flag("--image-urls", o->image_urls, "Fetch http(s) pictures of any public host; never a private, loopback or link-local address")->group("Pictures");
  command->add_option("--image-host", o->image_hosts, "Fetch http(s) pictures of this host alone (\"example.com\", \"*.example.com\", \"example.com:8443\"); repeatable")->type_name("HOST")->group("Pictures");
  command->add_option("--image-root", o->image_root, "Folder below which requests may name picture files")->type_name("FOLDER")->group("Pictures");
  command->add_option("--max-image-size", o->max_image, "Bytes of a picture file")->type_name("SIZE")->group("Pictures");
  command->add_option("--max-image-pixels", o->max_image_pixels, "Width times height of an original (default: what the decoders allow)")->check(whole_between(1, INT64_MAX))->group("Pictures");
  command->add_option("--max-images", o->max_images, "Pictures and videos of a request")->check(whole_between(0, 4096))->group("Pictures");
  command->add_option("--max-body", o->max_body, "Bytes of a request; more get 413")->type_name("SIZE")->group("Pictures");
  add_pixel_options(*command, o->pixels);
  add_memory_options(*command, o->memory);
  add_engine_options(*command, o->engine);
  return {command, [o] { return serve_until_signal(*o); }};
}

}  // namespace qvl::apps
