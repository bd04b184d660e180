// What an answer's tokens must be like: a grammar, a schema, a list of choices. Asked before every token of an answer
// (generation.h); implementations live in other rooms.
#pragma once

#include <cstdint>
#include <span>

namespace qvl::generate {

// The state of one answer: not shared between answers, not thread-safe, called on the thread that steps the answer.
// Guessed tokens need no going back: a guess is only kept after the sampler has chosen it under apply().
class TokenConstraint {
 public:
  virtual ~TokenConstraint() = default;
  // Sets the logit of every token that may not come next to -infinity and leaves the others as they are. `logits` [V'] are
  // those of the ids that have text, index = id. The answer's end tokens are among them: a constraint that lets the
  // answer end here leaves them. When nothing may come, all are -infinity: the answer ends.
  virtual void apply(std::span<float> logits) = 0;
  // The next token of the answer, end tokens included. Called once for each token, between two calls of apply().
  virtual void accept(int32_t id) = 0;
  // True: nothing more may come. The answer ends without waiting for an end token. Asked before the first token and after
  // every accept().
  virtual bool finished() const = 0;
};

}  // namespace qvl::generate
