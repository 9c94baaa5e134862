// An incremental suffix automaton over int32 tokens that counts occurrences exactly while it grows.
//
// Construction: Blumer et al., "The smallest automaton recognizing the subwords of a text", Theoretical Computer
// Science 40 (1985), in the generalised form for several documents (Mohri, Moreno, Weinstein, "General suffix automaton
// construction algorithm and space bounds", 2009, section 4): a document starts again at the root and follows the
// states that are there already, so no string runs across a document's end. Amortised constant work and at most two
// states a token.
//
// Counts: a string occurs where a state below its own in the tree of suffix links ends, so exact counts need every
// state on the link path of each new prefix to be raised. Those paths are as long as the text is periodic. We bound the
// work instead of the accuracy: strings of up to `max_match` + 1 tokens are counted, and the walk starts at the state
// of the document's suffix of that length. It visits at most max_match + 2 states, each count it keeps is exact after
// every token, and there is no deferred recount that would stall a decoding step.
//
// Memory: two thirds of the states of a text that is not periodic are prefixes of a document that occur once, and all
// about such a state follows from the text and its position. It takes 8 bytes; only the others have a record.
//
// Not thread-safe: callers order writers against readers. A Cursor or Match never dangles: states are never removed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "edge_store.h"
#include "pod_vector.h"
#include "token_log.h"

namespace agentinfer::spec_sam {

using StateId = std::int32_t;
constexpr StateId kRoot = 0;
constexpr StateId kNoState = -1;
constexpr std::int32_t kSeparator = -1;  // between two documents in the token log; never a token

// The `length` last tokens of a stream, found in the automaton; they belong to `state`. Length 0 is the root.
struct Match {
  StateId state = kRoot;
  std::int32_t length = 0;
};

// A token that followed a state's strings: `count` times, the latest time at position `latest_end` of the token log.
struct Continuation {
  std::int32_t token;
  StateId state;
  std::uint32_t count;
  std::int32_t latest_end;
};

// A state stands for the strings of `shortest` to `longest` tokens that end at the same set of positions.
struct StateInfo {
  std::int32_t shortest;
  std::int32_t longest;
  StateId link;             // the state of the next shorter suffix; kNoState for the root
  bool is_counted;          // shortest <= max_match + 1; otherwise the next two are only lower bounds
  std::uint32_t count;      // occurrences; for the root the number of tokens
  std::int32_t latest_end;  // position in the token log of the last token of the latest occurrence; -1 if none
};

// CheckError unless all are token ids, that is, not negative.
void check_tokens(const std::int32_t* tokens, std::size_t count);

class Automaton {
 public:
  static constexpr std::int32_t kMaxTokens = 1 << 29;  // up to two states a token; 30 bits for a record

  explicit Automaton(std::int32_t max_match);

  // Appends to the current document. The tokens and the room for them are checked first: after a CheckError nothing has
  // changed. When memory runs out half-way (std::bad_alloc) the automaton must be dropped.
  void extend(const std::int32_t* tokens, std::size_t count);
  // Ends the current document: no string, match or continuation runs across. Does nothing on an empty document.
  void start_document();

  // `match`, followed by `token`: the longest suffix of both together that occurs, at most max_match tokens.
  Match step(Match match, std::int32_t token) const { return step_settled(settle(match), token); }
  // The same for a match that is settled. So is the result, as long as nothing is appended.
  Match step_settled(Match match, std::int32_t token) const;
  // The match of `length` tokens at a state that an edge leads to from the settled match of one token less.
  Match arrive(StateId state, std::int32_t length) const {
    return length > max_match_ ? settle(Match{state, max_match_}) : Match{state, length};
  }
  // The state that holds the match's string of exactly that length: states may have been split since it was found.
  Match settle(Match match) const;
  // The longest suffix of the current document, at most max_match tokens, that also occurs before its end.
  Match suffix_match() const;
  // The state of a string, or kNoState if it does not occur.
  StateId find(const std::int32_t* tokens, std::size_t count) const;

  StateInfo info(StateId state) const;
  // The `limit` most frequent continuations of a state, by count and then by recency, best first. Visits all its edges.
  // CheckError where shortest > max_match, since such continuations are not counted.
  std::vector<Continuation> continuations(StateId state, std::size_t limit) const;
  // Calls visit(token, state, count, latest_end) for each continuation of a state, in no fixed order, and returns how many
  // there are; where there are more than `max_degree` it visits none. For walking down the suffix links without a copy.
  template <typename Visit>
  std::int32_t visit_continuations(StateId state, std::int32_t max_degree, Visit&& visit) const;
  // The state of the next shorter suffix, kNoState for the root; and the length of a state's longest string.
  StateId link(StateId state) const { return slots_[state].link; }
  std::int32_t longest(StateId state) const { return longest_of(state); }

  // What followed the latest occurrence that was followed by anything: at most `limit` tokens, not past the document.
  TokenSpan following(StateId state, std::size_t limit) const;

  std::int32_t max_match() const { return max_match_; }
  // Changes whenever a state or its counts do.
  std::size_t version() const { return tokens_.size(); }
  std::size_t num_tokens() const { return tokens_.size() - num_separators_; }
  std::size_t num_documents() const { return num_separators_ + (document_length_ > 0 ? 1 : 0); }
  std::size_t num_states() const { return slots_.size(); }
  std::size_t num_edges() const { return num_edges_; }
  TokenSpan tokens() const { return tokens_.span(0, tokens_.size()); }
  // What the arenas hold, their slack included.
  std::size_t memory_bytes() const;
  // Link-path states visited for counting so far: the cost that depends on how periodic the text is.
  std::uint64_t num_count_updates() const { return num_count_updates_; }

