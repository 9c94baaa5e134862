// A growable array of plain records, for the arenas of the automaton.
//
// std::vector doubles and copies: at growth it holds three times what it needs. This one grows by an eighth through
// realloc, which moves pages instead of bytes for large blocks on Linux, so slack and peak stay small.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <new>
#include <type_traits>
#include <utility>

#include "check.h"

namespace agentinfer {

template <typename T>
class PodVector {
  static_assert(std::is_trivially_copyable_v<T>, "elements are moved by realloc");

 public:
  PodVector() = default;
  PodVector(const PodVector&) = delete;
  PodVector& operator=(const PodVector&) = delete;
  ~PodVector() { std::free(data_); }

  T& operator[](std::size_t index) {
    AGENTINFER_DCHECK(index < size_);
    return data_[index];
  }
  const T& operator[](std::size_t index) const {
    AGENTINFER_DCHECK(index < size_);
    return data_[index];
  }

  std::size_t size() const { return size_; }
  std::size_t capacity_bytes() const { return capacity_ * sizeof(T); }

  // By value: `value` may be a copy of an element, and growing would move that element.
  void push_back(T value) {
    if (size_ == capacity_) reserve(size_ + 1);
    data_[size_++] = value;
  }

  // Adds `count` elements and returns the index of the first; their contents are indeterminate.
  std::size_t append_uninitialized(std::size_t count) {
    if (size_ + count > capacity_) reserve(size_ + count);
    const std::size_t first = size_;
    size_ += count;
    return first;
  }

  void clear() { size_ = 0; }
  // Keeps the first `size` elements.
  void shrink(std::size_t size) {
    AGENTINFER_DCHECK(size <= size_);
    size_ = size;
  }
  T* data() { return data_; }
  const T* data() const { return data_; }

  // References and pointers into the array are invalid afterwards.
  void reserve(std::size_t wanted) {
    if (wanted <= capacity_) return;
    std::size_t capacity = capacity_ + capacity_ / 8 + 16;
    if (capacity < wanted) capacity = wanted;
    void* grown = std::realloc(static_cast<void*>(data_), capacity * sizeof(T));
    if (grown == nullptr) throw std::bad_alloc();
    data_ = static_cast<T*>(grown);
    capacity_ = capacity;
  }

 private:
  T* data_ = nullptr;
  std::size_t size_ = 0;
  std::size_t capacity_ = 0;
};

}  // namespace agentinfer
