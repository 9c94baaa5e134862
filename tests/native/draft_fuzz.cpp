// Checks drafts against looking everywhere, on inputs read as a programme: with libFuzzer where there is clang
// (-fsanitize=fuzzer,address,undefined -DAGENTINFER_LIBFUZZER), else as a loop over random bytes under the sanitisers:
//     draft_fuzz SEED RUNS
// A failure prints the bytes that led to it and aborts.
#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <memory>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "automaton.h"
#include "check.h"
#include "draft_model.h"
#include "draft_stream.h"

namespace {

using namespace agentinfer::spec_sam;
using agentinfer::TokenSpan;
using Tokens = std::vector<std::int32_t>;

constexpr std::int32_t kStop = 3;

// What a session's own text and its further sources are made of: which token ever followed which.
struct Text {
  explicit Text(std::int32_t max_match) : automaton(max_match) {}

  void extend(const Tokens& tokens) {
    automaton.extend(tokens.data(), tokens.size());
    append(tokens);
  }
  // The automaton holds them already.
  void append(const Tokens& tokens) {
    for (const std::int32_t token : tokens) {
      if (last >= 0) followed.insert({last, token});
      last = token;
    }
  }
  void start_document() {
    automaton.start_document();
    last = -1;
  }

  Automaton automaton;
  std::set<std::pair<std::int32_t, std::int32_t>> followed;
  std::int32_t last = -1;
};

void check_tree(const std::vector<DraftNode>& nodes, const DraftLimits& limits, std::int32_t last_token,
                const std::vector<const Text*>& sources) {
  AGENTINFER_ICHECK(!nodes.empty() && nodes.size() <= static_cast<std::size_t>(limits.max_nodes) + 1, "a draft of ",
                    nodes.size(), " nodes");
  AGENTINFER_ICHECK(nodes[0].parent == -1 && nodes[0].path_probability == 1.0, "node 0 is no root");
  std::vector<std::set<std::int32_t>> children(nodes.size());
  for (std::size_t i = 1; i < nodes.size(); ++i) {
    const DraftNode& node = nodes[i];
    AGENTINFER_ICHECK(node.parent >= 0 && node.parent < static_cast<std::int32_t>(i), "node ", i, " has parent ",
                      node.parent);
    AGENTINFER_ICHECK(node.path_probability <= nodes[i - 1].path_probability &&
                          node.path_probability >= limits.min_path_probability,
                      "node ", i, " has probability ", node.path_probability);
    AGENTINFER_ICHECK(children[node.parent].insert(node.token).second, "token ", node.token, " twice at a node");
    const std::int32_t before = node.parent == 0 ? last_token : nodes[node.parent].token;
    AGENTINFER_ICHECK(node.parent == 0 || before != kStop, "node ", i, " is behind a stop token");
    const bool is_known = std::any_of(sources.begin(), sources.end(), [&](const Text* text) {
      return text->followed.count({before, node.token}) > 0;
    });
    AGENTINFER_ICHECK(is_known, "token ", node.token, " never followed ", before);
  }
  for (const auto& tokens : children) {
    AGENTINFER_ICHECK(limits.max_children == 0 || tokens.size() <= static_cast<std::size_t>(limits.max_children),
                      "a node has ", tokens.size(), " children");
  }
}

// The tokens from the root to a node.
Tokens path_to(const std::vector<DraftNode>& nodes, std::int32_t node) {
  Tokens path;
  for (; node > 0; node = nodes[node].parent) path.push_back(nodes[node].token);
  std::reverse(path.begin(), path.end());
  return path;
}

std::int32_t token_of(std::uint8_t byte, std::size_t position) {
  if (byte % 16 == 15) return 2147483647;
  return byte % 16 == 14 ? 100 + static_cast<std::int32_t>(position) : byte % 5;
}

// Byte 0 sets max_match, byte 1 the limits. Then pairs of an operation and its operand: 0-3 a path of the last draft and
// one more token come; 4-7 the operand comes three times; 8-9 a source grows; 10 a document of it ends; 11 the stream
// gets a source; 12 credits are taken; 13 the limits change; 14 the stream seeks; 15 what was learned is restored.
void run_programme(const std::uint8_t* data, std::size_t size) {
  if (size < 2) return;
  const std::int32_t max_match = data[0] % 5 == 4 ? 64 : 1 + data[0] % 5;
  DraftLimits limits{data[1] % 20, data[1] / 20 % 3, data[1] % 2 ? 0.06 : 1e-6};
  std::array<std::unique_ptr<Text>, 7> texts;  // the last two are more than a stream takes
  for (auto& text : texts) text = std::make_unique<Text>(max_match);
  DraftModel model({kStop});
  DraftStream stream(model, texts[0]->automaton);
  std::vector<const Text*> sources{texts[0].get()};
  std::vector<DraftNode> nodes = stream.draft(limits);
  std::int32_t last_token = 0;
  for (std::size_t i = 2; i + 1 < std::min<std::size_t>(size, 160); i += 2) {
    const std::uint8_t operation = data[i] % 16;
    const std::uint8_t operand = data[i + 1];
    Text& grown = *texts[1 + operand % 6];
    if (operation < 8) {
      const std::int32_t token = token_of(operand, i);
      Tokens came = operation < 4 ? path_to(nodes, operand % nodes.size()) : Tokens(2, token);
      came.push_back(token);
      stream.accept(came.data(), came.size());
      texts[0]->append(came);
      last_token = token;
    } else if (operation < 10) {
      grown.extend(Tokens{token_of(operand, i), operand % 3, operand % 2, operand % 5});
    } else if (operation == 10) {
      grown.start_document();
    } else if (operation == 11) {
      if (std::find(sources.begin(), sources.end(), &grown) != sources.end()) continue;
      if (sources.size() == DraftStream::kMaxSources) {
        try {
          stream.add_source(grown.automaton, SourceKind::kMemory, 1.0);
          AGENTINFER_ICHECK(false, "a source too many was taken");
        } catch (const agentinfer::CheckError&) {
          continue;
        }
      }
      stream.add_source(grown.automaton, static_cast<SourceKind>(1 + operand % 3), operand % 2 ? 1.0 : 0.25);
      sources.push_back(&grown);
    } else if (operation == 12) {
      for (const Credit& credit : stream.take_credits()) {
        AGENTINFER_ICHECK(credit.source > 0 && credit.source < static_cast<std::int32_t>(sources.size()),
                          "credit for source ", credit.source);
        const TokenSpan log = sources[credit.source]->automaton.tokens();
        AGENTINFER_ICHECK(credit.position >= 0 && static_cast<std::size_t>(credit.position) < log.size &&
                              log.data[credit.position] != kSeparator,
                          "credit for position ", credit.position);
      }
    } else if (operation == 13) {
      limits = {operand % 20, operand / 20 % 3, operand % 2 ? 0.06 : 1e-6};
    } else if (operation == 14) {
      const TokenSpan log = texts[0]->automaton.tokens();
      const std::size_t count = std::min<std::size_t>(log.size, 1 + operand);
      stream.seek(log.data + (log.size - count), count);
      last_token = log.size > 0 ? log.data[log.size - 1] : 0;
    } else {
      const std::vector<double> learned = model.learned();
      model.restore(learned.data(), learned.size());
      AGENTINFER_ICHECK(model.learned() == learned, "restored is not what was learned");
    }
    nodes = stream.draft(limits);
    AGENTINFER_ICHECK(stream.last_token() == last_token, "the last token is ", stream.last_token());
    check_tree(nodes, limits, last_token, sources);
  }
  for (const auto& text : texts) text->automaton.check_integrity();
}

#ifndef AGENTINFER_LIBFUZZER
std::vector<std::uint8_t> random_programme(std::mt19937& random) {
  std::vector<std::uint8_t> bytes(2 + random() % 158);
  for (std::uint8_t& byte : bytes) byte = static_cast<std::uint8_t>(random());
  return bytes;
}
#endif

}  // namespace

#include "fuzz_main.h"
