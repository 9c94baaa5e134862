// Corrects an estimate by what the token and the tokens before it say about it: a logistic regression, learned online.
//
// Counts treat all tokens alike, but some are proposed far too often (a value that differs each time) and others too
// seldom (the bracket that always follows it). Each feature of a proposal, hashed into one table, adds to the log-odds of
// the estimate; weights move along the gradient of the log-likelihood with a step of their own, smaller the more they
// have moved (Duchi, Hazan, Singer, "Adaptive subgradient methods for online learning and stochastic optimization",
// Journal of Machine Learning Research 12, 2011). Two features that share a slot share what is learned.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace agentinfer::spec_sam {

class Correction {
 public:
  static constexpr std::size_t kNumFeatures = 6;
  static constexpr std::size_t kNumSlots = std::size_t{1} << 16;
  using Features = std::array<std::uint32_t, kNumFeatures>;  // slots of the table

  // What all proposals at one place in the stream share: the tokens `previous` and, before that, `earlier`.
  class Place {
   public:
    Place(std::uint32_t previous, std::uint32_t earlier)
        : previous_(mix(1, previous)),
          after_previous_(mix(2, previous)),
          after_both_(mix(mix(3, earlier), previous)),
          after_earlier_(mix(4, earlier)) {}
    // Of `token` proposed here; `evidence` says how it is supported.
    Features features(std::uint32_t token, std::uint32_t evidence) const {
      return {slot_of(mix(0, token)),           slot_of(previous_),
              slot_of(mix(after_previous_, token)), slot_of(mix(after_both_, token)),
              slot_of(mix(after_earlier_, token)),  slot_of(mix(5, evidence))};
    }

   private:
    std::uint32_t previous_;
    std::uint32_t after_previous_;
    std::uint32_t after_both_;
    std::uint32_t after_earlier_;
  };

  Correction() : weights_(kNumSlots), sums_of_squares_(kNumSlots) {}

  // The corrected log-odds of `probability`, in (0, 1).
  double odds(double probability, const Features& features) const {
    double shift = 0;
    for (const std::uint32_t slot : features) shift += weights_[slot];
    return std::log(probability / (1.0 - probability)) + std::clamp(shift, -kMaxShift, kMaxShift);
  }
  // Asks the memory for what `odds` will read.
  void prefetch_weights(const Features& features) const {
    for (const std::uint32_t slot : features) __builtin_prefetch(&weights_[slot]);
  }
  // Asks the memory for what `learn` will change besides the weights.
  void prefetch(const Features& features) const {
    for (const std::uint32_t slot : features) __builtin_prefetch(&sums_of_squares_[slot], 1);
  }
  // The token at which `corrected` was estimated came, or did not.
  void learn(double corrected, const Features& features, bool came);

  // Apart, since only the weights are read for every proposal.
  std::vector<double>& weights() { return weights_; }
  const std::vector<double>& weights() const { return weights_; }
  std::vector<double>& sums_of_squares() { return sums_of_squares_; }  // of the gradients so far
  const std::vector<double>& sums_of_squares() const { return sums_of_squares_; }

 private:
  static constexpr double kMaxShift = 2.5;  // of the log-odds, in all

  static std::uint32_t mix(std::uint32_t seed, std::uint32_t value) {
    std::uint32_t hash = (seed * 0x9E3779B1U) ^ ((value + 0x7F4A7C15U) * 0x85EBCA77U);
    hash ^= hash >> 15;
    hash *= 0x2C1B3C6DU;
    return hash ^ (hash >> 13);
  }

  static std::uint32_t slot_of(std::uint32_t hash) { return hash % static_cast<std::uint32_t>(kNumSlots); }

  std::vector<double> weights_;
  std::vector<double> sums_of_squares_;
};

}  // namespace agentinfer::spec_sam
