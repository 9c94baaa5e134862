// A stream of tokens followed through an automaton: after each token, the longest suffix of it that occurs there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "automaton.h"

namespace agentinfer::spec_sam {

// The automaton may grow between calls, by other streams than this one. A match found before stays true, and its counts
// grow with the automaton, but a longer one that has become possible is only looked for by `rematch`.
class Cursor {
 public:
  explicit Cursor(const Automaton& automaton) : automaton_(&automaton) {}

  // Amortised constant work a token. A token the automaton never saw ends the match. After a CheckError nothing has
  // changed.
  Match advance(const std::int32_t* tokens, std::size_t count);
  // Reads the last max_match tokens of the stream again, so the match is the longest in the automaton as it is now.
  Match rematch();
  // Starts a new stream.
  void reset();

  Match match() const { return match_; }

 private:
  void remember(std::int32_t token);

  const Automaton* automaton_;
  Match match_;
  std::vector<std::int32_t> recent_;  // a ring of the last max_match tokens once it is full
  std::size_t oldest_ = 0;
};

}  // namespace agentinfer::spec_sam
