#include "correction.h"

#include <cmath>

namespace agentinfer::spec_sam {

namespace {

// The last feature is the only one that is shared by most proposals, so it moves less.
constexpr double kSteps[Correction::kNumFeatures] = {0.5, 0.5, 0.5, 0.5, 0.5, 0.3};

}  // namespace

void Correction::learn(double corrected, const Features& features, bool came) {
  const double error = (came ? 1.0 : 0.0) - corrected;
  for (std::size_t i = 0; i < kNumFeatures; ++i) {
    double& sum_of_squares = sums_of_squares_[features[i]];
    sum_of_squares += error * error;
    weights_[features[i]] += kSteps[i] * error / std::sqrt(1.0 + sum_of_squares);
  }
}

}  // namespace agentinfer::spec_sam