  // Recomputes every derived value from the tokens alone; InternalError names the broken rule and state. Linear time
  // but for sorting and the link walks; memory of some 16 bytes a state.
  void check_integrity() const;

 private:
  // What every state has. A *fresh* state is a whole prefix of a document that occurs once, at `position()`: it is one
  // token longer than the prefix before, and its only edge leads to the next prefix. No state links to it. As soon as
  // it occurs again or becomes a link it is given a record, and keeps its number.
  struct Slot {
    StateId link;
    std::int32_t reference;  // ~position of a fresh state, else the record's index * 2 + (1 for a clone)

    bool is_fresh() const { return reference < 0; }
    bool is_clone() const { return reference >= 0 && (reference & 1) != 0; }
    std::int32_t position() const { return ~reference; }
    std::int32_t record() const { return reference >> 1; }
  };
  // Most states have exactly one edge, so the first one lives here; a second one moves both to the edge store.
  struct Record {
    std::int32_t longest;
    std::uint32_t count;
    std::int32_t latest_end;
    std::int32_t edge_token;   // the only edge's token, or kNoEdge, or kManyEdges
    std::int32_t edge_target;  // its target; with kManyEdges the block in the edge store
  };
  static_assert(sizeof(Slot) == 8 && sizeof(Record) == 20, "the documented bytes per token count on it");
  static constexpr std::int32_t kNoEdge = -1;
  static constexpr std::int32_t kManyEdges = -2;

  void append(std::int32_t token);
  StateId extend_state(StateId last, std::int32_t token);
  StateId clone_state(StateId original, std::int32_t longest);
  void redirect(StateId from, std::int32_t token, StateId original, StateId clone);
  StateId new_recorded_state(Record record, bool is_clone);
  void promote(StateId state);

  // A fresh state's record is made up on the spot.
  Record record_of(StateId state) const;
  std::int32_t longest_of(StateId state) const {
    const Slot slot = slots_[state];
    return slot.is_fresh() ? prefix_length(slot.position()) : records_[slot.record()].longest;
  }
  // Of the document's prefix that ends at this position.
  std::int32_t prefix_length(std::int32_t position) const;
  // The states of consecutive prefixes are numbered one after the other, but for the clone the first one may have caused.
  StateId next_prefix(StateId state) const { return slots_[state + 1].is_clone() ? state + 2 : state + 1; }
  StateId target(StateId state, std::int32_t token) const;
  void add_edge(StateId state, std::int32_t token, StateId target);
  void set_target(StateId state, std::int32_t token, StateId target);
  template <typename Visit>
  void for_each_edge(StateId state, Visit&& visit) const;

  void check_state(StateId state) const;

  void check_links() const;
  void check_edges() const;
  void check_counts() const;

  std::int32_t max_match_;
  PodVector<Slot> slots_;
  PodVector<Record> records_;
  EdgeStore edges_;
  TokenLog tokens_;
  std::size_t num_edges_ = 0;
  std::size_t num_separators_ = 0;
  std::vector<std::int32_t> document_starts_{0};  // positions, the current document's last
  std::uint64_t num_count_updates_ = 0;

  StateId last_ = kRoot;  // the state of the whole current document
  std::int32_t document_length_ = 0;
  Match tail_;  // its suffix of at most max_match + 1 tokens: where counting starts
};

inline Match Automaton::settle(Match match) const {
  while (match.state != kRoot && match.length <= longest_of(slots_[match.state].link)) {
    match.state = slots_[match.state].link;
  }
  return match;
}

template <typename Visit>
std::int32_t Automaton::visit_continuations(StateId state, std::int32_t max_degree, Visit&& visit) const {
  const Slot slot = slots_[state];
  if (slot.is_fresh()) {  // occurs once, so what follows is the text
    const std::size_t next = static_cast<std::size_t>(slot.position()) + 1;
    if (next >= tokens_.size() || tokens_[next] == kSeparator) return 0;
    visit(tokens_[next], next_prefix(state), std::uint32_t{1}, static_cast<std::int32_t>(next));
    return 1;
  }
  const Record& record = records_[slot.record()];
  if (record.edge_token == kNoEdge) return 0;
  const auto visit_edge = [&](Edge edge) {
    const Slot after = slots_[edge.target];
    if (after.is_fresh()) {
      visit(edge.token, edge.target, std::uint32_t{1}, after.position());
    } else {
      const Record& seen = records_[after.record()];
      visit(edge.token, edge.target, seen.count, seen.latest_end);
    }
  };
  if (record.edge_token != kManyEdges) {
    visit_edge(Edge{record.edge_token, record.edge_target});
    return 1;
  }
  const std::int32_t degree = edges_.size(record.edge_target);
  if (degree <= max_degree) edges_.for_each(record.edge_target, visit_edge);
  return degree;
}

template <typename Visit>
void Automaton::for_each_edge(StateId state, Visit&& visit) const {
  const Record record = record_of(state);
  if (record.edge_token == kManyEdges) {
    edges_.for_each(record.edge_target, visit);
  } else if (record.edge_token != kNoEdge) {
    visit(Edge{record.edge_token, record.edge_target});
  }
}

}  // namespace agentinfer::spec_sam
