#include "draft_model.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "check.h"

namespace agentinfer::spec_sam {

namespace {

// What a rate starts as counts like this many observations, and a rate forgets half of what it saw at the limit, so
// that it follows traffic that changes.
constexpr double kPriorTrials = 4.0;
constexpr double kMaxTrials = 400.0;
constexpr double kWeightStep = 0.02;
constexpr double kMaxWeight = 8.0;

// Log-odds of the calibration's points: -6, -5.5 ... 6.
constexpr double kLowestLogit = -6.0;
constexpr double kLogitStep = 0.5;
constexpr std::size_t kNumPoints = 25;
constexpr double kPointPriorTrials = 20.0;
constexpr double kMaxPointTrials = 2000.0;

// Where a probability lies between two points: the lower one, and how far to the upper one.
struct Place {
  std::size_t point;
  double fraction;
};

Place place_of(double probability) {
  const double at = (std::log(probability / (1.0 - probability)) - kLowestLogit) / kLogitStep;
  const double inside = std::clamp(at, 0.0, static_cast<double>(kNumPoints - 1) - 1e-9);
  const auto point = static_cast<std::size_t>(inside);
  return {point, inside - static_cast<double>(point)};
}

// A representative of each bucket, from which the priors are computed.
constexpr double kBucketLength[] = {1, 2, 3, 4, 5.5, 8, 12, 20, 32, 52, 64};
constexpr double kBucketDegree[] = {1, 2, 3, 5, 10};
constexpr double kBucketOccurrences[] = {1, 2, 3, 5, 9, 25, 80};

std::int32_t bucket_of(std::int32_t value, std::initializer_list<std::int32_t> upper_bounds) {
  std::int32_t bucket = 0;
  for (const std::int32_t bound : upper_bounds) {
    if (value <= bound) return bucket;
    ++bucket;
  }
  return bucket;
}

// New evidence escapes often, long matches and many occurrences seldom.
double escape_prior(std::size_t length, std::size_t degree, std::size_t occurrences) {
  const double by_count =
      0.3 * kBucketDegree[degree] / (kBucketOccurrences[occurrences] + 0.5 * kBucketDegree[degree]);
  return std::min(0.9, by_count + 0.6 / (1.0 + 0.7 * kBucketLength[length]));
}

}  // namespace

std::int32_t DraftModel::length_bucket(std::int32_t length) {
  return bucket_of(length, {1, 2, 3, 4, 6, 9, 14, 24, 40, 63});
}

DraftModel::DraftModel(std::vector<std::int32_t> stop_tokens)
    : stop_tokens_(std::move(stop_tokens)), escapes_(kEscapeContexts), calibration_(kNumPoints) {
  for (std::size_t point = 0; point < kNumPoints; ++point) {
    const double logit = kLowestLogit + kLogitStep * static_cast<double>(point);
    calibration_[point] = {kPointPriorTrials / (1.0 + std::exp(-logit)), kPointPriorTrials};
  }
  std::size_t context = 0;
  for (std::int32_t kind_and_level = 0; kind_and_level < kNumSourceKinds * kLevels; ++kind_and_level) {
    for (std::size_t length = 0; length < kLengthBuckets; ++length) {
      for (std::size_t degree = 0; degree < kDegreeBuckets; ++degree) {
        for (std::size_t occurrences = 0; occurrences < kOccurrenceBuckets; ++occurrences) {
          escapes_[context++] = {kPriorTrials * escape_prior(length, degree, occurrences), kPriorTrials};
        }
      }
    }
  }
  for (std::size_t i = 0; i < weights_.size(); ++i) weights_[i] = std::log(kBucketLength[i % kLengthBuckets]);
}

DraftModel::EscapeContext DraftModel::escape_context(SourceKind kind, std::int32_t level, std::int32_t length,
                                                     std::int32_t degree, std::uint32_t occurrences) {
  const std::int32_t capped = static_cast<std::int32_t>(std::min<std::uint32_t>(occurrences, 1000));
  std::int32_t context = static_cast<std::int32_t>(kind) * kLevels + std::min(level, kLevels - 1);
  context = context * kLengthBuckets + length_bucket(length);
  context = context * kDegreeBuckets + bucket_of(degree, {1, 2, 3, 6});
  return context * kOccurrenceBuckets + bucket_of(capped, {1, 2, 3, 6, 12, 40});
}

double DraftModel::escape(EscapeContext context) const { return escapes_[context].hits / escapes_[context].trials; }

void DraftModel::learn_escape(EscapeContext context, bool escaped) {
  Rate& rate = escapes_[context];
  rate.hits += escaped ? 1.0 : 0.0;
  rate.trials += 1.0;
  if (rate.trials > kMaxTrials) {
    rate.hits *= 0.5;
    rate.trials *= 0.5;
  }
}

double DraftModel::weight(SourceKind kind, std::int32_t length) const {
  return weights_[static_cast<std::int32_t>(kind) * kLengthBuckets + length_bucket(length)];
}

void DraftModel::learn_weight(SourceKind kind, std::int32_t length, double surprise) {
  double& weight = weights_[static_cast<std::int32_t>(kind) * kLengthBuckets + length_bucket(length)];
  weight = std::clamp(weight + kWeightStep * surprise, -kMaxWeight, kMaxWeight);
}

double DraftModel::calibrated(double probability) const {
  const Place place = place_of(probability);
  const Rate& below = calibration_[place.point];
  const Rate& above = calibration_[place.point + 1];
  return (1.0 - place.fraction) * (below.hits / below.trials) + place.fraction * (above.hits / above.trials);
}

void DraftModel::learn_calibration(double probability, bool came) {
  const Place place = place_of(probability);
  const double shares[] = {1.0 - place.fraction, place.fraction};
  for (std::size_t side = 0; side < 2; ++side) {
    Rate& rate = calibration_[place.point + side];
    rate.hits += came ? shares[side] : 0.0;
    rate.trials += shares[side];
    if (rate.trials > kMaxPointTrials) {
      rate.hits *= 0.5;
      rate.trials *= 0.5;
    }
  }
}

std::vector<double> DraftModel::learned() const {
  std::vector<double> values(weights_.begin(), weights_.end());
  for (const std::vector<Rate>* rates : {&escapes_, &calibration_}) {
    for (const Rate& rate : *rates) {
      values.push_back(rate.hits);
      values.push_back(rate.trials);
    }
  }
  for (const Correction::Slot& slot : correction_.slots()) {
    values.push_back(slot.weight);
    values.push_back(slot.sum_of_squares);
  }
  return values;
}

void DraftModel::restore(const double* values, std::size_t count) {
  const std::size_t num_rates = escapes_.size() + calibration_.size();
  const std::size_t expected = weights_.size() + 2 * (num_rates + correction_.slots().size());
  AGENTINFER_CHECK(count == expected, "a learned draft model has ", expected, " numbers, got ", count,
                   "; it was written by another version: start without it");
  const double* rates = values + weights_.size();
  const double* slots = rates + 2 * num_rates;
  for (std::size_t i = 0; i < count; ++i) {
    AGENTINFER_CHECK(std::isfinite(values[i]), "learned draft model: value ", i, " is ", values[i],
                     ", not a finite number; start without it");
  }
  for (std::size_t i = 0; i < weights_.size(); ++i) {
    AGENTINFER_CHECK(std::abs(values[i]) <= kMaxWeight, "learned draft model: weight ", i, " is ", values[i],
                     ", expected -", kMaxWeight, " to ", kMaxWeight, "; start without it");
  }
  for (std::size_t i = 0; i < num_rates; ++i) {
    const double hits = rates[2 * i];
    const double trials = rates[2 * i + 1];
    AGENTINFER_CHECK(trials > 0 && trials <= kMaxPointTrials && hits >= 0 && hits <= trials, "learned draft model: rate ",
                     i, " is ", hits, " of ", trials, "; start without it");
  }
  for (std::size_t i = 0; i < correction_.slots().size(); ++i) {
    AGENTINFER_CHECK(slots[2 * i + 1] >= 0, "learned draft model: slot ", i, " has a negative sum of squares, ",
                     slots[2 * i + 1], "; start without it");
  }
  std::copy(values, rates, weights_.begin());
  for (std::vector<Rate>* kept : {&escapes_, &calibration_}) {
    for (Rate& rate : *kept) {
      rate = {rates[0], rates[1]};
      rates += 2;
    }
  }
  for (Correction::Slot& slot : correction_.slots()) {
    slot = {slots[0], slots[1]};
    slots += 2;
  }
}

}  // namespace agentinfer::spec_sam
