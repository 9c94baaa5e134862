// Python's view of the core: validates arrays, orders threads, releases the interpreter lock. No algorithm lives here.
//
// Any method may be called from any thread. Each automaton has a lock of its own: one writer or many readers. The
// interpreter lock is released before waiting for it and for all work on token arrays. A Cursor reads its automaton,
// and its own match and history have a second lock, taken after the automaton's.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "automaton.h"
#include "binding_arrays.h"
#include "binding_shared.h"
#include "check.h"
#include "cursor.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace agentinfer::spec_sam;

namespace {

struct SharedCursor {
  explicit SharedCursor(AutomatonPtr of) : automaton(std::move(of)), core(automaton->core) {}
  AutomatonPtr automaton;
  Cursor core;
  std::mutex mutex;  // taken after the automaton's
};
using CursorPtr = std::shared_ptr<SharedCursor>;

void extend_batch(const std::vector<AutomatonPtr>& automata, const InputArray& token_array,
                  const InputArray& offset_array) {
  const auto tokens = flat<const std::int32_t>(token_array, "tokens");
  check_present(automata, "automata");
  const auto offsets = checked_offsets(offset_array, automata.size(), tokens.size);
  const ParallelCall parallel;
  check_tokens(tokens.data, tokens.size);  // all of them before the first automaton changes
  for (std::size_t row = 0; row < automata.size(); ++row) {
    const WriteLock lock(automata[row]->mutex);
    automata[row]->core.extend(tokens.data + offsets.data[row], offsets.data[row + 1] - offsets.data[row]);
  }
}

void match_batch(const std::vector<CursorPtr>& cursors, const InputArray& token_array, const InputArray& offset_array,
                 const OutputArray& state_array, const OutputArray& length_array) {
  const auto tokens = flat<const std::int32_t>(token_array, "tokens");
  check_present(cursors, "cursors");
  const auto offsets = checked_offsets(offset_array, cursors.size(), tokens.size);
  const auto states = flat<std::int32_t>(state_array, "states_out");
  const auto lengths = flat<std::int32_t>(length_array, "lengths_out");
  AGENTINFER_CHECK(states.size == cursors.size(), "states_out: expected room for ", cursors.size(), " rows, got ",
                   states.size);
  AGENTINFER_CHECK(lengths.size == cursors.size(), "lengths_out: expected room for ", cursors.size(), " rows, got ",
                   lengths.size);
  const ParallelCall parallel;
  check_tokens(tokens.data, tokens.size);
  for (std::size_t row = 0; row < cursors.size(); ++row) {
    const ReadLock lock(cursors[row]->automaton->mutex);
    const std::lock_guard<std::mutex> own(cursors[row]->mutex);
    const Match match =
        cursors[row]->core.advance(tokens.data + offsets.data[row], offsets.data[row + 1] - offsets.data[row]);
    states.data[row] = match.state;
    lengths.data[row] = match.length;
  }
}

std::optional<StateId> link_of(const StateInfo& info) {
  return info.link == kNoState ? std::nullopt : std::optional<StateId>(info.link);
}

// For read-only records: equality by value, and a repr that names the fields.
template <typename Record, typename... Fields>
void bind_fields(nb::class_<Record>& bound, const char* name, std::pair<const char*, Fields Record::*>... fields) {
  (bound.def_ro(fields.first, fields.second), ...);
  bound.def(
      "__eq__",
      [fields...](const Record& left, const Record& right) {
        return ((left.*fields.second == right.*fields.second) && ...);
      },
      nb::is_operator(), nb::sig("def __eq__(self, other: object, /) -> bool"));
  bound.def("__repr__", [name, fields...](const Record& record) {
    std::string text;
    ((text += agentinfer::detail::concat(text.empty() ? "" : ", ", fields.first, "=", record.*fields.second)), ...);
    return agentinfer::detail::concat(name, "(", text, ")");
  });
}

}  // namespace

