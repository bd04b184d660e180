#include "qvl/serve/service.h"

#include <algorithm>
#include <cmath>
#include <condition_variable>
#include <ctime>
#include <mutex>
#include <thread>
#include <utility>

#include "qvl/base/error.h"
#include "qvl/base/format.h"
#include "qvl/base/log.h"
#include "qvl/base/stopwatch.h"
#include "qvl/generate/report.h"
#include "qvl/serve/constraint.h"
#include "qvl/serve/reply_writer.h"
#include "qvl/serve/openai_request.h"
#include "qvl/serve/openapi.h"
#include "qvl/serve/page.h"

namespace qvl::serve {
namespace {

// Small enough for a human's idea of "at once", large enough for a picture on two cores.
const std::vector<double> kSecondsBounds = {0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500};
// A stream that waits for its turn shows a sign of life so often.
constexpr auto kSignOfLife = std::chrono::seconds(5);
const std::vector<double> kRateBounds = {1, 2, 4, 6, 8, 10, 15, 20, 30, 50, 100, 200, 500, 1000};

void send_json(Responder& responder, int status, const Json& body) {
  responder.send(status, {{"Content-Type", "application/json"}}, dump_json(body));
}

// Whose turn it is: who shares a key or an address shares a place in the line.
std::string client_of(const HttpRequest& request) {
  if (const std::string* key = request.header("authorization")) return *key;
  const size_t colon = request.peer.rfind(':');
  return request.peer.substr(0, colon);
}

}  // namespace

struct Service::Impl {
  std::shared_ptr<const engine::Engine> engine;
  std::shared_ptr<const generate::Assets> assets;
  GrammarFuture grammar;
  ServiceOptions options;
  ServerFacts facts;
  int64_t started;
  Json engine_json;
  Scheduler scheduler;
  Metrics metrics;

  // Looked up once.
  Counter* prompt_tokens;
  Counter* cached_tokens;
  Counter* image_tokens;
  Counter* answer_tokens;
  Counter* drafted_tokens;
  Counter* accepted_tokens;
  Counter* images_encoded;
  Counter* images_remembered;
  Counter* image_patches;
  Histogram* first_token_s;
  Histogram* total_s;
  Histogram* decode_rate;

  Impl(std::shared_ptr<const engine::Engine> the_engine, std::shared_ptr<const generate::Assets> the_assets,
       std::shared_ptr<generate::ImageMemory> memory, std::shared_ptr<generate::DiskMemory> disk,
       GrammarFuture the_grammar, ServiceOptions given)
      : engine(the_engine),
        assets(the_assets),
        grammar(std::move(the_grammar)),
        options(std::move(given)),
        started(static_cast<int64_t>(std::time(nullptr))),
        engine_json(generate::engine_info_json(engine->info())),
        scheduler(the_engine, the_assets, std::move(memory), std::move(disk), options.scheduler) {
    facts.model_ids = {options.model_id};
    facts.accept_any_model = !options.only_model_id;
    facts.variant = assets->chat_template.variant;
    facts.has_grammar = grammar.valid();
    facts.vocabulary = assets->tokenizer.vocab_size();
    facts.context_tokens = context();
    facts.max_media = options.max_images;
    if (options.pixels.max_pixels) facts.max_pixels = *options.pixels.max_pixels;
    add_metrics();
    keeper = std::thread([this] { keep_streams_alive(); });
  }

  int64_t context() const {
    const int64_t own = engine->config().text.max_positions;
    return options.context_tokens > 0 ? std::min(options.context_tokens, own) : own;
  }

