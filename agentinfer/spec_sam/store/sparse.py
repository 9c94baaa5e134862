"""Sparse retrieval: BM25 over token pairs, in an inverted index of numpy arrays that grows block by block.

Each `add` makes a block; a block is merged with the one before it once it is half as large, so that `n` contexts lie in
O(log n) blocks and each is sorted O(log n) times. Searches read an immutable snapshot.

BM25: Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009, equation 3.15, with
whether a pair occurs in place of how often. The similarity is the score over that of the query itself.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from agentinfer.spec_sam.store.payloads import Tokens
from agentinfer.spec_sam.store.retrieval import Hit

_K1, _B = 1.2, 0.75
# Postings looked at in one search. The query's most common pairs, which tell contexts apart least, go first.
_MAX_POSTINGS = 50_000

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Block:
    """Contexts by pair: `slots[starts[i]:starts[i + 1]]` have `pairs[i]`. Pairs ascend."""

    pairs: npt.NDArray[np.uint32]
    starts: npt.NDArray[np.int32]
    slots: npt.NDArray[np.int32]

    @property
    def nbytes(self) -> int:
        return self.pairs.nbytes + self.starts.nbytes + self.slots.nbytes


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Slot i is context `ids[i]` with `lengths[i]` pairs; `is_alive[i]` turns False when it is removed."""

    blocks: tuple[Block, ...]
    ids: Ints
    lengths: Ints
    is_alive: npt.NDArray[np.bool_]
    slot_of: dict[int, int]


class SparseRetriever:
    def __init__(self, key_tokens: int = 256) -> None:
        """At most `key_tokens` postings a context."""
        self.key_tokens = key_tokens
        no_ids = np.empty(0, np.int64)
        self._now = Snapshot((), no_ids, no_ids, np.empty(0, np.bool_), {})

    def add(self, context_ids: Sequence[int], keys: Sequence[Tokens]) -> None:
        if not context_ids:
            return
        now = self._now
        first = len(now.ids)
        packed, lengths = _postings(keys, first, self.key_tokens)
        slot_of = now.slot_of if len(context_ids) == 1 else dict(now.slot_of)
        slot_of.update(zip(context_ids, range(first, first + len(context_ids)), strict=True))
        is_alive = np.concatenate([now.is_alive, np.ones(len(context_ids), np.bool_)])
        blocks = [*now.blocks, _block(packed)]
        while len(blocks) > 1 and len(blocks[-2].slots) < 2 * len(blocks[-1].slots) + 64:
            last, before = blocks.pop(), blocks.pop()
            blocks.append(_merge([before, last], is_alive))
        ids = np.concatenate([now.ids, np.array(context_ids, np.int64)])
        self._now = Snapshot(tuple(blocks), ids, np.concatenate([now.lengths, lengths]), is_alive, slot_of)

    def remove(self, context_ids: Collection[int]) -> None:
        now = self._now
        slots = [now.slot_of[i] for i in context_ids]
        is_alive = now.is_alive.copy()
        is_alive[slots] = False
        gone = set(context_ids)
        slot_of = {i: slot for i, slot in now.slot_of.items() if i not in gone}
        self._now = replace(now, is_alive=is_alive, slot_of=slot_of)
        if 2 * len(slot_of) < len(is_alive):
            self._renumber()

    def search(self, query: Tokens, k: int, exclude: Collection[int]) -> list[Hit]:
        now = self._now
        pairs = np.unique(_pairs(query[-self.key_tokens :]))
        num_alive = int(now.is_alive.sum())  # not of the table, to which an `add` may be adding just now
        if not len(pairs) or not now.blocks or not num_alive or k < 1:
            return []
        ranges = [_ranges(block, pairs) for block in now.blocks]
        counts = np.sum([stop - start for start, stop in ranges], axis=0)
        weights = np.log1p((num_alive + 0.5 - np.minimum(counts, num_alive)) / (counts + 0.5))
        by_rarity = np.argsort(counts, kind="stable")
        is_used = np.zeros(len(pairs), np.bool_)
        is_used[by_rarity[np.cumsum(counts[by_rarity]) <= _MAX_POSTINGS]] = True
        scores = np.zeros(len(now.ids))
        for block, (start, stop) in zip(now.blocks, ranges, strict=True):
            sizes = np.where(is_used, stop - start, 0)
            slots = block.slots[_concatenated(start, sizes)]
            scores += np.bincount(slots, np.repeat(weights, sizes), minlength=len(scores))[: len(scores)]
        lengths = now.lengths / max(1.0, float(now.lengths[now.is_alive].mean()))
        scores *= (_K1 + 1) / (1 + _K1 * (1 - _B + _B * lengths)) / float(weights.sum())
        scores[~now.is_alive] = 0
        # A context added since the snapshot was taken has a slot beyond it.
        scores[[slot for i in exclude if (slot := now.slot_of.get(i, len(scores))) < len(scores)]] = 0
        return [Hit(int(now.ids[slot]), min(1.0, float(scores[slot]))) for slot in _best(scores, now.ids, k)]

    def memory_bytes(self) -> int:
        """Arrays and the table of slots, the latter at what CPython takes for it."""
        now = self._now
        arrays = now.ids.nbytes + now.lengths.nbytes + now.is_alive.nbytes + sum(b.nbytes for b in now.blocks)
        return arrays + 120 * len(now.slot_of)

    def check_integrity(self, context_ids: Collection[int]) -> None:
        """Raises AssertionError naming the broken rule; unlike the other methods, only while nothing is added."""
        now = self._now
        assert set(now.slot_of) == set(context_ids), f"indexed {sorted(now.slot_of)}, stored {sorted(context_ids)}"
        assert all(now.ids[slot] == i and now.is_alive[slot] for i, slot in now.slot_of.items()), "slots and ids"
        assert int(now.is_alive.sum()) == len(now.slot_of), "alive slots are those of known contexts"
        found = np.zeros(len(now.ids), np.int64)
        for block in now.blocks:
            assert np.all(np.diff(block.pairs.astype(np.int64)) > 0), "pairs ascend"
            assert (block.starts[0], block.starts[-1]) == (0, len(block.slots)), "postings of a block"
            found += np.bincount(block.slots, minlength=len(found))
        assert np.array_equal(found[now.is_alive], now.lengths[now.is_alive]), "a posting for each pair of a context"

    def _renumber(self) -> None:
        now = self._now
        merged = _merge(now.blocks, now.is_alive)
        kept = np.flatnonzero(now.is_alive)
        new_slot = np.cumsum(now.is_alive) - 1
        block = replace(merged, slots=new_slot[merged.slots].astype(np.int32))
        ids = now.ids[kept]
        slot_of = {int(i): slot for slot, i in enumerate(ids)}
        blocks = (block,) if len(block.slots) else ()
        self._now = Snapshot(blocks, ids, now.lengths[kept], np.ones(len(kept), np.bool_), slot_of)


