#include "automaton.h"

#include <algorithm>
#include <limits>

#include "check.h"

namespace agentinfer::spec_sam {

void check_tokens(const std::int32_t* tokens, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) {
    AGENTINFER_CHECK(tokens[i] >= 0, "tokens[", i, "] is ", tokens[i], "; a token id is between 0 and ",
                     std::numeric_limits<std::int32_t>::max());
  }
}

Automaton::Automaton(std::int32_t max_match) : max_match_(max_match) {
  AGENTINFER_CHECK(max_match >= 1 && max_match <= kMaxTokens, "max_match is ", max_match, "; expected 1 to ",
                   kMaxTokens);
  new_state(0);
}

void Automaton::extend(const std::int32_t* tokens, std::size_t count) {
  AGENTINFER_CHECK(count <= static_cast<std::size_t>(kMaxTokens) - std::min<std::size_t>(tokens_.size(), kMaxTokens),
                   "the automaton holds ", num_tokens(), " tokens and cannot take ", count, " more; its limit is ",
                   kMaxTokens, ": start another automaton");
  check_tokens(tokens, count);
  for (std::size_t i = 0; i < count; ++i) append(tokens[i]);
}

void Automaton::start_document() {
  if (document_length_ == 0) return;
  tokens_.push_back(kSeparator);
  ++num_separators_;
  document_length_ = 0;
  last_ = kRoot;
  tail_ = Match{};
}

Match Automaton::step(Match match, std::int32_t token) const {
  // States may have been split since the match was found: the shorter strings belong to the clone then.
  match = settle(match);
  StateId next = target(match.state, token);
  while (next == kNoState) {
    if (match.state == kRoot) return Match{};
    match.state = states_[match.state].link;
    match.length = states_[match.state].longest;
    next = target(match.state, token);
  }
  return settle(Match{next, std::min(match.length + 1, max_match_)});
}

Match Automaton::suffix_match() const {
  Match match = settle(Match{tail_.state, std::min(tail_.length, max_match_)});
  if (match.state != kRoot && states_[match.state].count == 1) {
    // The one occurrence is the end itself. The link's strings end at more positions than these, so they came before.
    match.state = states_[match.state].link;
    match.length = states_[match.state].longest;
  }
  return match;
}

StateId Automaton::find(const std::int32_t* tokens, std::size_t count) const {
  check_tokens(tokens, count);
  StateId state = kRoot;
  for (std::size_t i = 0; i < count && state != kNoState; ++i) state = target(state, tokens[i]);
  return state;
}

StateInfo Automaton::info(StateId state) const {
  check_state(state);
  const State& record = states_[state];
  const std::int32_t shortest = state == kRoot ? 0 : states_[record.link].longest + 1;
  return {shortest, record.longest, record.link, shortest <= max_match_ + 1, record.count, record.latest_end};
}

std::vector<Continuation> Automaton::continuations(StateId state, std::size_t limit) const {
  const StateInfo of = info(state);
  AGENTINFER_CHECK(of.shortest <= max_match_, "state ", state, " stands for strings of ", of.shortest,
                   " tokens and more; continuations are counted up to max_match = ", max_match_);
  // Two tokens cannot have followed last at the same position, so this order is total.
  const auto is_better = [](const Continuation& left, const Continuation& right) {
    return left.count != right.count ? left.count > right.count : left.latest_end > right.latest_end;
  };
  std::vector<Continuation> best;  // a heap with the worst kept one on top
  if (limit == 0) return best;
  for_each_edge(state, [&](Edge edge) {
    const State& after = states_[edge.target];
    const Continuation seen{edge.token, edge.target, after.count, after.latest_end};
    if (best.size() == limit) {
      if (!is_better(seen, best.front())) return;
      std::pop_heap(best.begin(), best.end(), is_better);
      best.back() = seen;
    } else {
      best.push_back(seen);
    }
    std::push_heap(best.begin(), best.end(), is_better);
  });
  std::sort_heap(best.begin(), best.end(), is_better);
  return best;
}

