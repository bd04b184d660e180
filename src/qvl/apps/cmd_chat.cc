// `qvl chat`: a conversation. The history lives in the session's KV cache, so a turn costs only what is new;
// what is certain of that is computed while the user thinks.
#include <array>

#include "qvl/apps/cli.h"
#include "qvl/apps/line_reader.h"
#include "qvl/base/error.h"
#include "qvl/base/format.h"
#include "qvl/generate/idle_reader.h"

namespace qvl::apps {
namespace {

namespace fs = std::filesystem;

constexpr const char* kHelpText =
    "/image PATH   show a picture with the next message; it is read while you type\n"
    "/video PATH   show a folder of frames with the next message\n"
    "/system TEXT  set the system message (alone: remove it)\n"
    "/reset        forget the conversation\n"
    "/help         this list\n"
    "/exit         end; Ctrl-D too\n"
    "A line that ends with \\ goes on in the next one. Ctrl-C ends an answer.\n";

enum class Command { kImage, kVideo, kSystem, kReset, kHelp, kExit };

constexpr std::pair<std::string_view, Command> kCommands[] = {
    {"/image", Command::kImage}, {"/video", Command::kVideo}, {"/system", Command::kSystem}, {"/reset", Command::kReset},
    {"/help", Command::kHelp},   {"/exit", Command::kExit},   {"/quit", Command::kExit}};

// By a line's first word.
std::optional<Command> command_of(std::string_view line) {
  const std::string_view word = line.substr(0, line.find(' '));
  for (const auto& [name, command] : kCommands) {
    if (name == word) return command;
  }
  return std::nullopt;
}

struct ChatOptions {
  std::string model;
  EngineChoice engine;
  GenerationChoice generation;
  VisualChoice visuals;
  PixelChoice pixels;
  MemoryChoice memory;
};

// A message; lines that end with a backslash are joined.
std::optional<std::string> read_message(LineReader& reader) {
  std::optional<std::string> line = reader.next();
  while (line && line->ends_with('\\')) {
    line->back() = '\n';
    const std::optional<std::string> more = reader.next();
    if (!more) break;
    *line += *more;
  }
  return line;
}

class Chat {
 public:
  Chat(generate::Pipeline& pipeline, generate::AnswerOptions options, image::PixelOverrides pixels,
       const ChatOptions& choice, double load_ms)
      : pipeline_(pipeline),
        options_(std::move(options)),
        pixels_(pixels),
        choice_(choice),
        load_ms_(load_ms) {
    if (!choice.generation.system.empty()) set_system(choice.generation.system);
  }

  void show(generate::VisualInput input) {
    pending_.push_back(pipeline_.load(std::move(input), pixels_));
    const generate::VisualInfo& info = pending_.back()->info();
    fmt::print(stderr, "{}: {}x{}, {} tokens\n", info.is_video ? "video" : "image", info.width, info.height,
               info.grid.merged_tokens(pipeline_.engine().config().vision.spatial_merge_size));
  }

  // False when the chat is to end.
  bool command(const std::string& line) {
    const std::optional<Command> command = command_of(line);
    const size_t space = line.find(' ');
    const std::string name = line.substr(0, space);
    std::string rest = space == std::string::npos ? "" : line.substr(space + 1);
    const size_t first = rest.find_first_not_of(' ');
    rest = first == std::string::npos ? "" : rest.substr(first, rest.find_last_not_of(' ') - first + 1);
    if (!command) {
      fail(ErrorCode::kInvalidArgument, "chat", "command", "/image, /video, /system, /reset, /help or /exit",
           name, "start the line with a space to say it to the model");
    }
    using Kind = generate::VisualInput::Kind;
    switch (*command) {
      case Command::kImage:
      case Command::kVideo:
        if (rest.empty()) fail(ErrorCode::kInvalidArgument, name, "expected a path after it, got none");
        show({.kind = *command == Command::kImage ? Kind::kImageFile : Kind::kFrameFolder,
              .path = rest,
              .native_fps = choice_.visuals.fps});
        return true;
      case Command::kReset:
        conversation_.clear();
        pending_.clear();
        pipeline_.reset();
        if (!system_.empty()) set_system(system_);
        return true;
      case Command::kSystem:
        set_system(rest);
        return true;
      case Command::kHelp:
        fmt::print(stderr, "{}", kHelpText);
        return true;
      case Command::kExit:
        break;
    }
    return false;
  }

  void say(const std::string& text) {
    conversation_.push_back(generate::user_message(pending_, text));
    ProgressBar bar;
    generate::AnswerCallbacks callbacks;
    callbacks.progress = phase_progress(bar);
    callbacks.cancel = &interrupt_flag();
    callbacks.on_text = [&bar](std::string_view piece) {
      bar.clear();
      write_stdout(piece);
    };
    generate::Answer answer;
    try {
      answer = pipeline_.answer(conversation_, options_, callbacks);
    } catch (const Error&) {
      conversation_.pop_back();  // the pictures stay pending for another try
      throw;
    }
    bar.clear();
    const bool interrupted = interrupt_flag().exchange(false);
    if (interrupted && answer.text.empty()) {
      conversation_.pop_back();
      fmt::print(stderr, "(stopped; the message is forgotten)\n");
      return;
    }
    write_stdout("\n");
    if (interrupted) fmt::print(stderr, "(stopped)\n");
    if (answer.reason == generate::FinishReason::kLength) fmt::print(stderr, "(ended by the length limit)\n");
    pending_.clear();
    conversation_.push_back(generate::text_message(text::Role::kAssistant, answer.text));
    if (choice_.engine.verbose) print_statistics(answer, pipeline_.engine().info(), load_ms_);
  }

