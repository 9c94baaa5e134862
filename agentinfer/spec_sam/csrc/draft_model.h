// What a drafter has learned about its sources: how far a match may be trusted, and which source to trust more.
//
// The next token's distribution is estimated as in prediction by partial matching (Cleary and Witten, "Data compression
// using adaptive coding and partial string matching", IEEE Transactions on Communications 32, 1984): the continuations of
// the longest match count by their frequency, and with the probability that the token is none of them, *escape*, the next
// shorter match is asked. Escape probabilities are rates observed while serving, by source kind, depth of the escape,
// match length, number of continuations and of occurrences. Several sources are mixed by a softmax over one weight for
// each source kind and match length; a weight moves along the gradient of the log-likelihood of the tokens that came.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "correction.h"

namespace agentinfer::spec_sam {

// Evidence of different kinds is trusted differently.
enum class SourceKind : std::int32_t {
  kSession = 0,    // the session's own text
  kRelated = 1,    // its parent's or a sibling's
  kMemory = 2,     // finished turns of every session of the namespace
  kRetrieved = 3,  // stored contexts chosen by similarity
};
constexpr std::int32_t kNumSourceKinds = 4;

class DraftModel {
 public:
  // A reply ends with any of `stop_tokens`, so nothing is drafted behind them.
  explicit DraftModel(std::vector<std::int32_t> stop_tokens = {});

  bool stops(std::int32_t token) const {
    return std::find(stop_tokens_.begin(), stop_tokens_.end(), token) != stop_tokens_.end();
  }

  using EscapeContext = std::int32_t;
  // `level` 0 is the longest match, 1 the next shorter one that has continuations; `length` > 0, `degree` > 0.
  static EscapeContext escape_context(SourceKind kind, std::int32_t level, std::int32_t length, std::int32_t degree,
                                      std::uint32_t occurrences);
  // The probability that the next token is none of the continuations.
  double escape(EscapeContext context) const;
  void learn_escape(EscapeContext context, bool escaped);

  // A source's weight before the softmax; `length` > 0.
  double weight(SourceKind kind, std::int32_t length) const;
  // `share` of the token's probability that the source gave, less the share of the mixture that it has.
  void learn_weight(SourceKind kind, std::int32_t length, double surprise);

  // A mixture's probability as tokens drafted at it really came: the best of many estimates is on average too high.
  // `probability` in (0, 1); monotone in it but for what was observed.
  double calibrated(double probability) const;
  void learn_calibration(double probability, bool came);

  Correction& correction() { return correction_; }
  const Correction& correction() const { return correction_; }

  // All that was learned, as numbers for a file; `restore` raises CheckError for a wrong size or values out of range.
  std::vector<double> learned() const;
  void restore(const double* values, std::size_t count);

 private:
  static constexpr std::int32_t kLengthBuckets = 11;
  static constexpr std::int32_t kDegreeBuckets = 5;
  static constexpr std::int32_t kOccurrenceBuckets = 7;
  static constexpr std::int32_t kLevels = 4;
  static constexpr std::int32_t kEscapeContexts =
      kNumSourceKinds * kLevels * kLengthBuckets * kDegreeBuckets * kOccurrenceBuckets;

  static std::int32_t length_bucket(std::int32_t length);

  struct Rate {
    double hits;
    double trials;
  };
  std::vector<std::int32_t> stop_tokens_;  // a handful
  std::vector<Rate> escapes_;
  std::vector<Rate> calibration_;  // at equal steps of the log-odds, interpolated between them
  std::array<double, kNumSourceKinds * kLengthBuckets> weights_;
  Correction correction_;
};

}  // namespace agentinfer::spec_sam