TokenSpan Automaton::following(StateId state, std::size_t limit) const {
  check_state(state);
  std::int32_t first = -1;
  for_each_edge(state, [&](Edge edge) { first = std::max(first, states_[edge.target].latest_end); });
  if (first < 0) return {};
  std::size_t end = first;
  while (end < tokens_.size() && end - first < limit && tokens_[end] != kSeparator) ++end;
  return tokens_.span(first, end - first);
}

std::size_t Automaton::memory_bytes() const {
  return sizeof(*this) + states_.capacity_bytes() + edges_.memory_bytes() + tokens_.capacity_bytes();
}

void Automaton::append(std::int32_t token) {
  const auto position = static_cast<std::int32_t>(tokens_.size());
  tokens_.push_back(token);
  ++document_length_;

  const StateId old_last = last_;
  last_ = extend_state(old_last, token);

  // Strings of one state end at the same positions, so all those of the tail's state end the document, and its edge for
  // this token exists even where the state was just split; `settle` then finds the right part. Where the tail is in the
  // whole document's state, so is the next one, and the lookup is saved: that is every token of text not seen before.
  const StateId next = tail_.state == old_last ? last_ : target(tail_.state, token);
  AGENTINFER_ICHECK(next != kNoState, "the document's suffix of ", tail_.length, " tokens has no edge for token ", token);
  tail_ = settle(Match{next, std::min(tail_.length + 1, max_match_ + 1)});

  for (StateId state = tail_.state; state != kNoState; state = states_[state].link) {
    State& record = states_[state];
    ++record.count;
    record.latest_end = position;
    ++num_count_updates_;
  }
  if (State& created = states_[last_]; created.count == 0) {  // it stands only for strings too long to be counted
    created.count = 1;
    created.latest_end = position;
  }
}

StateId Automaton::extend_state(StateId last, std::int32_t token) {
  const std::int32_t longest = states_[last].longest + 1;
  if (const StateId seen = target(last, token); seen != kNoState) {
    // Only in a later document that begins like an earlier one: its prefix has a state, or becomes one by a split.
    if (states_[seen].longest == longest) return seen;
    const StateId clone = clone_state(seen, longest);
    redirect(last, token, seen, clone);
    return clone;
  }

  const StateId created = new_state(longest);
  StateId ancestor = last;
  StateId next = kNoState;
  while (ancestor != kNoState && (next = target(ancestor, token)) == kNoState) {
    add_edge(ancestor, token, created);
    ancestor = states_[ancestor].link;
  }
  if (ancestor == kNoState) {
    states_[created].link = kRoot;
  } else if (states_[next].longest == states_[ancestor].longest + 1) {
    states_[created].link = next;
  } else {
    const StateId clone = clone_state(next, states_[ancestor].longest + 1);
    redirect(ancestor, token, next, clone);
    states_[created].link = clone;
  }
  return created;
}

// Splits `original`: its strings of up to `longest` tokens get a state of their own, with the same past.
StateId Automaton::clone_state(StateId original, std::int32_t longest) {
  const StateId clone = new_state(longest);
  State& copy = states_[clone];
  copy = states_[original];
  copy.longest = longest;
  if (copy.edge_token == kManyEdges) {
    copy.edge_target = edges_.duplicate(copy.edge_target);
    num_edges_ += edges_.size(copy.edge_target);
  } else if (copy.edge_token != kNoEdge) {
    ++num_edges_;
  }
  states_[original].link = clone;
  return clone;
}

void Automaton::redirect(StateId from, std::int32_t token, StateId original, StateId clone) {
  for (; from != kNoState && target(from, token) == original; from = states_[from].link) set_target(from, token, clone);
}

StateId Automaton::new_state(std::int32_t longest) {
  states_.push_back(State{longest, kNoState, 0, -1, kNoEdge, kNoState});
  return static_cast<StateId>(states_.size() - 1);
}

