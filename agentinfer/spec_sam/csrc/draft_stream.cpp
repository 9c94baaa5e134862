#include "draft_stream.h"

#include <algorithm>
#include <cmath>

#include "check.h"

namespace agentinfer::spec_sam {

namespace {

constexpr std::size_t kKept = 64;          // tokens that a later source is matched from
constexpr std::size_t kMaxCredits = 4096;  // waiting to be taken

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
  ++num_sources_;
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
  std::size_t num_drafted = 0;
  const std::int32_t node = learn(tokens, count, num_drafted);
  own_.extend(tokens, count);
  for (std::size_t i = 1; i < num_sources_; ++i) {
    Source& source = sources_[i];
    std::size_t k = 0;
    if (num_drafted > 0 && source.automaton->version() == source.drafted_version) {
      source.match = match_at(node, static_cast<std::int32_t>(i));
      k = num_drafted;
    }
    for (; k < count; ++k) source.match = source.automaton->step(source.match, tokens[k]);
  }
  nodes_.clear();
  const std::size_t kept = std::min(count, kKept);
  recent_.insert(recent_.end(), tokens + count - kept, tokens + count);
  if (recent_.size() > 2 * kKept) recent_.erase(recent_.begin(), recent_.end() - kKept);
}

// Returns the last node on the drafted path that the tokens took and where the sources' matches are known, and how many
// tokens lead there.
std::int32_t DraftStream::learn(const std::int32_t* tokens, std::size_t count, std::size_t& num_drafted) {
  std::int32_t last = 0;
  std::int32_t node = nodes_.empty() ? -1 : 0;
  for (std::size_t k = 0; k < count && node >= 0; ++k) {
    learn_at(node, tokens[k]);
    std::int32_t next = -1;
    for (std::size_t i = node + 1; i < nodes_.size(); ++i) {
      if (nodes_[i].parent != node) continue;
      const bool came = nodes_[i].token == tokens[k];
      const Proposal& proposal = proposals_[proposal_of_[i]];
      model_.learn_calibration(proposal.place, came);
      model_.correction().learn(proposal.estimate, proposal.features, came);
      if (came) next = static_cast<std::int32_t>(i);
    }
    node = next;
    if (node >= 0 && (node + 1) * num_sources_ <= matches_.size()) {
      last = node;
      num_drafted = k + 1;
    }
  }
  return last;
}

void DraftStream::learn_at(std::int32_t node, std::int32_t token) {
  const Expansion& expansion = expansions_[node];
  if (!expansion.is_done) return;
  std::int32_t came = expansion.first_candidate;
  while (came < expansion.end_candidate && candidates_[came].token != token) ++came;
  const Opinion* opinions = came < expansion.end_candidate ? opinions_on(candidates_[came]) : nullptr;
  double total = 0;
  std::int32_t best = -1;
  const auto given_by = [&](std::size_t i) { return expansion.share[i] * opinions[i].probability; };
  for (std::size_t i = 0; i < num_sources_; ++i) {
    const std::uint8_t level = opinions == nullptr ? kNoLevel : opinions[i].level;
    for (std::uint8_t l = 0; l < expansion.num_levels[i] && l <= level; ++l) {
      model_.learn_escape(expansion.escapes[i][l], l != level);
    }
    if (opinions == nullptr) continue;
    total += given_by(i);
    if (best < 0 || given_by(i) > given_by(best)) best = static_cast<std::int32_t>(i);
  }
  if (total <= 0) return;
  for (std::size_t i = 0; i < num_sources_; ++i) {
    if (expansion.share[i] == 0) continue;
    model_.learn_weight(sources_[i].kind, match_at(node, static_cast<std::int32_t>(i)).length,
                        given_by(i) / total - expansion.share[i]);
  }
  if (best > 0 && credits_.size() < kMaxCredits) credits_.push_back(Credit{best, opinions[best].latest_end});
}

std::vector<Credit> DraftStream::take_credits() {
  std::vector<Credit> taken;
  taken.swap(credits_);
  return taken;
}

}  // namespace agentinfer::spec_sam
