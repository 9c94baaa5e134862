// Python's view of drafting: one call a batch, with flat arrays the caller owns.
//
// A stream writes its own automaton and reads its other sources, so a call takes all their locks, in the order of their
// addresses, and the model's after them.
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <array>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "binding_arrays.h"
#include "binding_shared.h"
#include "draft_model.h"
#include "draft_stream.h"

namespace agentinfer::spec_sam {

namespace nb = nanobind;
using namespace nb::literals;

namespace {

struct SharedModel {
  explicit SharedModel(std::vector<std::int32_t> stop_tokens) : core(std::move(stop_tokens)) {}
  DraftModel core;
  std::mutex mutex;  // the last one taken
};
using ModelPtr = std::shared_ptr<SharedModel>;

struct SharedStream : std::enable_shared_from_this<SharedStream> {
  SharedStream(ModelPtr of, AutomatonPtr own_text)
      : model(std::move(of)), sources{std::move(own_text)}, core(model->core, sources[0]->core) {
    ordered[0] = sources[0].get();
  }
  ModelPtr model;
  std::vector<AutomatonPtr> sources;  // [0] is the session's own text
  std::array<SharedAutomaton*, DraftStream::kMaxSources> ordered;  // the same, by address
  DraftStream core;
  std::mutex mutex;  // taken first
};
using StreamPtr = std::shared_ptr<SharedStream>;

// Everything a stream touches, for the length of a call.
class StreamLock {
 public:
  explicit StreamLock(SharedStream& stream) : stream_(stream), own_(stream.mutex) {
    for (; num_locked_ < stream.sources.size(); ++num_locked_) {
      SharedAutomaton* automaton = stream.ordered[num_locked_];
      if (automaton == stream.sources[0].get()) {
        automaton->mutex.lock();
      } else {
        automaton->mutex.lock_shared();
      }
    }
    stream.model->mutex.lock();
  }
  ~StreamLock() {
    stream_.model->mutex.unlock();
    while (num_locked_ > 0) {
      SharedAutomaton* automaton = stream_.ordered[--num_locked_];
      if (automaton == stream_.sources[0].get()) {
        automaton->mutex.unlock();
      } else {
        automaton->mutex.unlock_shared();
      }
    }
  }
  StreamLock(const StreamLock&) = delete;
  StreamLock& operator=(const StreamLock&) = delete;

 private:
  SharedStream& stream_;
  std::unique_lock<std::mutex> own_;
  std::size_t num_locked_ = 0;
};

// The caller's arrays for the drafts of a batch: looked at once, written by every call that is given them.
struct DraftRows {
  DraftRows(std::int32_t most, OutputArray tokens_out, OutputArray parents_out, OutputArray probability_out,
            OutputArray num_nodes_out)
      : max_nodes(most),
        tokens(flat<std::int32_t>(tokens_out, "tokens_out")),
        parents(flat<std::int32_t>(parents_out, "parents_out")),
        probabilities(flat<float>(probability_out, "probability_out")),
        num_nodes(flat<std::int32_t>(num_nodes_out, "num_nodes_out")),
        arrays{std::move(tokens_out), std::move(parents_out), std::move(probability_out), std::move(num_nodes_out)} {
    AGENTINFER_CHECK(max_nodes >= 0 && max_nodes <= 4096, "max_nodes is ", max_nodes, "; expected 0 to 4096");
    check_room(tokens.size, "tokens_out");
    check_room(parents.size, "parents_out");
    check_room(probabilities.size, "probability_out");
  }
  void check_room(std::size_t seen, const char* name) const {
    const std::int32_t width = max_nodes + 1;
    AGENTINFER_CHECK(seen == num_nodes.size * width, name, ": expected room for ", num_nodes.size, " rows of ", width,
                     ", got ", seen);
  }

