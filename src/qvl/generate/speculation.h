// Guessing the next tokens from what was read and said before (prompt lookup, n-grams), so that a decode step can
// check several at once: the weights, which are what a step waits for, are read once for all of them. Between the
// sampler and the decoder; session.h feeds guesses and keeps those that the sampler itself chooses, so answers do not
// change, whatever is guessed here. Leviathan et al. 2023 (arXiv 2211.17192) with a guesser that costs nothing
// (Saxena 2023, "prompt lookup decoding").
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

namespace qvl::generate {

// Rows of a decode call are limited to 16 (engine/stages.h); one of them is the token that was said last.
inline constexpr int64_t kMaxDraftTokens = 15;

struct Speculation {
  enum class Mode { kOff, kAuto, kFixed };
  Mode mode = Mode::kAuto;
  int64_t draft_tokens = kMaxDraftTokens;  // kFixed: whenever there are guesses, up to so many of them. 1..15
};
// Throws kInvalidArgument for a number of tokens out of range.
void validate(const Speculation& speculation);

// What speaks for a guess.
struct Evidence {
  int64_t match_tokens = 1;  // the run before it that occurred earlier, guesses before it in the same draft included
  int64_t places = 1;        // where as much as the last two tokens of that run occurred and went on as the draft does
  double share = 1;          // of these places, those that go on with this guess: above 0, at most 1
};

// Guesses continuations: the longest run of tokens before the current end that occurred earlier, ties to the most
// recent one, and what followed it there. Remembers the conversation and, as far as there is room, earlier ones.
class Drafter {
 public:
  // `walls`, the tokens of pictures, are never guessed and never part of a run. Of more than `max_tokens` (at least 64)
  // the older half is forgotten.
  explicit Drafter(std::vector<int32_t> walls, size_t max_tokens = size_t{1} << 17);

  // The timeline now holds exactly `ids`. Costs what differs from the timeline before.
  void set_timeline(std::span<const int32_t> ids);
  // One token more at its end.
  void append(int32_t id);
  void clear();

  struct Draft {
    std::vector<int32_t> ids;        // empty: no guess
    std::vector<Evidence> evidence;  // for each of them; the first one's run is at most kLongestMatch
  };
  // At most `limit` tokens that may follow the timeline. What began to repeat itself is guessed to go on so.
  Draft draft(int64_t limit) const;

  static constexpr int64_t kLongestMatch = 16;
  size_t remembered_tokens() const { return stream_.size(); }

 private:
  void push(int32_t id);
  void forget_older_half();
  int64_t common_run(int64_t other) const;
  // Earlier places to go on from, those that are compared, and where the longest run is.
  struct Places {
    struct Place {
      int64_t at;  // index of the last token of the run
      double weight;
    };
    std::vector<Place> all;  // most recent first
    int64_t chosen = -1;
    int64_t match_tokens = 0;
  };
  Places places() const;

  // All that was seen, in order; kWall between pieces that did not follow each other.
  std::vector<int32_t> stream_;
  std::vector<int32_t> timeline_;
  std::vector<int32_t> walls_;
  size_t max_tokens_;
  // Where a token, and a pair of tokens, ended last (index into stream_), and for each place the one before it. A token's
  // places are those that something follows.
  std::unordered_map<int32_t, int32_t> last_one_;
  std::unordered_map<uint64_t, int32_t> last_pair_;
  std::vector<int32_t> one_before_;
  std::vector<int32_t> pair_before_;
};

// Decides how many guesses are worth checking, from how often guesses with such evidence came true and what steps of so many
// rows cost.
// While it does not pay, guesses are only compared with what is said, which costs nothing; the cost is measured again
// after a while, each time a longer one.
//
// A step may hold rows of other answers too. Its time is filed under all of its rows, since that is what it depends on, and
// a guess must pay for all: what is weighed is the tokens of the whole step, one for each other row, against the time of
// the whole step. So the more answers go on together, the better a guess must be to be worth their waiting.
class DraftController {
 public:
  DraftController();

  // How many of the guesses that `available` speaks for to check, in a step that also holds `other_rows`; 0: none. Called
  // once a step.
  int64_t choose(std::span<const Evidence> available, int64_t other_rows = 0);
  void count_guess(const Evidence& evidence, bool came_true);
  // A decode step of `rows` rows, and `other_rows` of others, took `ms`.
  void count_step(int64_t rows, double ms, int64_t other_rows = 0);

  // Both as they are believed now.
  double acceptance(const Evidence& evidence) const;
  double cost(int64_t rows) const;  // relative to one row

 private:
  static constexpr size_t kRuns = 6, kAgreements = 5;
  static size_t bucket(const Evidence& evidence);
  // Expected tokens a millisecond over those of plain decoding, for the best number of guesses.
  struct Choice {
    int64_t draft_tokens = 0;
    double gain = 1;
  };
  Choice best(std::span<const Evidence> available, int64_t other_rows, bool measured_costs) const;
  // Of a step of one row; where none was seen, as the smallest step that was lets hope. 0: no step was seen.
  double one_row_ms() const;

  struct Rate {
    double hits = 0;
    double trials = 0;
  };
  // The latest steps of one size.
  struct Times {
    std::array<double, 7> ms{};
    size_t count = 0;
    void add(double v) { ms[count++ % ms.size()] = v; }
    double median() const;  // the lower one of two
  };
  std::array<Rate, kRuns * kAgreements> rates_;
  std::array<Times, static_cast<size_t>(kMaxDraftTokens) + 2> times_{};  // by all rows of a step
  int64_t steps_ = 0;
  int64_t largest_step_ = 1;  // rows, all
  int64_t plain_steps_ = 0;   // without guesses
  int64_t last_plain_ = 0;    // step that was the last of them
  int64_t last_checked_ = 0;  // step that checked guesses last
  int64_t pause_steps_;       // after which costs that forbid drafts are doubted
  bool probing_ = false;      // the last draft was such a doubt
};

}  // namespace qvl::generate
