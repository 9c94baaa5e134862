// Python's view of drafting: one call a batch, with flat arrays the caller owns.
//
// A stream writes its own automaton and reads its other sources, so a call takes all their locks, in the order of their
// addresses, and the model's after them.
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
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

struct SharedStream {
  SharedStream(ModelPtr of, AutomatonPtr own_text)
      : model(std::move(of)), sources{std::move(own_text)}, core(model->core, sources[0]->core) {}
  ModelPtr model;
  std::vector<AutomatonPtr> sources;  // [0] is the session's own text
  DraftStream core;
  std::mutex mutex;  // taken first
};
using StreamPtr = std::shared_ptr<SharedStream>;

// Everything a stream touches, for the length of a call.
class StreamLock {
 public:
  explicit StreamLock(SharedStream& stream) : own_(stream.mutex) {
    ordered_ = stream.sources;
    std::sort(ordered_.begin(), ordered_.end(), std::less<AutomatonPtr>());
    for (const AutomatonPtr& automaton : ordered_) {
      if (automaton == stream.sources[0]) {
        write_ = WriteLock(automaton->mutex);
      } else {
        reads_.emplace_back(automaton->mutex);
      }
    }
    model_ = std::unique_lock<std::mutex>(stream.model->mutex);
  }

 private:
  std::unique_lock<std::mutex> own_;
  std::vector<AutomatonPtr> ordered_;
  WriteLock write_;
  std::vector<ReadLock> reads_;
  std::unique_lock<std::mutex> model_;
};

void check_room(std::size_t seen, std::size_t expected, const char* name, std::size_t rows, std::int32_t width) {
  AGENTINFER_CHECK(seen == expected, name, ": expected room for ", rows, " rows of ", width, ", got ", seen);
}

void draft_batch(const std::vector<StreamPtr>& streams, const InputArray& token_array, const InputArray& offset_array,
                 std::int32_t max_nodes, std::int32_t max_children, double min_path_probability,
                 const OutputArray& tokens_out, const OutputArray& parents_out, const OutputArray& probability_out,
                 const OutputArray& num_nodes_out) {
  const auto tokens = flat<const std::int32_t>(token_array, "tokens");
  check_present(streams, "streams");
  const std::size_t rows = streams.size();
  const auto offsets = checked_offsets(offset_array, rows, tokens.size);
  AGENTINFER_CHECK(max_nodes >= 0 && max_nodes <= 4096, "max_nodes is ", max_nodes, "; expected 0 to 4096");
  AGENTINFER_CHECK(max_children >= 0, "max_children is ", max_children, "; expected 0 (any number) or more");
  AGENTINFER_CHECK(min_path_probability > 0 && min_path_probability <= 1, "min_path_probability is ",
                   min_path_probability, "; expected more than 0, at most 1");
  const std::int32_t width = max_nodes + 1;
  const auto drafted = flat<std::int32_t>(tokens_out, "tokens_out");
  const auto parents = flat<std::int32_t>(parents_out, "parents_out");
  const auto probabilities = flat<float>(probability_out, "probability_out");
  const auto num_nodes = flat<std::int32_t>(num_nodes_out, "num_nodes_out");
  check_room(drafted.size, rows * width, "tokens_out", rows, width);
  check_room(parents.size, rows * width, "parents_out", rows, width);
  check_room(probabilities.size, rows * width, "probability_out", rows, width);
  check_room(num_nodes.size, rows, "num_nodes_out", rows, 1);

  const ParallelCall parallel;
  check_tokens(tokens.data, tokens.size);  // all of them before the first stream changes
  const DraftLimits limits{max_nodes, max_children, min_path_probability};
  for (std::size_t row = 0; row < rows; ++row) {
    const StreamLock lock(*streams[row]);
    DraftStream& stream = streams[row]->core;
    stream.accept(tokens.data + offsets.data[row], offsets.data[row + 1] - offsets.data[row]);
    const std::vector<DraftNode>& nodes = stream.draft(limits);
    const std::size_t first = row * width;
    for (std::size_t i = 0; i < static_cast<std::size_t>(width); ++i) {
      const bool is_node = i < nodes.size();
      drafted.data[first + i] = is_node ? nodes[i].token : 0;
      parents.data[first + i] = is_node ? nodes[i].parent : -1;
      probabilities.data[first + i] = is_node ? static_cast<float>(nodes[i].path_probability) : 0.0F;
    }
    drafted.data[first] = stream.last_token();
    num_nodes.data[row] = static_cast<std::int32_t>(nodes.size());
  }
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

  module.def("draft_batch", &draft_batch, "streams"_a, "tokens"_a, "offsets"_a, "max_nodes"_a, "max_children"_a,
             "min_path_probability"_a, "tokens_out"_a, "parents_out"_a, "probability_out"_a, "num_nodes_out"_a,
             nb::sig("def draft_batch(streams: collections.abc.Sequence[DraftStream], "
                     "tokens: numpy.typing.NDArray[numpy.int32], offsets: numpy.typing.NDArray[numpy.int64], "
                     "max_nodes: int, max_children: int, min_path_probability: float, "
                     "tokens_out: numpy.typing.NDArray[numpy.int32], parents_out: numpy.typing.NDArray[numpy.int32], "
                     "probability_out: numpy.typing.NDArray[numpy.float32], "
                     "num_nodes_out: numpy.typing.NDArray[numpy.int32]) -> None"),
             "Takes tokens[offsets[i]:offsets[i + 1]] into streams[i] and drafts what may come next: a tree of at most\n"
             "max_nodes tokens, best first, written into row i (max_nodes + 1 wide) of the caller's flat arrays.\n"
             "Node 0 is the stream's last token, parent -1, probability 1; padding has parent -1, probability 0.");
}

}  // namespace agentinfer::spec_sam
