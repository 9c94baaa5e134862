// One request's stream of tokens, followed through its sources, and the drafts made from where it stands.
//
// A draft is a tree grown best first: of all tokens that could be added, the one with the highest probability that the
// whole path to it is accepted comes next. So nodes are in the order of that probability, every prefix of the tree is
// the best tree of its size, and the expected number of accepted tokens is the sum of the nodes' probabilities.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "automaton.h"
#include "draft_model.h"
#include "pod_vector.h"

namespace agentinfer::spec_sam {

struct DraftLimits {
  std::int32_t max_nodes = 16;           // drafted tokens, the root not counted
  std::int32_t max_children = 0;         // of one node; 1 makes a chain, 0 is any number
  double min_path_probability = 0.06;    // nodes below are not worth their verification
};

struct DraftNode {
  std::int32_t token;
  std::int32_t parent;      // index of an earlier node; -1 for the root
  double path_probability;  // that this and all tokens on the way to it are accepted; 1 for the root
};

// An accepted token that a source other than the session's own text proposed with the largest share.
struct Credit {
  std::int32_t source;
  std::int32_t position;  // in the source's token log, of the latest occurrence of the proposed token
};

class DraftStream {
 public:
  static constexpr std::int32_t kMaxSources = 6;  // the session's own text included

  DraftStream(DraftModel& model, Automaton& own);

  // A further source; matched from the stream's last tokens on. CheckError where there are kMaxSources already.
  // `similarity` in (0, 1] multiplies the source's say in the mixture. Returns its index (own is 0).
  std::int32_t add_source(const Automaton& automaton, SourceKind kind, double similarity);
  // The stream stands after these tokens, which its own automaton holds already: nothing is learned or appended.
  void seek(const std::int32_t* tokens, std::size_t count);
  // These tokens came: learns from them what the last draft was worth, appends them to the session's text and follows
  // them through every source. The tokens are valid token ids.
  void accept(const std::int32_t* tokens, std::size_t count);
  // The best tree of tokens that may come next; node 0 is the root. Valid until the next call.
  const std::vector<DraftNode>& draft(const DraftLimits& limits);

  // 0 before the first token.
  std::int32_t last_token() const { return recent_.empty() ? 0 : recent_.back(); }
  // Credits since the last call.
  std::vector<Credit> take_credits();

 private:
  struct Source {
    const Automaton* automaton;
    SourceKind kind;
    double log_similarity;
    Match match;  // of the stream's end; the own text's is asked for when it is needed
    std::size_t drafted_version = 0;  // the automaton's when the last draft was made
  };
  static constexpr std::int32_t kMaxLevels = 6;
  static constexpr std::int32_t kMaxDegree = 32;
  static constexpr std::uint8_t kNoLevel = 255;

  // What a source says about a possible next token.
  struct Opinion {
    double probability;
    std::int32_t latest_end;
    StateId state;        // where the token leads to from the longest match that proposes it,
    std::int32_t length;  // and how many tokens match there, max_match disregarded
    std::uint8_t level;   // of that match; kNoLevel: the source does not propose the token
  };
  // A possible next token at a node.
  struct Candidate {
    double probability;  // of the mixture
    std::int32_t token;
    std::int32_t opinions;  // where those of the sources begin
  };
  // What was known at a node when its children were weighed: the tokens that come tell how true it was.
  struct Expansion {
    Expansion() {}  // only what is told by is_done and num_levels is read
    bool is_done = false;
    std::int32_t first_candidate;
    std::int32_t end_candidate;
    std::array<double, kMaxSources> share;  // of each source in the mixture
    std::array<std::uint8_t, kMaxSources> num_levels;
    std::array<std::array<DraftModel::EscapeContext, kMaxLevels>, kMaxSources> escapes;
    std::array<Match, kMaxSources> unasked;  // the longest match that was not asked any more
  };
  // A candidate that may become a node.
  struct Proposal {
    std::int32_t candidate;
    DraftModel::Place place;  // of the estimate, in the calibration
    double estimate;          // before calibration
    Correction::Features features;
  };
  struct Waiting {
    double path_probability;
    std::int32_t parent;
    std::int32_t token;
    std::int32_t proposal;

    bool operator<(const Waiting& other) const {  // worth less; a total order
      if (path_probability != other.path_probability) return path_probability < other.path_probability;
      return parent != other.parent ? parent > other.parent : token > other.token;
    }
  };

  void expand(std::int32_t node, const DraftLimits& limits);
  void weigh_source(std::int32_t source, Match match, double path_probability, double worth, Expansion& expansion);
  Opinion* opinions_on(std::int32_t first, std::int32_t token);
  Opinion* add_candidate(std::int32_t token);
  const Opinion* opinions_on(const Candidate& candidate) const { return opinions_.data() + candidate.opinions; }
  void mix(std::int32_t node, Expansion& expansion);
  void propose(std::int32_t node, std::int32_t first, std::int32_t end, const DraftLimits& limits);
  void match_child(std::int32_t parent, const Candidate& candidate);
  std::int32_t learn(const std::int32_t* tokens, std::size_t count, std::size_t& num_drafted);
  void learn_at(std::int32_t node, std::int32_t token);
  Match& match_at(std::int32_t node, std::int32_t source) { return matches_[node * num_sources_ + source]; }

  DraftModel& model_;
  Automaton& own_;
  std::vector<Source> sources_;
  std::size_t num_sources_ = 1;
  std::vector<std::int32_t> recent_;  // the stream's last tokens, for a source that comes later
  std::vector<Credit> credits_;

  // The last draft, kept until the tokens that decide on it have come.
  std::vector<DraftNode> nodes_;
  std::vector<std::int32_t> proposal_of_;  // by node; the root's is not read
  std::vector<Expansion> expansions_;      // by node
  std::vector<Match> matches_;             // by node and source, settled
  PodVector<Candidate> candidates_;
  PodVector<Opinion> opinions_;  // by candidate and source
  PodVector<Proposal> proposals_;
  std::array<std::uint32_t, 256> latest_candidate_{};  // by the token's hash; may be of another node or an earlier draft
  std::vector<Waiting> waiting_;  // a heap
};

}  // namespace agentinfer::spec_sam
