// Corrects an estimate by what the token and the tokens before it say about it: a logistic regression, learned online.
//
// Counts treat all tokens alike, but some are proposed far too often (a value that differs each time) and others too
// seldom (the bracket that always follows it). Each feature of a proposal, hashed into one table, adds to the log-odds of
// the estimate; weights move along the gradient of the log-likelihood with a step of their own, smaller the more they
// have moved (Duchi, Hazan, Singer, "Adaptive subgradient methods for online learning and stochastic optimization",
// Journal of Machine Learning Research 12, 2011). Two features that share a slot share what is learned.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace agentinfer::spec_sam {

class Correction {
 public:
  static constexpr std::size_t kNumFeatures = 6;
  static constexpr std::size_t kNumSlots = std::size_t{1} << 16;
  using Features = std::array<std::uint32_t, kNumFeatures>;  // slots of the table

  struct Slot {
    double weight = 0;
    double sum_of_squares = 0;  // of the gradients so far
  };

  Correction() : slots_(kNumSlots) {}

  // Of `token` proposed after `previous` and, before that, `earlier`; `evidence` says how it is supported.
  static Features features(std::uint32_t token, std::uint32_t previous, std::uint32_t earlier, std::uint32_t evidence);
  // `probability` in (0, 1); the result as well.
  double apply(double probability, const Features& features) const;
  // The token at which `corrected` was estimated came, or did not.
  void learn(double corrected, const Features& features, bool came);

  std::vector<Slot>& slots() { return slots_; }
  const std::vector<Slot>& slots() const { return slots_; }

 private:
  std::vector<Slot> slots_;
};

}  // namespace agentinfer::spec_sam