  void add_metrics() {
    prompt_tokens = &metrics.counter("qvl_prompt_tokens_total", "Tokens of prompts, those of pictures and those found in memory included");
    cached_tokens = &metrics.counter("qvl_cached_prompt_tokens_total", "Tokens of prompts that were found in memory");
    image_tokens = &metrics.counter("qvl_image_tokens_total", "Tokens of prompts that stand for pictures");
    answer_tokens = &metrics.counter("qvl_completion_tokens_total", "Tokens of answers");
    drafted_tokens = &metrics.counter("qvl_drafted_tokens_total", "Guessed tokens that were checked");
    accepted_tokens = &metrics.counter("qvl_accepted_tokens_total", "Guessed tokens that were said");
    images_encoded = &metrics.counter("qvl_images_total", "Pictures and videos of answered requests", {{"memory", "miss"}});
    images_remembered = &metrics.counter("qvl_images_total", "Pictures and videos of answered requests", {{"memory", "hit"}});
    image_patches = &metrics.counter("qvl_vision_patches_total", "Patches encoded");
    first_token_s = &metrics.histogram("qvl_time_to_first_token_seconds", "From the beginning of an answer's work to its first token", kSecondsBounds);
    total_s = &metrics.histogram("qvl_request_seconds", "From the arrival of a request to its last byte", kSecondsBounds);
    decode_rate = &metrics.histogram("qvl_decode_tokens_per_second", "Of one answer, others being written beside it included", kRateBounds);
    const auto gauge = [&](std::string_view name, std::string_view help, int64_t Scheduler::Load::* field) {
      metrics.callback(MetricType::kGauge, name, help, {}, [this, field] { return static_cast<double>(scheduler.load().*field); });
    };
    gauge("qvl_requests_waiting", "Requests in the queue", &Scheduler::Load::waiting);
    gauge("qvl_requests_reading", "Requests whose pictures and prompt are being read", &Scheduler::Load::reading);
    gauge("qvl_requests_writing", "Requests whose answer is being written", &Scheduler::Load::writing);
    gauge("qvl_unread_answers", "Answers to read as the next turn's prompt while nobody waits", &Scheduler::Load::unread);
    gauge("qvl_slots", "Answers in the making at once, at most", &Scheduler::Load::slots);
    gauge("qvl_kv_bytes", "Keys and values of all conversations", &Scheduler::Load::kv_bytes);
    const auto counter = [&](std::string_view name, std::string_view help, auto read) {
      metrics.callback(MetricType::kCounter, name, help, {}, [this, read] { return static_cast<double>(read(scheduler.load())); });
    };
    counter("qvl_decode_steps_total", "Calls of the decoder for answers", [](const Scheduler::Load& l) { return l.decode_steps; });
    counter("qvl_decode_rows_total", "Rows in them: rows over steps is how full they were", [](const Scheduler::Load& l) { return l.decode_rows; });
    counter("qvl_inference_seconds_total", "Time spent computing", [](const Scheduler::Load& l) { return l.busy_s; });
    add_process_metrics(metrics);
  }

  // Streams that may have to be kept alive.
  std::mutex streams_mutex;
  std::condition_variable streams_end;
  bool ending = false;
  std::vector<std::weak_ptr<ReplyWriter>> streams;
  std::thread keeper;

  void keep_streams_alive() {
    std::unique_lock lock(streams_mutex);
    while (!streams_end.wait_for(lock, kSignOfLife, [this] { return ending; })) {
      std::erase_if(streams, [](const std::weak_ptr<ReplyWriter>& s) { return s.expired(); });
      for (const auto& s : streams) {
        if (const auto writer = s.lock()) writer->keep_alive(std::chrono::duration<double, std::milli>(kSignOfLife).count());
      }
    }
  }

  ~Impl() {
    {
      std::lock_guard lock(streams_mutex);
      ending = true;
    }
    streams_end.notify_all();
    keeper.join();
    scheduler.stop(std::chrono::milliseconds(0));  // its last words are counted
  }

  // What an error on the way into the queue tells the client.
  ApiError refusal(const Error& error) const {
    if (const auto* full = dynamic_cast<const QueueFull*>(&error))
      return queue_full(scheduler.load().waiting, static_cast<int>(std::min(3600.0, std::ceil(full->retry_after_s))));
    if (error.code() == ErrorCode::kCancelled) return shutting_down(5);
    return to_api_error(error, ErrorSite::kPrompt);
  }

  // Everything a handler refuses ends here.
  template <typename Work>
  void guarded(Responder& responder, Work work) {
    try {
      work();
    } catch (const ApiError& e) {
      send_error(responder, e.reply());
    } catch (const HttpError&) {
      throw;  // knows its reply
    } catch (const Error& e) {
      send_error(responder, refusal(e).reply());
    }
  }