StateId Automaton::target(StateId state, std::int32_t token) const {
  const State& record = states_[state];
  if (record.edge_token >= 0) return record.edge_token == token ? record.edge_target : kNoState;
  if (record.edge_token == kNoEdge) return kNoState;
  const std::int32_t* found = edges_.find(record.edge_target, token);
  return found == nullptr ? kNoState : *found;
}

void Automaton::add_edge(StateId state, std::int32_t token, StateId target) {
  State& record = states_[state];
  ++num_edges_;
  if (record.edge_token == kManyEdges) {
    record.edge_target = edges_.add(record.edge_target, Edge{token, target});
  } else if (record.edge_token == kNoEdge) {
    record.edge_token = token;
    record.edge_target = target;
  } else {
    record.edge_target = edges_.create(Edge{record.edge_token, record.edge_target}, Edge{token, target});
    record.edge_token = kManyEdges;
  }
}

void Automaton::set_target(StateId state, std::int32_t token, StateId target) {
  State& record = states_[state];
  if (record.edge_token == kManyEdges) {
    *edges_.find(record.edge_target, token) = target;
  } else {
    AGENTINFER_DCHECK(record.edge_token == token);
    record.edge_target = target;
  }
}

template <typename Visit>
void Automaton::for_each_edge(StateId state, Visit&& visit) const {
  const State& record = states_[state];
  if (record.edge_token == kManyEdges) {
    edges_.for_each(record.edge_target, visit);
  } else if (record.edge_token != kNoEdge) {
    visit(Edge{record.edge_token, record.edge_target});
  }
}

// The state that holds the match's string of exactly that length, given a state of it or of a longer string it ends.
Match Automaton::settle(Match match) const {
  while (match.state != kRoot && match.length <= states_[states_[match.state].link].longest) {
    match.state = states_[match.state].link;
  }
  return match;
}

void Automaton::check_state(StateId state) const {
  AGENTINFER_CHECK(state >= 0 && static_cast<std::size_t>(state) < states_.size(), "state is ", state,
                   "; this automaton has states 0 to ", states_.size() - 1);
}

void Automaton::check_integrity() const {
  check_links();
  check_edges();
  check_counts();
}

void Automaton::check_links() const {
  AGENTINFER_ICHECK(states_[kRoot].longest == 0 && states_[kRoot].link == kNoState,
                    "rule root: state 0 must stand for the empty string and have no link");
  for (StateId state = 1; static_cast<std::size_t>(state) < states_.size(); ++state) {
    const StateId link = states_[state].link;
    AGENTINFER_ICHECK(link >= 0 && static_cast<std::size_t>(link) < states_.size(), "rule link: state ", state,
                      " links to ", link, ", which does not exist");
    AGENTINFER_ICHECK(states_[link].longest < states_[state].longest, "rule link: state ", state, " of length ",
                      states_[state].longest, " links to ", link, " of length ", states_[link].longest,
                      "; expected a shorter one");
  }
}

