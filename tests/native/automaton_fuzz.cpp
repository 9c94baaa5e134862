// Checks the automaton against looking everywhere, on inputs read as a programme: with libFuzzer where there is clang
// (-fsanitize=fuzzer,address,undefined -DAGENTINFER_LIBFUZZER), else as a loop over random bytes under the sanitisers:
//     automaton_fuzz SEED RUNS
// A failure prints the bytes that led to it and aborts.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <random>
#include <vector>

#include "automaton.h"
#include "check.h"
#include "cursor.h"

namespace {

using namespace agentinfer::spec_sam;
using Tokens = std::vector<std::int32_t>;

// The occurrences of `string` in `text`, which has kSeparator between documents: how many, and the last one's end.
std::pair<std::uint32_t, std::int32_t> look_everywhere(const Tokens& text, const Tokens& string) {
  std::uint32_t count = 0;
  std::int32_t latest_end = -1;
  for (std::size_t end = string.size(); end <= text.size(); ++end) {
    if (!std::equal(string.begin(), string.end(), text.begin() + (end - string.size()))) continue;
    ++count;
    latest_end = static_cast<std::int32_t>(end) - 1;
  }
  return {count, latest_end};
}

void check_match(const Automaton& automaton, const Tokens& text, const Tokens& stream, Match match) {
  const auto limit = std::min<std::size_t>(stream.size(), automaton.max_match());
  std::size_t longest = limit;
  while (longest > 0 && look_everywhere(text, Tokens(stream.end() - longest, stream.end())).first == 0) --longest;
  AGENTINFER_ICHECK(static_cast<std::size_t>(match.length) == longest, "match of ", match.length, ", expected ",
                    longest);
  if (longest == 0) return;
  const auto [count, latest_end] = look_everywhere(text, Tokens(stream.end() - longest, stream.end()));
  const StateInfo info = automaton.info(match.state);
  AGENTINFER_ICHECK(info.is_counted && info.count == count && info.latest_end == latest_end, "state ", match.state,
                    " has count ", info.count, " and latest end ", info.latest_end, ", expected ", count, " and ",
                    latest_end);
  const auto best = automaton.continuations(match.state, 3);
  const auto following = automaton.following(match.state, 5);
  AGENTINFER_ICHECK(best.empty() == (following.size == 0), "continuations and following disagree");
  for (const Continuation& each : best) {
    Tokens string(stream.end() - longest, stream.end());
    string.push_back(each.token);
    AGENTINFER_ICHECK(look_everywhere(text, string) == std::make_pair(each.count, each.latest_end), "continuation ",
                      each.token, " has count ", each.count);
  }
}

// Of the document that `text` ends with, against the occurrences before its end.
void check_suffix_match(const Automaton& automaton, const Tokens& text) {
  const auto document = std::find(text.rbegin(), text.rend(), kSeparator).base();
  const auto limit = std::min<std::size_t>(text.end() - document, automaton.max_match());
  std::size_t longest = limit;
  while (longest > 0 && look_everywhere(text, Tokens(text.end() - longest, text.end())).first < 2) --longest;
  const Match match = automaton.suffix_match();
  const Tokens string(text.end() - longest, text.end());
  AGENTINFER_ICHECK(static_cast<std::size_t>(match.length) == longest &&
                        match.state == automaton.find(string.data(), string.size()),
                    "suffix match of ", match.length, ", expected ", longest);
}

// Byte 0 sets max_match. Then: 0-7 append a token (0-2 often, 6 one that is new, 7 the largest); 8 start a document;
// 9 read the last text again (a long repeat); 10 rematch; else advance the cursor by a token.
void run_programme(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return;
  Automaton automaton(1 + data[0] % 9);
  Cursor cursor(automaton);
  Tokens text;
  Tokens stream;
  for (std::size_t i = 1; i < std::min<std::size_t>(size, 120); ++i) {
    const std::uint8_t operation = data[i] % 16;
    if (operation < 8) {
      const std::int32_t token = operation == 7   ? 2147483647
                                 : operation == 6 ? 100 + static_cast<std::int32_t>(i)
                                                  : operation % 3;
      automaton.extend(&token, 1);
      text.push_back(token);
    } else if (operation == 8) {
      automaton.start_document();
      if (!text.empty() && text.back() != kSeparator) text.push_back(kSeparator);
    } else if (operation == 9) {
      const std::size_t count = std::min<std::size_t>(text.size(), 20);
      Tokens repeat(text.end() - count, text.end());
      repeat.erase(std::remove(repeat.begin(), repeat.end(), kSeparator), repeat.end());
      automaton.extend(repeat.data(), repeat.size());
      text.insert(text.end(), repeat.begin(), repeat.end());
    } else if (operation == 10) {
      check_match(automaton, text, stream, cursor.rematch());
    } else {
      const std::int32_t token = operation % 4;
      stream.push_back(token);
      cursor.advance(&token, 1);
    }
    AGENTINFER_ICHECK(automaton.tokens().size == text.size(), "the text has ", automaton.tokens().size, " entries");
  }
  automaton.check_integrity();
  check_suffix_match(automaton, text);
  check_match(automaton, text, stream, cursor.rematch());
}

#ifndef AGENTINFER_LIBFUZZER
std::vector<std::uint8_t> random_programme(std::mt19937& random) {
  std::vector<std::uint8_t> bytes(1 + random() % 120);
  const std::uint32_t highest = 1 + random() % 16;  // small ones append only, to few tokens
  for (std::uint8_t& byte : bytes) byte = static_cast<std::uint8_t>(random() % highest);
  return bytes;
}
#endif

}  // namespace

#include "fuzz_main.h"
