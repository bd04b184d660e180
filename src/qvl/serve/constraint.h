// What a request demands of its answer's form (JSON, a schema, calls of tools) as a constraint of the sampler. The only
// place where the rooms grammar and generate meet.
#pragma once

#include <functional>
#include <memory>
#include <optional>

#include "qvl/generate/constraint.h"
#include "qvl/grammar/grammar.h"
#include "qvl/serve/openai_types.h"

namespace qvl::serve {

class ConstraintFactory {
 public:
  // Compiles the grammar once for all choices. `engine` is asked for when the request needs one, and may return null. Throws ApiError 400 that
  // names response_format or tools for a schema that is wrong, too costly or strict and not to be enforced, and for a
  // format together with tools that may or may not be called.
  ConstraintFactory(const std::function<std::shared_ptr<const grammar::GrammarEngine>()>& engine, const ChatRequest& request);

  // What of the schemas the answer is not held to, because the request did not ask for strictness; empty: nothing.
  const std::string& unenforced() const;

  // For one answer; null when every text will do.
  std::shared_ptr<generate::TokenConstraint> make() const;

 private:
  std::optional<grammar::Grammar> grammar_;
};

}  // namespace qvl::serve
