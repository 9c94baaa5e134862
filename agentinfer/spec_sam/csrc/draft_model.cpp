#include "draft_model.h"

#include <algorithm>
#include <cmath>
#include <limits>
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

constexpr double kPointPriorTrials = 20.0;
constexpr double kMaxPointTrials = 2000.0;

// A representative of each bucket, from which the priors are computed.
constexpr double kBucketLength[] = {1, 2, 3, 4, 5.5, 8, 12, 20, 32, 52, 64};
constexpr double kBucketDegree[] = {1, 2, 3, 5, 10};
constexpr double kBucketOccurrences[] = {1, 2, 3, 5, 9, 25, 80};

// New evidence escapes often, long matches and many occurrences seldom.
double escape_prior(std::size_t length, std::size_t degree, std::size_t occurrences) {
  const double by_count =
      0.3 * kBucketDegree[degree] / (kBucketOccurrences[occurrences] + 0.5 * kBucketDegree[degree]);
  return std::min(0.9, by_count + 0.6 / (1.0 + 0.7 * kBucketLength[length]));
}

}  // namespace

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
  derive();
}

void DraftModel::learn_escape(EscapeContext context, bool escaped) {
  Rate& rate = escapes_[context];
  rate.hits += escaped ? 1.0 : 0.0;
  rate.trials += 1.0;
  if (rate.trials > kMaxTrials) {
    rate.hits *= 0.5;
    rate.trials *= 0.5;
  }
}

void DraftModel::learn_weight(SourceKind kind, std::int32_t length, double surprise) {
  const std::int32_t at = weight_index(kind, length);
  weights_[at] = std::clamp(weights_[at] + kWeightStep * surprise, -kMaxWeight, kMaxWeight);
  says_[at] = -1;
}

double DraftModel::odds_needed(double least) {
  if (highest_calibrated_[0] < 0) {
    double highest = 0;
    for (std::size_t point = 0; point < kNumPoints; ++point) {
      highest = std::max(highest, calibrated_[point]);
      highest_calibrated_[point] = highest;
    }
  }
  // What lies between two points is calibrated to a value between theirs, but for rounding.
  const double lowest = least * (1 - 1e-9);
  std::size_t point = highest_calibrated_[kNumPoints / 2] < lowest ? kNumPoints / 2 : 0;
  while (point < kNumPoints && highest_calibrated_[point] < lowest) ++point;
  if (point <= 1) return -std::numeric_limits<double>::infinity();
  return kLowestLogit + kLogitStep * static_cast<double>(point - 1) - 1e-6;
}

void DraftModel::learn_calibration(Place place, bool came) {
  const double shares[] = {1.0 - place.fraction, place.fraction};
  for (std::size_t side = 0; side < 2; ++side) {
    Rate& rate = calibration_[place.point + side];
    rate.hits += came ? shares[side] : 0.0;
    rate.trials += shares[side];
    if (rate.trials > kMaxPointTrials) {
      rate.hits *= 0.5;
      rate.trials *= 0.5;
    }
    calibrated_[place.point + side] = rate.hits / rate.trials;
  }
  highest_calibrated_[0] = -1;
}

void DraftModel::derive() {
  for (std::size_t point = 0; point < kNumPoints; ++point) {
    calibrated_[point] = calibration_[point].hits / calibration_[point].trials;
  }
  highest_calibrated_[0] = -1;
  says_.fill(-1);
}

std::vector<double> DraftModel::learned() const {
  std::vector<double> values(weights_.begin(), weights_.end());
  for (const std::vector<Rate>* rates : {&escapes_, &calibration_}) {
    for (const Rate& rate : *rates) {
      values.push_back(rate.hits);
      values.push_back(rate.trials);
    }
  }
  for (std::size_t slot = 0; slot < Correction::kNumSlots; ++slot) {
    values.push_back(correction_.weights()[slot]);
    values.push_back(correction_.sums_of_squares()[slot]);
  }
  return values;
}

void DraftModel::restore(const double* values, std::size_t count) {
  const std::size_t num_rates = escapes_.size() + calibration_.size();
  const std::size_t expected = weights_.size() + 2 * (num_rates + Correction::kNumSlots);
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
  for (std::size_t i = 0; i < Correction::kNumSlots; ++i) {
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
  for (std::size_t slot = 0; slot < Correction::kNumSlots; ++slot) {
    correction_.weights()[slot] = slots[2 * slot];
    correction_.sums_of_squares()[slot] = slots[2 * slot + 1];
  }
  derive();
}

}  // namespace agentinfer::spec_sam
