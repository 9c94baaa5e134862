// How a stream grows its draft: the tree, best first, from what the sources say at each node.
#include <algorithm>
#include <cmath>

#include "draft_stream.h"

namespace agentinfer::spec_sam {

namespace {

constexpr double kMaxProbability = 0.99;  // no evidence is certain
constexpr double kMinProbability = 0.001;
constexpr double kHopeless = 0.3;  // of the least worthwhile probability: no correction will lift it so far
// The latest continuation of the session's own text counts as this many more: agents repeat what they did last.
constexpr double kRecency = 0.5;

}  // namespace

const std::vector<DraftNode>& DraftStream::draft(const DraftLimits& limits) {
  nodes_.clear();
  proposal_of_.clear();
  expansions_.clear();
  matches_.clear();
  candidates_.clear();
  opinions_.clear();
  proposals_.clear();
  waiting_.clear();
  nodes_.push_back(DraftNode{-1, -1, 1.0});
  proposal_of_.push_back(-1);
  expansions_.emplace_back();
  for (Source& source : sources_) {
    matches_.push_back(source.kind == SourceKind::kSession ? own_.suffix_match() : source.automaton->settle(source.match));
    source.drafted_version = source.automaton->version();
  }
  std::int32_t newest = 0;
  while (static_cast<std::int32_t>(nodes_.size()) <= limits.max_nodes) {
    if (newest == 0 || !model_.stops(nodes_[newest].token)) expand(newest, limits);
    if (waiting_.empty()) break;
    std::pop_heap(waiting_.begin(), waiting_.end());
    const Waiting next = waiting_.back();
    waiting_.pop_back();
    nodes_.push_back(DraftNode{next.token, next.parent, next.path_probability});
    proposal_of_.push_back(next.proposal);
    expansions_.emplace_back();
    newest = static_cast<std::int32_t>(nodes_.size() - 1);
    if (newest < limits.max_nodes) match_child(next.parent, candidates_[proposals_[next.proposal].candidate]);
  }
  return nodes_;
}

// Weighs the node's possible next tokens and puts those that may be worth it among the waiting.
void DraftStream::expand(std::int32_t node, const DraftLimits& limits) {
  Expansion& expansion = expansions_[node];
  const double path_probability = nodes_[node].path_probability;
  expansion.first_candidate = static_cast<std::int32_t>(candidates_.size());
  for (std::size_t i = 0; i < num_sources_; ++i) {
    const auto source = static_cast<std::int32_t>(i);
    weigh_source(source, match_at(node, source), path_probability, limits.min_path_probability, expansion);
  }
  expansion.end_candidate = static_cast<std::int32_t>(candidates_.size());
  expansion.is_done = true;
  mix(node, expansion);

  std::int32_t end = expansion.end_candidate;
  if (limits.max_children > 0 && end - expansion.first_candidate > limits.max_children) {
    end = expansion.first_candidate + limits.max_children;
    // Which candidates stay is all that matters, and learning looks them up by token.
    std::nth_element(candidates_.data() + expansion.first_candidate, candidates_.data() + end,
                     candidates_.data() + candidates_.size(),
                     [](const Candidate& left, const Candidate& right) {
                       return left.probability != right.probability ? left.probability > right.probability
                                                                    : left.token < right.token;
                     });
  }
  propose(node, expansion.first_candidate, end, limits);
}

// Puts candidates first .. end - 1 among the waiting, where they may be worth it.
void DraftStream::propose(std::int32_t node, std::int32_t first, std::int32_t end, const DraftLimits& limits) {
  // The two tokens before: of the path, and before the root of the stream.
  std::array<std::uint32_t, 2> before{};
  std::size_t found = 0;
  std::int32_t at = node;
  for (; found < before.size() && nodes_[at].parent >= 0; at = nodes_[at].parent) before[found++] = nodes_[at].token;
  for (std::size_t back = 1; found < before.size() && back <= recent_.size(); ++back) {
    before[found++] = recent_[recent_.size() - back];
  }
  const Correction::Place here(before[0], before[1]);

  const auto bucket = [](std::int32_t length) -> std::uint32_t {
    return length < 4 ? length : length < 8 ? 4 : length < 16 ? 5 : length < 32 ? 6 : 7;
  };
  std::int32_t longest_other = 0;
  for (std::size_t i = 1; i < num_sources_; ++i) {
    longest_other = std::max(longest_other, match_at(node, static_cast<std::int32_t>(i)).length);
  }
  const std::uint32_t lengths = bucket(match_at(node, 0).length) * 8 + bucket(longest_other);
  const auto support = [](std::uint8_t level) -> std::uint32_t { return level == 0 ? 1 : level == kNoLevel ? 2 : 0; };

  const double path_probability = nodes_[node].path_probability;
  const double odds_needed = model_.odds_needed(limits.min_path_probability / path_probability);
  // In two passes, since the weights of a token that was seldom proposed come from far: all are asked for first.
  const std::size_t first_proposal = proposals_.size();
  for (std::int32_t i = first; i < end; ++i) {
    const Candidate& candidate = candidates_[i];
    const Opinion* opinions = opinions_on(candidate);
    if (path_probability * candidate.probability < kHopeless * limits.min_path_probability) continue;
    std::uint8_t level_other = kNoLevel;
    for (std::size_t k = 1; k < num_sources_; ++k) level_other = std::min(level_other, opinions[k].level);
    const std::uint32_t evidence = (lengths * 3 + support(opinions[0].level)) * 3 + support(level_other);
    const Correction::Features features = here.features(candidate.token, evidence);
    model_.correction().prefetch_weights(features);
    proposals_.push_back(Proposal{i, {}, 0, features});
  }
  std::size_t kept = first_proposal;
  for (std::size_t i = first_proposal; i < proposals_.size(); ++i) {
    Proposal& proposal = proposals_[i];
    const Candidate& candidate = candidates_[proposal.candidate];
    const double odds = model_.correction().odds(candidate.probability, proposal.features);
    if (odds < odds_needed) continue;
    proposal.estimate = std::clamp(1.0 / (1.0 + std::exp(-odds)), kMinProbability, kMaxProbability);
    proposal.place = DraftModel::place_of(odds);
    const double probability = path_probability * model_.calibrated(proposal.place);
    if (probability < limits.min_path_probability) continue;
    waiting_.push_back(Waiting{probability, node, candidate.token, static_cast<std::int32_t>(kept)});
    std::push_heap(waiting_.begin(), waiting_.end());
    model_.correction().prefetch(proposal.features);
    proposals_[kept++] = proposal;
  }
  proposals_.shrink(kept);
}

DraftStream::Opinion* DraftStream::add_candidate(std::int32_t token) {
  const std::size_t num_sources = num_sources_;
  const std::size_t first = opinions_.append_uninitialized(num_sources);
  candidates_.push_back(Candidate{0, token, static_cast<std::int32_t>(first)});
  Opinion* opinions = opinions_.data() + first;
  for (std::size_t i = 0; i < num_sources; ++i) opinions[i] = Opinion{0, 0, kNoState, 0, kNoLevel};
  return opinions;
}

// What the sources say about this token at the node whose candidates begin with `first`, which is being expanded.
inline DraftStream::Opinion* DraftStream::opinions_on(std::int32_t first, std::int32_t token) {
  const auto count = static_cast<std::uint32_t>(candidates_.size());
  std::uint32_t& latest = latest_candidate_[(static_cast<std::uint32_t>(token) * 0x9E3779B1U) >> 24];
  std::uint32_t at = latest;
  if (at < static_cast<std::uint32_t>(first) || at >= count) {  // every candidate of the node has been its hash's latest
    latest = count;
    return add_candidate(token);
  }
  if (candidates_[at].token == token) return opinions_.data() + candidates_[at].opinions;
  for (at = first; at < count; ++at) {
    if (candidates_[at].token == token) return opinions_.data() + candidates_[at].opinions;
  }
  latest = count;
  return add_candidate(token);
}

// Prediction by partial matching in one source: from the longest match to shorter ones, for as long as what is left of
// the probability can still make a node that is worth it.
void DraftStream::weigh_source(std::int32_t index, Match match, double path_probability, double worth,
                               Expansion& expansion) {
  const Source& source = sources_[index];
  const Automaton& automaton = *source.automaton;
  struct Seen {
    std::int32_t token;
    StateId state;
    double count;
    std::int32_t latest_end;
  };
  std::array<Seen, kMaxDegree> seen;
  double left = 1.0;
  std::uint8_t level = 0;
  std::int32_t length = match.length;
  StateId state = match.state;
  for (; state != kRoot && level < kMaxLevels && left * path_probability > worth;
       state = automaton.link(state), length = automaton.longest(state)) {
    std::size_t num_seen = 0;
    double occurrences = 0;
    const std::int32_t degree = automaton.visit_continuations(
        state, kMaxDegree, [&](std::int32_t token, StateId next, std::uint32_t count, std::int32_t latest_end) {
          seen[num_seen++] = Seen{token, next, static_cast<double>(count), latest_end};
          occurrences += static_cast<double>(count);
        });
    if (degree > kMaxDegree) break;  // shorter matches have still more continuations
    if (degree == 0) continue;
    const DraftModel::EscapeContext context =
        DraftModel::escape_context(source.kind, level, length, degree, static_cast<std::uint32_t>(occurrences));
    expansion.escapes[index][level] = context;
    if (source.kind == SourceKind::kSession) {
      Seen* latest = &seen[0];
      for (std::size_t i = 1; i < num_seen; ++i) {
        if (seen[i].latest_end > latest->latest_end) latest = &seen[i];
      }
      latest->count += kRecency;
      occurrences += kRecency;
    }
    const double escape = model_.escape(context);
    const double share = left * (1.0 - escape) / occurrences;
    for (std::size_t i = 0; i < num_seen; ++i) {
      Opinion& opinion = opinions_on(expansion.first_candidate, seen[i].token)[index];
      opinion.probability += share * seen[i].count;
      if (opinion.level == kNoLevel) {
        opinion.level = level;
        opinion.latest_end = seen[i].latest_end;
        opinion.state = seen[i].state;
        opinion.length = length + 1;
      }
    }
    left *= escape;
    ++level;
  }
  expansion.num_levels[index] = level;
  expansion.unasked[index] = Match{state, length};
}

// Follows all sources to a new node. Where a source proposed its token, weighing has found the way already; where it did
// not, none of the matches that were asked is continued by it.
void DraftStream::match_child(std::int32_t parent, const Candidate& candidate) {
  const Expansion& expansion = expansions_[parent];
  for (std::size_t i = 0; i < num_sources_; ++i) {
    const Automaton& automaton = *sources_[i].automaton;
    const Opinion& opinion = opinions_on(candidate)[i];
    matches_.push_back(opinion.level == kNoLevel ? automaton.step_settled(expansion.unasked[i], candidate.token)
                                                 : automaton.arrive(opinion.state, opinion.length));
  }
}

// Sources that have something to say share the mixture by the softmax of their weights.
void DraftStream::mix(std::int32_t node, Expansion& expansion) {
  double total = 0;
  for (std::size_t i = 0; i < num_sources_; ++i) {
    expansion.share[i] = 0;
    if (expansion.num_levels[i] == 0) continue;
    const std::int32_t length = match_at(node, static_cast<std::int32_t>(i)).length;
    expansion.share[i] = model_.say(sources_[i].kind, length, sources_[i].log_similarity);
    total += expansion.share[i];
  }
  if (total == 0) return;
  const std::size_t num_sources = num_sources_;
  for (std::size_t i = 0; i < num_sources; ++i) expansion.share[i] /= total;
  for (std::int32_t candidate = expansion.first_candidate; candidate < expansion.end_candidate; ++candidate) {
    const Opinion* opinions = opinions_on(candidates_[candidate]);
    double probability = 0;
    for (std::size_t i = 0; i < num_sources; ++i) probability += expansion.share[i] * opinions[i].probability;
    candidates_[candidate].probability = std::min(probability, kMaxProbability);
  }
}

}  // namespace agentinfer::spec_sam
