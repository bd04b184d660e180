// The `qvl` program: picks the command, turns errors into one line on stderr and an exit code.
#include <CLI/CLI.hpp>
#include <clocale>
#include <csignal>
#include <cstdio>
#include <vector>

#include "qvl/apps/cli.h"
#include "qvl/base/error.h"
#include "qvl/base/format.h"
#include "qvl/image/decode.h"

namespace qvl::apps {
namespace {

constexpr const char* kFooter =
    "MODEL is a Hugging Face checkpoint folder, or nothing: then the small model that ships with qvl.\n"
    "Exit codes: 0 ok, 1 failed (one line on stderr), 2 usage, 130 interrupted by Ctrl-C.\n"
    "QVL_KERNELS=scalar|avx2|avx512|neon|... forces one set of kernels; QVL_SMALL_MODEL names another default "
    "model.";

int usage(const std::string& command, const std::string& message) {
  fmt::print(stderr, "{}: {} (see {} --help)\n", command, message, command);
  return kExitUsage;
}

// CLI11 puts some messages on several lines.
std::string one_line(std::string text) {
  for (char& c : text) {
    if (c == '\n') c = ' ';
  }
  return text;
}

int run_program(int argc, char** argv) {
  CLI::App app("qvl runs Qwen3-VL on ordinary CPUs: pictures and text in, text out.", "qvl");
  app.footer(kFooter);
  app.require_subcommand(0, 1);
  app.get_formatter()->column_width(34);
  app.set_version_flag("--version", "qvl " QVL_VERSION);
  const std::vector<Registration> commands = {
      register_run(app),    register_chat(app),   register_info(app),
      register_trace(app),  register_eval(app),   register_synth(app),
      register_export(app), register_verify(app), register_compare(app), register_bench(app), register_plan(app),
      register_serve(app)};
  std::string names;
  for (const Registration& c : commands) names += (names.empty() ? "" : ", ") + c.app->get_name();

  if (argc < 2) return usage("qvl", fmt::format("expected a command ({}), got none", names));
  if (const std::string first = argv[1]; !first.starts_with("-")) {
    const bool known = std::any_of(commands.begin(), commands.end(),
                                   [&](const auto& c) { return c.app->get_name() == first; });
    if (!known) {
      const std::string hint =
          image::has_picture_extension(first) ? fmt::format("; did you mean: qvl run -i {} ...", first) : "";
      return usage("qvl", fmt::format("unknown command '{}': expected one of {}{}", first, names, hint));
    }
  }
  std::string name = "qvl";
  for (const Registration& c : commands) {
    if (c.app->get_name() == argv[1]) name += " " + c.app->get_name();
  }
  try {
    app.parse(argc, argv);
    for (const Registration& c : commands) {
      if (c.app->parsed()) return c.run();
    }
    return usage("qvl", fmt::format("expected a command ({}), got none", names));
  } catch (const CLI::Success& e) {
    return app.exit(e) == 0 ? kExitOk : kExitFailed;  // --help, --version
  } catch (const CLI::ParseError& e) {
    return usage(name, one_line(e.what()));
  } catch (const UsageError& e) {
    return usage(name, e.what());
  } catch (const Error& e) {
    if (e.code() == ErrorCode::kCancelled && interrupt_flag()) return kExitInterrupted;
    fmt::print(stderr, "qvl: {}\n", one_line(e.what()));
    return kExitFailed;
  } catch (const std::bad_alloc&) {
    fmt::print(stderr, "qvl: [memory] not enough memory\n");
    return kExitFailed;
  } catch (const std::exception& e) {
    fmt::print(stderr, "qvl: [internal] {}\n", one_line(e.what()));
    return kExitFailed;
  }
}

}  // namespace
}  // namespace qvl::apps

int main(int argc, char** argv) {
  std::setlocale(LC_CTYPE, "");   // line editing in UTF-8; numbers stay in the C locale
  std::signal(SIGXFSZ, SIG_IGN);  // a file that may not grow is an error like a full disk
  return qvl::apps::run_program(argc, argv);
}
