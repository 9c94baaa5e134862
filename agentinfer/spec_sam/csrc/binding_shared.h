// What the bindings share: an automaton with its lock, and calls that release the interpreter lock.
#pragma once

#include <nanobind/nanobind.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <utility>
#include <vector>

#include "automaton.h"
#include "check.h"

namespace agentinfer::spec_sam {

namespace nb = nanobind;

struct SharedAutomaton {
  explicit SharedAutomaton(std::int32_t max_match) : core(max_match) {}
  Automaton core;
  std::shared_mutex mutex;
};
using AutomatonPtr = std::shared_ptr<SharedAutomaton>;

// Calls that work on token arrays with the interpreter lock released: how many at once, and the most there ever were.
inline std::atomic<int> parallel_calls{0};
inline std::atomic<int> parallel_calls_peak{0};

class ParallelCall {
 public:
  ParallelCall() {
    const int now = ++parallel_calls;
    int peak = parallel_calls_peak.load();
    while (now > peak && !parallel_calls_peak.compare_exchange_weak(peak, now)) {
    }
  }
  ~ParallelCall() { --parallel_calls; }
  ParallelCall(const ParallelCall&) = delete;
  ParallelCall& operator=(const ParallelCall&) = delete;

 private:
  nb::gil_scoped_release released_;
};

// For short calls: takes the lock at once where it is free, else waits with the interpreter lock released.
template <typename Lock>
Lock lock_briefly(std::shared_mutex& mutex) {
  Lock lock(mutex, std::try_to_lock);
  if (!lock.owns_lock()) {
    nb::gil_scoped_release released;
    lock.lock();
  }
  return lock;
}
using ReadLock = std::shared_lock<std::shared_mutex>;
using WriteLock = std::unique_lock<std::shared_mutex>;

template <typename Pointer>
void check_present(const std::vector<Pointer>& rows, const char* name) {
  for (std::size_t row = 0; row < rows.size(); ++row) {
    AGENTINFER_CHECK(rows[row] != nullptr, name, "[", row, "] is None");
  }
}

// The drafting half of the module.
void bind_drafting(nb::module_& module);

}  // namespace agentinfer::spec_sam