  std::int32_t max_nodes;
  Flat<std::int32_t> tokens;
  Flat<std::int32_t> parents;
  Flat<float> probabilities;
  Flat<std::int32_t> num_nodes;
  std::array<OutputArray, 4> arrays;  // keep the memory
};

// The streams of a list or tuple, kept alive while the interpreter lock is released.
std::vector<StreamPtr> streams_of(nb::handle sequence) {
  const nb::object items = nb::steal(PySequence_Fast(sequence.ptr(), "streams: expected a sequence of DraftStream"));
  if (!items.is_valid()) throw nb::python_error();
  const auto rows = static_cast<std::size_t>(PySequence_Fast_GET_SIZE(items.ptr()));
  std::vector<StreamPtr> streams;
  streams.reserve(rows);
  for (std::size_t row = 0; row < rows; ++row) {
    const nb::handle item = PySequence_Fast_GET_ITEM(items.ptr(), static_cast<Py_ssize_t>(row));
    AGENTINFER_CHECK(!item.is_none(), "streams[", row, "] is None");
    if (!nb::isinstance<SharedStream>(item)) {
      throw nb::type_error(agentinfer::detail::concat("streams[", row, "] is no DraftStream").c_str());
    }
    streams.push_back(nb::inst_ptr<SharedStream>(item)->shared_from_this());
  }
  return streams;
}

std::size_t draft_batch(nb::handle sequence, const InputArray& token_array, const InputArray& offset_array,
                        const DraftRows& out, std::int32_t max_children, double min_path_probability) {
  const auto tokens = flat<const std::int32_t>(token_array, "tokens");
  const std::vector<StreamPtr> streams = streams_of(sequence);
  const std::size_t rows = streams.size();
  const auto offsets = checked_offsets(offset_array, rows, tokens.size);
  AGENTINFER_CHECK(rows == out.num_nodes.size, "rows: expected room for ", rows, " streams, got ", out.num_nodes.size);
  AGENTINFER_CHECK(max_children >= 0, "max_children is ", max_children, "; expected 0 (any number) or more");
  AGENTINFER_CHECK(min_path_probability > 0 && min_path_probability <= 1, "min_path_probability is ",
                   min_path_probability, "; expected more than 0, at most 1");

  const ParallelCall parallel;
  check_tokens(tokens.data, tokens.size);  // all of them before the first stream changes
  const DraftLimits limits{out.max_nodes, max_children, min_path_probability};
  const auto width = static_cast<std::size_t>(out.max_nodes) + 1;
  std::size_t num_drafted = 0;
  for (std::size_t row = 0; row < rows; ++row) {
    const StreamLock lock(*streams[row]);
    DraftStream& stream = streams[row]->core;
    stream.accept(tokens.data + offsets.data[row], offsets.data[row + 1] - offsets.data[row]);
    const std::vector<DraftNode>& nodes = stream.draft(limits);
    const std::size_t first = row * width;
    for (std::size_t i = 0; i < nodes.size(); ++i) {
      out.tokens.data[first + i] = nodes[i].token;
      out.parents.data[first + i] = nodes[i].parent;
      out.probabilities.data[first + i] = static_cast<float>(nodes[i].path_probability);
    }
    const std::size_t padding = width - nodes.size();
    std::fill_n(out.tokens.data + first + nodes.size(), padding, 0);
    std::fill_n(out.parents.data + first + nodes.size(), padding, -1);
    std::fill_n(out.probabilities.data + first + nodes.size(), padding, 0.0F);
    out.tokens.data[first] = stream.last_token();
    out.num_nodes.data[row] = static_cast<std::int32_t>(nodes.size());
    num_drafted += nodes.size() - 1;
  }
  return num_drafted;
}

template <typename Value>
nb::ndarray<nb::numpy, Value, nb::ndim<1>> owned(std::vector<Value> values) {
  auto* held = new std::vector<Value>(std::move(values));
  if (held->empty()) held->reserve(1);
  nb::capsule owner(held, [](void* pointer) noexcept { delete static_cast<std::vector<Value>*>(pointer); });
  return nb::ndarray<nb::numpy, Value, nb::ndim<1>>(held->data(), {held->size()}, owner);
}

}  // namespace

void bind_drafting(nb::module_& module) {
  nb::class_<SharedModel>(module, "DraftModel",
                          "What drafting has learned about its sources; shared by all streams of a server.")
      .def(nb::new_([](std::vector<std::int32_t> stop_tokens) {
             check_tokens(stop_tokens.data(), stop_tokens.size());
             return std::make_shared<SharedModel>(std::move(stop_tokens));
           }),
           "stop_tokens"_a = std::vector<std::int32_t>{})
      .def(
          "learned",
          [](SharedModel& self) {
            const std::lock_guard<std::mutex> lock(self.mutex);
            return owned(self.core.learned());
          },
          nb::sig("def learned(self) -> numpy.typing.NDArray[numpy.float64]"))
      .def(
          "restore",
          [](SharedModel& self, const InputArray& array) {
            const auto values = flat<const double>(array, "values");
            const std::lock_guard<std::mutex> lock(self.mutex);
            self.core.restore(values.data, values.size);
          },
          "values"_a, nb::sig("def restore(self, values: numpy.typing.NDArray[numpy.float64]) -> None"));

  nb::class_<SharedStream>(module, "DraftStream",
                           "One request's stream of tokens, followed through the session's own text, which it extends,\n"
                           "and through further sources.")
      .def(nb::new_([](ModelPtr model, AutomatonPtr own) {
             return std::make_shared<SharedStream>(std::move(model), std::move(own));
           }),
           "model"_a, "own"_a)
      .def(
          "add_source",
          [](SharedStream& self, AutomatonPtr automaton, std::int32_t kind, double similarity) {
            AGENTINFER_CHECK(kind > 0 && kind < kNumSourceKinds, "kind is ", kind, "; expected 1 to ",
                             kNumSourceKinds - 1);
            const nb::gil_scoped_release released;
            const std::lock_guard<std::mutex> own(self.mutex);
            AGENTINFER_CHECK(std::find(self.sources.begin(), self.sources.end(), automaton) == self.sources.end(),
                             "the automaton is a source of this stream already");
            const ReadLock read(automaton->mutex);
            const std::int32_t index =
                self.core.add_source(automaton->core, static_cast<SourceKind>(kind), similarity);
            const auto end = self.ordered.begin() + self.sources.size();
            const auto place = std::upper_bound(self.ordered.begin(), end, automaton.get(), std::less<>());
            std::copy_backward(place, end, end + 1);
            *place = automaton.get();
            self.sources.push_back(std::move(automaton));
            return index;
          },
          "automaton"_a, "kind"_a, "similarity"_a = 1.0)
      .def(
          "seek",
          [](SharedStream& self, const InputArray& array) {
            const auto tokens = flat<const std::int32_t>(array, "tokens");
            const ParallelCall parallel;
            check_tokens(tokens.data, tokens.size);
            const StreamLock lock(self);
            self.core.seek(tokens.data, tokens.size);
          },
          "tokens"_a, nb::sig("def seek(self, tokens: numpy.typing.NDArray[numpy.int32]) -> None"))
      .def(
          "take_credits",
          [](SharedStream& self) {
            const std::lock_guard<std::mutex> own(self.mutex);
            std::vector<std::int32_t> sources;
            std::vector<std::int32_t> positions;
            for (const Credit& credit : self.core.take_credits()) {
              sources.push_back(credit.source);
              positions.push_back(credit.position);
            }
            return std::pair{owned(std::move(sources)), owned(std::move(positions))};
          },
          nb::sig("def take_credits(self) -> tuple[numpy.typing.NDArray[numpy.int32], "
                  "numpy.typing.NDArray[numpy.int32]]"));

  nb::class_<DraftRows>(module, "DraftRows",
                        "The caller's flat arrays for the drafts of a batch, max_nodes + 1 wide a stream (num_nodes_out: 1).\n"
                        "Looked at once, so that a call with them takes no time for it.")
      .def(nb::init<std::int32_t, OutputArray, OutputArray, OutputArray, OutputArray>(), "max_nodes"_a, "tokens_out"_a,
           "parents_out"_a, "probability_out"_a, "num_nodes_out"_a,
           nb::sig("def __init__(self, max_nodes: int, tokens_out: numpy.typing.NDArray[numpy.int32], "
                   "parents_out: numpy.typing.NDArray[numpy.int32], "
                   "probability_out: numpy.typing.NDArray[numpy.float32], "
                   "num_nodes_out: numpy.typing.NDArray[numpy.int32]) -> None"));

  module.def("draft_batch", &draft_batch, "streams"_a, "tokens"_a, "offsets"_a, "rows"_a, "max_children"_a,
             "min_path_probability"_a,
             nb::sig("def draft_batch(streams: collections.abc.Sequence[DraftStream], "
                     "tokens: numpy.typing.NDArray[numpy.int32], offsets: numpy.typing.NDArray[numpy.int64], "
                     "rows: DraftRows, max_children: int, min_path_probability: float) -> int"),
             "Takes tokens[offsets[i]:offsets[i + 1]] into streams[i] and drafts what may come next: a tree of at most\n"
             "max_nodes tokens, best first, written into row i. Node 0 is the stream's last token, parent -1,\n"
             "probability 1; padding has parent -1, probability 0. Returns how many tokens were drafted in all.");
}

}  // namespace agentinfer::spec_sam
