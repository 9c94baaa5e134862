#include "draft_stream.h"

#include <algorithm>
#include <cmath>

#include "check.h"

namespace agentinfer::spec_sam {

namespace {

constexpr std::size_t kKept = 64;          // tokens that a later source is matched from
constexpr double kMaxProbability = 0.99;   // no evidence is certain
constexpr double kMinProbability = 0.001;
constexpr double kHopeless = 0.3;          // of the least worthwhile probability: no correction will lift it so far
constexpr std::size_t kMaxCredits = 4096;  // waiting to be taken
// The latest continuation of the session's own text counts as this many more: agents repeat what they did last.
constexpr double kRecency = 0.5;

}  // namespace

DraftStream::DraftStream(DraftModel& model, Automaton& own) : model_(model), own_(own) {
  sources_.push_back(Source{&own, SourceKind::kSession, 0.0, Match{}});
}

std::int32_t DraftStream::add_source(const Automaton& automaton, SourceKind kind, double similarity) {
  AGENTINFER_CHECK(sources_.size() < kMaxSources, "a stream has at most ", kMaxSources, " sources, its own text included");
  AGENTINFER_CHECK(similarity > 0 && similarity <= 1, "similarity is ", similarity, "; expected more than 0, at most 1");
  AGENTINFER_CHECK(kind != SourceKind::kSession, "the session's own text is the first source of every stream");
  Match match;
  for (const std::int32_t token : recent_) match = automaton.step(match, token);
  sources_.push_back(Source{&automaton, kind, std::log(similarity), match});
  nodes_.clear();  // its arrays have no place for the new source
  return static_cast<std::int32_t>(sources_.size() - 1);
}

void DraftStream::seek(const std::int32_t* tokens, std::size_t count) {
  nodes_.clear();
  const std::size_t kept = std::min(count, kKept);
  recent_.assign(tokens + count - kept, tokens + count);
  for (std::size_t i = 1; i < sources_.size(); ++i) {
    Source& source = sources_[i];
    source.match = Match{};
    for (const std::int32_t token : recent_) source.match = source.automaton->step(source.match, token);
  }
}

void DraftStream::accept(const std::int32_t* tokens, std::size_t count) {
  learn(tokens, count);
  nodes_.clear();
  own_.extend(tokens, count);
  for (std::size_t i = 1; i < sources_.size(); ++i) {
    Source& source = sources_[i];
    for (std::size_t k = 0; k < count; ++k) source.match = source.automaton->step(source.match, tokens[k]);
  }
  const std::size_t kept = std::min(count, kKept);
  recent_.insert(recent_.end(), tokens + count - kept, tokens + count);
  if (recent_.size() > 2 * kKept) recent_.erase(recent_.begin(), recent_.end() - kKept);
}

const std::vector<DraftNode>& DraftStream::draft(const DraftLimits& limits) {
  nodes_.clear();
  expansions_.clear();
  matches_.clear();
  candidates_.clear();
  waiting_.clear();
  nodes_.push_back(DraftNode{-1, -1, 1.0});
  expansions_.emplace_back();
  for (const Source& source : sources_) {
    matches_.push_back(source.kind == SourceKind::kSession ? own_.suffix_match() : source.automaton->settle(source.match));
  }
  std::int32_t newest = 0;
  while (static_cast<std::int32_t>(nodes_.size()) <= limits.max_nodes) {
    if (newest == 0 || !model_.stops(nodes_[newest].token)) expand(newest, limits);
    if (waiting_.empty()) break;
    std::pop_heap(waiting_.begin(), waiting_.end());
    const Waiting next = waiting_.back();
    waiting_.pop_back();
    nodes_.push_back(DraftNode{next.token, next.parent, next.path_probability});
    expansions_.emplace_back();
    expansions_.back().estimate = next.estimate;
    expansions_.back().features = next.features;
    newest = static_cast<std::int32_t>(nodes_.size() - 1);
    if (newest < limits.max_nodes) {  // the last one is not expanded
      for (std::size_t i = 0; i < sources_.size(); ++i) {
        matches_.push_back(sources_[i].automaton->step(match_at(next.parent, static_cast<std::int32_t>(i)), next.token));
      }
    }
  }
  return nodes_;
}

// Weighs the node's possible next tokens and puts those that may be worth it among the waiting.
void DraftStream::expand(std::int32_t node, const DraftLimits& limits) {
  Expansion& expansion = expansions_[node];
  const double path_probability = nodes_[node].path_probability;
  expansion.first_candidate = static_cast<std::int32_t>(candidates_.size());
  for (std::size_t i = 0; i < sources_.size(); ++i) {
    const auto source = static_cast<std::int32_t>(i);
    weigh_source(source, match_at(node, source), path_probability, limits.min_path_probability, expansion);
  }
  expansion.end_candidate = static_cast<std::int32_t>(candidates_.size());
  expansion.is_done = true;
  mix(node, expansion);

  const auto first = candidates_.begin() + expansion.first_candidate;
  if (limits.max_children > 0 && candidates_.end() - first > limits.max_children) {
    // Which candidates stay is all that matters, and learning looks them up by token.
    std::nth_element(first, first + limits.max_children, candidates_.end(),
                     [](const Candidate& left, const Candidate& right) {
                       return left.probability != right.probability ? left.probability > right.probability
                                                                    : left.token < right.token;
                     });
  }
  const auto end = limits.max_children > 0
                       ? first + std::min<std::ptrdiff_t>(limits.max_children, candidates_.end() - first)
                       : candidates_.end();
  for (auto candidate = first; candidate != end; ++candidate) {
    if (path_probability * candidate->probability < kHopeless * limits.min_path_probability) continue;
    const Correction::Features features = features_of(node, *candidate);
    const double estimate =
        std::clamp(model_.correction().apply(candidate->probability, features), kMinProbability, kMaxProbability);
    const double probability = path_probability * model_.calibrated(estimate);
    if (probability < limits.min_path_probability) continue;
    waiting_.push_back(Waiting{probability, estimate, node, candidate->token, features});
    std::push_heap(waiting_.begin(), waiting_.end());
  }
}

// Prediction by partial matching in one source: from the longest match to shorter ones, for as long as what is left of
// the probability can still make a node that is worth it.
void DraftStream::weigh_source(std::int32_t index, Match match, double path_probability, double worth,
                               Expansion& expansion) {
  const Source& source = sources_[index];
  const Automaton& automaton = *source.automaton;
  struct Seen {
    std::int32_t token;
    double count;
    std::int32_t latest_end;
  };
  std::array<Seen, kMaxDegree> seen;
  double left = 1.0;
  std::uint8_t level = 0;
  std::int32_t length = match.length;
  for (StateId state = match.state; state != kRoot && level < kMaxLevels && left * path_probability > worth;
       state = automaton.link(state), length = automaton.longest(state)) {
    std::size_t num_seen = 0;
    const std::int32_t degree = automaton.visit_continuations(
        state, kMaxDegree, [&](std::int32_t token, std::uint32_t count, std::int32_t latest_end) {
          seen[num_seen++] = Seen{token, static_cast<double>(count), latest_end};
        });
    if (degree > kMaxDegree) break;  // shorter matches have still more continuations
    if (degree == 0) continue;
    double occurrences = 0;
    Seen* latest = &seen[0];
    for (std::size_t i = 0; i < num_seen; ++i) {
      occurrences += seen[i].count;
      if (seen[i].latest_end > latest->latest_end) latest = &seen[i];
    }
    const DraftModel::EscapeContext context =
        DraftModel::escape_context(source.kind, level, length, degree, static_cast<std::uint32_t>(occurrences));
    expansion.escapes[index][level] = context;
    if (source.kind == SourceKind::kSession) {
      latest->count += kRecency;
      occurrences += kRecency;
    }
    const double escape = model_.escape(context);
    const double share = left * (1.0 - escape) / occurrences;
    for (std::size_t i = 0; i < num_seen; ++i) {
      propose(expansion.first_candidate, index, seen[i].token, share * seen[i].count, level, seen[i].latest_end);
    }
    left *= escape;
    ++level;
  }
  expansion.num_levels[index] = level;
}

void DraftStream::propose(std::int32_t first, std::int32_t source, std::int32_t token, double probability,
                          std::uint8_t level, std::int32_t latest_end) {
  const auto known = std::find_if(candidates_.begin() + first, candidates_.end(),
                                  [token](const Candidate& candidate) { return candidate.token == token; });
  if (known == candidates_.end()) {
    Candidate& created = candidates_.emplace_back();
    created.token = token;
    created.probability = 0;
    created.by_source.fill(0);
    created.level.fill(kNoLevel);
    created.by_source[source] = probability;
    created.level[source] = level;
    created.latest_end[source] = latest_end;
    return;
  }
  known->by_source[source] += probability;
  if (known->level[source] == kNoLevel) {
    known->level[source] = level;
    known->latest_end[source] = latest_end;
  }
}

// Sources that have something to say share the mixture by the softmax of their weights.
void DraftStream::mix(std::int32_t node, Expansion& expansion) {
  double total = 0;
  for (std::size_t i = 0; i < sources_.size(); ++i) {
    if (expansion.num_levels[i] == 0) continue;
    const std::int32_t length = match_at(node, static_cast<std::int32_t>(i)).length;
    expansion.share[i] = std::exp(model_.weight(sources_[i].kind, length) + sources_[i].log_similarity);
    total += expansion.share[i];
  }
  if (total == 0) return;
  for (std::size_t i = 0; i < sources_.size(); ++i) expansion.share[i] /= total;
  for (auto candidate = candidates_.begin() + expansion.first_candidate; candidate != candidates_.end(); ++candidate) {
    for (std::size_t i = 0; i < sources_.size(); ++i) candidate->probability += expansion.share[i] * candidate->by_source[i];
    candidate->probability = std::min(candidate->probability, kMaxProbability);
  }
}

Correction::Features DraftStream::features_of(std::int32_t node, const Candidate& candidate) {
  // The two tokens before: of the path, and before the root of the stream.
  std::array<std::uint32_t, 2> before{};
  std::size_t found = 0;
  std::int32_t at = node;
  for (; found < before.size() && nodes_[at].parent >= 0; at = nodes_[at].parent) before[found++] = nodes_[at].token;
  for (std::size_t back = 1; found < before.size() && back <= recent_.size(); ++back) {
    before[found++] = recent_[recent_.size() - back];
  }
  const auto bucket = [](std::int32_t length) -> std::uint32_t {
    return length < 4 ? length : length < 8 ? 4 : length < 16 ? 5 : length < 32 ? 6 : 7;
  };
  std::int32_t longest_other = 0;
  std::uint8_t level_other = kNoLevel;
  for (std::size_t i = 1; i < sources_.size(); ++i) {
    longest_other = std::max(longest_other, match_at(node, static_cast<std::int32_t>(i)).length);
    level_other = std::min(level_other, candidate.level[i]);
  }
  const auto support = [](std::uint8_t level) -> std::uint32_t { return level == 0 ? 1 : level == kNoLevel ? 2 : 0; };
  const std::uint32_t lengths = bucket(match_at(node, 0).length) * 8 + bucket(longest_other);
  const std::uint32_t evidence = (lengths * 3 + support(candidate.level[0])) * 3 + support(level_other);
  return Correction::features(candidate.token, before[0], before[1], evidence);
}

void DraftStream::learn(const std::int32_t* tokens, std::size_t count) {
  std::int32_t node = nodes_.empty() ? -1 : 0;
  for (std::size_t k = 0; k < count && node >= 0; ++k) {
    learn_at(node, tokens[k]);
    std::int32_t next = -1;
    for (std::size_t i = node + 1; i < nodes_.size(); ++i) {
      if (nodes_[i].parent != node) continue;
      const bool came = nodes_[i].token == tokens[k];
      model_.learn_calibration(expansions_[i].estimate, came);
      model_.correction().learn(expansions_[i].estimate, expansions_[i].features, came);
      if (came) next = static_cast<std::int32_t>(i);
    }
    node = next;
  }
}

void DraftStream::learn_at(std::int32_t node, std::int32_t token) {
  const Expansion& expansion = expansions_[node];
  if (!expansion.is_done) return;
  const auto end = candidates_.begin() + expansion.end_candidate;
  const auto came = std::find_if(candidates_.begin() + expansion.first_candidate, end,
                                 [token](const Candidate& candidate) { return candidate.token == token; });
  double total = 0;
  std::int32_t best = -1;
  for (std::size_t i = 0; i < sources_.size(); ++i) {
    const std::uint8_t level = came == end ? kNoLevel : came->level[i];
    for (std::uint8_t l = 0; l < expansion.num_levels[i] && l <= level; ++l) {
      model_.learn_escape(expansion.escapes[i][l], l != level);
    }
    if (came == end) continue;
    const double given = expansion.share[i] * came->by_source[i];
    total += given;
    if (best < 0 || given > expansion.share[best] * came->by_source[best]) best = static_cast<std::int32_t>(i);
  }
  if (total <= 0) return;
  for (std::size_t i = 0; i < sources_.size(); ++i) {
    if (expansion.share[i] == 0) continue;
    model_.learn_weight(sources_[i].kind, match_at(node, static_cast<std::int32_t>(i)).length,
                        expansion.share[i] * came->by_source[i] / total - expansion.share[i]);
  }
  if (best > 0 && credits_.size() < kMaxCredits) credits_.push_back(Credit{best, came->latest_end[best]});
}

std::vector<Credit> DraftStream::take_credits() {
  std::vector<Credit> taken;
  taken.swap(credits_);
  return taken;
}

}  // namespace agentinfer::spec_sam
