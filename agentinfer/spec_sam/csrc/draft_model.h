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
#include <cmath>
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

// The bucket of each value; what is greater than the last bound is in the last bucket.
template <std::size_t Bounds>
class Buckets {
 public:
  constexpr explicit Buckets(const std::array<std::int32_t, Bounds>& upper_bounds) {
    std::size_t bucket = 0;
    for (std::size_t value = 0; value < bucket_.size(); ++value) {
      while (bucket < Bounds && static_cast<std::int32_t>(value) > upper_bounds[bucket]) ++bucket;
      bucket_[value] = static_cast<std::uint8_t>(bucket);
    }
  }
  constexpr std::int32_t operator[](std::uint32_t value) const {
    return bucket_[std::min<std::uint32_t>(value, bucket_.size() - 1)];
  }

 private:
  std::array<std::uint8_t, 65> bucket_{};  // all bounds are below 64
};

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
                                      std::uint32_t occurrences) {
    std::int32_t context = static_cast<std::int32_t>(kind) * kLevels + std::min(level, kLevels - 1);
    context = context * kLengthBuckets + kLengthBucket[length];
    context = context * kDegreeBuckets + kDegreeBucket[degree];
    return context * kOccurrenceBuckets + kOccurrenceBucket[occurrences];
  }
  // The probability that the next token is none of the continuations.
  double escape(EscapeContext context) const { return escapes_[context].hits / escapes_[context].trials; }
  void learn_escape(EscapeContext context, bool escaped);

  // What a source's say in the mixture is proportional to: the exponential of its weight; `length` > 0.
  double say(SourceKind kind, std::int32_t length, double log_similarity) {
    const std::int32_t at = weight_index(kind, length);
    if (log_similarity != 0) return std::exp(weights_[at] + log_similarity);
    if (says_[at] < 0) says_[at] = std::exp(weights_[at]);
    return says_[at];
  }
  // `share` of the token's probability that the source gave, less the share of the mixture that it has.
  void learn_weight(SourceKind kind, std::int32_t length, double surprise);

  // Where an estimate lies among the points of the calibration: between `point` and the next, `fraction` of the way.
  struct Place {
    std::size_t point = 0;
    double fraction = 0;
  };
  static Place place_of(double log_odds) {
    const double at = (log_odds - kLowestLogit) / kLogitStep;
    const double inside = std::clamp(at, 0.0, static_cast<double>(kNumPoints - 1) - 1e-9);
    const auto point = static_cast<std::size_t>(inside);
    return {point, inside - static_cast<double>(point)};
  }
  // An estimate as tokens drafted at it really came: the best of many estimates is on average too high. Monotone in the
  // place but for what was observed.
  double calibrated(Place place) const {
    return (1.0 - place.fraction) * calibrated_[place.point] + place.fraction * calibrated_[place.point + 1];
  }
  // No estimate of lower log-odds is calibrated to `least` or more.
  double odds_needed(double least);
  void learn_calibration(Place place, bool came);

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

  // Log-odds of the calibration's points: -6, -5.5 ... 6.
  static constexpr double kLowestLogit = -6.0;
  static constexpr double kLogitStep = 0.5;
  static constexpr std::size_t kNumPoints = 25;

  static constexpr Buckets<10> kLengthBucket{{1, 2, 3, 4, 6, 9, 14, 24, 40, 63}};
  static constexpr Buckets<4> kDegreeBucket{{1, 2, 3, 6}};
  static constexpr Buckets<6> kOccurrenceBucket{{1, 2, 3, 6, 12, 40}};

  static std::int32_t weight_index(SourceKind kind, std::int32_t length) {
    return static_cast<std::int32_t>(kind) * kLengthBuckets + kLengthBucket[length];
  }

  struct Rate {
    double hits;
    double trials;
  };
  void derive();

  std::vector<std::int32_t> stop_tokens_;  // a handful
  std::vector<Rate> escapes_;
  std::vector<Rate> calibration_;  // at equal steps of the log-odds, interpolated between them
  std::array<double, kNumSourceKinds * kLengthBuckets> weights_;
  Correction correction_;

  // Derived from the above.
  std::array<double, kNumPoints> calibrated_;  // the rates of the points
  std::array<double, kNumPoints> highest_calibrated_;  // up to each point; the first negative: to be computed
  std::array<double, kNumSourceKinds * kLengthBuckets> says_;  // exponentials of the weights; negative: to be computed
};

}  // namespace agentinfer::spec_sam