  // Waits for a message. Meanwhile attached pictures and the next turn's beginning are read.
  std::optional<std::string> listen(LineReader& reader) {
    std::optional<generate::IdleReader> idle;
    const bool answered = !conversation_.empty() && conversation_.back().message.role == text::Role::kAssistant;
    if (answered || !pending_.empty()) idle.emplace(pipeline_, conversation_, options_, pending_);
    std::optional<std::string> line = read_message(reader);
    if (idle && line && !forgets_pictures(*line)) {
      ProgressBar bar;
      idle->finish_picture([&](int64_t done, int64_t total) {
        phase_progress(bar)(generate::Phase::kVision, done, total);
        return !interrupt_flag();
      });
    }
    return line;
  }

 private:
  static bool forgets_pictures(const std::string& line) {
    const std::optional<Command> command = command_of(line);
    return command == Command::kExit || command == Command::kReset;
  }
  void set_system(const std::string& text) {
    const bool had = !conversation_.empty() && conversation_.front().message.role == text::Role::kSystem;
    if (had) conversation_.erase(conversation_.begin());
    system_ = text;
    if (!text.empty())
      conversation_.insert(conversation_.begin(), generate::text_message(text::Role::kSystem, text));
  }

  generate::Pipeline& pipeline_;
  generate::AnswerOptions options_;
  image::PixelOverrides pixels_;
  const ChatOptions& choice_;
  double load_ms_;
  std::string system_;
  std::vector<generate::ChatMessage> conversation_;
  std::vector<std::shared_ptr<generate::Visual>> pending_;
};

int chat(const ChatOptions& o) {
  refuse_picture_as_model("chat", o.model);
  const image::PixelOverrides pixels = o.pixels.overrides();
  const std::vector<generate::VisualInput> inputs = o.visuals.inputs;
  log_to_stderr(o.engine.verbose);
  catch_interrupts();
  ProgressBar bar;
  const fs::path folder = resolve_model(o.model);
  const OpenModel model = open_model(folder, o.engine, bar);
  generate::Pipeline pipeline(model.engine, model.assets,
                              std::make_shared<generate::ImageMemory>(generate::kDefaultImageMemoryBytes),
                              o.generation.prefill_chunk, open_disk_memory(o.memory, model));
  Chat conversation(pipeline, o.generation.options(*model.assets), pixels, o, model.load_ms);
  for (generate::VisualInput input : inputs) {
    if (input.kind == generate::VisualInput::Kind::kFrameFolder) input.native_fps = o.visuals.fps;
    conversation.show(std::move(input));
  }
  const bool terminal = stdin_is_terminal();
  if (terminal)
    fmt::print(stderr, "{} ({}). /help lists the commands, Ctrl-D ends.\n", folder.filename().string(),
               model.engine->info().text);
  LineReader reader("> ");
  bool all_well = true;
  for (;;) {
    const std::optional<std::string> line = conversation.listen(reader);
    if (!line) break;
    if (line->find_first_not_of(" \t\r\n") == std::string::npos) continue;
    try {
      if (line->starts_with('/')) {
        if (!conversation.command(*line)) return all_well ? kExitOk : kExitFailed;
      } else {
        conversation.say(*line);
      }
    } catch (const Error& e) {
      // On a terminal the user tries again; a script must learn that something failed.
      fmt::print(stderr, "qvl: {}\n", e.what());
      if (!terminal) all_well = false;
    }
    if (!terminal && interrupt_flag()) return kExitInterrupted;
  }
  if (terminal) fmt::print(stderr, "\n");
  return all_well ? kExitOk : kExitFailed;
}

}  // namespace

Registration register_chat(CLI::App& app) {
  auto options = std::make_shared<ChatOptions>();
  CLI::App* command = app.add_subcommand("chat", "Talk with a model; /image PATH adds a picture");
  set_usage(*command, "qvl chat [MODEL] [OPTIONS]");
  command->footer(std::string("In the chat:\n") + kHelpText +
                  "While you think, what is certain of the next turn is computed.\n"
                  "From a pipe, every line is a message and every answer a paragraph on stdout.");
  command->add_option("MODEL", options->model, "Model folder (default: the small model)")
      ->type_name("FOLDER");
  add_visual_options(*command, options->visuals);
  add_pixel_options(*command, options->pixels);
  add_memory_options(*command, options->memory);
  add_generation_options(*command, options->generation);
  add_engine_options(*command, options->engine);
  return {command, [options] { return chat(*options); }};
}

}  // namespace qvl::apps
