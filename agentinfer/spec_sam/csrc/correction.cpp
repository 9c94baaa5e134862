#include "correction.h"

#include <algorithm>
#include <cmath>

namespace agentinfer::spec_sam {

namespace {

// The last feature is the only one that is shared by most proposals, so it moves less.
constexpr double kSteps[Correction::kNumFeatures] = {0.5, 0.5, 0.5, 0.5, 0.5, 0.3};
constexpr double kMaxShift = 2.5;  // of the log-odds, in all

std::uint32_t mix(std::uint32_t seed, std::uint32_t value) {
  std::uint32_t hash = (seed * 0x9E3779B1U) ^ ((value + 0x7F4A7C15U) * 0x85EBCA77U);
  hash ^= hash >> 15;
  hash *= 0x2C1B3C6DU;
  return hash ^ (hash >> 13);
}

}  // namespace

Correction::Features Correction::features(std::uint32_t token, std::uint32_t previous, std::uint32_t earlier,
                                          std::uint32_t evidence) {
  Features features{mix(0, token),
                    mix(1, previous),
                    mix(mix(2, previous), token),
                    mix(mix(mix(3, earlier), previous), token),
                    mix(mix(4, earlier), token),
                    mix(5, evidence)};
  for (std::uint32_t& feature : features) feature %= kNumSlots;
  return features;
}

double Correction::apply(double probability, const Features& features) const {
  double shift = 0;
  for (const std::uint32_t slot : features) shift += slots_[slot].weight;
  const double odds = std::log(probability / (1.0 - probability)) + std::clamp(shift, -kMaxShift, kMaxShift);
  return 1.0 / (1.0 + std::exp(-odds));
}

void Correction::learn(double corrected, const Features& features, bool came) {
  const double error = (came ? 1.0 : 0.0) - corrected;
  for (std::size_t i = 0; i < kNumFeatures; ++i) {
    Slot& slot = slots_[features[i]];
    slot.sum_of_squares += error * error;
    slot.weight += kSteps[i] * error / std::sqrt(1.0 + slot.sum_of_squares);
  }
}

}  // namespace agentinfer::spec_sam
