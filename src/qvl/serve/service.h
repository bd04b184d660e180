// The server's routes: requests in, pictures loaded, answers scheduled, replies out. Between http.h (sockets) and
// scheduler.h (inference); what a request may say is openai_request.h's business.
#pragma once

#include <chrono>
#include <future>
#include <memory>
#include <optional>
#include <string>

#include "qvl/generate/disk_memory.h"
#include "qvl/generate/pipeline.h"
#include "qvl/grammar/grammar.h"
#include "qvl/serve/http.h"
#include "qvl/serve/media.h"
#include "qvl/serve/metrics.h"
#include "qvl/serve/openai_types.h"
#include "qvl/serve/scheduler.h"

namespace qvl::serve {

struct ServiceOptions {
  SchedulerOptions scheduler;
  MediaPolicy media;
  std::string model_id;                 // in /v1/models and replies
  bool only_model_id = false;           // requests that name another model: 404
  std::string fingerprint;              // system_fingerprint
  generate::AnswerOptions defaults;     // what a request leaves open: sampling comes from the checkpoint, max_tokens, speculation
  image::PixelOverrides pixels;         // what a request leaves open; max_pixels is also the most that one may ask for
  size_t max_body_bytes = size_t{64} << 20;
  int64_t max_images = 64;              // pictures and videos of a request
  int64_t max_image_pixels = 0;         // of an original; 0: the decoders' own limit
  int64_t context_tokens = 0;           // prompt and answer of a request; 0: the model's context
  std::chrono::seconds request_timeout{600};  // from its arrival to the last token
  bool read_ahead = true;               // answers are read as the next turn's prompt while nobody waits
  bool page = true;
  bool metrics_need_key = true;
};

using GrammarFuture = std::shared_future<std::shared_ptr<const grammar::GrammarEngine>>;

class Service {
 public:
  // `disk` may be null. `grammar` is waited for by the first request that needs it (making one takes a second); not valid():
  // such requests are refused with a clear 400.
  Service(std::shared_ptr<const engine::Engine> engine, std::shared_ptr<const generate::Assets> assets,
          std::shared_ptr<generate::ImageMemory> memory, std::shared_ptr<generate::DiskMemory> disk,
          GrammarFuture grammar, ServiceOptions options);
  ~Service();
  Service(const Service&) = delete;
  Service& operator=(const Service&) = delete;

  // POST /v1/chat/completions, /v1/completions, GET /v1/models[/ID], /health, /metrics, /openapi.json, and the page. The
  // server must be stopped before the service goes. Sets the options that make its errors and counts ours.
  void prepare(HttpOptions& http);
  void add_routes(HttpServer& server);

  // Answers in the making end within `grace`; whoever waits is told that the server stops.
  void stop(std::chrono::milliseconds grace);

  Scheduler::Load load() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace qvl::serve
