// The edges of states that have two or more: blocks in one arena, recycled through free lists.
//
// A block is 2^k slots of 8 bytes. Slot 0 is the header (number of edges, k); the rest holds edges: up to 15 of them
// unordered and scanned, which is one or two cache lines; beyond that an open-addressing table at most 3/4 full.
// A block that is full moves to one twice its size, so a reference to a block (its first slot) may change in `add`.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "pod_vector.h"

namespace agentinfer::spec_sam {

struct Edge {
  std::int32_t token;
  std::int32_t target;
};

class EdgeStore {
 public:
  using Block = std::int32_t;
  static constexpr std::int32_t kNone = -1;

  EdgeStore() { free_.fill(kNone); }

  // A new block with these two edges; their tokens differ.
  Block create(Edge first, Edge second);
  // A new block with the same edges.
  Block duplicate(Block block);
  // Adds an edge for a token the block does not hold; returns where the block is now.
  Block add(Block block, Edge edge);
  // Where the edge's target is stored, or null. Valid until the next create, duplicate or add.
  std::int32_t* find(Block block, std::int32_t token);
  const std::int32_t* find(Block block, std::int32_t token) const {
    return const_cast<EdgeStore*>(this)->find(block, token);
  }

  std::int32_t size(Block block) const { return arena_[block].token; }

  template <typename Visit>
  void for_each(Block block, Visit&& visit) const {
    const Edge* slot = arena_.data() + block;
    if (!is_table(block)) {
      for (const Edge* end = slot + size(block); slot != end;) visit(*++slot);
      return;
    }
    for (const Edge* end = slot + slots(block); ++slot != end;) {
      if (slot->token != kNone) visit(*slot);
    }
  }

  std::size_t memory_bytes() const { return arena_.capacity_bytes(); }

  // For the integrity check: slots of this block; slots in all, and those of them that wait in free lists.
  std::int32_t slots(Block block) const { return std::int32_t{1} << arena_[block].target; }
  std::size_t slots_total() const { return arena_.size(); }
  std::size_t slots_free() const;

 private:
  static constexpr int kSmallest = 2;      // 2^2 slots: a header and three edges
  static constexpr int kLargestList = 4;   // 2^4 slots: up to 15 edges are scanned, more are hashed

  bool is_table(Block block) const { return arena_[block].target > kLargestList; }
  Block allocate(int slots_log2);
  void release(Block block);
  void insert_into_table(Block block, Edge edge);
  std::int32_t home_slot(Block block, std::int32_t token) const;

  PodVector<Edge> arena_;
  std::array<Block, 32> free_{};  // by log2 of the block's slots; the next free block is in the target of slot 1
};

}  // namespace agentinfer::spec_sam