  std::vector<std::string> load_frames(const MediaRef& ref, const Cancelled& gone) {
    std::vector<std::string> frames;
    size_t bytes = 0;
    for (size_t i = 0; i < ref.frames.size(); ++i) {
      frames.push_back(load_media(ref.frames[i], options.media, cat(ref.param, "[", i, "]"), gone));
      bytes += frames.back().size();
      if (bytes > options.max_body_bytes) throw bad_request("media_too_large", ref.param, cat("the frames of a video have more than ", options.max_body_bytes, " bytes"));
    }
    return frames;
  }

  // An operator's limit is told, never applied in silence.
  image::PixelOverrides pixels_of(const MediaRef& ref) const {
    image::PixelOverrides out = options.pixels;
    if (ref.pixels.min_pixels) out.min_pixels = ref.pixels.min_pixels;
    if (ref.pixels.max_pixels) {
      if (options.pixels.max_pixels && *ref.pixels.max_pixels > *options.pixels.max_pixels)
        throw bad_request("invalid_value", ref.param, cat("max_pixels: expected at most ", *options.pixels.max_pixels, " (this server's limit), got ", *ref.pixels.max_pixels));
      out.max_pixels = ref.pixels.max_pixels;
    }
    return out;
  }

  std::shared_ptr<generate::Visual> load_visual(const MediaRef& ref, const Cancelled& gone) {
    generate::VisualInput input;
    input.name = ref.param;
    if (options.max_image_pixels > 0) input.limits.max_pixels = std::min(input.limits.max_pixels, options.max_image_pixels);
    if (ref.is_video) {
      input.kind = generate::VisualInput::Kind::kFrameBytes;
      input.frames = load_frames(ref, gone);
      // Whoever lists frames has chosen them: at the model's own rate all are taken.
      input.native_fps = ref.fps.value_or(assets->video.sample_fps);
    } else {
      input.kind = generate::VisualInput::Kind::kImageBytes;
      input.bytes = load_media(ref.url, options.media, ref.param, gone);
    }
    try {
      return scheduler.loader().load(std::move(input), pixels_of(ref));
    } catch (const Error& e) {
      throw to_api_error(e, ErrorSite::kMedia, ref.param);
    }
  }

  std::vector<generate::ChatMessage> conversation(const ChatRequest& request, const Cancelled& gone) {
    std::vector<generate::ChatMessage> out;
    for (const text::Message& m : request.messages) out.push_back({m, {}});
    for (const MediaRef& ref : request.media) out.at(ref.message).visuals.push_back(load_visual(ref, gone));
    return out;
  }

  // Of every choice; each but the first has another seed.
  generate::AnswerOptions answer_options(const CommonRequest& request) const {
    generate::AnswerOptions out = options.defaults;
    out.sampling = generate::resolve_sampling(assets->generation, request.sampling);
    if (request.seed) out.seed = *request.seed;
    if (request.max_tokens) out.max_tokens = *request.max_tokens;
    out.stop = request.stop;
    out.ignore_eos = request.ignore_eos;
    for (const auto& [id, bias] : request.logit_bias) out.logit_bias[id] = static_cast<float>(bias);
    return out;
  }

  // The prompt and at least one token must fit; max_tokens beyond what is left is cut, as the model's context would. Whether it was.
  bool fit_context(int64_t tokens, generate::AnswerOptions& answer) const {
    const int64_t left = context() - tokens;
    if (left < 1)
      throw bad_request("context_length_exceeded", "messages", cat("prompt: expected fewer tokens than the context of ", context(), ", got ", tokens, " (fewer or smaller images, or a shorter text)"));
    const bool cut = answer.max_tokens > left;
    if (cut) answer.max_tokens = left;
    return cut;
  }

  // Everything the choices of a request have in common.
  ReplyWriter::Setup setup(const CommonRequest& request, std::string_view id_prefix, const std::shared_ptr<Responder>& responder, int64_t choices) {
    ReplyWriter::Setup out{.responder = responder, .tokenizer = assets->tokenizer};
    out.head = {.id = new_id(id_prefix), .created = static_cast<int64_t>(std::time(nullptr)), .model = options.model_id, .system_fingerprint = options.fingerprint};
    out.stream = request.stream;
    out.include_usage = request.include_usage;
    out.choices = choices;
    out.choices_per_prompt = request.n;
    out.repetition_guard = request.repetition_guard && !request.ignore_eos;
    out.engine = engine_json;
    out.time_limit_s = static_cast<double>(options.request_timeout.count());
    out.report = [this](const ReplyReport& report) { count(report); };
    return out;
  }