void Automaton::check_edges() const {
  std::size_t num_edges = 0;
  std::size_t num_slots = 0;
  std::vector<std::int32_t> num_primary(states_.size(), 0);
  for (StateId state = 0; static_cast<std::size_t>(state) < states_.size(); ++state) {
    const State& record = states_[state];
    if (record.edge_token == kManyEdges) num_slots += edges_.slots(record.edge_target);
    for_each_edge(state, [&](Edge edge) {
      ++num_edges;
      AGENTINFER_ICHECK(edge.target > 0 && static_cast<std::size_t>(edge.target) < states_.size(), "rule edge: state ",
                        state, " has an edge to ", edge.target, ", which does not exist");
      const State& after = states_[edge.target];
      AGENTINFER_ICHECK(after.latest_end >= 0 && tokens_[after.latest_end] == edge.token, "rule label: the edge from ",
                        state, " to ", edge.target, " has token ", edge.token,
                        "; the text where the target's strings end has another");
      AGENTINFER_ICHECK(target(state, edge.token) == edge.target, "rule lookup: state ", state, " does not find its edge ",
                        edge.token);
      AGENTINFER_ICHECK(after.longest > record.longest && states_[after.link].longest <= record.longest,
                        "rule length: the edge from ", state, " to ", edge.target, " leads out of its string lengths");
      if (after.longest != record.longest + 1) return;
      // The edge on the target's longest string: exactly one, and it determines the link.
      num_primary[edge.target] += 1;
      StateId ancestor = state;
      StateId expected = edge.target;
      while (ancestor != kNoState && expected == edge.target) {
        ancestor = states_[ancestor].link;
        expected = ancestor == kNoState ? kRoot : target(ancestor, edge.token);
        AGENTINFER_ICHECK(expected != kNoState, "rule suffix: state ", ancestor, " lacks the edge ", edge.token,
                          " that a longer string of state ", state, " has");
      }
      AGENTINFER_ICHECK(after.link == expected, "rule link: state ", edge.target, " links to ", after.link,
                        "; its longest proper suffix elsewhere is in state ", expected);
    });
  }
  for (std::size_t state = 1; state < states_.size(); ++state) {
    AGENTINFER_ICHECK(num_primary[state] == 1, "rule primary: state ", state, " has ", num_primary[state],
                      " edges on its longest string; expected 1");
  }
  AGENTINFER_ICHECK(num_edges == num_edges_, "rule edges: ", num_edges_, " were counted, ", num_edges, " are there");
  AGENTINFER_ICHECK(num_slots + edges_.slots_free() == edges_.slots_total(), "rule arena: ", num_slots, " slots in use and ",
                    edges_.slots_free(), " free are not the arena's ", edges_.slots_total());
}

// Reads the text again from the root: each position is one occurrence of its prefix's state and of all links above it.
void Automaton::check_counts() const {
  std::vector<std::uint32_t> counts(states_.size(), 0);
  std::vector<std::int32_t> latest_ends(states_.size(), -1);
  std::size_t num_separators = 0;
  Match whole;
  for (std::size_t position = 0; position < tokens_.size(); ++position) {
    if (tokens_[position] == kSeparator) {
      ++num_separators;
      whole = Match{};
      continue;
    }
    whole = Match{target(whole.state, tokens_[position]), whole.length + 1};
    AGENTINFER_ICHECK(whole.state != kNoState, "rule text: the document at position ", position, " is not recognised");
    ++counts[whole.state];
    latest_ends[whole.state] = static_cast<std::int32_t>(position);
  }
  AGENTINFER_ICHECK(num_separators == num_separators_ && whole.length == document_length_ && whole.state == last_,
                    "rule document: the current document ends in state ", last_, " after ", document_length_,
                    " tokens; the text says state ", whole.state, " after ", whole.length);
  const Match tail = settle(Match{last_, std::min(document_length_, max_match_ + 1)});
  AGENTINFER_ICHECK(tail_.state == tail.state && tail_.length == tail.length, "rule tail: the document's suffix of ",
                    tail.length, " tokens is in state ", tail.state, "; kept are ", tail_.length, " tokens in state ",
                    tail_.state);

  std::vector<StateId> by_length(states_.size());
  for (std::size_t state = 0; state < states_.size(); ++state) by_length[state] = static_cast<StateId>(state);
  std::sort(by_length.begin(), by_length.end(),
            [this](StateId left, StateId right) { return states_[left].longest > states_[right].longest; });
  for (const StateId state : by_length) {
    const State& record = states_[state];
    const bool is_counted = info(state).is_counted;
    AGENTINFER_ICHECK(is_counted ? record.count == counts[state] : record.count <= counts[state], "rule count: state ",
                      state, " has count ", record.count, "; it occurs ", counts[state], " times");
    AGENTINFER_ICHECK(is_counted ? record.latest_end == latest_ends[state] : record.latest_end <= latest_ends[state],
                      "rule latest: state ", state, " has latest end ", record.latest_end, "; the text has it at ",
                      latest_ends[state]);
    if (record.link == kNoState) continue;
    counts[record.link] += counts[state];
    latest_ends[record.link] = std::max(latest_ends[record.link], latest_ends[state]);
  }
}

}  // namespace agentinfer::spec_sam
