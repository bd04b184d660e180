// Stands for matcher.cc where llguidance was not found: every use says how to get it.
#include "qvl/base/error.h"
#include "qvl/grammar/matcher.h"

namespace qvl::grammar {
namespace {

[[noreturn]] void fail_not_built() {
  fail(
      ErrorCode::kUnsupported, "grammar",
      "this qvl was built without the grammar engine, so JSON schemas and tool calls cannot be enforced (run "
      "scripts/lib/llguidance.sh and build again)");
}

}  // namespace

struct MatcherFactory::Impl {};
struct Matcher::Impl {};

MatcherFactory::MatcherFactory(Vocabulary) {
  fail_not_built();
}
MatcherFactory::~MatcherFactory() = default;

std::string grammar_warnings(const MatcherFactory&, GrammarKind, const std::string&) {
  fail_not_built();
}

Matcher::Matcher(std::shared_ptr<const MatcherFactory>, GrammarKind, const std::string&) {
  fail_not_built();
}
Matcher::Matcher(std::unique_ptr<Impl>) {
  fail_not_built();
}
Matcher::Matcher(Matcher&&) noexcept = default;
Matcher& Matcher::operator=(Matcher&&) noexcept = default;
Matcher::~Matcher() = default;
Matcher Matcher::clone() const {
  fail_not_built();
}
void Matcher::allowed(std::span<uint32_t>) {
  fail_not_built();
}
void Matcher::accept(int32_t) {
  fail_not_built();
}
bool Matcher::accepts_end() {
  fail_not_built();
}
bool Matcher::at_end() const {
  fail_not_built();
}

bool engine_is_built_in() {
  return false;
}

}  // namespace qvl::grammar