  void count(const ReplyReport& report) {
    prompt_tokens->add(static_cast<double>(report.usage.prompt_tokens));
    cached_tokens->add(static_cast<double>(report.usage.cached_tokens));
    image_tokens->add(static_cast<double>(report.usage.image_tokens));
    answer_tokens->add(static_cast<double>(report.usage.completion_tokens));
    for (const std::string_view cause : report.endings)
      metrics.counter("qvl_answers_total", "Answers by what ended them", {{"finish", std::string(cause)}}).add();
    for (const generate::Answer& a : report.answers) {
      for (const generate::VisualReport& v : a.visuals) (v.cached ? images_remembered : images_encoded)->add();
      image_patches->add(static_cast<double>(a.vision_patches));
      drafted_tokens->add(static_cast<double>(a.decode.drafted_tokens));
      accepted_tokens->add(static_cast<double>(a.decode.accepted_tokens));
      if (a.ttft_ms > 0) first_token_s->observe(a.ttft_ms / 1e3);
      if (a.token_ids.size() > 1 && a.decode_ms > 0) decode_rate->observe(static_cast<double>(a.token_ids.size() - 1) / a.decode_ms * 1e3);
    }
  }

  // Cancels what was submitted when the client leaves or one choice fails.
  struct Tickets {
    std::mutex mutex;
    std::vector<Scheduler::Ticket> tickets;
    bool cancelled = false;
    void add(Scheduler::Ticket ticket) {
      std::lock_guard lock(mutex);
      if (cancelled) ticket.cancel();
      tickets.push_back(std::move(ticket));
    }
    void cancel() {
      std::lock_guard lock(mutex);
      cancelled = true;
      for (const auto& t : tickets) t.cancel();
    }
  };

  using MakeRequest = std::function<Scheduler::Request(int64_t choice)>;
  // Submits the choices of `writer`, those of one prompt behind its first.
  void submit(const std::shared_ptr<Responder>& responder, const std::shared_ptr<ReplyWriter>& writer, int64_t choices, int64_t per_prompt,
              const MakeRequest& make) {
    auto tickets = std::make_shared<Tickets>();
    writer->on_failed([tickets] { tickets->cancel(); });
    responder->on_gone([tickets] { tickets->cancel(); });
    {
      std::lock_guard lock(streams_mutex);
      streams.push_back(writer);
    }
    Scheduler::Ticket first;
    try {
      for (int64_t i = 0; i < choices; ++i) {
        Scheduler::Request request = make(i);
        request.sink = writer->sink(i);
        Scheduler::Ticket ticket = scheduler.submit(std::move(request), i % per_prompt == 0 ? Scheduler::Ticket{} : first);
        if (i % per_prompt == 0) first = ticket;
        tickets->add(std::move(ticket));
      }
    } catch (const Error& e) {
      writer->fail(refusal(e));
      tickets->cancel();
    }
  }

