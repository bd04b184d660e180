// The log sink. The library reports decisions and warnings here; the app decides where they go.
#pragma once

#include <functional>
#include <string_view>

namespace qvl {

enum class LogLevel { kDebug, kInfo, kWarning };

using LogSink = std::function<void(LogLevel, std::string_view)>;

// Replaces the sink for the whole process (the default drops everything). Thread-safe.
void set_log_sink(LogSink sink);
void log_message(LogLevel level, std::string_view message);

}  // namespace qvl
