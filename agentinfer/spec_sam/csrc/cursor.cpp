#include "cursor.h"

#include <algorithm>

namespace agentinfer::spec_sam {

Match Cursor::advance(const std::int32_t* tokens, std::size_t count) {
  check_tokens(tokens, count);
  for (std::size_t i = 0; i < count; ++i) match_ = automaton_->step(match_, tokens[i]);
  const std::size_t kept = std::min<std::size_t>(count, automaton_->max_match());
  for (std::size_t i = count - kept; i < count; ++i) remember(tokens[i]);
  return match_;
}

Match Cursor::rematch() {
  match_ = Match{};
  for (std::size_t i = 0; i < recent_.size(); ++i) {
    match_ = automaton_->step(match_, recent_[(oldest_ + i) % recent_.size()]);
  }
  return match_;
}

void Cursor::reset() {
  match_ = Match{};
  recent_.clear();
  oldest_ = 0;
}

void Cursor::remember(std::int32_t token) {
  if (recent_.size() < static_cast<std::size_t>(automaton_->max_match())) {
    recent_.push_back(token);
  } else {
    recent_[oldest_] = token;
    oldest_ = oldest_ + 1 == recent_.size() ? 0 : oldest_ + 1;
  }
}

}  // namespace agentinfer::spec_sam