def _pairs(tokens: Tokens) -> npt.NDArray[np.uint32]:
    """A hash of each two neighbouring tokens (multiply and shift, with the 64-bit golden ratio)."""
    wide = tokens.astype(np.uint64)
    mixed = (wide[:-1] << np.uint64(32) | wide[1:]) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    return (mixed >> np.uint64(32)).astype(np.uint32)


def _postings(keys: Sequence[Tokens], first_slot: int, key_tokens: int) -> tuple[npt.NDArray[np.uint64], Ints]:
    """Pair and slot of each posting in one number, ascending, none twice; and how many pairs each key has."""
    cut = [key[-key_tokens:] for key in keys]
    sizes = np.array([len(key) for key in cut])
    pairs = _pairs(np.concatenate(cut)) if sizes.sum() else np.empty(0, np.uint32)
    owners = np.repeat(np.arange(len(cut), dtype=np.uint64), sizes)
    is_inside = owners[:-1] == owners[1:]
    packed = np.sort(pairs[is_inside].astype(np.uint64) << np.uint64(32) | owners[:-1][is_inside])
    packed = packed[_is_first(packed)]
    lengths = np.bincount((packed & np.uint64(0xFFFFFFFF)).astype(np.int64), minlength=len(cut))
    return packed + np.uint64(first_slot), lengths


def _block(packed: npt.NDArray[np.uint64]) -> Block:
    of_posting = (packed >> np.uint64(32)).astype(np.uint32)
    starts = np.flatnonzero(_is_first(of_posting))
    slots = (packed & np.uint64(0xFFFFFFFF)).astype(np.int32)
    return Block(of_posting[starts], np.append(starts, len(packed)).astype(np.int32), slots)


def _is_first(ordered: npt.NDArray[np.unsignedinteger[Any]]) -> npt.NDArray[np.bool_]:
    """Where a number differs from the one before. (`np.unique` would hash them all again.)"""
    is_first = np.ones(len(ordered), np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=is_first[1:])
    return is_first


def _merge(blocks: Sequence[Block], is_alive: npt.NDArray[np.bool_]) -> Block:
    """One block of the postings that are alive."""
    parts = [
        np.repeat(b.pairs, np.diff(b.starts)).astype(np.uint64) << np.uint64(32) | b.slots.astype(np.uint64)
        for b in blocks
    ]
    packed = np.sort(np.concatenate(parts)) if parts else np.empty(0, np.uint64)
    return _block(packed[is_alive[(packed & np.uint64(0xFFFFFFFF)).astype(np.int64)]])


def _ranges(block: Block, pairs: npt.NDArray[np.uint32]) -> tuple[Ints, Ints]:
    """Where each of these pairs has its postings; empty where it has none."""
    if not len(block.pairs):
        return np.zeros(len(pairs), np.int64), np.zeros(len(pairs), np.int64)
    place = np.minimum(np.searchsorted(block.pairs, pairs), len(block.pairs) - 1)
    start = block.starts[place].astype(np.int64)
    return start, np.where(block.pairs[place] == pairs, block.starts[place + 1], start).astype(np.int64)


def _concatenated(starts: Ints, sizes: Ints) -> Ints:
    """The numbers of every range [start, start + size), one range after the other."""
    ends = np.cumsum(sizes)
    first: Ints = np.repeat(starts - (ends - sizes), sizes)
    return first + np.arange(len(first))


def _best(scores: npt.NDArray[np.float64], ids: Ints, k: int) -> Iterator[int]:
    slots = np.flatnonzero(scores > 0)
    if len(slots) > k:
        least = np.partition(scores[slots], -k)[-k]
        slots = slots[scores[slots] >= least]
    return iter(slots[np.lexsort((-ids[slots], -scores[slots]))][:k].tolist())
