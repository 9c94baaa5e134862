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
  new_recorded_state(Record{0, 0, -1, kNoEdge, kNoState}, false);
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
  document_starts_.push_back(static_cast<std::int32_t>(tokens_.size()));
  document_length_ = 0;
  last_ = kRoot;
  tail_ = Match{};
}

Match Automaton::step_settled(Match match, std::int32_t token) const {
  StateId next = target(match.state, token);
  while (next == kNoState) {
    if (match.state == kRoot) return Match{};
    match.state = slots_[match.state].link;
    match.length = longest_of(match.state);
    next = target(match.state, token);
  }
  return arrive(next, match.length + 1);
}

Match Automaton::suffix_match() const {
  Match match = settle(Match{tail_.state, std::min(tail_.length, max_match_)});
  if (match.state != kRoot && record_of(match.state).count == 1) {
    // The one occurrence is the end itself. The link's strings end at more positions than these, so they came before.
    match.state = slots_[match.state].link;
    match.length = longest_of(match.state);
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
  const Record record = record_of(state);
  const StateId link = slots_[state].link;
  const std::int32_t shortest = state == kRoot ? 0 : longest_of(link) + 1;
  return {shortest, record.longest, link, shortest <= max_match_ + 1, record.count, record.latest_end};
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
    const Record after = record_of(edge.target);
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
  for_each_edge(state, [&](Edge edge) { first = std::max(first, record_of(edge.target).latest_end); });
  if (first < 0) return {};
  std::size_t end = first;
  while (end < tokens_.size() && end - first < limit && tokens_[end] != kSeparator) ++end;
  return tokens_.span(first, end - first);
}

std::size_t Automaton::memory_bytes() const {
  return sizeof(*this) + slots_.capacity_bytes() + records_.capacity_bytes() + edges_.memory_bytes() +
         tokens_.capacity_bytes() + document_starts_.capacity() * sizeof(std::int32_t);
}

void Automaton::append(std::int32_t token) {
  const auto position = static_cast<std::int32_t>(tokens_.size());
  const StateId old_last = last_;
  tokens_.push_back(token);
  ++document_length_;
  last_ = extend_state(old_last, token);

  // Strings of one state end at the same positions, so all those of the tail's state end the document, and its edge for
  // this token exists even where the state was just split; `settle` then finds the right part. Where the tail is in the
  // whole document's state, so is the next one, and the lookup is saved: that is every token of text not seen before.
  const StateId next = tail_.state == old_last ? last_ : target(tail_.state, token);
  AGENTINFER_ICHECK(next != kNoState, "the document's suffix of ", tail_.length, " tokens lacks an edge for token ",
                    token);
  tail_ = settle(Match{next, std::min(tail_.length + 1, max_match_ + 1)});

  for (StateId state = tail_.state; state != kNoState; state = slots_[state].link) {
    ++num_count_updates_;
    const Slot slot = slots_[state];
    if (slot.is_fresh()) {  // occurs here for the first time, and says so already
      AGENTINFER_DCHECK(slot.position() == position);
      continue;
    }
    Record& record = records_[slot.record()];
    ++record.count;
    record.latest_end = position;
  }
}

StateId Automaton::extend_state(StateId last, std::int32_t token) {
  const bool is_after_fresh = slots_[last].is_fresh();  // its edge for this token is the text, as of now
  if (const StateId seen = is_after_fresh ? kNoState : target(last, token); seen != kNoState) {
    // Only in a later document that begins like an earlier one: its prefix has a state, or becomes one by a split.
    if (longest_of(seen) == document_length_) {
      promote(seen);
      return seen;
    }
    const StateId clone = clone_state(seen, document_length_);
    redirect(last, token, seen, clone);
    return clone;
  }

  slots_.push_back(Slot{kNoState, ~static_cast<std::int32_t>(tokens_.size() - 1)});
  const auto created = static_cast<StateId>(slots_.size() - 1);
  num_edges_ += is_after_fresh ? 1 : 0;
  StateId ancestor = is_after_fresh ? slots_[last].link : last;
  StateId next = kNoState;
  while (ancestor != kNoState && (next = target(ancestor, token)) == kNoState) {
    add_edge(ancestor, token, created);
    ancestor = slots_[ancestor].link;
  }
  if (ancestor == kNoState) {
    slots_[created].link = kRoot;
  } else if (longest_of(next) == longest_of(ancestor) + 1) {
    promote(next);
    slots_[created].link = next;
  } else {
    const StateId clone = clone_state(next, longest_of(ancestor) + 1);
    redirect(ancestor, token, next, clone);
    slots_[created].link = clone;
  }
  return created;
}

// Splits `original`: its strings of up to `longest` tokens get a state of their own, with the same past.
StateId Automaton::clone_state(StateId original, std::int32_t longest) {
  Record copy = record_of(original);
  copy.longest = longest;
  if (copy.edge_token == kManyEdges) {
    copy.edge_target = edges_.duplicate(copy.edge_target);
    num_edges_ += edges_.size(copy.edge_target);
  } else if (copy.edge_token != kNoEdge) {
    ++num_edges_;
  }
  const StateId clone = new_recorded_state(copy, true);
  slots_[clone].link = slots_[original].link;
  slots_[original].link = clone;
  return clone;
}

void Automaton::redirect(StateId from, std::int32_t token, StateId original, StateId clone) {
  for (; from != kNoState && target(from, token) == original; from = slots_[from].link) set_target(from, token, clone);
}

StateId Automaton::new_recorded_state(Record record, bool is_clone) {
  records_.push_back(record);
  slots_.push_back(Slot{kNoState, static_cast<std::int32_t>((records_.size() - 1) * 2 + (is_clone ? 1 : 0))});
  return static_cast<StateId>(slots_.size() - 1);
}

// Gives a fresh state the record that it had no need of so far.
void Automaton::promote(StateId state) {
  if (!slots_[state].is_fresh()) return;
  records_.push_back(record_of(state));
  slots_[state].reference = static_cast<std::int32_t>((records_.size() - 1) * 2);
}

Automaton::Record Automaton::record_of(StateId state) const {
  const Slot slot = slots_[state];
  if (!slot.is_fresh()) return records_[slot.record()];
  Record record{longest_of(state), 1, slot.position(), kNoEdge, kNoState};
  const std::size_t next = static_cast<std::size_t>(slot.position()) + 1;
  if (next < tokens_.size() && tokens_[next] != kSeparator) {
    record.edge_token = tokens_[next];
    record.edge_target = next_prefix(state);
  }
  return record;
}

std::int32_t Automaton::prefix_length(std::int32_t position) const {
  if (position >= document_starts_.back()) return position + 1 - document_starts_.back();
  return position + 1 - *(std::upper_bound(document_starts_.begin(), document_starts_.end(), position) - 1);
}

StateId Automaton::target(StateId state, std::int32_t token) const {
  const Slot slot = slots_[state];
  if (slot.is_fresh()) {
    const std::size_t next = static_cast<std::size_t>(slot.position()) + 1;
    return next < tokens_.size() && tokens_[next] == token ? next_prefix(state) : kNoState;
  }
  const Record& record = records_[slot.record()];
  if (record.edge_token >= 0) return record.edge_token == token ? record.edge_target : kNoState;
  if (record.edge_token == kNoEdge) return kNoState;
  const std::int32_t* found = edges_.find(record.edge_target, token);
  return found == nullptr ? kNoState : *found;
}

void Automaton::add_edge(StateId state, std::int32_t token, StateId target) {
  ++num_edges_;
  AGENTINFER_DCHECK(!slots_[state].is_fresh());  // links, and a fresh state is never one
  Record& record = records_[slots_[state].record()];
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

// The edge is there, and its state is one that others link to or that a second document runs through: not fresh.
void Automaton::set_target(StateId state, std::int32_t token, StateId target) {
  AGENTINFER_DCHECK(!slots_[state].is_fresh());
  Record& record = records_[slots_[state].record()];
  if (record.edge_token == kManyEdges) {
    *edges_.find(record.edge_target, token) = target;
  } else {
    AGENTINFER_DCHECK(record.edge_token == token);
    record.edge_target = target;
  }
}

void Automaton::check_state(StateId state) const {
  AGENTINFER_CHECK(state >= 0 && static_cast<std::size_t>(state) < slots_.size(), "state is ", state,
                   "; this automaton has states 0 to ", slots_.size() - 1);
}

}  // namespace agentinfer::spec_sam
