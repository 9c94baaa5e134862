// The text of an automaton: an append-only array of tokens that can be read without copying while it grows.
//
// Growing allocates a new block and keeps the old one alive for whoever still holds a Span of it. A token, once
// written, never changes, so a Span stays correct for as long as it is held, whatever is appended meanwhile.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "check.h"

namespace agentinfer {

// `owner` keeps `data` alive.
struct TokenSpan {
  const std::int32_t* data = nullptr;
  std::size_t size = 0;
  std::shared_ptr<const std::int32_t[]> owner;
};

class TokenLog {
 public:
  std::size_t size() const { return size_; }
  std::size_t capacity_bytes() const { return capacity_ * sizeof(std::int32_t); }

  std::int32_t operator[](std::size_t index) const {
    AGENTINFER_DCHECK(index < size_);
    return block_[index];
  }

  void push_back(std::int32_t token) {
    reserve(size_ + 1);
    block_[size_++] = token;
  }

  void reserve(std::size_t wanted) {
    if (wanted <= capacity_) return;
    const std::size_t capacity = std::max(wanted, capacity_ + capacity_ / 8 + 16);
    std::shared_ptr<std::int32_t[]> grown(new std::int32_t[capacity]);
    std::copy(block_.get(), block_.get() + size_, grown.get());
    block_ = std::move(grown);
    capacity_ = capacity;
  }

  TokenSpan span(std::size_t first, std::size_t count) const {
    AGENTINFER_DCHECK(first + count <= size_);
    return {block_.get() + first, count, block_};
  }

 private:
  std::shared_ptr<std::int32_t[]> block_;
  std::size_t size_ = 0;
  std::size_t capacity_ = 0;
};

}  // namespace agentinfer
