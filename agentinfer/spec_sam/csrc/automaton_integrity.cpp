// Recomputing what the automaton derived, from its text alone: the rules it must keep, each by name.
#include <algorithm>

#include "automaton.h"
#include "check.h"

namespace agentinfer::spec_sam {

void Automaton::check_integrity() const {
  check_links();
  check_edges();
  check_counts();
}

void Automaton::check_links() const {
  AGENTINFER_ICHECK(longest_of(kRoot) == 0 && slots_[kRoot].link == kNoState,
                    "rule root: state 0 must stand for the empty string and have no link");
  for (StateId state = 1; static_cast<std::size_t>(state) < slots_.size(); ++state) {
    const StateId link = slots_[state].link;
    AGENTINFER_ICHECK(link >= 0 && static_cast<std::size_t>(link) < slots_.size(), "rule link: state ", state,
                      " links to ", link, ", which does not exist");
    AGENTINFER_ICHECK(longest_of(link) < longest_of(state), "rule link: state ", state, " of length ",
                      longest_of(state), " links to ", link, " of length ", longest_of(link),
                      "; expected a shorter one");
    AGENTINFER_ICHECK(!slots_[link].is_fresh(), "rule fresh: state ", state, " links to ", link,
                      ", which has no record, so it would occur only once");
  }
}

void Automaton::check_edges() const {
  std::size_t num_edges = 0;
  std::size_t num_slots = 0;
  std::vector<std::int32_t> num_primary(slots_.size(), 0);
  for (StateId state = 0; static_cast<std::size_t>(state) < slots_.size(); ++state) {
    const Record record = record_of(state);
    if (record.edge_token == kManyEdges) num_slots += edges_.slots(record.edge_target);
    for_each_edge(state, [&](Edge edge) {
      ++num_edges;
      AGENTINFER_ICHECK(edge.target > 0 && static_cast<std::size_t>(edge.target) < slots_.size(), "rule edge: state ",
                        state, " has an edge to ", edge.target, ", which does not exist");
      const Record after = record_of(edge.target);
      AGENTINFER_ICHECK(after.latest_end >= 0 && tokens_[after.latest_end] == edge.token, "rule label: the edge from ",
                        state, " to ", edge.target, " has token ", edge.token,
                        "; the text where the target's strings end has another");
      AGENTINFER_ICHECK(target(state, edge.token) == edge.target, "rule lookup: state ", state,
                        " does not find its edge ", edge.token);
      AGENTINFER_ICHECK(after.longest > record.longest && longest_of(slots_[edge.target].link) <= record.longest,
                        "rule length: the edge from ", state, " to ", edge.target, " leads out of its string lengths");
      if (after.longest != record.longest + 1) return;
      // The edge on the target's longest string: exactly one, and it determines the link.
      num_primary[edge.target] += 1;
      StateId ancestor = state;
      StateId expected = edge.target;
      while (ancestor != kNoState && expected == edge.target) {
        ancestor = slots_[ancestor].link;
        expected = ancestor == kNoState ? kRoot : target(ancestor, edge.token);
        AGENTINFER_ICHECK(expected != kNoState, "rule suffix: state ", ancestor, " lacks the edge ", edge.token,
                          " that a longer string of state ", state, " has");
      }
      AGENTINFER_ICHECK(slots_[edge.target].link == expected, "rule link: state ", edge.target, " links to ",
                        slots_[edge.target].link,
                        "; its longest proper suffix elsewhere is in state ", expected);
    });
  }
  for (std::size_t state = 1; state < slots_.size(); ++state) {
    AGENTINFER_ICHECK(num_primary[state] == 1, "rule primary: state ", state, " has ", num_primary[state],
                      " edges on its longest string; expected 1");
  }
  AGENTINFER_ICHECK(num_edges == num_edges_, "rule edges: ", num_edges_, " were counted, ", num_edges, " are there");
  AGENTINFER_ICHECK(num_slots + edges_.slots_free() == edges_.slots_total(), "rule arena: ", num_slots,
                    " slots in use and ", edges_.slots_free(), " free are not the arena's ", edges_.slots_total());
}

// Reads the text again from the root: each position is one occurrence of its prefix's state and of all links above it.
void Automaton::check_counts() const {
  std::vector<std::uint32_t> counts(slots_.size(), 0);
  std::vector<std::int32_t> latest_ends(slots_.size(), -1);
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

  std::vector<StateId> by_length(slots_.size());
  for (std::size_t state = 0; state < slots_.size(); ++state) by_length[state] = static_cast<StateId>(state);
  std::sort(by_length.begin(), by_length.end(),
            [this](StateId left, StateId right) { return longest_of(left) > longest_of(right); });
  for (const StateId state : by_length) {
    const Record record = record_of(state);
    const bool is_counted = info(state).is_counted;
    AGENTINFER_ICHECK(is_counted ? record.count == counts[state] : record.count <= counts[state], "rule count: state ",
                      state, " has count ", record.count, "; it occurs ", counts[state], " times");
    AGENTINFER_ICHECK(is_counted ? record.latest_end == latest_ends[state] : record.latest_end <= latest_ends[state],
                      "rule latest: state ", state, " has latest end ", record.latest_end, "; the text has it at ",
                      latest_ends[state]);
    const StateId link = slots_[state].link;
    if (link == kNoState) continue;
    counts[link] += counts[state];
    latest_ends[link] = std::max(latest_ends[link], latest_ends[state]);
  }
}

}  // namespace agentinfer::spec_sam
