// Three levels of checks, chosen by who erred and what the check costs.
//   CHECK   the caller passed something we cannot take: always on, throws CheckError (ValueError in Python).
//   ICHECK  our own invariant, cheap to test: always on, throws InternalError (RuntimeError in Python).
//   DCHECK  our own invariant on a hot path: only in builds with AGENTINFER_CHECKED, else it costs nothing.
// The arguments after the condition are streamed into the message: say what was seen and what was expected.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace agentinfer {

class CheckError : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

class InternalError : public std::logic_error {
 public:
  using std::logic_error::logic_error;
};

namespace detail {

template <typename... Parts>
std::string concat(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

}  // namespace detail
}  // namespace agentinfer

#define AGENTINFER_CHECK(condition, ...)                                                             \
  do {                                                                                               \
    if (!(condition)) throw ::agentinfer::CheckError(::agentinfer::detail::concat(__VA_ARGS__));     \
  } while (false)

#define AGENTINFER_ICHECK(condition, ...)                                                            \
  do {                                                                                               \
    if (!(condition)) throw ::agentinfer::InternalError(::agentinfer::detail::concat(__VA_ARGS__));  \
  } while (false)

#ifdef AGENTINFER_CHECKED
#define AGENTINFER_DCHECK(condition) AGENTINFER_ICHECK(condition, __FILE__, ":", __LINE__, ": ", #condition)
#else
#define AGENTINFER_DCHECK(condition) \
  do {                                    \
  } while (false)
#endif
