#include "edge_store.h"

#include <limits>

namespace agentinfer::spec_sam {

EdgeStore::Block EdgeStore::create(Edge first, Edge second) {
  const Block block = allocate(kSmallest);
  arena_[block].token = 2;
  arena_[block + 1] = first;
  arena_[block + 2] = second;
  return block;
}

EdgeStore::Block EdgeStore::duplicate(Block block) {
  const Block copy = allocate(arena_[block].target);
  const std::int32_t num_slots = slots(block);
  for (std::int32_t slot = 0; slot < num_slots; ++slot) arena_[copy + slot] = arena_[block + slot];
  return copy;
}

EdgeStore::Block EdgeStore::add(Block block, Edge edge) {
  AGENTINFER_DCHECK(find(block, edge.token) == nullptr);
  const std::int32_t num_edges = size(block);
  const std::int32_t room = is_table(block) ? slots(block) / 4 * 3 : slots(block) - 1;
  if (num_edges == room) {
    const Block grown = allocate(arena_[block].target + 1);
    if (is_table(grown)) {
      for_each(block, [&](Edge moved) { insert_into_table(grown, moved); });
    } else {
      for (std::int32_t slot = 1; slot <= num_edges; ++slot) arena_[grown + slot] = arena_[block + slot];
    }
    arena_[grown].token = num_edges;
    release(block);
    block = grown;
  }
  if (is_table(block)) {
    insert_into_table(block, edge);
  } else {
    arena_[block + 1 + num_edges] = edge;
  }
  arena_[block].token = num_edges + 1;
  return block;
}

std::int32_t* EdgeStore::find(Block block, std::int32_t token) {
  if (!is_table(block)) {
    const std::int32_t end = block + 1 + size(block);
    for (std::int32_t slot = block + 1; slot < end; ++slot) {
      if (arena_[slot].token == token) return &arena_[slot].target;
    }
    return nullptr;
  }
  const std::int32_t num_slots = slots(block);
  for (std::int32_t slot = home_slot(block, token);; slot = slot + 1 == num_slots ? 1 : slot + 1) {
    Edge& edge = arena_[block + slot];
    if (edge.token == token) return &edge.target;
    if (edge.token == kNone) return nullptr;  // a table is never full, so the scan ends
  }
}

std::size_t EdgeStore::slots_free() const {
  std::size_t count = 0;
  for (const Block head : free_) {
    for (Block block = head; block != kNone; block = arena_[block + 1].target) count += slots(block);
  }
  return count;
}

EdgeStore::Block EdgeStore::allocate(int slots_log2) {
  const std::int32_t num_slots = std::int32_t{1} << slots_log2;
  Block block = free_[slots_log2];
  if (block != kNone) {
    free_[slots_log2] = arena_[block + 1].target;
  } else {
    if (arena_.size() + num_slots > std::numeric_limits<Block>::max()) throw std::bad_alloc();
    block = static_cast<Block>(arena_.append_uninitialized(num_slots));
  }
  arena_[block] = Edge{0, slots_log2};
  for (std::int32_t slot = 1; slot < num_slots; ++slot) arena_[block + slot] = Edge{kNone, kNone};
  return block;
}

void EdgeStore::release(Block block) {
  const int slots_log2 = arena_[block].target;
  arena_[block + 1].target = free_[slots_log2];
  free_[slots_log2] = block;
}

void EdgeStore::insert_into_table(Block block, Edge edge) {
  const std::int32_t num_slots = slots(block);
  std::int32_t slot = home_slot(block, edge.token);
  while (arena_[block + slot].token != kNone) slot = slot + 1 == num_slots ? 1 : slot + 1;
  arena_[block + slot] = edge;
}

// Slots 1 .. 2^k - 1, spread by the high bits of a multiplicative hash: neighbouring token ids do not cluster.
std::int32_t EdgeStore::home_slot(Block block, std::int32_t token) const {
  const std::uint64_t mixed = static_cast<std::uint32_t>(token) * UINT32_C(2654435769);
  const std::uint64_t usable = static_cast<std::uint64_t>(slots(block)) - 1;
  return 1 + static_cast<std::int32_t>(((mixed & UINT32_C(0xffffffff)) * usable) >> 32);
}

}  // namespace agentinfer::spec_sam