  void chat(const HttpRequest& http, const std::shared_ptr<Responder>& responder) {
    const auto deadline = Scheduler::Clock::now() + options.request_timeout;
    const ChatRequest request = parse_chat_request(http.body, facts);
    const Cancelled gone = [&] { return responder->gone(); };
    const std::vector<generate::ChatMessage> messages = conversation(request, gone);
    generate::AnswerOptions answer = answer_options(request);
    answer.tools = request.tools_json;
    answer.add_vision_id = request.add_vision_id;
    if (facts.variant == text::TemplateVariant::kThinking) answer.enable_thinking = request.thinking;
    if (request.logprobs) answer.top_logprobs = static_cast<int>(request.top_logprobs);
    const generate::Prompt prompt = scheduler.loader().make_prompt(messages, answer);
    const std::vector<std::shared_ptr<generate::Visual>> visuals = generate::visuals_of(messages);
    const bool cut = fit_context(static_cast<int64_t>(prompt.ids.size()), answer);

    ReplyWriter::Setup common = setup(request, "chatcmpl-", responder, request.n);
    common.cut_by_context = cut;
    common.grounding = request.grounding;
    for (const MediaRef& ref : request.media) common.details.push_back(ref.detail);
    // Of several answers the client goes on with one at most, and reasoning is not part of later prompts.
    // Nor is it where others are let go first: what is read ahead has no number and would be before them.
    const bool goes_on = options.read_ahead && request.n == 1 && request.priority == 0 && facts.variant != text::TemplateVariant::kThinking;
    // Before anything is sent: a schema that cannot be is the request's fault.
    const ConstraintFactory constraints([this] { return grammar.valid() ? grammar.get() : nullptr; }, request);
    common.unenforced = constraints.unenforced();
    submit(responder, chat_reply_writer(request, std::move(common)), request.n, request.n, [&](int64_t i) {
      Scheduler::Request out{.prompt = prompt, .visuals = visuals, .options = answer, .read_ahead = goes_on, .client = client_of(http), .priority = request.priority, .sink = {}, .deadline = deadline};
      if (answer.seed) out.options.seed = *answer.seed + static_cast<uint64_t>(i);
      out.options.constraint = constraints.make();
      return out;
    });
  }

  std::vector<int32_t> prompt_ids(const CompletionRequest::Prompt& prompt) const {
    if (const auto* text = std::get_if<std::string>(&prompt)) return assets->tokenizer.encode_text(*text);
    const auto& ids = std::get<std::vector<int32_t>>(prompt);
    const model::ModelConfig& config = engine->config();
    for (const int32_t id : ids) {
      if (id == config.image_token_id || id == config.video_token_id)
        throw bad_request("invalid_value", "prompt", cat("token ", id, " stands for a picture; /v1/chat/completions takes pictures"));
    }
    return ids;
  }

  void complete(const HttpRequest& http, const std::shared_ptr<Responder>& responder) {
    const auto deadline = Scheduler::Clock::now() + options.request_timeout;
    const CompletionRequest request = parse_completion_request(http.body, facts);
    std::vector<std::vector<int32_t>> prompts;
    std::vector<std::string> echo;
    int64_t longest = 0;
    for (const auto& prompt : request.prompts) {
      prompts.push_back(prompt_ids(prompt));
      if (prompts.back().empty()) throw bad_request("invalid_value", "prompt", "prompt: expected at least one token, got none");
      longest = std::max(longest, static_cast<int64_t>(prompts.back().size()));
      if (request.echo) echo.push_back(assets->tokenizer.decode(prompts.back(), true));
    }
    generate::AnswerOptions answer = answer_options(request);
    if (request.logprobs) answer.top_logprobs = static_cast<int>(*request.logprobs);
    // Prompts of one request share the limit that the longest of them leaves.
    const bool cut = fit_context(longest, answer);
    const int64_t choices = static_cast<int64_t>(prompts.size()) * request.n;
    ReplyWriter::Setup common = setup(request, "cmpl-", responder, choices);
    common.cut_by_context = cut;
    submit(responder, completion_reply_writer(request, std::move(echo), std::move(common)), choices, request.n, [&](int64_t i) {
      Scheduler::Request out{.prompt = {.ids = prompts[static_cast<size_t>(i / request.n)], .visuals = {}}, .visuals = {}, .options = answer,
                             .read_ahead = false, .client = client_of(http), .priority = request.priority, .sink = {}, .deadline = deadline};
      if (answer.seed) out.options.seed = *answer.seed + static_cast<uint64_t>(i % request.n);
      return out;
    });
  }

  Json health() const {
    const Scheduler::Load l = scheduler.load();
    return {{"status", "ok"}, {"model", options.model_id}, {"slots", l.slots}, {"waiting", l.waiting}, {"reading", l.reading}, {"writing", l.writing},
            {"uptime_s", static_cast<int64_t>(std::time(nullptr)) - started}};
  }