NB_MODULE(_core, module) {
  module.doc() = "The compiled suffix automaton. `agentinfer.spec_sam.reference` is its specification.";

  auto match =
      nb::class_<Match>(module, "Match", "The last `length` tokens of a stream, found in the automaton's `state`.");
  bind_fields(match, "Match", std::pair{"state", &Match::state}, std::pair{"length", &Match::length});

  auto continuation = nb::class_<Continuation>(
      module, "Continuation",
      "A token that followed a state's strings `count` times, the latest time at position `latest_end`;\n"
      "`state` is where it leads.");
  bind_fields(continuation, "Continuation", std::pair{"token", &Continuation::token},
              std::pair{"state", &Continuation::state}, std::pair{"count", &Continuation::count},
              std::pair{"latest_end", &Continuation::latest_end});

  nb::class_<StateInfo>(module, "StateInfo",
                        "The strings of `shortest` to `longest` tokens that end at the same positions. `link` is the\n"
                        "state of the next shorter suffix (None for the root); `count`, `latest_end` are None where\n"
                        "`shortest` exceeds max_match + 1, and `latest_end` also before the first token.")
      .def_ro("shortest", &StateInfo::shortest)
      .def_ro("longest", &StateInfo::longest)
      .def_prop_ro("link", &link_of)
      .def_prop_ro("count",
                   [](const StateInfo& info) {
                     return info.is_counted ? std::optional<std::uint32_t>(info.count) : std::nullopt;
                   })
      .def_prop_ro("latest_end", [](const StateInfo& info) {
        return info.is_counted && info.latest_end >= 0 ? std::optional<std::int32_t>(info.latest_end) : std::nullopt;
      });

  nb::class_<SharedAutomaton>(
      module, "Automaton",
      "A suffix automaton that grows by tokens. Any thread may call any method; see the reference.")
      .def(nb::new_([](std::int32_t max_match) { return std::make_shared<SharedAutomaton>(max_match); }),
           "max_match"_a = 64)
      .def_prop_ro("max_match", [](const SharedAutomaton& self) { return self.core.max_match(); })
      .def_prop_ro("num_tokens",
                   [](SharedAutomaton& self) {
                     const auto lock = lock_briefly<ReadLock>(self.mutex);
                     return self.core.num_tokens();
                   })
      .def_prop_ro("num_documents",
                   [](SharedAutomaton& self) {
                     const auto lock = lock_briefly<ReadLock>(self.mutex);
                     return self.core.num_documents();
                   })
      .def_prop_ro("num_states",
                   [](SharedAutomaton& self) {
                     const auto lock = lock_briefly<ReadLock>(self.mutex);
                     return self.core.num_states();
                   })
      .def_prop_ro("num_edges",
                   [](SharedAutomaton& self) {
                     const auto lock = lock_briefly<ReadLock>(self.mutex);
                     return self.core.num_edges();
                   })
      .def_prop_ro("num_count_updates",
                   [](SharedAutomaton& self) {
                     const auto lock = lock_briefly<ReadLock>(self.mutex);
                     return self.core.num_count_updates();
                   })
      .def_prop_ro("tokens",
                   [](SharedAutomaton& self) {
                     const auto lock = lock_briefly<ReadLock>(self.mutex);
                     return view(self.core.tokens());
                   },
                   nb::for_getter(nb::sig("def tokens(self) -> numpy.typing.NDArray[numpy.int32]")),
                   nb::rv_policy::automatic)  // the view has its owner already
      .def(
          "extend",
          [](SharedAutomaton& self, const InputArray& array) {
            const auto tokens = flat<const std::int32_t>(array, "tokens");
            const ParallelCall parallel;
            const WriteLock lock(self.mutex);
            self.core.extend(tokens.data, tokens.size);
          },
          "tokens"_a, nb::sig("def extend(self, tokens: numpy.typing.NDArray[numpy.int32]) -> None"))
      .def("start_document",
           [](SharedAutomaton& self) {
             const auto lock = lock_briefly<WriteLock>(self.mutex);
             self.core.start_document();
           })
      .def(
          "find",
          [](SharedAutomaton& self, const InputArray& array) -> std::optional<StateId> {
            const auto tokens = flat<const std::int32_t>(array, "tokens");
            const ParallelCall parallel;
            const ReadLock lock(self.mutex);
            const StateId state = self.core.find(tokens.data, tokens.size);
            return state == kNoState ? std::nullopt : std::optional<StateId>(state);
          },
          "tokens"_a, nb::sig("def find(self, tokens: numpy.typing.NDArray[numpy.int32]) -> int | None"))
      .def("suffix_match",
           [](SharedAutomaton& self) {
             const auto lock = lock_briefly<ReadLock>(self.mutex);
             return self.core.suffix_match();
           })
      .def(
          "info",
          [](SharedAutomaton& self, StateId state) {
            const auto lock = lock_briefly<ReadLock>(self.mutex);
            return self.core.info(state);
          },
          "state"_a)
      .def(
          "continuations",
          [](SharedAutomaton& self, StateId state, std::size_t limit) {
            const auto lock = lock_briefly<ReadLock>(self.mutex);
            return self.core.continuations(state, limit);
          },
          "state"_a, "limit"_a)
      .def(
          "following",
          [](SharedAutomaton& self, StateId state, std::size_t limit) {
            const auto lock = lock_briefly<ReadLock>(self.mutex);
            return view(self.core.following(state, limit));
          },
          "state"_a, "limit"_a,
          nb::sig("def following(self, state: int, limit: int) -> numpy.typing.NDArray[numpy.int32]"))
      .def("memory_bytes",
           [](SharedAutomaton& self) {
             const auto lock = lock_briefly<ReadLock>(self.mutex);
             return self.core.memory_bytes();
           })
      .def("check_integrity", [](SharedAutomaton& self) {
        const ParallelCall parallel;
        const ReadLock lock(self.mutex);
        self.core.check_integrity();
      });

  nb::class_<SharedCursor>(module, "Cursor",
                           "Follows one stream through an automaton, which it keeps alive; see the reference.")
      .def(nb::new_([](AutomatonPtr automaton) { return std::make_shared<SharedCursor>(std::move(automaton)); }),
           "automaton"_a)
      .def_prop_ro("match",
                   [](SharedCursor& self) {
                     const std::lock_guard<std::mutex> own(self.mutex);
                     return self.core.match();
                   })
      .def(
          "advance",
          [](SharedCursor& self, const InputArray& array) {
            const auto tokens = flat<const std::int32_t>(array, "tokens");
            const ParallelCall parallel;
            const ReadLock lock(self.automaton->mutex);
            const std::lock_guard<std::mutex> own(self.mutex);
            return self.core.advance(tokens.data, tokens.size);
          },
          "tokens"_a, nb::sig("def advance(self, tokens: numpy.typing.NDArray[numpy.int32]) -> Match"))
      .def("rematch",
           [](SharedCursor& self) {
             const ParallelCall parallel;
             const ReadLock lock(self.automaton->mutex);
             const std::lock_guard<std::mutex> own(self.mutex);
             return self.core.rematch();
           })
      .def("reset", [](SharedCursor& self) {
        const std::lock_guard<std::mutex> own(self.mutex);
        self.core.reset();
      });

  module.def("extend_batch", &extend_batch, "automata"_a, "tokens"_a, "offsets"_a,
             nb::sig("def extend_batch(automata: collections.abc.Sequence[Automaton], "
                     "tokens: numpy.typing.NDArray[numpy.int32], "
                     "offsets: numpy.typing.NDArray[numpy.int64]) -> None"),
             "Extends automata[i] by tokens[offsets[i]:offsets[i + 1]]. All is checked before any automaton changes.");
  module.def("match_batch", &match_batch, "cursors"_a, "tokens"_a, "offsets"_a, "states_out"_a, "lengths_out"_a,
             nb::sig("def match_batch(cursors: collections.abc.Sequence[Cursor], "
                     "tokens: numpy.typing.NDArray[numpy.int32], "
                     "offsets: numpy.typing.NDArray[numpy.int64], states_out: numpy.typing.NDArray[numpy.int32], "
                     "lengths_out: numpy.typing.NDArray[numpy.int32]) -> None"),
             "Advances cursors[i] by tokens[offsets[i]:offsets[i + 1]] and writes its match into the caller's arrays.");
  module.def(
      "peak_parallel_calls", [] { return parallel_calls_peak.exchange(parallel_calls.load()); },
      "The most calls under way at once without the interpreter lock since this was last asked.");
  bind_drafting(module);
}