  // The model and, beside OpenAI's fields, what a client wants to know before it asks.
  Json model_facts() const {
    Json out = model_object(options.model_id, started);
    out["qvl"] = {{"context_tokens", context()}, {"thinking", facts.variant == text::TemplateVariant::kThinking}, {"json_schema", facts.has_grammar},
                  {"image_urls", options.media.urls}, {"image_files", options.media.file_root.has_value()}, {"max_images", options.max_images},
                  {"max_body_bytes", options.max_body_bytes}, {"engine", engine_json}};
    return out;
  }
};

Service::Service(std::shared_ptr<const engine::Engine> engine, std::shared_ptr<const generate::Assets> assets,
                 std::shared_ptr<generate::ImageMemory> memory, std::shared_ptr<generate::DiskMemory> disk,
                 GrammarFuture grammar, ServiceOptions options) {
  check_policy(options.media);
  impl_ = std::make_unique<Impl>(std::move(engine), std::move(assets), std::move(memory), std::move(disk), std::move(grammar), std::move(options));
}

Service::~Service() = default;

void Service::prepare(HttpOptions& http) {
  http.on_exchanged = [impl = impl_.get()](const Exchanged& e) {
    impl->metrics.counter("qvl_http_requests_total", "HTTP requests by route and status (0: the client left first)",
                          {{"route", e.route.empty() ? "other" : e.route}, {"status", cat(e.status)}})
        .add();
    if (e.method == "POST") impl->total_s->observe(e.seconds);
    log_message(LogLevel::kInfo, cat("[serve] ", e.peer, " ", e.method.empty() ? "?" : e.method, " ", e.route.empty() ? "(no route)" : e.route, " ", e.status, " ", e.sent_bytes, " bytes ", static_cast<int64_t>(e.seconds * 1e3), " ms ", e.request_id, e.gone ? " gone" : ""));
  };
}

void Service::add_routes(HttpServer& server) {
  Impl* const impl = impl_.get();
  const size_t body = impl->options.max_body_bytes;
  server.add({.method = "POST", .path = "/v1/chat/completions",
              .handler = [impl](HttpRequest request, std::shared_ptr<Responder> responder) {
                impl->guarded(*responder, [&] { impl->chat(request, responder); });
              },
              .needs_key = true, .max_body_bytes = body, .needs_json = true});
  server.add({.method = "POST", .path = "/v1/completions",
              .handler = [impl](HttpRequest request, std::shared_ptr<Responder> responder) {
                impl->guarded(*responder, [&] { impl->complete(request, responder); });
              },
              .needs_key = true, .max_body_bytes = body, .needs_json = true});
  server.add({.method = "GET", .path = "/v1/models",
              .handler = [impl](const HttpRequest&, const std::shared_ptr<Responder>& responder) {
                send_json(*responder, 200, {{"object", "list"}, {"data", Json::array({impl->model_facts()})}});
              },
              .needs_key = true, .quick = true});
  server.add({.method = "GET", .path = "/v1/models/*",
              .handler = [impl](const HttpRequest& request, const std::shared_ptr<Responder>& responder) {
                if (request.rest != impl->options.model_id) {
                  send_error(*responder, model_not_found(request.rest).reply());
                  return;
                }
                send_json(*responder, 200, impl->model_facts());
              },
              .needs_key = true, .quick = true});
  server.add({.method = "GET", .path = "/health",
              .handler = [impl](const HttpRequest&, const std::shared_ptr<Responder>& responder) { send_json(*responder, 200, impl->health()); },
              .needs_key = false, .quick = true});
  server.add({.method = "GET", .path = "/metrics",
              .handler = [impl](const HttpRequest&, const std::shared_ptr<Responder>& responder) {
                responder->send(200, {{"Content-Type", std::string(Metrics::kContentType)}}, impl->metrics.text());
              },
              .needs_key = impl->options.metrics_need_key, .quick = true});
  server.serve_bytes("/openapi.json", "application/json", openapi_json(impl->facts));
  if (!impl->options.page) return;
  Headers headers;
  for (const PageHeader& h : kPageHeaders) headers.emplace_back(h.name, h.value);
  for (const PageFile& file : page_files()) server.serve_bytes(std::string(file.path), std::string(file.content_type), std::string(file.bytes), headers);
}

void Service::stop(std::chrono::milliseconds grace) { impl_->scheduler.stop(grace); }

Scheduler::Load Service::load() const { return impl_->scheduler.load(); }

}  // namespace qvl::serve
